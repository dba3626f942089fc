#include "dense.h"

#include <math.h>
#include <string.h>

#include "dense_kernels.h"
#include "quantisers.h"

/* The inputs and attributes that both operators have; QLinear's result follows. */
enum { kCodes, kReal, kWeights, kMultiplier, kAdded };
enum { kX, kWZero = kX + 4, kResult };

const char* check_q_linear_float(Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  if (a[kWZero].i < -128 || a[kWZero].i > 127) return "w_zero is outside of [-128, 127]";
  kernel->dense = dense_kernels_for(kernel->binary->isa);
  return check_quantiser(kernel, kX, false);
}

const char* check_q_linear(Kernel* kernel) {
  const Attribute* a = kernel->attribute + kResult;
  if (!is_code(a[0].i)) return kNoZero;
  if (!is_code(a[1].i) || !is_code(a[2].i) || a[1].i > a[2].i) return kNoRange;
  return check_q_linear_float(kernel);
}

struct DenseCall {
  Dense args;
  const DenseKernels* kernels;
  uint8_t* scratch;
  int64_t stride, rows, tasks;
};

/* Whole panels, but for the last. */
static int64_t first_row(const DenseCall* c, int64_t task) {
  const int64_t panels = (c->rows + kPanel - 1) / kPanel, row = panels * task / c->tasks * kPanel;
  return row < c->rows ? row : c->rows;
}

static void run_dense(void* data, size_t task) {
  const DenseCall* c = (const DenseCall*)data;
  const int64_t at = (int64_t)task;
  c->kernels->dense(&c->args, c->scratch + at * c->stride, first_row(c, at), first_row(c, at + 1));
}

/* What is worth another thread's wake-up, in products of codes; each task has scratch memory of its own. */
static const int64_t kTaskProducts = 2 * 1024 * 1024, kMostTasks = 16;

static int64_t task_count(const DenseCall* c) {
  const int64_t each = c->args.inputs * c->args.outputs;
  const int64_t rows = kTaskProducts / (each + 1) + kPanel, tasks = (c->rows + rows - 1) / rows;
  return tasks < kMostTasks ? tasks : kMostTasks;
}

/* `count` numbers and zeros up to `places`. */
static const void* padded(char** memory, const void* numbers, int64_t count, int64_t places) {
  void* at = *memory;
  *memory += places * 4;
  memset(at, 0, (size_t)places * 4);
  if (numbers) memcpy(at, numbers, (size_t)count * 4);
  return at;
}

static bool run(Call* call, DenseCall* c, const Input* added) {
  Dense* a = &c->args;
  const int64_t places = dense_blocks(a->outputs) * kLanes, whole = 4 * places * 4; /* bytes of the padded vectors */
  c->tasks = task_count(c);
  c->stride = dense_scratch(a->inputs, a->outputs);
  char* memory = (char*)allocate(call, whole + c->tasks * c->stride);
  if (!memory) return false;
  char* at = memory;
  a->multiplier = (const float*)padded(&at, a->multiplier, a->outputs, places);
  a->bias = (const int32_t*)padded(&at, a->out ? NULL : added->data, a->outputs, places);
  const float* shift = (const float*)padded(&at, a->out ? added->data : NULL, a->outputs, places);
  if (a->out && added->data) a->shift = shift;
  int32_t* whole_bias = (int32_t*)at;
  c->scratch = (uint8_t*)at + places * 4; /* still at a multiple of 64 */
  c->kernels->prepare(a, c->scratch, whole_bias);
  a->whole_bias = whole_bias;
  const bool done = parallel(call, c->tasks, run_dense, c);
  release(call, memory);
  return done;
}

static bool all_finite(const Input* numbers) {
  for (int64_t i = 0; i < numbers->count; ++i) {
    if (!isfinite(((const float*)numbers->data)[i])) return false;
  }
  return true;
}

