/* Larq Compute Engine's operators, which TFLite files alone have: what they accept, and how their tensors become a
 * kernel's arguments. Their names in files are "Lce" and the list's. */
#include "../ops/binary.h"
#include "nodes.h"

/* Attributes beyond this have no sensible use, and below it no product in this file overflows. */
static const int64_t kMaxStep = 65535;
/* 2 * popcount of a whole dot product stays far from the ends of int32. */
static const int64_t kMaxDotLength = 1 << 29;

static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t option(const Call* call, int attribute) { return call->kernel->attribute[attribute].i; }

static bool option_between(Call* call, int attribute, int64_t low, int64_t high) {
  const int64_t value = option(call, attribute);
  REQUIRE(value >= low && value <= high, "%s = %lld is outside of [%lld, %lld]",
          attribute_name(call->kernel->kind->attributes[attribute]), (long long)value, (long long)low, (long long)high);
  return true;
}

static bool packed_channels(Call* call, const char* name, int64_t channels) {
  REQUIRE(channels >= 1, "%s = %lld must be positive", name, (long long)channels);
  return is_packed(call, at_most(channels, 32 * kMostBytes));
}

/* Of a tensor in 8 bits. */
static bool has_scale(Call* call) {
  const TfLiteTensor* out = file_output(call);
  REQUIRE(out->quantization_type == kTfLiteAffineQuantization && out->scale >= 1e-30f && out->scale <= 1e30f &&
              out->zero_point >= -128 && out->zero_point <= 127,
          "its int8 output has no usable scale and zero point");
  return true;
}

static bool plan_quantize(Call* call, Plan* plan) {
  if (!not_empty(call)) return false;
  const Input* x = &call->in[0];
  const TfLiteTensor* file = file_input(call, 0);
  const int64_t channels = x->dim[x->rank - 1], rows = rows_of(x);
  int64_t dims[kMaxRank];
  memcpy(dims, x->dim, sizeof dims);
  dims[x->rank - 1] = words_of(channels);
  if (file->type == kTfLiteFloat32) {
    plan->kernel = &call->kernel->binary->quantize;
    plan->args.quantize = {(const float*)x->data, NULL, rows, channels};
    return set_output(call, plan, &plan->args.quantize.out, x->rank, dims);
  }
  REQUIRE(file->type == kTfLiteInt8 || file->type == kTfLiteBool, "x must be float32, int8 or bool, the file says %s",
          type_name(file->type));
  plan->kernel = &call->kernel->binary->quantize_int8;
  plan->args.quantize_int8 = {(const int8_t*)x->data, NULL, rows, channels,
                              file->type == kTfLiteBool ? 1 : file->zero_point};
  return set_output(call, plan, &plan->args.quantize_int8.out, x->rank, dims);
}

static bool plan_dequantize(Call* call, Plan* plan) {
  const Input* x = &call->in[0];
  const TfLiteTensor* out = file_output(call);
  const int rank = out->dims ? out->dims->size : 0;
  /* How many channels the last word holds stands only in the output's shape in the file. */
  REQUIRE(rank == x->rank, "its output has rank %d, its input %d", rank, x->rank);
  const int64_t channels = out->dims->data[rank - 1];
  if (!not_empty(call) || !packed_channels(call, "channels", channels)) return false;
  int64_t dims[kMaxRank];
  memcpy(dims, x->dim, sizeof dims);
  dims[rank - 1] = channels;
  if (out->type == kTfLiteFloat32) {
    plan->kernel = &call->kernel->binary->dequantize;
    plan->args.dequantize = {(const int32_t*)x->data, NULL, rows_of(x), channels};
    return set_output(call, plan, &plan->args.dequantize.out, rank, dims);
  }
  REQUIRE(out->type == kTfLiteBool || out->type == kTfLiteInt8,
          "its output must be float32, int8 or bool, the file says %s", type_name(out->type));
  int8_t plus = 1, minus = 0;
  if (out->type == kTfLiteInt8) {
    if (!has_scale(call)) return false;
    const float reciprocal = 1.0f / out->scale; /* as LCE rounds it */
    const double one = reciprocal > 1000 ? 1000 : (double)(int)((double)reciprocal + 0.5);
    plus = to_int8(out->zero_point + one);
    minus = to_int8(out->zero_point - one);
  }
  plan->kernel = &call->kernel->binary->dequantize_int8;
  plan->args.dequantize_int8 = {(const int32_t*)x->data, NULL, rows_of(x), channels, plus, minus};
  return set_output(call, plan, &plan->args.dequantize_int8.out, rank, dims);
}

