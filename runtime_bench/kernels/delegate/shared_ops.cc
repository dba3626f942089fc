/* A node of the file as a call of an operator of ../ops. Shapes are those that the inputs have when the graph is prepared,
 * which a user may have resized; where the operator cannot tell them then, the file's, or the run fails. What TFLite has no tensors for is brought to it: int64 stands as int32 in the file,
 * and codes 0..255 as int8, 128 less. */
#include "shared_ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ops/graph_kernels.h"
#include "../ops/op_list.h"
#include "denormals.h"
#include "options.h"
#include "sizes.h"

static const char kPrefix[] = "Bgnn";
static const int64_t kMostBytes = INT32_MAX;

/* A node of the file. */
struct SharedNode {
  Kernel kernel; /* first: the operators see it alone */
  Delegate* delegate;
  int number;
  int input_index[kMaxInputs], output_index[kMaxOutputs];
  char problem[512]; /* of the file; empty: none */
};

struct SharedCall {
  Call call; /* first */
  SharedNode* node;
  TfLiteContext* context;
  int threads;
  void* converted[kMaxInputs]; /* copies of inputs, or NULL */
  void* unread[kMaxOutputs];   /* memory for outputs that have none, or NULL */
  bool codes[kMaxOutputs];     /* outputs to be shifted to int8 */
};

static const OpKind* shared_kind(const TfLiteRegistration* registration) {
  const char* name = registration ? registration->custom_name : NULL;
  if (!name || strncmp(name, kPrefix, sizeof kPrefix - 1) != 0) return NULL;
  for (int i = 0; i < kOpKindCount; ++i) {
    if (strcmp(name + sizeof kPrefix - 1, kOpKinds[i].name) == 0) return &kOpKinds[i];
  }
  return NULL;
}

static TfLiteStatus report(TfLiteContext* context, const SharedNode* node) {
  context->ReportError(context, "%s%s (operator %d of the file): %s.", kPrefix, node->kernel.kind->name, node->number,
                       node->problem);
  return kTfLiteError;
}

