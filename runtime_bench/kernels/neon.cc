// NEON for the Cortex-A72: eor, cnt and pairwise additions, no dot-product instructions. XOR edge convolution,
// pooling and Hamming k-NN count 16 channels or nodes at a time in bytes. Adding bits, in columns or by table, was tried
// and lost: bsl, the heart of a full adder, takes both vector pipes. The rest is generic.h on 16-byte vectors.
#include "generic.h"
#include "isa.h"

namespace {

constexpr int64_t kChannels = 16;  // counted together
constexpr int64_t kEdgeWords = 3;  // 64-bit words of a half row whose popcount fits a byte

// The bytes' popcounts of row ^ weights, summed over the words: 2 channels in each vector. The channels stand as two
// interleaved blocks of 8.
template <int64_t kWords>
BGNN_INLINE void byte_sums(const uint64_t* row, const uint64_t* weights, int64_t any_words, uint8x16_t* sums) {
  const int64_t words = kWords ? kWords : any_words;
#pragma GCC unroll 8
  for (int64_t w = 0; w < words; w++) {
    const uint64x2_t word = vdupq_n_u64(row[w]);
    for (int64_t i = 0; i < 8; i++) {
      const uint64_t* pair = weights + (i / 4 * words + w) * kLanes + i % 4 * 2;
      const uint8x16_t ones = vcntq_u8(vreinterpretq_u8_u64(veorq_u64(word, vld1q_u64(pair))));
      sums[i] = w == 0 ? ones : vaddq_u8(sums[i], ones);
    }
  }
}

// The popcounts of 16 channels, a byte each: for up to kEdgeWords words.
template <int64_t kWords>
BGNN_INLINE uint8x16_t differing(const uint64_t* row, const uint64_t* weights) {
  uint8x16_t sums[8];
  byte_sums<kWords>(row, weights, kWords, sums);
  const uint8x16_t a = vpaddq_u8(vpaddq_u8(sums[0], sums[1]), vpaddq_u8(sums[2], sums[3]));
  const uint8x16_t b = vpaddq_u8(vpaddq_u8(sums[4], sums[5]), vpaddq_u8(sums[6], sums[7]));
  return vpaddq_u8(a, b);
}

// ------------------------------------------------------------------------------------------ xor_edge_conv

bool edges_are_short(const BgnnXorEdgeConv& a) { return words64(a.words) <= kEdgeWords && a.words > 0 && a.tables <= 2; }

struct EdgeShared {
  uint64_t* rows;       // [batch, nodes, w64]
  uint64_t* node_half;  // w1, interleaved
  uint64_t* edge_half;  // w2, interleaved
  int16_t* low;         // [padded]: the threshold; of two the smaller one
  int16_t* high;        // [padded]: the larger one, or INT16_MAX
  uint32_t* table;
  uint32_t* first;
  int32_t* next;
  int32_t* heads;
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of 32
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, 32);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    node_half = c.take<uint64_t>(padded * w64);
    edge_half = c.take<uint64_t>(padded * w64);
    low = c.take<int16_t>(padded);
    high = c.take<int16_t>(padded);
    table = c.take<uint32_t>(table_size(a.nodes));
    first = c.take<uint32_t>(a.batch * a.nodes);
    next = c.take<int32_t>(a.batch * a.nodes);
    heads = c.take<int32_t>(a.batch * a.nodes);
  }
};

struct EdgeScratch {
  uint64_t* edges;  // [k + 1, w64]
  uint32_t* seen;   // [nodes]
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    edges = c.take<uint64_t>((a.k + 1) * words64(a.words));
    seen = c.take<uint32_t>(a.nodes);
  }
};

int64_t edge_shared_bytes(const void* args) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  return edges_are_short(a) ? bytes_of<EdgeShared>(a) : xor_edge_conv_shared_bytes(args);
}
int64_t edge_scratch_bytes(const void* args) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  return edges_are_short(a) ? bytes_of<EdgeScratch>(a) : xor_edge_conv_scratch_bytes(args);
}

// Counts are 0..384, so a threshold outside means always or never.
int16_t narrow(int64_t threshold) {
  return int16_t(threshold < -1 ? -1 : threshold > INT16_MAX ? INT16_MAX : threshold);
}

