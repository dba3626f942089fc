// The kernels in plain C++ on 64-byte vectors of the compiler's own, for whatever instruction set the including
// file is compiled for. portable.cc is nothing but this; the other files replace what they can do better.
// Everything has internal linkage: each translation unit holds its own copy.
#ifndef BGNN_GENERIC_H
#define BGNN_GENERIC_H

#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define BGNN_INLINE static inline __attribute__((always_inline))

// Packed words are read as bytes of 64-bit words here, and bit masks are written as bytes.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed tensors are little-endian");

// The structs too must be each unit's own: their member functions would be merged by the linker, and a layout for
// vectors of one size be used with another.
namespace {

// ---------------------------------------------------------------------------------------------- memory

// Hands out 64-byte aligned pieces of a block of memory. With base NULL it only adds up the sizes, so one
// function lays memory out and measures it.
struct Carver {
  char* base;
  int64_t used;
  template <class T>
  T* take(int64_t count) {
    char* at = base ? base + used : nullptr;
    used += (count * int64_t(sizeof(T)) + 63) & ~int64_t(63);
    return reinterpret_cast<T*>(at);
  }
};

template <class Layout, class Args>
static int64_t bytes_of(const Args& a) {
  Carver carver{nullptr, 0};
  Layout layout;
  layout.lay(a, carver);
  return carver.used;
}

template <class Layout, class Args>
static Layout layout_in(const Args& a, void* memory) {
  Carver carver{static_cast<char*>(memory), 0};
  Layout layout;
  layout.lay(a, carver);
  return layout;
}

BGNN_INLINE int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
BGNN_INLINE int64_t words64(int64_t words) { return (words + 1) / 2; }
BGNN_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// ---------------------------------------------------------------------------------------------- popcounts

constexpr int64_t kLanes = 8;  // channels that are counted together: one 64-bit word of each in a vector
typedef uint64_t Lanes __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));

constexpr int64_t kByteSums = 31;  // as many popcounts of a byte (at most 8) fit a byte

// The popcount of every byte.
template <class V>
BGNN_INLINE void byte_counts(V& v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(V) == 32) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2,
                                           3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15), x = (__m256i)v;
    v = (V)_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble)),
                           _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble)));
    return;
  }
#elif defined(__ARM_NEON)
  if constexpr (sizeof(V) == 16) {
    v = (V)vcntq_u8((uint8x16_t)v);
    return;
  }
#endif
  v -= (v >> 1) & 0x5555555555555555u;
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}

// The sum of the bytes of every 64-bit word.
template <class V>
BGNN_INLINE void sum_bytes(V& v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(V) == 32) {
    v = (V)_mm256_sad_epu8((__m256i)v, _mm256_setzero_si256());
    return;
  }
#endif
  v = (v & 0x00ff00ff00ff00ffu) + ((v >> 8) & 0x00ff00ff00ff00ffu);
  v += v >> 32;
  v = (v + (v >> 16)) & 0xffffu;
}

BGNN_INLINE int64_t popcount64(uint64_t v) {
#if defined(__POPCNT__)
  return __builtin_popcountll(v);
#endif
  v -= (v >> 1) & 0x5555555555555555u;
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  return int64_t((((v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u) >> 56);
}

#include "nearest.h"

// counts[l] += popcount of row ^ (the interleaved channel l), over `words` 64-bit words. The channels of a block
// stand side by side: word w of channel l is block[w * 8 + l].
BGNN_INLINE void add_popcounts(const uint64_t* row, const uint64_t* block, int64_t words, Lanes& counts) {
#if defined(__AVX512VPOPCNTDQ__)
  __m512i sums = (__m512i)counts;
  for (int64_t w = 0; w < words; w++) {
    const __m512i differing = _mm512_xor_si512(_mm512_loadu_si512(block + w * kLanes), _mm512_set1_epi64(int64_t(row[w])));
    sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(differing));
  }
  counts = (Lanes)sums;
#else
  uint64_t results[kLanes];
  memcpy(results, &counts, sizeof results);
  for (int64_t part = 0; part < kLanes; part += kVecWords) {
    Vec total = load(results + part);
    for (int64_t w = 0; w < words;) {
      const int64_t end = at_most(words, w + kByteSums);
      Vec bytes = {};
      for (; w < end; w++) {
        Vec v = load(block + w * kLanes + part) ^ every(row[w]);
        byte_counts(v);
        bytes += v;
      }
      sum_bytes(bytes);
      total += bytes;
    }
    store(results + part, total);
  }
  memcpy(&counts, results, sizeof results);
#endif
}

// The lowest `count` of the `ones` ones in v.
BGNN_INLINE uint64_t lowest_ones(uint64_t v, int64_t count, int64_t ones) {
#if defined(__BMI2__)
  (void)ones;
  return _pdep_u64(count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1, v);
#else
  if (count == ones) return v;
  uint64_t rest = v;
  for (; count > 0; count--) rest &= rest - 1;
  return v & ~rest;
#endif
}

// The number of ones in `words` words (a multiple of kVecWords, at most 2^31), part(w) giving kVecWords from w on.
template <class Part>
BGNN_INLINE int64_t count_ones(int64_t words, Part part) {
  int64_t total = 0;
#if defined(__POPCNT__) && !defined(__AVX512VPOPCNTDQ__)
  for (int64_t w = 0; w < words; w += kVecWords) {
    const Vec v = part(w);
    for (int l = 0; l < kVecWords; l++) total += __builtin_popcountll(v[l]);
  }
#else
  for (int64_t w = 0; w < words;) {
    Vec sums = {};
#if defined(__AVX512VPOPCNTDQ__)
    for (; w < words; w += kVecWords) sums += (Vec)_mm512_popcnt_epi64((__m512i)part(w));
#else
    const int64_t stop = at_most(words, w + kByteSums * kVecWords);
    for (; w < stop; w += kVecWords) {
      Vec v = part(w);
      byte_counts(v);
      sums += v;
    }
    sum_bytes(sums);
#endif
    total += int64_t(sum_words(sums));
  }
#endif
  return total;
}

// ---------------------------------------------------------------------------------------------- repacking

// Rows of int32 words as rows of 64-bit words, an odd last word padded with 0.
static void widen_rows(const int32_t* x, int64_t rows, int64_t words, uint64_t* out) {
  if (words % 2 == 0) {
    memcpy(out, x, size_t(rows * words * 4));
    return;
  }
  for (int64_t r = 0; r < rows; r++, x += words, out += words64(words)) {
    out[words64(words) - 1] = 0;
    memcpy(out, x, size_t(words * 4));
  }
}

// `channels` rows of `words` int32 words, `stride` words apart, as interleaved blocks of 8 channels (see
// add_popcounts); channels up to `padded` (a multiple of 8) are 0.
static void interleave(const int32_t* weights, int64_t channels, int64_t padded, int64_t words, int64_t stride,
                       uint64_t* out) {
  const int64_t w64 = words64(words);
  memset(out, 0, size_t(padded * w64 * 8));
  for (int64_t c = 0; c < channels; c++) {
    uint64_t* block = out + c / kLanes * kLanes * w64 + c % kLanes;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(weights) + c * stride;
    for (int64_t w = 0; w < words; w++) block[w / 2 * kLanes] |= uint64_t(from[w]) << (w % 2 * 32);
  }
}

// At most 64 rows of `words` int32 words, `stride` words apart, as columns: bit r of out[c] is bit c of row r.
static void channels_in_lanes(const int32_t* weights, int64_t count, int64_t words, int64_t stride, uint64_t* out) {
  for (int64_t w = 0; w < words; w += 2, out += 64) {
    for (int64_t r = 0; r < 64; r++) {
      out[r] = 0;
      if (r < count) memcpy(out + r, weights + r * stride + w, size_t(at_most(2, words - w)) * 4);
    }
    transpose64(out);
  }
}

// valid: bit n is set for n < nodes.
static void mark_valid(int64_t nodes, int64_t padded, uint64_t* valid) {
  for (int64_t n = 0; n < padded; n += 64) {
    const int64_t left = nodes - n;
    valid[n / 64] = left >= 64 ? ~uint64_t(0) : left <= 0 ? 0 : (uint64_t(1) << left) - 1;
  }
}

static bool indices_are_valid(const int32_t* index, int64_t count, int64_t nodes) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; i++) bad |= uint32_t(index[i]) >= uint32_t(nodes);
  return bad == 0;
}

// ---------------------------------------------------------------------------------------------- equal rows

// first[n] = the lowest row equal to row n. `table` has `size` entries, a power of two >= 2 * rows.
static void find_equal_rows(const uint64_t* x, int64_t rows, int64_t words, uint32_t* table, int64_t size,
                            uint32_t* first) {
  memset(table, 0xff, size_t(size * 4));
  for (int64_t n = 0; n < rows; n++) {
    const uint64_t* row = x + n * words;
    uint64_t hash = 0;
    for (int64_t w = 0; w < words; w++) hash = ((hash >> 29) ^ hash ^ row[w]) * 0x9e3779b97f4a7c15u;
    int64_t at = int64_t(hash >> 32) & (size - 1);
    while (table[at] != UINT32_MAX && memcmp(x + int64_t(table[at]) * words, row, size_t(words * 8)) != 0) {
      at = (at + 1) & (size - 1);
    }
    if (table[at] == UINT32_MAX) table[at] = uint32_t(n);
    first[n] = table[at];
  }
}

