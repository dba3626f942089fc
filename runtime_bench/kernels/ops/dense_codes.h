// Real numbers as codes: what dense_generic.h does first with those that it is given.
#ifndef BGNN_DENSE_CODES_H
#define BGNN_DENSE_CODES_H

#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "dense_kernels.h"

namespace {

typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef float F32x16 __attribute__((vector_size(64)));
typedef uint8_t U8x64 __attribute__((vector_size(64)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

// A float between -2^22 and 2^22 plus this has the integer next to it, halves to even, in its low bits.
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23
constexpr int32_t kItsBits = 0x4b400000;

// So many groups of 4 numbers among 64 become codes one by one.
[[maybe_unused]] constexpr int kGroupsAlone = 6;

template <class V>
inline __attribute__((always_inline)) V loaded(const void* at) {
  V v;
  memcpy(&v, at, sizeof v);
  return v;
}

// Real numbers (products, or quotients by a scale) as codes.
inline __attribute__((always_inline)) U8x16 codes_of(F32x16 real, int32_t zero, int32_t low, int32_t high) {
#if defined(BGNN_DENSE_NEON)  // clamped by narrowing; of a NaN and the lowest code, vmaxnm gives the code, as below
  float32x4_t part[4];
  memcpy(part, &real, sizeof part);
  int32x4_t whole[4];
  for (int i = 0; i < 4; i++) whole[i] = vcvtnq_s32_f32(vmaxnmq_f32(part[i], vdupq_n_f32(float(low - zero))));
  const int16x8_t zeros = vdupq_n_s16(int16_t(zero));
  const int16x8_t first = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(whole[0]), whole[1]), zeros);
  const int16x8_t second = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(whole[2]), whole[3]), zeros);
  return (U8x16)vminq_u8(vqmovun_high_s16(vqmovun_s16(first), second), vdupq_n_u8(uint8_t(high)));
#endif
  const F32x16 least = F32x16{} + float(low - zero), most = F32x16{} + float(high - zero);
  real = real > least ? real : least;
  real = real < most ? real : most;
  const I32x16 code = I32x16(real + kToInteger) - kItsBits + zero;
#if defined(__SSE2__) && !defined(__AVX512F__)  // where GCC converts one by one
  __m128i part[4];
  memcpy(part, &code, sizeof part);
  return U8x16(_mm_packus_epi16(_mm_packs_epi32(part[0], part[1]), _mm_packs_epi32(part[2], part[3])));
#else
  return __builtin_convertvector(code, U8x16);
#endif
}

inline __attribute__((always_inline)) bool all_zero(const float* from) {
#if defined(__AVX512F__)
  return !_mm512_test_epi32_mask(_mm512_loadu_si512(from), _mm512_set1_epi32(0x7fffffff));
#elif defined(__SSE2__)
  const auto part = [&](int i) { return _mm_loadu_ps(from + 4 * i); };
  const __m128i any = _mm_castps_si128(_mm_or_ps(_mm_or_ps(part(0), part(1)), _mm_or_ps(part(2), part(3))));
  return _mm_movemask_epi8(_mm_cmpeq_epi32(_mm_slli_epi32(any, 1), _mm_setzero_si128())) == 0xffff;
#elif defined(__ARM_NEON)
  const auto part = [&](int i) { return vreinterpretq_u32_f32(vld1q_f32(from + 4 * i)); };
  const uint32x4_t any = vorrq_u32(vorrq_u32(part(0), part(1)), vorrq_u32(part(2), part(3)));
  return !vmaxvq_u32(vshlq_n_u32(any, 1));  // negative zeros are zeros: a mask leaves them
#else
  bool any = false;
  for (int i = 0; i < 16; i++) any |= from[i] != 0;
  return !any;
#endif
}

#if defined(BGNN_DENSE_NEON)
// As codes_of.
inline __attribute__((always_inline)) uint32_t group_codes(float32x4_t real, int32_t zero, int32_t low, int32_t high) {
  const int32x4_t whole = vcvtnq_s32_f32(vmaxnmq_f32(real, vdupq_n_f32(float(low - zero))));
  const int16x4_t code = vqadd_s16(vqmovn_s32(whole), vdup_n_s16(int16_t(zero)));
  const uint8x8_t bytes = vmin_u8(vqmovun_s16(vcombine_s16(code, code)), vdup_n_u8(uint8_t(high)));
  return vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
}

// 16 bytes that are all set or none, as 4 bits each.
inline uint64_t nibbles(uint8x16_t found) {
  return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(found), 4)), 0);
}

// Which of 16 groups of 4 real numbers are not all 0, by 4 bits each. A number's highest byte tells enough: where it is
// 0 but for the sign, the number is below 2^-125, and no scale is so small that its code is not that of 0.
inline uint64_t found_groups(const float* from) {
  uint8x16_t any[4];
  for (int i = 0; i < 4; i++) {
    any[i] = vtstq_u8(vld4q_u8(reinterpret_cast<const uint8_t*>(from + 16 * i)).val[3], vdupq_n_u8(0x7f));
  }
  return nibbles(vpmaxq_u8(vpmaxq_u8(any[0], any[1]), vpmaxq_u8(any[2], any[3])));
}
#endif

// A bag of words has few numbers that are not 0: a division each for 16 of them costs more than to look.
inline void quantise_row(const float* from, const Quantiser q, uint8_t turn, int64_t count, uint8_t* to) {
  const auto codes = [&](F32x16 real) __attribute__((always_inline)) {
    return codes_of(real / q.scale, q.zp, q.low, q.high) ^ turn;
  };
  const U8x16 blank = codes(F32x16{});
  int64_t k = 0;
#if defined(BGNN_DENSE_NEON)
  for (; k + 64 <= count; k += 64) {
    uint64_t found = found_groups(from + k);
    if (__builtin_popcountll(found) > 4 * kGroupsAlone) {
      for (int64_t i = k; i < k + 64; i += 16) {
        const U8x16 some = codes(loaded<F32x16>(from + i));
        memcpy(to + i, &some, 16);
      }
      continue;
    }
    for (int64_t i = k; i < k + 64; i += 16) memcpy(to + i, &blank, 16);
    for (found &= 0x1111111111111111; found; found &= found - 1) {
      const int64_t at = k + __builtin_ctzll(found);
      const uint32_t group = group_codes(vld1q_f32(from + at) / q.scale, q.zp, q.low, q.high) ^ turn * 0x01010101u;
      memcpy(to + at, &group, 4);
    }
  }
#endif
  for (; k + 16 <= count; k += 16) {
    const U8x16 some = all_zero(from + k) ? blank : codes(loaded<F32x16>(from + k));
    memcpy(to + k, &some, 16);
  }
  F32x16 rest = {};
  memcpy(&rest, from + k, size_t(count - k) * 4);
  const U8x16 last = codes(rest);
  memcpy(to + k, &last, size_t(count - k));
}

}  // namespace

#endif