int64_t edge_begin(const void* args, void* shared) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  if (!edges_are_short(a)) return xor_edge_conv_begin(args, shared);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  const EdgeShared s = layout_in<EdgeShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  interleave(a.weights, a.out_channels, s.padded, a.words, 2 * a.words, s.node_half);
  interleave(a.weights + a.words, a.out_channels, s.padded, a.words, 2 * a.words, s.edge_half);
  for (int64_t o = 0; o < s.padded; o++) {
    s.low[o] = s.high[o] = INT16_MAX;  // padding channels: never above
    if (o >= a.out_channels) continue;
    s.low[o] = narrow(a.thresholds[o]);
    if (a.tables == 1) continue;
    const int16_t other = narrow(a.thresholds[a.out_channels + o]);
    s.high[o] = s.low[o] > other ? s.low[o] : other;
    s.low[o] = s.low[o] > other ? other : s.low[o];
  }
  return xor_edge_conv_find_heads(a, s);
}

// All ones in the bytes where node + edge > threshold.
BGNN_INLINE uint8x16_t is_above(uint8x16_t node, uint8x16_t edge, const int16_t* thresholds) {
  const int16x8_t low = vreinterpretq_s16_u16(vaddl_u8(vget_low_u8(node), vget_low_u8(edge)));
  const int16x8_t high = vreinterpretq_s16_u16(vaddl_high_u8(node, edge));
  return vcombine_u8(vmovn_u16(vcgtq_s16(low, vld1q_s16(thresholds))),
                     vmovn_u16(vcgtq_s16(high, vld1q_s16(thresholds + 8))));
}

// 16 channels of one node. All signs are -1 exactly where low < p <= high for every edge, so the least and the
// largest count over the edges decide.
template <int64_t kWords, bool kHigh>
BGNN_INLINE uint32_t edge_block(const EdgeShared& s, const uint64_t* x, const uint64_t* edges, int64_t count, int64_t o) {
  const uint64_t* weights = s.edge_half + o * kWords;
  uint8x16_t least = differing<kWords>(edges, weights), most = least;
  for (int64_t j = 1; j < count; j++) {
    const uint8x16_t p = differing<kWords>(edges + j * kWords, weights);
    least = vminq_u8(least, p);
    if (kHigh) most = vmaxq_u8(most, p);
  }
  const uint8x16_t node = differing<kWords>(x, s.node_half + o * kWords);
  uint8x16_t minus = is_above(node, least, s.low + o);
  if (kHigh) minus = vbicq_u8(minus, is_above(node, most, s.high + o));
  const uint8x16_t weight_of_bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bits = vandq_u8(minus, weight_of_bit);
  return uint32_t(vaddv_u8(vget_low_u8(bits))) | uint32_t(vaddv_u8(vget_high_u8(bits))) << 8;
}

template <int64_t kWords, bool kHigh>
void edge_items(const BgnnXorEdgeConv& a, const EdgeShared& s, const EdgeScratch& t, int64_t begin, int64_t end) {
  memset(t.seen, 0, size_t(a.nodes) * 4);
  for (int64_t item = begin; item < end; item++) {
    const int64_t row = s.heads[item], batch_row = row / a.nodes * a.nodes;
    const int64_t count =
        xor_edge_conv_edges(s, a.neighbours + row * a.k, a.k, batch_row, row, uint32_t(item - begin + 1), t);
    int32_t* out = a.out + row * (s.padded / 32);
    const uint64_t* x = s.rows + row * kWords;
    for (int64_t o = 0; o < s.padded; o += 32) {
      const uint32_t word = edge_block<kWords, kHigh>(s, x, t.edges, count, o) |
                            edge_block<kWords, kHigh>(s, x, t.edges, count, o + kChannels) << kChannels;
      const int64_t real = a.out_channels - o;
      out[o / 32] = int32_t(real < 32 ? word & ((1u << real) - 1) : word);
    }
    xor_edge_conv_write_equal(a, s.next, batch_row, row);
  }
}

void edge_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  if (!edges_are_short(a)) return xor_edge_conv_run(args, shared, scratch, begin, end);
  const EdgeShared s = layout_in<EdgeShared>(a, const_cast<void*>(shared));
  const EdgeScratch t = layout_in<EdgeScratch>(a, scratch);
  const auto items = [&](auto one, auto two) { return a.tables == 1 ? one(a, s, t, begin, end) : two(a, s, t, begin, end); };
  switch (s.w64) {
    case 1: return items(edge_items<1, false>, edge_items<1, true>);
    case 2: return items(edge_items<2, false>, edge_items<2, true>);
    default: return items(edge_items<3, false>, edge_items<3, true>);
  }
}

