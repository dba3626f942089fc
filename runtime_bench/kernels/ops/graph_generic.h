// The kernels of graph_kernels.h on the compiler's own vectors, for whatever instruction set the including file is
// compiled for. Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_GRAPH_GENERIC_H
#define BGNN_GRAPH_GENERIC_H

#include <string.h>

#include "graph_kernels.h"
#include "table_generic.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(BGNN_GRAPH_NEON)  // graph_neon.cc; the portable unit has NEON too, but no intrinsics
#include <arm_neon.h>
#endif

#define BGNN_INLINE static inline __attribute__((always_inline))
#define BGNN_INLINE_MEMBER inline __attribute__((always_inline))
#define BGNN_LAMBDA __attribute__((always_inline))

namespace {

#if defined(__AVX512BW__)
constexpr int kNative = 64;
#elif defined(__AVX2__)
constexpr int kNative = 32;
#else
constexpr int kNative = 16;
#endif

#if defined(BGNN_GRAPH_NEON)
constexpr int kMostVectors = 8;  // of a block: 32 registers
#else
constexpr int kMostVectors = 4;
#endif

template <int kBytes>
struct Vectors {
  typedef uint8_t U8 __attribute__((vector_size(kBytes)));
  typedef uint16_t U16 __attribute__((vector_size(kBytes)));
  typedef uint32_t U32 __attribute__((vector_size(kBytes)));
  typedef int32_t I32 __attribute__((vector_size(kBytes)));
  typedef float F32 __attribute__((vector_size(kBytes)));
};

template <class V>
BGNN_INLINE V load(const void* at) {
  V v;
  memcpy(&v, at, sizeof v);
  return v;
}

// ---------------------------------------------------------------------------------------------- gathering

// Rows are scattered in memory, and the processor cannot look far beyond the end of a node's list by itself. So many
// bytes of rows are asked for ahead, whatever node they belong to: a third of a first-level cache. A block of columns
// asks for its own part of each row; a row that does not start with a cache line ends one line later.
constexpr int64_t kAheadBytes = 16 * 1024, kMostAhead = 128, kLeastAhead = 8;

struct Rows {
  const char* x;
  const int32_t* indices;
  int64_t stride;       // bytes
  int64_t ahead, last;  // entries; the first one that has none so far ahead
  bool crosses;
};

template <class T>
BGNN_INLINE Rows rows_of(const Csr& csr, const T* x, int64_t width) {
  const int64_t stride = width * int64_t(sizeof(T));
  int64_t ahead = kAheadBytes / (stride + 1);
  ahead = ahead > kMostAhead ? kMostAhead : ahead < kLeastAhead ? kLeastAhead : ahead;
  return {reinterpret_cast<const char*>(x), csr.indices, stride, ahead, csr.entries - ahead, stride % 64 != 0};
}

template <int kBlock, bool kCrosses>
BGNN_INLINE void prefetch_row(const Rows& rows, const char* first, int64_t p) {
  const char* row = first + int64_t(rows.indices[p + rows.ahead]) * rows.stride;
  for (int at = 0; at < kBlock; at += 64) __builtin_prefetch(row + at);
  if (kCrosses) __builtin_prefetch(row + kBlock - 1);
}

template <int kBlock, bool kCrosses, class Visit>
BGNN_INLINE void each_row_as(const Rows rows, int64_t start, int64_t begin, int64_t end, const Visit& visit) {
  const char* first = rows.x + start;
  const int64_t safe = end < rows.last ? end : rows.last;
  int64_t p = begin;
  for (; p + 2 <= safe; p += 2) {
    prefetch_row<kBlock, kCrosses>(rows, first, p);
    visit(p, first + int64_t(rows.indices[p]) * rows.stride);
    prefetch_row<kBlock, kCrosses>(rows, first, p + 1);
    visit(p + 1, first + int64_t(rows.indices[p + 1]) * rows.stride);
  }
  for (; p < end; p++) {
    if (p < rows.last) prefetch_row<kBlock, kCrosses>(rows, first, p);
    visit(p, first + int64_t(rows.indices[p]) * rows.stride);
  }
}

// visit(p, its row's block) for the entries [begin, end), of a block of kBlock bytes from byte `start` on. Two at a
// time, every test outside of the loop: what is done here is not done while memory is waited for.
template <int kBlock, class Visit>
BGNN_INLINE void each_row(const Rows& rows, int64_t start, int64_t begin, int64_t end, const Visit& visit) {
  rows.crosses || kBlock % 64 != 0 ? each_row_as<kBlock, true>(rows, start, begin, end, visit)
                                   : each_row_as<kBlock, false>(rows, start, begin, end, visit);
}

// The columns [0, width) in blocks: block(tag of bytes per vector, tag of vectors, first column). The last block
// may overlap the one before it; both write the same. Columns narrower than 4 bytes are the caller's matter.
template <int kValue>
struct Tag {
  static constexpr int value = kValue;
};

template <int kBytes, int kMost, class Block>
BGNN_INLINE void each_block(int64_t width, int64_t size, const Block& block) {
  const int64_t step = kBytes / size;  // columns of one vector
  if constexpr (kBytes > 4) {
    if (width < step) return each_block<kBytes / 2, 1>(width, size, block);
  }
  int64_t c = 0;
  if constexpr (kMost >= 8) {
    for (; c + 8 * step <= width; c += 8 * step) block(Tag<kBytes>(), Tag<8>(), c);
  }
  if constexpr (kMost >= 4) {
    for (; c + 4 * step <= width; c += 4 * step) block(Tag<kBytes>(), Tag<4>(), c);
  }
  if constexpr (kMost >= 2) {
    for (; c + 2 * step <= width; c += 2 * step) block(Tag<kBytes>(), Tag<2>(), c);
  }
  for (; c + step <= width; c += step) block(Tag<kBytes>(), Tag<1>(), c);
  if (c < width) block(Tag<kBytes>(), Tag<1>(), width - step);
}

// Where a block of columns of bytes lies in a row. One of less than a vector is two halves of it, which may overlap: at the
// row's start, and up to its end; what is left of the vector is 0.
template <int kVector, int kHalfBytes = 0>
struct Columns {
  static constexpr int kBytes = kVector, kHalf = kHalfBytes;
  int64_t first, second;  // of the halves

