/* The list of operators: what each accepts, and how its tensors become a kernel's arguments. Files are not trusted:
 * a kernel gets its arguments only after every rank, size and option was compared with the others. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "op.h"

#define REQUIRE(condition, ...)                        \
  do {                                                 \
    if (!(condition)) return refuse(op, __VA_ARGS__);  \
  } while (0)

/* Options beyond this have no sensible use, and below it no product in this file overflows. */
static const int64_t kMaxStep = 65535;
/* 2 * popcount of a whole dot product stays far from the ends of int32. */
static const int64_t kMaxDotLength = 1 << 29;
static const int64_t kMaxExactFloat = 1 << 24;

bool refuse(Op* op, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(op->problem, sizeof op->problem, format, values);
  va_end(values);
  return false;
}

const char* type_name(int type) {
  switch (type) {
    case kTfLiteFloat32: return "float32";
    case kTfLiteInt32: return "int32";
    case kTfLiteUInt8: return "uint8";
    case kTfLiteBool: return "bool";
    case kTfLiteInt8: return "int8";
    default: return "another type";
  }
}

bool measure(Op* op, const char* name, Tensor* tensor) {
  int64_t bytes = tensor->type == kTfLiteFloat32 || tensor->type == kTfLiteInt32 ? 4 : 1;
  for (int i = 0; i < tensor->rank; ++i) {
    const int64_t size = tensor->dim[i];
    REQUIRE(size >= 1, "dimension %d of %s is %lld: empty tensors are not supported", i, name, (long long)size);
    REQUIRE(size <= kMaxBytes / bytes, "%s is larger than 2 GiB", name);
    bytes *= size;
  }
  tensor->bytes = bytes;
  return true;
}

static int64_t words_of(int64_t channels) { return (channels + 31) / 32; }

static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* input's dimension must equal `expected`, which `why` names. */
static bool dimension(Op* op, int input, int axis, int64_t expected, const char* why) {
  REQUIRE(op->in[input].dim[axis] == expected, "dimension %d of %s is %lld, but %s is %lld", axis,
          op->kind->inputs[input].name, (long long)op->in[input].dim[axis], why, (long long)expected);
  return true;
}

static bool option_between(Op* op, int option, int64_t low, int64_t high) {
  REQUIRE(op->option[option] >= low && op->option[option] <= high, "%s = %lld is outside of [%lld, %lld]",
          option_name(op->kind, option), (long long)op->option[option], (long long)low, (long long)high);
  return true;
}

/* The output's declared type must be `type`; its shape is ours to set. */
static bool output(Op* op, int type, int rank, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
  REQUIRE(op->out.type == type, "its output must be %s, the file says %s", type_name(type), type_name(op->out.type));
  const int64_t dims[4] = {d0, d1, d2, d3};
  op->out.rank = rank;
  memcpy(op->out.dim, dims, sizeof dims);
  return true;
}

static bool packed_channels(Op* op, int input, int64_t channels) {
  REQUIRE(channels >= 1, "channels = %lld must be positive", (long long)channels);
  return dimension(op, input, op->in[input].rank - 1, words_of(at_most(channels, kMaxBytes)),
                   "channels / 32, rounded up,");
}

/* neighbours [B, rows, k] of x [B, N, ...]. */
static bool neighbours_of(Op* op, int neighbours, int x) {
  return dimension(op, neighbours, 0, op->in[x].dim[0], "the number of graphs");
}

/* ---- the project's own operators (contract: docstrings of bgnn's dialect; kernels.h) ---- */

