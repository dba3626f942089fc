#include "binary.h"

#include <stdlib.h>
#include <string.h>

#include "../kernels.h"

/* As the delegate's: below these, no product in the kernels overflows. */
static const int64_t kMostBytes = INT32_MAX, kMostChannels = 1 << 29, kMostHammingChannels = 65535;
static const int64_t kExactFloat = 1 << 24;

/* ---- running a kernel ---- */

/* Threads are the runtime's, and how many there are it does not say: each task borrows one of the scratch buffers,
 * which are made when first wanted. */
static const int kBuffers = 64;

struct KernelRun {
  const BgnnKernel* kernel;
  const void* args;
  void* shared;
  int64_t scratch_bytes, items, tasks;
  void* scratch[kBuffers];
  int taken[kBuffers];
  int no_memory;
  /* After each task, on its items; NULL: nothing. */
  void (*after)(const void* after_args, int64_t first, int64_t last);
  const void* after_args;
};

static int take_buffer(KernelRun* run) {
  for (int i = 0;; i = (i + 1) % kBuffers) {
    if (__atomic_exchange_n(&run->taken[i], 1, __ATOMIC_ACQUIRE) == 0) return i;
  }
}

static void run_items(void* data, size_t task) {
  KernelRun* run = (KernelRun*)data;
  const int64_t first = run->items * (int64_t)task / run->tasks, last = run->items * ((int64_t)task + 1) / run->tasks;
  const int buffer = take_buffer(run);
  void** scratch = &run->scratch[buffer];
  const size_t bytes = run->scratch_bytes > 0 ? (size_t)run->scratch_bytes : 1;
  if (!*scratch && posix_memalign(scratch, 64, bytes) != 0) *scratch = NULL;
  if (*scratch) {
    run->kernel->run(run->args, run->shared, *scratch, first, last);
    if (run->after) run->after(run->after_args, first, last);
  } else {
    __atomic_store_n(&run->no_memory, 1, __ATOMIC_RELAXED);
  }
  __atomic_store_n(&run->taken[buffer], 0, __ATOMIC_RELEASE);
}

static bool run_kernel(Call* call, const BgnnKernel* kernel, const void* args,
                       void (*after)(const void*, int64_t, int64_t) = NULL, const void* after_args = NULL) {
  KernelRun run;
  memset(&run, 0, sizeof run);
  run.kernel = kernel;
  run.args = args;
  run.after = after;
  run.after_args = after_args;
  run.scratch_bytes = kernel->scratch_bytes(args);
  if (!(run.shared = allocate(call, kernel->shared_bytes(args)))) return false;
  run.items = kernel->begin(args, run.shared);
  bool done = true;
  if (run.items < 0) {
    done = fail(call, "a neighbour's index is not one of the graph's nodes");
  } else {
    run.tasks = run.items < kBuffers ? run.items : kBuffers;
    done = parallel(call, run.tasks, run_items, &run);
    if (done && run.no_memory) done = fail(call, "no memory for %lld bytes of work space", (long long)run.scratch_bytes);
  }
  for (int i = 0; i < kBuffers; ++i) free(run.scratch[i]);
  release(call, run.shared);
  return done;
}

/* ---- checks ---- */

static int64_t words_of(int64_t channels) { return (channels + 31) / 32; }

const char* check_channels(Kernel* kernel) {
  const int64_t channels = kernel->attribute[0].i;
  return channels >= 1 && channels <= kMostChannels ? NULL : "channels is outside of [1, 2^29]";
}

static int64_t channels_of(const Call* call) { return call->kernel->attribute[0].i; }

/* Input's dimension must equal `expected`, which `why` names. */
static bool dimension(Call* call, int input, int axis, int64_t expected, const char* why) {
  const int64_t size = call->in[input].dim[axis];
  REQUIRE(size == expected, "dimension %d of %s is %lld, but %s is %lld", axis, call->kernel->kind->inputs[input].name,
          (long long)size, why, (long long)expected);
  return true;
}

static bool one_or(Call* call, int input, int64_t count, const char* why) {
  return call->in[input].dim[0] == 1 || dimension(call, input, 0, count, why);
}

/* The last axis of input 0 holds the words of `channels` channels. */
static bool is_packed(Call* call) {
  return dimension(call, 0, call->in[0].rank - 1, words_of(channels_of(call)), "channels / 32, rounded up,");
}

