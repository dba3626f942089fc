// k-NN among rows of many channels, for AVX2 and AVX-512. The distances E of the contract (one subtraction,
// multiplication and addition per channel, each rounded, in order) are computed only for rows that can be among the
// nearest. Which those are, a cheaper product tells (Product, of int16_product.h), whose error is
// bounded: the result is the contract's bit for bit. Where the bound leaves too many rows, all are done.
//
// A Product has, beside lay() for its shared memory:
//   kPanel                          nodes that lie together: a divisor of 64
//   Own                             what it keeps of a row that looks for neighbours; own_size(channels) of them
//   fill(a, b)                      takes in batch element b
//   usable(b)                       whether its bound holds there (inputs are finite, and neither huge nor tiny)
//   take(a, b, row, own)            fills `own`
//   tile(a, b, n, own, keys)        its distances of kTileRows rows from the nodes of panel n, as keys
//   raised(a, b, row, limit)        the key up to which rows can be nearest, if k of them have keys up to `limit`; or -1
#include "generic.h"

namespace {

constexpr int64_t kFilterChannels = 12;        // from here on the product pays
constexpr int64_t kMostFilterChannels = 4096;  // rounding errors stay small, and sums of integers fit
constexpr int64_t kRowsTogether = 16;          // rows that pass a panel while it is in the cache

bool is_filtered(const BgnnKnn& a) { return a.channels >= kFilterChannels && a.channels <= kMostFilterChannels; }

struct FilterScratch {
  KnnScratch of_a_row;  // its keys are those of the first row
  int32_t* more_keys;   // [kRowsTogether - 1, padded]
  Product::Own* own;    // [kRowsTogether, own_size]
  void lay(const BgnnKnn& a, Carver& c) {
    of_a_row.lay(a, c);
    more_keys = c.take<int32_t>((kRowsTogether - 1) * up(a.nodes, 64));
    own = c.take<Product::Own>(kRowsTogether * Product::own_size(a.channels));
  }
  int32_t* keys(int64_t row, int64_t padded) const {
    return row == 0 ? of_a_row.keys : more_keys + (row - 1) * padded;
  }
};

int64_t filtered_knn_shared_bytes(const void* args) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  return is_filtered(a) ? bytes_of<Product>(a) : knn_shared_bytes(args);
}
int64_t filtered_knn_scratch_bytes(const void* args) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  return is_filtered(a) ? bytes_of<FilterScratch>(a) : knn_scratch_bytes(args);
}

int64_t filtered_knn_begin(const void* args, void* shared) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!is_filtered(a)) return knn_begin(args, shared);
  const Product product = layout_in<Product>(a, shared);
  for (int64_t b = 0; b < a.batch; b++) product.fill(a, b);
  return a.batch * a.nodes;
}

// Four channels of kInts rows: lane 4 l + i of out[q] is channel i of row 4 l + q.
BGNN_INLINE void load_quads(const float* const* rows, Floats* out) {
  for (int64_t q = 0; q < 4; q++) {
#if defined(__AVX512F__)
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(rows[q]));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[4 + q]), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[8 + q]), 2);
    out[q] = (Floats)_mm512_insertf32x4(v, _mm_loadu_ps(rows[12 + q]), 3);
#else
    const __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(rows[q]));
    out[q] = (Floats)_mm256_insertf128_ps(v, _mm_loadu_ps(rows[4 + q]), 1);
#endif
  }
}

// Afterwards lane 4 l + i of v[q] is what lane 4 l + q of v[i] was: channel q of row 4 l + i.
BGNN_INLINE void transpose_quads(Floats* v) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]), b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]);
  const __m512 c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]), d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
  v[0] = (Floats)_mm512_unpacklo_pd((__m512d)a, (__m512d)c);
  v[1] = (Floats)_mm512_unpackhi_pd((__m512d)a, (__m512d)c);
  v[2] = (Floats)_mm512_unpacklo_pd((__m512d)b, (__m512d)d);
  v[3] = (Floats)_mm512_unpackhi_pd((__m512d)b, (__m512d)d);
#else
  const __m256 a = _mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]), b = _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]);
  const __m256 c = _mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]), d = _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]);
  v[0] = (Floats)_mm256_unpacklo_pd((__m256d)a, (__m256d)c);
  v[1] = (Floats)_mm256_unpackhi_pd((__m256d)a, (__m256d)c);
  v[2] = (Floats)_mm256_unpacklo_pd((__m256d)b, (__m256d)d);
  v[3] = (Floats)_mm256_unpackhi_pd((__m256d)b, (__m256d)d);
#endif
}

BGNN_INLINE Floats four_everywhere(const float* at) {
#if defined(__AVX512F__)
  return (Floats)_mm512_broadcast_f32x4(_mm_loadu_ps(at));
#else
  return (Floats)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(at));
#endif
}

