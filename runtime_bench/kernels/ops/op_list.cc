/* The list of operators. Meaning: docstrings of converter/dialect*.py, and graph_kernels.h; this is their interface.
 * n: the number of nodes; entries: edges in CSR order. */
#include "op_list.h"

#include "aggregation.h"
#include "binary.h"
#include "csr.h"
#include "dense.h"
#include "table.h"

#define GRAPH {"indptr", kInt32, 1, 1, false}, {"indices", kInt32, 1, 1, false}
#define SCORES {"source_score", kFloat32, 2, 2, false}, {"target_score", kFloat32, 2, 2, false}
#define MESSAGE "f msg_scale", "i msg_zero", "i msg_low", "i msg_high"
#define RESULT "f y_scale", "i y_zero", "i low", "i high"
#define NEIGHBOURS {"neighbours", kInt32, 3, 3, false}
#define VECTOR(name) {name, kFloat32, 1, 1, false}
#define TABLE(optional) {"table", kUint8, 2, 2, optional}
#define DENSE                                                                                                  \
  {"x", kUint8, 1, 4, true, true}, {"real", kFloat32, 1, 4, true}, {"weights", kInt32, 3, 3, false}, \
      VECTOR("multiplier")
/* An operator that is a kernel of ../kernels.h. */
#define PLAN(plan) NULL, NULL, plan
#define COO {"edge_index", kInt64, 2, 2, false}, {"num_nodes", kInt64, 0, 1, false}

/* ---- shapes, before a run ---- */

static Shape shape_of(const Input* input) {
  Shape shape = {input->rank, {}};
  memcpy(shape.dim, input->dim, sizeof shape.dim);
  return shape;
}

static Shape vector_of(int64_t size) { return {1, {size}}; }

static bool as_input(const Call* call, Shape* out) {
  out[0] = shape_of(&call->in[0]);
  return true;
}

/* Input 0 with a row for each node; input 1 is indptr. */
static bool as_nodes(const Call* call, Shape* out) {
  out[0] = shape_of(&call->in[0]);
  out[0].dim[0] = call->in[1].dim[0] - 1;
  return true;
}

static bool number_of_nodes(const Call* call, Shape* out) {
  out[0] = vector_of(call->in[0].dim[0] - 1);
  return true;
}

static bool number_of_entries(const Call* call, Shape* out) {
  out[0] = vector_of(call->in[2].dim[0]);
  return true;
}

static bool dense_shape(const Call* call, Shape* out) {
  out[0] = shape_of(&call->in[call->in[0].rank ? 0 : 1]);
  if (out[0].rank) out[0].dim[out[0].rank - 1] = call->in[3].dim[0];
  return out[0].rank;
}

/* Room for all entries that there could be. */
static bool csr_shapes(const Call* call, Shape* out) {
  if (!call->in[1].data) return false;
  const int64_t nodes = *(const int64_t*)call->in[1].data;
  out[0] = vector_of(nodes + 1);
  out[1] = out[2] = vector_of(call->in[0].dim[1] + (call->kernel->attribute[0].s[0] == 'a' ? nodes : 0));
  return true;
}

static bool index_shapes(const Call* call, Shape* out) {
  if (!call->in[1].data) return false;
  out[0] = vector_of(*(const int64_t*)call->in[1].data + 1);
  out[1] = vector_of(call->in[0].dim[0]);
  return true;
}

