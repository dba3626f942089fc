// The kernels of graph_kernels.h on the compiler's own vectors, for whatever instruction set the including file is
// compiled for. Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_GRAPH_GENERIC_H
#define BGNN_GRAPH_GENERIC_H

#include <string.h>

#include "graph_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define BGNN_INLINE static inline __attribute__((always_inline))
#define BGNN_INLINE_MEMBER inline __attribute__((always_inline))

namespace {

#if defined(__AVX512BW__)
constexpr int kNative = 64;
#elif defined(__AVX2__)
constexpr int kNative = 32;
#else
constexpr int kNative = 16;
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
// bytes of rows are asked for ahead, whatever node they belong to: half of a first-level cache.
constexpr int64_t kAheadBytes = 16 * 1024, kMostAhead = 128, kLeastAhead = 8;
constexpr int64_t kMostLines = 16;  // of one row; the processor's own prefetcher does the rest

struct Ahead {
  int64_t entries, last, bytes, tail;
};

BGNN_INLINE Ahead ahead_of(const Csr& csr, int64_t row_bytes) {
  int64_t entries = kAheadBytes / (row_bytes + 1);
  entries = entries > kMostAhead ? kMostAhead : entries < kLeastAhead ? kLeastAhead : entries;
  const int64_t bytes = row_bytes < kMostLines * 64 ? row_bytes : kMostLines * 64;
  // A row that does not start with a cache line ends one line later.
  return {entries, csr.entries - entries, bytes, row_bytes % 64 != 0 ? bytes - 1 : 0};
}

template <class T>
BGNN_INLINE void prefetch_row(const Csr& csr, const Ahead& ahead, int64_t p, const T* x, int64_t width) {
  if (p >= ahead.last) return;
  const char* row = reinterpret_cast<const char*>(x + int64_t(csr.indices[p + ahead.entries]) * width);
  for (int64_t at = 0; at < ahead.bytes; at += 64) __builtin_prefetch(row + at);
  if (ahead.tail) __builtin_prefetch(row + ahead.tail);
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
  if constexpr (kMost >= 4) {
    for (; c + 4 * step <= width; c += 4 * step) block(Tag<kBytes>(), Tag<4>(), c);
  }
  if constexpr (kMost >= 2) {
    for (; c + 2 * step <= width; c += 2 * step) block(Tag<kBytes>(), Tag<2>(), c);
  }
  for (; c + step <= width; c += step) block(Tag<kBytes>(), Tag<1>(), c);
  if (c < width) block(Tag<kBytes>(), Tag<1>(), width - step);
}

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

// Within [low - zp, high - zp], before the zero point is added; as float bits that start at kMagicBits.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 rounded_bits(typename Vectors<kBytes>::F32 scaled, const Requantise& q) {
  typedef typename Vectors<kBytes>::F32 F32;
  const F32 low = F32{} + float(q.low - q.zp), high = F32{} + float(q.high - q.zp);
  scaled = scaled > low ? scaled : low;
  scaled = scaled < high ? scaled : high;
  scaled += F32{} + kMagic;
  return (typename Vectors<kBytes>::I32)scaled;
}

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 code(typename Vectors<kBytes>::I32 acc, const Requantise& q) {
  typedef typename Vectors<kBytes>::F32 F32;
  const F32 scaled = __builtin_convertvector(acc, F32) * (F32{} + q.multiplier);
  return rounded_bits<kBytes>(scaled, q) + (q.zp - kMagicBits);
}

// The sums of 4 * lanes columns: sums[j] lane l belongs to column 4 l + j, the byte j of 32-bit lane l. Unpacking
// bytes this way needs no shuffles.
template <int kBytes>
struct Sums {
  typename Vectors<kBytes>::I32 column[4];
};

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::U32 byte_of(typename Vectors<kBytes>::U32 v, int j) {
  return j == 3 ? v >> 24 : (v >> (8 * j)) & 0xffu;
}