// ------------------------------------------------------------------------------------------ dense_pool

constexpr int64_t kPoolWords = 15;  // sums of two bytes' popcounts over the words fit a byte

bool rows_are_short(const BgnnDensePool& a) { return words64(a.words) <= kPoolWords && a.words > 0; }

struct PoolShared {
  uint64_t* rows;     // [batch, nodes, w64]
  uint64_t* weights;  // interleaved
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of kPoolChannels
  void lay(const BgnnDensePool& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, kPoolChannels);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    weights = c.take<uint64_t>(padded * w64);
  }
};

int64_t pool_shared_bytes(const void* args) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  return rows_are_short(a) ? bytes_of<PoolShared>(a) : dense_pool_shared_bytes(args);
}
int64_t pool_scratch_bytes(const void* args) {
  return rows_are_short(*static_cast<const BgnnDensePool*>(args)) ? 0 : dense_pool_scratch_bytes(args);
}

int64_t pool_begin(const void* args, void* shared) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  if (!rows_are_short(a)) return dense_pool_begin(args, shared);
  const PoolShared s = layout_in<PoolShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  interleave(a.weights, a.out_channels, s.padded, a.words, a.words, s.weights);
  return a.batch * (s.padded / kPoolChannels);
}

// 16 channels over all nodes; two vectors of 8 channels for each statistic. Sums of few nodes fit 16 bits.
constexpr int64_t kShortSum = 64;
static_assert(kShortSum * kPoolWords * 64 <= UINT16_MAX, "the popcounts of so many rows");

struct PoolSums {
  uint16x8_t least[2], most[2], total[2], positive[2];
};

// From a node's popcounts of bytes: two channels in each of the 8 vectors.
BGNN_INLINE void pool_node(const uint8x16_t* sums, uint16x8_t channels, PoolSums& t) {
  for (int i = 0; i < 2; i++) {
    const uint16x8_t low = vpaddlq_u8(vpaddq_u8(sums[i * 4], sums[i * 4 + 1]));
    const uint16x8_t high = vpaddlq_u8(vpaddq_u8(sums[i * 4 + 2], sums[i * 4 + 3]));
    const uint16x8_t p = vpaddq_u16(low, high);
    t.least[i] = vminq_u16(t.least[i], p);
    t.most[i] = vmaxq_u16(t.most[i], p);
    t.total[i] = vaddq_u16(t.total[i], p);
    t.positive[i] = vaddq_u16(t.positive[i], vqsubq_u16(channels, vaddq_u16(p, p)));  // max(channels - 2 p, 0)
  }
}

template <int64_t kWords>
BGNN_INLINE void pool_block(const BgnnDensePool& a, const PoolShared& s, int64_t b, int64_t o) {
  const uint64_t *rows = s.rows + b * a.nodes * s.w64, *weights = s.weights + o * s.w64;
  const uint16x8_t channels = vdupq_n_u16(uint16_t(a.channels));
  PoolSums t;
  for (int i = 0; i < 2; i++) {
    t.least[i] = vdupq_n_u16(UINT16_MAX);
    t.most[i] = vdupq_n_u16(0);
  }
  uint32_t totals[kChannels] = {}, positives[kChannels] = {};
  for (int64_t n = 0; n < a.nodes;) {
    const int64_t stop = at_most(n + kShortSum, a.nodes);
    for (int i = 0; i < 2; i++) t.total[i] = t.positive[i] = vdupq_n_u16(0);
    for (; n < stop; n++) {
      uint8x16_t sums[8];
      byte_sums<kWords>(rows + n * s.w64, weights, s.w64, sums);
      pool_node(sums, channels, t);
    }
    uint16_t total[kChannels], positive[kChannels];
    memcpy(total, t.total, sizeof total);
    memcpy(positive, t.positive, sizeof positive);
    for (int64_t l = 0; l < kChannels; l++) {
      totals[l] += total[l];
      positives[l] += positive[l];
    }
  }
  uint16_t leasts[kChannels], mosts[kChannels];
  memcpy(leasts, t.least, sizeof leasts);
  memcpy(mosts, t.most, sizeof mosts);
  for (int64_t l = 0; l < at_most(kChannels, a.out_channels - o); l++) {
    write_pool(a, b, o + l, leasts[l], mosts[l], positives[l], totals[l]);
  }
}

