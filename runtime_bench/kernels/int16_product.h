// filtered_knn.h's product in 16-bit integers: 16 (AVX2) or 32 (AVX-512 VNNI) multiplications and additions at once.
//
// The bound. Each row x is mean + step q + e with q integers and a small rest e, so by the triangle inequality the
// root of a distance D differs from step * sqrt(A), A = |q_n - q_r|^2 an exact integer, by at most |e_n| + |e_r|. If
// k rows have A <= limit, the k nearest have sqrt(A) <= sqrt(limit) + 2 (|e_r| + the largest |e|) / step, but for the
// roundings of the contract's E: it is within (C + 2) 2^-24 D of D, to first order.
#include "generic.h"

namespace {

constexpr int64_t kTileRows = 4;

struct Product {
  typedef int32_t Own;  // two q in each, then |q|^2
  static constexpr int64_t kVectors = BGNN_VECTOR == 64 ? 4 : 2, kPanel = kVectors * kInts;
  static constexpr int32_t kFar = 1 << 30;                      // |q|^2 in padding
  static constexpr float kLargest = 1e15f, kSmallest = 1e-12f;  // |y| between which nothing over- or underflows

  int32_t* panels;  // q: [batch, padded / kPanel, pairs, kPanel], two channels in each
  int32_t* norms;   // [batch, padded]: |q|^2
  float* rests;     // [batch, padded]: |e|, rather too large
  float* steps;     // [batch]; 0 where the bound does not hold
  float* largest;   // [batch]: the largest |e|
  float* mean;      // [filled], of one batch element at a time
  float* line;      // [filled]: a row
  int16_t* codes;   // [filled]: its q
  int64_t padded, pairs;
  int64_t filled;  // the channels, up to a multiple of 16 with zeroes

  void lay(const BgnnKnn& a, Carver& c) {
    padded = up(a.nodes, 64);
    pairs = (a.channels + 1) / 2;
    filled = up(a.channels, 16);
    panels = c.take<int32_t>(a.batch * padded * pairs);
    norms = c.take<int32_t>(a.batch * padded);
    rests = c.take<float>(a.batch * padded);
    steps = c.take<float>(a.batch);
    largest = c.take<float>(a.batch);
    mean = c.take<float>(filled);
    line = c.take<float>(filled);
    codes = c.take<int16_t>(filled);
  }