  template <class V>
  BGNN_INLINE_MEMBER V load(const char* row, int k) const {
    V v = {};
    if constexpr (kHalf == 0) {
      memcpy(&v, row + k * kBytes, kBytes);
    } else {
      memcpy(&v, row, kHalf);
      memcpy(reinterpret_cast<char*>(&v) + kHalf, row + second, kHalf);
    }
    return v;
  }
  template <class V>
  BGNN_INLINE_MEMBER void store(const V& v, uint8_t* row, int k) const {
    if constexpr (kHalf == 0) {
      memcpy(row + k * kBytes, &v, kBytes);
    } else {
      memcpy(row, &v, kHalf);
      memcpy(row + second, reinterpret_cast<const char*>(&v) + kHalf, kHalf);
    }
  }
};

// Columns of 4 bytes, [0, width), in parts that do not overlap: part(tag of bytes per vector, first column).
template <int kBytes, class Part>
BGNN_INLINE void each_part(int64_t first, int64_t width, const Part& part) {
  int64_t c = first;
  for (; c + kBytes / 4 <= width; c += kBytes / 4) part(Tag<kBytes>(), c);
  if constexpr (kBytes > 4) {
    if (c < width) each_part<kBytes / 2>(c, width, part);
  }
}

// ---------------------------------------------------------------------------------------------- codes

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, halves to even
constexpr int32_t kMagicBits = 0x4b400000;

// scaled to the nearest integer within [low - zp, high - zp], `zp` added: the quantiser's own, or 0.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 rounded(typename Vectors<kBytes>::F32 scaled, const Requantise& q, int32_t zp) {
  typedef typename Vectors<kBytes>::F32 F32;
  typedef typename Vectors<kBytes>::I32 I32;
  const F32 low = F32{} + float(q.low - q.zp), high = F32{} + float(q.high - q.zp);
#if defined(BGNN_GRAPH_NEON)  // vmaxnm of a NaN and a number is the number, as here
  if constexpr (kBytes == 16) return (I32)vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(scaled, low), high)) + zp;
#endif
  scaled = scaled > low ? scaled : low;
  scaled = scaled < high ? scaled : high;
  scaled += F32{} + kMagic;
  return (I32)scaled + (zp - kMagicBits);
}

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 code(typename Vectors<kBytes>::I32 acc, const Requantise& q) {
  typedef typename Vectors<kBytes>::F32 F32;
  return rounded<kBytes>(__builtin_convertvector(acc, F32) * (F32{} + q.multiplier), q, q.zp);
}

// The sums of 4 * lanes columns: sums[j] lane l belongs to column 4 l + j, the byte j of 32-bit lane l. Unpacking
// bytes this way needs no shuffles. In NEON's full vectors, to column 4 j + l: its widening instructions leave them so.
template <int kBytes>
struct Sums {
  typename Vectors<kBytes>::I32 column[4];
};

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::U32 byte_of(typename Vectors<kBytes>::U32 v, int j) {
  return j == 3 ? v >> 24 : (v >> (8 * j)) & 0xffu;
}

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::U8 codes_of(const Sums<kBytes>& sums, int32_t correction, const Requantise& q) {
  typedef typename Vectors<kBytes>::U32 U32;
#if defined(BGNN_GRAPH_NEON)
  if constexpr (kBytes == 16) {  // rounded, and then clamped by narrowing: the bounds are integers
    int32x4_t rounded[4];
    for (int j = 0; j < 4; j++) {
      rounded[j] = vcvtnq_s32_f32(vcvtq_f32_s32((int32x4_t)(sums.column[j] - correction)) * vdupq_n_f32(q.multiplier));
    }
    const int16x8_t zp = vdupq_n_s16(int16_t(q.zp));
    const int16x8_t first = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(rounded[0]), rounded[1]), zp);
    const int16x8_t second = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(rounded[2]), rounded[3]), zp);
    const uint8x16_t code = vqmovun_high_s16(vqmovun_s16(first), second);
    return (Vectors<16>::U8)vminq_u8(vmaxq_u8(code, vdupq_n_u8(uint8_t(q.low))), vdupq_n_u8(uint8_t(q.high)));
  }
#endif
  U32 packed = {};
  for (int j = 0; j < 4; j++) packed |= (U32)code<kBytes>(sums.column[j] - correction, q) << (8 * j);
  return (typename Vectors<kBytes>::U8)packed;
}

// ---------------------------------------------------------------------------------------------- q_aggregate

// x * y >> 16 of 16-bit lanes.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::U16 high_product(typename Vectors<kBytes>::U16 x, typename Vectors<kBytes>::U16 y) {
  typedef typename Vectors<kBytes>::U16 U16;
#if defined(__AVX512BW__)
  if constexpr (kBytes == 64) return (U16)_mm512_mulhi_epu16((__m512i)x, (__m512i)y);
#endif
#if defined(__AVX2__)
  if constexpr (kBytes == 32) return (U16)_mm256_mulhi_epu16((__m256i)x, (__m256i)y);
#endif
#if defined(__SSE2__)
  if constexpr (kBytes == 16) return (U16)_mm_mulhi_epu16((__m128i)x, (__m128i)y);
#endif
  U16 high = {};
  for (int l = 0; l < kBytes / 2; l++) high[l] = uint16_t(uint32_t(x[l]) * y[l] >> 16);
  return high;
}

constexpr int64_t kByteRows = 257;  // as many bytes' sum fits 16 bits

// Sums of bytes in 16 bits: of even and odd ones apart; or of whole vectors, where the even ones are summed together
// with the odd ones above them, and these once more alone.
template <bool kApart, int kBytes, int kCount>
struct ByteSums {
  typedef typename Vectors<kBytes>::U16 U16;
  U16 even[kCount] = {}, odd[kCount] = {};

