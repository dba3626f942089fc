// Which instruction set to use: the best that the processor has, or the one that BGNN_ISA names.
#include <stdlib.h>
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "isa.h"

namespace {

struct Choice {
  const BgnnKernels* kernels;
  bool (*runs_here)();
};

bool always() { return true; }

#if defined(__x86_64__)
// Asked here and not through __builtin_cpu_supports, which would bring libgcc along.
struct Cpuid {
  uint32_t a, b, c, d;
};

Cpuid cpuid(uint32_t leaf) {
  Cpuid r;
  __asm__("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
  return r;
}

bool all(uint32_t flags, uint32_t bits) { return (flags & bits) == bits; }

constexpr uint32_t bit(int n) { return uint32_t(1) << n; }

// Whether the operating system saves these registers: 1 xmm, 2 ymm, 5-7 the masks and zmm.
bool saves(uint32_t registers) {
  if (!all(cpuid(1).c, bit(27))) return false;  // OSXSAVE: xgetbv may be asked
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return all(low, registers);
}

// Leaf 7, or nothing where the processor ends before.
Cpuid extended() { return cpuid(0).a >= 7 ? cpuid(7) : Cpuid{0, 0, 0, 0}; }

bool has_avx2() {
  const uint32_t fma = bit(12), popcnt = bit(23), avx = bit(28), bmi = bit(3), avx2 = bit(5), bmi2 = bit(8);
  const bool lzcnt = cpuid(0x80000000).a >= 0x80000001 && all(cpuid(0x80000001).c, bit(5));
  return all(cpuid(1).c, fma | popcnt | avx) && all(extended().b, bmi | avx2 | bmi2) && lzcnt && saves(bit(1) | bit(2));
}

bool has_avx512() {
  const uint32_t f = bit(16), dq = bit(17), bw = bit(30), vl = bit(31);
  const uint32_t vbmi = bit(1), vbmi2 = bit(6), vnni = bit(11), vpopcntdq = bit(14);
  return has_avx2() && all(extended().b, f | dq | bw | vl) && all(extended().c, vbmi | vbmi2 | vnni | vpopcntdq) &&
         saves(bit(1) | bit(2) | bit(5) | bit(6) | bit(7));
}

const Choice choices[] = {  // best first
    {&bgnn_kernels_avx512, has_avx512},
    {&bgnn_kernels_avx2, has_avx2},
    {&bgnn_kernels_portable, always},
};
#elif defined(__aarch64__)
// Bits of HWCAP and HWCAP2, as Linux's asm/hwcap.h has them.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }

const Choice choices[] = {  // best first
    {&bgnn_kernels_i8mm, has_i8mm},
    {&bgnn_kernels_dotprod, has_dotprod},
    {&bgnn_kernels_neon, always},  // in the base
    {&bgnn_kernels_portable, always},
};
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
