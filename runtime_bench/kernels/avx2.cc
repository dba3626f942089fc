// AVX2 has no popcount of vectors, but it looks up 32 nibbles at once: a row's nibble selects a table, the popcounts
// of its differences from all 16 nibbles, and one shuffle takes them for 32 channels. Counts are bytes: two
// instructions for 128 bits, less than half of bit slicing. XOR edge convolution, pooling and RF's edge convolution
// use that, k-NN and the rest are generic.h on 32-byte vectors.
#include "generic.h"
#include "isa.h"

#include "int16_product.h"
#include "filtered_knn.h"

namespace {

constexpr int64_t kBytes = 32;       // channels that are counted together
constexpr int64_t kByteWords = 3;    // 64-bit words whose popcount fits a byte
constexpr int64_t kNibbles = 16;     // in a word
constexpr uint64_t kEntry = 0x1e0;   // a nibble as an offset into kTables

struct Tables {
  alignas(32) uint8_t at[16][32];
  constexpr Tables() : at() {
    for (int own = 0; own < 16; own++) {
      for (int i = 0; i < 32; i++) {
        const int v = own ^ (i & 15);
        at[own][i] = uint8_t((v & 1) + (v >> 1 & 1) + (v >> 2 & 1) + (v >> 3));
      }
    }
  }
};
constexpr Tables kTables;

BGNN_INLINE __m256i load256(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
BGNN_INLINE __m256i table_of(uint64_t offset) {
  return load256(reinterpret_cast<const char*>(kTables.at) + (offset & kEntry));
}

// `channels` rows of `words` int32 words, `stride` words apart, as nibbles: [padded / 32][nibbles][32 channels], a byte
// each; channels up to `padded` (a multiple of 32) are 0.
void nibbles_of(const int32_t* weights, int64_t channels, int64_t padded, int64_t words, int64_t stride, uint8_t* out) {
  const int64_t nibbles = words64(words) * kNibbles;
  memset(out, 0, size_t(padded * nibbles));
  for (int64_t c = 0; c < channels; c++) {
    uint8_t* to = out + c / kBytes * kBytes * nibbles + c % kBytes;
    for (int64_t w = 0; w < words; w++) {
      const uint32_t word = uint32_t(weights[c * stride + w]);
      for (int64_t g = 0; g < 8; g++) to[(w * 8 + g) * kBytes] = (word >> (4 * g)) & 15;
    }
  }
}

// sums[row][block] += the popcounts of `words` words of kRows rows (`stride` words apart) ^ kBlocks blocks of 32
// channels, whose first nibbles of those words are `nibbles`, blocks `block_bytes` apart.
template <int kRows, int kBlocks>
BGNN_INLINE void add_differing(const uint64_t* rows, int64_t stride, const uint8_t* nibbles, int64_t block_bytes,
                               int64_t words, __m256i sums[kRows][kBlocks]) {
  const auto add = [&](const __m256i* tables, const uint8_t* at) __attribute__((always_inline)) {
    for (int b = 0; b < kBlocks; b++) {
      __m256i nibble = load256(at + b * block_bytes);
      asm("" : "+x"(nibble));  // loaded once, not once for each row
      for (int r = 0; r < kRows; r++) sums[r][b] = _mm256_add_epi8(sums[r][b], _mm256_shuffle_epi8(tables[r], nibble));
    }
  };
  for (int64_t w = 0; w < words; w++, rows++) {
    uint64_t rest[kRows];
    for (int r = 0; r < kRows; r++) rest[r] = rows[r * stride];
    for (int64_t g = 0; g < kNibbles; g += 2, nibbles += 2 * kBytes) {
      __m256i tables[kRows];
      for (int r = 0; r < kRows; r++) tables[r] = table_of(rest[r] << 5);
      add(tables, nibbles);
      for (int r = 0; r < kRows; r++) {
        tables[r] = table_of(rest[r] << 1);
        rest[r] >>= 8;
      }
      add(tables, nibbles + kBytes);
    }
  }
}

template <int kRows, int kBlocks>
BGNN_INLINE void clear(__m256i sums[kRows][kBlocks]) {
  for (int r = 0; r < kRows; r++) {
    for (int b = 0; b < kBlocks; b++) sums[r][b] = _mm256_setzero_si256();
  }
}

// 32 bytes as 16-bit numbers, in order.
BGNN_INLINE void widen(__m256i bytes, __m256i out[2]) {
  out[0] = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
  out[1] = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
}

// ------------------------------------------------------------------------------------------ xor_edge_conv

bool edges_are_short(const BgnnXorEdgeConv& a) { return words64(a.words) <= kByteWords && a.words > 0 && a.tables <= 2; }

struct EdgeShared {
  uint64_t* rows;      // [batch, nodes, w64]
  uint8_t* node_half;  // w1, as nibbles
  uint8_t* edge_half;  // w2, as nibbles
  int16_t* low;        // [padded]: the threshold; of two the smaller one
  int16_t* high;       // [padded]: the larger one, or INT16_MAX
  uint32_t* table;
  uint32_t* first;
  int32_t* next;
  int32_t* heads;
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of a group's
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, 2 * kBytes);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    node_half = c.take<uint8_t>(padded * w64 * kNibbles);
    edge_half = c.take<uint8_t>(padded * w64 * kNibbles);
    low = c.take<int16_t>(padded);
    high = c.take<int16_t>(padded);
    table = c.take<uint32_t>(table_size(a.nodes));
    first = c.take<uint32_t>(a.batch * a.nodes);
    next = c.take<int32_t>(a.batch * a.nodes);
    heads = c.take<int32_t>(a.batch * a.nodes);
  }
};