static bool plan_hamming_knn(Op* op, const BgnnKernels* kernels) {
  const int64_t* x = op->in[0].dim;
  const int64_t channels = op->option[0], k = op->option[1];
  if (!option_between(op, 0, 1, 65535) || !packed_channels(op, 0, channels) || !option_between(op, 1, 1, x[1])) {
    return false;
  }
  if (!option_between(op, 2, 0, 1)) return false;
  if (op->option[2]) {
    op->kernel = &kernels->hamming_far;
    op->args.hamming_far = {NULL, NULL, x[0], x[1], x[2], k};
  } else {
    op->kernel = &kernels->hamming_knn;
    op->args.hamming_knn = {NULL, NULL, x[0], x[1], x[2], k};
  }
  return output(op, kTfLiteInt32, 3, x[0], x[1], k, 0);
}

static bool plan_knn(Op* op, const BgnnKernels* kernels) {
  const int64_t* x = op->in[0].dim;
  const int64_t k = op->option[0];
  if (!option_between(op, 0, 1, x[1])) return false;
  op->kernel = &kernels->knn;
  op->args.knn = {NULL, NULL, x[0], x[1], x[2], k};
  return output(op, kTfLiteInt32, 3, x[0], x[1], k, 0);
}

static bool plan_xor_edge_conv(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *neighbours = op->in[1].dim, *weights = op->in[2].dim, *table = op->in[3].dim;
  if (!packed_channels(op, 0, op->option[0]) || !neighbours_of(op, 1, 0) ||
      !dimension(op, 1, 1, x[1], "the number of nodes") ||
      !dimension(op, 2, 1, 2 * x[2], "twice the words of a node") ||
      !dimension(op, 3, 1, weights[0], "the number of output channels")) {
    return false;
  }
  op->kernel = &kernels->xor_edge_conv;
  op->args.xor_edge_conv = {NULL, NULL, NULL, NULL, NULL, x[0], x[1], x[2], neighbours[2], weights[0], table[0]};
  return output(op, kTfLiteInt32, 3, x[0], x[1], words_of(weights[0]), 0);
}

static bool plan_gather_max(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *neighbours = op->in[1].dim;
  if (!neighbours_of(op, 1, 0)) return false;
  op->kernel = &kernels->gather_max;
  op->args.gather_max = {NULL, NULL, NULL, x[0], x[1], neighbours[1], x[2], neighbours[2]};
  return output(op, kTfLiteFloat32, 3, x[0], neighbours[1], x[2], 0);
}

static bool one_or(Op* op, int input, int64_t count, const char* what) {
  return op->in[input].dim[0] == 1 || dimension(op, input, 0, count, what);
}

static bool plan_bin_edge_conv(Op* op, const BgnnKernels* kernels) {
  const int64_t *bits = op->in[0].dim, *neighbours = op->in[2].dim, *weights = op->in[5].dim;
  const int64_t channels = op->option[0];
  if (!packed_channels(op, 0, channels) || !dimension(op, 1, 0, bits[0], "the number of graphs") ||
      !dimension(op, 1, 1, bits[1], "the number of nodes") || !dimension(op, 1, 2, channels, "channels") ||
      !neighbours_of(op, 2, 0) || !dimension(op, 2, 1, bits[1], "the number of nodes") ||
      !dimension(op, 3, 0, channels, "channels") || !dimension(op, 4, 0, channels, "channels") ||
      !dimension(op, 5, 1, 2 * bits[2], "twice the words of a node") ||
      !dimension(op, 6, 0, weights[0], "the number of output channels") ||
      !one_or(op, 7, bits[1], "the number of nodes") || !one_or(op, 8, neighbours[2], "the number of neighbours") ||
      !one_or(op, 9, weights[0], "the number of output channels")) {
    return false;
  }
  op->kernel = &kernels->bin_edge_conv;
  op->args.bin_edge_conv = {NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                            bits[0], bits[1], channels, bits[2], neighbours[2], weights[0],
                            op->in[7].dim[0], op->in[8].dim[0], op->in[9].dim[0]};
  return output(op, kTfLiteFloat32, 3, bits[0], bits[1], weights[0], 0);
}

