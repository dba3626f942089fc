#include "generic.h"
#include "isa.h"

extern const BgnnKernels bgnn_kernels_avx512 = {"avx512", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
