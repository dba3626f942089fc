// How fast this processor reads rows at random places in memory: the ceiling that `bgnn-bench table aggregate` prints beside the
// aggregation. Not part of the library.
#include <immintrin.h>
#include <stdint.h>

namespace {

// A row's lines are unrolled, and nothing is tested per row: a loop that had to count would be slower than the memory.
template <int kLines>
__attribute__((target("avx2"))) uint64_t read(const char* x, const int32_t* index, int64_t count, int64_t ahead) {
  __m256i sums[2 * kLines] = {};
  const int64_t safe = count > ahead ? count - ahead : 0;
  const auto add = [&](int64_t p) __attribute__((always_inline, target("avx2"))) {
    const __m256i* row = reinterpret_cast<const __m256i*>(x + int64_t(index[p]) * kLines * 64);
    for (int h = 0; h < 2 * kLines; h++) sums[h] = _mm256_xor_si256(sums[h], _mm256_load_si256(row + h));
  };
  for (int64_t p = 0; p < safe; p++) {
    const char* row = x + int64_t(index[p + ahead]) * kLines * 64;
    for (int l = 0; l < kLines; l++) __builtin_prefetch(row + l * 64);
    add(p);
  }
  for (int64_t p = safe; p < count; p++) add(p);
  __m256i all = sums[0];
  for (int h = 1; h < 2 * kLines; h++) all = _mm256_xor_si256(all, sums[h]);
  uint64_t words[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), all);
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}

}  // namespace

// Reads x[index[p]] for p in [0, count), rows of 1, 2, 4 or 8 cache lines, `ahead` entries prefetched; a checksum, and 0
// for rows of another size.
extern "C" uint64_t read_rows(const char* x, const int32_t* index, int64_t count, int64_t lines, int64_t ahead) {
  switch (lines) {
    case 1: return read<1>(x, index, count, ahead);
    case 2: return read<2>(x, index, count, ahead);
    case 4: return read<4>(x, index, count, ahead);
    case 8: return read<8>(x, index, count, ahead);
    default: return 0;
  }
}