constexpr int64_t kMostRows = 4;  // edges that are counted together

struct EdgeScratch {
  uint64_t* edges;  // [k + kMostRows, w64]
  uint32_t* seen;   // [nodes]
  void lay(const BgnnXorEdgeConv& a, Carver& c) {
    edges = c.take<uint64_t>((a.k + kMostRows) * words64(a.words));
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
  nibbles_of(a.weights, a.out_channels, s.padded, a.words, 2 * a.words, s.node_half);
  nibbles_of(a.weights + a.words, a.out_channels, s.padded, a.words, 2 * a.words, s.edge_half);
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

// Bit l is set where node + edge > threshold in channel l.
BGNN_INLINE uint32_t is_above(__m256i node, __m256i edge, const int16_t* thresholds) {
  __m256i nodes[2], edges[2], above[2];
  widen(node, nodes);
  widen(edge, edges);
  for (int i = 0; i < 2; i++) {
    above[i] = _mm256_cmpgt_epi16(_mm256_add_epi16(nodes[i], edges[i]), load256(thresholds + 16 * i));
  }
  const __m256i bytes = _mm256_packs_epi16(above[0], above[1]);  // in each half: 8 of the one, 8 of the other
  return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
}

// kBlocks * 32 channels of one node, its edges (`count`, filled up to a multiple of kRows) kRows at a time. All signs
// are -1 exactly where low < p <= high for every edge, so the least and the largest count over the edges decide.
template <int kWords, bool kHigh, int kRows, int kBlocks>
BGNN_INLINE void edge_group(const EdgeShared& s, const uint64_t* x, const uint64_t* edges, int64_t count, int64_t o,
                            uint32_t* bits) {
  constexpr int64_t kBlockBytes = kWords * kNibbles * kBytes;
  const uint8_t* half = s.edge_half + o * kWords * kNibbles;
  __m256i least[kBlocks], most[kBlocks];
  for (int b = 0; b < kBlocks; b++) {
    least[b] = _mm256_set1_epi8(-1);
    most[b] = _mm256_setzero_si256();
  }
  for (int64_t j = 0; j < count; j += kRows) {
    __m256i sums[kRows][kBlocks];
    clear<kRows, kBlocks>(sums);
    add_differing<kRows, kBlocks>(edges + j * kWords, kWords, half, kBlockBytes, kWords, sums);
    for (int r = 0; r < kRows; r++) {
      for (int b = 0; b < kBlocks; b++) {
        least[b] = _mm256_min_epu8(least[b], sums[r][b]);
        if (kHigh) most[b] = _mm256_max_epu8(most[b], sums[r][b]);
      }
    }
  }
  __m256i node[1][kBlocks];
  clear<1, kBlocks>(node);
  add_differing<1, kBlocks>(x, kWords, s.node_half + o * kWords * kNibbles, kBlockBytes, kWords, node);
  for (int b = 0; b < kBlocks; b++) {
    bits[b] = is_above(node[0][b], least[b], s.low + o + b * kBytes);
    if (kHigh) bits[b] &= ~is_above(node[0][b], most[b], s.high + o + b * kBytes);
  }
}

template <int kWords, bool kHigh>
void edge_items(const BgnnXorEdgeConv& a, const EdgeShared& s, const EdgeScratch& t, int64_t begin, int64_t end) {
  const int64_t out_words = (a.out_channels + 31) / 32;
  const uint32_t last_word = uint32_t(-1) >> (31 - (a.out_channels - 1) % 32);  // its channels that exist
  memset(t.seen, 0, size_t(a.nodes) * 4);
  for (int64_t item = begin; item < end; item++) {
    const int64_t row = s.heads[item], batch_row = row / a.nodes * a.nodes;
    const int64_t count =
        xor_edge_conv_edges(s, a.neighbours + row * a.k, a.k, batch_row, row, uint32_t(item - begin + 1), t);
    for (int64_t j = count; j < up(count, kMostRows); j++) {
      memcpy(t.edges + j * kWords, t.edges + (count - 1) * kWords, kWords * 8);
    }
    const uint64_t* x = s.rows + row * kWords;
    int32_t* out = a.out + row * out_words;
    int64_t o = 0;
    for (; o + 4 * kBytes <= s.padded; o += 4 * kBytes) {
      uint32_t bits[4];
      edge_group<kWords, kHigh, 2, 4>(s, x, t.edges, count, o, bits);
      memcpy(out + o / 32, bits, size_t(at_most(4, out_words - o / 32)) * 4);
    }
    for (; o < s.padded; o += 2 * kBytes) {
      uint32_t bits[2];
      edge_group<kWords, kHigh, 4, 2>(s, x, t.edges, count, o, bits);
      memcpy(out + o / 32, bits, size_t(at_most(2, out_words - o / 32)) * 4);
    }
    out[out_words - 1] = int32_t(uint32_t(out[out_words - 1]) & last_word);
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

// ------------------------------------------------------------------------------------------ bin_edge_conv

bool edges_are_short(const BgnnBinEdgeConv& a) { return words64(a.words) <= kByteWords && a.words > 0; }

struct BinEdgeShared {
  uint64_t* rows;      // node bits, [batch, nodes, w64]
  uint8_t* node_half;  // w1, as nibbles
  uint8_t* edge_half;  // w2, as nibbles
  float* alpha;        // [padded]
  float* slope;        // [padded]
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of 32
  void lay(const BgnnBinEdgeConv& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, kBytes);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    node_half = c.take<uint8_t>(padded * w64 * kNibbles);
    edge_half = c.take<uint8_t>(padded * w64 * kNibbles);
    alpha = c.take<float>(padded);
    slope = c.take<float>(padded);
  }
};

struct BinEdgeScratch {
  uint64_t* edges;  // [k, w64]
  uint8_t* counts;  // [up(k, kMostRows), 32]: popcounts of a block of channels
  void lay(const BgnnBinEdgeConv& a, Carver& c) {
    edges = c.take<uint64_t>(up(a.k, kMostRows) * words64(a.words));
    counts = c.take<uint8_t>(up(a.k, kMostRows) * kBytes);
  }
};

int64_t bin_edge_shared_bytes(const void* args) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  return edges_are_short(a) ? bytes_of<BinEdgeShared>(a) : bin_edge_conv_shared_bytes(args);
}
int64_t bin_edge_scratch_bytes(const void* args) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  return edges_are_short(a) ? bytes_of<BinEdgeScratch>(a) : bin_edge_conv_scratch_bytes(args);
}

int64_t bin_edge_begin(const void* args, void* shared) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  if (!edges_are_short(a)) return bin_edge_conv_begin(args, shared);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  const BinEdgeShared s = layout_in<BinEdgeShared>(a, shared);
  widen_rows(a.node_bits, a.batch * a.nodes, a.words, s.rows);
  nibbles_of(a.weights, a.out_channels, s.padded, a.words, 2 * a.words, s.node_half);
  nibbles_of(a.weights + a.words, a.out_channels, s.padded, a.words, 2 * a.words, s.edge_half);
  for (int64_t o = 0; o < s.padded; o++) {
    s.alpha[o] = o < a.out_channels ? a.alpha[o] : 0;
    s.slope[o] = o < a.out_channels ? a.slope[a.slopes == 1 ? 0 : o] : 0;
  }
  return a.batch * a.nodes;
}

