// RF's first edge convolution after its products: the maximum over the neighbours of a sum that is scaled per node and
// per neighbour (the paper's Eq. 11), without a tensor of edges. Included by generic.h.

static int64_t edge_max_begin(const void* args, void*) {
  const BgnnEdgeMax& a = *static_cast<const BgnnEdgeMax*>(args);
  if (!indices_are_valid(a.neighbours, a.batch * a.nodes * a.k, a.nodes)) return BGNN_BAD_INDEX;
  return a.batch * a.nodes;
}

// kVectors vectors of channels, the running maxima in registers.
template <int64_t kVectors>
BGNN_INLINE void edge_max_block(const BgnnEdgeMax& a, const float* x, const float* own, float beta, const int32_t* list,
                                float* out) {
  Floats most[kVectors], mine[kVectors];
  for (int64_t i = 0; i < kVectors; i++) mine[i] = load(own + i * kInts);
  for (int64_t j = 0; j < a.k; j++) {
    const float* other = x + list[j] * a.channels;
    const float gamma = a.gamma[a.gammas == 1 ? 0 : j];
    for (int64_t i = 0; i < kVectors; i++) {
      const Floats sum = load(other + i * kInts) + mine[i];
      const Floats positioned = sum * beta;
      const Floats v = positioned * gamma;
      most[i] = j == 0 ? v : v > most[i] ? v : most[i];
    }
  }
  memcpy(out, most, sizeof most);
}

static void edge_max_run(const void* args, const void*, void*, int64_t begin, int64_t end) {
  const BgnnEdgeMax& a = *static_cast<const BgnnEdgeMax*>(args);
  for (int64_t row = begin; row < end; row++) {
    const float* x = a.x + row / a.nodes * a.nodes * a.channels;
    const float* own = a.node + row * a.channels;
    const float beta = a.beta[a.betas == 1 ? 0 : row % a.nodes];
    const int32_t* list = a.neighbours + row * a.k;
    float* out = a.out + row * a.channels;
    int64_t c = 0;
    for (; c + 4 * kInts <= a.channels; c += 4 * kInts) edge_max_block<4>(a, x + c, own + c, beta, list, out + c);
    for (; c + kInts <= a.channels; c += kInts) edge_max_block<1>(a, x + c, own + c, beta, list, out + c);
    for (; c < a.channels; c++) {
      float most = 0;
      for (int64_t j = 0; j < a.k; j++) {
        const float positioned = (x[list[j] * a.channels + c] + own[c]) * beta;
        const float v = positioned * a.gamma[a.gammas == 1 ? 0 : j];
        most = j == 0 || v > most ? v : most;
      }
      out[c] = most;
    }
  }
}
