// Choosing and ordering the smallest of many keys without sorting them all. A key is an int32 >= 0; equal keys go
// to the lower position.
#ifndef BGNN_NEAREST_H
#define BGNN_NEAREST_H

#include "sliced.h"

typedef int32_t Ints __attribute__((vector_size(BGNN_VECTOR)));
typedef float Floats __attribute__((vector_size(BGNN_VECTOR)));
typedef Ints IntsInMemory __attribute__((aligned(4), may_alias));
typedef Floats FloatsInMemory __attribute__((aligned(4), may_alias));
constexpr int64_t kInts = BGNN_VECTOR / 4;

BGNN_INLINE Ints load(const int32_t* at) { return *reinterpret_cast<const IntsInMemory*>(at); }
BGNN_INLINE Floats load(const float* at) { return *reinterpret_cast<const FloatsInMemory*>(at); }
BGNN_INLINE void store(int32_t* at, Ints v) { *reinterpret_cast<IntsInMemory*>(at) = v; }
BGNN_INLINE Ints least(Ints a, Ints b) { return a < b ? a : b; }

#if defined(__AVX512F__)
// rank_keys for at most 32: both vectors meet each key.
BGNN_INLINE void rank_few(const int32_t* keys, int64_t count, int32_t* place) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i low = (__m512i)load(keys), high = (__m512i)load(keys + (count > 16 ? 16 : 0));
  __m512i below = _mm512_setzero_si512(), above = below;
  for (int64_t i = 0; i < at_most(count, 16); i++) {
    const __m512i key = _mm512_set1_epi32(keys[i]);
    const __mmask16 later = __mmask16(0xfffeu << i);  // an equal key counts for the lanes behind it
    below = _mm512_mask_add_epi32(
        below, _mm512_mask_cmple_epi32_mask(later, key, low) | _mm512_cmplt_epi32_mask(key, low), below, one);
    above = _mm512_mask_add_epi32(above, _mm512_cmple_epi32_mask(key, high), above, one);
  }
  for (int64_t i = 16; i < count; i++) {
    const __m512i key = _mm512_set1_epi32(keys[i]);
    const __mmask16 later = __mmask16(0xfffeu << (i - 16));
    below = _mm512_mask_add_epi32(below, _mm512_cmplt_epi32_mask(key, low), below, one);
    above = _mm512_mask_add_epi32(
        above, _mm512_mask_cmple_epi32_mask(later, key, high) | _mm512_cmplt_epi32_mask(key, high), above, one);
  }
  store(place, (Ints)below);
  if (count > 16) store(place + 16, (Ints)above);
}
#endif

// place[i] = how many keys stand before key i. `keys` and `place` have room for `count` rounded up to kInts.
BGNN_INLINE void rank_keys(const int32_t* keys, int64_t count, int32_t* place) {
#if defined(__AVX512F__)
  if (count <= 32) return rank_few(keys, count, place);
#endif
  Ints lane;
  for (int l = 0; l < kInts; l++) lane[l] = l;
  for (int64_t block = 0; block < count; block += kInts) {
    const Ints own = load(keys + block);
    Ints before = {};  // comparisons give -1
    const int64_t end = at_most(count, block + kInts);
    for (int64_t i = 0; i < block; i++) before -= (Ints{} + keys[i]) <= own;
    for (int64_t i = block; i < end; i++) {
      const Ints later = lane > int32_t(i - block);  // an equal key counts for the lanes behind it
      before -= (Ints{} + keys[i]) < own - later;
    }
    for (int64_t i = end; i < count; i++) before -= (Ints{} + keys[i]) < own;
    store(place + block, before);
  }
}

#if defined(__AVX512VBMI2__)
struct Places {
  alignas(64) uint8_t at[64];  // 0 to 63
  constexpr Places() : at() {
    for (int i = 0; i < 64; i++) at[i] = uint8_t(i);
  }
};
static constexpr Places kPlaces;
#endif

