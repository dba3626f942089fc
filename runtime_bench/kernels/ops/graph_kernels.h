/* Message passing over a graph in CSR form: what each kernel computes. One table per instruction set; all give the
 * same bits. Arguments are trusted, except for the indices of neighbours, which `first_bad_index` checks.
 *
 * Node i receives from x[indices[p]] for p in [indptr[i], indptr[i + 1]), in this order. Tensors are dense,
 * row-major. "Plain" float arithmetic: every operation is rounded by itself. Every integer result becomes a code as
 *   code(acc, multiplier, zp) = min(max(zp + round_half_to_even(float32(acc) * multiplier), low), high). */
#ifndef BGNN_GRAPH_KERNELS_H
#define BGNN_GRAPH_KERNELS_H

#include <stdint.h>

#include "../kernels.h"

struct Csr {
  const int32_t* indptr;  /* [nodes + 1], rising from 0 to entries */
  const int32_t* indices; /* [entries]: rows of x */
  const int32_t* edges;   /* [entries]: an entry's place in `weight`; NULL: its own */
  int64_t nodes, entries;
};

struct Requantise {
  float multiplier;
  int32_t zp, low, high; /* 0 <= low <= high <= 255 */
};

enum Reduce { kSum, kMean, kMax };

/* Requantised messages as a function of x's code, for each weight's: in a table, and, where one gives the same for all
 * 256, as a line that 16 bits compute: (min(max(x * slope >> 8, low), high) * factor + offset mod 2^16) >> 8. Every
 * number stands twice, in both halves. Where there is no line, as below slope 0, all are 0 and so is the code. */
struct MessageLine {
  uint32_t slope, offset, low, high, factor;
};
struct alignas(64) MessageTables { /* cache lines */
  uint8_t code[256][256]; /* [w][x] */
  MessageLine line[256];
  uint8_t missing[256]; /* 1: there is no line */
  bool any_missing;
  bool steep; /* whether the low, high or factor of any line matters */
};

/* kSum: out = code(sum m_j, result) with, over the node's entries j,
 *   m_j = (x_j - x_zp) * (w_j - w_zp), the second factor being 1 without weights, or
 *   m_j = messages->code[w_j][x_j] - message.zp where messages are requantised (with weights only).
 * kMean: the same with result.multiplier = unit / (y_scale * number of entries), in float32.
 * kMax: out = the largest x_j, or x_zp without entries; no weights.
 * The sums fit int32. x [rows, width]; out [nodes, width]. */
struct QAggregate {
  Csr csr;
  const uint8_t* x;
  const uint8_t* weight; /* NULL: none */
  const MessageTables* messages; /* where they are requantised */
  bool by_lines;                 /* few of the entries' weights have no line */
  uint8_t* out;
  int64_t width;
  int32_t x_zp, w_zp;
  Requantise message; /* multiplier 0: not requantised */
  Requantise result;
  float unit, y_scale;
  int reduce;
};

/* out = sum, mean or maximum of x_j * w_j in the order of the entries, plain; no entries give 0. A NaN stays one.
 * aggregate_int32: x and out are int32, out the sum of x_j modulo 2^32. */
struct Aggregate {
  Csr csr;
  const float* x;
  const float* weight; /* NULL: none */
  float* out;
  int64_t width;
  int reduce;
};

/* Graph attention's aggregation (Velickovic et al. 2018, eq. 3-6): per head h, softmax over the node's entries of
 * leaky_relu(from[j, h] + to[i, h]), then the weighted sum of x_j's channels of that head.
 * x [rows, heads, channels]; from [rows, heads]; to [nodes, heads]; out [nodes, heads, channels].
 * As PyTorch Geometric's softmax: exp(e - max) / (sum + 1e-16); exp is this library's own, within 2 ulp.
 *
 * On codes: score.scale (0: not) quantises and dequantises from + to; a message is the code of
 * a * ((x - x_zp) * x_scale) divided by message.scale; out = code(sum of (message - message.zp), result). */
struct Quantiser {
  float scale;
  int32_t zp, low, high;
};

struct GatAggregate {
  Csr csr;
  const float* x;
  const uint8_t* codes; /* instead of x, and out_codes instead of out */
  const float *from, *to;
  float* out;
  uint8_t* out_codes;
  int64_t heads, channels;
  float slope, x_scale;
  int32_t x_zp;
  Quantiser score, message;
  Requantise result;
};

/* The entries' softmax per head: out[e, h] over the entries of each node, with e = edges[p]. values, out
 * [entries, heads]. */
struct SegmentSoftmax {
  Csr csr; /* indices: the edges */
  const float* values;
  float* out;
  int64_t heads;
};

/* A number for each entry, in their order: out[p] = a[indices[p]] * b[node], plain; or, where out is NULL, its code,
 * code(out[p] / quantiser.scale). GCN's normalisation (Kipf & Welling 2017, eq. 2). a [rows]; b [nodes]. */
struct EdgeProduct {
  Csr csr;
  const float *a, *b;
  float* out;
  uint8_t* codes;
  Quantiser quantiser;
};

/* A function of one code: out[r, c] = table[c][x[r, c]], or table[0][x[r, c]] where there is one table. x, out
 * [rows, channels], which may be the same memory; table [tables, 256] with tables = channels or 1. */
struct QTable {
  const uint8_t *x, *table;
  uint8_t* out;
  int64_t channels, tables;
};

/* Each does the nodes (or rows) [first, last). */
struct GraphKernels {
  const char* isa;
  void (*q_aggregate)(const QAggregate*, int64_t first, int64_t last);
  void (*aggregate)(const Aggregate*, int64_t first, int64_t last);
  void (*aggregate_int32)(const Aggregate*, int64_t first, int64_t last);
  /* scratch: gat_scratch floats */
  void (*gat_aggregate)(const GatAggregate*, float* scratch, int64_t first, int64_t last);
  void (*segment_softmax)(const SegmentSoftmax*, float* scratch, int64_t first, int64_t last);
  void (*edge_product)(const EdgeProduct*, int64_t first, int64_t last);
  void (*q_table)(const QTable*, int64_t first, int64_t last);
  /* The first p in [first, last) with index[p] outside of [0, count), or `last`. */
  int64_t (*first_bad_index)(const int32_t* index, int64_t first, int64_t last, int64_t count);
};

/* The floats that one task needs whose nodes have at most `most` entries. `width`: heads * channels; the softmax has
 * none. The kernels read up to a vector beyond the last weight. */
inline int64_t gat_scratch(int64_t most, int64_t heads, int64_t width) { return width + most * heads + 16; }

/* By the name that dispatch.cc of the kernels chose; never NULL for a name of theirs. */
const GraphKernels* graph_kernels_for(const char* isa);

void fill_message_tables(int32_t x_zp, int32_t w_zp, const Requantise* message, MessageTables*);

#endif