const OpKind kOpKinds[] = {
    {"WithSelfLoops", {COO}, {kInt64}, 0, {}, NULL, with_self_loops},
    /* -> indptr [n + 1], indices (sources) [entries], edges (places in COO order) [entries] */
    {"CooToCsr", {COO}, {kInt32, kInt32, kInt32}, 1, {"s self_loops"}, check_coo_to_csr, coo_to_csr, csr_shapes},
    /* -> indptr [n + 1], edges [entries] */
    {"IndexToCsr",
     {{"index", kInt64, 1, 1, false}, {"num_nodes", kInt64, 0, 1, false}},
     {kInt32, kInt32},
     0,
     {},
     NULL,
     index_to_csr,
     index_shapes},
    {"QAggregate",
     {{"x", kUint8, 1, 4, false}, GRAPH, {"weight", kUint8, 1, 2, true}, {"edges", kInt32, 1, 1, true}, TABLE(true)},
     {kUint8},
     0,
     {"s reduce", "f x_scale", "i x_zero", "f w_scale", "i w_zero", MESSAGE, RESULT},
     check_q_aggregate,
     q_aggregate,
     as_nodes},
    {"QTable", {{"x", kUint8, 1, 4, false}, TABLE(false)}, {kUint8}, 0, {}, NULL, q_table, as_input},
    /* weights: packed as in dense_kernels.h; either x, or real and what makes it codes */
    {"QLinear",
     {DENSE, {"bias", kInt32, 1, 1, true}},
     {kUint8},
     0,
     {"f x_scale", "i x_zero", "i x_low", "i x_high", "i w_zero", "i y_zero", "i low", "i high"},
     check_q_linear,
     q_linear,
     dense_shape},
    {"QLinearFloat",
     {DENSE, {"bias", kFloat32, 1, 1, true}},
     {kFloat32},
     0,
     {"f x_scale", "i x_zero", "i x_low", "i x_high", "i w_zero"},
     check_q_linear_float,
     q_linear,
     dense_shape},
    {"Quantize",
     {{"x", kFloat32, 0, 4, false}},
     {kUint8},
     0,
     {"f scale", "i zero", "i low", "i high"},
     check_quantize,
     quantize,
     as_input},
    {"Aggregate",
     {{"x", kFloat32, 1, 4, false}, GRAPH, {"weight", kFloat32, 1, 2, true}, {"edges", kInt32, 1, 1, true}},
     {kFloat32},
     0,
     {"s reduce"},
     check_aggregate,
     aggregate,
     as_nodes},
    {"Degree", {{"indptr", kInt32, 1, 1, false}}, {kFloat32}, 0, {}, NULL, degree, number_of_nodes},
    /* source [rows], target [nodes] -> source[indices[p]] * target[node of p] for each entry p, in CSR order */
    {"EdgeProduct",
     {VECTOR("source"), GRAPH, VECTOR("target")},
     {kFloat32},
     0,
     {},
     NULL,
     edge_product,
     number_of_entries},
    {"QEdgeProduct",
     {VECTOR("source"), GRAPH, VECTOR("target")},
     {kUint8},
     0,
     {"f scale", "i zero", "i low", "i high"},
     check_q_edge_product,
     edge_product,
     number_of_entries},
    {"AggregateInt32", {{"x", kInt32, 1, 4, false}, GRAPH}, {kInt32}, 0, {}, NULL, aggregate, as_nodes},
    /* values in the edges' order, as is its output; the graph's indices are IndexToCsr's edges */
    {"SegmentSoftmax", {{"values", kFloat32, 1, 2, false}, GRAPH}, {kFloat32}, 0, {}, NULL, segment_softmax, as_input},
    {"GatAggregate",
     {{"x", kFloat32, 3, 3, false}, GRAPH, SCORES},
     {kFloat32},
     0,
     {"f negative_slope"},
     check_gat_aggregate,
     gat_aggregate,
     as_nodes},
    {"QGatAggregate",
     {{"x", kUint8, 3, 3, false}, GRAPH, SCORES},
     {kUint8},
     0,
     {"f negative_slope", "f x_scale", "i x_zero", "f score_scale", "i score_zero", "i score_low", "i score_high",
      MESSAGE, RESULT},
     check_q_gat_aggregate,
     q_gat_aggregate,
     as_nodes},
    /* Packed tensors are int32, as in ../kernels.h. */
    /* largest: 1 for the k farthest */
    {"HammingKnn",
     {{"x", kInt32, 3, 3, false}},
     {kInt32},
     0,
     {"i channels", "i k", "i?largest"},
     check_hamming_knn,
     PLAN(hamming_knn)},
    {"Knn", {{"x", kFloat32, 3, 3, false}}, {kInt32}, 0, {"i k"}, NULL, PLAN(knn)},
    {"XorEdgeConv",
     {{"x", kInt32, 3, 3, false}, NEIGHBOURS, {"weights", kInt32, 2, 2, false}, {"thresholds", kInt32, 2, 2, false}},
     {kInt32},
     0,
     {"i channels"},
     check_channels,
     PLAN(xor_edge_conv)},
    {"GatherMax", {{"x", kFloat32, 3, 3, false}, NEIGHBOURS}, {kFloat32}, 0, {}, NULL, PLAN(gather_max)},
    {"BinEdgeConv",
     {{"node_bits", kInt32, 3, 3, false},
      {"x", kFloat32, 3, 3, false},
      NEIGHBOURS,
      VECTOR("edge_scale"),
      VECTOR("edge_shift"),
      {"weights", kInt32, 2, 2, false},
      VECTOR("alpha"),
      VECTOR("beta"),
      VECTOR("gamma"),
      VECTOR("slope")},
     {kFloat32},
     0,
     {"i channels"},
     check_channels,
     PLAN(bin_edge_conv)},
    {"EdgeMax",
     {{"x", kFloat32, 3, 3, false}, {"node", kFloat32, 3, 3, false}, NEIGHBOURS, VECTOR("beta"), VECTOR("gamma")},
     {kFloat32},
     0,
     {},
     NULL,
     PLAN(edge_max)},
    {"DensePool",
     {{"x", kInt32, 3, 3, false}, {"weights", kInt32, 2, 2, false}},
     {kFloat32},
     0,
     {"i channels"},
     check_channels,
     PLAN(dense_pool)},
    {"ScaledPool",
     {{"x", kInt32, 3, 3, false}, {"weights", kInt32, 2, 2, false}, VECTOR("scale")},
     {kFloat32},
     0,
     {"i channels"},
     check_channels,
     PLAN(scaled_pool)},
    {"Pack", {{"x", kFloat32, 1, 4, false}}, {kInt32}, 0, {}, NULL, PLAN(pack)},
    {"Unpack", {{"x", kInt32, 1, 4, false}}, {kFloat32}, 0, {"i channels"}, check_channels, PLAN(unpack)},
    {"BinaryDense",
     {{"x", kInt32, 1, 4, false}, {"weights", kInt32, 2, 2, false}, VECTOR("multiplier"), VECTOR("bias")},
     {kFloat32},
     0,
     {"i channels"},
     check_channels,
     PLAN(binary_dense)},
    {"BinaryDenseBits",
     {{"x", kInt32, 1, 4, false}, {"weights", kInt32, 2, 2, false}, {"thresholds", kInt32, 1, 1, false}},
     {kInt32},
     0,
     {"i channels"},
     check_channels,
     PLAN(binary_dense_bits)},
    {"PackedMax", {{"x", kInt32, 3, 3, false}}, {kInt32}, 0, {}, NULL, PLAN(packed_max)},
};
const int kOpKindCount = sizeof kOpKinds / sizeof kOpKinds[0];
