// The kernels of dense_kernels.h around an instruction set's products. `Isa` has
//   kTurned: what it wants codes turned over by: 0, or 0x80 where it multiplies int8;
//   all(panel, stride, weights, groups, blocks, sums): sums [kPanel][16 * blocks] of code * w over all groups of 4
//     inputs, for a panel's rows `stride` bytes apart;
//   some(row, zero, weights, groups, blocks, sums): for one row, sums [16 * blocks] of (code - zero) * w over those
//     groups that are not all `zero`.
// Sums are modulo 2^32. Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_DENSE_GENERIC_H
#define BGNN_DENSE_GENERIC_H

#include <string.h>

#include "dense_kernels.h"

namespace {

typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef float F32x16 __attribute__((vector_size(64)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

// A float between -2^22 and 2^22 plus this has the integer next to it, halves to even, in its low bits.
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23
constexpr int32_t kItsBits = 0x4b400000;

// Skipping has to find the groups first, and shares no weights among rows: it is for rows with few of them.
constexpr int64_t kFewOneIn = 4;

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
  return __builtin_convertvector(code, U8x16);
}

// A row's codes, turned over by `turn`, filled up with `zero` (which is).
inline void copy_codes(const uint8_t* from, uint8_t turn, uint8_t zero, int64_t inputs, uint8_t* to) {
  for (int64_t k = 0; k < inputs; k++) to[k] = from[k] ^ turn;
  memset(to + inputs, zero, size_t(dense_stride(inputs) - inputs));
}

inline void quantise(const float* from, const Quantiser& q, uint8_t turn, uint8_t zero, int64_t inputs, uint8_t* to) {
  const auto codes = [&](const F32x16& real) __attribute__((always_inline)) {
    return codes_of(real / q.scale, q.zp, q.low, q.high) ^ turn;
  };
  int64_t k = 0;
  for (; k + 16 <= inputs; k += 16) {
    const U8x16 found = codes(loaded<F32x16>(from + k));
    memcpy(to + k, &found, 16);
  }
  memset(to + k, zero, size_t(dense_stride(inputs) - k));
  if (k == inputs) return;
  F32x16 rest = {};
  memcpy(&rest, from + k, size_t(inputs - k) * 4);
  const U8x16 found = codes(rest);
  memcpy(to + k, &found, size_t(inputs - k));
}

inline int64_t groups_in(const uint8_t* row, uint32_t zeros, int64_t groups) {
  int32_t found = 0;
  for (int64_t g = 0; g < groups; g++) {
    uint32_t word;
    memcpy(&word, row + 4 * g, 4);
    found += word != zeros;
  }
  return found;
}

inline uint32_t sum_of(const uint8_t* row, int64_t stride, uint8_t turn, uint8_t zero) {
  uint32_t sum = 0;
  for (int64_t k = 0; k < stride; k++) sum += uint8_t(row[k] ^ turn);
  return sum - uint32_t(stride) * uint8_t(zero ^ turn);
}

template <class Isa>
void prepare_dense(const Dense* args, uint8_t* panel, int32_t* whole_bias) {
  const int64_t stride = dense_stride(args->inputs), blocks = dense_blocks(args->outputs);
  int32_t* sums = reinterpret_cast<int32_t*>(panel + kPanel * stride);
  memset(panel, uint8_t(args->x_zero) ^ Isa::kTurned, size_t(kPanel * stride));
  Isa::all(panel, stride, args->weights, dense_groups(args->inputs), blocks, sums);
  for (int64_t o = 0; o < kLanes * blocks; o++) whole_bias[o] = int32_t(uint32_t(args->bias[o]) - uint32_t(sums[o]));
}

// A row's sums become results.
inline void finish(const Dense& a, const int32_t* sums, const int32_t* bias, uint32_t minus, int64_t row) {
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

template <class Isa>
void dense(const Dense* args, uint8_t* panel, int64_t first, int64_t last) {
  const Dense a = *args;
  const int64_t stride = dense_stride(a.inputs), groups = dense_groups(a.inputs), blocks = dense_blocks(a.outputs);
  int32_t* sums = reinterpret_cast<int32_t*>(panel + kPanel * stride);
  const uint8_t zero = uint8_t(a.x_zero) ^ Isa::kTurned;
  for (; first < last; first += kPanel) {
    const int64_t rows = last - first < kPanel ? last - first : kPanel;
    int64_t found = 0;
    uint32_t minus[kPanel];
    for (int64_t r = 0; r < rows; r++) {
      uint8_t* row = panel + r * stride;
      if (a.real) {
        quantise(a.real + (first + r) * a.inputs, a.quantiser, Isa::kTurned, zero, a.inputs, row);
      } else {
        copy_codes(a.codes + (first + r) * a.inputs, a.flip ^ Isa::kTurned, zero, a.inputs, row);
      }
      found += groups_in(row, zero * 0x01010101u, groups);
      minus[r] = a.w_zero ? uint32_t(a.w_zero) * sum_of(row, stride, Isa::kTurned, zero) : 0;
    }
    const bool few = found * kFewOneIn < rows * groups;
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

#define BGNN_DENSE_KERNELS(isa, Isa) {isa, prepare_dense<Isa>, dense<Isa>}

#endif
