#include "graph_generic.h"
#include "graph_isa.h"

extern const GraphKernels graph_kernels_portable = BGNN_GRAPH_KERNELS("portable");
