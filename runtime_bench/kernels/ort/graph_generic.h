// The kernels of graph_kernels.h on the compiler's own vectors, for whatever instruction set the including file is
// compiled for. Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_GRAPH_GENERIC_H
#define BGNN_GRAPH_GENERIC_H

#include <string.h>

#include "graph_kernels.h"

#define BGNN_INLINE static inline __attribute__((always_inline))

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

// Rows are scattered in memory: without this, every row is a cache miss that stalls when a node's list ends.
constexpr int64_t kAhead = 24;     // entries; past the end of a node's list too
constexpr int64_t kMostLines = 8;  // of one row; the processor's own prefetcher does the rest

template <class T>
BGNN_INLINE void prefetch_row(const Csr& csr, int64_t p, const T* x, int64_t width) {
  if (p + kAhead >= csr.entries) return;
  const char* row = reinterpret_cast<const char*>(x + int64_t(csr.indices[p + kAhead]) * width);
  const int64_t bytes = width * int64_t(sizeof(T));
  const int64_t end = bytes < kMostLines * 64 ? bytes : kMostLines * 64;
  for (int64_t at = 0; at < end; at += 64) __builtin_prefetch(row + at);
  // A row that does not start with a cache line ends one line later.
  if (bytes % 64 != 0) __builtin_prefetch(row + end - 1);
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
template <int kBytes, int kCount>
BGNN_INLINE void sum_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, bool ahead, Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U16 U16;
  typedef typename Vectors<kBytes>::U32 U32;
  for (int64_t p = begin; p < end;) {
    const int64_t stop = end - p < kByteRows ? end : p + kByteRows;
    U16 all[kCount] = {}, odd[kCount] = {};
    for (; p < stop; p++) {
      if (ahead) prefetch_row(a.csr, p, a.x, a.width);
      const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
      for (int k = 0; k < kCount; k++) {
        const U16 v = load<U16>(row + k * kBytes);
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

BGNN_INLINE int32_t weight_of(const QAggregate& a, int64_t p) {
  return a.weight ? int32_t(a.weight[a.csr.edges ? a.csr.edges[p] : p]) - a.w_zp : 1;
}

template <int kBytes, int kCount>
BGNN_INLINE void sum_weighted_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, bool ahead,
                                   Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U32 U32;
  for (int64_t p = begin; p < end; p++) {
    if (ahead) prefetch_row(a.csr, p, a.x, a.width);
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
BGNN_INLINE void sum_messages(const QAggregate& a, int64_t begin, int64_t end, int64_t c, bool ahead,
                              Sums<kBytes>* sums) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const F32 multiplier = F32{} + a.message.multiplier, x_zp = F32{} + float(a.x_zp);
  for (int64_t p = begin; p < end; p++) {
    if (ahead) prefetch_row(a.csr, p, a.x, a.width);
    const uint8_t* row = a.x + int64_t(a.csr.indices[p]) * a.width + c;
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
BGNN_INLINE int32_t weights_times_zp(const QAggregate& a, int64_t begin, int64_t end) {
  int32_t total = 0;
  for (int64_t p = begin; p < end; p++) total += weight_of(a, p);
  return total * a.x_zp;
}

// The largest codes; the zero point without entries.
template <int kBytes, int kCount>
BGNN_INLINE void max_rows(const QAggregate& a, int64_t begin, int64_t end, int64_t c, uint8_t* out) {
  typedef typename Vectors<kBytes>::U8 U8;
  const uint8_t least = uint8_t(begin == end ? a.x_zp : 0);
  U8 most[kCount];
  for (int k = 0; k < kCount; k++) most[k] = U8{} + least;
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, p, a.x, a.width);
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
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    if (a.width < 4) {
      q_aggregate_narrow(a, node);
    } else if (a.reduce == kMax) {
      each_block<kNative, 4>(a.width, 1, [&](auto bytes, auto count, int64_t c) {
        max_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, a.out + node * a.width);
      });
    } else if (a.message.multiplier != 0) {
      each_sum<2>(a, node, 0, [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_messages<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, c == 0, sums);
      });
    } else if (a.weight) {
      each_sum<2>(a, node, weights_times_zp(a, begin, end), [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_weighted_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, c == 0, sums);
      });
    } else {
      each_sum<4>(a, node, int32_t(end - begin) * a.x_zp, [&](auto bytes, auto count, int64_t c, auto* sums) {
        sum_rows<decltype(bytes)::value, decltype(count)::value>(a, begin, end, c, c == 0, sums);
      });
    }
  }
}

// ---------------------------------------------------------------------------------------------- aggregate

BGNN_INLINE float weight_of(const Aggregate& a, int64_t p) {
  return a.weight[a.csr.edges ? a.csr.edges[p] : p];
}

template <int kBytes, int kCount, bool kWeighted, int kReduce>
BGNN_INLINE void reduce_rows(const Aggregate& a, int64_t begin, int64_t end, int64_t c, float* out) {
  typedef typename Vectors<kBytes>::F32 F32;
  F32 total[kCount] = {};
  for (int64_t p = begin; p < end; p++) {
    if (c == 0) prefetch_row(a.csr, p, a.x, a.width);
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
  for (int64_t node = first; node < last; node++) {
    const int64_t begin = a.csr.indptr[node], end = a.csr.indptr[node + 1];
    float* out = a.out + node * a.width;
    each_block<kNative, 4>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
      reduce_rows<decltype(bytes)::value, decltype(count)::value, kWeighted, kReduce>(a, begin, end, c, out);
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
  for (int64_t node = first; node < last; node++) {
    each_block<kNative, 4>(a.width, 4, [&](auto bytes, auto count, int64_t c) {
      constexpr int kBytes = decltype(bytes)::value, kCount = decltype(count)::value;
      typedef typename Vectors<kBytes>::U32 U32;
      U32 total[kCount] = {};
      for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++) {
        if (c == 0) prefetch_row(a.csr, p, a.x, a.width);
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

// Softmax over `count` rows of values [count, heads], in place; `most` and `total` are [heads].
BGNN_INLINE void softmax(float* values, int64_t count, int64_t heads, float* most, float* total) {
  for (int64_t h = 0; h < heads; h++) {
    most[h] = count ? values[h] : 0;
    total[h] = 0;
  }
  for (int64_t j = 1; j < count; j++) {
    for (int64_t h = 0; h < heads; h++) {
      const float v = values[j * heads + h];
      most[h] = v > most[h] || v != v ? v : most[h];
    }
  }
  for (int64_t j = 0; j < count; j++) {
    for (int64_t h = 0; h < heads; h++) values[j * heads + h] -= most[h];
  }
  constexpr int64_t kLanes = kNative / 4;
  int64_t i = 0;
  for (; i + kLanes <= count * heads; i += kLanes) {
    const auto y = exponential<kNative>(load<typename Vectors<kNative>::F32>(values + i));
    memcpy(values + i, &y, sizeof y);
  }
  for (; i < count * heads; i++) values[i] = exponential<4>(Vectors<4>::F32{} + values[i])[0];
  for (int64_t j = 0; j < count; j++) {
    for (int64_t h = 0; h < heads; h++) total[h] += values[j * heads + h];
  }
  for (int64_t h = 0; h < heads; h++) total[h] += 1e-16f;
  for (int64_t j = 0; j < count; j++) {
    for (int64_t h = 0; h < heads; h++) values[j * heads + h] /= total[h];
  }
}

void segment_softmax(const SegmentSoftmax* args, float* scratch, int64_t first, int64_t last) {
  const SegmentSoftmax a = *args;
  float *most = scratch, *total = most + a.heads, *values = total + a.heads;
  const size_t row = size_t(a.heads) * 4;
  for (int64_t node = first; node < last; node++) {
    const int32_t* edges = a.csr.indices + a.csr.indptr[node];
    const int64_t count = a.csr.indptr[node + 1] - a.csr.indptr[node];
    for (int64_t j = 0; j < count; j++) memcpy(values + j * a.heads, a.values + edges[j] * a.heads, row);
    softmax(values, count, a.heads, most, total);
    for (int64_t j = 0; j < count; j++) memcpy(a.out + edges[j] * a.heads, values + j * a.heads, row);
  }
}

// leaky_relu(from + to) of a node's entries, quantised before where that is asked for: values [entries, heads].
BGNN_INLINE void scores(const GatAggregate& a, int64_t node, float* values) {
  const float* to = a.to + node * a.heads;
  for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, values += a.heads) {
    const float* from = a.from + int64_t(a.csr.indices[p]) * a.heads;
    for (int64_t h = 0; h < a.heads; h++) {
      float e = from[h] + to[h];
      if (a.score.scale != 0) {
        const int32_t bits = quantised_bits<4>(Vectors<4>::F32{} + e, a.score)[0];
        e = float(bits - kMagicBits) * a.score.scale;
      }
      values[h] = e > 0 ? e : e * a.slope;
    }
  }
}

// One head's channels of one node, in float. `weights` [entries, heads] starts at the head.
template <int kBytes, int kCount>
BGNN_INLINE void attend(const GatAggregate& a, int64_t node, int64_t at, bool ahead, const float* weights) {
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels;
  F32 sum[kCount] = {};
  for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, weights += a.heads) {
    if (ahead) prefetch_row(a.csr, p, a.x, width);
    const float* row = a.x + int64_t(a.csr.indices[p]) * width + at;
    const F32 weight = F32{} + *weights;
    for (int k = 0; k < kCount; k++) sum[k] += weight * load<F32>(row + k * (kBytes / 4));
  }
  for (int k = 0; k < kCount; k++) memcpy(a.out + node * width + at + k * (kBytes / 4), &sum[k], kBytes);
}

// The same on codes: 4 columns in every 32-bit lane.
template <int kBytes, int kCount>
BGNN_INLINE void attend_codes(const GatAggregate& a, int64_t node, int64_t at, bool ahead, const float* weights) {
  typedef typename Vectors<kBytes>::U32 U32;
  typedef typename Vectors<kBytes>::I32 I32;
  typedef typename Vectors<kBytes>::F32 F32;
  const int64_t width = a.heads * a.channels;
  Sums<kBytes> sums[kCount] = {};
  for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, weights += a.heads) {
    if (ahead) prefetch_row(a.csr, p, a.codes, width);
    const uint8_t* row = a.codes + int64_t(a.csr.indices[p]) * width + at;
    const F32 weight = F32{} + *weights;
    for (int k = 0; k < kCount; k++) {
      const U32 v = load<U32>(row + k * kBytes);
      for (int j = 0; j < 4; j++) {
        const F32 x = __builtin_convertvector((I32)byte_of<kBytes>(v, j) - a.x_zp, F32) * (F32{} + a.x_scale);
        sums[k].column[j] += quantised_bits<kBytes>(weight * x, a.message) - kMagicBits;
      }
    }
  }
  for (int k = 0; k < kCount; k++) write_codes<kBytes>(sums[k], 0, a.result, a.out_codes + node * width + at + k * kBytes);
}

// Heads of less than 4 channels.
void attend_narrow(const GatAggregate& a, int64_t node, int64_t h, const float* weights) {
  const int64_t width = a.heads * a.channels;
  for (int64_t at = h * a.channels; at < (h + 1) * a.channels; at++) {
    const float* weight = weights;
    Vectors<4>::I32 sum = {};
    for (int64_t p = a.csr.indptr[node]; p < a.csr.indptr[node + 1]; p++, weight += a.heads) {
      const float x = float(a.codes[int64_t(a.csr.indices[p]) * width + at] - a.x_zp) * a.x_scale;
      sum += quantised_bits<4>(Vectors<4>::F32{} + *weight * x, a.message) - kMagicBits;
    }
    a.out_codes[node * width + at] = uint8_t(code<4>(sum, a.result)[0]);
  }
}

void gat_aggregate(const GatAggregate* args, float* scratch, int64_t first, int64_t last) {
  const GatAggregate a = *args;
  float *most = scratch, *total = most + a.heads, *weights = total + a.heads;
  for (int64_t node = first; node < last; node++) {
    scores(a, node, weights);
    softmax(weights, a.csr.indptr[node + 1] - a.csr.indptr[node], a.heads, most, total);
    for (int64_t h = 0; h < a.heads; h++) {
      const int64_t at = h * a.channels;
      if (!a.codes) {
        each_block<kNative, 4>(a.channels, 4, [&](auto bytes, auto count, int64_t c) {
          attend<decltype(bytes)::value, decltype(count)::value>(a, node, at + c, at + c == 0, weights + h);
        });
      } else if (a.channels < 4) {
        attend_narrow(a, node, h, weights + h);
      } else {
        each_block<kNative, 2>(a.channels, 1, [&](auto bytes, auto count, int64_t c) {
          attend_codes<decltype(bytes)::value, decltype(count)::value>(a, node, at + c, at + c == 0, weights + h);
        });
      }
    }
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

#define BGNN_GRAPH_KERNELS(isa) {isa, q_aggregate, aggregate, aggregate_int32, gat_aggregate, segment_softmax, first_bad_index}

#endif
