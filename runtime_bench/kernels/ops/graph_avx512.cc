#include "graph_generic.h"
#include "graph_isa.h"

extern const GraphKernels graph_kernels_avx512 = BGNN_GRAPH_KERNELS("avx512");