template <int kBytes>
BGNN_INLINE void write_codes(const Sums<kBytes>& sums, int32_t correction, const Requantise& q, uint8_t* out) {
  typedef typename Vectors<kBytes>::U32 U32;
  U32 packed = {};
  for (int j = 0; j < 4; j++) packed |= (U32)code<kBytes>(sums.column[j] - correction, q) << (8 * j);
  memcpy(out, &packed, kBytes);
}

// ---------------------------------------------------------------------------------------------- q_aggregate

constexpr int64_t kByteRows = 257;  // as many bytes' sum fits 16 bits

// Sums of bytes. Even bytes are summed together with the odd ones above them, and these once more alone.
// bytes(p, at): what entry p adds, from its row at `at`.
template <int kBytes, int kCount, class Bytes>
BGNN_INLINE void sum_bytes(const QAggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead,
                           Sums<kBytes>* sums, const Bytes& bytes) {
  typedef typename Vectors<kBytes>::U16 U16;
  typedef typename Vectors<kBytes>::U32 U32;
  for (int64_t p = begin; p < end;) {
    const int64_t stop = end - p < kByteRows ? end : p + kByteRows;
    U16 all[kCount] = {}, odd[kCount] = {};
    for (; p < stop; p++) {
      if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
      const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
      for (int k = 0; k < kCount; k++) {
        const U16 v = bytes(p, row + k * kBytes);
        all[k] += v;
        odd[k] += v >> 8;
      }
    }
    for (int k = 0; k < kCount; k++) {
      const U32 even = (U32)(all[k] - (odd[k] << 8)), high = (U32)odd[k];
      sums[k].column[0] += (typename Vectors<kBytes>::I32)(even & 0xffffu);
      sums[k].column[1] += (typename Vectors<kBytes>::I32)(high & 0xffffu);
      sums[k].column[2] += (typename Vectors<kBytes>::I32)(even >> 16);
      sums[k].column[3] += (typename Vectors<kBytes>::I32)(high >> 16);
    }
  }
}

template <int kBytes, int kCount>
BGNN_INLINE void sum_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead,
                          Sums<kBytes>* sums) {
  sum_bytes<kBytes, kCount>(a, begin, end, c, ahead, sums, [](int64_t, const uint8_t* at) {
    return load<typename Vectors<kBytes>::U16>(at);
  });
}

// Weights that are reached through `edges` lie anywhere, like rows.
BGNN_INLINE void prefetch_weight(const QAggregate& a, const Ahead& ahead, int64_t p) {
  if (a.csr.edges && p < ahead.last) __builtin_prefetch(a.weight + a.csr.edges[p + ahead.entries]);
}

BGNN_INLINE int32_t weight_of(const QAggregate& a, int64_t p) {
  return a.weight ? int32_t(a.weight[a.csr.edges ? a.csr.edges[p] : p]) - a.w_zp : 1;
}

template <int kBytes, int kCount>
BGNN_INLINE void sum_weighted_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead,
                                   Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U32 U32;
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
    const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
    const U32 weight = U32{} + uint32_t(weight_of(a, p));
    for (int k = 0; k < kCount; k++) {
      const U32 v = load<U32>(row + k * kBytes);
      for (int j = 0; j < 4; j++) sums[k].column[j] += (typename Vectors<kBytes>::I32)(byte_of<kBytes>(v, j) * weight);
    }
  }
}