static bool plan_dense_pool(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *weights = op->in[1].dim;
  const int64_t channels = op->option[0];
  if (!packed_channels(op, 0, channels) || !dimension(op, 1, 1, x[2], "the words of a node")) return false;
  REQUIRE(channels <= kMaxExactFloat / x[1],
          "%lld nodes with %lld channels: the sums would not be exact beyond 2^24", (long long)x[1],
          (long long)channels);
  op->kernel = &kernels->dense_pool;
  op->args.dense_pool = {NULL, NULL, NULL, x[0], x[1], x[2], channels, weights[0]};
  return output(op, kTfLiteFloat32, 3, x[0], 4, weights[0], 0);
}

static bool plan_edge_max(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *neighbours = op->in[2].dim;
  if (!dimension(op, 1, 0, x[0], "the number of graphs") || !dimension(op, 1, 1, x[1], "the number of nodes") ||
      !dimension(op, 1, 2, x[2], "channels") || !neighbours_of(op, 2, 0) ||
      !dimension(op, 2, 1, x[1], "the number of nodes") || !one_or(op, 3, x[1], "the number of nodes") ||
      !one_or(op, 4, neighbours[2], "the number of neighbours")) {
    return false;
  }
  op->kernel = &kernels->edge_max;
  op->args.edge_max = {NULL, NULL, NULL, NULL, NULL, NULL, x[0], x[1], x[2], neighbours[2],
                       op->in[3].dim[0], op->in[4].dim[0]};
  return output(op, kTfLiteFloat32, 3, x[0], x[1], x[2], 0);
}

static bool plan_scaled_pool(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *weights = op->in[1].dim;
  const int64_t channels = op->option[0];
  if (!packed_channels(op, 0, channels) || !dimension(op, 1, 1, x[2], "the words of a node") ||
      !one_or(op, 2, x[1], "the number of nodes")) {
    return false;
  }
  op->kernel = &kernels->scaled_pool;
  op->args.scaled_pool = {NULL, NULL, NULL, NULL, x[0], x[1], x[2], channels, weights[0], op->in[2].dim[0]};
  return output(op, kTfLiteFloat32, 3, x[0], 4, weights[0], 0);
}

/* ---- Larq Compute Engine's operators ---- */

/* The product of all dimensions but the last. */
static int64_t rows_of(const Tensor* tensor) {
  int64_t rows = 1;
  for (int i = 0; i < tensor->rank - 1; ++i) rows *= tensor->dim[i];
  return rows;
}

static bool plan_quantize(Op* op, const BgnnKernels* kernels) {
  const Tensor* x = &op->in[0];
  REQUIRE(op->out.type == kTfLiteInt32, "its output must be int32, the file says %s", type_name(op->out.type));
  const int64_t channels = x->dim[x->rank - 1];
  op->out.rank = x->rank;
  memcpy(op->out.dim, x->dim, sizeof x->dim);
  op->out.dim[x->rank - 1] = words_of(channels);
  if (x->type == kTfLiteFloat32) {
    op->kernel = &kernels->quantize;
    op->args.quantize = {NULL, NULL, rows_of(x), channels};
    return true;
  }
  REQUIRE(x->type == kTfLiteInt8 || x->type == kTfLiteBool, "x must be float32, int8 or bool, the file says %s",
          type_name(x->type));
  op->kernel = &kernels->quantize_int8;
  op->args.quantize_int8 = {NULL, NULL, rows_of(x), channels, x->type == kTfLiteBool ? 1 : x->zero_point};
  return true;
}

static bool has_scale(Op* op) {
  REQUIRE(op->out.quantization == kTfLiteAffineQuantization && op->out.scale >= 1e-30f && op->out.scale <= 1e30f &&
              op->out.zero_point >= -128 && op->out.zero_point <= 127,
          "its int8 output has no usable scale and zero point");
  return true;
}

/* The nearest integer in [-128, 127], halves away from zero; NaN gives -128. */
static int8_t to_int8(double value) {
  if (!(value > -128)) return -128;
  if (value > 127) return 127;
  return (int8_t)(value + (value < 0 ? -0.5 : 0.5));
}