/* Codes where the operator gives them. */
bool q_linear(Call* call) {
  const Input *weights = &call->in[kWeights], *multiplier = &call->in[kMultiplier], *added = &call->in[kAdded];
  const Input* x = call->in[kCodes].data ? &call->in[kCodes] : &call->in[kReal];
  REQUIRE(x->data && !(call->in[kCodes].data && call->in[kReal].data), "it takes either x or real");
  const bool codes = call->kernel->kind->outputs[0] == kUint8;
  DenseCall c;
  memset(&c, 0, sizeof c);
  Dense* a = &c.args;
  c.kernels = call->kernel->dense;
  a->inputs = x->dim[x->rank - 1];
  a->outputs = multiplier->count;
  REQUIRE(a->outputs > 0, "multiplier is empty");
  REQUIRE(weights->dim[0] == dense_blocks(a->outputs) && weights->dim[1] == dense_groups(a->inputs) &&
              weights->dim[2] == kLanes,
          "weights is [%lld, %lld, %lld], not [%lld, %lld, %lld] for %lld inputs and %lld outputs",
          (long long)weights->dim[0], (long long)weights->dim[1], (long long)weights->dim[2],
          (long long)dense_blocks(a->outputs), (long long)dense_groups(a->inputs), (long long)kLanes, (long long)a->inputs,
          (long long)a->outputs);
  REQUIRE(!added->data || added->count == a->outputs, "the bias has %lld numbers, not one for each of the %lld outputs",
          (long long)added->count, (long long)a->outputs);
  REQUIRE(all_finite(multiplier), "a multiplier is not a finite number");
  int64_t dims[kMaxRank];
  memcpy(dims, x->dim, sizeof dims);
  dims[x->rank - 1] = a->outputs;
  void* out;
  if (!make_output(call, 0, x->rank, dims, &out)) return false;
  c.rows = 1;
  for (int i = 0; i + 1 < x->rank; ++i) c.rows *= x->dim[i];
  if (c.rows == 0) return true;
  const Attribute* at = call->kernel->attribute;
  a->quantiser = quantiser(call->kernel, kX);
  a->x_zero = a->quantiser.zp;
  a->w_zero = (int32_t)at[kWZero].i;
  a->weights = (const int32_t*)weights->data;
  a->multiplier = (const float*)multiplier->data;
  if (call->in[kCodes].data) {
    a->codes = (const uint8_t*)x->data;
    a->flip = x->flip;
  } else {
    a->real = (const float*)x->data;
  }
  if (codes) {
    a->result = {0, (int32_t)at[kResult].i, (int32_t)at[kResult + 1].i, (int32_t)at[kResult + 2].i};
    a->out_codes = (uint8_t*)out;
  } else {
    a->out = (float*)out;
  }
  return run(call, &c, added);
}

/* ---- Quantize ---- */

struct QuantizeCall {
  const float* real;
  uint8_t* out;
  Quantiser quantiser;
  int64_t count;
  const DenseKernels* kernels;
};

static const int64_t kTaskNumbers = 256 * 1024;

static void run_quantize(void* data, size_t task) {
  const QuantizeCall* c = (const QuantizeCall*)data;
  const int64_t first = (int64_t)task * kTaskNumbers, left = c->count - first;
  c->kernels->quantise(c->real + first, &c->quantiser, left < kTaskNumbers ? left : kTaskNumbers, c->out + first);
}

const char* check_quantize(Kernel* kernel) {
  kernel->dense = dense_kernels_for(kernel->binary->isa);
  return check_quantiser(kernel, 0, false);
}

bool quantize(Call* call) {
  const Input* real = &call->in[0];
  void* out;
  if (!make_output(call, 0, real->rank, real->dim, &out)) return false;
  QuantizeCall c = {(const float*)real->data, (uint8_t*)out, quantiser(call->kernel, 0), real->count, call->kernel->dense};
  return parallel(call, (c.count + kTaskNumbers - 1) / kTaskNumbers, run_quantize, &c);
}
