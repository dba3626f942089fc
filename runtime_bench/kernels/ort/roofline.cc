// How fast this processor reads rows at random places in memory: the ceiling that bench_aggregate prints beside the
// aggregation. Not part of the library.
#include <immintrin.h>
#include <stdint.h>

extern "C" {

// Reads x[index[p]] for p in [0, count), rows of `lines` cache lines, `ahead` entries prefetched; a checksum.
__attribute__((target("avx2"))) uint64_t read_rows(const char* x, const int32_t* index, int64_t count, int64_t lines,
                                                    int64_t ahead) {
  __m256i sums[4] = {};
  for (int64_t p = 0; p < count; p++) {
    if (p + ahead < count) {
      const char* row = x + int64_t(index[p + ahead]) * lines * 64;
      for (int64_t l = 0; l < lines; l++) __builtin_prefetch(row + l * 64);
    }
    const char* row = x + int64_t(index[p]) * lines * 64;
    for (int64_t l = 0; l < lines; l++) {
      for (int64_t h = 0; h < 2; h++) {
        sums[l % 2 * 2 + h] = _mm256_xor_si256(
            sums[l % 2 * 2 + h], _mm256_load_si256(reinterpret_cast<const __m256i*>(row + l * 64 + h * 32)));
      }
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  uint64_t words[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), all);
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}
}