/* neighbours [graphs, nodes, k] of input 0, with k >= 1; a row for each node where `each_node`. */
static bool neighbours_of(Call* call, int input, bool each_node) {
  return dimension(call, input, 0, call->in[0].dim[0], "the number of graphs") &&
         (!each_node || dimension(call, input, 1, call->in[0].dim[1], "the number of nodes"));
}

/* No empty inputs, and nothing beyond 2 GiB (all elements have 4 bytes). */
static bool sizes_fit(Call* call) {
  const InputSpec* specs = call->kernel->kind->inputs;
  for (int i = 0; specs[i].name; ++i) {
    REQUIRE(call->in[i].count >= 1, "%s is empty", specs[i].name);
    REQUIRE(call->in[i].count <= kMostBytes / 4, "%s is larger than 2 GiB", specs[i].name);
  }
  return true;
}

/* Output 0 of 4-byte elements. */
static bool make(Call* call, int rank, int64_t d0, int64_t d1, int64_t d2, void** out) {
  const int64_t dims[3] = {d0, d1, d2};
  int64_t bytes = 4;
  for (int i = 0; i < rank; ++i) {
    REQUIRE(!__builtin_mul_overflow(bytes, dims[i], &bytes) && bytes <= kMostBytes, "the output is larger than 2 GiB");
  }
  return make_output(call, 0, rank, dims, out);
}

#define KERNELS (call->kernel->binary)
#define FLOATS(input) ((const float*)call->in[input].data)
#define WORDS(input) ((const int32_t*)call->in[input].data)

/* ---- neighbours ---- */

bool hamming_knn(Call* call) {
  const int64_t *x = call->in[0].dim, k = call->kernel->attribute[1].i;
  if (!sizes_fit(call) || !is_packed(call)) return false;
  REQUIRE(channels_of(call) <= kMostHammingChannels, "more than 65535 channels");
  REQUIRE(k >= 1 && k <= x[1], "k = %lld is outside of [1, %lld nodes]", (long long)k, (long long)x[1]);
  void* out;
  if (!make(call, 3, x[0], x[1], k, &out)) return false;
  const BgnnHammingKnn args = {WORDS(0), (int32_t*)out, x[0], x[1], x[2], k};
  return run_kernel(call, &KERNELS->hamming_knn, &args);
}

bool knn(Call* call) {
  const int64_t *x = call->in[0].dim, k = call->kernel->attribute[0].i;
  if (!sizes_fit(call)) return false;
  REQUIRE(k >= 1 && k <= x[1], "k = %lld is outside of [1, %lld nodes]", (long long)k, (long long)x[1]);
  void* out;
  if (!make(call, 3, x[0], x[1], k, &out)) return false;
  const BgnnKnn args = {FLOATS(0), (int32_t*)out, x[0], x[1], x[2], k};
  return run_kernel(call, &KERNELS->knn, &args);
}

/* ---- edges ---- */

bool xor_edge_conv(Call* call) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[1].dim, *weights = call->in[2].dim;
  if (!sizes_fit(call) || !is_packed(call) || !neighbours_of(call, 1, true) ||
      !dimension(call, 2, 1, 2 * x[2], "twice the words of a node") ||
      !dimension(call, 3, 1, weights[0], "the number of output channels")) {
    return false;
  }
  void* out;
  if (!make(call, 3, x[0], x[1], words_of(weights[0]), &out)) return false;
  const BgnnXorEdgeConv args = {WORDS(0), WORDS(1),      WORDS(2),   WORDS(3),           (int32_t*)out, x[0], x[1],
                                x[2],     neighbours[2], weights[0], call->in[3].dim[0]};
  return run_kernel(call, &KERNELS->xor_edge_conv, &args);
}

bool gather_max(Call* call) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[1].dim;
  void* out;
  if (!sizes_fit(call) || !neighbours_of(call, 1, false) || !make(call, 3, x[0], neighbours[1], x[2], &out)) return false;
  const BgnnGatherMax args = {FLOATS(0), WORDS(1), (float*)out, x[0], x[1], neighbours[1], x[2], neighbours[2]};
  return run_kernel(call, &KERNELS->gather_max, &args);
}