// The sum of requantised messages, minus their zero points. |x - x_zp| * |w - w_zp| < 2^24: exact as a float.
template <int kBytes, int kCount>
BGNN_INLINE void sum_messages(const QAggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead,
                              Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
#if defined(__AVX512VBMI__)
  // The whole function of (x, w) stands in a table: 256 bytes for each w, four vectors to permute.
  if constexpr (kBytes == 64) {
    sum_bytes<kBytes, kCount>(a, begin, end, c, ahead, sums, [&](int64_t p, const uint8_t* at) {
      if (c == 0) prefetch_weight(a, ahead, p);
      const uint8_t* codes = a.table + 256 * int64_t(a.weight[a.csr.edges ? a.csr.edges[p] : p]);
      const __m512i x = _mm512_loadu_si512(at);
      const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(codes), x, _mm512_loadu_si512(codes + 64));
      const __m512i high =
          _mm512_permutex2var_epi8(_mm512_loadu_si512(codes + 128), x, _mm512_loadu_si512(codes + 192));
      return (typename Vectors<kBytes>::U16)_mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
    });
    for (int k = 0; k < kCount; k++) {
      for (int j = 0; j < 4; j++) sums[k].column[j] -= int32_t(end - begin) * a.message.zp;
    }
    return;
  }
#endif
  const F32 multiplier = F32{} + a.message.multiplier, x_zp = F32{} + float(a.x_zp);
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
    const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
    if (c == 0) prefetch_weight(a, ahead, p);
    const F32 weight = F32{} + float(weight_of(a, p));
    for (int k = 0; k < kCount; k++) {
      const U32 v = load<U32>(row + k * kBytes);
      for (int j = 0; j < 4; j++) {
        const F32 product = (__builtin_convertvector((I32)byte_of<kBytes>(v, j), F32) - x_zp) * weight;
        sums[k].column[j] += rounded_bits<kBytes>(product * multiplier, a.message) - kMagicBits;
      }
    }
  }
}

// What the sums of products contain too much: x_zp times the sum of the weights.
BGNN_INLINE int32_t weights_times_zp(const QAggregate& a, const Ahead& ahead, int64_t begin, int64_t end) {
  int32_t total = 0;
  for (int64_t p = begin; p < end; p++) {
    prefetch_weight(a, ahead, p);
    total += weight_of(a, p);
  }
  return total * a.x_zp;
}

// The largest codes; the zero point without entries.
template <int kBytes, int kCount>
BGNN_INLINE void max_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead,
                          uint8_t* out) {
  typedef typename Vectors<kBytes>::U8 U8;
  const uint8_t least = uint8_t(begin == end ? a.x_zp : 0);
  U8 most[kCount];
  for (int k = 0; k < kCount; k++) most[k] = U8{} + least;
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
    const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
    for (int k = 0; k < kCount; k++) {
      const U8 v = load<U8>(row + k * kBytes);
      most[k] = v > most[k] ? v : most[k];
    }
  }
  for (int k = 0; k < kCount; k++) memcpy(out + c + k * kBytes, &most[k], kBytes);
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
      Vectors<4>::I32 m = Vectors<4>::I32{} + (x - a.x_zp) * weight_of(a, p);
      if (a.message.multiplier != 0) m = code<4>(m, a.message) - a.message.zp;
      sum += m;
    }
    a.out[node * a.width + c] = uint8_t(a.reduce == kMax ? most : code<4>(sum, result)[0]);
  }
}

// sum(tag of bytes, tag of vectors, first column, sums) for all columns of a node; its codes are written.
template <int kMost, class Sum>
BGNN_INLINE void each_sum(const QAggregate& a, int64_t node, int32_t correction, const Sum& sum) {
  const Requantise result = result_of(a, a.csr.indptr[node + 1] - a.csr.indptr[node]);
  uint8_t* out = a.out + node * a.width;
  each_block<kNative, kMost>(a.width, 1, [&](auto bytes, auto count, int64_t c) {
    constexpr int kBytes = decltype(bytes)::value, kCount = decltype(count)::value;
    Sums<kBytes> sums[kCount] = {};
    sum(bytes, count, c, sums);
    for (int k = 0; k < kCount; k++) write_codes<kBytes>(sums[k], correction, result, out + c + k * kBytes);
  });
}

