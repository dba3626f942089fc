/* The kernels: what each computes, and how to call one. C++17 without the C++ runtime library.
 *
 * Every kernel has one struct of arguments (pointers and int64_t only) and four functions:
 *
 *   shared_bytes(args)   memory for `begin`, read by every thread afterwards
 *   scratch_bytes(args)  memory for one thread's `run`
 *   begin(args, shared)  prepares (repacks weights, finds equal rows, checks indices); called once, before `run`.
 *                        Returns the number of work items, or BGNN_BAD_INDEX. Nothing is written to the outputs.
 *   run(args, shared, scratch, first, last)  does the items [first, last); items are independent, so threads
 *                        may take any disjoint ranges, in any order, and the result is the same bit for bit.
 *
 * `shared` and `scratch` are aligned to 64 bytes and never overlap. Arguments are trusted: sizes are non-negative,
 * shapes agree, `words` is ceil(channels / 32), padding bits of packed tensors are 0, the `*_bytes` sums fit. The
 * caller (a plan of ops/) checks that; only the values of neighbour lists are checked here, by `begin`.
 *
 * Packed tensors are int32 `[..., ceil(C/32)]`: bit i of word w is set where channel 32w + i is -1. Tensors are
 * dense and row-major. "Plain" float arithmetic: every operation is rounded by itself (no fused multiply-add), so
 * that all instruction sets give the same bits. `max` of floats is `x > m ? x : m`, from the first entry on.
 */
#ifndef BGNN_KERNELS_H
#define BGNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define BGNN_API __attribute__((visibility("default")))
#define BGNN_BAD_INDEX (-1) /* begin: a neighbour index is outside [0, nodes) */

/* One list per kernel: IN(type, name) and OUT(type, name) are tensors, INT(name) an int64_t. */

/* The k nearest rows by Hamming distance, nearest first, equal distances by index; a row is its own neighbour.
 * x packed [batch, nodes, words]; neighbours [batch, nodes, k]; 1 <= k <= nodes; words < 2048. */
#define BGNN_HAMMING_KNN(IN, OUT, INT) \
  IN(int32_t, x) OUT(int32_t, neighbours) INT(batch) INT(nodes) INT(words) INT(k)

/* The k farthest instead, farthest first, equal distances by index. */
#define BGNN_HAMMING_FAR BGNN_HAMMING_KNN

/* The k nearest rows by squared Euclidean distance, summed in channel order in plain f32; nearest first, equal
 * distances by index, NaN last. x [batch, nodes, channels]; neighbours [batch, nodes, k]; 1 <= k <= nodes. */
#define BGNN_KNN(IN, OUT, INT) \
  IN(float, x) OUT(int32_t, neighbours) INT(batch) INT(nodes) INT(channels) INT(k)

/* XOR edge convolution with one output bit per channel (the binary GNN paper's XorEdgeConv, thresholds folded).
 * With p_j = popcount(x_i ^ w1) + popcount(x_i ^ x_j ^ w2), sign_j starts at +1 and turns once for each threshold
 * with p_j > threshold; the output bit is the AND over j of sign_j == -1 (the maximum of the signs).
 * x packed [batch, nodes, words]; neighbours [batch, nodes, k], k >= 1; weights packed [out_channels, 2 * words],
 * w1 first; thresholds [tables, out_channels], tables >= 1; out packed [batch, nodes, ceil(out_channels / 32)]. */
#define BGNN_XOR_EDGE_CONV(IN, OUT, INT)                                                              \
  IN(int32_t, x) IN(int32_t, neighbours) IN(int32_t, weights) IN(int32_t, thresholds) OUT(int32_t, out) \
  INT(batch) INT(nodes) INT(words) INT(k) INT(out_channels) INT(tables)

/* out[b, m, :] = max over j of x[b, neighbours[b, m, j], :]. x [batch, nodes, channels]; neighbours
 * [batch, rows, k], k >= 1; out [batch, rows, channels]. */
#define BGNN_GATHER_MAX(IN, OUT, INT)                                                             \
  IN(float, x) IN(int32_t, neighbours) OUT(float, out) INT(batch) INT(nodes) INT(rows) INT(channels) INT(k)

/* Edge convolution with binary weights and inputs, rank-1 rescaling and PReLU (the paper's Eq. 11), max over j.
 * Edge bit c: (x_j - x_i) * edge_scale_c + edge_shift_c < 0, plain; acc = 2 channels - 2 popcount;
 * v = ((acc * alpha_o) * beta_i) * gamma_j; v > 0 ? v : v * slope_o; out is the max over j.
 * node_bits packed [batch, nodes, words] meets the first half of weights packed [out_channels, 2 * words], the
 * edge bits the second; x [batch, nodes, channels]; alpha [out_channels]; beta [betas]: nodes or 1; gamma
 * [gammas]: k or 1; slope [slopes]: out_channels or 1; out [batch, nodes, out_channels]. */