bool bin_edge_conv(Call* call) {
  const int64_t *bits = call->in[0].dim, *neighbours = call->in[2].dim, *weights = call->in[5].dim;
  const int64_t channels = channels_of(call);
  if (!sizes_fit(call) || !is_packed(call) || !dimension(call, 1, 0, bits[0], "the number of graphs") ||
      !dimension(call, 1, 1, bits[1], "the number of nodes") || !dimension(call, 1, 2, channels, "channels") ||
      !neighbours_of(call, 2, true) || !dimension(call, 3, 0, channels, "channels") ||
      !dimension(call, 4, 0, channels, "channels") || !dimension(call, 5, 1, 2 * bits[2], "twice the words of a node") ||
      !dimension(call, 6, 0, weights[0], "the number of output channels") ||
      !one_or(call, 7, bits[1], "the number of nodes") || !one_or(call, 8, neighbours[2], "the number of neighbours") ||
      !one_or(call, 9, weights[0], "the number of output channels")) {
    return false;
  }
  void* out;
  if (!make(call, 3, bits[0], bits[1], weights[0], &out)) return false;
  const BgnnBinEdgeConv args = {WORDS(0),   FLOATS(1), WORDS(2),  FLOATS(3), FLOATS(4), WORDS(5), FLOATS(6),
                                FLOATS(7),  FLOATS(8), FLOATS(9), (float*)out, bits[0], bits[1], channels,
                                bits[2],    neighbours[2], weights[0], call->in[7].dim[0], call->in[8].dim[0],
                                call->in[9].dim[0]};
  return run_kernel(call, &KERNELS->bin_edge_conv, &args);
}

bool edge_max(Call* call) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[2].dim;
  if (!sizes_fit(call) || !dimension(call, 1, 0, x[0], "the number of graphs") ||
      !dimension(call, 1, 1, x[1], "the number of nodes") || !dimension(call, 1, 2, x[2], "channels") ||
      !neighbours_of(call, 2, true) || !one_or(call, 3, x[1], "the number of nodes") ||
      !one_or(call, 4, neighbours[2], "the number of neighbours")) {
    return false;
  }
  void* out;
  if (!make(call, 3, x[0], x[1], x[2], &out)) return false;
  const BgnnEdgeMax args = {FLOATS(0), FLOATS(1), WORDS(2), FLOATS(3),     FLOATS(4),           (float*)out,
                            x[0],      x[1],      x[2],     neighbours[2], call->in[3].dim[0], call->in[4].dim[0]};
  return run_kernel(call, &KERNELS->edge_max, &args);
}

/* ---- dense layers ---- */

bool dense_pool(Call* call) {
  const int64_t *x = call->in[0].dim, *weights = call->in[1].dim, channels = channels_of(call);
  if (!sizes_fit(call) || !is_packed(call) || !dimension(call, 1, 1, x[2], "the words of a node")) return false;
  REQUIRE(channels <= kExactFloat / x[1], "%lld nodes with %lld channels: the sums would not be exact beyond 2^24",
          (long long)x[1], (long long)channels);
  void* out;
  if (!make(call, 3, x[0], 4, weights[0], &out)) return false;
  const BgnnDensePool args = {WORDS(0), WORDS(1), (float*)out, x[0], x[1], x[2], channels, weights[0]};
  return run_kernel(call, &KERNELS->dense_pool, &args);
}

bool scaled_pool(Call* call) {
  const int64_t *x = call->in[0].dim, *weights = call->in[1].dim;
  if (!sizes_fit(call) || !is_packed(call) || !dimension(call, 1, 1, x[2], "the words of a node") ||
      !one_or(call, 2, x[1], "the number of nodes")) {
    return false;
  }
  void* out;
  if (!make(call, 3, x[0], 4, weights[0], &out)) return false;
  const BgnnScaledPool args = {WORDS(0), WORDS(1), FLOATS(2),         (float*)out, x[0],
                               x[1],     x[2],     channels_of(call), weights[0],  call->in[2].dim[0]};
  return run_kernel(call, &KERNELS->scaled_pool, &args);
}

/* Output 0 of input 0's shape but for the last axis. */
static bool make_last(Call* call, int64_t last, void** out) {
  int64_t dims[kMaxRank], bytes = 4;
  const Input* x = &call->in[0];
  memcpy(dims, x->dim, sizeof dims);
  dims[x->rank - 1] = last;
  for (int i = 0; i < x->rank; ++i) {
    REQUIRE(!__builtin_mul_overflow(bytes, dims[i], &bytes) && bytes <= kMostBytes, "the output is larger than 2 GiB");
  }
  return make_output(call, 0, x->rank, dims, out);
}

static int64_t rows_of(const Input* x) { return x->count / x->dim[x->rank - 1]; }

