/* Dense layers on 8-bit codes: what each kernel computes. One table per instruction set; all give the same bits, and
 * none cares what the codes are. Arguments are trusted.
 *
 * Weights are packed: words int32 [ceil(outputs / 16)][ceil(inputs / 4)][16], a word being the int8 weights of one
 * output for 4 inputs in a row, the first in the low byte; 0 where there is no output or input. */
#ifndef BGNN_DENSE_KERNELS_H
#define BGNN_DENSE_KERNELS_H

#include <stdint.h>

#include "graph_kernels.h"

constexpr int64_t kLanes = 16, kPanel = 16; /* outputs of a block of weights; rows that are computed together */

inline int64_t dense_blocks(int64_t outputs) { return (outputs + kLanes - 1) / kLanes; }
inline int64_t dense_groups(int64_t inputs) { return (inputs + 3) / 4; }
/* Bytes of a row in the scratch memory, where codes beyond the last input are the zero point. */
inline int64_t dense_stride(int64_t inputs) { return (inputs + 63) / 64 * 64; }

/* sum over k of (code[r, k] - x_zero) * (w[o, k] - w_zero), plus bias[o], modulo 2^32; then
 *   out_codes[r, o] = code(sum, multiplier[o]) as in graph_kernels.h, or
 *   out[r, o] = float32(sum) * multiplier[o] + shift[o], plain. */
struct Dense {
  const uint8_t* codes; /* [rows, inputs], each with its bits `flip` turned over: 0x80 where they stand as int8 */
  const float* real;    /* instead of codes: real numbers, whose codes are those of `quantiser` */
  Quantiser quantiser;  /* its zero point is x_zero */
  const int32_t* weights;
  const int32_t* bias;                   /* [16 * blocks], 0 beyond the outputs, as are the next two */
  const float *multiplier, *shift;       /* shift NULL: none */
  const int32_t* whole_bias;             /* what `prepare` wrote */
  int64_t inputs, outputs;
  int32_t x_zero, w_zero;
  uint8_t flip;
  Requantise result; /* of out_codes; its multiplier is not used */
  uint8_t* out_codes;
  float* out;
};

struct DenseKernels {
  const char* isa;
  /* Writes whole_bias [16 * blocks]: bias less x_zero times the sum of the weights, as the kernel wants it. scratch as
   * below. */
  void (*prepare)(const Dense*, uint8_t* scratch, int32_t* whole_bias);
  /* Rows [first, last). scratch: dense_scratch bytes, at a multiple of 64. */
  void (*dense)(const Dense*, uint8_t* scratch, int64_t first, int64_t last);
  /* out = the codes of `count` real numbers. */
  void (*quantise)(const float* real, const Quantiser*, int64_t count, uint8_t* out);
};

/* The codes of a panel of rows, and its sums. */
inline int64_t dense_scratch(int64_t inputs, int64_t outputs) {
  return kPanel * (dense_stride(inputs) + dense_blocks(outputs) * kLanes * 4);
}

/* By the name that dispatch.cc of the kernels chose; never NULL for a name of theirs. */
const DenseKernels* dense_kernels_for(const char* isa);

#endif