template <int64_t kWords>
void pool_items(const BgnnDensePool& a, const PoolShared& s, int64_t begin, int64_t end) {
  const int64_t blocks = s.padded / kPoolChannels;
  for (int64_t item = begin; item < end; item++) {
    const int64_t from = item % blocks * kPoolChannels, to = at_most(from + kPoolChannels, a.out_channels);
    for (int64_t o = from; o < to; o += kChannels) pool_block<kWords>(a, s, item / blocks, o);
  }
}

void pool_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  if (!rows_are_short(a)) return dense_pool_run(args, shared, scratch, begin, end);
  const PoolShared s = layout_in<PoolShared>(a, const_cast<void*>(shared));
  if (s.w64 == 8) return pool_items<8>(a, s, begin, end);
  return pool_items<0>(a, s, begin, end);
}

// ------------------------------------------------------------------------------------------ nearest

// Choosing the k nearest as in generic.h, with few branches: the k-th smallest of the groups' least keys bounds them,
// what lies within the bound is listed, and how many keys are below each one puts them in order.

constexpr int64_t kFewGroups = 32;  // bound well enough up to kFewNearest
constexpr int64_t kFewNearest = 24;
constexpr int64_t kMostNearest = 48;  // that kGroups bound well enough

BGNN_INLINE uint8x16_t turn(uint8x16_t v) { return vextq_u8(v, v, 1); }
BGNN_INLINE uint16x8_t turn(uint16x8_t v) { return vextq_u16(v, v, 1); }
BGNN_INLINE int32x4_t turn(int32x4_t v) { return vextq_s32(v, v, 1); }
BGNN_INLINE void fill(uint8x16_t& v, int64_t n) { v = vdupq_n_u8(uint8_t(n)); }
BGNN_INLINE void fill(uint16x8_t& v, int64_t n) { v = vdupq_n_u16(uint16_t(n)); }
BGNN_INLINE uint8_t largest(uint8x16_t v) { return vmaxvq_u8(v); }
BGNN_INLINE uint16_t largest(uint16x8_t v) { return vmaxvq_u16(v); }

template <class V, class T>
BGNN_INLINE V load_as(const T* at) {
  V v;
  memcpy(&v, at, sizeof v);
  return v;
}

// The k-th smallest of the numbers in kVectors vectors is the largest of those that fewer than k are below.
template <int kVectors, class V>
BGNN_INLINE auto kth_smallest(const V* v, int64_t k) {
  V below[kVectors] = {}, turned[kVectors], kth = {};
  memcpy(turned, v, sizeof turned);
  for (size_t lane = 0; lane < sizeof(V) / sizeof(v[0][0]); lane++) {
    for (int i = 0; i < kVectors; i++) {
      for (int j = 0; j < kVectors; j++) below[j] -= (V)(v[j] > turned[i]);
      turned[i] = turn(turned[i]);
    }
  }
  V wanted;
  fill(wanted, k);
  for (int j = 0; j < kVectors; j++) {
    const V candidate = v[j] & (V)(below[j] < wanted);
    kth = candidate > kth ? candidate : kth;
  }
  return largest(kth);
}

// below[i] = how many keys are below key i. `keys` is filled up to whole vectors with a key that none is above.
template <class V, class T>
BGNN_INLINE void count_below(const T* keys, int64_t count, T* below) {
  constexpr int64_t kKeys = sizeof(V) / sizeof(T);
  memset(below, 0, size_t(up(count, kKeys)) * sizeof(T));
  for (int64_t i = 0; i < count; i += kKeys) {
    V others[kKeys];
    others[0] = load_as<V>(keys + i);
    for (int64_t r = 1; r < kKeys; r++) others[r] = turn(others[r - 1]);
    for (int64_t j = 0; j < count; j += kKeys) {
      const V own = load_as<V>(keys + j);
      V more[kKeys];  // all ones where a key is above
      for (int64_t r = 0; r < kKeys; r++) more[r] = (V)(own > others[r]);
      for (int64_t left = kKeys / 2; left > 0; left /= 2) {  // not one long chain of additions
        for (int64_t r = 0; r < left; r++) more[r] += more[left + r];
      }
      const V sum = load_as<V>(below + j) - more[0];
      memcpy(below + j, &sum, sizeof sum);
    }
  }
}

