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

// Writes start + the places of the ones in v, ascending, and returns how many. Loops over few bits in random places
// are mispredicted, so four places are always written: `out` has room for as many more.
BGNN_INLINE int64_t list_ones(uint64_t v, int64_t start, int32_t* out) {
  constexpr int64_t kUsual = 4;
  const int64_t count = popcount64(v);
  const auto lowest = [](uint64_t ones) { return __builtin_ctzll(ones | uint64_t(1) << 63); };
  for (int64_t n = 0; n < kUsual; n++, v &= v - 1) out[n] = int32_t(start + lowest(v));
  for (int64_t n = kUsual; n < count; n++, v &= v - 1) out[n] = int32_t(start + lowest(v));
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
  int64_t total = 0;
  for (int64_t n = 0; n < count; n += 64) {
    uint64_t bits = bits_of([&](int64_t l) { return load(keys + n + l) <= Ints{} + limit; });
    if (count - n < 64) bits &= (uint64_t(1) << (count - n)) - 1;
    within[n / 64] = bits;
    total += popcount64(bits);
  }
  if (total > most) return total;
  int64_t kept = 0;
  for (int64_t n = 0; n < count; n += 64) {
    if (within[n / 64]) kept += list_ones(within[n / 64], n, positions + kept);
  }
  for (int64_t i = 0; i < kept; i++) found[i] = keys[positions[i]];
  return kept;
}

#endif