  BGNN_INLINE_MEMBER void bytes(int k, U16 v) {
    even[k] += v;
    odd[k] += v >> 8;
  }
  // The row's codes by a line: where sums are apart.
  template <bool kSteep, class At>
  BGNN_INLINE_MEMBER void by_line(const At& at, const char* row, const MessageLine& line) {
    typedef typename Vectors<kBytes>::U32 U32;
    const U16 slope = (U16)(U32{} + line.slope), offset = (U16)(U32{} + line.offset);
    const U16 low = (U16)(U32{} + line.low), high = (U16)(U32{} + line.high), factor = (U16)(U32{} + line.factor);
    const auto code = [&](U16 x) BGNN_LAMBDA {
      U16 y = high_product<kBytes>(x, slope);
      if (kSteep) {
        y = y > low ? y : low;
        y = (y < high ? y : high) * factor;
      }
      return U16((y + offset) >> 8);
    };
    for (int k = 0; k < kCount; k++) {
      const U16 v = at.template load<U16>(row, k);
      even[k] += code(v << 8);
      odd[k] += code(v & 0xff00);
    }
  }
  BGNN_INLINE_MEMBER void add_to(Sums<kBytes>* sums) const {
    typedef typename Vectors<kBytes>::U32 U32;
    typedef typename Vectors<kBytes>::I32 I32;
    for (int k = 0; k < kCount; k++) {
      const U32 evens = (U32)(kApart ? even[k] : U16(even[k] - (odd[k] << 8))), odds = (U32)odd[k];
      sums[k].column[0] += (I32)(evens & 0xffffu);
      sums[k].column[1] += (I32)(odds & 0xffffu);
      sums[k].column[2] += (I32)(evens >> 16);
      sums[k].column[3] += (I32)(odds >> 16);
    }
  }
};

#if defined(BGNN_GRAPH_NEON)
// sums + the codes of x by a line. x * slope >> 8 from x times the slope's two bytes, without widening x.
template <bool kSteep>
BGNN_INLINE uint16x8_t add_codes(uint16x8_t sums, uint8x8_t x, const MessageLine& line) {
  const uint8x8_t slope_low = vdup_n_u8(uint8_t(line.slope)), slope_high = vdup_n_u8(uint8_t(line.slope >> 8));
  const uint16x8_t offset = vdupq_n_u16(uint16_t(line.offset)), below = vmull_u8(x, slope_low);
  if (!kSteep) return vsraq_n_u16(sums, vmlal_u8(vsraq_n_u16(offset, below, 8), x, slope_high), 8);
  uint16x8_t at = vmlal_u8(vshrq_n_u16(below, 8), x, slope_high);
  at = vminq_u16(vmaxq_u16(at, vdupq_n_u16(uint16_t(line.low))), vdupq_n_u16(uint16_t(line.high)));
  return vsraq_n_u16(sums, vmlaq_u16(offset, at, vdupq_n_u16(uint16_t(line.factor))), 8);
}

// Of the lower and the upper eight.
template <bool kApart, int kCount>
struct ByteSums<kApart, 16, kCount> {
  uint16x8_t low[kCount] = {}, high[kCount] = {};

  BGNN_INLINE_MEMBER void bytes(int k, uint8x16_t v) {
    low[k] = vaddw_u8(low[k], vget_low_u8(v));
    high[k] = vaddw_high_u8(high[k], v);
  }
  BGNN_INLINE_MEMBER void bytes(int k, Vectors<16>::U16 v) { bytes(k, (uint8x16_t)v); }
  template <bool kSteep, class At>
  BGNN_INLINE_MEMBER void by_line(const At& at, const char* row, const MessageLine& line) {
    for (int k = 0; k < kCount; k++) {
      const auto v = at.template load<uint8x16_t>(row, k);
      low[k] = add_codes<kSteep>(low[k], vget_low_u8(v), line);
      high[k] = add_codes<kSteep>(high[k], vget_high_u8(v), line);
    }
  }
  BGNN_INLINE_MEMBER void add_to(Sums<16>* sums) const {
    for (int k = 0; k < kCount; k++) {
      Vectors<16>::I32* column = sums[k].column;
      column[0] = (Vectors<16>::I32)vaddw_u16((uint32x4_t)column[0], vget_low_u16(low[k]));
      column[1] = (Vectors<16>::I32)vaddw_high_u16((uint32x4_t)column[1], low[k]);
      column[2] = (Vectors<16>::I32)vaddw_u16((uint32x4_t)column[2], vget_low_u16(high[k]));
      column[3] = (Vectors<16>::I32)vaddw_high_u16((uint32x4_t)column[3], high[k]);
    }
  }
};
#endif

// add(p, its row's block, ByteSums): adds what entry p contributes, vector by vector.
template <bool kApart, int kCount, class At, int kBytes, class Add>
BGNN_INLINE void sum_bytes(const Rows& rows, int64_t begin, int64_t end, const At& at, Sums<kBytes>* sums, const Add& add) {
  for (int64_t p = begin; p < end; p += kByteRows) {
    const int64_t stop = end - p < kByteRows ? end : p + kByteRows;
    ByteSums<kApart, kBytes, kCount> total;
    each_row<kBytes * kCount>(rows, at.first, p, stop,
                              [&](int64_t entry, const char* row) BGNN_LAMBDA { add(entry, row, total); });
    total.add_to(sums);
  }
}

template <int kCount, class At, int kBytes>
BGNN_INLINE void sum_rows(const Rows& rows, int64_t begin, int64_t end, const At& at, Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U16 U16;
  sum_bytes<false, kCount>(rows, begin, end, at, sums, [&](int64_t, const char* row, auto& add) BGNN_LAMBDA {
    for (int k = 0; k < kCount; k++) add.bytes(k, at.template load<U16>(row, k));
  });
}

// The weights' codes. Those that are reached through `edges` lie anywhere, like rows.
template <bool kPlaces>
struct Weights {
  const uint8_t* codes;
  const int32_t* places;
  int64_t ahead, last;

  Weights(const QAggregate& a, const Rows& rows)
      : codes(a.weight), places(a.csr.edges), ahead(rows.ahead), last(rows.last) {}

  BGNN_INLINE_MEMBER int32_t code(int64_t p) const {
    if (!kPlaces) return codes[p];
    if (p < last) __builtin_prefetch(codes + places[p + ahead]);
    return codes[places[p]];
  }

