// NEON for the Cortex-A72: eor, cnt and pairwise additions, no dot-product instructions. XOR edge convolution,
// pooling and Hamming k-NN count 16 channels or nodes at a time in bytes, which takes fewer instructions here than bit slicing (a full adder
// is three). The rest is generic.h on 16-byte vectors.
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

// 16 channels over all nodes; two vectors of 8 channels for each statistic.
template <int64_t kWords>
BGNN_INLINE void pool_block(const BgnnDensePool& a, const PoolShared& s, int64_t b, int64_t o) {
  const uint64_t *rows = s.rows + b * a.nodes * s.w64, *weights = s.weights + o * s.w64;
  uint16x8_t least[2], most[2];
  uint32x4_t total[4], positive[4];
  for (int i = 0; i < 2; i++) {
    least[i] = vdupq_n_u16(UINT16_MAX);
    most[i] = vdupq_n_u16(0);
  }
  for (int i = 0; i < 4; i++) total[i] = positive[i] = vdupq_n_u32(0);
  const uint16x8_t channels = vdupq_n_u16(uint16_t(a.channels));
  for (int64_t n = 0; n < a.nodes; n++) {
    uint8x16_t sums[8];
    byte_sums<kWords>(rows + n * s.w64, weights, s.w64, sums);
    for (int i = 0; i < 2; i++) {
      const uint16x8_t low = vpaddlq_u8(vpaddq_u8(sums[i * 4], sums[i * 4 + 1]));
      const uint16x8_t high = vpaddlq_u8(vpaddq_u8(sums[i * 4 + 2], sums[i * 4 + 3]));
      const uint16x8_t p = vpaddq_u16(low, high);
      const uint16x8_t acc = vqsubq_u16(channels, vaddq_u16(p, p));  // max(channels - 2 p, 0)
      least[i] = vminq_u16(least[i], p);
      most[i] = vmaxq_u16(most[i], p);
      total[2 * i] = vaddw_u16(total[2 * i], vget_low_u16(p));
      total[2 * i + 1] = vaddw_high_u16(total[2 * i + 1], p);
      positive[2 * i] = vaddw_u16(positive[2 * i], vget_low_u16(acc));
      positive[2 * i + 1] = vaddw_high_u16(positive[2 * i + 1], acc);
    }
  }
  uint16_t leasts[kChannels], mosts[kChannels];
  uint32_t totals[kChannels], positives[kChannels];
  memcpy(leasts, least, sizeof least);
  memcpy(mosts, most, sizeof most);
  memcpy(totals, total, sizeof total);
  memcpy(positives, positive, sizeof positive);
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

// ------------------------------------------------------------------------------------------ hamming_knn

// For codes of one or two 64-bit words the distances are counted as bytes, 16 nodes at a time, and the nearest are
// chosen as in knn. Scratch is knn's.
bool codes_are_short(const BgnnHammingKnn& a) { return a.words > 0 && words64(a.words) <= 2; }

BgnnKnn knn_of(const BgnnHammingKnn& a) {
  BgnnKnn like = {};
  like.nodes = a.nodes;
  like.k = a.k;
  return like;
}

int64_t nearest_scratch_bytes(const void* args) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  return codes_are_short(a) ? bytes_of<KnnScratch>(knn_of(a)) : hamming_knn_scratch_bytes(args);
}

// The distances of 16 rows of kWords words from a row.
template <int64_t kWords>
BGNN_INLINE uint8x16_t sixteen_distances(const uint64_t* x, const uint64_t* rows) {
  constexpr int kVectors = 8 * kWords;
  const uint64x2_t own = kWords == 1 ? vdupq_n_u64(x[0]) : vld1q_u64(x);
  uint8x16_t sums[kVectors];
  for (int i = 0; i < kVectors; i++) sums[i] = vcntq_u8(vreinterpretq_u8_u64(veorq_u64(own, vld1q_u64(rows + 2 * i))));
  for (int left = kVectors / 2; left > 0; left /= 2) {
    for (int i = 0; i < left; i++) sums[i] = vpaddq_u8(sums[2 * i], sums[2 * i + 1]);
  }
  return sums[0];
}

