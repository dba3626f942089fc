#include "binary.h"

#include <string.h>

/* Below these, no product in the kernels overflows. */
static const int64_t kMostChannels = 1 << 29, kMostHammingChannels = 65535;

/* ---- checks ---- */

const char* check_channels(Kernel* kernel) {
  const int64_t channels = kernel->attribute[0].i;
  return channels >= 1 && channels <= kMostChannels ? NULL : "channels is outside of [1, 2^29]";
}

const char* check_hamming_knn(Kernel* kernel) {
  const int64_t channels = kernel->attribute[0].i, largest = kernel->attribute[2].i;
  if (channels < 1 || channels > kMostHammingChannels) return "channels is outside of [1, 65535]";
  return largest == 0 || largest == 1 ? NULL : "largest is neither 0 nor 1";
}

static int64_t channels_of(const Call* call) { return call->kernel->attribute[0].i; }

bool dimension(Call* call, int input, int axis, int64_t expected, const char* why) {
  const int64_t size = call->in[input].dim[axis];
  REQUIRE(size == expected, "dimension %d of %s is %lld, but %s is %lld", axis, call->kernel->kind->inputs[input].name,
          (long long)size, why, (long long)expected);
  return true;
}

static bool one_or(Call* call, int input, int64_t count, const char* why) {
  return call->in[input].dim[0] == 1 || dimension(call, input, 0, count, why);
}

bool is_packed(Call* call, int64_t channels) {
  return dimension(call, 0, call->in[0].rank - 1, words_of(channels), "channels / 32, rounded up,");
}

/* neighbours [graphs, nodes, k] of input 0, with k >= 1; a row for each node where `each_node`. */
static bool neighbours_of(Call* call, int input, bool each_node) {
  return dimension(call, input, 0, call->in[0].dim[0], "the number of graphs") &&
         (!each_node || dimension(call, input, 1, call->in[0].dim[1], "the number of nodes"));
}

static bool not_empty_from(Call* call, int first) {
  const InputSpec* specs = call->kernel->kind->inputs;
  for (int i = first; specs[i].name; ++i) {
    REQUIRE(call->in[i].count >= 1 || (specs[i].optional && call->in[i].rank == 0), "%s is empty", specs[i].name);
  }
  return true;
}

bool not_empty(Call* call) { return not_empty_from(call, 0); }

/* Nothing beyond 2 GiB (all elements have 4 bytes). */
static bool within_memory(Call* call) {
  const InputSpec* specs = call->kernel->kind->inputs;
  for (int i = 0; specs[i].name; ++i) {
    REQUIRE(call->in[i].count <= kMostBytes / 4, "%s is larger than 2 GiB", specs[i].name);
  }
  return true;
}

static bool sizes_fit(Call* call) { return within_memory(call) && not_empty(call); }

/* As sizes_fit, but there may be no rows x, as there are none of the edges of a graph that has none. */
static bool rows_fit(Call* call) {
  const Input* x = &call->in[0];
  REQUIRE(x->rank > 1 ? x->dim[x->rank - 1] >= 1 : x->count >= 1, "%s is empty", call->kernel->kind->inputs[0].name);
  return within_memory(call) && not_empty_from(call, 1);
}

bool set_output(Call* call, Plan* plan, void* field, int rank, const int64_t* dims) {
  int64_t count = 1;
  for (int i = 0; i < rank; ++i) {
    REQUIRE(!__builtin_mul_overflow(count, dims[i], &count) && count <= kMostBytes / 4,
            "its output has 2^29 elements or more");
    plan->shape.dim[i] = dims[i];
  }
  plan->shape.rank = rank;
  plan->out = field;
  return true;
}

static bool set_output(Call* call, Plan* plan, void* field, int64_t d0, int64_t d1, int64_t d2) {
  const int64_t dims[] = {d0, d1, d2};
  return set_output(call, plan, field, 3, dims);
}

/* Input 0's shape but for the last axis. */
static bool set_last(Call* call, Plan* plan, void* field, int64_t last) {
  int64_t dims[kMaxRank];
  const Input* x = &call->in[0];
  memcpy(dims, x->dim, sizeof dims);
  dims[x->rank - 1] = last;
  return set_output(call, plan, field, x->rank, dims);
}