static bool refuse(SharedNode* node, const char* format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(SharedNode* node, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(node->problem, sizeof node->problem, format, values);
  va_end(values);
  return false;
}

/* ---- what ../ops/call.h asks for ---- */

bool fail(Call* call, const char* format, ...) {
  if (call->failed) return false; /* the first reason stays */
  SharedNode* node = ((SharedCall*)call)->node;
  va_list values;
  va_start(values, format);
  vsnprintf(node->problem, sizeof node->problem, format, values);
  va_end(values);
  call->failed = true;
  return false;
}

static const char* type_of(int type) {
  switch (type) {
    case kFloat32: return "float32";
    case kUint8: return "int8 or uint8";
    default: return "int32";
  }
}

static bool has_type(const TfLiteTensor* tensor, int type) {
  switch (type) {
    case kFloat32: return tensor->type == kTfLiteFloat32;
    case kUint8: return tensor->type == kTfLiteInt8 || tensor->type == kTfLiteUInt8;
    default: return tensor->type == kTfLiteInt32;
  }
}

static int output_count(const OpKind* kind) {
  int count = 0;
  while (count < kMaxOutputs && kind->outputs[count]) ++count;
  return count;
}

bool make_output(Call* call, int index, int rank, const int64_t* dims, void** data) {
  *data = NULL;
  SharedCall* shared = (SharedCall*)call;
  const TfLiteTensor* tensor = &shared->context->tensors[shared->node->output_index[index]];
  int64_t bytes = tensor->type == kTfLiteInt8 || tensor->type == kTfLiteUInt8 ? 1 : 4;
  bool fits = tensor->dims && tensor->dims->size == rank;
  for (int i = 0; i < rank && fits; ++i) {
    fits = tensor->dims->data[i] == dims[i] && !__builtin_mul_overflow(bytes, dims[i], &bytes) && bytes <= kMostBytes;
  }
  REQUIRE(fits, "output %d has another shape in the file than the operator gives it", index);
  if (!tensor->data) { /* nobody reads it */
    const OpKind* kind = call->kernel->kind;
    const bool optional = kind->optional_outputs && index == output_count(kind) - 1;
    if (!optional) *data = shared->unread[index] = allocate(call, bytes);
    return !call->failed;
  }
  REQUIRE(tensor->bytes >= (size_t)bytes && (uintptr_t)tensor->data % 4 == 0, "output %d has no memory of %lld bytes",
          index, (long long)bytes);
  *data = tensor->data;
  shared->codes[index] = tensor->type == kTfLiteInt8;
  return true;
}

struct Tasks {
  void (*fn)(void*, size_t);
  void* data;
};

static void run_tasks(void* data, int, int64_t first, int64_t last) {
  const Tasks* tasks = (const Tasks*)data;
  const uint64_t state = allow_denormals();
  for (int64_t task = first; task < last; ++task) tasks->fn(tasks->data, (size_t)task);
  restore_denormals(state);
}

bool parallel(Call* call, int64_t tasks, void (*fn)(void*, size_t), void* data) {
  SharedCall* shared = (SharedCall*)call;
  Tasks all = {fn, data};
  pool_run(shared->node->delegate->pool, shared->threads, tasks, run_tasks, &all);
  return true;
}

void* allocate(Call* call, int64_t bytes) {
  void* memory = NULL;
  const int64_t size = bytes > 0 ? bytes : 1;
  if (size <= INT64_MAX / 2 && posix_memalign(&memory, 64, (size_t)size) == 0) return memory;
  fail(call, "no memory for %lld bytes of work space", (long long)bytes);
  return NULL;
}

void release(Call*, void* memory) { free(memory); }

/* ---- init and free ---- */

static bool read_attribute(SharedNode* node, const uint8_t* options, size_t size, const char* spec, Attribute* value) {
  const char* name = spec + 2;
  int64_t number;
  const OptionResult result = spec[0] == 's' ? read_text(options, size, name, value->s, sizeof value->s)
                                             : read_option(options, size, name, &number);
  switch (result) {
    case kOptionRead: break;
    case kOptionMissing: return refuse(node, "its options have no %s", name);
    case kOptionNoInteger: return refuse(node, "its option %s is of another type", name);
    case kOptionsBroken: return refuse(node, "its options are not a flexbuffer map");
  }
  if (spec[0] == 'i') value->i = number;
  if (spec[0] == 'f') { /* as its bits */
    const uint32_t bits = (uint32_t)number;
    memcpy(&value->f, &bits, sizeof bits);
  }
  return true;
}

static bool read_node(SharedNode* node, const TfLiteNode* file) {
  Kernel* kernel = &node->kernel;
  const OpKind* kind = kernel->kind;
  const int inputs = file->inputs ? file->inputs->size : 0, outputs = file->outputs ? file->outputs->size : 0;
  for (int i = 0; i < kMaxInputs; ++i) node->input_index[i] = i < inputs && kind->inputs[i].name ? file->inputs->data[i] : -1;
  int known = 0;
  while (kind->inputs[known].name) ++known;
  if (inputs > known) return refuse(node, "it takes %d inputs, the file gives %d", known, inputs);
  if (outputs != output_count(kind)) return refuse(node, "it has %d outputs, the file says %d", output_count(kind), outputs);
  for (int i = 0; i < outputs; ++i) node->output_index[i] = file->outputs->data[i];
  const uint8_t* options = (const uint8_t*)file->custom_initial_data;
  const size_t size = file->custom_initial_data_size > 0 ? (size_t)file->custom_initial_data_size : 0;
  for (int i = 0; kind->attributes[i]; ++i) {
    if (!read_attribute(node, options, size, kind->attributes[i], &kernel->attribute[i])) return false;
  }
  kernel->binary = node->delegate->kernels;
  kernel->graph = graph_kernels_for(kernel->binary->isa);
  if (!kernel->graph) return refuse(node, "it has no kernels for %s", kernel->binary->isa);
  const char* reason = kind->check ? kind->check(kernel) : NULL;
  return !reason || refuse(node, "%s", reason);
}

static void* shared_init(TfLiteContext* context, const char* buffer, size_t) {
  const TfLiteDelegateParams* params = (const TfLiteDelegateParams*)buffer;
  SharedNode* node = (SharedNode*)calloc(1, sizeof(SharedNode));
  if (!node) return NULL;
  node->delegate = (Delegate*)params->delegate->data;
  node->number = params->nodes_to_replace->data[0];
  TfLiteNode* file = NULL;
  TfLiteRegistration* registration = NULL;
  if (context->GetNodeAndRegistration(context, node->number, &file, &registration) != kTfLiteOk ||
      !(node->kernel.kind = shared_kind(registration))) {
    free(node);
    return NULL;
  }
  read_node(node, file);
  return node;
}

static void shared_free(TfLiteContext*, void* user_data) {
  SharedNode* node = (SharedNode*)user_data;
  if (!node) return;
  free(node->kernel.prepared);
  free(node);
}

/* ---- prepare ---- */

static bool check_tensors(const TfLiteContext* context, SharedNode* node) {
  const OpKind* kind = node->kernel.kind;
  for (int i = 0; kind->inputs[i].name; ++i) {
    const InputSpec* spec = &kind->inputs[i];
    const int index = node->input_index[i];
    if (index < 0 && spec->optional) continue;
    if (index < 0 || (size_t)index >= context->tensors_size) return refuse(node, "%s is missing", spec->name);
    const TfLiteTensor* tensor = &context->tensors[index];
    if (!has_type(tensor, spec->type)) return refuse(node, "%s must be %s", spec->name, type_of(spec->type));
    const int rank = tensor->dims ? tensor->dims->size : 0;
    if (rank < spec->low || rank > spec->high) {
      return refuse(node, "%s has rank %d, not %d to %d", spec->name, rank, spec->low, spec->high);
    }
  }
  for (int i = 0; i < output_count(kind); ++i) {
    const int index = node->output_index[i];
    if (index < 0 || (size_t)index >= context->tensors_size) return refuse(node, "output %d is missing", i);
    const TfLiteTensor* tensor = &context->tensors[index];
    const char* fixed = fixed_memory(tensor);
    if (fixed) return refuse(node, "output %d is %s", i, fixed);
    if (!has_type(tensor, kind->outputs[i])) return refuse(node, "output %d must be %s", i, type_of(kind->outputs[i]));
  }
  return true;
}

/* Gives the outputs the shapes that follow from the inputs'. */
static TfLiteStatus set_shapes(TfLiteContext* context, SharedNode* node) {
  const OpKind* kind = node->kernel.kind;
  if (!kind->shapes) return kTfLiteOk;
  Call call;
  memset(&call, 0, sizeof call);
  call.kernel = &node->kernel;
  int64_t numbers[kMaxInputs];
  for (int i = 0; kind->inputs[i].name; ++i) {
    if (node->input_index[i] < 0) continue;
    const TfLiteTensor* tensor = &context->tensors[node->input_index[i]];
    call.in[i].rank = tensor->dims->size;
    for (int axis = 0; axis < tensor->dims->size; ++axis) call.in[i].dim[axis] = tensor->dims->data[axis];
    if (kind->inputs[i].type == kInt64 && is_known(tensor) && tensor->bytes == sizeof(int32_t)) {
      int32_t number;
      memcpy(&number, tensor->data, sizeof number);
      numbers[i] = number;
      call.in[i].data = &numbers[i];
    }
  }
  Shape shapes[kMaxOutputs];
  if (!kind->shapes(&call, shapes)) return kTfLiteOk; /* the run says why, or has the file's */
  for (int i = 0; i < output_count(kind); ++i) {
    const TfLiteTensor* tensor = &context->tensors[node->output_index[i]];
    bool same = tensor->dims && tensor->dims->size == shapes[i].rank;
    for (int axis = 0; axis < shapes[i].rank; ++axis) {
      if (shapes[i].dim[axis] < 0 || shapes[i].dim[axis] > INT32_MAX) {
        refuse(node, "output %d would have %lld rows", i, (long long)shapes[i].dim[axis]);
        return report(context, node);
      }
      same = same && tensor->dims->data[axis] == shapes[i].dim[axis];
    }
    if (same) continue;
    const TfLiteStatus status = resize_tensor(context, node->output_index[i], shapes[i].rank, shapes[i].dim);
    if (status != kTfLiteOk) return status;
  }
  return kTfLiteOk;
}

static TfLiteStatus shared_prepare(TfLiteContext* context, TfLiteNode* tflite) {
  SharedNode* node = (SharedNode*)tflite->user_data;
  if (!node) {
    context->ReportError(context, "bgnn's delegate could not start an operator.");
    return kTfLiteError;
  }
  return !node->problem[0] && check_tensors(context, node) ? set_shapes(context, node) : report(context, node);
}

/* ---- invoke ---- */

static void shift_codes(const uint8_t* from, uint8_t* to, int64_t count) {
  typedef uint8_t Bytes __attribute__((vector_size(64)));
  int64_t i = 0;
  for (Bytes some; i + (int64_t)sizeof some <= count; i += (int64_t)sizeof some) {
    memcpy(&some, from + i, sizeof some);
    some ^= 0x80;
    memcpy(to + i, &some, sizeof some);
  }
  for (; i < count; ++i) to[i] = from[i] ^ 0x80;
}

/* The numbers of an input as the operator reads them: its own memory, or a copy of another type. */
static bool convert(SharedCall* shared, int i, int type, const TfLiteTensor* tensor, Input* input) {
  Call* call = &shared->call;
  const char* name = call->kernel->kind->inputs[i].name;
  const int64_t size = type == kUint8 ? 1 : 4;
  REQUIRE(input->count <= kMostBytes / size, "%s is larger than 2 GiB", name);
  REQUIRE(input->count == 0 || (tensor->data && tensor->bytes >= (size_t)(input->count * size)), "%s has no memory", name);
  REQUIRE(size == 1 || (uintptr_t)tensor->data % 4 == 0, "the file stores %s at an odd place: its address is not a multiple of 4",
          name);
  static const char kEmpty[64] = {};
  input->data = tensor->data ? tensor->data : kEmpty;
  if (type == kInt64) {
    int64_t* wide = (int64_t*)allocate(call, input->count * 8);
    if (!(shared->converted[i] = wide)) return false;
    for (int64_t e = 0; e < input->count; ++e) wide[e] = ((const int32_t*)tensor->data)[e];
    input->data = wide;
  } else if (tensor->type == kTfLiteInt8 && call->kernel->kind->inputs[i].as_stored) {
    input->flip = 0x80;
  } else if (tensor->type == kTfLiteInt8) {
    uint8_t* codes = (uint8_t*)allocate(call, input->count);
    if (!(shared->converted[i] = codes)) return false;
    shift_codes((const uint8_t*)input->data, codes, input->count);
    input->data = codes;
  }
  return true;
}

static bool read_inputs(SharedCall* shared) {
  Call* call = &shared->call;
  const OpKind* kind = call->kernel->kind;
  for (int i = 0; kind->inputs[i].name; ++i) {
    const int index = shared->node->input_index[i];
    if (index < 0) continue;
    const TfLiteTensor* tensor = &shared->context->tensors[index];
    Input* input = &call->in[i];
    /* A file may give a tensor two writers: what prepare saw need not hold any more. */
    REQUIRE(has_type(tensor, kind->inputs[i].type) && tensor->dims && tensor->dims->size >= kind->inputs[i].low &&
                tensor->dims->size <= kind->inputs[i].high,
            "%s has another type or shape than at first", kind->inputs[i].name);
    input->rank = tensor->dims->size;
    input->count = 1;
    for (int axis = 0; axis < input->rank; ++axis) {
      input->dim[axis] = tensor->dims->data[axis];
      REQUIRE(input->dim[axis] >= 0 && !__builtin_mul_overflow(input->count, input->dim[axis], &input->count),
              "%s is too large", kind->inputs[i].name);
    }
    if (!convert(shared, i, kind->inputs[i].type, tensor, input)) return false;
  }
  return true;
}

static TfLiteStatus shared_invoke(TfLiteContext* context, TfLiteNode* tflite) {
  SharedNode* node = (SharedNode*)tflite->user_data;
  SharedCall shared;
  memset(&shared, 0, sizeof shared);
  shared.call.kernel = &node->kernel;
  shared.call.gaps = true;
  shared.node = node;
  shared.context = context;
  shared.threads = context->recommended_num_threads;
  if (shared.threads < 1) shared.threads = 1;
  if (shared.threads > kMaxThreads) shared.threads = kMaxThreads;
  const uint64_t state = allow_denormals();
  const OpKind* kind = node->kernel.kind;
  bool done = read_inputs(&shared) && kind->compute(&shared.call) && !shared.call.failed;
  for (int i = 0; done && i < output_count(kind); ++i) {
    if (!shared.codes[i]) continue;
    TfLiteTensor* tensor = &context->tensors[node->output_index[i]];
    shift_codes((const uint8_t*)tensor->data, (uint8_t*)tensor->data, (int64_t)tensor->bytes);
  }
  restore_denormals(state);
  for (int i = 0; i < kMaxInputs; ++i) free(shared.converted[i]);
  for (int i = 0; i < kMaxOutputs; ++i) free(shared.unread[i]);
  if (done) return kTfLiteOk;
  const TfLiteStatus status = report(context, node);
  node->problem[0] = 0; /* of this run; the next may be right */
  return status;
}

bool register_shared(const TfLiteRegistration* file, TfLiteRegistration* ours) {
  const OpKind* kind = shared_kind(file);
  if (!kind) return false;
  ours->init = shared_init;
  ours->free = shared_free;
  ours->prepare = shared_prepare;
  ours->invoke = shared_invoke;
  ours->custom_name = file->custom_name;
  return true;
}