#define BGNN_BIN_EDGE_CONV(IN, OUT, INT)                                                                      \
  IN(int32_t, node_bits) IN(float, x) IN(int32_t, neighbours) IN(float, edge_scale) IN(float, edge_shift)     \
  IN(int32_t, weights) IN(float, alpha) IN(float, beta) IN(float, gamma) IN(float, slope) OUT(float, out)     \
  INT(batch) INT(nodes) INT(channels) INT(words) INT(k) INT(out_channels) INT(betas) INT(gammas) INT(slopes)

/* A binary dense layer reduced over the nodes, in integers: out[b] = [max, min, sum of the positive, sum of the
 * negative] of acc = channels - 2 popcount(x ^ w). x packed [batch, nodes, words], nodes >= 1; weights packed
 * [out_channels, words]; out f32 [batch, 4, out_channels], exact for nodes * channels <= 2^24. */
#define BGNN_DENSE_POOL(IN, OUT, INT)                                                                    \
  IN(int32_t, x) IN(int32_t, weights) OUT(float, out) INT(batch) INT(nodes) INT(words) INT(channels) \
  INT(out_channels)

/* out[b, i, :] = max over j of ((x[b, neighbours[b, i, j], :] + node[b, i, :]) * beta_i) * gamma_j, plain. x and node
 * [batch, nodes, channels]; neighbours [batch, nodes, k], k >= 1; beta [betas]: nodes or 1; gamma [gammas]: k or 1;
 * out [batch, nodes, channels]. */
#define BGNN_EDGE_MAX(IN, OUT, INT)                                                                     \
  IN(float, x) IN(float, node) IN(int32_t, neighbours) IN(float, beta) IN(float, gamma) OUT(float, out) \
  INT(batch) INT(nodes) INT(channels) INT(k) INT(betas) INT(gammas)

/* dense_pool of v_n = acc_n * scale_n, plain; the sums in the order of the nodes, from 0. scale [scales]: nodes
 * or 1, finite. */
#define BGNN_SCALED_POOL(IN, OUT, INT)                                                    \
  IN(int32_t, x) IN(int32_t, weights) IN(float, scale) OUT(float, out) INT(batch) INT(nodes) INT(words) \
  INT(channels) INT(out_channels) INT(scales)

/* LceQuantize of f32: bit = x < 0. x [rows, channels]; out packed [rows, ceil(channels / 32)]. */
#define BGNN_QUANTIZE(IN, OUT, INT) IN(float, x) OUT(int32_t, out) INT(rows) INT(channels)

/* LceQuantize of int8: bit = x < zero_point; of bool: call it with zero_point 1. */
#define BGNN_QUANTIZE_INT8(IN, OUT, INT) IN(int8_t, x) OUT(int32_t, out) INT(rows) INT(channels) INT(zero_point)

/* LceDequantize to f32: +1 or -1. x packed [rows, ceil(channels / 32)]; out [rows, channels]. */
#define BGNN_DEQUANTIZE(IN, OUT, INT) IN(int32_t, x) OUT(float, out) INT(rows) INT(channels)

/* LceDequantize to int8 or bool: a bit 0 becomes plus, a bit 1 minus (bool: 1 and 0). */
#define BGNN_DEQUANTIZE_INT8(IN, OUT, INT) \
  IN(int32_t, x) OUT(int8_t, out) INT(rows) INT(channels) INT(plus) INT(minus)

/* LceBconv2d. x packed [batch, height, width, groups * words]; weights packed [out_channels, filter_height,
 * filter_width, words], `channels` true channels in a group (a multiple of 32 where groups > 1); out_channels is a
 * multiple of groups. A tap outside the image reads +1 (pad_one = 1), or adds nothing to the dot product (0).
 * Exactly one of `out` f32 [batch, out_height, out_width, out_channels] (with multiplier, bias [out_channels]) and
 * `out_bits` packed [..., ceil(out_channels / 32)] (with thresholds [out_channels]) is not NULL:
 *   out = min(max(dot, clamp_min), clamp_max) * multiplier + bias, plain;  out_bits = popcount > threshold,
 * where with pad_one = 0 an outside tap counts channels / 2 in popcount (channels even). */
