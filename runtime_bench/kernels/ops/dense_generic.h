// The kernels of dense_kernels.h around an instruction set's products. `Isa` has
//   kTurned: what it wants codes turned over by: 0, or 0x80 where it multiplies int8;
//   all(panel, stride, weights, groups, blocks, sums): sums [kPanel][16 * blocks] of code * w over all groups of 4
//     inputs, for a panel's rows `stride` bytes apart;
//   some(row, zero, weights, groups, blocks, sums): for one row, sums [16 * blocks] of (code - zero) * w over those
//     groups that are not all `zero`.
//   kAll, kFind, kSome: what these cost, in a unit of its own: a group and block of `all`, a group that `some` finds, and
//     a block of it; a row is done by whichever costs less.
// Sums are modulo 2^32. Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_DENSE_GENERIC_H
#define BGNN_DENSE_GENERIC_H

#include <string.h>

#include "dense_codes.h"
#include "dense_kernels.h"

namespace {

// Shorter rows are done before it is known whether something could be skipped.
constexpr int64_t kFewestGroups = 32;

inline void turn_codes(const uint8_t* from, uint8_t turn, int64_t count, uint8_t* to) {
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    const U8x64 codes = loaded<U8x64>(from + k) ^ turn;
    memcpy(to + k, &codes, 64);
  }
  for (; k + 16 <= count; k += 16) {
    const U8x16 codes = loaded<U8x16>(from + k) ^ turn;
    memcpy(to + k, &codes, 16);
  }
  for (; k < count; k++) to[k] = from[k] ^ turn;
}

void quantise(const float* real, const Quantiser* quantiser, int64_t count, uint8_t* out) {
  quantise_row(real, *quantiser, 0, count, out);
}

struct Found {
  int64_t groups; // of 4 codes, that are not all the zero point
  uint32_t sum;    // of code - zero, where asked for
};

// Of a row that is filled up with zero points, whose codes and `zero` are turned over by `turn`.
inline __attribute__((always_inline)) Found look(const uint8_t* row, int64_t stride, uint8_t turn, uint8_t zero,
                                                 [[maybe_unused]] bool sums) {
  const uint32_t zeros = zero * 0x01010101u;
  uint32_t sum = 0;
  int64_t same = 0;
#if defined(BGNN_DENSE_NEON)
  uint32x4_t part = vdupq_n_u32(0), equal = vdupq_n_u32(0);
  for (int64_t k = 0; k < stride; k += 64) {
    uint16x8_t pairs = vdupq_n_u16(0);
    for (int64_t i = 0; i < 64; i += 16) {
      const uint8x16_t codes = vld1q_u8(row + k + i);
      equal = vsubq_u32(equal, vceqq_u32(vreinterpretq_u32_u8(codes), vdupq_n_u32(zeros)));
      if (turn) {  // int8, 128 less
        pairs = vreinterpretq_u16_s16(vpadalq_s8(vreinterpretq_s16_u16(pairs), vreinterpretq_s8_u8(codes)));
      } else {
        pairs = vpadalq_u8(pairs, codes);
      }
    }
    if (turn) {
      part = vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(part), vreinterpretq_s16_u16(pairs)));
    } else {
      part = vpadalq_u16(part, pairs);
    }
  }
  same = vaddvq_u32(equal);
  sum = vaddvq_u32(part) - uint32_t(stride) * (turn ? uint32_t(int8_t(zero)) : zero);
#else
  for (int64_t k = 0; k < stride; k += 4) {
    uint32_t word;
    memcpy(&word, row + k, 4);
    same += word == zeros;
  }
  for (int64_t k = 0; sums && k < stride; k++) sum += uint8_t(row[k] ^ turn);
  sum -= uint32_t(stride) * uint8_t(zero ^ turn);
#endif
  return {stride / 4 - same, sum};
}

