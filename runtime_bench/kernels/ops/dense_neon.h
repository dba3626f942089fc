// What the units for aarch64 share.
#ifndef BGNN_DENSE_NEON_H
#define BGNN_DENSE_NEON_H

#include <arm_neon.h>

#define BGNN_DENSE_NEON
#include "dense_generic.h"

namespace {

// How many groups are looked at before they are multiplied.
constexpr int64_t kListed = 1024;
// How many are multiplied at once: half as many times, the sum of two weights fits 16 bits.
constexpr int64_t kTogether = 256;

// The groups of 4 codes in [first, last) that are not all `zero`, and their codes; returns how many. Rows are filled up
// to a multiple of 64 bytes, and `first` is one of 16.
inline int64_t other_groups(const uint8_t* row, uint8_t zero, int64_t first, int64_t last, int32_t* list,
                            uint32_t* words) {
  const uint32x4_t zeros = vreinterpretq_u32_u8(vdupq_n_u8(zero));
  int64_t count = 0;
  for (int64_t g = first; g < last; g += 16) {
    uint16x8_t same[4];
    for (int i = 0; i < 4; i++) {
      same[i] = vreinterpretq_u16_u32(vceqq_u32(vreinterpretq_u32_u8(vld1q_u8(row + 4 * g + 16 * i)), zeros));
    }
    const uint8x16_t low = vreinterpretq_u8_u16(vuzp1q_u16(same[0], same[1]));
    const uint8x16_t high = vreinterpretq_u8_u16(vuzp1q_u16(same[2], same[3]));
    uint64_t found = ~nibbles(vuzp1q_u8(low, high)) & 0x1111111111111111;
    for (; found; found &= found - 1) {
      const int64_t group = g + __builtin_ctzll(found) / 4;
      memcpy(&words[count], row + 4 * group, 4);
      list[count++] = int32_t(group);
    }
  }
  return count;
}

// The groups of 4 real numbers that are not all 0, in a row of 64 or more; returns how many, and gives up where they are
// more than `most`.
inline int64_t other_groups(const float* row, int64_t inputs, int64_t most, int32_t* list) {
  int64_t count = 0, g = 0;
  const auto add = [&](uint64_t found) {
    for (found &= 0x1111111111111111; found; found &= found - 1) list[count++] = int32_t(g) + __builtin_ctzll(found) / 4;
  };
  const int64_t whole = inputs / 4;
  for (; g + 16 <= whole; g += 16) {
    const uint64_t found = found_groups(row + 4 * g);
    if (!found) continue;
    add(found);
    if (count > most) return count;
  }
  if (g < whole) add(found_groups(row + 4 * (whole - 16)) >> (4 * (g + 16 - whole)));
  for (int64_t k = 4 * whole; k < inputs; k++) {
    if (row[k] == 0) continue;
    list[count++] = int32_t(whole);
    break;
  }
  return count;
}

// The codes of the listed groups of a row, turned over; filled up to 4 groups with those of zeros.
inline void quantise_groups(const float* row, int64_t inputs, const Quantiser q, uint8_t turn, const int32_t* list,
                            int64_t count, uint32_t* words) {
  const auto quantise = [&](F32x16 real, uint32_t* to) __attribute__((always_inline)) {
    const U8x16 codes = codes_of(real / q.scale, q.zp, q.low, q.high) ^ turn;
    memcpy(to, &codes, 16);
  };
  const int64_t whole = inputs / 4, in_whole = count && list[count - 1] == whole ? count - 1 : count;
  int64_t i = 0;
  for (; i + 4 <= in_whole; i += 4) {
    float32x4_t part[4];
    for (int j = 0; j < 4; j++) part[j] = vld1q_f32(row + 4 * int64_t(list[i + j]));
    quantise(loaded<F32x16>(part), words + i);
  }
  if (i == count) return;
  float rest[16] = {};
  for (int64_t j = i; j < in_whole; j++) vst1q_f32(rest + 4 * (j - i), vld1q_f32(row + 4 * int64_t(list[j])));
  for (int64_t k = 4 * whole; in_whole < count && k < inputs; k++) rest[4 * (in_whole - i) + k - 4 * whole] = row[k];
  quantise(loaded<F32x16>(rest), words + i);
}

// Writes 16 sums, or adds them.
inline __attribute__((always_inline)) void store_sums(const int32x4_t* sum, bool more, int32_t* to) {
  for (int q = 0; q < 4; q++) vst1q_s32(to + 4 * q, more ? vaddq_s32(vld1q_s32(to + 4 * q), sum[q]) : sum[q]);
}

// Isa::listed(list, words, count, zero, weights, more, sums): for a block of outputs, sums of (code - zero) * w over
// the listed groups, whose codes are `words`; `more`: added to the sums.
template <class Isa>
inline void sum_listed(const int32_t* list, const uint32_t* words, int64_t count, uint8_t zero, const int32_t* weights,
                       int64_t groups, int64_t blocks, bool more, int32_t* sums) {
  do {
    const int64_t now = count < kTogether ? count : kTogether;
    for (int64_t b = 0; b < blocks; b++) {
      Isa::listed(list, words, now, zero, weights + b * groups * kLanes, more, sums + b * kLanes);
    }
    list += now, words += now, count -= now, more = true;
  } while (count);
}

// `some` of all three.
template <class Isa>
inline void sum_some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                     int32_t* sums) {
  int32_t list[kListed];
  uint32_t words[kListed];
  for (int64_t first = 0; first < groups; first += kListed) {
    const int64_t last = groups - first < kListed ? groups : first + kListed;
    const int64_t count = other_groups(row, zero, first, last, list, words);
    sum_listed<Isa>(list, words, count, zero, weights, groups, blocks, first > 0, sums);
  }
}

