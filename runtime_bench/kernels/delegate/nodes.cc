/* A node of the file as a call of an operator of ../ops, or of LCE's. Shapes are those that the inputs have when the graph
 * is prepared, which a user may have resized; where the operator cannot tell them then, the file's, or the run fails. What
 * TFLite has no tensors for is brought to it: int64 stands as int32 in the file, and codes 0..255 as int8, 128 less. A
 * plan's memory is a tensor of the graph's. Files are not trusted: what prepare saw is checked again by each run. */
#include "nodes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ops/graph_kernels.h"
#include "../ops/op_list.h"
#include "denormals.h"
#include "options.h"
#include "sizes.h"

/* The largest tensor or work memory: TFLite's own shapes and files end there. */
static const int64_t kMostBytes = INT32_MAX;
static const int64_t kAlignment = 64;

static const struct {
  const char* prefix; /* of their names in a file */
  const OpKind* kinds;
  const int* count;
} kLists[] = {{"Bgnn", kOpKinds, &kOpKindCount}, {"Lce", kLceKinds, &kLceKindCount}};

/* A node of the file. */
struct Node {
  Kernel kernel; /* first: the operators see it alone */
  const char* prefix;
  Delegate* delegate;
  int number;
  int input_index[kMaxInputs], output_index[kMaxOutputs];
  int scratch_index, threads; /* of an operator with a plan: the tensor of its memory, and for how many threads that is */
  bool broken;                /* it cannot be prepared: `problem` says why */
  char problem[512];
};

struct NodeCall {
  Call call; /* first */
  Node* node;
  TfLiteContext* context;
  void* converted[kMaxInputs]; /* copies of inputs, or NULL */
  void* unread[kMaxOutputs];   /* memory for outputs that have none, or NULL */
  bool codes[kMaxOutputs];     /* outputs to be shifted to int8 */
};

static const OpKind* find_kind(const TfLiteRegistration* registration, const char** prefix) {
  const char* name = registration && registration->custom_name ? registration->custom_name : "";
  for (const auto& list : kLists) {
    const size_t length = strlen(list.prefix);
    if (strncmp(name, list.prefix, length) != 0) continue;
    for (int i = 0; i < *list.count; ++i) {
      *prefix = list.prefix;
      if (strcmp(name + length, list.kinds[i].name) == 0) return &list.kinds[i];
    }
  }
  return NULL;
}

static TfLiteStatus report(TfLiteContext* context, const Node* node) {
  context->ReportError(context, "%s%s (operator %d of the file): %s.", node->prefix, node->kernel.kind->name, node->number,
                       node->problem);
  return kTfLiteError;
}