// A row of codes next to the zero point sums the weights, up to the sign.
template <class Isa>
void prepare_dense(const Dense* args, uint8_t* row, int32_t* whole_bias) {
  const int64_t groups = dense_groups(args->inputs), blocks = dense_blocks(args->outputs);
  const uint8_t zero = uint8_t(args->x_zero) ^ Isa::kTurned;
  memset(row, zero, size_t(dense_stride(args->inputs)));
  memset(row, zero ^ 1, size_t(4 * groups));
  Isa::some(row, zero, args->weights, groups, blocks, whole_bias);
  const uint32_t number = Isa::kTurned ? uint32_t(int8_t(zero)) : zero, times = zero & 1 ? -number : number;
  for (int64_t o = 0; o < kLanes * blocks; o++) {
    whole_bias[o] = int32_t(uint32_t(args->bias[o]) - times * uint32_t(whole_bias[o]));
  }
}

// A row's sums become results.
inline __attribute__((always_inline)) void finish(const Dense& a, const int32_t* sums, const int32_t* bias, uint32_t minus,
                                                  int64_t row) {
  for (int64_t o = 0; o < a.outputs; o += kLanes) {
    const int64_t count = a.outputs - o < kLanes ? a.outputs - o : kLanes;
    const I32x16 sum = I32x16(loaded<U32x16>(sums + o) + loaded<U32x16>(bias + o) - minus);
    F32x16 real = __builtin_convertvector(sum, F32x16) * loaded<F32x16>(a.multiplier + o);
    if (a.out) {
      if (a.shift) real = real + loaded<F32x16>(a.shift + o);
      memcpy(a.out + row * a.outputs + o, &real, size_t(count) * 4);
      continue;
    }
    const U8x16 codes = codes_of(real, a.result.zp, a.result.low, a.result.high);
    uint8_t* out = a.out_codes + row * a.outputs + o;
    if (count == kLanes) {
      memcpy(out, &codes, kLanes);
    } else {
      memcpy(out, &codes, size_t(count));
    }
  }
}

#if defined(BGNN_DENSE_NEON)
template <class Isa>
__attribute__((noinline)) bool dense_numbers(const Dense& a, uint8_t* panel, int32_t* sums, int64_t first, int64_t rows);
#endif

template <class Isa>
void dense(const Dense* args, uint8_t* panel, int64_t first, int64_t last) {
  const Dense a = *args;
  const int64_t stride = dense_stride(a.inputs), groups = dense_groups(a.inputs), blocks = dense_blocks(a.outputs);
  int32_t* sums = reinterpret_cast<int32_t*>(panel + kPanel * stride);
  const uint8_t zero = uint8_t(a.x_zero) ^ Isa::kTurned;
  const bool looks = groups >= kFewestGroups;
  for (; first < last; first += kPanel) {
    const int64_t rows = last - first < kPanel ? last - first : kPanel;
#if defined(BGNN_DENSE_NEON)
    if (looks && a.real && dense_numbers<Isa>(a, panel, sums, first, rows)) continue;
#endif
    int64_t found = 0;
    uint32_t minus[kPanel];
    for (int64_t r = 0; r < rows; r++) {
      uint8_t* row = panel + r * stride;
      if (a.real) {
        quantise_row(a.real + (first + r) * a.inputs, a.quantiser, Isa::kTurned, a.inputs, row);
      } else {
        turn_codes(a.codes + (first + r) * a.inputs, a.flip ^ Isa::kTurned, a.inputs, row);
      }
      if (a.inputs < stride) memset(row + a.inputs, zero, size_t(stride - a.inputs));
      const Found there = looks || a.w_zero ? look(row, stride, Isa::kTurned, zero, a.w_zero != 0) : Found{};
      found += there.groups;
      minus[r] = uint32_t(a.w_zero) * there.sum;
    }
    const bool few = looks && found * (Isa::kFind + blocks * Isa::kSome) < rows * groups * blocks * Isa::kAll;
    if (few) {
      for (int64_t r = 0; r < rows; r++) {
        Isa::some(panel + r * stride, zero, a.weights, groups, blocks, sums + r * blocks * kLanes);
      }
    } else {
      Isa::all(panel, stride, a.weights, groups, blocks, sums);
    }
    for (int64_t r = 0; r < rows; r++) {
      finish(a, sums + r * blocks * kLanes, few ? a.bias : a.whole_bias, minus[r], first + r);
    }
  }
}

}  // namespace

#define BGNN_DENSE_KERNELS(isa, Isa) {isa, prepare_dense<Isa>, dense<Isa>, quantise}

#endif