#define KERNELS (call->kernel->binary)
#define FLOATS(input) ((const float*)call->in[input].data)
#define WORDS(input) ((const int32_t*)call->in[input].data)

/* ---- neighbours ---- */

static bool check_k(Call* call, int64_t k) {
  const int64_t nodes = call->in[0].dim[1];
  REQUIRE(k >= 1 && k <= nodes, "k = %lld is outside of [1, %lld nodes]", (long long)k, (long long)nodes);
  return true;
}

bool hamming_knn(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, k = call->kernel->attribute[1].i;
  if (!sizes_fit(call) || !is_packed(call, channels_of(call)) || !check_k(call, k)) return false;
  if (call->kernel->attribute[2].i) {
    plan->kernel = &KERNELS->hamming_far;
    plan->args.hamming_far = {WORDS(0), NULL, x[0], x[1], x[2], k};
    return set_output(call, plan, &plan->args.hamming_far.neighbours, x[0], x[1], k);
  }
  plan->kernel = &KERNELS->hamming_knn;
  plan->args.hamming_knn = {WORDS(0), NULL, x[0], x[1], x[2], k};
  return set_output(call, plan, &plan->args.hamming_knn.neighbours, x[0], x[1], k);
}

bool knn(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, k = call->kernel->attribute[0].i;
  if (!sizes_fit(call) || !check_k(call, k)) return false;
  plan->kernel = &KERNELS->knn;
  plan->args.knn = {FLOATS(0), NULL, x[0], x[1], x[2], k};
  return set_output(call, plan, &plan->args.knn.neighbours, x[0], x[1], k);
}

/* ---- edges ---- */

bool xor_edge_conv(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[1].dim, *weights = call->in[2].dim;
  if (!sizes_fit(call) || !is_packed(call, channels_of(call)) || !neighbours_of(call, 1, true) ||
      !dimension(call, 2, 1, 2 * x[2], "twice the words of a node") ||
      !dimension(call, 3, 1, weights[0], "the number of output channels")) {
    return false;
  }
  plan->kernel = &KERNELS->xor_edge_conv;
  plan->args.xor_edge_conv = {WORDS(0), WORDS(1),      WORDS(2),   WORDS(3),           NULL, x[0], x[1],
                              x[2],     neighbours[2], weights[0], call->in[3].dim[0]};
  return set_output(call, plan, &plan->args.xor_edge_conv.out, x[0], x[1], words_of(weights[0]));
}

bool gather_max(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[1].dim;
  if (!sizes_fit(call) || !neighbours_of(call, 1, false)) return false;
  plan->kernel = &KERNELS->gather_max;
  plan->args.gather_max = {FLOATS(0), WORDS(1), NULL, x[0], x[1], neighbours[1], x[2], neighbours[2]};
  return set_output(call, plan, &plan->args.gather_max.out, x[0], neighbours[1], x[2]);
}

bool bin_edge_conv(Call* call, Plan* plan) {
  const int64_t *bits = call->in[0].dim, *neighbours = call->in[2].dim, *weights = call->in[5].dim;
  const int64_t channels = channels_of(call);
  if (!sizes_fit(call) || !is_packed(call, channels) || !dimension(call, 1, 0, bits[0], "the number of graphs") ||
      !dimension(call, 1, 1, bits[1], "the number of nodes") || !dimension(call, 1, 2, channels, "channels") ||
      !neighbours_of(call, 2, true) || !dimension(call, 3, 0, channels, "channels") ||
      !dimension(call, 4, 0, channels, "channels") || !dimension(call, 5, 1, 2 * bits[2], "twice the words of a node") ||
      !dimension(call, 6, 0, weights[0], "the number of output channels") ||
      !one_or(call, 7, bits[1], "the number of nodes") || !one_or(call, 8, neighbours[2], "the number of neighbours") ||
      !one_or(call, 9, weights[0], "the number of output channels")) {
    return false;
  }
  plan->kernel = &KERNELS->bin_edge_conv;
  plan->args.bin_edge_conv = {WORDS(0),  FLOATS(1), WORDS(2),  FLOATS(3), FLOATS(4),     WORDS(5),   FLOATS(6),
                              FLOATS(7), FLOATS(8), FLOATS(9), NULL,      bits[0],       bits[1],    channels,
                              bits[2],   neighbours[2], weights[0], call->in[7].dim[0], call->in[8].dim[0],
                              call->in[9].dim[0]};
  return set_output(call, plan, &plan->args.bin_edge_conv.out, bits[0], bits[1], weights[0]);
}

