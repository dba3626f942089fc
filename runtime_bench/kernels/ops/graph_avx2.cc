#include "graph_generic.h"
#include "graph_isa.h"

extern const GraphKernels graph_kernels_avx2 = BGNN_GRAPH_KERNELS("avx2");