BGNN_INLINE int64_t table_size(int64_t rows) {
  int64_t size = 16;
  while (size < 2 * rows) size *= 2;
  return size;
}

// ---------------------------------------------------------------------------------------------- hamming_knn

// Rows of 64-bit words; their bits with the nodes in lanes; each row's next equal row; the rows that are computed.
struct HammingKnnShared {
  uint64_t* rows;     // [batch, nodes, w64]
  uint64_t* columns;  // [batch, padded * w64]: see transpose_bits
  uint64_t* valid;    // [padded / 64]: the lanes that are nodes
  uint32_t* table;
  uint32_t* first;  // [nodes], of one batch element at a time
  int32_t* next;    // [batch, nodes]: the next row with an equal code, or -1
  int32_t* heads;   // [batch * nodes]: the work items
  int64_t w64;
  int64_t padded;
  void lay(const BgnnHammingKnn& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.nodes, kVecBits);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    columns = c.take<uint64_t>(a.batch * padded * w64);
    valid = c.take<uint64_t>(padded / 64);
    table = c.take<uint32_t>(table_size(a.nodes));
    first = c.take<uint32_t>(a.nodes);
    next = c.take<int32_t>(a.batch * a.nodes);
    heads = c.take<int32_t>(a.batch * a.nodes);
  }
};

constexpr int64_t kStreamNodes = 4096;  // from here on, nodes are passed by in blocks, for several rows at once
constexpr int64_t kStreamRows = 16;
constexpr int64_t kStreamK = 64;  // as long as a list stays short enough to insert into

BGNN_INLINE bool is_streamed(const BgnnHammingKnn& a) { return a.nodes >= kStreamNodes && a.k <= kStreamK; }

// Rows whose nearest are selected together: each plane of one row waits for the plane before.
constexpr int64_t kSelectRows = BGNN_VECTOR == 64 ? 4 : 1;

struct HammingKnnScratch {
  uint64_t* own;        // [w64], for each of kStreamRows where streamed: a row, or its complement
  uint64_t* masks;      // [64 * w64], likewise: its bits, spread
  uint64_t* best;       // streamed: [kStreamRows, k]: (distance, index) pairs
  uint64_t* planes;     // [kSelectRows, planes, padded / 64]: distances
  uint64_t* less;       // [kSelectRows, padded / 64]: surely among the k nearest
  uint64_t* equal;      // [kSelectRows, padded / 64]: at the largest distance that is
  int32_t* chosen;      // [k + 64]: indices in order
  int32_t* keys;        // [k + 64]: their distances
  int32_t* place;       // [k + 64]
  uint32_t* histogram;  // [64 * w64 + 1]
  void lay(const BgnnHammingKnn& a, Carver& c) {
    const int64_t bits = words64(a.words) * 64, lanes = up(a.nodes, kVecBits) / 64;
    own = c.take<uint64_t>(bits / 64 * (is_streamed(a) ? kStreamRows : kSelectRows));
    masks = c.take<uint64_t>(bits * (is_streamed(a) ? kStreamRows : 1));
    best = c.take<uint64_t>(is_streamed(a) ? kStreamRows * a.k : 0);
    planes = c.take<uint64_t>(kSelectRows * planes_for(bits) * lanes);
    less = c.take<uint64_t>(kSelectRows * lanes);
    equal = c.take<uint64_t>(kSelectRows * lanes);
    chosen = c.take<int32_t>(a.k + 64);
    keys = c.take<int32_t>(a.k + 64);
    place = c.take<int32_t>(a.k + 64);
    histogram = c.take<uint32_t>(bits + 1);
  }
};

static int64_t hamming_knn_shared_bytes(const void* args) {
  return bytes_of<HammingKnnShared>(*static_cast<const BgnnHammingKnn*>(args));
}
static int64_t hamming_knn_scratch_bytes(const void* args) {
  return bytes_of<HammingKnnScratch>(*static_cast<const BgnnHammingKnn*>(args));
}

// Equal rows have equal distances to everything, hence, ties going by index, equal lists: one of them is computed.
static int64_t hamming_knn_find_heads(const BgnnHammingKnn& a, const HammingKnnShared& s) {
  const int64_t w64 = words64(a.words);
  int64_t items = 0;
  for (int64_t b = 0; b < a.batch; b++) {
    int32_t* next = s.next + b * a.nodes;
    find_equal_rows(s.rows + b * a.nodes * w64, a.nodes, w64, s.table, table_size(a.nodes), s.first);
    for (int64_t n = 0; n < a.nodes; n++) {
      const int64_t head = s.first[n];
      if (head == n) {
        next[n] = -1;
        s.heads[items++] = int32_t(b * a.nodes + n);
      } else {
        next[n] = next[head];
        next[head] = int32_t(n);
      }
    }
  }
  return items;
}

static int64_t hamming_knn_begin(const void* args, void* shared) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  const HammingKnnShared s = layout_in<HammingKnnShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  for (int64_t b = 0; b < a.batch; b++) {
    transpose_bits(s.rows + b * a.nodes * s.w64, a.nodes, s.w64, s.padded, s.columns + b * s.padded * s.w64);
  }
  mark_valid(a.nodes, s.padded, s.valid);
  return hamming_knn_find_heads(a, s);
}

// Radix select: from the highest plane of the distances down, keep the half that holds the k-th smallest. Leaves
// the nodes below its distance in `less`, those at it in `equal`; returns how many of the latter are needed.
BGNN_INLINE int64_t select_on_planes(const HammingKnnShared& s, const HammingKnnScratch& t, int plane_count,
                                     int64_t k) {
  const int64_t lanes = s.padded / 64;
  for (int64_t v = 0; v < lanes; v += kVecWords) {
    store(t.less + v, Vec{});
    store(t.equal + v, load(s.valid + v));
  }
  for (int p = plane_count - 1; p >= 0; p--) {
    const uint64_t* plane = t.planes + p * lanes;
    const int64_t zeros = count_ones(lanes, [&](int64_t v) { return load(t.equal + v) & ~load(plane + v); });
    const bool enough = zeros >= k;
    const Vec keep_zeros = every(uint64_t(0) - uint64_t(enough));
    for (int64_t v = 0; v < lanes; v += kVecWords) {
      const Vec equal = load(t.equal + v), bits = load(plane + v);
      store(t.less + v, load(t.less + v) | (equal & ~bits & ~keep_zeros));
      store(t.equal + v, equal & (bits ^ keep_zeros));
    }
    if (!enough) k -= zeros;
  }
  return k;
}

// The same for kVecs vectors of nodes, which stay in registers, and for kRows rows at once.
template <int64_t kVecs, int64_t kRows>
BGNN_INLINE void select_in_registers(const HammingKnnShared& s, const HammingKnnScratch& t, int plane_count, int64_t k,
                                     int64_t* needed) {
  constexpr int64_t kWords = kVecs * kVecWords;
  Vec less[kRows][kVecs], equal[kRows][kVecs];
  for (int64_t r = 0; r < kRows; r++) {
    needed[r] = k;
    for (int64_t v = 0; v < kVecs; v++) {
      less[r][v] = Vec{};
      equal[r][v] = load(s.valid + v * kVecWords);
    }
  }
  for (int p = plane_count - 1; p >= 0; p--) {
    for (int64_t r = 0; r < kRows; r++) {
      const uint64_t* plane = t.planes + (r * plane_count + p) * kWords;
      Vec zero[kVecs];
      for (int64_t v = 0; v < kVecs; v++) zero[v] = equal[r][v] & ~load(plane + v * kVecWords);
      const int64_t zeros = count_ones(kWords, [&](int64_t w) { return zero[w / kVecWords]; });
      const bool enough = zeros >= needed[r];
      const Vec keep_zeros = every(uint64_t(0) - uint64_t(enough));
      for (int64_t v = 0; v < kVecs; v++) {
        less[r][v] |= zero[v] & ~keep_zeros;
        equal[r][v] = (zero[v] & keep_zeros) | (equal[r][v] & ~zero[v] & ~keep_zeros);
      }
      needed[r] -= enough ? 0 : zeros;
    }
  }
  for (int64_t r = 0; r < kRows; r++) {
    for (int64_t v = 0; v < kVecs; v++) {
      store(t.less + r * kWords + v * kVecWords, less[r][v]);
      store(t.equal + r * kWords + v * kVecWords, equal[r][v]);
    }
  }
}

// Lists the nodes of `less` and the lowest `needed` ones of `equal`, k in all, ascending.
BGNN_INLINE void list_chosen(const HammingKnnScratch& t, int64_t lanes, int64_t k, int64_t needed) {
  constexpr int64_t kTogether = 2;  // words that are passed over at once
  int64_t count = 0;
  for (int64_t w = 0; count < k && w < lanes; w += kTogether) {
    uint64_t any = 0;
    for (int64_t i = 0; i < kTogether; i++) any |= t.less[w + i] | t.equal[w + i];
    if (!any) continue;
    for (int64_t i = w; i < w + kTogether; i++) {
      const int64_t ties = popcount64(t.equal[i]), taken = at_most(needed, ties);
      needed -= taken;
      count += list_ones(t.less[i] | lowest_ones(t.equal[i], taken, ties), i * 64, t.chosen + count);
    }
  }
}