// Lists the places of the ones, ascending: word(n) has a bit for each of the nodes n to n + 63. Returns how many, or
// more than kCandidates where they do not fit. `positions` has room for kCandidates + 64.
template <class Word>
BGNN_INLINE int64_t list_places(int64_t nodes, Word word, int32_t* positions) {
  constexpr int64_t kUsual = 4;  // written in any case: loops over few bits are mispredicted
  int64_t kept = 0;
  for (int64_t n = 0; n < nodes && kept <= kCandidates; n += 64) {
    uint64_t bits = word(n);
    if (nodes - n < 64) bits &= (uint64_t(1) << (nodes - n)) - 1;
    const int64_t count = vaddv_u8(vcnt_u8(vcreate_u8(bits)));
    const auto lowest = [](uint64_t ones) { return __builtin_ctzll(ones | uint64_t(1) << 63); };
    int32_t* to = positions + kept;
    for (int64_t i = 0; i < kUsual; i++, bits &= bits - 1) to[i] = int32_t(n + lowest(bits));
    for (int64_t i = kUsual; i < count; i++, bits &= bits - 1) to[i] = int32_t(n + lowest(bits));
    kept += count;
  }
  return kept;
}

// A bit for each of 64 bytes that are all ones or zero.
BGNN_INLINE uint64_t bits_of_bytes(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t low = vpaddq_u8(vandq_u8(a, bit), vandq_u8(b, bit));
  const uint8x16_t high = vpaddq_u8(vandq_u8(c, bit), vandq_u8(d, bit));
  const uint8x16_t all = vpaddq_u8(low, high);
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}

// ------------------------------------------------------------------------------------------ knn

// The squared distances from node `row` and the least of each group, as distance_keys<3> gives them, where all
// coordinates are finite: no distance is a NaN then.
BGNN_INLINE void finite_distance_keys(const float* columns, int64_t nodes, int64_t padded, int64_t row,
                                      const KnnScratch& t) {
  constexpr int64_t kVectors = kGroups / 4;
  const float *x = columns, *y = columns + padded, *z = columns + 2 * padded;
  const float32x4_t own_x = vdupq_n_f32(x[row]), own_y = vdupq_n_f32(y[row]), own_z = vdupq_n_f32(z[row]);
  int32x4_t least[kVectors];
  for (int32x4_t& keys : least) keys = vdupq_n_s32(INT32_MAX - 1);
  const auto distances = [&](int64_t n) __attribute__((always_inline)) {
    const float32x4_t dx = vsubq_f32(vld1q_f32(x + n), own_x), dy = vsubq_f32(vld1q_f32(y + n), own_y);
    const float32x4_t dz = vsubq_f32(vld1q_f32(z + n), own_z);
    const int32x4_t keys = vreinterpretq_s32_f32(
        vaddq_f32(vaddq_f32(vmulq_f32(dx, dx), vmulq_f32(dy, dy)), vmulq_f32(dz, dz)));
    vst1q_s32(t.keys + n, keys);
    return keys;
  };
  int64_t n = 0;
  for (; n + kGroups <= nodes; n += kGroups) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kVectors; i++) least[i] = vminq_s32(least[i], distances(n + 4 * i));
  }
  memcpy(t.least, least, sizeof least);
  for (; n < nodes; n += 4) {
    distances(n);
    for (int64_t i = n; i < at_most(n + 4, nodes); i++) {
      if (t.keys[i] < t.least[i % kGroups]) t.least[i % kGroups] = t.keys[i];
    }
  }
}