  static int64_t own_size(int64_t channels) { return (channels + 1) / 2 + 1; }
  static float root(float v) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(v))); }

  // y, kInts channels from c on, after line was set.
  Floats centred(int64_t c) const { return load(line + c) - load(mean + c); }
  void set_line(const BgnnKnn& a, const float* row) const { memcpy(line, row, size_t(a.channels) * 4); }

  void fill(const BgnnKnn& a, int64_t b) const {
    const float* x = a.x + b * a.nodes * a.channels;
    for (int64_t c = 0; c < filled; c++) mean[c] = line[c] = 0;
    for (int64_t n = 0; n < a.nodes; n++) {
      for (int64_t c = 0; c < a.channels; c++) mean[c] += x[n * a.channels + c];
    }
    for (int64_t c = 0; c < a.channels; c++) mean[c] /= float(a.nodes);  // any centre will do
    Floats most = {};
    Ints fits = ~Ints{};
    for (int64_t n = 0; n < a.nodes; n++) {
      set_line(a, x + n * a.channels);
      for (int64_t c = 0; c < filled; c += kInts) {
        const Floats y = centred(c), size = y < 0 ? -y : y;
        fits &= (Ints)(size < kLargest);  // not of NaN
        most = size > most ? size : most;
      }
    }
    float reach = 0;
    for (int l = 0; l < kInts; l++) {
      reach = most[l] > reach ? most[l] : reach;
      if (!fits[l]) reach = __builtin_inff();
    }
    // So that no |q|^2 is above 2^28, and no distance above 2^30.
    const float codes_each_side = float(int32_t(root(float(1 << 28) / float(a.channels))));
    steps[b] = reach > kSmallest && reach < kLargest ? reach / codes_each_side : 0;
    if (steps[b] > 0) quantise(a, b, x, codes_each_side);
  }

  void quantise(const BgnnKnn& a, int64_t b, const float* x, float most) const {
    const float step = steps[b], inverse = 1 / step;
    // Roundings of y, q * step and their difference: a few 2^-24 of the largest |y| in each channel.
    const float rounding = 0x1p-20f * most * step * root(float(a.channels));
    largest[b] = 0;
    for (int64_t n = 0; n < padded; n++) {
      int32_t* to = panels + (b * padded + n / kPanel * kPanel) * pairs + n % kPanel;
      if (n >= a.nodes) {
        for (int64_t p = 0; p < pairs; p++) to[p * kPanel] = 0;
        norms[b * padded + n] = kFar;
        continue;
      }
      set_line(a, x + n * a.channels);
      Floats rest = {};
      Ints norm = {};
      for (int64_t c = 0; c < filled; c += kInts) {
        const Floats y = centred(c);
        Floats scaled = y * inverse + (y < 0 ? Floats{} - 0.5f : Floats{} + 0.5f);
        scaled = scaled > most ? Floats{} + most : scaled < -most ? Floats{} - most : scaled;
        const Ints q = __builtin_convertvector(scaled, Ints);
        const Floats e = y - __builtin_convertvector(q, Floats) * step;
        rest += e * e;
        norm += q * q;
        for (int l = 0; l < kInts; l++) codes[c + l] = int16_t(q[l]);
      }
      float squares = 0;
      norms[b * padded + n] = 0;
      for (int l = 0; l < kInts; l++) {
        squares += rest[l];
        norms[b * padded + n] += norm[l];
      }
      rests[b * padded + n] = root(squares) * (1 + 0x1p-10f) + rounding;
      if (rests[b * padded + n] > largest[b]) largest[b] = rests[b * padded + n];
      for (int64_t p = 0; p < pairs; p++) memcpy(to + p * kPanel, codes + 2 * p, 4);
    }
  }

  bool usable(int64_t b) const { return steps[b] > 0; }

  void take(const BgnnKnn&, int64_t b, int64_t row, Own* own) const {
    const int32_t* from = panels + (b * padded + row / kPanel * kPanel) * pairs + row % kPanel;
    for (int64_t p = 0; p < pairs; p++) own[p] = from[p * kPanel];
    own[pairs] = norms[b * padded + row];
  }

  // sums + the products of 16-bit numbers, two in each lane.
  BGNN_INLINE Ints add_products(Ints sums, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
    return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
  }

  inline __attribute__((always_inline)) void tile(const BgnnKnn&, int64_t b, int64_t n, const Own* own,
                                                  int32_t* const* keys) const {
    const int32_t *at = panels + (b * padded + n) * pairs, *norm = norms + b * padded + n;
    Ints sums[kTileRows][kVectors];
    for (int64_t r = 0; r < kTileRows; r++) {
      for (int64_t v = 0; v < kVectors; v++) sums[r][v] = Ints{};
    }
    for (int64_t p = 0; p < pairs; p++) {
      Ints column[kVectors];
      for (int64_t v = 0; v < kVectors; v++) column[v] = load(at + p * kPanel + v * kInts);
      for (int64_t r = 0; r < kTileRows; r++) {
        const Ints factor = Ints{} + own[r * (pairs + 1) + p];
        for (int64_t v = 0; v < kVectors; v++) sums[r][v] = add_products(sums[r][v], column[v], factor);
      }
    }
    for (int64_t r = 0; r < kTileRows; r++) {
      for (int64_t v = 0; v < kVectors; v++) {
        store(keys[r] + v * kInts, load(norm + v * kInts) + own[r * (pairs + 1) + pairs] - 2 * sums[r][v]);
      }
    }
  }

  int32_t raised(const BgnnKnn& a, int64_t b, int64_t row, int32_t limit) const {
    if (limit >= kFar) return -1;  // a group was empty
    const float rest = 2 * (rests[b * padded + row] + largest[b]) / steps[b];
    const float reach = root(float(limit)) + rest;
    const float value = reach * reach * (1 + float(4 * a.channels + 64) * 0x1p-24f) + 2;
    return value < float(kFar) ? int32_t(value) + 1 : -1;
  }
};

}  // namespace