// Writes `count` indices (ascending in `chosen`, with their distances in `keys`) nearest first and by index.
static void order_by_distance(const HammingKnnScratch& t, int64_t count, int64_t largest, int32_t* out) {
  if (count <= 64) {
    rank_keys(t.keys, count, t.place);
    for (int64_t i = 0; i < count; i++) out[t.place[i]] = t.chosen[i];
    return;
  }
  memset(t.histogram, 0, size_t(largest + 1) * 4);
  for (int64_t i = 0; i < count; i++) t.histogram[t.keys[i]]++;
  uint32_t start = 0;
  for (int64_t d = 0; d <= largest; d++) {
    const uint32_t here = t.histogram[d];
    t.histogram[d] = start;
    start += here;
  }
  for (int64_t i = 0; i < count; i++) out[t.histogram[t.keys[i]]++] = t.chosen[i];
}

static void write_equal_lists(const BgnnHammingKnn& a, const int32_t* next, int64_t batch_row, int64_t head) {
  int32_t* lists = a.neighbours + batch_row * a.k;
  for (int32_t n = next[batch_row + head]; n >= 0; n = next[batch_row + n]) {
    memcpy(lists + n * a.k, lists + head * a.k, size_t(a.k) * 4);
  }
}

BGNN_INLINE void take_own(const uint64_t* row, int64_t words, uint64_t flip, uint64_t* own) {
  for (int64_t w = 0; w < words; w++) own[w] = row[w] ^ flip;
}

// Nodes pass by in blocks; those nearer than a row's k-th so far (few, after the first blocks) enter its list. They
// come in order of their index, so one at an equal distance stays out. A block serves several rows while it is in
// the cache. The rows are of one batch element.
static void hamming_knn_stream(const BgnnHammingKnn& a, const HammingKnnShared& s, const HammingKnnScratch& t,
                               const int32_t* heads, int64_t count, uint64_t flip) {
  const int64_t bits = s.w64 * 64, batch_row = heads[0] / a.nodes * a.nodes;
  const int plane_count = planes_for(bits);
  const uint64_t* rows = s.rows + batch_row * s.w64;
  const uint64_t* columns = s.columns + batch_row / a.nodes * s.padded * s.w64;
  for (int64_t i = 0; i < count; i++) {
    take_own(s.rows + heads[i] * s.w64, s.w64, flip, t.own + i * s.w64);
    spread(t.own + i * s.w64, s.w64, t.masks + i * bits);
    for (int64_t j = 0; j < a.k; j++) t.best[i * a.k + j] = uint64_t(bits + 1) << 32;
  }
  for (int64_t v = 0; v < s.padded / 64; v += kVecWords) {
    for (int64_t i = 0; i < count; i++) {
      Vec planes[kMostPlanes];
      count_differing(columns + v * bits, t.masks + i * bits, bits, planes, plane_count);
      uint64_t* best = t.best + i * a.k;
      const int64_t limit = int64_t(best[a.k - 1] >> 32) - 1;  // >= 0, or nothing can be nearer
      if (limit < 0) continue;
      const Vec nearer = load(s.valid + v) & ~above(
          planes, [&](int p) { return every(uint64_t(0) - uint64_t((limit >> p) & 1)); }, plane_count);
      uint64_t any = 0;
      for (int l = 0; l < kVecWords; l++) any |= nearer[l];
      if (!any) continue;
      const uint64_t* own = t.own + i * s.w64;
      for (int64_t l = 0; l < kVecWords; l++) {
        for (uint64_t left = nearer[l]; left; left &= left - 1) {
          const int64_t n = (v + l) * 64 + __builtin_ctzll(left);
          uint64_t distance = 0;
          for (int64_t w = 0; w < s.w64; w++) distance += uint64_t(popcount64(own[w] ^ rows[n * s.w64 + w]));
          if (distance >= best[a.k - 1] >> 32) continue;  // the list has changed since
          int64_t at = a.k - 1;
          for (; at > 0 && best[at - 1] >> 32 > distance; at--) best[at] = best[at - 1];
          best[at] = distance << 32 | uint64_t(n);
        }
      }
    }
  }
  for (int64_t i = 0; i < count; i++) {
    int32_t* out = a.neighbours + heads[i] * a.k;
    for (int64_t j = 0; j < a.k; j++) out[j] = int32_t(uint32_t(t.best[i * a.k + j]));
    write_equal_lists(a, s.next, batch_row, heads[i] - batch_row);
  }
}

// The farthest rows are the nearest ones of the complement: `flip` is all ones for them, else 0.
static void hamming_knn_items(const BgnnHammingKnn& a, const void* shared, void* scratch, int64_t begin, int64_t end,
                              uint64_t flip) {
  const HammingKnnShared s = layout_in<HammingKnnShared>(a, const_cast<void*>(shared));
  const HammingKnnScratch t = layout_in<HammingKnnScratch>(a, scratch);
  if (is_streamed(a)) {
    for (int64_t item = begin, count; item < end; item += count) {
      const int64_t b = s.heads[item] / a.nodes;
      for (count = 1; count < kStreamRows && item + count < end && s.heads[item + count] / a.nodes == b;) count++;
      hamming_knn_stream(a, s, t, s.heads + item, count, flip);
    }
    return;
  }
  const int64_t bits = s.w64 * 64, lanes = s.padded / 64;
  const int plane_count = planes_for(bits);
  const int64_t rows_at_once = lanes <= 2 * kVecWords ? kSelectRows : 1;
  for (int64_t item = begin; item < end; item += rows_at_once) {
    const int64_t together = at_most(rows_at_once, end - item);
    for (int64_t r = 0; r < rows_at_once; r++) {
      const int64_t row = s.heads[item + at_most(r, together - 1)];  // the last one fills up
      const uint64_t* columns = s.columns + row / a.nodes * s.padded * s.w64;
      uint64_t* row_planes = t.planes + r * plane_count * lanes;
      take_own(s.rows + row * s.w64, s.w64, flip, t.own + r * s.w64);
      spread(t.own + r * s.w64, s.w64, t.masks);
      for (int64_t v = 0; v < lanes; v += kVecWords) {
        Vec planes[kMostPlanes];
        count_differing(columns + v * bits, t.masks, bits, planes, plane_count);
        for (int p = 0; p < plane_count; p++) store(row_planes + p * lanes + v, planes[p]);
      }
    }
    int64_t needed[kSelectRows];
    if (lanes == kVecWords) {
      select_in_registers<1, kSelectRows>(s, t, plane_count, a.k, needed);
    } else if (lanes == 2 * kVecWords) {
      select_in_registers<2, kSelectRows>(s, t, plane_count, a.k, needed);
    } else if (lanes == 4 * kVecWords) {
      select_in_registers<4, 1>(s, t, plane_count, a.k, needed);
    } else {
      needed[0] = select_on_planes(s, t, plane_count, a.k);
    }
    for (int64_t r = 0; r < together; r++) {
      const int64_t row = s.heads[item + r], batch_row = row / a.nodes * a.nodes;
      HammingKnnScratch of_row = t;
      of_row.less += r * lanes;
      of_row.equal += r * lanes;
      list_chosen(of_row, lanes, a.k, needed[r]);
      const uint64_t *x = t.own + r * s.w64, *rows = s.rows + batch_row * s.w64;
      for (int64_t i = 0; i < a.k; i++) {
        uint32_t distance = 0;
        for (int64_t w = 0; w < s.w64; w++) distance += uint32_t(popcount64(x[w] ^ rows[t.chosen[i] * s.w64 + w]));
        t.keys[i] = int32_t(distance);
      }
      order_by_distance(t, a.k, bits, a.neighbours + row * a.k);
      write_equal_lists(a, s.next, batch_row, row - batch_row);
    }
  }
}

static void hamming_knn_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  hamming_knn_items(*static_cast<const BgnnHammingKnn*>(args), shared, scratch, begin, end, 0);
}

// ---------------------------------------------------------------------------------------------- hamming_far

static BgnnHammingKnn near_of(const void* args) {
  const BgnnHammingFar& a = *static_cast<const BgnnHammingFar*>(args);
  return {a.x, a.neighbours, a.batch, a.nodes, a.words, a.k};
}
static int64_t hamming_far_shared_bytes(const void* args) {
  const BgnnHammingKnn a = near_of(args);
  return hamming_knn_shared_bytes(&a);
}
static int64_t hamming_far_scratch_bytes(const void* args) {
  const BgnnHammingKnn a = near_of(args);
  return hamming_knn_scratch_bytes(&a);
}
static int64_t hamming_far_begin(const void* args, void* shared) {
  const BgnnHammingKnn a = near_of(args);
  return hamming_knn_begin(&a, shared);
}
static void hamming_far_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  hamming_knn_items(near_of(args), shared, scratch, begin, end, ~uint64_t(0));
}

// ---------------------------------------------------------------------------------------------- knn

struct KnnShared {
  float* columns;  // [batch, channels, padded]
  int64_t padded;
  void lay(const BgnnKnn& a, Carver& c) {
    padded = up(a.nodes, 64);
    columns = c.take<float>(a.batch * a.channels * padded);
  }
};

constexpr int64_t kGroups = 64;       // nodes n with equal n % kGroups form a group
constexpr int64_t kCandidates = 128;  // more nodes than this within the limit are left to a heap