  // visit(p) for the entries whose weight's flag is set; ends where that returns false, and returns it.
  template <class Visit>
  BGNN_INLINE_MEMBER bool each_flagged(const uint8_t* flag, int64_t begin, int64_t end, const Visit& visit) const {
#if defined(__AVX512VBMI__)
    if constexpr (!kPlaces) {
      const Table flags = load_table(flag);
      for (; begin < end; begin += 64) {
        const __mmask64 all = ~__mmask64(0) >> (end - begin < 64 ? 64 - (end - begin) : 0);
        const __m512i found = looked_up(_mm512_maskz_loadu_epi8(all, codes + begin), flags);
        for (uint64_t left = _mm512_mask_test_epi8_mask(all, found, found); left; left &= left - 1) {
          if (!visit(begin + __builtin_ctzll(left))) return false;
        }
      }
      return true;
    }
#endif
    for (int64_t p = begin; p < end; p++) {
      if (flag[codes[kPlaces ? places[p] : p]] && !visit(p)) return false;
    }
    return true;
  }
};

// Sums of x * (w - w_zp); returns what they contain too much, x_zp times the sum of the weights.
template <bool kPlaces, int kCount, class At, int kBytes>
BGNN_INLINE int32_t sum_products(const QAggregate& a, const Rows& rows, int64_t begin, int64_t end, const At& at,
                                 Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  const Weights<kPlaces> weights(a, rows);
  const int32_t w_zp = a.w_zp;
  int32_t total = 0;
  each_row<kBytes * kCount>(rows, at.first, begin, end, [&](int64_t p, const char* row) BGNN_LAMBDA {
    const int32_t weight = weights.code(p) - w_zp;
    total += weight;
#if defined(BGNN_GRAPH_NEON)
    if constexpr (kBytes == 16) {
      const int16x8_t by = vdupq_n_s16(int16_t(weight));
      for (int k = 0; k < kCount; k++) {
        const auto v = at.template load<uint8x16_t>(row, k);
        const auto low = (int16x8_t)vmovl_u8(vget_low_u8(v)), high = (int16x8_t)vmovl_high_u8(v);
        I32* column = sums[k].column;
        column[0] = (I32)vmlal_s16((int32x4_t)column[0], vget_low_s16(low), vget_low_s16(by));
        column[1] = (I32)vmlal_high_s16((int32x4_t)column[1], low, by);
        column[2] = (I32)vmlal_s16((int32x4_t)column[2], vget_low_s16(high), vget_low_s16(by));
        column[3] = (I32)vmlal_high_s16((int32x4_t)column[3], high, by);
      }
      return;
    }
#endif
    for (int k = 0; k < kCount; k++) {
      const U32 v = at.template load<U32>(row, k);
      for (int j = 0; j < 4; j++) sums[k].column[j] += (I32)(byte_of<kBytes>(v, j) * uint32_t(weight));
    }
  });
  return total * a.x_zp;
}

// A row's codes by a table, as vectors.
template <int kCount, class At, class Add>
BGNN_INLINE void look_up_row(const uint8_t* table, const At& at, const char* row, const Add& add) {
  constexpr int kBytes = At::kBytes;
  typedef typename Vectors<kBytes>::U16 U16;
#if defined(__AVX512VBMI__)
  if constexpr (kBytes == 64) {
    const Table loaded = load_table(table);
    for (int k = 0; k < kCount; k++) add(k, (U16)looked_up(_mm512_loadu_si512(row + k * kBytes), loaded));
    return;
  }
#endif
  uint8_t codes[kBytes * kCount];
  if constexpr (At::kHalf == 0) {
    look_up(table, reinterpret_cast<const uint8_t*>(row), codes, sizeof codes);
  } else {
    const U16 v = at.template load<U16>(row, 0);
    memcpy(codes, &v, kBytes);
    look_up(table, codes, codes, kBytes);
  }
  for (int k = 0; k < kCount; k++) add(k, load<U16>(codes + k * kBytes));
}

// Sums of requantised messages by tables.
template <bool kPlaces, int kCount, class At, int kBytes>
BGNN_INLINE void sum_by_tables(const QAggregate& a, const Rows& rows, int64_t begin, int64_t end, const At& at,
                               Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U16 U16;
  const Weights<kPlaces> weights(a, rows);
  const MessageTables& messages = *a.messages;
  sum_bytes<false, kCount>(rows, begin, end, at, sums, [&](int64_t p, const char* row, auto& sum) BGNN_LAMBDA {
    look_up_row<kCount>(messages.code[weights.code(p)], at, row,
                        [&](int k, U16 codes) BGNN_LAMBDA { sum.bytes(k, codes); });
  });
}

// The messages whose weights have no line. Not in the lines' loop: a call there costs it registers.
template <bool kPlaces, int kCount, class At, int kBytes>
__attribute__((noinline)) void sum_without_line(const QAggregate& a, const Rows& rows, int64_t begin, int64_t end,
                                                const At& at, Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U16 U16;
  const Weights<kPlaces> weights(a, rows);
  weights.each_flagged(a.messages->missing, begin, end, [&](int64_t p) {
    const uint8_t* table = a.messages->code[weights.code(p)];
    ByteSums<false, kBytes, kCount> codes;
    look_up_row<kCount>(table, at, rows.x + int64_t(rows.indices[p]) * rows.stride + at.first,
                        [&](int k, U16 found) { codes.bytes(k, found); });
    codes.add_to(sums);
    return true;
  });
}

// The same by lines, and by tables where there are none.
template <bool kSteep, bool kPlaces, int kCount, class At, int kBytes>
BGNN_INLINE void sum_by_lines(const QAggregate& a, const Rows& rows, int64_t begin, int64_t end, const At& at,
                              Sums<kBytes>* sums) {
  const Weights<kPlaces> weights(a, rows);
  const MessageLine* lines = a.messages->line;
  sum_bytes<true, kCount>(rows, begin, end, at, sums, [&](int64_t p, const char* row, auto& sum) BGNN_LAMBDA {
    sum.template by_line<kSteep>(at, row, lines[weights.code(p)]);
  });
  if (!a.messages->any_missing) return;
  if (weights.each_flagged(a.messages->missing, begin, end, [](int64_t) BGNN_LAMBDA { return false; })) return;
  Sums<kBytes> others[kCount] = {};
  sum_without_line<kPlaces, kCount>(a, rows, begin, end, at, others);
  for (int k = 0; k < kCount; k++) {
    for (int j = 0; j < 4; j++) sums[k].column[j] += others[k].column[j];
  }
}

