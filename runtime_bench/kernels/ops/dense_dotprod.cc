// SDOT: 4 codes by 4 weights for 4 outputs, as the Cortex-A76 has it. dispatch.cc asks for it before it chooses these.
#include "dense_isa.h"
#include "dense_neon.h"

namespace {

struct DotProduct {
  static constexpr uint8_t kTurned = 0x80;
  static constexpr int64_t kAll = 5, kFind = 12, kSome = 13;
  static constexpr int kRows = 4;  // by 4 vectors of outputs: 16 sums

  static int8x16_t load(const void* at) { return vreinterpretq_s8_u8(vld1q_u8(static_cast<const uint8_t*>(at))); }

  // The group kGroup of the rows' 4 groups.
  template <int kGroup>
  static void add(const int32_t* weights, const int8x16_t* x, int32x4_t (*sum)[4]) {
    int8x16_t w[4];
    for (int q = 0; q < 4; q++) w[q] = load(weights + 4 * q);
    for (int r = 0; r < kRows; r++) {
      for (int q = 0; q < 4; q++) sum[r][q] = vdotq_laneq_s32(sum[r][q], w[q], x[r], kGroup);
    }
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    for (int64_t b = 0; b < blocks; b++, weights += groups * kLanes, sums += kLanes) {
      for (int first = 0; first < kPanel; first += kRows) {
        int32x4_t sum[kRows][4] = {};
        const int32_t* w = weights;
        for (int64_t g = 0; g < groups; g += 4) {
          int8x16_t x[kRows];
          for (int r = 0; r < kRows; r++) x[r] = load(panel + (first + r) * stride + 4 * g);
          const int64_t left = groups - g;
          add<0>(w, x, sum);
          if (left > 1) add<1>(w + kLanes, x, sum);
          if (left > 2) add<2>(w + 2 * kLanes, x, sum);
          if (left > 3) add<3>(w + 3 * kLanes, x, sum);
          w += 4 * kLanes;
        }
        for (int r = 0; r < kRows; r++) {
          for (int q = 0; q < 4; q++) vst1q_s32(sums + (first + r) * blocks * kLanes + 4 * q, sum[r][q]);
        }
      }
    }
  }

  static void listed(const int32_t* list, const uint32_t* words, int64_t count, uint8_t zero, const int32_t* weights,
                     bool more, int32_t* sums) {
    const int8x16_t zeros = vdupq_n_s8(int8_t(zero));
    int32x4_t sum[4] = {}, minus[4] = {};
    for (int64_t i = 0; i < count; i++) {
      const int8x16_t x = vreinterpretq_s8_u32(vld1q_dup_u32(words + i));
      for (int q = 0; q < 4; q++) {
        const int8x16_t w = load(weights + int64_t(list[i]) * kLanes + 4 * q);
        sum[q] = vdotq_s32(sum[q], w, x);
        minus[q] = vdotq_s32(minus[q], w, zeros);
      }
    }
    for (int q = 0; q < 4; q++) sum[q] = vsubq_s32(sum[q], minus[q]);
    store_sums(sum, more, sums);
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    sum_some<DotProduct>(row, zero, weights, groups, blocks, sums);
  }
};

}  // namespace

extern const DenseKernels dense_kernels_dotprod = BGNN_DENSE_KERNELS("dotprod", DotProduct);
