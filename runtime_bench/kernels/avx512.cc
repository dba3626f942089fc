// AVX-512 with VPOPCNTDQ. Here a popcount of 8 words is one instruction, so where rows are short enough for weights
// to stay in registers, counting words beats bit slicing: XOR edge convolution and pooling. 8 channels stand in a
// vector, a row's word is broadcast to them. The rest is generic.h on 64-byte vectors. No AMX: int8 tiles would only
// pay for dense layers, and the machines at hand (Zen 5) have none.
#include "generic.h"
#include "isa.h"

#include "int16_product.h"
#include "filtered_knn.h"

namespace {

constexpr int64_t kEdgeWords = 4;  // the longest half row, in 64-bit words, whose weights stay in registers
constexpr int64_t kPoolWords = 8;

BGNN_INLINE __m512i load512(const uint64_t* at) { return _mm512_loadu_si512(at); }

// Popcounts of row ^ 8 channels' weights.
template <int64_t kWords>
BGNN_INLINE __m512i differing(const uint64_t* row, const __m512i* weights) {
  __m512i counts = _mm512_popcnt_epi64(_mm512_xor_si512(weights[0], _mm512_set1_epi64(int64_t(row[0]))));
  for (int64_t w = 1; w < kWords; w++) {
    const __m512i word = _mm512_xor_si512(weights[w], _mm512_set1_epi64(int64_t(row[w])));
    counts = _mm512_add_epi64(counts, _mm512_popcnt_epi64(word));
  }
  return counts;
}

// ------------------------------------------------------------------------------------------ xor_edge_conv

bool edges_are_short(const BgnnXorEdgeConv& a) { return words64(a.words) <= kEdgeWords && a.words > 0 && a.tables <= 2; }

struct EdgeShared {
  uint64_t* rows;       // [batch, nodes, w64]
  uint64_t* node_half;  // w1, interleaved
  uint64_t* edge_half;  // w2, interleaved
  int64_t* low;         // [padded]: the threshold; of two the smaller one
  int64_t* high;        // [padded]: the larger one, or INT32_MAX
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
    low = c.take<int64_t>(padded);
    high = c.take<int64_t>(padded);
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

int64_t edge_begin(const void* args, void* shared) {
  const BgnnXorEdgeConv& a = *static_cast<const BgnnXorEdgeConv*>(args);
  if (!edges_are_short(a)) return xor_edge_conv_begin(args, shared);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  const EdgeShared s = layout_in<EdgeShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  interleave(a.weights, a.out_channels, s.padded, a.words, 2 * a.words, s.node_half);
  interleave(a.weights + a.words, a.out_channels, s.padded, a.words, 2 * a.words, s.edge_half);
  for (int64_t o = 0; o < s.padded; o++) {
    s.low[o] = s.high[o] = INT32_MAX;  // padding channels: never above
    if (o >= a.out_channels) continue;
    s.low[o] = a.thresholds[o];
    if (a.tables == 1) continue;
    const int64_t other = a.thresholds[a.out_channels + o];
    s.high[o] = s.low[o] > other ? s.low[o] : other;
    s.low[o] = s.low[o] > other ? other : s.low[o];
  }
  return xor_edge_conv_find_heads(a, s);
}

// 32 channels of one node. All signs are -1 exactly where low < p <= high for every edge, so the least and the
// largest count over the edges decide.
template <int64_t kWords, bool kHigh>
BGNN_INLINE uint32_t edge_block(const EdgeShared& s, const uint64_t* x, const uint64_t* edges, int64_t count, int64_t o) {
  constexpr int64_t kBlocks = kWords == 1 ? 4 : kWords == 2 ? 4 : 2;  // vectors of channels that share an edge's words
  uint32_t bits = 0;
  for (int64_t l = 0; l < 4; l += kBlocks) {
    __m512i weights[kBlocks][kWords], least[kBlocks], most[kBlocks];
    for (int64_t i = 0; i < kBlocks; i++) {
      for (int64_t w = 0; w < kWords; w++) {
        weights[i][w] = load512(s.edge_half + (o + (l + i) * kLanes) * kWords + w * kLanes);
      }
      least[i] = most[i] = differing<kWords>(edges, weights[i]);
    }
    for (int64_t j = 1; j < count; j++) {
      for (int64_t i = 0; i < kBlocks; i++) {
        const __m512i p = differing<kWords>(edges + j * kWords, weights[i]);
        least[i] = _mm512_min_epu64(least[i], p);
        if (kHigh) most[i] = _mm512_max_epu64(most[i], p);
      }
    }
    for (int64_t i = 0; i < kBlocks; i++) {
      const int64_t channel = o + (l + i) * kLanes;
      for (int64_t w = 0; w < kWords; w++) weights[i][w] = load512(s.node_half + channel * kWords + w * kLanes);
      const __m512i node = differing<kWords>(x, weights[i]);
      __mmask8 minus = _mm512_cmpgt_epi64_mask(_mm512_add_epi64(node, least[i]), _mm512_loadu_si512(s.low + channel));
      if (kHigh) {
        minus &= _mm512_cmple_epi64_mask(_mm512_add_epi64(node, most[i]), _mm512_loadu_si512(s.high + channel));
      }
      bits |= uint32_t(minus) << ((l + i) * kLanes);
    }
  }
  return bits;
}

template <int64_t kWords, bool kHigh>
void edge_items(const BgnnXorEdgeConv& a, const EdgeShared& s, const EdgeScratch& t, int64_t begin, int64_t end) {
  memset(t.seen, 0, size_t(a.nodes) * 4);
  for (int64_t item = begin; item < end; item++) {
    const int64_t row = s.heads[item], batch_row = row / a.nodes * a.nodes;
    const int64_t count =
        xor_edge_conv_edges(s, a.neighbours + row * a.k, a.k, batch_row, row, uint32_t(item - begin + 1), t);
    int32_t* out = a.out + row * (s.padded / 32);
    for (int64_t o = 0; o < s.padded; o += 32) {
      const uint32_t word = edge_block<kWords, kHigh>(s, s.rows + row * kWords, t.edges, count, o);
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
    case 3: return items(edge_items<3, false>, edge_items<3, true>);
    default: return items(edge_items<4, false>, edge_items<4, true>);
  }
}

// ------------------------------------------------------------------------------------------ bin_edge_conv

bool edges_are_short(const BgnnBinEdgeConv& a) { return words64(a.words) <= kEdgeWords && a.words > 0; }

// Popcounts of row ^ 16 channels' weights, as floats.
template <int64_t kWords>
BGNN_INLINE __m512 differing16(const uint64_t* row, const __m512i (*weights)[kWords]) {
  const __m512i low_halves = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_cvtepi32_ps(
      _mm512_permutex2var_epi32(differing<kWords>(row, weights[0]), low_halves, differing<kWords>(row, weights[1])));
}

// 16 channels of one node. acc and its parts are small integers, exact in floats; the products are the contract's.
template <int64_t kWords>
BGNN_INLINE void bin_edge_block(const BgnnBinEdgeConv& a, const BinEdgeConvShared& s, const BinEdgeConvScratch& t,
                                int64_t row, int64_t o, float* out) {
  __m512i weights[2][kWords];
  const auto take = [&](const uint64_t* half) {
    for (int64_t i = 0; i < 2; i++) {
      for (int64_t w = 0; w < kWords; w++) weights[i][w] = load512(half + (o + i * kLanes) * kWords + w * kLanes);
    }
  };
  const __m512 minus_two = _mm512_set1_ps(-2);
  take(s.node_half);
  const __m512 node = _mm512_fmadd_ps(differing16<kWords>(s.rows + row * kWords, weights), minus_two,
                                      _mm512_set1_ps(float(2 * a.channels)));
  take(s.edge_half);
  const __m512 alpha = _mm512_loadu_ps(s.alpha + o), slope = _mm512_loadu_ps(s.slope + o);
  const __m512 beta = _mm512_set1_ps(a.beta[a.betas == 1 ? 0 : row % a.nodes]);
  __m512 most = {};
  for (int64_t j = 0; j < a.k; j++) {
    const __m512 acc = _mm512_fmadd_ps(differing16<kWords>(t.edges + j * kWords, weights), minus_two, node);
    const __m512 positioned = _mm512_mul_ps(_mm512_mul_ps(acc, alpha), beta);
    const __m512 v = _mm512_mul_ps(positioned, _mm512_set1_ps(a.gamma[a.gammas == 1 ? 0 : j]));
    const __mmask16 positive = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 activated = _mm512_mask_mov_ps(_mm512_mul_ps(v, slope), positive, v);
    most = j == 0 ? activated : _mm512_max_ps(activated, most);  // the second where they are equal, or one is NaN
  }
  const int64_t real = at_most(2 * kLanes, a.out_channels - o);
  _mm512_mask_storeu_ps(out + o, __mmask16((1u << real) - 1), most);
}

template <int64_t kWords>
void bin_edge_items(const BgnnBinEdgeConv& a, const BinEdgeConvShared& s, const BinEdgeConvScratch& t, int64_t begin,
                    int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const float *own = a.x + row * a.channels, *others = a.x + row / a.nodes * a.nodes * a.channels;
    const int32_t* list = a.neighbours + row * a.k;
    for (int64_t j = 0; j < a.k; j++) edge_bits(a, own, others + list[j] * a.channels, t.edges + j * kWords);
    for (int64_t o = 0; o < a.out_channels; o += 2 * kLanes) {
      bin_edge_block<kWords>(a, s, t, row, o, a.out + row * a.out_channels);
    }
  }
}

void bin_edge_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnBinEdgeConv& a = *static_cast<const BgnnBinEdgeConv*>(args);
  if (!edges_are_short(a)) return bin_edge_conv_run(args, shared, scratch, begin, end);
  const BinEdgeConvShared s = layout_in<BinEdgeConvShared>(a, const_cast<void*>(shared));
  const BinEdgeConvScratch t = layout_in<BinEdgeConvScratch>(a, scratch);
  switch (s.w64) {
    case 1: return bin_edge_items<1>(a, s, t, begin, end);
    case 2: return bin_edge_items<2>(a, s, t, begin, end);
    case 3: return bin_edge_items<3>(a, s, t, begin, end);
    default: return bin_edge_items<4>(a, s, t, begin, end);
  }
}

// ------------------------------------------------------------------------------------------ dense_pool

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

// 8 channels over all nodes. Four nodes' counts (at most 512) share a 64-bit lane as 16-bit numbers, so that the
// statistics cost a quarter each.
template <int64_t kWords>
BGNN_INLINE void pool_block(const BgnnDensePool& a, const PoolShared& s, int64_t b, int64_t o) {
  const uint64_t* rows = s.rows + b * a.nodes * kWords;
  __m512i weights[kWords];
  for (int64_t w = 0; w < kWords; w++) weights[w] = load512(s.weights + o * kWords + w * kLanes);
  __m512i least = _mm512_set1_epi16(INT16_MAX), most = _mm512_setzero_si512();
  __m512i total = _mm512_setzero_si512(), positive = _mm512_setzero_si512();  // 32-bit sums
  const __m512i ones = _mm512_set1_epi16(1), channels = _mm512_set1_epi16(int16_t(a.channels));
  int64_t n = 0;
  for (; n + 4 <= a.nodes; n += 4) {
    __m512i four = _mm512_setzero_si512();
    for (int64_t i = 0; i < 4; i++) four = _mm512_shrdi_epi64(four, differing<kWords>(rows + (n + i) * kWords, weights), 16);
    least = _mm512_min_epi16(least, four);
    most = _mm512_max_epi16(most, four);
    total = _mm512_add_epi32(total, _mm512_madd_epi16(four, ones));
    const __m512i acc = _mm512_subs_epu16(channels, _mm512_add_epi16(four, four));  // max(channels - 2 p, 0)
    positive = _mm512_add_epi32(positive, _mm512_madd_epi16(acc, ones));
  }
  int16_t leasts[kLanes][4], mosts[kLanes][4];
  int32_t totals[kLanes][2], positives[kLanes][2];
  memcpy(leasts, &least, 64);
  memcpy(mosts, &most, 64);
  memcpy(totals, &total, 64);
  memcpy(positives, &positive, 64);
  int64_t rest[3][kLanes];
  for (int64_t i = 0; n + i < a.nodes; i++) {
    const __m512i p = differing<kWords>(rows + (n + i) * kWords, weights);
    memcpy(rest[i], &p, 64);
  }
  for (int64_t l = 0; l < at_most(kLanes, a.out_channels - o); l++) {
    int64_t low = leasts[l][0], high = mosts[l][0];
    for (int i = 1; i < 4; i++) {
      low = at_most(low, leasts[l][i]);
      high = high > mosts[l][i] ? high : mosts[l][i];
    }
    int64_t sum = int64_t(totals[l][0]) + totals[l][1], sum_positive = int64_t(positives[l][0]) + positives[l][1];
    for (int64_t i = 0; n + i < a.nodes; i++) {
      const int64_t p = rest[i][l], acc = a.channels - 2 * p;
      low = at_most(low, p);
      high = high > p ? high : p;
      sum += p;
      sum_positive += acc > 0 ? acc : 0;
    }
    write_pool(a, b, o + l, low, high, sum_positive, sum);
  }
}

template <int64_t kWords>
void pool_items(const BgnnDensePool& a, const PoolShared& s, int64_t begin, int64_t end) {
  const int64_t blocks = s.padded / kPoolChannels;
  for (int64_t item = begin; item < end; item++) {
    const int64_t from = item % blocks * kPoolChannels, to = at_most(from + kPoolChannels, a.out_channels);
    for (int64_t o = from; o < to; o += kLanes) pool_block<kWords>(a, s, item / blocks, o);
  }
}

void pool_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnDensePool& a = *static_cast<const BgnnDensePool*>(args);
  if (!rows_are_short(a)) return dense_pool_run(args, shared, scratch, begin, end);
  const PoolShared s = layout_in<PoolShared>(a, const_cast<void*>(shared));
  switch (s.w64) {
    case 1: return pool_items<1>(a, s, begin, end);
    case 2: return pool_items<2>(a, s, begin, end);
    case 3: return pool_items<3>(a, s, begin, end);
    case 4: return pool_items<4>(a, s, begin, end);
    case 5: return pool_items<5>(a, s, begin, end);
    case 6: return pool_items<6>(a, s, begin, end);
    case 7: return pool_items<7>(a, s, begin, end);
    default: return pool_items<8>(a, s, begin, end);
  }
}

}  // namespace

#define xor_edge_conv_shared_bytes edge_shared_bytes
#define xor_edge_conv_scratch_bytes edge_scratch_bytes
#define xor_edge_conv_begin edge_begin
#define xor_edge_conv_run edge_run
#define bin_edge_conv_run bin_edge_run
#define dense_pool_shared_bytes pool_shared_bytes
#define dense_pool_scratch_bytes pool_scratch_bytes
#define dense_pool_begin pool_begin
#define dense_pool_run pool_run
extern const BgnnKernels bgnn_kernels_avx512 = {"avx512", BGNN_KERNELS(BGNN_GENERIC_ENTRY)};