// A bound for the k-th smallest key, k <= kMostNearest: the upper halves of the groups' least keys decide.
BGNN_INLINE int32_t bound(const int32_t* least, int64_t k) {
  uint16x8_t halves[kGroups / 8];
  if (k <= kFewNearest) {
    for (int i = 0; i < kFewGroups / 8; i++) {
      const int32_t* at = least + 8 * i;
      const int32x4_t a = vminq_s32(vld1q_s32(at), vld1q_s32(at + kFewGroups));
      const int32x4_t b = vminq_s32(vld1q_s32(at + 4), vld1q_s32(at + 4 + kFewGroups));
      halves[i] = vuzp2q_u16(vreinterpretq_u16_s32(a), vreinterpretq_u16_s32(b));
    }
    return int32_t(kth_smallest<kFewGroups / 8>(halves, k)) << 16 | 0xffff;
  }
  for (int i = 0; i < kGroups / 8; i++) {
    const int32_t* at = least + 8 * i;
    halves[i] = vuzp2q_u16(vreinterpretq_u16_s32(vld1q_s32(at)), vreinterpretq_u16_s32(vld1q_s32(at + 4)));
  }
  return int32_t(kth_smallest<kGroups / 8>(halves, k)) << 16 | 0xffff;
}

BGNN_INLINE void select_keys(const KnnScratch& t, int64_t nodes, int64_t k, int32_t* out) {
  const int32x4_t limit = vdupq_n_s32(bound(t.least, k));
  const auto word = [&](int64_t n) __attribute__((always_inline)) {
    uint8x16_t bytes[4];
    for (int64_t i = 0; i < 4; i++) {
      uint16x8_t halves[2];
      for (int64_t h = 0; h < 2; h++) {
        const int32_t* at = t.keys + n + 16 * i + 8 * h;
        halves[h] = vuzp1q_u16(vreinterpretq_u16_u32(vcleq_s32(vld1q_s32(at), limit)),
                               vreinterpretq_u16_u32(vcleq_s32(vld1q_s32(at + 4), limit)));
      }
      bytes[i] = vuzp1q_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1]));
    }
    return bits_of_bytes(bytes[0], bytes[1], bytes[2], bytes[3]);
  };
  const int64_t kept = list_places(nodes, word, t.positions);
  if (kept > kCandidates) return select_smallest(t.keys, nodes, k, t.best, out);
  for (int64_t i = 0; i < kept; i++) t.found[i] = t.keys[t.positions[i]];
  for (int64_t i = kept; i < up(kept, 4); i++) t.found[i] = INT32_MAX;
  int32_t below[kCandidates];
  count_below<int32x4_t>(t.found, kept, below);
  memset(t.place, 0xff, size_t(kept) * 4);
  for (int64_t i = 0; i < kept; i++) {
    int32_t at = below[i];
    while (t.place[at] >= 0) at++;  // an equal key with a lower index
    t.place[at] = t.positions[i];
  }
  memcpy(out, t.place, size_t(k) * 4);
}

struct PointsShared {
  KnnShared columns;
  uint8_t* finite;  // [batch]: all its coordinates are
  void lay(const BgnnKnn& a, Carver& c) {
    columns.lay(a, c);
    finite = c.take<uint8_t>(a.batch);
  }
};

bool list_is_short(const BgnnKnn& a) { return a.k <= kMostNearest; }

int64_t points_shared_bytes(const void* args) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  return list_is_short(a) ? bytes_of<PointsShared>(a) : knn_shared_bytes(args);
}

int64_t points_begin(const void* args, void* shared) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!list_is_short(a)) return knn_begin(args, shared);
  const PointsShared s = layout_in<PointsShared>(a, shared);
  for (int64_t b = 0; b < a.batch; b++) {
    const float* x = a.x + b * a.nodes * a.channels;
    uint32_t wrong = 0;
    for (int64_t i = 0; i < a.nodes * a.channels; i++) wrong |= !(x[i] - x[i] == 0);
    s.finite[b] = !wrong;
  }
  return knn_begin(args, shared);  // the columns come first
}

void points_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!list_is_short(a)) return knn_run(args, shared, scratch, begin, end);
  const PointsShared s = layout_in<PointsShared>(a, const_cast<void*>(shared));
  const KnnScratch t = layout_in<KnnScratch>(a, scratch);
  const int64_t padded = s.columns.padded;
  for (int64_t item = begin; item < end; item++) {
    const int64_t b = item / a.nodes, row = item - b * a.nodes;
    const float* columns = s.columns.columns + b * a.channels * padded;
    if (a.channels == 3 && s.finite[b]) {
      finite_distance_keys(columns, a.nodes, padded, row, t);
    } else {
      distance_keys<0>(columns, a.nodes, padded, a.channels, row, t);
    }
    select_keys(t, a.nodes, a.k, a.neighbours + item * a.k);
  }
}