// start - 2 * 8 popcounts: small integers, exact in floats.
BGNN_INLINE __m256 minus_twice(const uint8_t* counts, __m256 start) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(counts)));
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(-2), start);
}

// From the popcounts of 8 kVectors channels (bytes, an edge's 32 after the other's) to the maximum over the edges.
template <int kVectors>
BGNN_INLINE void bin_edge_max(const BgnnBinEdgeConv& a, const uint8_t* counts, const __m256* node, const float* alphas,
                              const float* slopes, float beta_of_node, float* out) {
  const __m256 beta = _mm256_set1_ps(beta_of_node);
  __m256 most[kVectors], alpha[kVectors], slope[kVectors];
  for (int i = 0; i < kVectors; i++) {
    alpha[i] = _mm256_loadu_ps(alphas + 8 * i);
    slope[i] = _mm256_loadu_ps(slopes + 8 * i);
  }
  for (int64_t j = 0; j < a.k; j++) {
    const __m256 gamma = _mm256_set1_ps(a.gamma[a.gammas == 1 ? 0 : j]);
    for (int i = 0; i < kVectors; i++) {
      const __m256 acc = minus_twice(counts + j * kBytes + 8 * i, node[i]);
      const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(acc, alpha[i]), beta), gamma);
      const __m256 positive = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ);
      const __m256 activated = _mm256_blendv_ps(_mm256_mul_ps(v, slope[i]), v, positive);
      most[i] = j == 0 ? activated : _mm256_max_ps(activated, most[i]);  // the second where equal, or one is NaN
    }
  }
  for (int i = 0; i < kVectors; i++) _mm256_storeu_ps(out + 8 * i, most[i]);
}