// The largest codes; the zero point without entries.
template <int kCount, class At>
BGNN_INLINE void max_rows(const QAggregate& a, const Rows& rows, int64_t begin, int64_t end, const At& at, uint8_t* out) {
  constexpr int kBytes = At::kBytes;
  typedef typename Vectors<kBytes>::U8 U8;
  const uint8_t least = uint8_t(begin == end ? a.x_zp : 0);
  U8 most[kCount];
  for (int k = 0; k < kCount; k++) most[k] = U8{} + least;
  each_row<kBytes * kCount>(rows, at.first, begin, end, [&](int64_t, const char* row) BGNN_LAMBDA {
    for (int k = 0; k < kCount; k++) {
      const U8 v = at.template load<U8>(row, k);
      most[k] = v > most[k] ? v : most[k];
    }
  });
  for (int k = 0; k < kCount; k++) at.store(most[k], out, k);
}

BGNN_INLINE Requantise result_of(const QAggregate& a, int64_t entries) {
  Requantise q = a.result;
  if (a.reduce == kMean && entries > 1) q.multiplier = a.unit / (a.y_scale * float(entries));
  return q;
}

// Rows of less than 4 columns: rare, and not worth vectors.
void q_aggregate_narrow(const QAggregate& a, int64_t node) {
  const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
  const Requantise result = result_of(a, end - begin);
  for (int64_t c = 0; c < a.width; c++) {
    int32_t most = begin == end ? a.x_zp : 0;
    Vectors<4>::I32 sum = {};
    for (int64_t p = begin; p < end; p++) {
      const int32_t x = a.x[int64_t(a.csr.indices[p]) * a.width + c];
      most = x > most ? x : most;
      const int32_t weight = a.weight ? a.weight[a.csr.edges ? a.csr.edges[p] : p] : 1 + a.w_zp;
      sum += a.messages ? a.messages->code[weight][x] - a.message.zp : (x - a.x_zp) * (weight - a.w_zp);
    }
    a.out[node * a.width + c] = uint8_t(a.reduce == kMax ? most : code<4>(sum, result)[0]);
  }
}

enum { kPlain, kProducts, kTables, kLines, kSteepLines, kLargest };

// One block of columns of the nodes [first, last). A function of its own: in a larger one the compiler keeps sums in
// memory instead of registers.
template <int kWhat, bool kPlaces, int kCount, class At>
__attribute__((noinline)) void aggregate_block(const QAggregate& a, const Rows& rows, const At at, int64_t first,
                                               int64_t last) {
  constexpr int kBytes = At::kBytes;
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    uint8_t* out = a.out + node * a.width + at.first;
    if constexpr (kWhat == kLargest) {
      max_rows<kCount>(a, rows, begin, end, at, out);
    } else {
      Sums<kBytes> sums[kCount] = {};
      int32_t too_much;
      if constexpr (kWhat == kProducts) {
        too_much = sum_products<kPlaces, kCount>(a, rows, begin, end, at, sums);
      } else if constexpr (kWhat == kTables) {
        sum_by_tables<kPlaces, kCount>(a, rows, begin, end, at, sums);
        too_much = int32_t(end - begin) * a.message.zp;
      } else if constexpr (kWhat == kLines || kWhat == kSteepLines) {
        sum_by_lines<kWhat == kSteepLines, kPlaces, kCount>(a, rows, begin, end, at, sums);
        too_much = int32_t(end - begin) * a.message.zp;
      } else {
        sum_rows<kCount>(rows, begin, end, at, sums);
        too_much = int32_t(end - begin) * a.x_zp;
      }
      const Requantise result = result_of(a, end - begin);
      for (int k = 0; k < kCount; k++) at.store(codes_of<kBytes>(sums[k], too_much, result), out, k);
    }
  }
}

template <int kWhat, bool kPlaces, int kMost>
void aggregate_blocks(const QAggregate& a, const Rows& rows, int64_t first, int64_t last) {
#if defined(BGNN_GRAPH_NEON)  // whose shorter vectors are the compiler's matter
  if (a.width < 8) return aggregate_block<kWhat, kPlaces, 1>(a, rows, Columns<16, 4>{0, a.width - 4}, first, last);
  if (a.width < 16) return aggregate_block<kWhat, kPlaces, 1>(a, rows, Columns<16, 8>{0, a.width - 8}, first, last);
#endif
  each_block<kNative, kMost>(a.width, 1, [&](auto bytes, auto count, int64_t c) {
    aggregate_block<kWhat, kPlaces, decltype(count)::value>(a, rows, Columns<decltype(bytes)::value>{c, 0}, first, last);
  });
}

template <int kWhat, int kMost>
auto weighted_blocks(const QAggregate& a) {
  return a.csr.edges ? aggregate_blocks<kWhat, true, kMost> : aggregate_blocks<kWhat, false, kMost>;
}

void q_aggregate(const QAggregate* args, int64_t first, int64_t last) {
  const QAggregate a = *args;
  const Rows rows = rows_of(a.csr, a.x, a.width);
  auto run = weighted_blocks<kProducts, 2>(a);
  if (a.reduce == kMax) {
    run = aggregate_blocks<kLargest, false, kMostVectors>;
  } else if (!a.weight) {
    run = aggregate_blocks<kPlain, false, kMostVectors>;
  } else if (a.messages) {
#if defined(__AVX512VBMI__)
    run = a.messages->steep || !a.by_lines ? weighted_blocks<kTables, 2>(a) : weighted_blocks<kLines, 2>(a);
#else
    run = a.messages->steep ? weighted_blocks<kSteepLines, 4>(a) : weighted_blocks<kLines, 4>(a);
#endif
  }
  if (a.width >= 4) return run(a, rows, first, last);
  for (int64_t node = first; node < last; node++) q_aggregate_narrow(a, node);
}

// ---------------------------------------------------------------------------------------------- aggregate

