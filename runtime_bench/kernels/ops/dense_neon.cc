// Without dot products, as on a Cortex-A72: SMULL makes 16-bit products of 8 codes and weights, SADALP adds pairs of
// them to 32-bit sums. Two products of int8 fit in 16 bits unless all four factors are -128, so SMLAL adds a second
// group to the first only where no weight is.
#include "dense_isa.h"
#include "dense_neon.h"

namespace {

struct Neon {
  static constexpr uint8_t kTurned = 0x80;
  static constexpr int64_t kAll = 8, kFind = 8, kSome = 11;

  static int8x16_t codes(const void* at) {  // of a group, four times over
    int8x16_t all = vreinterpretq_s8_u32(vld1q_dup_u32(static_cast<const uint32_t*>(at)));
    asm("" : "+w"(all));  // as 16 bytes: of 8, Clang moves the weights' upper halves instead of SMULL2
    return all;
  }
  static int8x16_t weights_of(const int32_t* at) { return vreinterpretq_s8_s32(vld1q_s32(at)); }

  static bool has_lowest(const int32_t* weights, int64_t words) {
    uint8x16_t found = vdupq_n_u8(0);
    for (int64_t i = 0; i < words; i += 4) found = vorrq_u8(found, vceqq_s8(weights_of(weights + i), vdupq_n_s8(-128)));
    return vmaxvq_u8(found) != 0;
  }

  // 4 outputs by 4 inputs: sums of 2 inputs, of outputs 0 and 1, and of 2 and 3.
  struct Sums {
    int32x4_t part[4][2];
    void clear() {
      for (auto& quarter : part) quarter[0] = quarter[1] = vdupq_n_s32(0);
    }
    void store(int32_t* to) const {
      for (int q = 0; q < 4; q++) vst1q_s32(to + 4 * q, vpaddq_s32(part[q][0], part[q][1]));
    }
  };

  template <bool kPairs>
  static void block(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t row_sums,
                    int32_t* sums) {
    constexpr int kRows = 2, kStep = kPairs ? 2 : 1;
    for (int first = 0; first < kPanel; first += kRows) {
      const uint8_t* rows = panel + first * stride;
      Sums sum[kRows];
      for (auto& row : sum) row.clear();
      int64_t g = 0;
      for (; g + kStep <= groups; g += kStep) {
        int8x16_t x[kRows][kStep];
#pragma GCC unroll 2
        for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
          for (int s = 0; s < kStep; s++) x[r][s] = codes(rows + r * stride + 4 * (g + s));
        }
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
          int8x16_t w[kStep];
#pragma GCC unroll 2
          for (int s = 0; s < kStep; s++) w[s] = weights_of(weights + (g + s) * kLanes + 4 * q);
#pragma GCC unroll 2
          for (int r = 0; r < kRows; r++) {
            int16x8_t low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[r][0])), high = vmull_high_s8(w[0], x[r][0]);
            if (kPairs) {
              low = vmlal_s8(low, vget_low_s8(w[kStep - 1]), vget_low_s8(x[r][kStep - 1]));
              high = vmlal_high_s8(high, w[kStep - 1], x[r][kStep - 1]);
            }
            sum[r].part[q][0] = vpadalq_s16(sum[r].part[q][0], low);
            sum[r].part[q][1] = vpadalq_s16(sum[r].part[q][1], high);
          }
        }
      }
      for (; g < groups; g++) {
        for (int r = 0; r < kRows; r++) {
          const int8x16_t x = codes(rows + r * stride + 4 * g);
          for (int q = 0; q < 4; q++) add(x, weights_of(weights + g * kLanes + 4 * q), sum[r].part[q]);
        }
      }
      for (int r = 0; r < kRows; r++) sum[r].store(sums + (first + r) * row_sums);
    }
  }

  static void add(int8x16_t x, int8x16_t w, int32x4_t* sum) {
    sum[0] = vpadalq_s16(sum[0], vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    sum[1] = vpadalq_s16(sum[1], vmull_high_s8(w, x));
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    for (int64_t b = 0; b < blocks; b++, weights += groups * kLanes, sums += kLanes) {
      if (has_lowest(weights, groups * kLanes)) {
        block<false>(panel, stride, weights, groups, blocks * kLanes, sums);
      } else {
        block<true>(panel, stride, weights, groups, blocks * kLanes, sums);
      }
    }
  }

  // Of two groups' products the second's is subtracted, of the codes turned over: ~x = -x - 1, and w0 * x0 - w1 * ~x1
  // fits in 16 bits whatever they are. It has w1 too much; of both kinds of weights the sum is kept.
  static void listed(const int32_t* list, const uint32_t* words, int64_t count, uint8_t zero, const int32_t* weights,
                     bool more, int32_t* sums) {
    int32x4_t part[4][2] = {};
    int16x8_t even[4] = {}, odd[4] = {};
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      const int8x16_t x = codes(words + i), y = vmvnq_s8(codes(words + i + 1));
      const int32_t *one = weights + int64_t(list[i]) * kLanes, *other = weights + int64_t(list[i + 1]) * kLanes;
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++) {
        const int8x16_t w = weights_of(one + 4 * q), v = weights_of(other + 4 * q);
        const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
        part[q][0] = vpadalq_s16(part[q][0], vmlsl_s8(low, vget_low_s8(v), vget_low_s8(y)));
        part[q][1] = vpadalq_s16(part[q][1], vmlsl_high_s8(high, v, y));
        even[q] = vpadalq_s8(even[q], w);
        odd[q] = vpadalq_s8(odd[q], v);
      }
    }
    if (i < count) {
      const int8x16_t x = codes(words + i);
      for (int q = 0; q < 4; q++) {
        const int8x16_t w = weights_of(weights + int64_t(list[i]) * kLanes + 4 * q);
        add(x, w, part[q]);
        even[q] = vpadalq_s8(even[q], w);
      }
    }
    int32x4_t sum[4];
    for (int q = 0; q < 4; q++) {
      sum[q] = vpaddq_s32(part[q][0], part[q][1]);
      sum[q] = vmlsq_n_s32(sum[q], vpaddlq_s16(even[q]), int8_t(zero));
      sum[q] = vmlsq_n_s32(sum[q], vpaddlq_s16(odd[q]), int8_t(zero) + 1);
    }
    store_sums(sum, more, sums);
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    sum_some<Neon>(row, zero, weights, groups, blocks, sums);
  }
};

}  // namespace

extern const DenseKernels dense_kernels_neon = BGNN_DENSE_KERNELS("neon", Neon);