BGNN_INLINE void widen(uint8x16_t bytes, int32_t* out) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  vst1q_s32(out, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))));
  vst1q_s32(out + 4, vreinterpretq_s32_u32(vmovl_high_u16(low)));
  vst1q_s32(out + 8, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))));
  vst1q_s32(out + 12, vreinterpretq_s32_u32(vmovl_high_u16(high)));
}

// knn's selection; but distances are small integers here, and many are equal, so counting puts them in order.
BGNN_INLINE void select_by_counting(const KnnScratch& t, int64_t nodes, int64_t k, int32_t* out) {
  int32_t limit;
  const int64_t kept = keep_within_bound(t, nodes, k, limit);
  if (kept > kCandidates) return select_smallest(t.keys, nodes, k, t.best, out);
  int32_t start[UINT8_MAX + 2];  // limit is a byte
  memset(start, 0, size_t(limit + 2) * 4);
  for (int64_t i = 0; i < kept; i++) start[t.found[i] + 1]++;
  for (int32_t d = 1; d <= limit; d++) start[d] += start[d - 1];
  for (int64_t i = 0; i < kept; i++) t.place[start[t.found[i]]++] = t.positions[i];
  memcpy(out, t.place, size_t(k) * 4);
}

template <int64_t kWords>
BGNN_INLINE void nearest_items(const BgnnHammingKnn& a, const HammingKnnShared& s, const KnnScratch& t, int64_t begin,
                               int64_t end) {
  for (int64_t item = begin; item < end; item++) {
    const int64_t row = s.heads[item], batch_row = row / a.nodes * a.nodes;
    const uint64_t *x = s.rows + row * kWords, *rows = s.rows + batch_row * kWords;
    uint8x16_t least_bytes[kGroups / 16];
    for (uint8x16_t& bytes : least_bytes) bytes = vdupq_n_u8(UINT8_MAX);
    int64_t n = 0;
    for (; n + kGroups <= a.nodes; n += kGroups) {
      for (int64_t i = 0; i < kGroups / 16; i++) {
        const uint8x16_t distances = sixteen_distances<kWords>(x, rows + (n + i * 16) * kWords);
        least_bytes[i] = vminq_u8(least_bytes[i], distances);
        widen(distances, t.keys + n + i * 16);
      }
    }
    for (int64_t i = 0; i < kGroups / 16; i++) widen(least_bytes[i], t.least + i * 16);
    for (; n < a.nodes; n++) {
      int64_t distance = 0;
      for (int64_t w = 0; w < kWords; w++) distance += popcount64(x[w] ^ rows[n * kWords + w]);
      t.keys[n] = int32_t(distance);
      if (distance < t.least[n % kGroups]) t.least[n % kGroups] = int32_t(distance);
    }
    select_by_counting(t, a.nodes, a.k, a.neighbours + row * a.k);
    write_equal_lists(a, s.next, batch_row, row - batch_row);
  }
}

void nearest_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnHammingKnn& a = *static_cast<const BgnnHammingKnn*>(args);
  if (!codes_are_short(a)) return hamming_knn_run(args, shared, scratch, begin, end);
  const HammingKnnShared s = layout_in<HammingKnnShared>(a, const_cast<void*>(shared));
  const KnnScratch t = layout_in<KnnScratch>(knn_of(a), scratch);
  if (s.w64 == 1) return nearest_items<1>(a, s, t, begin, end);
  return nearest_items<2>(a, s, t, begin, end);
}

}  // namespace

#define hamming_knn_scratch_bytes nearest_scratch_bytes
#define hamming_knn_run nearest_run
#define xor_edge_conv_shared_bytes edge_shared_bytes
#define xor_edge_conv_scratch_bytes edge_scratch_bytes
#define xor_edge_conv_begin edge_begin
#define xor_edge_conv_run edge_run
#define dense_pool_shared_bytes pool_shared_bytes
#define dense_pool_scratch_bytes pool_scratch_bytes
#define dense_pool_begin pool_begin
#define dense_pool_run pool_run
extern const BgnnKernels bgnn_kernels_neon = {"neon", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