static bool refuse(Node* node, const char* format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(Node* node, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(node->problem, sizeof node->problem, format, values);
  va_end(values);
  return false;
}

/* ---- what ../ops/call.h asks for ---- */

bool fail(Call* call, const char* format, ...) {
  if (call->failed) return false; /* the first reason stays */
  Node* node = ((NodeCall*)call)->node;
  va_list values;
  va_start(values, format);
  vsnprintf(node->problem, sizeof node->problem, format, values);
  va_end(values);
  call->failed = true;
  return false;
}

static const TfLiteTensor* file_tensor(const Call* call, int index) {
  return index < 0 ? NULL : &((const NodeCall*)call)->context->tensors[index];
}

const TfLiteTensor* file_input(const Call* call, int input) {
  return file_tensor(call, ((const NodeCall*)call)->node->input_index[input]);
}

const TfLiteTensor* file_output(const Call* call) {
  return file_tensor(call, ((const NodeCall*)call)->node->output_index[0]);
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

static const char* type_of(int type) {
  switch (type) {
    case kFloat32: return "float32";
    case kUint8: return "int8 or uint8";
    default: return "int32";
  }
}

static bool has_type(const TfLiteTensor* tensor, int type) {
  switch (type) {
    case kAny: return true;
    case kFloat32: return tensor->type == kTfLiteFloat32;
    case kUint8: return tensor->type == kTfLiteInt8 || tensor->type == kTfLiteUInt8;
    default: return tensor->type == kTfLiteInt32;
  }
}

static int64_t item_bytes(const TfLiteTensor* tensor) {
  return tensor->type == kTfLiteFloat32 || tensor->type == kTfLiteInt32 ? 4 : 1;
}

static int output_count(const OpKind* kind) {
  int count = 0;
  while (count < kMaxOutputs && kind->outputs[count]) ++count;
  return count;
}

bool make_output(Call* call, int index, int rank, const int64_t* dims, void** data) {
  *data = NULL;
  NodeCall* whole = (NodeCall*)call;
  const TfLiteTensor* tensor = &whole->context->tensors[whole->node->output_index[index]];
  int64_t bytes = item_bytes(tensor);
  bool fits = tensor->dims && tensor->dims->size == rank;
  for (int i = 0; i < rank && fits; ++i) {
    fits = tensor->dims->data[i] == dims[i] && !__builtin_mul_overflow(bytes, dims[i], &bytes) && bytes <= kMostBytes;
  }
  REQUIRE(fits, "output %d has another shape in the file than the operator gives it", index);
  if (!tensor->data) { /* nobody reads it */
    const OpKind* kind = call->kernel->kind;
    const bool optional = kind->optional_outputs && index == output_count(kind) - 1;
    if (!optional) *data = whole->unread[index] = allocate(call, bytes);
    return !call->failed;
  }
  REQUIRE(tensor->bytes >= (size_t)bytes && (uintptr_t)tensor->data % 4 == 0, "output %d has no memory of %lld bytes",
          index, (long long)bytes);
  *data = tensor->data;
  whole->codes[index] = call->kernel->kind->outputs[index] == kUint8 && tensor->type == kTfLiteInt8;
  return true;
}

static int threads_of(const TfLiteContext* context) {
  const int threads = context->recommended_num_threads;
  return threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
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
  const NodeCall* whole = (const NodeCall*)call;
  Tasks all = {fn, data};
  pool_run(whole->node->delegate->pool, threads_of(whole->context), tasks, run_tasks, &all);
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

static bool read_attribute(Node* node, const uint8_t* options, size_t size, const char* spec, Attribute* value) {
  const char* name = attribute_name(spec);
  int64_t number = 0;
  const OptionResult result = spec[0] == 's' ? read_text(options, size, name, value->s, sizeof value->s)
                                             : read_option(options, size, name, &number);
  switch (result) {
    case kOptionRead: break;
    case kOptionMissing:
      if (is_optional(spec)) break;
      return refuse(node, "its options have no %s", name);
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

static bool read_node(TfLiteContext* context, Node* node, const TfLiteNode* file) {
  Kernel* kernel = &node->kernel;
  const OpKind* kind = kernel->kind;
  const int inputs = file->inputs ? file->inputs->size : 0, outputs = file->outputs ? file->outputs->size : 0;
  for (int& index : node->input_index) index = -1;
  int known = 0;
  for (; kind->inputs[known].name; ++known) {
    const int index = known < inputs ? file->inputs->data[known] : -1;
    if (index < 0 && !kind->inputs[known].optional) return refuse(node, "%s is missing", kind->inputs[known].name);
    node->input_index[known] = index < 0 ? -1 : index;
  }
  if (inputs > known) return refuse(node, "it takes %d input%s, the file gives %d", known, known == 1 ? "" : "s", inputs);
  const int made = output_count(kind);
  if (outputs != made) return refuse(node, "it has %d output%s, the file says %d", made, made == 1 ? "" : "s", outputs);
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
  if (reason) return refuse(node, "%s", reason);
  if (kind->plan && context->AddTensors(context, 1, &node->scratch_index) != kTfLiteOk) {
    return refuse(node, "no tensor for its memory");
  }
  return true;
}

static void* init(TfLiteContext* context, const char* buffer, size_t) {
  const TfLiteDelegateParams* params = (const TfLiteDelegateParams*)buffer;
  Node* node = (Node*)calloc(1, sizeof(Node));
  if (!node) return NULL;
  node->delegate = (Delegate*)params->delegate->data;
  node->number = params->nodes_to_replace->data[0];
  TfLiteNode* file = NULL;
  TfLiteRegistration* registration = NULL;
  if (context->GetNodeAndRegistration(context, node->number, &file, &registration) != kTfLiteOk ||
      !(node->kernel.kind = find_kind(registration, &node->prefix))) {
    free(node);
    return NULL;
  }
  node->broken = !read_node(context, node, file);
  return node;
}

static void release_node(TfLiteContext*, void* user_data) {
  Node* node = (Node*)user_data;
  if (!node) return;
  free(node->kernel.prepared);
  free(node);
}

/* ---- prepare ---- */

static bool check_tensors(const TfLiteContext* context, Node* node) {
  const OpKind* kind = node->kernel.kind;
  for (int i = 0; kind->inputs[i].name; ++i) {
    const InputSpec* spec = &kind->inputs[i];
    const int index = node->input_index[i];
    if (index < 0) continue;
    if ((size_t)index >= context->tensors_size) return refuse(node, "%s is missing", spec->name);
    const TfLiteTensor* tensor = &context->tensors[index];
    if (!has_type(tensor, spec->type)) return refuse(node, "%s must be %s", spec->name, type_of(spec->type));
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

static TfLiteStatus set_shape(TfLiteContext* context, int index, const Shape* shape) {
  const TfLiteIntArray* dims = context->tensors[index].dims;
  bool same = dims && dims->size == shape->rank;
  for (int axis = 0; axis < shape->rank && same; ++axis) same = dims->data[axis] == shape->dim[axis];
  return same ? kTfLiteOk : resize_tensor(context, index, shape->rank, shape->dim);
}

static void start_call(NodeCall* whole, TfLiteContext* context, Node* node) {
  memset(whole, 0, sizeof *whole);
  whole->call.kernel = &node->kernel;
  whole->call.gaps = true;
  whole->node = node;
  whole->context = context;
  node->problem[0] = 0;
}

static bool read_shapes(NodeCall* whole) {
  Call* call = &whole->call;
  const OpKind* kind = call->kernel->kind;
  for (int i = 0; kind->inputs[i].name; ++i) {
    const TfLiteTensor* tensor = file_input(call, i);
    if (!tensor) continue;
    /* A file may give a tensor two writers: what prepare saw need not hold when it runs. */
    REQUIRE(has_type(tensor, kind->inputs[i].type), "%s has another type than at first", kind->inputs[i].name);
    if (!read_rank(call, i, tensor->dims ? tensor->dims->size : 0)) return false;
    for (int axis = 0; axis < call->in[i].rank; ++axis) call->in[i].dim[axis] = tensor->dims->data[axis];
    if (!count_elements(call, i)) return false;
    REQUIRE(call->in[i].count <= kMostBytes / item_bytes(tensor), "%s is larger than 2 GiB", kind->inputs[i].name);
  }
  return true;
}

/* Gives the outputs the shapes that follow from the inputs'. */
static TfLiteStatus set_shapes(NodeCall* whole) {
  Call* call = &whole->call;
  const OpKind* kind = call->kernel->kind;
  if (!kind->shapes) return kTfLiteOk;
  int64_t numbers[kMaxInputs];
  for (int i = 0; kind->inputs[i].name; ++i) {
    const TfLiteTensor* tensor = file_input(call, i);
    if (tensor && kind->inputs[i].type == kInt64 && is_known(tensor) && tensor->bytes == sizeof(int32_t)) {
      int32_t number;
      memcpy(&number, tensor->data, sizeof number);
      numbers[i] = number;
      call->in[i].data = &numbers[i];
    }
  }
  Shape shapes[kMaxOutputs];
  if (!kind->shapes(call, shapes)) return kTfLiteOk; /* the run says why, or has the file's */
  for (int i = 0; i < output_count(kind); ++i) {
    for (int axis = 0; axis < shapes[i].rank; ++axis) {
      if (shapes[i].dim[axis] >= 0 && shapes[i].dim[axis] <= INT32_MAX) continue;
      fail(call, "output %d would have %lld rows", i, (long long)shapes[i].dim[axis]);
      return report(whole->context, whole->node);
    }
    const TfLiteStatus status = set_shape(whole->context, whole->node->output_index[i], &shapes[i]);
    if (status != kTfLiteOk) return status;
  }
  return kTfLiteOk;
}

/* The parts of a plan's memory, in this order. */
struct Memory {
  int64_t temporary, shared, scratch; /* of one thread */
  int64_t bytes;                      /* of all */
};

static int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

static bool measure(Call* call, const Plan* plan, Memory* memory) {
  memory->temporary = aligned(plan->temporary_bytes);
  memory->shared = aligned(plan->kernel->shared_bytes(&plan->args));
  memory->scratch = aligned(plan->kernel->scratch_bytes(&plan->args));
  const int64_t once = kAlignment + memory->temporary + memory->shared;
  const int threads = ((const NodeCall*)call)->node->threads;
  REQUIRE(memory->shared <= kMostBytes && memory->scratch <= kMostBytes && once + memory->scratch * threads <= kMostBytes,
          "it needs more than 2 GiB of scratch memory");
  memory->bytes = once + memory->scratch * threads;
  return true;
}

static TfLiteStatus prepare_plan(TfLiteNode* tflite, NodeCall* whole) {
  TfLiteContext* context = whole->context;
  Node* node = whole->node;
  Plan plan;
  Memory memory;
  memset(&plan, 0, sizeof plan);
  node->threads = threads_of(context);
  if (!node->kernel.kind->plan(&whole->call, &plan) || !measure(&whole->call, &plan, &memory)) return report(context, node);
  if (!tflite->temporaries || tflite->temporaries->size != 1) {
    free(tflite->temporaries);
    tflite->temporaries = (TfLiteIntArray*)malloc(sizeof(TfLiteIntArray) + sizeof(int));
    if (!tflite->temporaries) return kTfLiteError;
    tflite->temporaries->size = 1;
  }
  tflite->temporaries->data[0] = node->scratch_index;
  TfLiteTensor* scratch = &context->tensors[node->scratch_index];
  scratch->type = kTfLiteUInt8;
  scratch->allocation_type = kTfLiteArenaRw;
  const TfLiteStatus status = resize_tensor(context, node->scratch_index, 1, &memory.bytes);
  return status != kTfLiteOk ? status : set_shape(context, node->output_index[0], &plan.shape);
}

static TfLiteStatus prepare(TfLiteContext* context, TfLiteNode* tflite) {
  Node* node = (Node*)tflite->user_data;
  if (!node) {
    context->ReportError(context, "bgnn's delegate could not start an operator.");
    return kTfLiteError;
  }
  if (node->broken || !check_tensors(context, node)) return report(context, node);
  NodeCall whole;
  start_call(&whole, context, node);
  if (!read_shapes(&whole)) return report(context, node);
  return node->kernel.kind->plan ? prepare_plan(tflite, &whole) : set_shapes(&whole);
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
static bool read_data(NodeCall* whole, int i, const TfLiteTensor* tensor) {
  Call* call = &whole->call;
  const InputSpec* spec = &call->kernel->kind->inputs[i];
  Input* input = &call->in[i];
  const int64_t size = item_bytes(tensor);
  REQUIRE(input->count == 0 || (tensor->data && tensor->bytes >= (size_t)(input->count * size)), "%s has no memory",
          spec->name);
  REQUIRE(size == 1 || (uintptr_t)tensor->data % 4 == 0,
          "the file stores %s at an odd place: its address is not a multiple of 4", spec->name);
  static const char kEmpty[64] = {};
  input->data = tensor->data ? tensor->data : kEmpty;
  if (spec->type == kInt64) {
    int64_t* wide = (int64_t*)allocate(call, input->count * 8);
    if (!(whole->converted[i] = wide)) return false;
    for (int64_t e = 0; e < input->count; ++e) wide[e] = ((const int32_t*)tensor->data)[e];
    input->data = wide;
  } else if (spec->type != kUint8 || tensor->type != kTfLiteInt8) {
    return true;
  } else if (spec->as_stored) {
    input->flip = 0x80;
  } else {
    uint8_t* codes = (uint8_t*)allocate(call, input->count);
    if (!(whole->converted[i] = codes)) return false;
    shift_codes((const uint8_t*)input->data, codes, input->count);
    input->data = codes;
  }
  return true;
}

static bool read_inputs(NodeCall* whole) {
  if (!read_shapes(whole)) return false;
  for (int i = 0; whole->call.kernel->kind->inputs[i].name; ++i) {
    const TfLiteTensor* tensor = file_input(&whole->call, i);
    if (tensor && !read_data(whole, i, tensor)) return false;
  }
  return true;
}

struct PlanRun {
  const Call* call;
  Plan plan;
  Memory memory;
  char *temporary, *shared, *scratch;
};

static void run_plan_items(void* data, int thread, int64_t first, int64_t last) {
  const PlanRun* run = (const PlanRun*)data;
  const uint64_t state = allow_denormals();
  run_items(run->call, &run->plan, run->temporary, run->shared, run->scratch + run->memory.scratch * thread, first, last);
  restore_denormals(state);
}

static bool run_plan(NodeCall* whole) {
  Call* call = &whole->call;
  Node* node = whole->node;
  PlanRun run;
  memset(&run, 0, sizeof run);
  run.call = call;
  Plan* plan = &run.plan;
  void* result;
  if (!call->kernel->kind->plan(call, plan) || !measure(call, plan, &run.memory) ||
      !make_output(call, 0, plan->shape.rank, plan->shape.dim, &result)) {
    return false;
  }
  if (!has_elements(plan)) return true;
  const TfLiteTensor* memory = &whole->context->tensors[node->scratch_index];
  REQUIRE(memory->data && memory->bytes >= (size_t)run.memory.bytes, "its scratch has no memory of %lld bytes",
          (long long)run.memory.bytes);
  run.temporary = (char*)aligned((int64_t)memory->data);
  run.shared = run.temporary + run.memory.temporary;
  run.scratch = run.shared + run.memory.shared;
  const int64_t items = begin_plan(call, plan, result, run.temporary, run.shared);
  if (items < 0) return false;
  pool_run(node->delegate->pool, node->threads, items, run_plan_items, &run);
  return true;
}

static TfLiteStatus invoke(TfLiteContext* context, TfLiteNode* tflite) {
  Node* node = (Node*)tflite->user_data;
  NodeCall whole;
  start_call(&whole, context, node);
  const uint64_t state = allow_denormals();
  const OpKind* kind = node->kernel.kind;
  const bool done =
      read_inputs(&whole) && (kind->plan ? run_plan(&whole) : kind->compute(&whole.call)) && !whole.call.failed;
  for (int i = 0; done && i < output_count(kind); ++i) {
    if (!whole.codes[i]) continue;
    TfLiteTensor* tensor = &context->tensors[node->output_index[i]];
    shift_codes((const uint8_t*)tensor->data, (uint8_t*)tensor->data, (int64_t)tensor->bytes);
  }
  restore_denormals(state);
  for (int i = 0; i < kMaxInputs; ++i) free(whole.converted[i]);
  for (int i = 0; i < kMaxOutputs; ++i) free(whole.unread[i]);
  return done ? kTfLiteOk : report(context, node);
}

bool register_node(const TfLiteRegistration* file, TfLiteRegistration* ours) {
  const char* prefix;
  if (!find_kind(file, &prefix)) return false;
  ours->init = init;
  ours->free = release_node;
  ours->prepare = prepare;
  ours->invoke = invoke;
  ours->custom_name = file->custom_name;
  return true;
}