template <int kWords>
void bin_edge_items(const BgnnBinEdgeConv& a, const BinEdgeShared& s, const BinEdgeScratch& t, int64_t begin,
                    int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const float *own = a.x + row * a.channels, *others = a.x + row / a.nodes * a.nodes * a.channels;
    const int32_t* list = a.neighbours + row * a.k;
    for (int64_t j = 0; j < a.k; j++) edge_bits(a, own, others + list[j] * a.channels, t.edges + j * kWords);
    for (int64_t j = a.k; j < up(a.k, kMostRows); j++) memcpy(t.edges + j * kWords, t.edges, kWords * 8);
    const float beta = a.beta[a.betas == 1 ? 0 : row % a.nodes];
    for (int64_t o = 0; o < s.padded; o += kBytes) {
      constexpr int64_t kBlockBytes = kWords * kNibbles * kBytes;
      __m256i sums[kMostRows][1];
      clear<1, 1>(sums);
      add_differing<1, 1>(s.rows + row * kWords, kWords, s.node_half + o * kWords * kNibbles, kBlockBytes, kWords, sums);
      uint8_t own_counts[kBytes];
      memcpy(own_counts, sums[0], kBytes);
      __m256 node[4];
      for (int i = 0; i < 4; i++) node[i] = minus_twice(own_counts + 8 * i, _mm256_set1_ps(float(2 * a.channels)));
      for (int64_t j = 0; j < a.k; j += kMostRows) {
        clear<kMostRows, 1>(sums);
        add_differing<kMostRows, 1>(t.edges + j * kWords, kWords, s.edge_half + o * kWords * kNibbles, kBlockBytes,
                                    kWords, sums);
        memcpy(t.counts + j * kBytes, sums, sizeof sums);
      }
      float most[kBytes];
      for (int i = 0; i < 4; i += 2) {
        bin_edge_max<2>(a, t.counts + 8 * i, node + i, s.alpha + o + 8 * i, s.slope + o + 8 * i, beta, most + 8 * i);
      }
      memcpy(a.out + row * a.out_channels + o, most, size_t(at_most(kBytes, a.out_channels - o)) * 4);
    }
  }
}

