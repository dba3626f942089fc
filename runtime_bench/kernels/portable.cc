// The reference that every other instruction set equals bit for bit: generic.h for the baseline of the platform.
#include "generic.h"
#include "isa.h"

extern const BgnnKernels bgnn_kernels_portable = {"portable", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