struct KnnScratch {
  int32_t* keys;       // [padded]: distances
  int32_t* least;      // [kGroups]: the least key of each group
  int32_t* place;      // [kCandidates + 64]
  int32_t* positions;  // [kCandidates + 64]
  int32_t* found;      // [kCandidates + 64]
  uint64_t* within;    // [padded / 64]
  uint64_t* best;      // [k]: (key, index) pairs
  void lay(const BgnnKnn& a, Carver& c) {
    keys = c.take<int32_t>(up(a.nodes, 64));
    least = c.take<int32_t>(kGroups);
    place = c.take<int32_t>(kCandidates + 64);
    positions = c.take<int32_t>(kCandidates + 64);
    found = c.take<int32_t>(kCandidates + 64);
    within = c.take<uint64_t>(up(a.nodes, 64) / 64);
    best = c.take<uint64_t>(a.k);
  }
};

static int64_t knn_shared_bytes(const void* args) {
  return bytes_of<KnnShared>(*static_cast<const BgnnKnn*>(args));
}
static int64_t knn_scratch_bytes(const void* args) {
  return bytes_of<KnnScratch>(*static_cast<const BgnnKnn*>(args));
}

static int64_t knn_begin(const void* args, void* shared) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  const KnnShared s = layout_in<KnnShared>(a, shared);
  for (int64_t b = 0; b < a.batch; b++) {
    const float* x = a.x + b * a.nodes * a.channels;
    float* columns = s.columns + b * a.channels * s.padded;
    for (int64_t c = 0; c < a.channels; c++) {
      for (int64_t n = 0; n < a.nodes; n++) columns[c * s.padded + n] = x[n * a.channels + c];
      for (int64_t n = a.nodes; n < s.padded; n++) columns[c * s.padded + n] = 0;
    }
  }
  return a.batch * a.nodes;
}

// The squared distances from node `row` as integers of the same order (every NaN the same one, above infinity), and
// the least of each group.
template <int64_t kChannels>  // 0: any number
BGNN_INLINE void distance_keys(const float* columns, int64_t nodes, int64_t padded, int64_t any_channels, int64_t row,
                               const KnnScratch& t) {
  const int64_t channels = kChannels ? kChannels : any_channels;
  constexpr int64_t kTogether = 4;
  constexpr bool kOneRound = kTogether * kInts == kGroups;  // then each vector has its own groups, in registers
  const Ints none = Ints{} + (INT32_MAX - 1);               // rank_keys adds 1
  Ints lowest[kTogether];
  for (int64_t i = 0; i < kTogether; i++) lowest[i] = none;
  for (int64_t l = 0; l < kGroups; l += kInts) store(t.least + l, none);
  for (int64_t n = 0; n < padded; n += kTogether * kInts) {
    Floats sums[kTogether] = {};
    for (int64_t c = 0; c < channels; c++) {
      const Floats own = Floats{} + columns[c * padded + row];
      for (int64_t i = 0; i < kTogether; i++) {
        const Floats d = load(columns + c * padded + n + i * kInts) - own;
        sums[i] = c == 0 ? d * d : sums[i] + d * d;
      }
    }
    for (int64_t i = 0; i < kTogether; i++) {
      const int64_t at = n + i * kInts;
      const Ints key = least((Ints)sums[i] & 0x7fffffff, Ints{} + 0x7f800001);
      store(t.keys + at, key);
      if (at + kInts > nodes) continue;
      if (kOneRound) {
        lowest[i] = least(lowest[i], key);
      } else {
        int32_t* group = t.least + at % kGroups;
        store(group, least(load(group), key));
      }
    }
  }
  for (int64_t i = 0; kOneRound && i < kTogether; i++) store(t.least + i * kInts, lowest[i]);
  for (int64_t n = nodes / kInts * kInts; n < nodes; n++) {
    if (t.keys[n] < t.least[n % kGroups]) t.least[n % kGroups] = t.keys[n];
  }
}

// Sinks best[at] in the heap best[0, count) whose largest entry is the root.
static void sink(uint64_t* best, int64_t count, int64_t at) {
  const uint64_t value = best[at];
  for (int64_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && best[child + 1] > best[child]) child++;
    if (best[child] <= value) break;
    best[at] = best[child];
  }
  best[at] = value;
}

static void heap_sort(uint64_t* best, int64_t count) {
  for (int64_t i = count / 2 - 1; i >= 0; i--) sink(best, count, i);
  for (int64_t i = count - 1; i > 0; i--) {
    const uint64_t largest = best[0];
    best[0] = best[i];
    best[i] = largest;
    sink(best, i, 0);
  }
}

// The k smallest keys, smallest first and by index. `best` holds k entries and is overwritten.
static void select_smallest(const int32_t* keys, int64_t nodes, int64_t k, uint64_t* best, int32_t* out) {
  constexpr int64_t kInsertions = 64;  // for short lists, insertion into a sorted list beats a heap
  for (int64_t n = 0; n < k; n++) best[n] = uint64_t(keys[n]) << 32 | uint64_t(n);
  heap_sort(best, k);
  if (k <= kInsertions) {
    int32_t worst = int32_t(best[k - 1] >> 32);
    for (int64_t n = k; n < nodes; n++) {
      if (keys[n] >= worst) continue;
      const uint64_t value = uint64_t(keys[n]) << 32 | uint64_t(n);
      int64_t at = k - 1;
      for (; at > 0 && best[at - 1] > value; at--) best[at] = best[at - 1];
      best[at] = value;
      worst = int32_t(best[k - 1] >> 32);
    }
  } else {
    for (int64_t i = 0; i < k / 2; i++) {  // descending: a heap with the largest at the root
      const uint64_t swapped = best[i];
      best[i] = best[k - 1 - i];
      best[k - 1 - i] = swapped;
    }
    for (int64_t n = k; n < nodes; n++) {
      const uint64_t value = uint64_t(keys[n]) << 32 | uint64_t(n);
      if (value >= best[0]) continue;
      best[0] = value;
      sink(best, k, 0);
    }
    heap_sort(best, k);
  }
  for (int64_t n = 0; n < k; n++) out[n] = int32_t(uint32_t(best[n]));
}

// The k-th smallest of the groups' least keys bounds the k-th smallest key from above, since k groups hold a key up
// to it. False where k is too large for that.
BGNN_INLINE bool bound(const KnnScratch& t, int64_t k, int32_t& limit) {
  if (k > kGroups * 3 / 4) return false;
  int64_t groups = kGroups;
  if (k <= kGroups / 2 - 8) {  // fewer groups are ranked faster and bound well enough
    groups /= 2;
    for (int64_t l = 0; l < groups; l += kInts) {
      store(t.least + l, least(load(t.least + l), load(t.least + groups + l)));
    }
  }
  rank_keys(t.least, groups, t.place);
  limit = 0;
  for (int64_t l = 0; l < groups; l++) limit = t.place[l] == k - 1 ? t.least[l] : limit;
  return true;
}

// Lists what lies within the bound (little more than k nodes, but for equal distances) in `positions` and `found`;
// returns how many, or more than kCandidates where that is too many or there is no bound.
BGNN_INLINE int64_t keep_within_bound(const KnnScratch& t, int64_t nodes, int64_t k, int32_t& limit) {
  if (!bound(t, k, limit)) return kCandidates + 1;
  return keep_up_to(t.keys, nodes, limit, kCandidates, t.within, t.positions, t.found);
}

BGNN_INLINE void select_within_bound(const KnnScratch& t, int64_t nodes, int64_t k, int32_t* out) {
  int32_t limit;
  const int64_t kept = keep_within_bound(t, nodes, k, limit);
  if (kept > kCandidates) return select_smallest(t.keys, nodes, k, t.best, out);
  rank_keys(t.found, kept, t.place);
  for (int64_t i = 0; i < kept; i++) t.found[t.place[i]] = t.positions[i];
  memcpy(out, t.found, size_t(k) * 4);
}

static void knn_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  const KnnShared s = layout_in<KnnShared>(a, const_cast<void*>(shared));
  const KnnScratch t = layout_in<KnnScratch>(a, scratch);
  for (int64_t item = begin; item < end; item++) {
    const int64_t b = item / a.nodes, row = item - b * a.nodes;
    const float* columns = s.columns + b * a.channels * s.padded;
    if (a.channels == 3) {
      distance_keys<3>(columns, a.nodes, s.padded, 3, row, t);
    } else {
      distance_keys<0>(columns, a.nodes, s.padded, a.channels, row, t);
    }
    select_within_bound(t, a.nodes, a.k, a.neighbours + item * a.k);
  }
}

// ---------------------------------------------------------------------------------------------- xor_edge_conv

// Counters of 64 channels for each of kVecWords edges. A threshold is met by the start of the count: from
// 2^top - 1 - threshold on, plane `top` is set exactly when the popcount is above the threshold.
struct XorEdgeConvShared {
  uint64_t* rows;       // [batch, nodes, w64]
  uint64_t* node_half;  // w1 with the channels in lanes: [padded / 64, 64 * w64]
  uint64_t* edge_half;  // w2 likewise
  uint64_t* starts;     // [padded / 64, tables, top + 1]: 2^top - 1 - threshold
  uint32_t* table;
  uint32_t* first;  // [batch, nodes]: the lowest node of the batch element with an equal code
  int32_t* next;    // [batch, nodes]: the next node with the same output, or -1
  int32_t* heads;   // [batch * nodes]: the work items
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of 64
  int top;
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, 64);
    top = planes_for(128 * w64);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    node_half = c.take<uint64_t>(padded * w64);
    edge_half = c.take<uint64_t>(padded * w64);
    starts = c.take<uint64_t>(padded / 64 * a.tables * (top + 1));
    table = c.take<uint32_t>(table_size(a.nodes));
    first = c.take<uint32_t>(a.batch * a.nodes);
    next = c.take<int32_t>(a.batch * a.nodes);
    heads = c.take<int32_t>(a.batch * a.nodes);
  }
};

