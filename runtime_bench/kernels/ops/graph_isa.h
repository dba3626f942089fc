// One table per translation unit.
#ifndef BGNN_GRAPH_ISA_H
#define BGNN_GRAPH_ISA_H

#include "graph_kernels.h"

extern const GraphKernels graph_kernels_portable;
extern const GraphKernels graph_kernels_avx2;
extern const GraphKernels graph_kernels_avx512;
extern const GraphKernels graph_kernels_neon;

#endif