void q_aggregate(const QAggregate* args, int64_t first, int64_t last) {
  const QAggregate a = *args;
  const Ahead ahead = ahead_of(a.csr, a.width);
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    if (a.width < 4) {
      q_aggregate_narrow(a, node);
    } else if (a.reduce == kMax) {
      each_block<kNative, 4>(a.width, 1, [&](auto bytes, auto count, int64_t c) {
        max_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, ahead, a.out + node * a.width);
      });
    } else if (a.message.multiplier != 0) {
      each_sum<2>(a, node, 0, [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_messages<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, ahead, sums);
      });
    } else if (a.weight) {
      each_sum<2>(a, node, weights_times_zp(a, ahead, begin, end), [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_weighted_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, ahead, sums);
      });
    } else {
      each_sum<4>(a, node, int32_t(end - begin) * a.x_zp, [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, ahead, sums);
      });
    }
  }
}

// ---------------------------------------------------------------------------------------------- aggregate

BGNN_INLINE float weight_of(const Aggregate& a, int64_t p) {
  return a.weight[a.csr.edges ? a.csr.edges[p] : p];
}

template <int kBytes, int kCount, bool kWeighted, int kReduce>
BGNN_INLINE void reduce_rows(const Aggregate& a, int64_t begin, int64_t end, int64_t c, const Ahead& ahead, float* out) {
  typedef typename Vectors<kBytes>::F32 F32;
  F32 total[kCount] = {};
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
    const float* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
    for (int k = 0; k < kCount; k++) {
      F32 v = load<F32>(row + k * (kBytes / 4));
      if constexpr (kWeighted) v *= F32{} + weight_of(a, p);
      if constexpr (kReduce == kMax) {
        total[k] = p == begin ? v : (v > total[k]) | (v != v) ? v : total[k];
      } else {
        total[k] += v;
      }
    }
  }
  const F32 count = F32{} + float(end - begin);
  for (int k = 0; k < kCount; k++) {
    if (kReduce == kMean && end > begin) total[k] /= count;
    memcpy(out + c + k * (kBytes / 4), &total[k], kBytes);
  }
}

template <bool kWeighted, int kReduce>
void aggregate_as(const Aggregate& a, int64_t first, int64_t last) {
  const Ahead ahead = ahead_of(a.csr, a.width * 4);
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    float* out = a.out + node * a.width;
    each_block<kNative, 4>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
      reduce_rows<decltype(bytes)::value, decltype(count)::value, kWeighted, kReduce>(a, begin, end, c, ahead, out);
    });
  }
}

void aggregate(const Aggregate* args, int64_t first, int64_t last) {
  const Aggregate a = *args;
  switch (a.reduce) {
    case kSum: return a.weight ? aggregate_as<true, kSum>(a, first, last) : aggregate_as<false, kSum>(a, first, last);
    case kMean: return a.weight ? aggregate_as<true, kMean>(a, first, last) : aggregate_as<false, kMean>(a, first, last);
    default: return a.weight ? aggregate_as<true, kMax>(a, first, last) : aggregate_as<false, kMax>(a, first, last);
  }
}

void aggregate_int32(const AggregateInt32* args, int64_t first, int64_t last) {
  const AggregateInt32 a = *args;
  const Ahead ahead = ahead_of(a.csr, a.width * 4);
  for (int64_t node = first; node < last; node++) {
    each_block<kNative, 4>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
      constexpr int kBytes = decltype(bytes)::value, kCount = decltype(count)::value;
      typedef typename Vectors<kBytes>::U32 U32;
      U32 total[kCount] = {};
      for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++) {
        if (c == 0) prefetch_row(a.csr, ahead, p, a.x, a.width);
        const int32_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
        for (int k = 0; k < kCount; k++) total[k] += load<U32>(row + k * (kBytes / 4));
      }
      for (int k = 0; k < kCount; k++) memcpy(a.out + node * a.width + c + k * (kBytes / 4), &total[k], kBytes);
    });
  }
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