// Writes start + the places of the ones in v, ascending, and returns how many. Loops over few bits in random places
// are mispredicted, so more places than there are ones are written: `out` has room for 64.
BGNN_INLINE int64_t list_ones(uint64_t v, int64_t start, int32_t* out) {
  const int64_t count = popcount64(v);
#if defined(__AVX512VBMI2__)
  const __m512i places = _mm512_maskz_compress_epi8(v, _mm512_load_si512(kPlaces.at));
  const __m512i first = _mm512_set1_epi32(int32_t(start));
  const auto write = [&](int64_t n, __m128i sixteen) __attribute__((always_inline)) {
    _mm512_storeu_si512(out + n, _mm512_add_epi32(_mm512_cvtepu8_epi32(sixteen), first));
  };
  write(0, _mm512_castsi512_si128(places));
  if (count > 16) {
    write(16, _mm512_extracti32x4_epi32(places, 1));
    write(32, _mm512_extracti32x4_epi32(places, 2));
    write(48, _mm512_extracti32x4_epi32(places, 3));
  }
#else
  constexpr int64_t kUsual = 4;
  const auto lowest = [](uint64_t ones) { return __builtin_ctzll(ones | uint64_t(1) << 63); };
  for (int64_t n = 0; n < kUsual; n++, v &= v - 1) out[n] = int32_t(start + lowest(v));
  for (int64_t n = kUsual; n < count; n++, v &= v - 1) out[n] = int32_t(start + lowest(v));
#endif
  return count;
}

// A mask as bits: bit n is set where lane n of 64 is -1 (else it is 0), mask(n) giving the kInts lanes from n on.
template <class Mask>
BGNN_INLINE uint64_t bits_of(Mask mask) {
  uint64_t bits = 0;
#if defined(__AVX512F__)
  for (int64_t n = 0; n < 64; n += 16) bits |= uint64_t(_mm512_movepi32_mask((__m512i)mask(n))) << n;
#elif defined(__AVX2__)
  for (int64_t n = 0; n < 64; n += 8) {
    bits |= uint64_t(_mm256_movemask_ps(_mm256_castsi256_ps((__m256i)mask(n)))) << n;
  }
#else
  constexpr Ints kWeights = {1, 2, 4, 8};
  for (int64_t half = 0; half < 64; half += 32) {
    Ints sums = {};
    for (int64_t n = 0; n < 32; n += kInts) sums |= mask(half + n) & (kWeights << int(n));
    uint32_t word = 0;
    for (int l = 0; l < kInts; l++) word |= uint32_t(sums[l]);
    bits |= uint64_t(word) << half;
  }
#endif
  return bits;
}

// The positions n < count with keys[n] <= limit, ascending, and their keys; a number above `most` where there are
// more. `keys` and `within` (a bit for a key) have room for a multiple of 64, `positions` and `found` for most + 64.
BGNN_INLINE int64_t keep_up_to(const int32_t* keys, int64_t count, int32_t limit, int64_t most, uint64_t* within,
                               int32_t* positions, int32_t* found) {
  int64_t kept = 0;
#if defined(__AVX512VBMI2__)
  (void)within;
  for (int64_t n = 0; n < count; n += 64) {
    const __m512i most_allowed = _mm512_set1_epi32(limit);
    const auto sixteen = [&](int64_t l) { return _mm512_cmple_epi32_mask(_mm512_loadu_si512(keys + n + l), most_allowed); };
    uint64_t bits = _mm512_kunpackd(_mm512_kunpackw(sixteen(48), sixteen(32)), _mm512_kunpackw(sixteen(16), sixteen(0)));
    if (count - n < 64) bits &= (uint64_t(1) << (count - n)) - 1;
    kept += list_ones(bits, n, positions + kept);
    if (kept > most) return kept;
  }
#else
  int64_t total = 0;
  for (int64_t n = 0; n < count; n += 64) {
    uint64_t bits = bits_of([&](int64_t l) { return load(keys + n + l) <= Ints{} + limit; });
    if (count - n < 64) bits &= (uint64_t(1) << (count - n)) - 1;
    within[n / 64] = bits;
    total += popcount64(bits);
  }
  if (total > most) return total;
  for (int64_t n = 0; n < count; n += 64) {
    if (within[n / 64]) kept += list_ones(within[n / 64], n, positions + kept);
  }
#endif
  for (int64_t i = 0; i < kept; i++) found[i] = keys[positions[i]];
  return kept;
}

#endif