static bool plan_dequantize(Op* op, const BgnnKernels* kernels) {
  const Tensor* x = &op->in[0];
  /* How many channels the last word holds stands only in the output's shape in the file. */
  REQUIRE(op->out.rank == x->rank, "its output has rank %d, its input %d", op->out.rank, x->rank);
  const int64_t channels = op->out.dim[x->rank - 1];
  if (!packed_channels(op, 0, channels)) return false;
  memcpy(op->out.dim, x->dim, sizeof x->dim);
  op->out.dim[x->rank - 1] = channels;
  if (op->out.type == kTfLiteFloat32) {
    op->kernel = &kernels->dequantize;
    op->args.dequantize = {NULL, NULL, rows_of(x), channels};
    return true;
  }
  op->kernel = &kernels->dequantize_int8;
  op->args.dequantize_int8 = {NULL, NULL, rows_of(x), channels, 1, 0};
  if (op->out.type == kTfLiteBool) return true;
  REQUIRE(op->out.type == kTfLiteInt8, "its output must be float32, int8 or bool, the file says %s",
          type_name(op->out.type));
  if (!has_scale(op)) return false;
  const float reciprocal = 1.0f / op->out.scale; /* as LCE rounds it */
  const double one = reciprocal > 1000 ? 1000 : (double)(int)((double)reciprocal + 0.5);
  op->args.dequantize_int8.plus = to_int8(op->out.zero_point + one);
  op->args.dequantize_int8.minus = to_int8(op->out.zero_point - one);
  return true;
}

/* Output size and padding before the image, along one axis, as TFLite computes them. */
static bool window(Op* op, const char* axis, int64_t size, int64_t filter, int64_t stride, int64_t dilation,
                   bool same, int64_t* out, int64_t* pad) {
  REQUIRE(filter <= kMaxStep, "its filter's %s is %lld, more than %lld", axis, (long long)filter,
          (long long)kMaxStep);
  const int64_t extent = (filter - 1) * dilation + 1;
  REQUIRE(same || extent <= size, "its filter covers %lld pixels of %s, the image has %lld, and padding is VALID",
          (long long)extent, axis, (long long)size);
  *out = ((same ? size - 1 : size - extent) / stride) + 1;
  *pad = at_least((*out - 1) * stride + extent - size, 0) / 2;
  return true;
}

enum ConvOption {
  kChannelsIn, kDilationHeight, kDilationWidth, kActivation, kPadValues, kPadding, kStrideHeight, kStrideWidth
};

static bool per_channel(Op* op, int input, int type, int64_t out_channels) {
  const char* name = op->kind->inputs[input].name;
  REQUIRE(op->in[input].present, "%s is missing", name);
  REQUIRE(op->in[input].type == type && op->in[input].rank == 1, "%s must be a vector of %s", name, type_name(type));
  return dimension(op, input, 0, out_channels, "the number of output channels");
}

/* What the temporary memory of a convolution starts with, [out_channels] floats each: ones and zeroes for the kernel,
 * which so gives the dot products themselves, and LCE's multiplier and bias. An int8 output's floats follow. */
enum { kOnes, kZeroes, kMultiplier, kBias, kFactors };

/* A piece of the output that is finished at once: it fits the first or second level cache. */
static const int64_t kPieceFloats = 8192;

