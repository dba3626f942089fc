// VPMADDWD on codes and weights widened to 16 bits: VPMADDUBSW would saturate (2 * 255 * 127 is beyond 32767).
#include <immintrin.h>

#include "dense_generic.h"
#include "dense_isa.h"

namespace {

struct Avx2 {
  static constexpr uint8_t kTurned = 0;
  static constexpr int64_t kAll = 8, kFind = 32, kSome = 10;

  // The 4 codes of a group, less zero, in 16 bits, four times over.
  static __m256i codes(const uint8_t* at, __m256i zero) {
    int32_t word;
    memcpy(&word, at, 4);
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_set1_epi32(word)), zero);
  }

  // Of 4 outputs: each lane has the sums of 2 inputs.
  static __m256i weights_of(const int32_t* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }

  // The halves of each output added, 16 outputs in their order.
  static void store(const __m256i* sum, int32_t* to) {
    for (int half = 0; half < 2; half++) {
      const __m256i mixed = _mm256_hadd_epi32(sum[2 * half], sum[2 * half + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8 * half), _mm256_permute4x64_epi64(mixed, 0xd8));
    }
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    constexpr int kRows = 2;  // of 4 vectors of sums
    const __m256i zero = _mm256_setzero_si256();
    for (int64_t b = 0; b < blocks; b++, weights += groups * kLanes) {
      for (int first = 0; first < kPanel; first += kRows) {
        const uint8_t* rows = panel + first * stride;
        __m256i sum[kRows][4];
        for (auto& row : sum) {
          for (auto& quarter : row) quarter = zero;
        }
        for (int64_t g = 0; g < groups; g++) {
          __m256i x[kRows];
#pragma GCC unroll 2
          for (int r = 0; r < kRows; r++) x[r] = codes(rows + r * stride + 4 * g, zero);
#pragma GCC unroll 4
          for (int q = 0; q < 4; q++) {
            const __m256i w = weights_of(weights + g * kLanes + 4 * q);
#pragma GCC unroll 2
            for (int r = 0; r < kRows; r++) {
              sum[r][q] = _mm256_add_epi32(sum[r][q], _mm256_madd_epi16(x[r], w));
              asm volatile("" : "+x"(sum[r][q]));  // in this order: GCC keeps one in memory else
            }
          }
        }
        for (int r = 0; r < kRows; r++) store(sum[r], sums + ((first + r) * blocks + b) * kLanes);
      }
    }
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    const __m256i zeros = _mm256_set1_epi8(char(zero)), wide = _mm256_set1_epi16(zero);
    for (int64_t b = 0; b < blocks; b++, weights += groups * kLanes) {
      __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
      for (int64_t g = 0; g < groups; g += 8) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * g));
        uint32_t found = 0xff & ~uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x, zeros))));
        for (; found; found &= found - 1) {
          const int64_t at = g + __builtin_ctz(found);
          const __m256i one = codes(row + 4 * at, wide);
#pragma GCC unroll 4
          for (int q = 0; q < 4; q++) {
            const __m256i w = weights_of(weights + at * kLanes + 4 * q);
            sum[q] = _mm256_add_epi32(sum[q], _mm256_madd_epi16(one, w));
          }
        }
      }
      store(sum, sums + b * kLanes);
    }
  }
};

}  // namespace

extern const DenseKernels dense_kernels_avx2 = BGNN_DENSE_KERNELS("avx2", Avx2);
