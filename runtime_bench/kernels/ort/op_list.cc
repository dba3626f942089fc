/* The list of operators. Meaning: docstrings of converter/dialect*.py, and graph_kernels.h; this is their interface.
 * n: the number of nodes; entries: edges in CSR order. */
#include "op_list.h"

#include "aggregation.h"
#include "csr.h"

#define GRAPH {"indptr", kInt32, 1, 1, false}, {"indices", kInt32, 1, 1, false}
#define SCORES {"source_score", kFloat32, 2, 2, false}, {"target_score", kFloat32, 2, 2, false}
#define MESSAGE "f msg_scale", "i msg_zero", "i msg_low", "i msg_high"
#define RESULT "f y_scale", "i y_zero", "i low", "i high"
#define COO {"edge_index", kInt64, 2, 2, false}, {"num_nodes", kInt64, 0, 1, false}

const OpKind kOpKinds[] = {
    {"WithSelfLoops", {COO}, {kInt64}, 0, {}, NULL, with_self_loops},
    /* -> indptr [n + 1], indices (sources) [entries], edges (places in COO order) [entries] */
    {"CooToCsr", {COO}, {kInt32, kInt32, kInt32}, 1, {"s self_loops"}, check_coo_to_csr, coo_to_csr},
    /* -> indptr [n + 1], edges [entries] */
    {"IndexToCsr",
     {{"index", kInt64, 1, 1, false}, {"num_nodes", kInt64, 0, 1, false}},
     {kInt32, kInt32},
     0,
     {},
     NULL,
     index_to_csr},
    {"QAggregate",
     {{"x", kUint8, 1, 4, false}, GRAPH, {"weight", kUint8, 1, 2, true}, {"edges", kInt32, 1, 1, true}},
     {kUint8},
     0,
     {"s reduce", "f x_scale", "i x_zero", "f w_scale", "i w_zero", MESSAGE, RESULT},
     check_q_aggregate,
     q_aggregate},
    {"Aggregate",
     {{"x", kFloat32, 1, 4, false}, GRAPH, {"weight", kFloat32, 1, 2, true}, {"edges", kInt32, 1, 1, true}},
     {kFloat32},
     0,
     {"s reduce"},
     check_aggregate,
     aggregate},
    {"AggregateInt32", {{"x", kInt32, 1, 4, false}, GRAPH}, {kInt32}, 0, {}, NULL, aggregate_int32},
    /* values in the edges' order, as is its output; the graph's indices are IndexToCsr's edges */
    {"SegmentSoftmax", {{"values", kFloat32, 1, 2, false}, GRAPH}, {kFloat32}, 0, {}, NULL, segment_softmax},
    {"GatAggregate",
     {{"x", kFloat32, 3, 3, false}, GRAPH, SCORES},
     {kFloat32},
     0,
     {"f negative_slope"},
     check_gat_aggregate,
     gat_aggregate},
    {"QGatAggregate",
     {{"x", kUint8, 3, 3, false}, GRAPH, SCORES},
     {kUint8},
     0,
     {"f negative_slope", "f x_scale", "i x_zero", "f score_scale", "i score_zero", "i score_low", "i score_high",
      MESSAGE, RESULT},
     check_q_gat_aggregate,
     q_gat_aggregate},
};
const int kOpKindCount = sizeof kOpKinds / sizeof kOpKinds[0];