// The code of `real`, minus its zero point, as float bits that start at kMagicBits.
template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::I32 quantised_bits(typename Vectors<kBytes>::F32 real, const Quantiser& q) {
  typedef typename Vectors<kBytes>::F32 F32;
  return rounded_bits<kBytes>(real / (F32{} + q.scale), Requantise{1, q.zp, q.low, q.high});
}

template <int kBytes>
BGNN_INLINE typename Vectors<kBytes>::F32 larger(typename Vectors<kBytes>::F32 v, typename Vectors<kBytes>::F32 most) {
  return (v > most) | (v != v) ? v : most;  // a NaN stays
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
BGNN_INLINE void scores(const GatAggregate& a, const Ahead& ahead, int64_t node, float* values) {
  const int64_t begin = a.csr.indptr[node], count = a.csr.indptr[node + 1] - begin, heads = a.heads;
  each_part<kNative>(0, heads, [&](auto bytes, int64_t h) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    const F32 to = load<F32>(a.to + node * heads + h);
    for (int64_t j = 0; j < count; j++) {
      if (h == 0) prefetch_row(a.csr, ahead, begin + j, a.from, heads);
      const F32 e = load<F32>(a.from + int64_t(a.csr.indices[begin + j]) * heads + h) + to;
      memcpy(values + j * heads + h, &e, kBytes);
    }
  });
  each_part<kNative>(0, count * heads, [&](auto bytes, int64_t i) {
    constexpr int kBytes = decltype(bytes)::value;
    typedef typename Vectors<kBytes>::F32 F32;
    F32 e = load<F32>(values + i);
    if (a.score.scale != 0) e = __builtin_convertvector(quantised_bits<kBytes>(e, a.score) - kMagicBits, F32) * a.score.scale;
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
  return __builtin_shuffle(load<F32>(weights + first), heads - int32_t(first));
}

// The weighted sum of a node's rows, columns from `c` on; `weights` [entries, heads].
template <int kBytes, int kCount, bool kOneHead>
BGNN_INLINE void attend(const GatAggregate& a, const Ahead& ahead, int64_t node, int64_t c, const int32_t* lane_heads,
                        const float* weights) {
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels, begin = a.csr.indptr[node], count = a.csr.indptr[node + 1] - begin;
  constexpr int64_t kLanes = kBytes / 4;
  I32 heads[kCount];
  for (int k = 0; k < kCount; k++) heads[k] = load<I32>(lane_heads + c + k * kLanes);
  F32 sum[kCount] = {};
  for (int64_t j = 0; j < count; j++) {
    if (c == 0) prefetch_row(a.csr, ahead, begin + j, a.x, width);
    const float* row = a.x + int64_t(a.csr.indices[begin + j]) * width + c;
    for (int k = 0; k < kCount; k++) {
      const F32 weight = lane_weights<kBytes, kOneHead>(weights + j * a.heads, heads[k][0], heads[k]);
      sum[k] += weight * load<F32>(row + k * kLanes);
    }
  }
  for (int k = 0; k < kCount; k++) memcpy(a.out + node * width + c + k * kLanes, &sum[k], kBytes);
}

// The same on codes: 4 columns, of one head, in every lane.
template <int kBytes, int kCount, bool kOneHead>
BGNN_INLINE void attend_codes(const GatAggregate& a, const Ahead& ahead, int64_t node, int64_t c,
                              const int32_t* lane_heads, const float* weights) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels, begin = a.csr.indptr[node], count = a.csr.indptr[node + 1] - begin;
  I32 heads[kCount];
  for (int k = 0; k < kCount; k++) heads[k] = load<I32>(lane_heads + c / 4 + k * (kBytes / 4));
  Sums<kBytes> sums[kCount] = {};
  for (int64_t j = 0; j < count; j++) {
    if (c == 0) prefetch_row(a.csr, ahead, begin + j, a.codes, width);
    const uint8_t* row = a.codes + int64_t(a.csr.indices[begin + j]) * width + c;
    for (int k = 0; k < kCount; k++) {
      const F32 weight = lane_weights<kBytes, kOneHead>(weights + j * a.heads, heads[k][0], heads[k]);
      const U32 v = load<U32>(row + k * kBytes);
      for (int i = 0; i < 4; i++) {
        const F32 x = __builtin_convertvector((I32)byte_of<kBytes>(v, i) - a.x_zp, F32) * a.x_scale;
        sums[k].column[i] += quantised_bits<kBytes>(weight * x, a.message) - kMagicBits;
      }
    }
  }
  for (int k = 0; k < kCount; k++) write_codes<kBytes>(sums[k], 0, a.result, a.out_codes + node * width + c + k * kBytes);
}

// Codes of which four neighbours may belong to two heads, or that are fewer than four: rare.
void attend_codes_singly(const GatAggregate& a, int64_t node, const float* weights) {
  const int64_t width = a.heads * a.channels;
  for (int64_t c = 0; c < width; c++) {
    const float* weight = weights + c / a.channels;
    Vectors<4>::I32 sum = {};
    for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, weight += a.heads) {
      const float x = float(a.codes[int64_t(a.csr.indices[p]) * width + c] - a.x_zp) * a.x_scale;
      sum += quantised_bits<4>(Vectors<4>::F32{} + *weight * x, a.message) - kMagicBits;
    }
    a.out_codes[node * width + c] = uint8_t(code<4>(sum, a.result)[0]);
  }
}