struct XorEdgeConvScratch {
  uint64_t* edges;  // [k + kVecWords, w64]: the different edge codes of a node
  uint32_t* seen;   // [nodes]: the item that last met a code, counted from 1
  uint64_t* masks;  // [up(k, kVecWords) / kVecWords, 64 * w64] of Vec: the bits of kVecWords edges, spread
  uint64_t* node;   // [64 * w64] of Vec: the bits of kVecWords nodes, spread
  uint64_t* bases;  // [padded / 64, tables, top + 1] of Vec: starts + the node half, for kVecWords nodes
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    const int64_t w64 = words64(a.words), bits = w64 * 64;
    edges = c.take<uint64_t>((a.k + kVecWords) * w64);
    seen = c.take<uint32_t>(a.nodes);
    masks = c.take<uint64_t>(up(a.k, kVecWords) * bits);
    node = c.take<uint64_t>(kVecWords * bits);
    bases = c.take<uint64_t>(up(a.out_channels, 64) / 64 * a.tables * (planes_for(2 * bits) + 1) * kVecWords);
  }
};

static int64_t xor_edge_conv_shared_bytes(const void* args) {
  return bytes_of<XorEdgeConvShared>(*static_cast<const BgnnXorEdgeConv*>(args));
}
static int64_t xor_edge_conv_scratch_bytes(const void* args) {
  return bytes_of<XorEdgeConvScratch>(*static_cast<const BgnnXorEdgeConv*>(args));
}

// Nodes with equal codes whose neighbours have pairwise equal codes have equal outputs.
template <class Shared>
static int64_t xor_edge_conv_find_heads(const BgnnXorEdgeConv& a, const Shared& s) {
  int64_t items = 0;
  for (int64_t b = 0; b < a.batch; b++) {
    uint32_t* first = s.first + b * a.nodes;
    int32_t* next = s.next + b * a.nodes;
    const int32_t* lists = a.neighbours + b * a.nodes * a.k;
    find_equal_rows(s.rows + b * a.nodes * s.w64, a.nodes, s.w64, s.table, table_size(a.nodes), first);
    for (int64_t n = 0; n < a.nodes; n++) {
      const int64_t head = first[n];
      bool equal = head != n;
      for (int64_t j = 0; equal && j < a.k; j++) {
        equal = first[lists[n * a.k + j]] == first[lists[head * a.k + j]];
      }
      next[n] = -1;
      if (equal) {
        next[n] = next[head];
        next[head] = int32_t(n);
      } else {
        s.heads[items++] = int32_t(b * a.nodes + n);
      }
    }
  }
  return items;
}

static int64_t xor_edge_conv_begin(const void* args, void* shared) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  const XorEdgeConvShared s = layout_in<XorEdgeConvShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  const int64_t bits = s.w64 * 64;
  for (int64_t o = 0; o < s.padded; o += 64) {
    const int64_t count = at_most(64, a.out_channels - o);
    channels_in_lanes(a.weights + o * 2 * a.words, count, a.words, 2 * a.words, s.node_half + o * s.w64);
    channels_in_lanes(a.weights + o * 2 * a.words + a.words, count, a.words, 2 * a.words, s.edge_half + o * s.w64);
    for (int64_t t = 0; t < a.tables; t++) {
      uint64_t* starts = s.starts + (o / 64 * a.tables + t) * (s.top + 1);
      memset(starts, 0, size_t(s.top + 1) * 8);
      for (int64_t l = 0; l < 64; l++) {
        int64_t threshold = 2 * bits;  // never above: padding channels, and what clamping leaves
        if (l < count && a.thresholds[t * a.out_channels + o + l] < threshold) {
          threshold = a.thresholds[t * a.out_channels + o + l];
        }
        const int64_t start = (int64_t(1) << s.top) - 1 - (threshold < -1 ? -1 : threshold);
        for (int p = 0; p <= s.top; p++) starts[p] |= uint64_t((start >> p) & 1) << l;
      }
    }
  }
  return xor_edge_conv_find_heads(a, s);
}

// The node's different edge codes; returns how many. `stamp` is not 0 and new for each call on one `seen`.
template <class Shared, class Scratch>
BGNN_INLINE int64_t xor_edge_conv_edges(const Shared& s, const int32_t* list, int64_t k, int64_t batch_row,
                                        int64_t row, uint32_t stamp, const Scratch& t) {
  const uint32_t* first = s.first + batch_row;
  const uint64_t* x = s.rows + row * s.w64;
  int64_t count = 0;
  for (int64_t j = 0; j < k; j++) {
    const uint32_t code = first[list[j]];
    const uint64_t* other = s.rows + (batch_row + code) * s.w64;
    for (int64_t w = 0; w < s.w64; w++) t.edges[count * s.w64 + w] = x[w] ^ other[w];
    count += t.seen[code] != stamp;  // else the next one takes its place
    t.seen[code] = stamp;
  }
  return count;
}

static void xor_edge_conv_write_equal(const BgnnXorEdgeConv& a, const int32_t* next, int64_t batch_row, int64_t row) {
  const int64_t words = (a.out_channels + 31) / 32;
  int32_t* out = a.out + batch_row * words;
  for (int32_t n = next[row]; n >= 0; n = next[batch_row + n]) {
    memcpy(out + n * words, out + (row - batch_row) * words, size_t(words) * 4);
  }
}

// `count` rows of bits (`stride` words apart), spread side by side: kVecWords rows in a Vec for each bit. The last
// row fills a Vec that has fewer.
BGNN_INLINE void spread_rows(const uint64_t* rows, int64_t count, int64_t words, int64_t stride, uint64_t* masks) {
  for (int64_t j = 0; j < count; j += kVecWords, masks += words * 64 * kVecWords) {
    for (int64_t w = 0; w < words; w++) {
      Vec v;
      for (int64_t l = 0; l < kVecWords; l++) v[l] = rows[at_most(j + l, count - 1) * stride + w];
      for (int64_t c = 0; c < 64; c++, v >>= 1) store(masks + (w * 64 + c) * kVecWords, every(0) - (v & 1));
    }
  }
}

// Plane `top` of base(table) + the counters in `planes`, which have fewer.
template <class Base>
BGNN_INLINE Vec top_of_sum(Base base, int64_t table, const Vec* planes, int plane_count, int top) {
  Vec carry = {};
  for (int p = 0; p < plane_count; p++) {
    Vec sum = base(table, p);
    carry = full_add(sum, planes[p], carry);
  }
  for (int p = plane_count; p < top; p++) carry &= base(table, p);
  return base(table, top) ^ carry;
}

static void xor_edge_conv_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  const XorEdgeConvShared s = layout_in<XorEdgeConvShared>(a, const_cast<void*>(shared));
  const XorEdgeConvScratch t = layout_in<XorEdgeConvScratch>(a, scratch);
  const int64_t bits = s.w64 * 64, out_words = (a.out_channels + 31) / 32;
  const int plane_count = s.top + 1, edge_planes = planes_for(bits);
  memset(t.seen, 0, size_t(a.nodes) * 4);
  for (int64_t item = begin; item < end; item += kVecWords) {
    const int64_t together = at_most(kVecWords, end - item);  // nodes, one in each lane
    uint64_t own[kVecWords * 64];
    for (int64_t w = 0; w < s.w64; w++) {
      for (int64_t i = 0; i < together; i++) own[i] = s.rows[s.heads[item + i] * s.w64 + w];
      spread_rows(own, together, 1, 1, t.node + w * 64 * kVecWords);
    }
    for (int64_t o = 0; o < s.padded / 64; o++) {
      const uint64_t* half = s.node_half + o * bits;
      for (int64_t table = 0; table < a.tables; table++) {
        const int64_t at = (o * a.tables + table) * plane_count;
        Vec planes[kMostPlanes];
        for (int p = 0; p < plane_count; p++) planes[p] = every(s.starts[at + p]);
        count_bits(
            bits, [&](int64_t c) { return every(half[c]) ^ load(t.node + c * kVecWords); }, planes, plane_count);
        for (int p = 0; p < plane_count; p++) store(t.bases + (at + p) * kVecWords, planes[p]);
      }
    }
    for (int64_t i = 0; i < together; i++) {
      const int64_t row = s.heads[item + i], batch_row = row / a.nodes * a.nodes;
      const int64_t count = xor_edge_conv_edges(s, a.neighbours + row * a.k, a.k, batch_row, row,
                                                uint32_t(item + i - begin + 1), t);
      spread_rows(t.edges, count, s.w64, s.w64, t.masks);
      for (int64_t o = 0; o < s.padded / 64; o++) {
        const uint64_t* half = s.edge_half + o * bits;
        const uint64_t* bases = t.bases + o * a.tables * plane_count * kVecWords + i;
        Vec minus = every(~uint64_t(0));  // all ones where every sign so far is -1
        for (int64_t j = 0; j < count; j += kVecWords) {
          const uint64_t* masks = t.masks + j * bits;
          const auto input = [&](int64_t c) { return every(half[c]) ^ load(masks + c * kVecWords); };
          const auto base = [&](int64_t table, int p) { return every(bases[(table * plane_count + p) * kVecWords]); };
          Vec planes[kMostPlanes], turned = {};
          if (a.tables == 1) {
            for (int p = 0; p < plane_count; p++) planes[p] = base(0, p);
            count_bits(bits, input, planes, plane_count);
            turned = planes[s.top];
          } else {
            for (int p = 0; p < edge_planes; p++) planes[p] = Vec{};
            count_bits(bits, input, planes, edge_planes);
            for (int64_t table = 0; table < a.tables; table++) turned ^= top_of_sum(base, table, planes, edge_planes, s.top);
          }
          minus &= turned;
        }
        uint64_t word = ~uint64_t(0);
        for (int l = 0; l < kVecWords; l++) word &= minus[l];
        const int64_t real = a.out_channels - o * 64;
        if (real < 64) word &= (uint64_t(1) << real) - 1;
        memcpy(a.out + row * out_words + o * 2, &word, size_t(at_most(2, out_words - o * 2)) * 4);
      }
      xor_edge_conv_write_equal(a, s.next, batch_row, row);
    }
  }
}

