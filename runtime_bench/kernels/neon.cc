#include "generic.h"
#include "isa.h"

extern const BgnnKernels bgnn_kernels_neon = {"neon", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