static bool plan_bconv2d(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *filter = op->in[1].dim, *option = op->option;
  const int64_t channels_in = option[kChannelsIn], out_channels = filter[0];
  if (!packed_channels(op, 0, channels_in) || !option_between(op, kDilationHeight, 1, kMaxStep) ||
      !option_between(op, kDilationWidth, 1, kMaxStep) || !option_between(op, kActivation, 0, 3) ||
      !option_between(op, kPadValues, 0, 1) || !option_between(op, kPadding, 0, 1) ||
      !option_between(op, kStrideHeight, 1, kMaxStep) || !option_between(op, kStrideWidth, 1, kMaxStep)) {
    return false;
  }
  const int64_t groups = x[3] / filter[3], channels = channels_in / at_least(groups, 1);
  REQUIRE(groups >= 1 && x[3] % filter[3] == 0 &&
              (groups == 1 || (channels_in % groups == 0 && channels % 32 == 0 && out_channels % groups == 0)),
          "a filter of %lld words and %lld channels does not fit %lld input channels", (long long)filter[3],
          (long long)out_channels, (long long)channels_in);

  const bool same = option[kPadding] == 0;
  int64_t out_height, out_width, pad_top, pad_left;
  if (!window(op, "height", x[1], filter[1], option[kStrideHeight], option[kDilationHeight], same, &out_height,
              &pad_top) ||
      !window(op, "width", x[2], filter[2], option[kStrideWidth], option[kDilationWidth], same, &out_width,
              &pad_left)) {
    return false;
  }
  REQUIRE(filter[1] * filter[2] <= kMaxDotLength / channels, "a filter of %lld x %lld x %lld channels is too large",
          (long long)filter[1], (long long)filter[2], (long long)channels);

  static const int64_t kActMin[4] = {INT32_MIN, 0, -1, 0}, kActMax[4] = {INT32_MAX, INT32_MAX, 1, 6};
  const int64_t length = filter[1] * filter[2] * channels;
  const int64_t clamp_min = at_least(kActMin[option[kActivation]], -length);
  const int64_t clamp_max = at_most(kActMax[option[kActivation]], length);
  const bool bits = op->out.type == kTfLiteInt32;
  op->kernel = &kernels->bconv2d;
  op->args.bconv2d = {NULL, NULL, NULL, NULL, NULL, NULL, NULL, x[0], x[1], x[2], filter[3], channels, groups,
                      out_channels, out_height, out_width, filter[1], filter[2], option[kStrideHeight],
                      option[kStrideWidth], option[kDilationHeight], option[kDilationWidth], pad_top, pad_left,
                      option[kPadValues], clamp_min, clamp_max};
  if (bits) {
    REQUIRE(!same || option[kPadValues] == 1 || channels % 2 == 0,
            "packed output with zeros as padding needs an even number of channels, got %lld", (long long)channels);
    return per_channel(op, 4, kTfLiteInt32, out_channels) &&
           output(op, kTfLiteInt32, 4, x[0], out_height, out_width, words_of(out_channels));
  }
  const bool int8 = op->out.type == kTfLiteInt8;
  REQUIRE(int8 || op->out.type == kTfLiteFloat32, "its output must be float32, int8 or int32, the file says %s",
          type_name(op->out.type));
  REQUIRE(length <= kMaxExactFloat, "a dot product of %lld terms is not exact in float32", (long long)length);
  if (!per_channel(op, 2, kTfLiteFloat32, out_channels) || !per_channel(op, 3, kTfLiteFloat32, out_channels) ||
      (int8 && !has_scale(op)) || !output(op, op->out.type, 4, x[0], out_height, out_width, out_channels)) {
    return false;
  }
  Tensor floats = op->out;
  floats.type = kTfLiteFloat32;
  if (!measure(op, "its output", &floats)) return false;
  op->temporary_bytes = kFactors * 4 * out_channels + (int8 ? floats.bytes : 0);
  op->piece = at_least(kPieceFloats / out_channels, 16);
  return true;
}

/* LCE folds dot = length - 2 * popcount, and an int8 output's scale, into multiplier and bias, in double precision
 * and rounded once. That order of rounding is part of its results. */