// ---------------------------------------------------------------------------------------------- gather_max

static int64_t no_bytes(const void*) { return 0; }

static int64_t gather_max_begin(const void* args, void*) {
  const BgnnGatherMax& a = *static_cast<const BgnnGatherMax*>(args);
  if (!indices_are_valid(a.neighbours, a.batch * a.rows * a.k, a.nodes)) return BGNN_BAD_INDEX;
  return a.batch * a.rows;
}

// kVectors vectors of channels, the running maxima in registers.
template <int64_t kVectors>
BGNN_INLINE void gather_max_block(const float* x, int64_t channels, const int32_t* list, int64_t k, float* out) {
  Floats most[kVectors];
  for (int64_t i = 0; i < kVectors; i++) most[i] = load(x + list[0] * channels + i * kInts);
  for (int64_t j = 1; j < k; j++) {
    const float* other = x + list[j] * channels;
    for (int64_t i = 0; i < kVectors; i++) {
      const Floats v = load(other + i * kInts);
      most[i] = v > most[i] ? v : most[i];
    }
  }
  memcpy(out, most, sizeof most);
}

static void gather_max_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnGatherMax& a = *static_cast<const BgnnGatherMax*>(args);
  for (int64_t row = begin; row < end; row++) {
    const float* x = a.x + row / a.rows * a.nodes * a.channels;
    const int32_t* list = a.neighbours + row * a.k;
    float* out = a.out + row * a.channels;
    int64_t c = 0;
    for (; c + 4 * kInts <= a.channels; c += 4 * kInts) gather_max_block<4>(x + c, a.channels, list, a.k, out + c);
    for (; c + kInts <= a.channels; c += kInts) gather_max_block<1>(x + c, a.channels, list, a.k, out + c);
    for (; c < a.channels; c++) {
      float most = x[list[0] * a.channels + c];
      for (int64_t j = 1; j < a.k; j++) {
        const float other = x[list[j] * a.channels + c];
        most = other > most ? other : most;
      }
      out[c] = most;
    }
  }
}

// ---------------------------------------------------------------------------------------------- bin_edge_conv

struct BinEdgeConvShared {
  uint64_t* rows;       // node bits, [batch, nodes, w64]
  uint64_t* node_half;  // interleaved
  uint64_t* edge_half;
  float* alpha;  // [padded]
  float* slope;  // [padded]
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of 32
  void lay(const BgnnBinEdgeConv& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, 32);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    node_half = c.take<uint64_t>(padded * w64);
    edge_half = c.take<uint64_t>(padded * w64);
    alpha = c.take<float>(padded);
    slope = c.take<float>(padded);
  }
};

struct BinEdgeConvScratch {
  uint64_t* edges;  // [k, w64]
  void lay(const BgnnBinEdgeConv& a, Carver& c) { edges = c.take<uint64_t>(a.k * words64(a.words)); }
};

static int64_t bin_edge_conv_shared_bytes(const void* args) {
  return bytes_of<BinEdgeConvShared>(*static_cast<const BgnnBinEdgeConv*>(args));
}
static int64_t bin_edge_conv_scratch_bytes(const void* args) {
  return bytes_of<BinEdgeConvScratch>(*static_cast<const BgnnBinEdgeConv*>(args));
}

static int64_t bin_edge_conv_begin(const void* args, void* shared) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  const BinEdgeConvShared s = layout_in<BinEdgeConvShared>(a, shared);
  widen_rows(a.node_bits, a.batch * a.nodes, a.words, s.rows);
  interleave(a.weights, a.out_channels, s.padded, a.words, 2 * a.words, s.node_half);
  interleave(a.weights + a.words, a.out_channels, s.padded, a.words, 2 * a.words, s.edge_half);
  for (int64_t o = 0; o < s.padded; o++) {
    s.alpha[o] = o < a.out_channels ? a.alpha[o] : 0;
    s.slope[o] = o < a.out_channels ? a.slope[a.slopes == 1 ? 0 : o] : 0;
  }
  return a.batch * a.nodes;
}

// The edge bits of one neighbour, padding 0.
BGNN_INLINE void edge_bits(const BgnnBinEdgeConv& a, const float* own, const float* other, uint64_t* out) {
  int64_t c = 0;
  for (; c + 64 <= a.channels; c += 64) {
    *out++ = bits_of([&](int64_t l) {
      const Floats difference = load(other + c + l) - load(own + c + l);
      return (Ints)(difference * load(a.edge_scale + c + l) + load(a.edge_shift + c + l) < 0);
    });
  }
  if (c == a.channels) return;
  uint64_t bits = 0;
  for (int64_t l = 0; c + l < a.channels; l++) {
    const float difference = other[c + l] - own[c + l];
    const float value = difference * a.edge_scale[c + l] + a.edge_shift[c + l];
    bits |= uint64_t(value < 0) << l;
  }
  *out = bits;
}

static void bin_edge_conv_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  const BinEdgeConvShared s = layout_in<BinEdgeConvShared>(a, const_cast<void*>(shared));
  const BinEdgeConvScratch t = layout_in<BinEdgeConvScratch>(a, scratch);
  for (int64_t row = begin; row < end; row++) {
    const int64_t batch_row = row / a.nodes * a.nodes;
    const float* own = a.x + row * a.channels;
    const Eight beta = Eight{} + a.beta[a.betas == 1 ? 0 : row - batch_row];
    const int32_t* list = a.neighbours + row * a.k;
    for (int64_t j = 0; j < a.k; j++) {
      edge_bits(a, own, a.x + (batch_row + list[j]) * a.channels, t.edges + j * s.w64);
    }
    for (int64_t o = 0; o < a.out_channels; o += kLanes) {
      Lanes node = {};
      add_popcounts(s.rows + row * s.w64, s.node_half + o * s.w64, s.w64, node);
      Eight alpha, slope;
      memcpy(&alpha, s.alpha + o, sizeof alpha);
      memcpy(&slope, s.slope + o, sizeof slope);
      Eight most;
      for (int64_t j = 0; j < a.k; j++) {
        Lanes counts = node;
        add_popcounts(t.edges + j * s.w64, s.edge_half + o * s.w64, s.w64, counts);
        const EightInts acc = int32_t(2 * a.channels) - 2 * __builtin_convertvector(counts, EightInts);
        const Eight scaled = __builtin_convertvector(acc, Eight) * alpha;
        const Eight positioned = scaled * beta;
        const Eight v = positioned * a.gamma[a.gammas == 1 ? 0 : j];
        const Eight activated = v > 0 ? v : v * slope;
        most = j == 0 ? activated : activated > most ? activated : most;
      }
      memcpy(a.out + row * a.out_channels + o, &most, size_t(at_most(kLanes, a.out_channels - o)) * 4);
    }
  }
}

// ---------------------------------------------------------------------------------------------- dense_pool

constexpr int64_t kPoolChannels = 32;  // output channels of one work item

struct DensePoolShared {
  uint64_t* rows;     // [nodes, w64], of one batch element at a time
  uint64_t* columns;  // [batch, padded * w64]: see transpose_bits
  uint64_t* weights;  // [out_channels, w64]
  uint64_t* valid;    // [padded / 64]: the lanes that are nodes
  int64_t w64;
  int64_t padded;
  void lay(const BgnnDensePool& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.nodes, kVecBits);
    rows = c.take<uint64_t>(a.nodes * w64);
    columns = c.take<uint64_t>(a.batch * padded * w64);
    weights = c.take<uint64_t>(a.out_channels * w64);
    valid = c.take<uint64_t>(padded / 64);
  }
};

struct DensePoolScratch {
  uint64_t* masks;   // [64 * w64]: a channel's weights, spread
  uint64_t* planes;  // [planes, padded / 64]: popcounts
  uint64_t* lanes;   // [padded / 64]
  void lay(const BgnnDensePool& a, Carver& c) {
    const int64_t bits = words64(a.words) * 64, lane_words = up(a.nodes, kVecBits) / 64;
    masks = c.take<uint64_t>(bits);
    planes = c.take<uint64_t>(planes_for(bits) * lane_words);
    lanes = c.take<uint64_t>(lane_words);
  }
};

static int64_t dense_pool_scratch_bytes(const void* args) {
  return bytes_of<DensePoolScratch>(*static_cast<const BgnnDensePool*>(args));
}
static int64_t dense_pool_shared_bytes(const void* args) {
  return bytes_of<DensePoolShared>(*static_cast<const BgnnDensePool*>(args));
}

