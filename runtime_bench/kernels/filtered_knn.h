// k-NN among rows of many channels, for AVX2 and AVX-512. The distances of the contract (one subtraction,
// multiplication and addition per channel, each rounded, in order) are computed only for rows that can be among the
// nearest: a matrix product with fused multiply-adds, a third of the work, tells which. Its error is bounded, so the
// result is the contract's bit for bit; where the bound leaves too many rows, or inputs are not finite, all are done.
//
// The bound. Let u = 2^-24, y = x - mean, rounded; P_n = sum of y_n^2; A the product's distance, |y_n|^2 + |y_r|^2
// - 2 y_n y_r; D the true distance of x; E the contract's. Rounding y moves D by at most 4u (P_n + P_r); A's sums err
// by at most 3 gamma(C + 1) (P_n + P_r), and E by gamma(C + 2) D <= 2 gamma(C + 2) (P_n + P_r), where gamma(m) is about
// m u. So |A - E| <= (5 C + 20) u (P_n + P_r) to first order; kSlack takes (6 C + 64) u, and kTiny covers underflow.
#include "generic.h"

namespace {

constexpr int64_t kFilterChannels = 12;      // from here on the product pays
constexpr int64_t kMostFilterChannels = 4096;  // C u stays small
constexpr float kLargestNorm = 1e36f;        // no sum overflows below
constexpr float kTiny = 1e-30f;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileVectors = BGNN_VECTOR == 64 ? 4 : 2;
constexpr int64_t kPanel = kTileVectors * kInts;  // nodes that lie together: divides 64
constexpr int64_t kRowsTogether = 16;             // rows that pass a panel while it is in the cache

bool is_filtered(const BgnnKnn& a) { return a.channels >= kFilterChannels && a.channels <= kMostFilterChannels; }

struct FilterShared {
  float* panels;  // y: [batch, padded / kPanel, channels, kPanel]
  float* norms;   // [batch, padded]: P, infinite in padding
  float* slack;   // [batch]: kSlack * the largest P; infinite where the filter cannot be used
  float* mean;    // [channels], of one batch element at a time
  int64_t padded;
  void lay(const BgnnKnn& a, Carver& c) {
    padded = up(a.nodes, 64);
    panels = c.take<float>(a.batch * padded * a.channels);
    norms = c.take<float>(a.batch * padded);
    slack = c.take<float>(a.batch);
    mean = c.take<float>(a.channels);
  }
};

struct FilterScratch {
  KnnScratch of_a_row;  // its keys are those of the first row
  int32_t* more_keys;   // [kRowsTogether - 1, padded]
  float* own;           // [kRowsTogether, channels]: -2 y
  void lay(const BgnnKnn& a, Carver& c) {
    of_a_row.lay(a, c);
    more_keys = c.take<int32_t>((kRowsTogether - 1) * up(a.nodes, 64));
    own = c.take<float>(kRowsTogether * a.channels);
  }
  int32_t* keys(int64_t row, int64_t padded) const {
    return row == 0 ? of_a_row.keys : more_keys + (row - 1) * padded;
  }
};

int64_t filtered_knn_shared_bytes(const void* args) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  return is_filtered(a) ? bytes_of<FilterShared>(a) : knn_shared_bytes(args);
}
int64_t filtered_knn_scratch_bytes(const void* args) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  return is_filtered(a) ? bytes_of<FilterScratch>(a) : knn_scratch_bytes(args);
}

float relative_slack(int64_t channels) { return float(6 * channels + 64) * 0x1p-24f; }

int64_t filtered_knn_begin(const void* args, void* shared) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!is_filtered(a)) return knn_begin(args, shared);
  const FilterShared s = layout_in<FilterShared>(a, shared);
  for (int64_t b = 0; b < a.batch; b++) {
    const float* x = a.x + b * a.nodes * a.channels;
    for (int64_t c = 0; c < a.channels; c++) s.mean[c] = 0;
    for (int64_t n = 0; n < a.nodes; n++) {
      for (int64_t c = 0; c < a.channels; c++) s.mean[c] += x[n * a.channels + c];
    }
    for (int64_t c = 0; c < a.channels; c++) s.mean[c] /= float(a.nodes);  // any centre will do
    float largest = 0;
    bool usable = true;
    for (int64_t n = 0; n < s.padded; n += kPanel) {
      float* panel = s.panels + (b * s.padded + n) * a.channels;
      for (int64_t l = 0; l < kPanel; l++) {
        const float* row = x + (n + l) * a.channels;
        for (int64_t c = 0; c < a.channels; c++) panel[c * kPanel + l] = n + l < a.nodes ? row[c] - s.mean[c] : 0;
      }
      float* norms = s.norms + b * s.padded + n;
      for (int64_t l = 0; l < kPanel; l++) norms[l] = 0;
      for (int64_t c = 0; c < a.channels; c++) {
        for (int64_t l = 0; l < kPanel; l++) norms[l] += panel[c * kPanel + l] * panel[c * kPanel + l];
      }
      for (int64_t l = 0; l < kPanel; l++) {
        if (n + l >= a.nodes) norms[l] = __builtin_inff();
        else if (!(norms[l] < kLargestNorm)) usable = false;  // NaN too
        else if (norms[l] > largest) largest = norms[l];
      }
    }
    s.slack[b] = usable ? relative_slack(a.channels) * largest + kTiny : __builtin_inff();
  }
  return a.batch * a.nodes;
}

