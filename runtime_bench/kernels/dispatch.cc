// Which instruction set to use: the best that the processor has, or the one that BGNN_ISA names.
#include <stdlib.h>
#include <string.h>

#include "isa.h"

namespace {

struct Choice {
  const BgnnKernels* kernels;
  bool (*runs_here)();
};

bool always() { return true; }

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512vpopcntdq");
}
const Choice choices[] = {  // best first
    {&bgnn_kernels_avx512, has_avx512},
    {&bgnn_kernels_avx2, has_avx2},
    {&bgnn_kernels_portable, always},
};
#elif defined(__aarch64__)
const Choice choices[] = {{&bgnn_kernels_neon, always}, {&bgnn_kernels_portable, always}};  // NEON is in the base
#else
const Choice choices[] = {{&bgnn_kernels_portable, always}};
#endif

}  // namespace

extern "C" {

BGNN_API const BgnnKernels* bgnn_kernels_for(const char* isa) {
  for (const Choice& choice : choices) {
    if (strcmp(choice.kernels->isa, isa) == 0) return choice.runs_here() ? choice.kernels : nullptr;
  }
  return nullptr;
}

BGNN_API const BgnnKernels* bgnn_kernels(void) {
  const char* wanted = getenv("BGNN_ISA");
  if (wanted && *wanted) return bgnn_kernels_for(wanted);
  for (const Choice& choice : choices) {
    if (choice.runs_here()) return choice.kernels;
  }
  return nullptr;
}

BGNN_API const char* bgnn_kernels_list(void) {
#define BGNN_LIST_IN(type, name) "in " #type " " #name ","
#define BGNN_LIST_OUT(type, name) "out " #type " " #name ","
#define BGNN_LIST_INT(name) "int " #name ","
#define BGNN_LIST(function, Args, FIELDS) #function ":" FIELDS(BGNN_LIST_IN, BGNN_LIST_OUT, BGNN_LIST_INT) "\n"
  return BGNN_KERNELS(BGNN_LIST);
}
}
