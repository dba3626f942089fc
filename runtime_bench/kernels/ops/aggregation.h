/* The aggregation operators: from checked inputs to the kernels of graph_kernels.h. */
#ifndef BGNN_AGGREGATION_H
#define BGNN_AGGREGATION_H

#include "call.h"

const char* check_q_aggregate(Kernel*);
const char* check_aggregate(Kernel*);
const char* check_gat_aggregate(Kernel*);
const char* check_q_edge_product(Kernel*);
const char* check_q_gat_aggregate(Kernel*);
bool q_aggregate(Call*);
bool aggregate(Call*);
bool degree(Call*);
bool edge_product(Call*);
bool segment_softmax(Call*);
bool gat_aggregate(Call*);
bool q_gat_aggregate(Call*);

#endif