static void before_bconv2d(Op* op, void* temporary) {
  BgnnBconv2d* args = &op->args.bconv2d;
  if (op->out.type == kTfLiteInt32) {
    args->out = NULL;
    args->out_bits = (int32_t*)op->out.data;
    return;
  }
  const int64_t count = args->out_channels;
  float* factors = (float*)temporary;
  const bool int8 = op->out.type == kTfLiteInt8;
  const double scale = int8 ? op->out.scale : 1.0, zero_point = int8 ? op->out.zero_point : 0.0;
  const double length = (double)(args->filter_height * args->filter_width * args->channels);
  for (int64_t i = 0; i < count; ++i) {
    const double multiplier = ((const float*)op->in[2].data)[i], bias = ((const float*)op->in[3].data)[i];
    factors[kOnes * count + i] = 1;
    factors[kZeroes * count + i] = 0;
    factors[kMultiplier * count + i] = (float)(-1 * multiplier / scale);
    factors[kBias * count + i] = (float)((bias + length * multiplier) / scale + zero_point);
  }
  args->multiplier = factors + kOnes * count;
  args->bias = factors + kZeroes * count;
  args->out = int8 ? factors + kFactors * count : (float*)op->out.data;
  args->out_bits = NULL;
}

/* From dot products to LCE's output, for the pixels [first, last). */
static void after_bconv2d(const Op* op, const void* temporary, int64_t first, int64_t last) {
  const BgnnBconv2d* args = &op->args.bconv2d;
  if (!args->out) return;
  const int64_t count = args->out_channels;
  const float *multiplier = (const float*)temporary + kMultiplier * count, *bias = multiplier + count;
  const float length = (float)(args->filter_height * args->filter_width * args->channels);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    float* __restrict out = args->out + pixel * count;
    for (int64_t i = 0; i < count; ++i) {
      const float scaled = (length - out[i]) * multiplier[i];
      out[i] = scaled + bias[i];
    }
    if (op->out.type != kTfLiteInt8) continue;
    for (int64_t i = 0; i < count; ++i) ((int8_t*)op->out.data)[pixel * count + i] = to_int8(out[i]);
  }
}

enum PoolOption { kPoolPadding, kPoolStrideWidth, kPoolStrideHeight, kPoolFilterWidth, kPoolFilterHeight };

static bool plan_bmaxpool2d(Op* op, const BgnnKernels* kernels) {
  const int64_t *x = op->in[0].dim, *option = op->option;
  if (!option_between(op, kPoolPadding, 0, 1)) return false;
  for (int i = kPoolStrideWidth; i <= kPoolFilterHeight; ++i) {
    if (!option_between(op, i, 1, kMaxStep)) return false;
  }
  const bool same = option[kPoolPadding] == 0;
  int64_t out_height, out_width, pad_top, pad_left;
  if (!window(op, "height", x[1], option[kPoolFilterHeight], option[kPoolStrideHeight], 1, same, &out_height,
              &pad_top) ||
      !window(op, "width", x[2], option[kPoolFilterWidth], option[kPoolStrideWidth], 1, same, &out_width,
              &pad_left)) {
    return false;
  }
  op->kernel = &kernels->bmaxpool2d;
  op->args.bmaxpool2d = {NULL, NULL, x[0], x[1], x[2], x[3], out_height, out_width, option[kPoolFilterHeight],
                         option[kPoolFilterWidth], option[kPoolStrideHeight], option[kPoolStrideWidth], pad_top,
                         pad_left};
  return output(op, kTfLiteInt32, 4, x[0], out_height, out_width, x[3]);
}

/* ---- the list ---- */

static const int F32 = kTfLiteFloat32, I32 = kTfLiteInt32, ANY = 0;

