// VPDPBUSD: 4 codes by 4 weights for 16 outputs. dispatch.cc asks for it before it chooses these.
#include <immintrin.h>

#include "dense_generic.h"
#include "dense_isa.h"

namespace {

struct Avx512 {
  static constexpr uint8_t kTurned = 0;
  static constexpr int64_t kAll = 1, kFind = 32, kSome = 4;

  static __m512i codes(const uint8_t* at) {
    int32_t word;
    memcpy(&word, at, 4);
    return _mm512_set1_epi32(word);
  }

  // kBlocks blocks of outputs: kPanel / kBlocks rows at a time, which are 16 sums.
  template <int kBlocks>
  static void panel_by(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t row_sums,
                       int32_t* sums) {
    constexpr int kRows = kPanel / kBlocks;
    for (int first = 0; first < kPanel; first += kRows) {
      const uint8_t* rows = panel + first * stride;
      __m512i sum[kRows][kBlocks];
      for (auto& row : sum) {
        for (auto& block : row) block = _mm512_setzero_si512();
      }
      for (int64_t g = 0; g < groups; g++) {
        __m512i w[kBlocks];
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; b++) w[b] = _mm512_loadu_si512(weights + (b * groups + g) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
          const __m512i x = codes(rows + r * stride + 4 * g);
#pragma GCC unroll 4
          for (int b = 0; b < kBlocks; b++) sum[r][b] = _mm512_dpbusd_epi32(sum[r][b], x, w[b]);
        }
      }
      for (int r = 0; r < kRows; r++) {
        for (int b = 0; b < kBlocks; b++) {
          _mm512_storeu_si512(sums + (first + r) * row_sums + b * kLanes, sum[r][b]);
        }
      }
    }
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    const int64_t row_sums = blocks * kLanes;
    for (int64_t b = 0; b < blocks;) {
      const int32_t* w = weights + b * groups * kLanes;
      if (blocks - b >= 4) {
        panel_by<4>(panel, stride, w, groups, row_sums, sums + b * kLanes);
        b += 4;
      } else if (blocks - b >= 2) {
        panel_by<2>(panel, stride, w, groups, row_sums, sums + b * kLanes);
        b += 2;
      } else {
        panel_by<1>(panel, stride, w, groups, row_sums, sums + b * kLanes);
        b += 1;
      }
    }
  }

  template <int kBlocks>
  static void row_by(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int32_t* sums) {
    const __m512i zeros = _mm512_set1_epi8(char(zero));
    __m512i sum[kBlocks], minus[kBlocks];
    for (int b = 0; b < kBlocks; b++) sum[b] = minus[b] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g += 16) {
      // Not uint32_t: where GCC 12 keeps that in memory (-Og with sanitizers), it writes 2 bytes of it (kmovw %k0, at)
      // and reads 4 (tzcnt at), so that the upper half is whatever was there.
      __mmask16 found = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(row + 4 * g), zeros);
      for (; found; found &= __mmask16(found - 1)) {
        const int64_t at = g + __builtin_ctz(found);
        const __m512i x = codes(row + 4 * at);
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; b++) {
          const __m512i w = _mm512_loadu_si512(weights + (b * groups + at) * kLanes);
          sum[b] = _mm512_dpbusd_epi32(sum[b], x, w);
          if (zero) minus[b] = _mm512_dpbusd_epi32(minus[b], zeros, w);
        }
      }
    }
    for (int b = 0; b < kBlocks; b++) _mm512_storeu_si512(sums + b * kLanes, _mm512_sub_epi32(sum[b], minus[b]));
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    int64_t b = 0;
    for (; b + 4 <= blocks; b += 4) row_by<4>(row, zero, weights + b * groups * kLanes, groups, sums + b * kLanes);
    for (; b < blocks; b++) row_by<1>(row, zero, weights + b * groups * kLanes, groups, sums + b * kLanes);
  }
};

}  // namespace

extern const DenseKernels dense_kernels_avx512 = BGNN_DENSE_KERNELS("avx512", Avx512);