static int64_t dense_pool_begin(const void* args, void* shared) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  const DensePoolShared s = layout_in<DensePoolShared>(a, shared);
  widen_rows(a.weights, a.out_channels, a.words, s.weights);
  for (int64_t b = 0; b < a.batch; b++) {
    widen_rows(a.x + b * a.nodes * a.words, a.nodes, a.words, s.rows);
    transpose_bits(s.rows, a.nodes, s.w64, s.padded, s.columns + b * s.padded * s.w64);
  }
  mark_valid(a.nodes, s.padded, s.valid);
  return a.batch * (up(a.out_channels, kPoolChannels) / kPoolChannels);
}

// Writes [max, min, positive, negative] of channel `o` from its popcounts: the least, the largest, and the sums over
// the nodes of max(acc, 0) and of p.
BGNN_INLINE void write_pool(const BgnnDensePool& a, int64_t b, int64_t o, int64_t least, int64_t most,
                            int64_t positive, int64_t total) {
  float* out = a.out + b * 4 * a.out_channels + o;
  out[0] = float(a.channels - 2 * least);
  out[a.out_channels] = float(a.channels - 2 * most);
  out[2 * a.out_channels] = float(positive);
  out[3 * a.out_channels] = float(a.nodes * a.channels - 2 * total - positive);
}

// The largest counter among the valid lanes (the smallest, with `flip` all ones: of the complements).
BGNN_INLINE int64_t extreme(const DensePoolShared& s, const DensePoolScratch& t, int plane_count, uint64_t flip) {
  const int64_t lanes = s.padded / 64;
  memcpy(t.lanes, s.valid, size_t(lanes) * 8);
  int64_t value = 0;
  for (int p = plane_count - 1; p >= 0; p--) {
    const uint64_t* plane = t.planes + p * lanes;
    Vec any = {};
    for (int64_t v = 0; v < lanes; v += kVecWords) any |= load(t.lanes + v) & (load(plane + v) ^ every(flip));
    uint64_t found = 0;
    for (int l = 0; l < kVecWords; l++) found |= any[l];
    const uint64_t keep = found ? 0 : ~uint64_t(0);  // where no lane has the bit, all lanes stay
    for (int64_t v = 0; v < lanes; v += kVecWords) {
      store(t.lanes + v, load(t.lanes + v) & ((load(plane + v) ^ every(flip)) | every(keep)));
    }
    value |= int64_t(found != 0) << p;
  }
  return value;
}

static void dense_pool_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  const DensePoolShared s = layout_in<DensePoolShared>(a, const_cast<void*>(shared));
  const DensePoolScratch t = layout_in<DensePoolScratch>(a, scratch);
  const int64_t blocks = up(a.out_channels, kPoolChannels) / kPoolChannels;
  const int64_t bits = s.w64 * 64, lanes = s.padded / 64;
  const int plane_count = planes_for(bits);
  const int64_t all = (int64_t(1) << plane_count) - 1;
  for (int64_t item = begin; item < end; item++) {
    const int64_t b = item / blocks;
    const uint64_t* columns = s.columns + b * s.padded * s.w64;
    const int64_t from = item % blocks * kPoolChannels, to = at_most(from + kPoolChannels, a.out_channels);
    for (int64_t o = from; o < to; o++) {
      spread(s.weights + o * s.w64, s.w64, t.masks);
      for (int64_t v = 0; v < lanes; v += kVecWords) {
        Vec planes[kMostPlanes];
        count_differing(columns + v * bits, t.masks, bits, planes, plane_count);
        for (int p = 0; p < plane_count; p++) store(t.planes + p * lanes + v, planes[p]);
      }
      const int64_t most = extreme(s, t, plane_count, 0);
      const int64_t least = all - extreme(s, t, plane_count, ~uint64_t(0));
      // acc > 0 where p <= (channels - 1) / 2
      const int64_t limit = (a.channels - 1) / 2;
      for (int64_t v = 0; v < lanes; v += kVecWords) {
        Vec planes[kMostPlanes];
        for (int p = 0; p < plane_count; p++) planes[p] = load(t.planes + p * lanes + v);
        const Vec more = above(
            planes, [&](int p) { return every(uint64_t(0) - uint64_t((limit >> p) & 1)); }, plane_count);
        store(t.lanes + v, load(s.valid + v) & ~more);
      }
      int64_t positive = a.channels * count_ones(lanes, [&](int64_t v) { return load(t.lanes + v); }), total = 0;
      for (int p = 0; p < plane_count; p++) {
        const uint64_t* plane = t.planes + p * lanes;
        const auto few = [&](int64_t v) { return load(plane + v) & load(t.lanes + v); };
        positive -= count_ones(lanes, few) << (p + 1);
        total += count_ones(lanes, [&](int64_t v) { return load(plane + v) & load(s.valid + v); }) << p;
      }
      write_pool(a, b, o, least, most, positive, total);
    }
  }
}

// ---------------------------------------------------------------------------------------------- quantize

static int64_t quantize_begin(const void* args, void*) { return static_cast<const BgnnQuantize*>(args)->rows; }
static int64_t quantize_int8_begin(const void* args, void*) {
  return static_cast<const BgnnQuantizeInt8*>(args)->rows;
}
static int64_t dequantize_begin(const void* args, void*) { return static_cast<const BgnnDequantize*>(args)->rows; }
static int64_t dequantize_int8_begin(const void* args, void*) {
  return static_cast<const BgnnDequantizeInt8*>(args)->rows;
}

template <class T, class Limit>
static void pack_row(const T* x, int64_t channels, Limit limit, int32_t* out) {
  for (int64_t c = 0; c < channels; c += 32) {
    uint32_t word = 0;
    const int64_t stop = at_most(32, channels - c);
    for (int64_t l = 0; l < stop; l++) word |= uint32_t(x[c + l] < limit) << l;
    out[c / 32] = int32_t(word);
  }
}

template <class T>
static void unpack_row(const int32_t* x, int64_t channels, T plus, T minus, T* out) {
  for (int64_t c = 0; c < channels; c++) out[c] = (uint32_t(x[c / 32]) >> (c % 32)) & 1 ? minus : plus;
}

static void quantize_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnQuantize& a = *static_cast<const BgnnQuantize*>(args);
  const int64_t words = (a.channels + 31) / 32;
  for (int64_t r = begin; r < end; r++) pack_row(a.x + r * a.channels, a.channels, 0.0f, a.out + r * words);
}

static void quantize_int8_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnQuantizeInt8& a = *static_cast<const BgnnQuantizeInt8*>(args);
  const int64_t words = (a.channels + 31) / 32;
  for (int64_t r = begin; r < end; r++) {
    pack_row(a.x + r * a.channels, a.channels, int32_t(a.zero_point), a.out + r * words);
  }
}

static void dequantize_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnDequantize& a = *static_cast<const BgnnDequantize*>(args);
  const int64_t words = (a.channels + 31) / 32;
  for (int64_t r = begin; r < end; r++) {
    unpack_row(a.x + r * words, a.channels, 1.0f, -1.0f, a.out + r * a.channels);
  }
}

static void dequantize_int8_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnDequantizeInt8& a = *static_cast<const BgnnDequantizeInt8*>(args);
  const int64_t words = (a.channels + 31) / 32;
  for (int64_t r = begin; r < end; r++) {
    unpack_row(a.x + r * words, a.channels, int8_t(a.plus), int8_t(a.minus), a.out + r * a.channels);
  }
}

// ---------------------------------------------------------------------------------------------- bconv2d

constexpr int64_t kPixels = 16;  // output pixels that share one reading of the weights

struct Bconv2dShared {
  uint64_t* weights;  // [groups] of interleaved blocks over taps * words
  int32_t* tap_ones;  // [groups, taps, padded]: popcounts of a tap's weights, where pad_one is 0
  int64_t w64;        // 64-bit words of one patch
  int64_t taps;
  int64_t channels_out;  // output channels of one group
  int64_t padded;        // those, up to a multiple of 8
  void lay(const BgnnBconv2d& a, Carver& c) {
    taps = a.filter_height * a.filter_width;
    w64 = words64(taps * a.words);
    channels_out = a.out_channels / a.groups;
    padded = up(channels_out, kLanes);
    weights = c.take<uint64_t>(a.groups * padded * w64);
    tap_ones = c.take<int32_t>(a.pad_one ? 0 : a.groups * taps * padded);
  }
};

struct Bconv2dScratch {
  uint64_t* patches;  // [kPixels, w64]
  uint8_t* outside;   // [kPixels, taps]: 1 where a tap is outside the image
  void lay(const BgnnBconv2d& a, Carver& c) {
    const int64_t taps = a.filter_height * a.filter_width;
    patches = c.take<uint64_t>(kPixels * words64(taps * a.words));
    outside = c.take<uint8_t>(kPixels * taps);
  }
};

static int64_t bconv2d_shared_bytes(const void* args) {
  return bytes_of<Bconv2dShared>(*static_cast<const BgnnBconv2d*>(args));
}
static int64_t bconv2d_scratch_bytes(const void* args) {
  return bytes_of<Bconv2dScratch>(*static_cast<const BgnnBconv2d*>(args));
}

