// What the units for aarch64 share.
#ifndef BGNN_DENSE_NEON_H
#define BGNN_DENSE_NEON_H

#include <arm_neon.h>

#define BGNN_DENSE_NEON
#include "dense_generic.h"

namespace {

// visit(g) for each group of 4 codes of a row that are not all `zero`. Rows are filled up to a multiple of 64 bytes.
template <class Visit>
inline __attribute__((always_inline)) void each_other_group(const uint8_t* row, uint8_t zero, int64_t groups,
                                                            const Visit& visit) {
  const uint8x16_t zeros = vdupq_n_u8(zero);
  for (int64_t g = 0; g < groups; g += 16) {
    uint8x16_t other[4], any = vdupq_n_u8(0);
    for (int i = 0; i < 4; i++) {
      other[i] = veorq_u8(vld1q_u8(row + 4 * g + 16 * i), zeros);
      any = vorrq_u8(any, other[i]);
    }
    if (!vmaxvq_u32(vreinterpretq_u32_u8(any))) continue;
    for (int i = 0; i < 4; i++) {
      // A group's 16 bits are set where it has another code.
      const uint32x4_t word = vreinterpretq_u32_u8(other[i]);
      uint64_t found = vget_lane_u64(vreinterpret_u64_u16(vmovn_u32(vtstq_u32(word, word))), 0);
      while (found) {
        const int place = __builtin_ctzll(found) / 16;
        found &= ~(uint64_t(0xffff) << 16 * place);
        visit(g + 4 * i + place);
      }
    }
  }
}

}  // namespace

#endif
