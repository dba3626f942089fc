/* The runtime makes the processor flush denormal floats to zero while it runs a graph; PyTorch does not, and threads
 * that started elsewhere may not either. The kernels compute with them: the same bits on every thread and machine. */
#ifndef BGNN_DENORMALS_H
#define BGNN_DENORMALS_H

#include <stdint.h>

/* Switches flushing off; returns what restore_denormals needs. */
static inline uint64_t allow_denormals(void) {
#if defined(__x86_64__)
  const uint32_t state = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(state & ~0x8040u); /* results to zero, inputs to zero */
  return state;
#elif defined(__aarch64__)
  uint64_t state;
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  __asm__ volatile("msr fpcr, %0" : : "r"(state & ~(uint64_t)(1u << 24)));
  return state;
#else
#error "how does this processor flush denormals?"
#endif
}

static inline void restore_denormals(uint64_t state) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((uint32_t)state);
#else
  __asm__ volatile("msr fpcr, %0" : : "r"(state));
#endif
}

#endif