/* A 1 x 1 convolution over rows. */
static bool dense_args(Call* call, BgnnBconv2d* args) {
  const Input* x = &call->in[0];
  const int64_t channels = channels_of(call), outputs = call->in[1].dim[0];
  if (!sizes_fit(call) || !is_packed(call) ||
      !dimension(call, 1, 1, x->dim[x->rank - 1], "the words of a row")) {
    return false;
  }
  memset(args, 0, sizeof *args);
  args->x = WORDS(0);
  args->weights = WORDS(1);
  args->batch = rows_of(x);
  args->words = x->dim[x->rank - 1];
  args->channels = channels;
  args->out_channels = outputs;
  args->height = args->width = args->groups = args->out_height = args->out_width = args->filter_height = 1;
  args->filter_width = args->stride_height = args->stride_width = 1;
  args->dilation_height = args->dilation_width = args->pad_one = 1;
  args->clamp_min = -channels;
  args->clamp_max = channels;
  return true;
}

struct DenseResult {
  float* out;
  int64_t outputs;
  const float *factor, *bias; /* [outputs]: -2 multiplier, bias + channels multiplier */
  float channels;
};

/* From dot products to p * (-2 multiplier) + (bias + channels multiplier), plain: LCE's order of rounding. */
static void finish_dense(const void* args, int64_t first, int64_t last) {
  const DenseResult* r = (const DenseResult*)args;
  for (int64_t row = first; row < last; ++row) {
    float* out = r->out + row * r->outputs;
    for (int64_t o = 0; o < r->outputs; ++o) {
      const float differing = (r->channels - out[o]) * 0.5f;
      const float scaled = differing * r->factor[o];
      out[o] = scaled + r->bias[o];
    }
  }
}

bool binary_dense(Call* call) {
  BgnnBconv2d args;
  if (!dense_args(call, &args)) return false;
  const int64_t outputs = args.out_channels, channels = args.channels;
  REQUIRE(channels <= kExactFloat, "dot products of more than 2^24 channels are not exact in float32");
  if (!dimension(call, 2, 0, outputs, "the number of output channels") ||
      !dimension(call, 3, 0, outputs, "the number of output channels")) {
    return false;
  }
  void* out;
  if (!make_last(call, outputs, &out)) return false;
  float* work = (float*)allocate(call, 4 * 4 * outputs);
  if (!work) return false;
  float *ones = work, *zeroes = ones + outputs, *factor = zeroes + outputs, *bias = factor + outputs;
  for (int64_t o = 0; o < outputs; ++o) {
    ones[o] = 1;
    zeroes[o] = 0;
    factor[o] = -2 * FLOATS(2)[o];
    const float product = (float)channels * FLOATS(2)[o];
    bias[o] = FLOATS(3)[o] + product;
  }
  args.out = (float*)out;
  args.multiplier = ones;
  args.bias = zeroes;
  const DenseResult result = {args.out, outputs, factor, bias, (float)channels};
  const bool done = run_kernel(call, &KERNELS->bconv2d, &args, finish_dense, &result);
  release(call, work);
  return done;
}

bool binary_dense_bits(Call* call) {
  BgnnBconv2d args;
  void* out;
  if (!dense_args(call, &args) || !dimension(call, 2, 0, args.out_channels, "the number of output channels") ||
      !make_last(call, words_of(args.out_channels), &out)) {
    return false;
  }
  args.out_bits = (int32_t*)out;
  args.thresholds = WORDS(2);
  return run_kernel(call, &KERNELS->bconv2d, &args);
}

/* ---- bits ---- */

bool pack(Call* call) {
  const Input* x = &call->in[0];
  const int64_t channels = x->dim[x->rank - 1];
  void* out;
  if (!sizes_fit(call) || !make_last(call, words_of(channels), &out)) return false;
  const BgnnQuantize args = {FLOATS(0), (int32_t*)out, rows_of(x), channels};
  return run_kernel(call, &KERNELS->quantize, &args);
}

bool unpack(Call* call) {
  void* out;
  if (!sizes_fit(call) || !is_packed(call) || !make_last(call, channels_of(call), &out)) return false;
  const BgnnDequantize args = {WORDS(0), (float*)out, rows_of(&call->in[0]), channels_of(call)};
  return run_kernel(call, &KERNELS->dequantize, &args);
}

bool packed_max(Call* call) {
  const int64_t* x = call->in[0].dim;
  void* out;
  if (!sizes_fit(call) || !make(call, 2, x[0], x[2], 0, &out)) return false;
  const BgnnBMaxPool2d args = {WORDS(0), (int32_t*)out, x[0], x[1], 1, x[2], 1, 1, x[1], 1, 1, 1, 0, 0};
  return run_kernel(call, &KERNELS->bmaxpool2d, &args);
}
