// Functions of one code as tables: q_table of graph_kernels.h, for whatever instruction set the including file is
// compiled for.
#ifndef BGNN_TABLE_GENERIC_H
#define BGNN_TABLE_GENERIC_H

#include <string.h>

#include "graph_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512VBMI__)
struct Table {
  __m512i part[4];
};

static inline __attribute__((always_inline)) Table load_table(const uint8_t* table) {
  Table t;
  for (int i = 0; i < 4; i++) t.part[i] = _mm512_loadu_si512(table + 64 * i);
  return t;
}

// table[x] for each byte. The permutation overwrites its indices: without copies made by hand GCC reads them from
// memory once more, and an aggregation waits for its loads.
static inline __attribute__((always_inline)) __m512i looked_up(__m512i x, const Table& table) {
  asm("" : "+v"(x));
  __m512i low = x;
  asm("" : "+v"(low));
  __m512i high = x;
  asm("" : "+v"(high));
  low = _mm512_permutex2var_epi8(table.part[0], low, table.part[1]);
  high = _mm512_permutex2var_epi8(table.part[2], high, table.part[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
}
#endif

// One table for all codes.
void look_up(const uint8_t* table, const uint8_t* x, uint8_t* out, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512VBMI__)
  const Table t = load_table(table);
  for (; i + 64 <= count; i += 64) _mm512_storeu_si512(out + i, looked_up(_mm512_loadu_si512(x + i), t));
  if (i < count) {
    const __mmask64 rest = ~__mmask64(0) >> (64 - (count - i));
    _mm512_mask_storeu_epi8(out + i, rest, looked_up(_mm512_maskz_loadu_epi8(rest, x + i), t));
  }
  return;
#elif defined(__AVX2__)
  // Sixteen parts of 16 entries, each as its difference (by XOR) from the part below. A code less 16 p looks up part
  // p's difference while it is not negative, and 0 afterwards; all up to its own add up to its entry. Codes from 128
  // on do the same with the upper eight parts, where the others are negative from the start.
  __m256i part[16];
  for (int p = 0; p < 16; p++) {
    __m128i entries = _mm_loadu_si128((const __m128i*)(table + 16 * p));
    if (p % 8) entries = _mm_xor_si128(entries, _mm_loadu_si128((const __m128i*)(table + 16 * p - 16)));
    part[p] = _mm256_broadcastsi128_si256(entries);
  }
  const __m256i step = _mm256_set1_epi8(16), top = _mm256_set1_epi8(-128);
  for (; i + 32 <= count; i += 32) {
    __m256i low = _mm256_loadu_si256((const __m256i*)(x + i)), high = _mm256_xor_si256(low, top);
    __m256i found = _mm256_xor_si256(_mm256_shuffle_epi8(part[0], low), _mm256_shuffle_epi8(part[8], high));
    for (int p = 1; p < 8; p++) {
      low = _mm256_subs_epi8(low, step);
      high = _mm256_subs_epi8(high, step);
      found = _mm256_xor_si256(found, _mm256_shuffle_epi8(part[p], low));
      found = _mm256_xor_si256(found, _mm256_shuffle_epi8(part[p + 8], high));
    }
    _mm256_storeu_si256((__m256i*)(out + i), found);
  }
#endif
  for (; i < count; i++) out[i] = table[x[i]];
}

void q_table(const QTable* args, int64_t first, int64_t last) {
  const QTable a = *args;
  if (a.tables == 1) return look_up(a.table, a.x + first * a.channels, a.out + first * a.channels, (last - first) * a.channels);
  for (int64_t row = first; row < last; row++) {
    const uint8_t* x = a.x + row * a.channels;
    uint8_t* out = a.out + row * a.channels;
    for (int64_t c = 0; c < a.channels; c++) out[c] = a.table[256 * c + x[c]];
  }
}

}  // namespace

#endif