// ------------------------------------------------------------------------------------------ hamming_knn

// For codes of one or two 64-bit words, and few neighbours, distances are bytes, counted for 16 nodes at a time.
bool codes_are_short(const BgnnHammingKnn& a) {
  return a.words > 0 && words64(a.words) <= 2 && a.k <= kMostNearest;
}

struct CodesShared {
  uint64_t* rows;  // and what follows: see HammingKnnShared
  uint32_t* table;
  uint32_t* first;
  int32_t* next;
  int32_t* heads;
  int64_t w64;
  void lay(const BgnnHammingKnn& a, Carver& c) {
    w64 = words64(a.words);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    table = c.take<uint32_t>(table_size(a.nodes));
    first = c.take<uint32_t>(a.nodes);
    next = c.take<int32_t>(a.batch * a.nodes);
    heads = c.take<int32_t>(a.batch * a.nodes);
  }
};

struct CodesScratch {
  uint8_t* distances;  // [up(nodes, 64)]
  int32_t* positions;  // [kCandidates + 64]
  void lay(const BgnnHammingKnn& a, Carver& c) {
    distances = c.take<uint8_t>(up(a.nodes, 64));
    positions = c.take<int32_t>(kCandidates + 64);
  }
};

int64_t codes_shared_bytes(const void* args) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  return codes_are_short(a) ? bytes_of<CodesShared>(a) : hamming_knn_shared_bytes(args);
}
int64_t codes_scratch_bytes(const void* args) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  return codes_are_short(a) ? bytes_of<CodesScratch>(a) : hamming_knn_scratch_bytes(args);
}

int64_t codes_begin(const void* args, void* shared) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  if (!codes_are_short(a)) return hamming_knn_begin(args, shared);
  const CodesShared s = layout_in<CodesShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  HammingKnnShared like = {};
  like.rows = s.rows, like.table = s.table, like.first = s.first, like.next = s.next, like.heads = s.heads;
  like.w64 = s.w64;
  return hamming_knn_find_heads(a, like);
}

// The distances of 16 rows of kWords words from a row, which fills `own`.
template <int64_t kWords>
BGNN_INLINE uint8x16_t sixteen_distances(uint64x2_t own, const uint64_t* rows) {
  constexpr int kVectors = 8 * kWords;
  uint8x16_t sums[kVectors];
  for (int i = 0; i < kVectors; i++) sums[i] = vcntq_u8(vreinterpretq_u8_u64(veorq_u64(own, vld1q_u64(rows + 2 * i))));
  for (int left = kVectors / 2; left > 0; left /= 2) {
    for (int i = 0; i < left; i++) sums[i] = vpaddq_u8(sums[2 * i], sums[2 * i + 1]);
  }
  return sums[0];
}

// The k nearest of all nodes, by counting how many have each distance.
void select_by_counting(const uint8_t* distances, int64_t nodes, int64_t k, int32_t* out) {
  int32_t start[UINT8_MAX + 2] = {};
  for (int64_t n = 0; n < nodes; n++) start[distances[n] + 1]++;
  for (int d = 1; d <= UINT8_MAX; d++) start[d] += start[d - 1];
  for (int64_t n = 0; n < nodes; n++) {
    const int32_t at = start[distances[n]]++;
    if (at < k) out[at] = int32_t(n);
  }
}