#define BGNN_BCONV2D(IN, OUT, INT)                                                                              \
  IN(int32_t, x) IN(int32_t, weights) IN(float, multiplier) IN(float, bias) IN(int32_t, thresholds)             \
  OUT(float, out) OUT(int32_t, out_bits) INT(batch) INT(height) INT(width) INT(words) INT(channels) INT(groups) \
  INT(out_channels) INT(out_height) INT(out_width) INT(filter_height) INT(filter_width) INT(stride_height)      \
  INT(stride_width) INT(dilation_height) INT(dilation_width) INT(pad_top) INT(pad_left) INT(pad_one)            \
  INT(clamp_min) INT(clamp_max)

/* LceBMaxPool2d: the AND of the words in the window, cut at the image's edges (never empty). x packed
 * [batch, height, width, words]; out packed [batch, out_height, out_width, words]. */
#define BGNN_BMAXPOOL2D(IN, OUT, INT)                                                                      \
  IN(int32_t, x) OUT(int32_t, out) INT(batch) INT(height) INT(width) INT(words) INT(out_height) INT(out_width) \
  INT(filter_height) INT(filter_width) INT(stride_height) INT(stride_width) INT(pad_top) INT(pad_left)

/* The list of kernels: KERNEL(function name, struct name, its fields). */
#define BGNN_KERNELS(KERNEL)                                    \
  KERNEL(hamming_knn, BgnnHammingKnn, BGNN_HAMMING_KNN)         \
  KERNEL(hamming_far, BgnnHammingFar, BGNN_HAMMING_FAR)         \
  KERNEL(knn, BgnnKnn, BGNN_KNN)                                \
  KERNEL(xor_edge_conv, BgnnXorEdgeConv, BGNN_XOR_EDGE_CONV)    \
  KERNEL(gather_max, BgnnGatherMax, BGNN_GATHER_MAX)            \
  KERNEL(bin_edge_conv, BgnnBinEdgeConv, BGNN_BIN_EDGE_CONV)    \
  KERNEL(dense_pool, BgnnDensePool, BGNN_DENSE_POOL)            \
  KERNEL(edge_max, BgnnEdgeMax, BGNN_EDGE_MAX)                  \
  KERNEL(scaled_pool, BgnnScaledPool, BGNN_SCALED_POOL)         \
  KERNEL(quantize, BgnnQuantize, BGNN_QUANTIZE)                 \
  KERNEL(quantize_int8, BgnnQuantizeInt8, BGNN_QUANTIZE_INT8)   \
  KERNEL(dequantize, BgnnDequantize, BGNN_DEQUANTIZE)           \
  KERNEL(dequantize_int8, BgnnDequantizeInt8, BGNN_DEQUANTIZE_INT8) \
  KERNEL(bconv2d, BgnnBconv2d, BGNN_BCONV2D)                    \
  KERNEL(bmaxpool2d, BgnnBMaxPool2d, BGNN_BMAXPOOL2D)

#ifdef __cplusplus
extern "C" {
#endif

#define BGNN_IN(type, name) const type* name;
#define BGNN_OUT(type, name) type* name;
#define BGNN_INT(name) int64_t name;
#define BGNN_STRUCT(function, Args, FIELDS)        \
  typedef struct Args {                            \
    FIELDS(BGNN_IN, BGNN_OUT, BGNN_INT)            \
  } Args;
BGNN_KERNELS(BGNN_STRUCT)
#undef BGNN_STRUCT

/* `args` is the struct of the kernel's own name. */
typedef struct BgnnKernel {
  int64_t (*shared_bytes)(const void* args);
  int64_t (*scratch_bytes)(const void* args);
  int64_t (*begin)(const void* args, void* shared);
  void (*run)(const void* args, const void* shared, void* scratch, int64_t first, int64_t last);
} BgnnKernel;

/* All kernels for one instruction set: "portable", "avx2", "avx512" or "neon". */
typedef struct BgnnKernels {
  const char* isa;
#define BGNN_MEMBER(function, Args, FIELDS) BgnnKernel function;
  BGNN_KERNELS(BGNN_MEMBER)
#undef BGNN_MEMBER
} BgnnKernels;

/* The fastest that this processor runs, or the one that the environment variable BGNN_ISA names; NULL where that
 * is unknown or the processor lacks it. Reads the environment at each call. */
BGNN_API const BgnnKernels* bgnn_kernels(void);

/* The same by name; NULL where unknown, not built in, or not runnable here. */
BGNN_API const BgnnKernels* bgnn_kernels_for(const char* isa);

/* The list above as text, for other languages: one line "function:field,..." per kernel, in the order of
 * BgnnKernels, each field "in TYPE NAME", "out TYPE NAME" or "int NAME" in the struct's order. */
BGNN_API const char* bgnn_kernels_list(void);

#ifdef __cplusplus
}
#endif
#endif