/* Output size and padding before the image, along one axis, as TFLite computes them. */
static bool window(Call* call, const char* axis, int64_t size, int64_t filter, int64_t stride, int64_t dilation,
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

enum ConvAttribute {
  kChannelsIn, kDilationHeight, kDilationWidth, kActivation, kPadValues, kPadding, kStrideHeight, kStrideWidth
};

static bool per_channel(Call* call, int input, int type, int64_t out_channels) {
  const char* name = call->kernel->kind->inputs[input].name;
  const TfLiteTensor* file = file_input(call, input);
  REQUIRE(file, "%s is missing", name);
  REQUIRE(file->type == type && call->in[input].rank == 1, "%s must be a vector of %s", name, type_name(type));
  return dimension(call, input, 0, out_channels, "the number of output channels");
}

static bool plan_bconv2d(Call* call, Plan* plan) {
  const int64_t *x = call->in[0].dim, *filter = call->in[1].dim;
  const int64_t channels_in = option(call, kChannelsIn), out_channels = filter[0];
  if (!not_empty(call) || !packed_channels(call, "channels_in", channels_in) ||
      !option_between(call, kDilationHeight, 1, kMaxStep) || !option_between(call, kDilationWidth, 1, kMaxStep) ||
      !option_between(call, kActivation, 0, 3) || !option_between(call, kPadValues, 0, 1) ||
      !option_between(call, kPadding, 0, 1) || !option_between(call, kStrideHeight, 1, kMaxStep) ||
      !option_between(call, kStrideWidth, 1, kMaxStep)) {
    return false;
  }
  const int64_t groups = x[3] / filter[3], channels = channels_in / at_least(groups, 1);
  REQUIRE(groups >= 1 && x[3] % filter[3] == 0 &&
              (groups == 1 || (channels_in % groups == 0 && channels % 32 == 0 && out_channels % groups == 0)),
          "a filter of %lld words and %lld channels does not fit %lld input channels", (long long)filter[3],
          (long long)out_channels, (long long)channels_in);

  const bool same = option(call, kPadding) == 0;
  int64_t out_height, out_width, pad_top, pad_left;
  if (!window(call, "height", x[1], filter[1], option(call, kStrideHeight), option(call, kDilationHeight), same,
              &out_height, &pad_top) ||
      !window(call, "width", x[2], filter[2], option(call, kStrideWidth), option(call, kDilationWidth), same, &out_width,
              &pad_left)) {
    return false;
  }
  REQUIRE(filter[1] * filter[2] <= kMaxDotLength / channels, "a filter of %lld x %lld x %lld channels is too large",
          (long long)filter[1], (long long)filter[2], (long long)channels);

  static const int64_t kActMin[4] = {INT32_MIN, 0, -1, 0}, kActMax[4] = {INT32_MAX, INT32_MAX, 1, 6};
  const int64_t length = filter[1] * filter[2] * channels, pad_one = option(call, kPadValues);
  const int64_t clamp_min = at_least(kActMin[option(call, kActivation)], -length);
  const int64_t clamp_max = at_most(kActMax[option(call, kActivation)], length);
  BgnnBconv2d* args = &plan->args.bconv2d;
  plan->kernel = &call->kernel->binary->bconv2d;
  *args = {(const int32_t*)call->in[0].data, (const int32_t*)call->in[1].data, NULL, NULL, NULL, NULL, NULL, x[0], x[1],
           x[2], filter[3], channels, groups, out_channels, out_height, out_width, filter[1], filter[2],
           option(call, kStrideHeight), option(call, kStrideWidth), option(call, kDilationHeight),
           option(call, kDilationWidth), pad_top, pad_left, pad_one, clamp_min, clamp_max};
  int64_t dims[] = {x[0], out_height, out_width, out_channels};
  const TfLiteTensor* out = file_output(call);
  if (out->type == kTfLiteInt32) {
    REQUIRE(!same || pad_one == 1 || channels % 2 == 0,
            "packed output with zeros as padding needs an even number of channels, got %lld", (long long)channels);
    args->thresholds = (const int32_t*)call->in[4].data;
    dims[3] = words_of(out_channels);
    return per_channel(call, 4, kTfLiteInt32, out_channels) && set_output(call, plan, &args->out_bits, 4, dims);
  }
  const bool int8 = out->type == kTfLiteInt8;
  REQUIRE(int8 || out->type == kTfLiteFloat32, "its output must be float32, int8 or int32, the file says %s",
          type_name(out->type));
  args->multiplier = (const float*)call->in[2].data;
  args->bias = (const float*)call->in[3].data;
  if (!per_channel(call, 2, kTfLiteFloat32, out_channels) || !per_channel(call, 3, kTfLiteFloat32, out_channels) ||
      (int8 && !has_scale(call))) {
    return false;
  }
  plan->scale = int8 ? out->scale : 0;
  plan->zero = int8 ? out->zero_point : 0;
  return set_output(call, plan, &args->out, 4, dims) && plan_multiplier(call, plan);
}

enum PoolAttribute { kPoolPadding, kPoolStrideWidth, kPoolStrideHeight, kPoolFilterWidth, kPoolFilterHeight };

static bool plan_bmaxpool2d(Call* call, Plan* plan) {
  const int64_t* x = call->in[0].dim;
  if (!not_empty(call) || !option_between(call, kPoolPadding, 0, 1)) return false;
  for (int i = kPoolStrideWidth; i <= kPoolFilterHeight; ++i) {
    if (!option_between(call, i, 1, kMaxStep)) return false;
  }
  const bool same = option(call, kPoolPadding) == 0;
  const int64_t height = option(call, kPoolFilterHeight), width = option(call, kPoolFilterWidth);
  const int64_t down = option(call, kPoolStrideHeight), right = option(call, kPoolStrideWidth);
  int64_t out_height, out_width, pad_top, pad_left;
  if (!window(call, "height", x[1], height, down, 1, same, &out_height, &pad_top) ||
      !window(call, "width", x[2], width, right, 1, same, &out_width, &pad_left)) {
    return false;
  }
  plan->kernel = &call->kernel->binary->bmaxpool2d;
  plan->args.bmaxpool2d = {(const int32_t*)call->in[0].data, NULL, x[0], x[1], x[2], x[3], out_height, out_width, height,
                           width, down, right, pad_top, pad_left};
  const int64_t dims[] = {x[0], out_height, out_width, x[3]};
  return set_output(call, plan, &plan->args.bmaxpool2d.out, 4, dims);
}

#define PER_CHANNEL(name) {name, kAny, 1, kMaxRank, true}

const OpKind kLceKinds[] = {
    {"Quantize", {{"x", kAny, 1, kMaxRank, false}}, {kInt32}, 0, {}, NULL, NULL, NULL, plan_quantize},
    {"Dequantize", {{"x", kInt32, 1, kMaxRank, false}}, {kAny}, 0, {}, NULL, NULL, NULL, plan_dequantize},
    {"Bconv2d",
     {{"x", kInt32, 4, 4, false},
      {"the filter", kInt32, 4, 4, false},
      PER_CHANNEL("the multiplier"),
      PER_CHANNEL("the bias"),
      PER_CHANNEL("the threshold")},
     {kAny},
     0,
     {"i channels_in", "i dilation_height_factor", "i dilation_width_factor", "i fused_activation_function",
      "i pad_values", "i padding", "i stride_height", "i stride_width"},
     NULL,
     NULL,
     NULL,
     plan_bconv2d},
    {"BMaxPool2d",
     {{"x", kInt32, 4, 4, false}},
     {kInt32},
     0,
     {"i padding", "i stride_width", "i stride_height", "i filter_width", "i filter_height"},
     NULL,
     NULL,
     NULL,
     plan_bmaxpool2d},
};
const int kLceKindCount = sizeof kLceKinds / sizeof kLceKinds[0];