// The contract's distances from row `own`, as keys like distance_keys's, of the rows position(i), i < count; `keys` has
// room for a multiple of kInts.
template <class Position>
BGNN_INLINE void exact_keys(const float* x, int64_t channels, const float* own, int64_t count, Position position,
                            int32_t* keys) {
  for (int64_t i = 0; i < count; i += kInts) {
    const float* rows[kInts];
    for (int64_t l = 0; l < kInts; l++) rows[l] = x + position(at_most(i + l, count - 1)) * channels;
    Floats sum = {};
    int64_t c = 0;
    const auto add = [&](const Floats* loaded, Floats mine) __attribute__((always_inline)) {
      Floats squares[4];
      for (int q = 0; q < 4; q++) {
        const Floats difference = loaded[q] - mine;
        squares[q] = difference * difference;
      }
      transpose_quads(squares);
      for (int q = 0; q < 4; q++) sum += squares[q];
    };
    Floats loaded[4];
    for (; c + 4 <= channels; c += 4) {
      load_quads(rows, loaded);
      add(loaded, four_everywhere(own + c));
      for (int64_t l = 0; l < kInts; l++) rows[l] += 4;
    }
    if (c < channels) {  // channels that are not there add 0
      float last[kInts + 1][4];
      memset(last, 0, sizeof last);
      const float* at[kInts];
      for (int64_t l = 0; l < kInts; l++) {
        memcpy(last[l], rows[l], size_t(channels - c) * 4);
        at[l] = last[l];
      }
      memcpy(last[kInts], own + c, size_t(channels - c) * 4);
      load_quads(at, loaded);
      add(loaded, four_everywhere(last[kInts]));
    }
    store(keys + i, least((Ints)sum & 0x7fffffff, Ints{} + 0x7f800001));
  }
}

// The least key of each group, as distance_keys leaves it.
BGNN_INLINE void least_of_groups(const int32_t* keys, int64_t nodes, int32_t* least_keys) {
  for (int64_t l = 0; l < kGroups; l += kInts) {
    Ints smallest = Ints{} + (INT32_MAX - 1);
    int64_t n = l;
    for (; n + kInts <= nodes; n += kGroups) smallest = least(smallest, load(keys + n));
    if (n < nodes) {
      Ints lane;
      for (int i = 0; i < kInts; i++) lane[i] = i;
      const Ints key = load(keys + n);
      smallest = lane < int32_t(nodes - n) ? least(smallest, key) : smallest;
    }
    store(least_keys + l, smallest);
  }
}

// Chooses a row's neighbours from t.keys, the product's distances. False where that leaves too many rows.
bool select_filtered(const BgnnKnn& a, const Product& product, const KnnScratch& t, int64_t b, int64_t row,
                     int32_t* out) {
  int32_t limit;
  least_of_groups(t.keys, a.nodes, t.least);
  if (!bound(t, a.k, limit)) return false;
  limit = product.raised(a, b, row, limit);
  if (limit < 0) return false;
  const int64_t kept = keep_up_to(t.keys, a.nodes, limit, kCandidates, t.within, t.positions, t.found);
  if (kept > kCandidates) return false;
  const float* x = a.x + b * a.nodes * a.channels;
  exact_keys(x, a.channels, x + row * a.channels, kept, [&](int64_t i) { return int64_t(t.positions[i]); }, t.found);
  rank_keys(t.found, kept, t.place);
  for (int64_t i = 0; i < kept; i++) t.found[t.place[i]] = t.positions[i];
  memcpy(out, t.found, size_t(a.k) * 4);
  return true;
}

void filtered_knn_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!is_filtered(a)) return knn_run(args, shared, scratch, begin, end);
  const Product product = layout_in<Product>(a, const_cast<void*>(shared));
  const FilterScratch t = layout_in<FilterScratch>(a, scratch);
  const int64_t padded = up(a.nodes, 64), own_size = Product::own_size(a.channels);
  for (int64_t item = begin, count; item < end; item += count) {
    const int64_t b = item / a.nodes, row = item - b * a.nodes;
    const bool usable = product.usable(b);
    count = at_most(kRowsTogether, at_most(end - item, a.nodes - row));
    const int64_t filled = up(count, kTileRows);  // the last row fills a tile
    for (int64_t r = 0; usable && r < filled; r++) {
      product.take(a, b, row + at_most(r, count - 1), t.own + r * own_size);
    }
    for (int64_t n = 0; usable && n < padded; n += Product::kPanel) {
      for (int64_t r = 0; r < filled; r += kTileRows) {
        int32_t* keys[kTileRows];
        for (int64_t i = 0; i < kTileRows; i++) keys[i] = t.keys(r + i, padded) + n;
        product.tile(a, b, n, t.own + r * own_size, keys);
      }
    }
    for (int64_t r = 0; r < count; r++) {
      KnnScratch of_row = t.of_a_row;
      of_row.keys = t.keys(r, padded);
      int32_t* out = a.neighbours + (item + r) * a.k;
      if (usable && select_filtered(a, product, of_row, b, row + r, out)) continue;
      const float* x = a.x + b * a.nodes * a.channels;
      exact_keys(x, a.channels, x + (row + r) * a.channels, a.nodes, [](int64_t i) { return i; }, of_row.keys);
      least_of_groups(of_row.keys, a.nodes, of_row.least);
      select_within_bound(of_row, a.nodes, a.k, out);
    }
  }
}

}  // namespace

#define knn_shared_bytes filtered_knn_shared_bytes
#define knn_scratch_bytes filtered_knn_scratch_bytes
#define knn_begin filtered_knn_begin
#define knn_run filtered_knn_run
