// What the units for aarch64 share.
#ifndef BGNN_DENSE_NEON_H
#define BGNN_DENSE_NEON_H

#include <arm_neon.h>

#define BGNN_DENSE_NEON
#include "dense_generic.h"

namespace {

// How many groups are looked at before they are multiplied.
constexpr int64_t kListed = 1024;

// The groups of 4 codes in [first, last) that are not all `zero`; returns how many. Rows are filled up to a multiple of
// 64 bytes, and `first` is one of 16.
inline int64_t other_groups(const uint8_t* row, uint8_t zero, int64_t first, int64_t last, int32_t* list) {
  const uint32x4_t zeros = vreinterpretq_u32_u8(vdupq_n_u8(zero));
  int64_t count = 0;
  for (int64_t g = first; g < last; g += 16) {
    uint16x8_t same[4];
    for (int i = 0; i < 4; i++) {
      same[i] = vreinterpretq_u16_u32(vceqq_u32(vreinterpretq_u32_u8(vld1q_u8(row + 4 * g + 16 * i)), zeros));
    }
    // 4 bits for each of 16 groups, all set where it has no other code.
    const uint8x16_t low = vreinterpretq_u8_u16(vuzp1q_u16(same[0], same[1]));
    const uint8x16_t high = vreinterpretq_u8_u16(vuzp1q_u16(same[2], same[3]));
    const uint8x8_t bits = vshrn_n_u16(vreinterpretq_u16_u8(vuzp1q_u8(low, high)), 4);
    uint64_t found = ~vget_lane_u64(vreinterpret_u64_u8(bits), 0) & 0x1111111111111111;
    for (; found; found &= found - 1) list[count++] = int32_t(g) + __builtin_ctzll(found) / 4;
  }
  return count;
}

// block(b, list, count, more) for each block of outputs, and visited groups; `more`: not the first of a block.
template <class Block>
inline __attribute__((always_inline)) void by_block(const uint8_t* row, uint8_t zero, int64_t groups, int64_t blocks,
                                                    const Block& block) {
  int32_t list[kListed];
  for (int64_t first = 0; first < groups; first += kListed) {
    const int64_t last = groups - first < kListed ? groups : first + kListed;
    const int64_t count = other_groups(row, zero, first, last, list);
    for (int64_t b = 0; b < blocks; b++) block(b, list, count, first > 0);
  }
}

// Writes 16 sums, or adds them.
inline __attribute__((always_inline)) void store_sums(const int32x4_t* sum, bool more, int32_t* to) {
  for (int q = 0; q < 4; q++) vst1q_s32(to + 4 * q, more ? vaddq_s32(vld1q_s32(to + 4 * q), sum[q]) : sum[q]);
}

}  // namespace

#endif