static int64_t bconv2d_begin(const void* args, void* shared) {
  const BgnnBconv2d& a = *static_cast<const BgnnBconv2d*>(args);
  const Bconv2dShared s = layout_in<Bconv2dShared>(a, shared);
  const int64_t words = s.taps * a.words;
  for (int64_t g = 0; g < a.groups; g++) {
    const int32_t* weights = a.weights + g * s.channels_out * words;
    interleave(weights, s.channels_out, s.padded, words, words, s.weights + g * s.padded * s.w64);
    if (a.pad_one) continue;
    for (int64_t tap = 0; tap < s.taps; tap++) {
      int32_t* ones = s.tap_ones + (g * s.taps + tap) * s.padded;
      for (int64_t o = 0; o < s.padded; o++) ones[o] = 0;
      for (int64_t o = 0; o < s.channels_out; o++) {
        for (int64_t w = 0; w < a.words; w++) {
          ones[o] += int32_t(popcount64(uint32_t(weights[o * words + tap * a.words + w])));
        }
      }
    }
  }
  return a.batch * a.out_height * a.out_width;
}

// Copies the window of output pixel `pixel`, taps outside as +1 (bits 0); returns how many are outside.
static int64_t bconv2d_patch(const BgnnBconv2d& a, int64_t pixel, int64_t group, uint64_t* patch, uint8_t* outside) {
  const int64_t row_words = a.groups * a.words;
  if (a.filter_height == 1 && a.filter_width == 1 && a.stride_height == 1 && a.stride_width == 1 &&
      a.out_height == a.height && a.out_width == a.width && a.pad_top == 0 && a.pad_left == 0) {
    *outside = 0;
    patch[words64(a.words) - 1] = 0;
    memcpy(patch, a.x + pixel * row_words + group * a.words, size_t(a.words) * 4);
    return 0;
  }
  const int64_t out_x = pixel % a.out_width, out_y = pixel / a.out_width % a.out_height;
  const int32_t* image = a.x + pixel / (a.out_width * a.out_height) * a.height * a.width * row_words;
  char* to = reinterpret_cast<char*>(patch);
  const int64_t tap_bytes = a.words * 4;
  patch[words64(a.filter_height * a.filter_width * a.words) - 1] = 0;
  int64_t count = 0;
  for (int64_t fy = 0; fy < a.filter_height; fy++) {
    for (int64_t fx = 0; fx < a.filter_width; fx++, to += tap_bytes, outside++) {
      const int64_t y = out_y * a.stride_height - a.pad_top + fy * a.dilation_height;
      const int64_t x = out_x * a.stride_width - a.pad_left + fx * a.dilation_width;
      *outside = y < 0 || y >= a.height || x < 0 || x >= a.width;
      count += *outside;
      if (*outside) {
        memset(to, 0, size_t(tap_bytes));
      } else {
        memcpy(to, image + (y * a.width + x) * row_words + group * a.words, size_t(tap_bytes));
      }
    }
  }
  return count;
}

// Bit l is set where lane l is -1.
BGNN_INLINE uint8_t eight_bits(EightInts mask) {
#if defined(__AVX2__)
  return uint8_t(_mm256_movemask_ps(_mm256_castsi256_ps((__m256i)mask)));
#else
  mask &= EightInts{1, 2, 4, 8, 16, 32, 64, 128};
  int32_t bits = 0;
  for (int l = 0; l < kLanes; l++) bits |= mask[l];
  return uint8_t(bits);
#endif
}

// From the popcounts of 8 channels (from `o` on in the group) to the output of one pixel.
BGNN_INLINE void bconv2d_write(const BgnnBconv2d& a, const Bconv2dShared& s, int64_t pixel, int64_t group, int64_t o,
                               Lanes sums, const uint8_t* outside, int64_t outside_count) {
  EightInts counts = __builtin_convertvector(sums, EightInts);
  int64_t inputs = s.taps * a.channels;  // that meet a weight
  if (outside_count > 0 && !a.pad_one) {
    for (int64_t tap = 0; tap < s.taps; tap++) {
      if (!outside[tap]) continue;
      const int32_t* ones = s.tap_ones + (group * s.taps + tap) * s.padded + o;
      for (int l = 0; l < kLanes; l++) counts[l] -= ones[l];
    }
    inputs -= outside_count * a.channels;
  }
  const int64_t channel = group * s.channels_out + o;
  const size_t real = size_t(at_most(kLanes, s.channels_out - o)) * 4;
  if (a.out) {
    EightInts dot = int32_t(inputs) - 2 * counts;
    dot = dot < int32_t(a.clamp_min) ? EightInts{} + int32_t(a.clamp_min) : dot;
    dot = dot > int32_t(a.clamp_max) ? EightInts{} + int32_t(a.clamp_max) : dot;
    Eight multiplier = {}, bias = {};
    const bool whole = real == sizeof multiplier;  // a copy of a fixed size is one instruction
    memcpy(&multiplier, a.multiplier + channel, whole ? sizeof multiplier : real);
    memcpy(&bias, a.bias + channel, whole ? sizeof bias : real);
    const Eight scaled = __builtin_convertvector(dot, Eight) * multiplier;
    const Eight value = scaled + bias;
    float* out = a.out + pixel * a.out_channels + channel;
    if (whole) {
      memcpy(out, &value, sizeof value);
    } else {
      memcpy(out, &value, real);
    }
    return;
  }
  const int64_t half = a.pad_one ? 0 : outside_count * (a.channels / 2);
  EightInts thresholds = EightInts{} + INT32_MAX;
  if (real == sizeof thresholds) {
    memcpy(&thresholds, a.thresholds + channel, sizeof thresholds);
  } else {
    memcpy(&thresholds, a.thresholds + channel, real);
  }
  const uint32_t bits = eight_bits(counts + int32_t(half) > thresholds);
  // The group's channels may start within a byte, and then reach into the next word.
  uint8_t* out = reinterpret_cast<uint8_t*>(a.out_bits + pixel * ((a.out_channels + 31) / 32)) + channel / 8;
  out[0] = uint8_t(out[0] | bits << channel % 8);
  if (bits << channel % 8 > 0xff) out[1] = uint8_t(out[1] | bits << channel % 8 >> 8);
}

static void bconv2d_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnBconv2d& a = *static_cast<const BgnnBconv2d*>(args);
  const Bconv2dShared s = layout_in<Bconv2dShared>(a, const_cast<void*>(shared));
  const Bconv2dScratch t = layout_in<Bconv2dScratch>(a, scratch);
  if (a.out_bits) {
    const int64_t words = (a.out_channels + 31) / 32;
    memset(a.out_bits + begin * words, 0, size_t((end - begin) * words) * 4);
  }
  for (int64_t pixel = begin; pixel < end; pixel += kPixels) {
    const int64_t pixels = at_most(kPixels, end - pixel);
    for (int64_t g = 0; g < a.groups; g++) {
      int64_t outside[kPixels];
      for (int64_t i = 0; i < pixels; i++) {
        outside[i] = bconv2d_patch(a, pixel + i, g, t.patches + i * s.w64, t.outside + i * s.taps);
      }
      for (int64_t o = 0; o < s.channels_out; o += kLanes) {
        const uint64_t* block = s.weights + (g * s.padded + o) * s.w64;
        for (int64_t i = 0; i < pixels; i++) {
          Lanes sums = {};
          add_popcounts(t.patches + i * s.w64, block, s.w64, sums);
          bconv2d_write(a, s, pixel + i, g, o, sums, t.outside + i * s.taps, outside[i]);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------- bmaxpool2d

static int64_t bmaxpool2d_begin(const void* args, void*) {
  const BgnnBMaxPool2d& a = *static_cast<const BgnnBMaxPool2d*>(args);
  return a.batch * a.out_height * a.out_width;
}

static void bmaxpool2d_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnBMaxPool2d& a = *static_cast<const BgnnBMaxPool2d*>(args);
  for (int64_t pixel = begin; pixel < end; pixel++) {
    const int64_t left = pixel % a.out_width * a.stride_width - a.pad_left;
    const int64_t top = pixel / a.out_width % a.out_height * a.stride_height - a.pad_top;
    const int32_t* image = a.x + pixel / (a.out_width * a.out_height) * a.height * a.width * a.words;
    int32_t* out = a.out + pixel * a.words;
    for (int64_t w = 0; w < a.words; w++) out[w] = -1;
    for (int64_t y = top < 0 ? 0 : top; y < at_most(top + a.filter_height, a.height); y++) {
      for (int64_t x = left < 0 ? 0 : left; x < at_most(left + a.filter_width, a.width); x++) {
        const int32_t* from = image + (y * a.width + x) * a.words;
        for (int64_t w = 0; w < a.words; w++) out[w] &= from[w];
      }
    }
  }
}

#include "edge_max.h"
#include "scaled_pool.h"

}  // namespace

// ---------------------------------------------------------------------------------------------- table

#define edge_max_shared_bytes no_bytes
#define edge_max_scratch_bytes no_bytes
#define scaled_pool_scratch_bytes no_bytes
#define gather_max_shared_bytes no_bytes
#define gather_max_scratch_bytes no_bytes
#define quantize_shared_bytes no_bytes
#define quantize_scratch_bytes no_bytes
#define quantize_int8_shared_bytes no_bytes
#define quantize_int8_scratch_bytes no_bytes
#define dequantize_shared_bytes no_bytes
#define dequantize_scratch_bytes no_bytes
#define dequantize_int8_shared_bytes no_bytes
#define dequantize_int8_scratch_bytes no_bytes
#define bmaxpool2d_shared_bytes no_bytes
#define bmaxpool2d_scratch_bytes no_bytes

#define BGNN_GENERIC_ENTRY(function, Args, FIELDS) \
  {function##_shared_bytes, function##_scratch_bytes, function##_begin, function##_run},

#endif
