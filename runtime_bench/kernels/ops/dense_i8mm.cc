// USMMLA: 8 codes of 2 rows by 8 weights of 2 outputs. dispatch.cc asks for it before it chooses these.
#include "dense_isa.h"
#include "dense_neon.h"

namespace {

struct Matrix {
  static constexpr uint8_t kTurned = 0;
  static constexpr int64_t kAll = 3, kFind = 12, kSome = 13;
  static constexpr int kRows = 8, kOutputs = 8;  // 4 pairs by 4 pairs: 16 sums

  // Pairs of outputs with 8 inputs each, from 2 groups of the packed weights; the second may not be there.
  static void weights_of(const int32_t* at, bool second, int8x16_t* pairs) {
    for (int i = 0; i < 2; i++) {
      const int32x4_t first = vld1q_s32(at + 4 * i), next = second ? vld1q_s32(at + kLanes + 4 * i) : vdupq_n_s32(0);
      pairs[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(first, next));
      pairs[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, next));
    }
  }

  static void add(const uint8x16_t* x, const int8x16_t* w, int32x4_t (*sum)[4]) {
    for (int r = 0; r < 4; r++) {
      for (int o = 0; o < 4; o++) sum[r][o] = vusmmlaq_s32(sum[r][o], x[r], w[o]);
    }
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    for (int64_t o = 0; o < blocks * kLanes; o += kOutputs) {
      const int32_t* from = weights + o / kLanes * groups * kLanes + o % kLanes;
      for (int first = 0; first < kPanel; first += kRows) {
        int32x4_t sum[4][4] = {};
        for (int64_t g = 0; g < groups; g += 4) {
          uint8x16_t low[4], high[4];
          for (int r = 0; r < 4; r++) {
            const uint8_t* rows = panel + (first + 2 * r) * stride + 4 * g;
            const uint64x2_t one = vreinterpretq_u64_u8(vld1q_u8(rows)), two = vreinterpretq_u64_u8(vld1q_u8(rows + stride));
            low[r] = vreinterpretq_u8_u64(vzip1q_u64(one, two));
            high[r] = vreinterpretq_u8_u64(vzip2q_u64(one, two));
          }
          int8x16_t w[4];
          const int64_t left = groups - g;
          weights_of(from + g * kLanes, left > 1, w);
          add(low, w, sum);
          if (left <= 2) break;
          weights_of(from + (g + 2) * kLanes, left > 3, w);
          add(high, w, sum);
        }
        for (int r = 0; r < 4; r++) {
          int32_t* to = sums + (first + 2 * r) * blocks * kLanes + o;
          for (int i = 0; i < 2; i++) {
            const int64x2_t one = vreinterpretq_s64_s32(sum[r][2 * i]), two = vreinterpretq_s64_s32(sum[r][2 * i + 1]);
            vst1q_s32(to + 4 * i, vreinterpretq_s32_s64(vzip1q_s64(one, two)));
            vst1q_s32(to + blocks * kLanes + 4 * i, vreinterpretq_s32_s64(vzip2q_s64(one, two)));
          }
        }
      }
    }
  }

  static void listed(const int32_t* list, const uint32_t* words, int64_t count, uint8_t zero, const int32_t* weights,
                     bool more, int32_t* sums) {
    const uint8x16_t zeros = vdupq_n_u8(zero);
    int32x4_t sum[4] = {}, minus[4] = {};
    for (int64_t i = 0; i < count; i++) {
      const uint8x16_t x = vreinterpretq_u8_u32(vld1q_dup_u32(words + i));
      for (int q = 0; q < 4; q++) {
        const int8x16_t w = vreinterpretq_s8_s32(vld1q_s32(weights + int64_t(list[i]) * kLanes + 4 * q));
        sum[q] = vusdotq_s32(sum[q], x, w);
        if (zero) minus[q] = vusdotq_s32(minus[q], zeros, w);
      }
    }
    for (int q = 0; q < 4; q++) sum[q] = vsubq_s32(sum[q], minus[q]);
    store_sums(sum, more, sums);
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    sum_some<Matrix>(row, zero, weights, groups, blocks, sums);
  }
};

}  // namespace

extern const DenseKernels dense_kernels_i8mm = BGNN_DENSE_KERNELS("i8mm", Matrix);
