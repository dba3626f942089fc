#define BGNN_GRAPH_NEON
#include "graph_generic.h"
#include "graph_isa.h"

extern const GraphKernels graph_kernels_neon = BGNN_GRAPH_KERNELS("neon");