template <int kBytes, int kCount, bool kWeighted, int kReduce>
__attribute__((noinline)) void reduce_rows(const Aggregate& a, const Rows& rows, int64_t c, int64_t first, int64_t last) {
  typedef typename Vectors<kBytes>::F32 F32;
  const float* weight = a.weight;
  const int32_t* places = a.csr.edges;
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    F32 total[kCount] = {};
    each_row<kBytes * kCount>(rows, c * 4, begin, end, [&](int64_t p, const char* row) BGNN_LAMBDA {
      for (int k = 0; k < kCount; k++) {
        F32 v = load<F32>(row + k * kBytes);
        if constexpr (kWeighted) v *= F32{} + weight[places ? places[p] : p];
        if constexpr (kReduce == kMax) {
          total[k] = p == begin ? v : ((v > total[k]) | (v != v)) ? v : total[k];
        } else {
          total[k] += v;
        }
      }
    });
    const F32 entries = F32{} + float(end - begin);
    for (int k = 0; k < kCount; k++) {
      if (kReduce == kMean && end > begin) total[k] /= entries;
      memcpy(a.out + node * a.width + c + k * (kBytes / 4), &total[k], kBytes);
    }
  }
}

template <bool kWeighted, int kReduce>
void aggregate_as(const Aggregate& a, int64_t first, int64_t last) {
  const Rows rows = rows_of(a.csr, a.x, a.width);
  each_block<kNative, kMostVectors>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
    reduce_rows<decltype(bytes)::value, decltype(count)::value, kWeighted, kReduce>(a, rows, c, first, last);
  });
}

void aggregate(const Aggregate* args, int64_t first, int64_t last) {
  const Aggregate a = *args;
  switch (a.reduce) {
    case kSum: return a.weight ? aggregate_as<true, kSum>(a, first, last) : aggregate_as<false, kSum>(a, first, last);
    case kMean: return a.weight ? aggregate_as<true, kMean>(a, first, last) : aggregate_as<false, kMean>(a, first, last);
    default: return a.weight ? aggregate_as<true, kMax>(a, first, last) : aggregate_as<false, kMax>(a, first, last);
  }
}

template <int kBytes, int kCount>
__attribute__((noinline)) void sum_int32(const Aggregate& a, const Rows& rows, int64_t c, int64_t first, int64_t last) {
  typedef typename Vectors<kBytes>::U32 U32;
  for (int64_t node = first; node < last; node++) {
    U32 total[kCount] = {};
    each_row<kBytes * kCount>(rows, c * 4, a.csr.indptr[node], a.csr.indptr[node + 1],
                              [&](int64_t, const char* row) BGNN_LAMBDA {
                                for (int k = 0; k < kCount; k++) total[k] += load<U32>(row + k * kBytes);
                              });
    for (int k = 0; k < kCount; k++) memcpy(a.out + node * a.width + c + k * (kBytes / 4), &total[k], kBytes);
  }
}

void aggregate_int32(const Aggregate* args, int64_t first, int64_t last) {
  const Aggregate a = *args;
  const Rows rows = rows_of(a.csr, a.x, a.width);
  each_block<kNative, kMostVectors>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
    sum_int32<decltype(bytes)::value, decltype(count)::value>(a, rows, c, first, last);
  });
}

// ---------------------------------------------------------------------------------------------- attention

// e^x for x <= 0, within 2 ulp; 0 below -87. Degree-6 polynomial on [-ln 2 / 2, ln 2 / 2], plain.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::F32 exponential(typename Vectors<kBytes>::F32 x) {
  typedef typename Vectors<kBytes>::F32 F32;
  typedef typename Vectors<kBytes>::U32 U32;
  const F32 least = F32{} - 87.0f, safe = x > least ? x : least;
  const F32 shifted = safe * 1.44269504f + kMagic, n = shifted - kMagic;
  F32 r = safe - n * 0.693359375f;  // exact: this part of ln 2 has few bits
  r = r - n * -2.12194440e-4f;
  F32 y = F32{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  const F32 square = r * r;
  y = y * square + r;
  y = y + 1.0f;
  const F32 power = (F32)(((U32)shifted - uint32_t(kMagicBits) + 127u) << 23);
  y *= power;
  // NaN is not greater than anything: it must stay one.
  return x > least ? y : (x == x ? F32{} : x);
}

// The code of `real`, minus its zero point, with `zp` added.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 quantised(typename Vectors<kBytes>::F32 real, const Quantiser& q, int32_t zp) {
  typedef typename Vectors<kBytes>::F32 F32;
  return rounded<kBytes>(real / (F32{} + q.scale), Requantise{1, q.zp, q.low, q.high}, zp);
}

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::F32 larger(typename Vectors<kBytes>::F32 v, typename Vectors<kBytes>::F32 most) {
  return ((v > most) | (v != v)) ? v : most;  // a NaN stays
}

// Softmax over values [count], in place: lanes are entries.
BGNN_INLINE void softmax_of_one(float* values, int64_t count) {
  typedef Vectors<4>::F32 One;
  typedef typename Vectors<kNative>::F32 Many;
  constexpr int64_t kLanes = kNative / 4;
  One most = {}, total = {};
  int64_t next = 1;
  if (count) most = load<One>(values);
  if (count >= kLanes) {
    Many lanes = load<Many>(values);
    for (next = kLanes; next + kLanes <= count; next += kLanes) lanes = larger<kNative>(load<Many>(values + next), lanes);
    for (int l = 0; l < kLanes; l++) most = larger<4>(One{} + lanes[l], most);
  }
  for (; next < count; next++) most = larger<4>(load<One>(values + next), most);
  each_part<kNative>(0, count, [&](auto bytes, int64_t j) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    const F32 e = exponential<kBytes>(load<F32>(values + j) - most[0]);
    memcpy(values + j, &e, kBytes);
  });
  for (int64_t j = 0; j < count; j++) total += load<One>(values + j);
  total += 1e-16f;
  each_part<kNative>(0, count, [&](auto bytes, int64_t j) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    const F32 e = load<F32>(values + j) / (F32{} + total[0]);
    memcpy(values + j, &e, kBytes);
  });
}