bool edge_max(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *neighbours = call->in[2].dim;
  if (!sizes_fit(call) || !dimension(call, 1, 0, x[0], "the number of graphs") ||
      !dimension(call, 1, 1, x[1], "the number of nodes") || !dimension(call, 1, 2, x[2], "channels") ||
      !neighbours_of(call, 2, true) || !one_or(call, 3, x[1], "the number of nodes") ||
      !one_or(call, 4, neighbours[2], "the number of neighbours")) {
    return false;
  }
  plan->kernel = &KERNELS->edge_max;
  plan->args.edge_max = {FLOATS(0), FLOATS(1), WORDS(2), FLOATS(3),     FLOATS(4),          NULL,
                         x[0],      x[1],      x[2],     neighbours[2], call->in[3].dim[0], call->in[4].dim[0]};
  return set_output(call, plan, &plan->args.edge_max.out, x[0], x[1], x[2]);
}

/* ---- dense layers ---- */

bool dense_pool(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *weights = call->in[1].dim, channels = channels_of(call);
  if (!sizes_fit(call) || !is_packed(call, channels) || !dimension(call, 1, 1, x[2], "the words of a node")) return false;
  REQUIRE(channels <= kMostExactFloat / x[1], "%lld nodes with %lld channels: the sums would not be exact beyond 2^24",
          (long long)x[1], (long long)channels);
  plan->kernel = &KERNELS->dense_pool;
  plan->args.dense_pool = {WORDS(0), WORDS(1), NULL, x[0], x[1], x[2], channels, weights[0]};
  return set_output(call, plan, &plan->args.dense_pool.out, x[0], 4, weights[0]);
}

bool scaled_pool(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *weights = call->in[1].dim, channels = channels_of(call);
  if (!sizes_fit(call) || !is_packed(call, channels) || !dimension(call, 1, 1, x[2], "the words of a node") ||
      !one_or(call, 2, x[1], "the number of nodes")) {
    return false;
  }
  plan->kernel = &KERNELS->scaled_pool;
  plan->args.scaled_pool = {WORDS(0), WORDS(1), FLOATS(2), NULL, x[0], x[1], x[2], channels, weights[0],
                            call->in[2].dim[0]};
  return set_output(call, plan, &plan->args.scaled_pool.out, x[0], 4, weights[0]);
}

/* A 1 x 1 convolution over rows. */
static bool plan_dense(Call* call, Plan* plan) {
  const Input* x = &call->in[0];
  const int64_t channels = channels_of(call), outputs = call->in[1].dim[0];
  if (!rows_fit(call) || !is_packed(call, channels) ||
      !dimension(call, 1, 1, x->dim[x->rank - 1], "the words of a row") ||
      !dimension(call, 2, 0, outputs, "the number of output channels")) {
    return false;
  }
  BgnnBconv2d* args = &plan->args.bconv2d;
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
  plan->kernel = &KERNELS->bconv2d;
  return true;
}

/* What the temporary memory starts with, [out_channels] floats each: ones and zeroes for the kernel, which so gives the
 * dot products themselves, and the multiplier and bias of p = (length - dot). The floats of an output in 8 bits follow. */
enum { kOnes, kZeroes, kMultiplier, kBias, kFactors };

/* A piece of the output that is finished at once: it fits the first or second level cache. */
static const int64_t kPieceFloats = 8192;

static int64_t length_of(const BgnnBconv2d* args) { return args->filter_height * args->filter_width * args->channels; }

/* Multiplier, bias and an output's scale are folded in double precision and rounded once: LCE's order, and so a part of
 * its results. */