BGNN_INLINE void select_distances(const CodesScratch& t, const uint8x16_t* least, int64_t nodes, int64_t k, int32_t* out) {
  uint8_t limit;
  if (k <= kFewNearest) {
    const uint8x16_t few[2] = {vminq_u8(least[0], least[2]), vminq_u8(least[1], least[3])};
    limit = kth_smallest<2>(few, k);
  } else {
    limit = kth_smallest<4>(least, k);
  }
  const uint8x16_t limits = vdupq_n_u8(limit);
  const auto word = [&](int64_t n) __attribute__((always_inline)) {
    const uint8_t* at = t.distances + n;
    return bits_of_bytes(vcleq_u8(vld1q_u8(at), limits), vcleq_u8(vld1q_u8(at + 16), limits),
                         vcleq_u8(vld1q_u8(at + 32), limits), vcleq_u8(vld1q_u8(at + 48), limits));
  };
  const int64_t kept = list_places(nodes, word, t.positions);
  if (kept > kCandidates) return select_by_counting(t.distances, nodes, k, out);
  static_assert(kCandidates <= 128, "with their number, keys of 9 + 7 bits are all different");
  uint16_t keys[kCandidates + 8], below[kCandidates + 8];
  for (int64_t i = 0; i < kept; i++) keys[i] = uint16_t(t.distances[t.positions[i]] << 7 | i);
  for (int64_t i = kept; i < up(kept, 8); i++) keys[i] = UINT16_MAX;
  count_below<uint16x8_t>(keys, kept, below);
  int32_t ordered[kCandidates];
  for (int64_t i = 0; i < kept; i++) ordered[below[i]] = t.positions[i];
  memcpy(out, ordered, size_t(k) * 4);
}

template <int64_t kWords>
BGNN_INLINE void codes_items(const BgnnHammingKnn& a, const CodesShared& s, const CodesScratch& t, int64_t begin,
                             int64_t end) {
  for (int64_t item = begin; item < end; item++) {
    const int64_t row = s.heads[item], batch_row = row / a.nodes * a.nodes;
    const uint64_t *x = s.rows + row * kWords, *rows = s.rows + batch_row * kWords;
    const uint64x2_t own = kWords == 1 ? vdupq_n_u64(x[0]) : vld1q_u64(x);
    uint8x16_t least[kGroups / 16];
    for (uint8x16_t& bytes : least) bytes = vdupq_n_u8(UINT8_MAX);
    int64_t n = 0;
    for (; n + kGroups <= a.nodes; n += kGroups) {
      for (int64_t i = 0; i < kGroups / 16; i++) {
        const uint8x16_t distances = sixteen_distances<kWords>(own, rows + (n + i * 16) * kWords);
        least[i] = vminq_u8(least[i], distances);
        vst1q_u8(t.distances + n + i * 16, distances);
      }
    }
    if (n < a.nodes) {
      uint8_t bytes[kGroups];
      memcpy(bytes, least, sizeof bytes);
      for (; n < a.nodes; n++) {
        int64_t distance = 0;
        for (int64_t w = 0; w < kWords; w++) distance += popcount64(x[w] ^ rows[n * kWords + w]);
        t.distances[n] = uint8_t(distance);
        if (distance < bytes[n % kGroups]) bytes[n % kGroups] = uint8_t(distance);
      }
      memcpy(least, bytes, sizeof bytes);
    }
    select_distances(t, least, a.nodes, a.k, a.neighbours + row * a.k);
    write_equal_lists(a, s.next, batch_row, row - batch_row);
  }
}

void codes_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  if (!codes_are_short(a)) return hamming_knn_run(args, shared, scratch, begin, end);
  const CodesShared s = layout_in<CodesShared>(a, const_cast<void*>(shared));
  const CodesScratch t = layout_in<CodesScratch>(a, scratch);
  if (s.w64 == 1) return codes_items<1>(a, s, t, begin, end);
  return codes_items<2>(a, s, t, begin, end);
}

}  // namespace

#define knn_shared_bytes points_shared_bytes
#define knn_begin points_begin
#define knn_run points_run
#define hamming_knn_shared_bytes codes_shared_bytes
#define hamming_knn_scratch_bytes codes_scratch_bytes
#define hamming_knn_begin codes_begin
#define hamming_knn_run codes_run
#define xor_edge_conv_shared_bytes edge_shared_bytes
#define xor_edge_conv_scratch_bytes edge_scratch_bytes
#define xor_edge_conv_begin edge_begin
#define xor_edge_conv_run edge_run
#define dense_pool_shared_bytes pool_shared_bytes
#define dense_pool_scratch_bytes pool_scratch_bytes
#define dense_pool_begin pool_begin
#define dense_pool_run pool_run
extern const BgnnKernels bgnn_kernels_neon = {"neon", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
// The same: counting bits gains nothing by dot products. The dense layers on codes (ops/dense_*.cc) go by the names.
extern const BgnnKernels bgnn_kernels_dotprod = {"dotprod", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
extern const BgnnKernels bgnn_kernels_i8mm = {"i8mm", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