// The same of values [count, heads], per head: lanes are heads.
BGNN_INLINE void softmax(float* values, int64_t count, int64_t heads) {
  if (heads == 1) return softmax_of_one(values, count);
  each_part<kNative>(0, heads, [&](auto bytes, int64_t h) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    float* at = values + h;
    F32 most = {}, total = {};
    for (int64_t j = 0; j < count; j++) {
      const F32 v = load<F32>(at + j * heads);
      most = j ? larger<kBytes>(v, most) : v;
    }
    for (int64_t j = 0; j < count; j++) {
      const F32 e = exponential<kBytes>(load<F32>(at + j * heads) - most);
      total += e;
      memcpy(at + j * heads, &e, kBytes);
    }
    total += 1e-16f;
    for (int64_t j = 0; j < count; j++) {
      const F32 e = load<F32>(at + j * heads) / total;
      memcpy(at + j * heads, &e, kBytes);
    }
  });
}

void segment_softmax(const SegmentSoftmax* args, float* values, int64_t first, int64_t last) {
  const SegmentSoftmax a = *args;
  const size_t row = size_t(a.heads) * 4;
  for (int64_t node = first; node < last; node++) {
    const int32_t* edges = a.csr.indices + a.csr.indptr[node];
    const int64_t count = a.csr.indptr[node + 1] - a.csr.indptr[node];
    for (int64_t j = 0; j < count; j++) memcpy(values + j * a.heads, a.values + edges[j] * a.heads, row);
    softmax(values, count, a.heads);
    for (int64_t j = 0; j < count; j++) memcpy(a.out + edges[j] * a.heads, values + j * a.heads, row);
  }
}

// leaky_relu(from + to) of a node's entries, quantised before where that is asked for: values [entries, heads].
BGNN_INLINE void scores(const GatAggregate& a, const Rows& rows, int64_t node, float* values) {
  const int64_t begin = a.csr.indptr[node], count = a.csr.indptr[node + 1] - begin, heads = a.heads;
  each_part<kNative>(0, heads, [&](auto bytes, int64_t h) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    const F32 to = load<F32>(a.to + node * heads + h);
    each_row<kBytes>(rows, h * 4, begin, begin + count, [&](int64_t p, const char* row) BGNN_LAMBDA {
      const F32 e = load<F32>(row) + to;
      memcpy(values + (p - begin) * heads + h, &e, kBytes);
    });
  });
  each_part<kNative>(0, count * heads, [&](auto bytes, int64_t i) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    F32 e = load<F32>(values + i);
    if (a.score.scale != 0) e = __builtin_convertvector(quantised<kBytes>(e, a.score, 0), F32) * a.score.scale;
    e = e > 0 ? e : e * a.slope;
    memcpy(values + i, &e, kBytes);
  });
}

// Each lane's weight: that of its head. `heads`: the lanes' heads, of which the first is `first`.
template <int kBytes, bool kOneHead>
BGNN_INLINE typename Vectors<kBytes>::F32 lane_weights(const float* weights, int64_t first,
                                                       typename Vectors<kBytes>::I32 heads) {
  typedef typename Vectors<kBytes>::F32 F32;
  if constexpr (kOneHead) return F32{} + weights[first];
#ifdef __clang__  // has no shuffle by a vector of places
  F32 found;
  for (int lane = 0; lane < kBytes / 4; lane++) found[lane] = weights[heads[lane]];
  return found;
#else
  return __builtin_shuffle(load<F32>(weights + first), heads - int32_t(first));
#endif
}

// The weighted sum of a node's rows, columns from `c` on; `weights` [entries, heads].
template <int kBytes, int kCount, bool kOneHead>
BGNN_INLINE void attend(const GatAggregate& a, const Rows& rows, int64_t node, int64_t c, const int32_t* lane_heads,
                        const float* weights) {
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels, begin = a.csr.indptr[node], end = a.csr.indptr[node + 1], each = a.heads;
  constexpr int64_t kLanes = kBytes / 4;
  I32 heads[kCount];
  for (int k = 0; k < kCount; k++) heads[k] = load<I32>(lane_heads + c + k * kLanes);
  F32 sum[kCount] = {};
  each_row<kBytes * kCount>(rows, c * 4, begin, end, [&](int64_t p, const char* row) BGNN_LAMBDA {
    for (int k = 0; k < kCount; k++) {
      const F32 weight = lane_weights<kBytes, kOneHead>(weights + (p - begin) * each, heads[k][0], heads[k]);
      sum[k] += weight * load<F32>(row + k * kBytes);
    }
  });
  for (int k = 0; k < kCount; k++) memcpy(a.out + node * width + c + k * kLanes, &sum[k], kBytes);
}

// The same on codes: 4 columns, of one head, in every lane.
template <int kBytes, int kCount, bool kOneHead>
BGNN_INLINE void attend_codes(const GatAggregate& a, const Rows& rows, int64_t node, int64_t c,
                              const int32_t* lane_heads, const float* weights) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels, begin = a.csr.indptr[node], end = a.csr.indptr[node + 1], each = a.heads;
  I32 heads[kCount];
  for (int k = 0; k < kCount; k++) heads[k] = load<I32>(lane_heads + c / 4 + k * (kBytes / 4));
  Sums<kBytes> sums[kCount] = {};
  const Quantiser message = a.message;
  const int32_t x_zp = a.x_zp;
  const float x_scale = a.x_scale;
  each_row<kBytes * kCount>(rows, c, begin, end, [&](int64_t p, const char* row) BGNN_LAMBDA {
#if defined(BGNN_GRAPH_NEON)
    if constexpr (kBytes == 16) {
      for (int k = 0; k < kCount; k++) {
        const uint8x16_t v = vld1q_u8(reinterpret_cast<const uint8_t*>(row) + k * kBytes);
        const uint8x16_t zp = vdupq_n_u8(uint8_t(x_zp));
        const auto low = (int16x8_t)vsubl_u8(vget_low_u8(v), vget_low_u8(zp)), high = (int16x8_t)vsubl_high_u8(v, zp);
        const int32x4_t codes[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                    vmovl_high_s16(high)};
        for (int i = 0; i < 4; i++) {
          const float weight = weights[(p - begin) * each + heads[k][kOneHead ? 0 : i]];
          sums[k].column[i] += quantised<kBytes>(weight * (vcvtq_f32_s32(codes[i]) * x_scale), message, 0);
        }
      }
      return;
    }
#endif
    for (int k = 0; k < kCount; k++) {
      const F32 weight = lane_weights<kBytes, kOneHead>(weights + (p - begin) * each, heads[k][0], heads[k]);
      const U32 v = load<U32>(row + k * kBytes);
      for (int i = 0; i < 4; i++) {
        const F32 x = __builtin_convertvector((I32)byte_of<kBytes>(v, i) - x_zp, F32) * x_scale;
        sums[k].column[i] += quantised<kBytes>(weight * x, message, 0);
      }
    }
  });
  for (int k = 0; k < kCount; k++) {
    const auto codes = codes_of<kBytes>(sums[k], 0, a.result);
    memcpy(a.out_codes + node * width + c + k * kBytes, &codes, kBytes);
  }
}