static void fold_multiplier(const Call*, Plan* plan, void* temporary) {
  BgnnBconv2d* args = &plan->args.bconv2d;
  const int64_t count = args->out_channels;
  float* factors = (float*)temporary;
  const double scale = plan->scale ? plan->scale : 1.0, length = (double)length_of(args);
  for (int64_t i = 0; i < count; ++i) {
    const double multiplier = args->multiplier[i], bias = args->bias[i];
    factors[kOnes * count + i] = 1;
    factors[kZeroes * count + i] = 0;
    factors[kMultiplier * count + i] = (float)(-1 * multiplier / scale);
    factors[kBias * count + i] = (float)((bias + length * multiplier) / scale + plan->zero);
  }
  args->multiplier = factors + kOnes * count;
  args->bias = factors + kZeroes * count;
  if (plan->scale) args->out = factors + kFactors * count;
}

int8_t to_int8(double value) {
  if (!(value > -128)) return -128;
  if (value > 127) return 127;
  return (int8_t)(value + (value < 0 ? -0.5 : 0.5));
}

/* From dot products to the output, for the pixels [first, last). */
static void multiply(const Call*, const Plan* plan, const void* temporary, int64_t first, int64_t last) {
  const BgnnBconv2d* args = &plan->args.bconv2d;
  const int64_t count = args->out_channels;
  const float *multiplier = (const float*)temporary + kMultiplier * count, *bias = multiplier + count;
  const float length = (float)length_of(args);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    float* __restrict out = args->out + pixel * count;
    for (int64_t i = 0; i < count; ++i) {
      const float scaled = (length - out[i]) * multiplier[i];
      out[i] = scaled + bias[i];
    }
    if (plan->scale == 0) continue;
    for (int64_t i = 0; i < count; ++i) ((int8_t*)plan->result)[pixel * count + i] = to_int8(out[i]);
  }
}

bool plan_multiplier(Call* call, Plan* plan) {
  const BgnnBconv2d* args = &plan->args.bconv2d;
  REQUIRE(length_of(args) <= kMostExactFloat, "a dot product of %lld terms is not exact in float32",
          (long long)length_of(args));
  plan->temporary_bytes = kFactors * 4 * args->out_channels;
  if (plan->scale) plan->temporary_bytes += 4 * args->batch * args->out_height * args->out_width * args->out_channels;
  const int64_t pixels = kPieceFloats / args->out_channels;
  plan->piece = pixels > 16 ? pixels : 16;
  plan->before = fold_multiplier;
  plan->after = multiply;
  return true;
}

bool binary_dense(Call* call, Plan* plan) {
  BgnnBconv2d* args = &plan->args.bconv2d;
  if (!plan_dense(call, plan) || !dimension(call, 3, 0, args->out_channels, "the number of output channels")) return false;
  args->multiplier = FLOATS(2);
  args->bias = FLOATS(3);
  return set_last(call, plan, &args->out, args->out_channels) && plan_multiplier(call, plan);
}

bool binary_dense_bits(Call* call, Plan* plan) {
  BgnnBconv2d* args = &plan->args.bconv2d;
  if (!plan_dense(call, plan)) return false;
  args->thresholds = WORDS(2);
  return set_last(call, plan, &args->out_bits, words_of(args->out_channels));
}

/* ---- bits ---- */

bool pack(Call* call, Plan* plan) {
  const Input* x = &call->in[0];
  if (!rows_fit(call)) return false;
  const int64_t channels = x->dim[x->rank - 1];
  plan->kernel = &KERNELS->quantize;
  plan->args.quantize = {FLOATS(0), NULL, rows_of(x), channels};
  return set_last(call, plan, &plan->args.quantize.out, words_of(channels));
}

bool unpack(Call* call, Plan* plan) {
  const int64_t channels = channels_of(call);
  if (!rows_fit(call) || !is_packed(call, channels)) return false;
  plan->kernel = &KERNELS->dequantize;
  plan->args.dequantize = {WORDS(0), NULL, rows_of(&call->in[0]), channels};
  return set_last(call, plan, &plan->args.dequantize.out, channels);
}

bool packed_max(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, dims[] = {x[0], x[2]};
  if (!sizes_fit(call)) return false;
  plan->kernel = &KERNELS->bmaxpool2d;
  plan->args.bmaxpool2d = {WORDS(0), NULL, x[0], x[1], 1, x[2], 1, 1, x[1], 1, 1, 1, 0, 0};
  return set_output(call, plan, &plan->args.bmaxpool2d.out, 2, dims);
}