void bin_edge_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  if (!edges_are_short(a)) return bin_edge_conv_run(args, shared, scratch, begin, end);
  const BinEdgeShared s = layout_in<BinEdgeShared>(a, const_cast<void*>(shared));
  const BinEdgeScratch t = layout_in<BinEdgeScratch>(a, scratch);
  switch (s.w64) {
    case 1: return bin_edge_items<1>(a, s, t, begin, end);
    case 2: return bin_edge_items<2>(a, s, t, begin, end);
    default: return bin_edge_items<3>(a, s, t, begin, end);
  }
}

// ------------------------------------------------------------------------------------------ dense_pool

constexpr int64_t kPoolWords = 31;   // so that kPoolNodes counts add up to less than 2^16
constexpr int64_t kPoolNodes = 32;
constexpr int kPoolRows = 2;    // nodes that are counted together
constexpr int kPoolBlocks = 4;  // blocks of channels of a work item

bool rows_are_short(const BgnnDensePool& a) { return words64(a.words) <= kPoolWords && a.words > 0; }

struct PoolShared {
  uint64_t* rows;    // [batch, nodes, w64]
  uint8_t* weights;  // as nibbles
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of a work item's
  void lay(const BgnnDensePool& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, kPoolBlocks * kBytes);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    weights = c.take<uint8_t>(padded * w64 * kNibbles);
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
  nibbles_of(a.weights, a.out_channels, s.padded, a.words, a.words, s.weights);
  return a.batch * (s.padded / (kPoolBlocks * kBytes));
}

// Statistics of 32 channels, in 16-bit numbers: of the even channels, then of the odd ones.
struct PoolStats {
  __m256i least[2], most[2];
  __m256i total[2], positive[2];  // of at most kPoolNodes nodes
  uint32_t totals[2][16], positives[2][16];
};

// Adds the nodes [n, n + kRows) to the statistics of kPoolBlocks blocks.
template <int kRows>
BGNN_INLINE void pool_nodes(const uint64_t* rows, const uint8_t* weights, int64_t w64, __m256i channels,
                            PoolStats* stats) {
  const int64_t block_bytes = w64 * kNibbles * kBytes;
  __m256i counts[kPoolBlocks][kRows][2];
  for (int64_t w = 0; w < w64; w += kByteWords) {
    __m256i sums[kRows][kPoolBlocks];
    clear<kRows, kPoolBlocks>(sums);
    add_differing<kRows, kPoolBlocks>(rows + w, w64, weights + w * kNibbles * kBytes, block_bytes,
                                      at_most(kByteWords, w64 - w), sums);
    for (int b = 0; b < kPoolBlocks; b++) {
      for (int r = 0; r < kRows; r++) {
        const __m256i even = _mm256_and_si256(sums[r][b], _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(sums[r][b], 8);
        counts[b][r][0] = w == 0 ? even : _mm256_add_epi16(counts[b][r][0], even);
        counts[b][r][1] = w == 0 ? odd : _mm256_add_epi16(counts[b][r][1], odd);
      }
    }
  }
  for (int b = 0; b < kPoolBlocks; b++) {
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < kRows; r++) {
        const __m256i p = counts[b][r][i];
        const __m256i acc = _mm256_subs_epu16(channels, _mm256_add_epi16(p, p));  // max(channels - 2 p, 0)
        stats[b].least[i] = _mm256_min_epu16(stats[b].least[i], p);
        stats[b].most[i] = _mm256_max_epu16(stats[b].most[i], p);
        stats[b].total[i] = _mm256_add_epi16(stats[b].total[i], p);
        stats[b].positive[i] = _mm256_add_epi16(stats[b].positive[i], acc);
      }
    }
  }
}

