// One table per translation unit.
#ifndef BGNN_DENSE_ISA_H
#define BGNN_DENSE_ISA_H

#include "dense_kernels.h"

extern const DenseKernels dense_kernels_portable;
extern const DenseKernels dense_kernels_avx2;
extern const DenseKernels dense_kernels_avx512;
extern const DenseKernels dense_kernels_neon;
extern const DenseKernels dense_kernels_dotprod;
extern const DenseKernels dense_kernels_i8mm;

#endif