// The same of the listed groups of a row of real numbers; returns the sum of code - zero, where w_zero asks for it.
template <class Isa>
inline uint32_t sum_numbers(const Dense& a, const float* row, const int32_t* list, int64_t count, int32_t* sums) {
  const int64_t groups = dense_groups(a.inputs), blocks = dense_blocks(a.outputs);
  const uint8_t zero = uint8_t(a.x_zero) ^ Isa::kTurned;
  uint32_t words[kListed], sum = 0;
  bool more = false;
  do {
    const int64_t now = count < kListed ? count : kListed;
    quantise_groups(row, a.inputs, a.quantiser, Isa::kTurned, list, now, words);
    if (a.w_zero) {
      const int64_t filled = (now + 15) / 16 * 16;
      for (int64_t i = now; i < filled; i++) words[i] = zero * 0x01010101u;
      sum += look(reinterpret_cast<const uint8_t*>(words), 4 * filled, Isa::kTurned, zero, true).sum;
    }
    sum_listed<Isa>(list, words, now, zero, a.weights, groups, blocks, more, sums);
    list += now, count -= now, more = true;
  } while (count);
  return sum;
}

// Rows of real numbers, most of them 0: only the others become codes. False, and nothing is done, where too many are not.
template <class Isa>
__attribute__((noinline)) bool dense_numbers(const Dense& a, uint8_t* panel, int32_t* sums, int64_t first, int64_t rows) {
  const Quantiser& q = a.quantiser;
  if (q.zp < q.low || q.zp > q.high) return false;  // then 0 has another code than x_zero
  const int64_t stride = dense_stride(a.inputs), blocks = dense_blocks(a.outputs);
  const int64_t most = dense_groups(a.inputs) * blocks * Isa::kAll / (Isa::kFind + blocks * Isa::kSome);
  int64_t found[kPanel], left = 0;
  for (int64_t r = 0; r < rows; r++) {
    left += most;
    found[r] = other_groups(a.real + (first + r) * a.inputs, a.inputs, left, reinterpret_cast<int32_t*>(panel + r * stride));
    left -= found[r];
    if (left < 0) return false;
  }
  for (int64_t r = 0; r < rows; r++) {
    const auto list = reinterpret_cast<const int32_t*>(panel + r * stride);
    const uint32_t sum = sum_numbers<Isa>(a, a.real + (first + r) * a.inputs, list, found[r], sums);
    finish(a, sums, a.bias, uint32_t(a.w_zero) * sum, first + r);
  }
  return true;
}

}  // namespace

#endif
