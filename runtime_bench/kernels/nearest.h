// Choosing and ordering the smallest of many keys without sorting them all. A key is an int32 >= 0; equal keys go
// to the lower position.
#ifndef BGNN_NEAREST_H
#define BGNN_NEAREST_H

#include "sliced.h"

typedef int32_t Ints __attribute__((vector_size(BGNN_VECTOR), aligned(4), may_alias));
typedef float Floats __attribute__((vector_size(BGNN_VECTOR), aligned(4), may_alias));
constexpr int64_t kInts = BGNN_VECTOR / 4;

BGNN_INLINE Ints load(const int32_t* at) { return *reinterpret_cast<const Ints*>(at); }
BGNN_INLINE Floats load(const float* at) { return *reinterpret_cast<const Floats*>(at); }
BGNN_INLINE void store(int32_t* at, Ints v) { *reinterpret_cast<Ints*>(at) = v; }
BGNN_INLINE Ints least(Ints a, Ints b) { return a < b ? a : b; }

// place[i] = how many keys stand before key i. `keys` and `place` have room for `count` rounded up to kInts.
BGNN_INLINE void rank_keys(const int32_t* keys, int64_t count, int32_t* place) {
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

// The positions n < count with keys[n] <= limit, ascending, and their keys; stops when `most` are exceeded (and
// returns a number above it). `keys` is readable up to a multiple of kInts, `positions` and `found` have room for
// most + kInts.
BGNN_INLINE int64_t keep_up_to(const int32_t* keys, int64_t count, int32_t limit, int64_t most, int32_t* positions,
                               int32_t* found) {
  int64_t kept = 0;
#if defined(__AVX512F__)
  const __m512i top = _mm512_set1_epi32(limit);
  __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t n = 0; n < count && kept <= most; n += kInts) {
    const __m512i key = _mm512_loadu_si512(keys + n);
    __mmask16 here = _mm512_cmple_epi32_mask(key, top);
    if (count - n < kInts) here &= __mmask16((1u << (count - n)) - 1);
    _mm512_storeu_si512(positions + kept, _mm512_maskz_compress_epi32(here, position));
    _mm512_storeu_si512(found + kept, _mm512_maskz_compress_epi32(here, key));
    kept += __builtin_popcount(here);
    position = _mm512_add_epi32(position, _mm512_set1_epi32(16));
  }
#elif defined(__AVX2__)
  const __m256i top = _mm256_set1_epi32(limit);
  for (int64_t n = 0; n < count && kept <= most; n += 32) {
    uint32_t here = 0;
    for (int64_t part = 0; part < 32 && n + part < count; part += 8) {
      const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + n + part));
      const __m256i above = _mm256_cmpgt_epi32(key, top);
      here |= (~uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(above))) & 0xff) << part;
    }
    if (count - n < 32) here &= (1u << (count - n)) - 1;
    for (; here && kept <= most; here &= here - 1) {
      const int64_t at = n + __builtin_ctz(here);
      positions[kept] = int32_t(at);
      found[kept++] = keys[at];
    }
  }
#else
  for (int64_t n = 0; n < count && kept <= most; n++) {
    positions[kept] = int32_t(n);
    found[kept] = keys[n];
    kept += keys[n] <= limit;
  }
#endif
  return kept;
}

#endif
