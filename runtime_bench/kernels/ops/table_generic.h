// Functions of one code as tables: q_table of graph_kernels.h, for whatever instruction set the including file is
// compiled for.
#ifndef BGNN_TABLE_GENERIC_H
#define BGNN_TABLE_GENERIC_H

#include <string.h>

#include "graph_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(BGNN_GRAPH_NEON)
#include <arm_neon.h>
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

#if defined(BGNN_GRAPH_NEON)
struct Table {
  uint8x16x4_t part[4];
};

static inline __attribute__((always_inline)) Table load_table(const uint8_t* table) {
  Table t;
  for (int i = 0; i < 4; i++) t.part[i] = vld1q_u8_x4(table + 64 * i);
  return t;
}

// table[x] for each byte: where an index lies beyond its part, what was found before stays.
static inline __attribute__((always_inline)) uint8x16_t looked_up(uint8x16_t x, const Table& table) {
  uint8x16_t found = vqtbl4q_u8(table.part[0], x);
  for (int i = 1; i < 4; i++) found = vqtbx4q_u8(found, table.part[i], x - uint8_t(64 * i));
  return found;
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
#elif defined(BGNN_GRAPH_NEON)
  const Table t = load_table(table);
  for (; i + 16 <= count; i += 16) vst1q_u8(out + i, looked_up(vld1q_u8(x + i), t));
#endif
  for (; i < count; i++) out[i] = table[x[i]];
}

#if defined(__AVX512VBMI__)
// v[g] lane d becomes v[d] lane g, of 16 lanes of 4 bytes; twice is nothing.
static inline __attribute__((always_inline)) void transpose(__m512i v[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    const __m512i a = _mm512_shuffle_i32x4(v[k], v[k + 4], 0x88), b = _mm512_shuffle_i32x4(v[k], v[k + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(v[k + 8], v[k + 12], 0x88), d = _mm512_shuffle_i32x4(v[k + 8], v[k + 12], 0xdd);
    v[k] = _mm512_shuffle_i32x4(a, c, 0x88);
    v[k + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    v[k + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    v[k + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

// Up to 64 rows by 64 channels, turned around so that a vector holds 64 rows of one channel, and back. `table`: of the
// first of the channels.
__attribute__((noinline)) void look_up_tile(const uint8_t* table, const uint8_t* x, uint8_t* out, int64_t stride,
                                            int64_t rows, int64_t channels) {
  const __mmask64 inside = ~__mmask64(0) >> (64 - channels);
  __m512i tile[4][16];  // [quarter][4 rows]: of 16 channels, those of a quarter; a lane is one of 4 rows
  for (int g = 0; g < 16; g++) {
    __m512i row[4];
    for (int i = 0; i < 4; i++) {
      row[i] = 4 * g + i < rows ? _mm512_maskz_loadu_epi8(inside, x + (4 * g + i) * stride) : _mm512_setzero_si512();
    }
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    tile[0][g] = _mm512_unpacklo_epi16(low01, low23);
    tile[1][g] = _mm512_unpackhi_epi16(low01, low23);
    tile[2][g] = _mm512_unpacklo_epi16(high01, high23);
    tile[3][g] = _mm512_unpackhi_epi16(high01, high23);
  }
  for (int quarter = 0; quarter < 4; quarter++) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int g = 0; g < 16; g++) v[g] = tile[quarter][g];
    transpose(v);
#pragma GCC unroll 16
    for (int d = 0; d < 16; d++) {
      const int64_t channel = d / 4 * 16 + quarter * 4 + d % 4;
      if (channel < channels) v[d] = looked_up(v[d], load_table(table + 256 * channel));
    }
    transpose(v);
#pragma GCC unroll 16
    for (int g = 0; g < 16; g++) tile[quarter][g] = v[g];
  }
  // Within 16 bytes, byte 4 d + i is row i of channel d.
  const __m512i by_row =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int g = 0; 4 * g < rows; g++) {
    __m512i q[4], row[4];
    for (int i = 0; i < 4; i++) q[i] = _mm512_shuffle_epi8(tile[i][g], by_row);
    const __m512i low01 = _mm512_unpacklo_epi32(q[0], q[1]), high01 = _mm512_unpackhi_epi32(q[0], q[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(q[2], q[3]), high23 = _mm512_unpackhi_epi32(q[2], q[3]);
    row[0] = _mm512_unpacklo_epi64(low01, low23);
    row[1] = _mm512_unpackhi_epi64(low01, low23);
    row[2] = _mm512_unpacklo_epi64(high01, high23);
    row[3] = _mm512_unpackhi_epi64(high01, high23);
    for (int i = 0; i < 4 && 4 * g + i < rows; i++) {
      _mm512_mask_storeu_epi8(out + (4 * g + i) * stride, inside, row[i]);
    }
  }
}
#endif

// A table for each channel.
void look_up_each(const QTable& a, int64_t first, int64_t last) {
#if defined(__AVX512VBMI__)
  constexpr int64_t kFewChannels = 16, kFewRows = 8;  // a tile costs the same with fewer
  for (; a.channels >= kFewChannels && last - first >= kFewRows; first += 64) {
    const int64_t rows = last - first < 64 ? last - first : 64;
    for (int64_t c = 0; c < a.channels; c += 64) {
      const int64_t at = first * a.channels + c, channels = a.channels - c < 64 ? a.channels - c : 64;
      look_up_tile(a.table + 256 * c, a.x + at, a.out + at, a.channels, rows, channels);
    }
  }
#endif
  for (int64_t row = first; row < last; row++) {
    const uint8_t* x = a.x + row * a.channels;
    uint8_t* out = a.out + row * a.channels;
    for (int64_t c = 0; c < a.channels; c++) out[c] = a.table[256 * c + x[c]];
  }
}

void q_table(const QTable* args, int64_t first, int64_t last) {
  const QTable a = *args;
  if (a.tables == 1) {
    look_up(a.table, a.x + first * a.channels, a.out + first * a.channels, (last - first) * a.channels);
  } else {
    look_up_each(a, first, last);
  }
}

}  // namespace

#endif
