// How many 64-bit words a second this processor can xor and popcount at best, from the first-level cache: the
// ceiling that `bgnn-bench table knn` prints beside the kernels. Not part of the library.
#include <immintrin.h>
#include <stdint.h>

constexpr int kWords = 512;  // 4 KB

extern "C" {

// Each sums popcount(data ^ key) over kWords words, `rounds` times.
__attribute__((target("avx512f,avx512vpopcntdq"))) uint64_t roofline_avx512(const uint64_t* data, int64_t rounds) {
  __m512i sums[8] = {};
  for (int64_t round = 0; round < rounds; round++) {
    const __m512i key = _mm512_set1_epi64(round);
    for (int w = 0; w < kWords; w += 64) {
      for (int i = 0; i < 8; i++) {
        const __m512i v = _mm512_xor_si512(key, _mm512_loadu_si512(data + w + i * 8));
        sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(v));
      }
    }
  }
  uint64_t total = 0;
  for (int i = 0; i < 8; i++) {
    for (int l = 0; l < 8; l++) total += uint64_t(sums[i][l]);
  }
  return total;
}

__attribute__((target("popcnt"))) uint64_t roofline_popcnt(const uint64_t* data, int64_t rounds) {
  uint64_t sums[8] = {};
  for (int64_t round = 0; round < rounds; round++) {
    for (int w = 0; w < kWords; w += 8) {
      for (int i = 0; i < 8; i++) sums[i] += uint64_t(__builtin_popcountll(data[w + i] ^ uint64_t(round)));
    }
  }
  uint64_t total = 0;
  for (int i = 0; i < 8; i++) total += sums[i];
  return total;
}

bool roofline_has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq");
}
}
