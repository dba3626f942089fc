#include "generic.h"
#include "isa.h"

extern const BgnnKernels bgnn_kernels_avx2 = {"avx2", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