// Moves the 16-bit sums into the 32-bit ones.
void flush(PoolStats& stats) {
  for (int i = 0; i < 2; i++) {
    uint16_t total[16], positive[16];
    memcpy(total, &stats.total[i], 32);
    memcpy(positive, &stats.positive[i], 32);
    for (int l = 0; l < 16; l++) {
      stats.totals[i][l] += total[l];
      stats.positives[i][l] += positive[l];
    }
    stats.total[i] = stats.positive[i] = _mm256_setzero_si256();
  }
}

void pool_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  if (!rows_are_short(a)) return dense_pool_run(args, shared, scratch, begin, end);
  const PoolShared s = layout_in<PoolShared>(a, const_cast<void*>(shared));
  const int64_t groups = s.padded / (kPoolBlocks * kBytes);
  const __m256i channels = _mm256_set1_epi16(int16_t(a.channels));
  for (int64_t item = begin; item < end; item++) {
    const int64_t b = item / groups, o = item % groups * kPoolBlocks * kBytes;
    const uint64_t* rows = s.rows + b * a.nodes * s.w64;
    const uint8_t* weights = s.weights + o * s.w64 * kNibbles;
    PoolStats stats[kPoolBlocks];
    memset(stats, 0, sizeof stats);
    for (PoolStats& block : stats) block.least[0] = block.least[1] = _mm256_set1_epi16(-1);
    for (int64_t n = 0; n < a.nodes;) {
      const int64_t stop = at_most(a.nodes, n + kPoolNodes);
      for (; n + kPoolRows <= stop; n += kPoolRows) {
        pool_nodes<kPoolRows>(rows + n * s.w64, weights, s.w64, channels, stats);
      }
      for (; n < stop; n++) pool_nodes<1>(rows + n * s.w64, weights, s.w64, channels, stats);
      for (PoolStats& block : stats) flush(block);
    }
    for (int64_t l = 0; l < at_most(kPoolBlocks * kBytes, a.out_channels - o); l++) {
      const PoolStats& block = stats[l / kBytes];
      const int64_t i = l % 2, at = l % kBytes / 2;
      uint16_t least[16], most[16];
      memcpy(least, &block.least[i], 32);
      memcpy(most, &block.most[i], 32);
      write_pool(a, b, o + l, least[at], most[at], block.positives[i][at], block.totals[i][at]);
    }
  }
}

}  // namespace

#define xor_edge_conv_shared_bytes edge_shared_bytes
#define xor_edge_conv_scratch_bytes edge_scratch_bytes
#define xor_edge_conv_begin edge_begin
#define xor_edge_conv_run edge_run
#define bin_edge_conv_shared_bytes bin_edge_shared_bytes
#define bin_edge_conv_scratch_bytes bin_edge_scratch_bytes
#define bin_edge_conv_begin bin_edge_begin
#define bin_edge_conv_run bin_edge_run
#define dense_pool_shared_bytes pool_shared_bytes
#define dense_pool_scratch_bytes pool_scratch_bytes
#define dense_pool_begin pool_begin
#define dense_pool_run pool_run
extern const BgnnKernels bgnn_kernels_avx2 = {"avx2", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
