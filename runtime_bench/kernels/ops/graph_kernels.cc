// Which table goes with the instruction set that the binary kernels' dispatch chose.
#include "graph_kernels.h"

#include <string.h>

#include "graph_isa.h"

const GraphKernels* graph_kernels_for(const char* isa) {
#if defined(__aarch64__)
  if (strcmp(isa, "portable") != 0) return &graph_kernels_neon;  // nothing here gains by dot products
#elif defined(__x86_64__)
  if (strcmp(isa, "avx512") == 0) return &graph_kernels_avx512;
  if (strcmp(isa, "avx2") == 0) return &graph_kernels_avx2;
#endif
  (void)isa;
  return &graph_kernels_portable;
}
