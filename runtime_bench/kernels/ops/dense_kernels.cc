// Which table goes with the instruction set that the binary kernels' dispatch chose.
#include "dense_kernels.h"

#include <string.h>

#include "dense_isa.h"

const DenseKernels* dense_kernels_for(const char* isa) {
#if defined(__x86_64__)
  if (strcmp(isa, "avx512") == 0) return &dense_kernels_avx512;
  if (strcmp(isa, "avx2") == 0) return &dense_kernels_avx2;
#elif defined(__aarch64__)
  if (strcmp(isa, "i8mm") == 0) return &dense_kernels_i8mm;
  if (strcmp(isa, "dotprod") == 0) return &dense_kernels_dotprod;
  if (strcmp(isa, "neon") == 0) return &dense_kernels_neon;
#endif
  (void)isa;
  return &dense_kernels_portable;
}
