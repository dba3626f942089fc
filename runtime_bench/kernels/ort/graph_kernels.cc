// Which table goes with the instruction set that the binary kernels' dispatch chose.
#include "graph_kernels.h"

#include <math.h>
#include <string.h>

#include "graph_isa.h"

const GraphKernels* graph_kernels_for(const char* isa) {
#if defined(__x86_64__)
  if (strcmp(isa, "avx512") == 0) return &graph_kernels_avx512;
  if (strcmp(isa, "avx2") == 0) return &graph_kernels_avx2;
#endif
  (void)isa;
  return &graph_kernels_portable;
}

void fill_message_table(const QAggregate* a, uint8_t* table) {
  const Requantise& q = a->message;
  for (int w = 0; w < 256; w++) {
    for (int x = 0; x < 256; x++) {
      const float product = float((x - a->x_zp) * (w - a->w_zp));
      float scaled = product * q.multiplier;
      scaled = scaled > float(q.low - q.zp) ? scaled : float(q.low - q.zp);
      scaled = scaled < float(q.high - q.zp) ? scaled : float(q.high - q.zp);
      table[w * 256 + x] = uint8_t(int(nearbyintf(scaled)) + q.zp);  // nearbyint: halves to even, as by default
    }
  }
}