// Codes of which four neighbours may belong to two heads, or that are fewer than four: rare.
void attend_codes_singly(const GatAggregate& a, int64_t node, const float* weights) {
  const int64_t width = a.heads * a.channels;
  for (int64_t c = 0; c < width; c++) {
    const float* weight = weights + c / a.channels;
    Vectors<4>::I32 sum = {};
    for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, weight += a.heads) {
      const float x = float(a.codes[int64_t(a.csr.indices[p]) * width + c] - a.x_zp) * a.x_scale;
      sum += quantised<4>(Vectors<4>::F32{} + *weight * x, a.message, 0);
    }
    a.out_codes[node * width + c] = uint8_t(code<4>(sum, a.result)[0]);
  }
}

void gat_aggregate(const GatAggregate* args, float* scratch, int64_t first, int64_t last) {
  const GatAggregate a = *args;
  const int64_t width = a.heads * a.channels, columns = a.codes ? 4 : 1;  // of a lane
  const Rows rows = a.codes ? rows_of(a.csr, a.codes, width) : rows_of(a.csr, a.x, width);
  const Rows from = rows_of(a.csr, a.from, a.heads);
  int32_t* lane_heads = reinterpret_cast<int32_t*>(scratch);
  for (int64_t lane = 0; lane * columns < width; lane++) {
    lane_heads[lane] = a.heads == 1 ? 0 : int32_t(lane * columns / a.channels);
  }
  float* weights = scratch + width;
  for (int64_t node = first; node < last; node++) {
    scores(a, from, node, weights);
    softmax(weights, a.csr.indptr[node + 1] - a.csr.indptr[node], a.heads);
    const auto block = [&](auto bytes, auto count, int64_t c) {
      constexpr int kBytes = decltype(bytes)::value, kCount = decltype(count)::value;
      // One head in each vector, for all of the block's vectors?
      const bool one = a.heads == 1 || (a.channels % (kBytes / 4 * columns) == 0 && c % (kBytes / 4 * columns) == 0);
      if (a.codes) {
        one ? attend_codes<kBytes, kCount, true>(a, rows, node, c, lane_heads, weights)
            : attend_codes<kBytes, kCount, false>(a, rows, node, c, lane_heads, weights);
      } else {
        one ? attend<kBytes, kCount, true>(a, rows, node, c, lane_heads, weights)
            : attend<kBytes, kCount, false>(a, rows, node, c, lane_heads, weights);
      }
    };
    if (!a.codes) {
      each_block<kNative, kMostVectors>(width, 4, block);
    } else if (width < 4 || (a.heads > 1 && a.channels % 4 != 0)) {
      attend_codes_singly(a, node, weights);
    } else {
      each_block<kNative, 2>(width, 1, block);
    }
  }
}

// ---------------------------------------------------------------------------------------------- edge_product

// a times b for the nodes from `node` on whose entries end by `stop`; returns the first node that is left.
BGNN_INLINE int64_t multiply(const EdgeProduct& a, int64_t node, int64_t last, int64_t begin, int64_t stop, float* out) {
  for (; node < last && a.csr.indptr[node + 1] <= stop; node++) {
    const float own = a.b[node];
    for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++) out[p - begin] = a.a[a.csr.indices[p]] * own;
  }
  return node;
}

void edge_product(const EdgeProduct* args, int64_t first, int64_t last) {
  const EdgeProduct a = *args;
  if (a.out) {
    multiply(a, first, last, 0, INT64_MAX, a.out);
    return;
  }
  constexpr int64_t kPiece = 4096;
  float products[kPiece];
  for (int64_t node = first; node < last;) {
    // As many nodes as fit; a node with more entries than that in pieces.
    int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    const auto quantise = [&](int64_t from, int64_t count) {
      each_part<kNative>(0, count, [&](auto bytes, int64_t i) {
        constexpr int kBytes = decltype(bytes)::value, kLanes = kBytes / 4;
        const auto codes = quantised<kBytes>(load<typename Vectors<kBytes>::F32>(products + i), a.quantiser, a.quantiser.zp);
        for (int l = 0; l < kLanes; l++) a.codes[from + i + l] = uint8_t(codes[l]);
      });
    };
    if (end - begin <= kPiece) {
      const int64_t next = multiply(a, node, last, begin, begin + kPiece, products);
      quantise(begin, int64_t(a.csr.indptr[next]) - begin);
      node = next;
      continue;
    }
    for (; begin < end; begin += kPiece) {
      const int64_t count = end - begin < kPiece ? end - begin : kPiece;
      for (int64_t i = 0; i < count; i++) products[i] = a.a[a.csr.indices[begin + i]] * a.b[node];
      quantise(begin, count);
    }
    node++;
  }
}

// ---------------------------------------------------------------------------------------------- indices

int64_t first_bad_index(const int32_t* index, int64_t first, int64_t last, int64_t count) {
  const uint32_t limit = count > INT32_MAX ? uint32_t(INT32_MAX) : uint32_t(count);
  uint32_t bad = 0;
  for (int64_t p = first; p < last; p++) bad |= uint32_t(uint32_t(index[p]) >= limit);
  if (!bad) return last;
  for (int64_t p = first; p < last; p++) {
    if (uint32_t(index[p]) >= limit) return p;
  }
  return last;
}

}  // namespace

#define BGNN_GRAPH_KERNELS(isa) {isa, q_aggregate, aggregate, aggregate_int32, gat_aggregate, segment_softmax, edge_product, q_table, first_bad_index}

#endif