void gat_aggregate(const GatAggregate* args, float* scratch, int64_t first, int64_t last) {
  const GatAggregate a = *args;
  const int64_t width = a.heads * a.channels, columns = a.codes ? 4 : 1;  // of a lane
  const Ahead ahead = ahead_of(a.csr, width * (a.codes ? 1 : 4)), ahead_from = ahead_of(a.csr, a.heads * 4);
  int32_t* lane_heads = reinterpret_cast<int32_t*>(scratch);
  for (int64_t lane = 0; lane * columns < width; lane++) {
    lane_heads[lane] = a.heads == 1 ? 0 : int32_t(lane * columns / a.channels);
  }
  float* weights = scratch + width;
  for (int64_t node = first; node < last; node++) {
    scores(a, ahead_from, node, weights);
    softmax(weights, a.csr.indptr[node + 1] - a.csr.indptr[node], a.heads);
    const auto block = [&](auto bytes, auto count, int64_t c) {
      constexpr int kBytes = decltype(bytes)::value, kCount = decltype(count)::value;
      // One head in each vector, for all of the block's vectors?
      const bool one = a.heads == 1 || (a.channels % (kBytes / 4 * columns) == 0 && c % (kBytes / 4 * columns) == 0);
      if (a.codes) {
        one ? attend_codes<kBytes, kCount, true>(a, ahead, node, c, lane_heads, weights)
            : attend_codes<kBytes, kCount, false>(a, ahead, node, c, lane_heads, weights);
      } else {
        one ? attend<kBytes, kCount, true>(a, ahead, node, c, lane_heads, weights)
            : attend<kBytes, kCount, false>(a, ahead, node, c, lane_heads, weights);
      }
    };
    if (!a.codes) {
      each_block<kNative, 4>(width, 4, block);
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
        const auto bits =
            quantised_bits<kBytes>(load<typename Vectors<kBytes>::F32>(products + i), a.quantiser) - kMagicBits + a.quantiser.zp;
        for (int l = 0; l < kLanes; l++) a.codes[from + i + l] = uint8_t(bits[l]);
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

#define BGNN_GRAPH_KERNELS(isa) {isa, q_aggregate, aggregate, aggregate_int32, gat_aggregate, segment_softmax, edge_product, first_bad_index}

#endif
