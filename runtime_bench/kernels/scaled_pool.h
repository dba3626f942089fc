// A binary dense layer with a factor per node, reduced over the nodes: dense_pool of RF. Included by generic.h.

struct ScaledPoolShared {
  uint64_t* rows;     // [batch, nodes, w64]
  uint64_t* weights;  // interleaved
  int64_t w64;
  int64_t padded;  // output channels, up to a multiple of 32
  void lay(const BgnnScaledPool& a, Carver& c) {
    w64 = words64(a.words);
    padded = up(a.out_channels, 32);
    rows = c.take<uint64_t>(a.batch * a.nodes * w64);
    weights = c.take<uint64_t>(padded * w64);
  }
};

static int64_t scaled_pool_shared_bytes(const void* args) {
  return bytes_of<ScaledPoolShared>(*static_cast<const BgnnScaledPool*>(args));
}

static int64_t scaled_pool_begin(const void* args, void* shared) {
  const BgnnScaledPool& a = *static_cast<const BgnnScaledPool*>(args);
  const ScaledPoolShared s = layout_in<ScaledPoolShared>(a, shared);
  widen_rows(a.x, a.batch * a.nodes, a.words, s.rows);
  interleave(a.weights, a.out_channels, s.padded, a.words, a.words, s.weights);
  return a.batch * (s.padded / kLanes);
}

// An item is 8 channels over all nodes: the sums have one order, whatever the threads.
static void scaled_pool_run(const void* args, const void* shared, void*, int64_t begin, int64_t end) {
  const BgnnScaledPool& a = *static_cast<const BgnnScaledPool*>(args);
  const ScaledPoolShared s = layout_in<ScaledPoolShared>(a, const_cast<void*>(shared));
  const int64_t blocks = s.padded / kLanes;
  for (int64_t item = begin; item < end; item++) {
    const int64_t b = item / blocks, o = item % blocks * kLanes;
    if (o >= a.out_channels) continue;
    Eight most = {}, least = {}, positive = {}, negative = {};
    for (int64_t n = 0; n < a.nodes; n++) {
      Lanes counts = {};
      add_popcounts(s.rows + (b * a.nodes + n) * s.w64, s.weights + o * s.w64, s.w64, counts);
      const EightInts acc = int32_t(a.channels) - 2 * __builtin_convertvector(counts, EightInts);
      const Eight v = __builtin_convertvector(acc, Eight) * a.scale[a.scales == 1 ? 0 : n];
      most = n == 0 ? v : v > most ? v : most;
      least = n == 0 ? v : v < least ? v : least;
      positive += v > 0 ? v : Eight{};
      negative += v < 0 ? v : Eight{};
    }
    const Eight* rows[4] = {&most, &least, &positive, &negative};
    float* out = a.out + b * 4 * a.out_channels + o;
    for (int i = 0; i < 4; i++) {
      memcpy(out + i * a.out_channels, rows[i], size_t(at_most(kLanes, a.out_channels - o)) * 4);
    }
  }
}