const FileOp kFileOps[] = {
    {"BgnnHammingKnn", 1, {{"x", I32, 3, false}}, {"channels", "k", "?largest"}, plan_hamming_knn, NULL, NULL},
    {"BgnnKnn", 1, {{"x", F32, 3, false}}, {"k"}, plan_knn, NULL, NULL},
    {"BgnnXorEdgeConv",
     4,
     {{"x", I32, 3, false}, {"neighbours", I32, 3, false}, {"weights", I32, 2, false}, {"thresholds", I32, 2, false}},
     {"channels"},
     plan_xor_edge_conv,
     NULL,
     NULL},
    {"BgnnGatherMax",
     2,
     {{"x", F32, 3, false}, {"neighbours", I32, 3, false}},
     {NULL},
     plan_gather_max,
     NULL,
     NULL},
    {"BgnnBinEdgeConv",
     10,
     {{"node_bits", I32, 3, false},
      {"x", F32, 3, false},
      {"neighbours", I32, 3, false},
      {"edge_scale", F32, 1, false},
      {"edge_shift", F32, 1, false},
      {"weights", I32, 2, false},
      {"alpha", F32, 1, false},
      {"beta", F32, 1, false},
      {"gamma", F32, 1, false},
      {"slope", F32, 1, false}},
     {"channels"},
     plan_bin_edge_conv,
     NULL,
     NULL},
    {"BgnnDensePool",
     2,
     {{"x", I32, 3, false}, {"weights", I32, 2, false}},
     {"channels"},
     plan_dense_pool,
     NULL,
     NULL},
    {"BgnnEdgeMax",
     5,
     {{"x", F32, 3, false},
      {"node", F32, 3, false},
      {"neighbours", I32, 3, false},
      {"beta", F32, 1, false},
      {"gamma", F32, 1, false}},
     {NULL},
     plan_edge_max,
     NULL,
     NULL},
    {"BgnnScaledPool",
     3,
     {{"x", I32, 3, false}, {"weights", I32, 2, false}, {"scale", F32, 1, false}},
     {"channels"},
     plan_scaled_pool,
     NULL,
     NULL},
    {"LceQuantize", 1, {{"x", ANY, 0, false}}, {NULL}, plan_quantize, NULL, NULL},
    {"LceDequantize", 1, {{"x", I32, 0, false}}, {NULL}, plan_dequantize, NULL, NULL},
    {"LceBconv2d",
     5,
     {{"x", I32, 4, false},
      {"the filter", I32, 4, false},
      {"the multiplier", ANY, 0, true},
      {"the bias", ANY, 0, true},
      {"the threshold", ANY, 0, true}},
     {"channels_in", "dilation_height_factor", "dilation_width_factor", "fused_activation_function", "pad_values",
      "padding", "stride_height", "stride_width"},
     plan_bconv2d,
     before_bconv2d,
     after_bconv2d},
    {"LceBMaxPool2d",
     1,
     {{"x", I32, 4, false}},
     {"padding", "stride_width", "stride_height", "filter_width", "filter_height"},
     plan_bmaxpool2d,
     NULL,
     NULL},
};
const int kFileOpCount = sizeof kFileOps / sizeof kFileOps[0];

/* What `invoke` relies on: pointers first, in the order of the inputs, then the output. */
static_assert(offsetof(BgnnHammingKnn, neighbours) == 1 * 8 && offsetof(BgnnHammingFar, neighbours) == 1 * 8 &&
                  offsetof(BgnnKnn, neighbours) == 1 * 8 &&
                  offsetof(BgnnXorEdgeConv, out) == 4 * 8 && offsetof(BgnnGatherMax, out) == 2 * 8 &&
                  offsetof(BgnnBinEdgeConv, out) == 10 * 8 && offsetof(BgnnDensePool, out) == 2 * 8 &&
                  offsetof(BgnnEdgeMax, out) == 5 * 8 && offsetof(BgnnScaledPool, out) == 3 * 8 &&
                  offsetof(BgnnQuantize, out) == 8 && offsetof(BgnnQuantizeInt8, out) == 8 &&
                  offsetof(BgnnDequantize, out) == 8 && offsetof(BgnnDequantizeInt8, out) == 8 &&
                  offsetof(BgnnBconv2d, out) == 5 * 8 && offsetof(BgnnBMaxPool2d, out) == 8,
              "the pointers of the argument structs");