BGNN_INLINE Floats multiply_add(float a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#else
  return (Floats)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#endif
}

// The product's distances of kTileRows rows from the nodes of a panel, as keys. `count` rows exist.
BGNN_INLINE void filter_tile(const float* panel, const float* norms, int64_t channels, const float* own,
                             const float* own_norms, int32_t* const* keys, int64_t count) {
  Floats sums[kTileRows][kTileVectors];
  for (int64_t r = 0; r < kTileRows; r++) {
    for (int64_t v = 0; v < kTileVectors; v++) sums[r][v] = load(norms + v * kInts);
  }
  for (int64_t c = 0; c < channels; c++) {
    Floats column[kTileVectors];
    for (int64_t v = 0; v < kTileVectors; v++) column[v] = load(panel + c * kPanel + v * kInts);
    for (int64_t r = 0; r < kTileRows; r++) {
      for (int64_t v = 0; v < kTileVectors; v++) {
        sums[r][v] = multiply_add(own[r * channels + c], column[v], sums[r][v]);
      }
    }
  }
  for (int64_t r = 0; r < count; r++) {
    for (int64_t v = 0; v < kTileVectors; v++) {
      const Floats distance = sums[r][v] + own_norms[r];
      store(keys[r] + v * kInts, (Ints)(distance > 0 ? distance : Floats{}));
    }
  }
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

// Chooses a row's neighbours from t.keys, the product's distances. With |A - E| <= slack, k rows have an E of at most
// limit + slack, so the k nearest have an A of at most limit + 2 slack. False where that are too many.
bool select_filtered(const BgnnKnn& a, const KnnScratch& t, const float* x, const float* own, float slack, int32_t* out) {
  int32_t limit;
  least_of_groups(t.keys, a.nodes, t.least);
  if (!bound(t, a.k, limit)) return false;
  float raised;
  memcpy(&raised, &limit, 4);
  raised = (raised + 2 * slack) * (1 + 0x1p-20f);
  if (!(raised < 8 * kLargestNorm)) return false;  // NaN, where a group is empty
  memcpy(&limit, &raised, 4);
  const int64_t kept = keep_up_to(t.keys, a.nodes, limit, kCandidates, t.within, t.positions, t.found);
  if (kept > kCandidates) return false;
  exact_keys(x, a.channels, own, kept, [&](int64_t i) { return int64_t(t.positions[i]); }, t.found);
  rank_keys(t.found, kept, t.place);
  for (int64_t i = 0; i < kept; i++) t.found[t.place[i]] = t.positions[i];
  memcpy(out, t.found, size_t(a.k) * 4);
  return true;
}

void filtered_knn_run(const void* args, const void* shared, void* scratch, int64_t begin, int64_t end) {
  const BgnnKnn& a = *static_cast<const BgnnKnn*>(args);
  if (!is_filtered(a)) return knn_run(args, shared, scratch, begin, end);
  const FilterShared s = layout_in<FilterShared>(a, const_cast<void*>(shared));
  const FilterScratch t = layout_in<FilterScratch>(a, scratch);
  for (int64_t item = begin, count; item < end; item += count) {
    const int64_t b = item / a.nodes, row = item - b * a.nodes;
    const float *x = a.x + b * a.nodes * a.channels, *norms = s.norms + b * s.padded;
    const bool usable = s.slack[b] <= __FLT_MAX__;
    count = at_most(kRowsTogether, at_most(end - item, a.nodes - row));
    float own_norms[kRowsTogether];
    int32_t* keys[kRowsTogether];
    for (int64_t r = 0; usable && r < kRowsTogether; r++) {
      const int64_t n = row + at_most(r, count - 1);
      const float* from = s.panels + (b * s.padded + n / kPanel * kPanel) * a.channels + n % kPanel;
      for (int64_t c = 0; c < a.channels; c++) t.own[r * a.channels + c] = -2 * from[c * kPanel];
      own_norms[r] = norms[n];
      keys[r] = t.keys(r, s.padded);
    }
    for (int64_t n = 0; usable && n < s.padded; n += kPanel) {
      const float* panel = s.panels + (b * s.padded + n) * a.channels;
      for (int64_t r = 0; r < count; r += kTileRows) {
        int32_t* at[kTileRows];
        for (int64_t i = 0; i < kTileRows; i++) at[i] = keys[r + i] + n;
        filter_tile(panel, norms + n, a.channels, t.own + r * a.channels, own_norms + r, at,
                    at_most(kTileRows, count - r));
      }
    }
    for (int64_t r = 0; r < count; r++) {
      KnnScratch of_row = t.of_a_row;
      of_row.keys = t.keys(r, s.padded);
      const float* own = x + (row + r) * a.channels;
      int32_t* out = a.neighbours + (item + r) * a.k;
      const float slack = s.slack[b] + relative_slack(a.channels) * own_norms[r];
      if (usable && select_filtered(a, of_row, x, own, slack, out)) continue;
      exact_keys(x, a.channels, own, a.nodes, [](int64_t i) { return i; }, of_row.keys);
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
