// One table per translation unit; which of them are built in is the build's matter (BGNN_HAVE_*).
#ifndef BGNN_ISA_H
#define BGNN_ISA_H

#include "kernels.h"

extern "C" {
#define BGNN_HIDDEN __attribute__((visibility("hidden")))
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_portable;
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_avx2;
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_avx512;
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_neon;
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_dotprod;
extern BGNN_HIDDEN const BgnnKernels bgnn_kernels_i8mm;
}
#endif
