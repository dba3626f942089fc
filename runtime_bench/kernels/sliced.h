// Bit-sliced counting: many small counters at once, bit p of all of them in plane p. A bit is added to every
// counter by full adders, 16 inputs at a time, so a popcount costs about one full adder a bit and no popcount
// instruction. The lanes are nodes (k-NN, pooling), or 64 channels for each of several edges.
#ifndef BGNN_SLICED_H
#define BGNN_SLICED_H

#include <stdint.h>

#if defined(__AVX512F__)
#define BGNN_VECTOR 64
#elif defined(__AVX2__)
#define BGNN_VECTOR 32
#else
#define BGNN_VECTOR 16
#endif

typedef uint64_t Vec __attribute__((vector_size(BGNN_VECTOR)));
typedef Vec VecInMemory __attribute__((aligned(8), may_alias));
constexpr int64_t kVecWords = BGNN_VECTOR / 8;
constexpr int64_t kVecBits = BGNN_VECTOR * 8;
constexpr int kMostPlanes = 20;

BGNN_INLINE Vec every(uint64_t v) { return Vec{} + v; }
BGNN_INLINE Vec load(const uint64_t* at) { return *reinterpret_cast<const VecInMemory*>(at); }
BGNN_INLINE void store(uint64_t* at, Vec v) { *reinterpret_cast<VecInMemory*>(at) = v; }

BGNN_INLINE uint64_t sum_words(Vec v) {
#if defined(__AVX512F__)
  return uint64_t(_mm512_reduce_add_epi64((__m512i)v));
#else
  uint64_t total = 0;
  for (int l = 0; l < kVecWords; l++) total += v[l];
  return total;
#endif
}

// sum + a + b: the sum bit stays in `sum`, the carry is returned.
BGNN_INLINE Vec full_add(Vec& sum, Vec a, Vec b) {
#if defined(__AVX512F__)
  const __m512i x = (__m512i)sum, y = (__m512i)a, z = (__m512i)b;
  sum = (Vec)_mm512_ternarylogic_epi64(x, y, z, 0x96);
  return (Vec)_mm512_ternarylogic_epi64(x, y, z, 0xe8);
#elif defined(__ARM_NEON)
  const Vec differ = a ^ b;
  const Vec carry = (Vec)vbslq_u64((uint64x2_t)differ, (uint64x2_t)sum, (uint64x2_t)a);
  sum ^= differ;
  return carry;
#else
  const Vec differ = a ^ b;
  const Vec carry = (a & b) | (differ & sum);
  sum ^= differ;
  return carry;
#endif
}

// Adds `inputs` bits (a multiple of 16), input(i) giving the i-th of all counters, to the counters in `planes`.
template <class Input>
BGNN_INLINE void count_bits(int64_t inputs, Input input, Vec* planes, int plane_count) {
  Vec ones = planes[0], twos = planes[1], fours = planes[2], eights = planes[3];
  for (int64_t i = 0; i < inputs; i += 16) {
    const auto four = [&](int64_t at) __attribute__((always_inline)) {
      const Vec a = full_add(ones, input(at), input(at + 1));
      const Vec b = full_add(ones, input(at + 2), input(at + 3));
      return full_add(twos, a, b);
    };
    const Vec a = four(i), b = four(i + 4);
    const Vec c = full_add(fours, a, b);
    const Vec d = four(i + 8), e = four(i + 12);
    const Vec f = full_add(fours, d, e);
    Vec carry = full_add(eights, c, f);
    for (int p = 4; p < plane_count; p++) {
      const Vec next = planes[p] & carry;
      planes[p] ^= carry;
      carry = next;
    }
  }
  planes[0] = ones;
  planes[1] = twos;
  planes[2] = fours;
  planes[3] = eights;
}

// All ones where the counter is above `limit`, itself in planes.
template <class Limit>
BGNN_INLINE Vec above(const Vec* planes, Limit limit, int plane_count) {
  Vec more = {};
  for (int p = 0; p < plane_count; p++) {
    const Vec other = limit(p);
    more = (planes[p] & ~other) | (more & ~(planes[p] ^ other));
  }
  return more;
}

// How many planes hold 0..most; at least the four that count_bits keeps in registers.
BGNN_INLINE int planes_for(int64_t most) {
  int count = 4;
  while (most >> count) count++;
  return count;
}

// Bit c of row r becomes bit r of row c.
static void transpose64(uint64_t* a) {
  uint64_t mask = 0x00000000ffffffffu;
  for (int j = 32; j; j >>= 1, mask ^= mask << j) {
    for (int k = 0; k < 64; k = ((k | j) + 1) & ~j) {
      const uint64_t t = ((a[k] >> j) ^ a[k | j]) & mask;
      a[k | j] ^= t;
      a[k] ^= t << j;
    }
  }
}

// Rows `[count][words]` of 64-bit words as columns, a block of kVecBits rows after the other: [padded / kVecBits]
// [64 * words][kVecWords], bit r % 64 of word r / 64 of column c being bit c of row r of the block. Rows up to
// `padded`, a multiple of kVecBits, are 0.
static void transpose_bits(const uint64_t* rows, int64_t count, int64_t words, int64_t padded, uint64_t* columns) {
  uint64_t square[64];
  for (int64_t n = 0; n < padded; n += 64) {
    uint64_t* block = columns + n / kVecBits * words * 64 * kVecWords + n % kVecBits / 64;
    for (int64_t w = 0; w < words; w++) {
      for (int64_t r = 0; r < 64; r++) square[r] = n + r < count ? rows[(n + r) * words + w] : 0;
      transpose64(square);
      for (int64_t c = 0; c < 64; c++) block[(w * 64 + c) * kVecWords] = square[c];
    }
  }
}

// For the kVecBits rows of a block: the number of bits in which each differs from the row that `masks` spreads.
BGNN_INLINE void count_differing(const uint64_t* block, const uint64_t* masks, int64_t bits, Vec* planes,
                                 int plane_count) {
  for (int p = 0; p < plane_count; p++) planes[p] = Vec{};
  count_bits(bits, [&](int64_t c) { return load(block + c * kVecWords) ^ every(masks[c]); }, planes, plane_count);
}

// masks[c] = all ones where bit c of the row is set, else 0.
BGNN_INLINE void spread(const uint64_t* row, int64_t words, uint64_t* masks) {
  for (int64_t w = 0; w < words; w++) {
    for (int64_t c = 0; c < 64; c++) masks[w * 64 + c] = uint64_t(0) - ((row[w] >> c) & 1);
  }
}

#endif
