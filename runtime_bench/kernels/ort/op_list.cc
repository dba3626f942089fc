/* The list of operators. Meaning: docstrings of converter/dialect*.py, and graph_kernels.h; this is their interface.
 * n: the number of nodes; entries: edges in CSR order. */
#include "op_list.h"

#include "aggregation.h"
#include "csr.h"

#define GRAPH {"indptr", kInt32, 1, 1, false}, {"indices", kInt32, 1, 1, false}
#define COO {"edge_index", kInt64, 2, 2, false}, {"num_nodes", kInt64, 0, 1, false}

const OpKind kOpKinds[] = {
    {"WithSelfLoops", {COO}, {kInt64}, 0, {}, NULL, with_self_loops},
    /* -> indptr [n + 1], indices (sources) [entries], edges (places in COO order) [entries] */
    {"CooToCsr", {COO}, {kInt32, kInt32, kInt32}, 1, {"s self_loops"}, check_coo_to_csr, coo_to_csr},
    {"QAggregate",
     {{"x", kUint8, 2, 2, false}, GRAPH, {"weight", kUint8, 1, 2, true}, {"edges", kInt32, 1, 1, true}},
     {kUint8},
     0,
     {"f x_scale", "i x_zp", "f w_scale", "i w_zp", "f msg_scale", "i msg_zp", "f y_scale", "i y_zp", "i low", "i high"},
     check_q_aggregate,
     q_aggregate},
    {"Aggregate",
     {{"x", kFloat32, 2, 2, false}, GRAPH, {"weight", kFloat32, 1, 2, true}, {"edges", kInt32, 1, 1, true}},
     {kFloat32},
     0,
     {"s reduce"},
     check_aggregate,
     aggregate},
    {"AggregateInt32", {{"x", kInt32, 2, 2, false}, GRAPH}, {kInt32}, 0, {}, NULL, aggregate_int32},
    {"GatAggregate",
     {{"x", kFloat32, 3, 3, false}, GRAPH, {"alpha_source", kFloat32, 2, 2, false}, {"alpha_target", kFloat32, 2, 2, false}},
     {kFloat32},
     0,
     {"f negative_slope"},
     check_gat_aggregate,
     gat_aggregate},
};
const int kOpKindCount = sizeof kOpKinds / sizeof kOpKinds[0];
