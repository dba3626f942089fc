/* The external delegate: TensorFlow Lite loads this library, hands it the graph, and the operators of kFileOps run
 * here. One delegate node per operator: inside a larger group the tensors between operators would have no memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "denormals.h"
#include "op.h"
#include "options.h"
#include "pool.h"
#include "shared_ops.h"
#include "sizes.h"
#include "tflite_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

static const int64_t kAlignment = 64;

static int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

static TfLiteStatus report(TfLiteContext* context, const Op* op) {
  context->ReportError(context, "%s (operator %d of the file): %s.", op->kind->name, op->node, op->problem);
  return kTfLiteError;
}

/* ---- init and free ---- */

static bool read_node(TfLiteContext* context, Op* op, const TfLiteNode* node) {
  const FileOp* kind = op->kind;
  const int inputs = node->inputs ? node->inputs->size : 0, outputs = node->outputs ? node->outputs->size : 0;
  if (inputs != kind->input_count) return refuse(op, "it takes %d inputs, the file gives %d", kind->input_count, inputs);
  if (outputs != 1) return refuse(op, "it has 1 output, the file says %d", outputs);
  /* The delegate's own node lacks the inputs that are -1: only this one knows which is which. */
  memcpy(op->input_index, node->inputs->data, sizeof(int) * inputs);
  op->output_index = node->outputs->data[0];
  const uint8_t* options = (const uint8_t*)node->custom_initial_data;
  const int bytes = node->custom_initial_data_size;
  for (int i = 0; kind->options[i]; ++i) {
    switch (read_option(options, bytes > 0 ? bytes : 0, option_name(kind, i), &op->option[i])) {
      case kOptionRead: break;
      case kOptionMissing:
        if (!is_optional(kind, i)) return refuse(op, "its options have no integer %s", option_name(kind, i));
        op->option[i] = 0;
        break;
      case kOptionNoInteger: return refuse(op, "its option %s is not an integer", option_name(kind, i));
      case kOptionsBroken: return refuse(op, "its options are not a flexbuffer map");
    }
  }
  if (context->AddTensors(context, 1, &op->scratch_index) != kTfLiteOk) return refuse(op, "no tensor for scratch");
  return true;
}

static const FileOp* kind_of(const TfLiteRegistration* registration) {
  if (!registration || !registration->custom_name) return NULL;
  for (int i = 0; i < kFileOpCount; ++i) {
    if (strcmp(registration->custom_name, kFileOps[i].name) == 0) return &kFileOps[i];
  }
  return NULL;
}

static void* op_init(TfLiteContext* context, const char* buffer, size_t) {
  const TfLiteDelegateParams* params = (const TfLiteDelegateParams*)buffer;
  Op* op = (Op*)calloc(1, sizeof(Op));
  if (!op) return NULL;
  op->delegate = (Delegate*)params->delegate->data;
  op->scratch_index = -1;
  op->node = params->nodes_to_replace->data[0];
  TfLiteNode* node = NULL;
  TfLiteRegistration* registration = NULL;
  if (context->GetNodeAndRegistration(context, op->node, &node, &registration) != kTfLiteOk ||
      !(op->kind = kind_of(registration))) {
    free(op);
    return NULL;
  }
  op->broken = !read_node(context, op, node);
  return op;
}

static void op_free(TfLiteContext*, void* user_data) { free(user_data); }

/* ---- prepare ---- */

static bool read_tensor(const TfLiteContext* context, Op* op, const char* name, int index, Tensor* tensor) {
  if (index < 0 || (size_t)index >= context->tensors_size) return refuse(op, "%s is missing", name);
  const TfLiteTensor* source = &context->tensors[index];
  const int rank = source->dims ? source->dims->size : 0;
  if (rank < 1 || rank > kMaxRank) return refuse(op, "%s has rank %d, not 1 to %d", name, rank, kMaxRank);
  tensor->present = true;
  tensor->type = source->type;
  tensor->rank = rank;
  for (int i = 0; i < rank; ++i) tensor->dim[i] = source->dims->data[i];
  tensor->quantization = source->quantization_type;
  tensor->scale = source->scale;
  tensor->zero_point = source->zero_point;
  return true;
}

static bool read_inputs(const TfLiteContext* context, Op* op) {
  for (int i = 0; i < op->kind->input_count; ++i) {
    const FileInput* spec = &op->kind->inputs[i];
    Tensor* tensor = &op->in[i];
    if (spec->optional && op->input_index[i] < 0) continue;
    if (!read_tensor(context, op, spec->name, op->input_index[i], tensor)) return false;
    if ((spec->type && tensor->type != spec->type) || (spec->rank && tensor->rank != spec->rank)) {
      return refuse(op, "%s must be %s of rank %d, the file says %s of rank %d", spec->name, type_name(spec->type),
                    spec->rank, type_name(tensor->type), tensor->rank);
    }
    if (!measure(op, spec->name, tensor)) return false;
  }
  return true;
}

static bool plan(const TfLiteContext* context, Op* op) {
  memset(op->in, 0, sizeof op->in);
  memset(&op->out, 0, sizeof op->out);
  memset(&op->args, 0, sizeof op->args);
  op->temporary_bytes = op->piece = 0;
  if (!read_inputs(context, op)) return false;
  if (!read_tensor(context, op, "its output", op->output_index, &op->out)) return false;
  const char* fixed = fixed_memory(&context->tensors[op->output_index]);
  if (fixed) return refuse(op, "its output is %s", fixed);
  if (!op->kind->plan(op, op->delegate->kernels) || !measure(op, "its output", &op->out)) return false;

  op->shared_bytes = aligned(op->kernel->shared_bytes(&op->args));
  op->scratch_bytes = aligned(op->kernel->scratch_bytes(&op->args));
  op->temporary_bytes = aligned(op->temporary_bytes);
  op->threads = context->recommended_num_threads;
  if (op->threads < 1) op->threads = 1;
  if (op->threads > kMaxThreads) op->threads = kMaxThreads;
  if (op->shared_bytes > kMaxBytes || op->scratch_bytes > kMaxBytes ||
      op->shared_bytes + op->scratch_bytes * op->threads + op->temporary_bytes + kAlignment > kMaxBytes) {
    return refuse(op, "it needs more than 2 GiB of scratch memory");
  }
  return true;
}

static TfLiteStatus set_scratch(TfLiteContext* context, TfLiteNode* node, const Op* op) {
  if (!node->temporaries || node->temporaries->size != 1) {
    free(node->temporaries);
    node->temporaries = (TfLiteIntArray*)malloc(sizeof(TfLiteIntArray) + sizeof(int));
    if (!node->temporaries) return kTfLiteError;
    node->temporaries->size = 1;
  }
  node->temporaries->data[0] = op->scratch_index;
  TfLiteTensor* scratch = &context->tensors[op->scratch_index];
  scratch->type = kTfLiteUInt8;
  scratch->allocation_type = kTfLiteArenaRw;
  const int64_t bytes =
      kAlignment + op->shared_bytes + op->scratch_bytes * op->threads + op->temporary_bytes;
  return resize_tensor(context, op->scratch_index, 1, &bytes);
}

static TfLiteStatus op_prepare(TfLiteContext* context, TfLiteNode* node) {
  Op* op = (Op*)node->user_data;
  if (!op) {
    context->ReportError(context, "bgnn's delegate could not start an operator.");
    return kTfLiteError;
  }
  if (op->broken || !plan(context, op)) return report(context, op);
  if (resize_tensor(context, op->output_index, op->out.rank, op->out.dim) != kTfLiteOk) return kTfLiteError;
  return set_scratch(context, node, op);
}

/* ---- invoke ---- */

/* A file may give a tensor two writers, or an operator a tensor that nobody writes: what prepare saw need not hold
 * any more. */
static bool find_data(const TfLiteContext* context, Op* op, const char* name, int index, Tensor* tensor) {
  const TfLiteTensor* source = &context->tensors[index];
  if (!source->data || source->type != tensor->type || source->bytes < (size_t)tensor->bytes) {
    return refuse(op, "%s has no memory of %lld bytes", name, (long long)tensor->bytes);
  }
  if ((tensor->type == kTfLiteFloat32 || tensor->type == kTfLiteInt32) && (uintptr_t)source->data % 4 != 0) {
    return refuse(op, "the file stores %s at an odd place: its address is not a multiple of 4", name);
  }
  tensor->data = source->data;
  return true;
}

static bool find_all(const TfLiteContext* context, Op* op, char** scratch) {
  for (int i = 0; i < op->kind->input_count; ++i) {
    if (!op->in[i].present) continue;
    if (!find_data(context, op, op->kind->inputs[i].name, op->input_index[i], &op->in[i])) return false;
    op->args.pointers[i] = op->in[i].data;
  }
  if (!find_data(context, op, "its output", op->output_index, &op->out)) return false;
  op->args.pointers[op->kind->input_count] = op->out.data;
  Tensor buffer = {};
  buffer.type = kTfLiteUInt8;
  buffer.bytes = kAlignment + op->shared_bytes + op->scratch_bytes * op->threads + op->temporary_bytes;
  if (!find_data(context, op, "its scratch", op->scratch_index, &buffer)) return false;
  *scratch = (char*)aligned((int64_t)buffer.data);
  return true;
}

struct Task {
  const Op* op;
  char *temporary, *shared, *scratch;
};

static void run_task(void* data, int thread, int64_t first, int64_t last) {
  const Task* task = (const Task*)data;
  const Op* op = task->op;
  const uint64_t state = allow_denormals();
  const int64_t step = op->kind->after && op->piece ? op->piece : last - first;
  for (int64_t end; first < last; first = end) {
    end = last - first > step ? first + step : last;
    op->kernel->run(&op->args, task->shared, task->scratch + op->scratch_bytes * thread, first, end);
    if (op->kind->after) op->kind->after(op, task->temporary, first, end);
  }
  restore_denormals(state);
}

static TfLiteStatus op_invoke(TfLiteContext* context, TfLiteNode* node) {
  Op* op = (Op*)node->user_data;
  char* memory;
  if (!find_all(context, op, &memory)) return report(context, op);
  char* shared = memory + op->temporary_bytes;
  Task task = {op, memory, shared, shared + op->shared_bytes};
  const uint64_t state = allow_denormals();
  if (op->kind->before) op->kind->before(op, memory);
  const int64_t items = op->kernel->begin(&op->args, task.shared);
  restore_denormals(state);
  if (items < 0) {
    refuse(op, "a neighbour's index is not one of the graph's nodes");
    return report(context, op);
  }
  pool_run(op->delegate->pool, op->threads, items, run_task, &task);
  return kTfLiteOk;
}

/* ---- the delegate ---- */

/* Whether every operator reads only what earlier ones wrote. The runtime looks for such an order among the operators
 * when one is replaced; where there is none, older versions crash. */
static TfLiteStatus check_order(TfLiteContext* context, const int* nodes, int count) {
  int* writer = (int*)malloc(sizeof(int) * (context->tensors_size + 1)); /* the last one's place, by tensor */
  if (!writer) return kTfLiteError;
  for (size_t i = 0; i < context->tensors_size; ++i) writer[i] = -1;
  TfLiteStatus status = kTfLiteOk;
  for (int reading = 0; reading < 2; ++reading) {
    for (int i = 0; i < count && status == kTfLiteOk; ++i) {
      TfLiteNode* node;
      TfLiteRegistration* registration;
      status = context->GetNodeAndRegistration(context, nodes[i], &node, &registration);
      if (status != kTfLiteOk) break;
      const TfLiteIntArray* tensors = reading ? node->inputs : node->outputs;
      for (int j = 0; tensors && j < tensors->size; ++j) {
        const int tensor = tensors->data[j];
        if (tensor < 0 || (size_t)tensor >= context->tensors_size) continue;
        if (!reading) {
          writer[tensor] = i;
        } else if (writer[tensor] >= i) {
          context->ReportError(context, "operator %d of the file reads tensor %d, which operator %d writes later.",
                               nodes[i], tensor, nodes[writer[tensor]]);
          status = kTfLiteError;
        }
      }
    }
  }
  free(writer);
  return status;
}

static TfLiteStatus prepare_delegate(TfLiteContext* context, TfLiteDelegate* delegate) {
  TfLiteIntArray* plan;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteError;
  profile_see(&((Delegate*)delegate->data)->graph, context);
  /* Replacing nodes changes the plan, and asking about one may: work on a copy. */
  const int count = plan->size;
  int* nodes = (int*)malloc(sizeof(int) * (count > 0 ? count : 1));
  TfLiteIntArray* one = (TfLiteIntArray*)malloc(sizeof(TfLiteIntArray) + sizeof(int));
  TfLiteStatus status = nodes && one ? kTfLiteOk : kTfLiteError;
  if (status == kTfLiteOk) {
    memcpy(nodes, plan->data, sizeof(int) * count);
    status = check_order(context, nodes, count);
  }
  for (int i = 0; i < count && status == kTfLiteOk; ++i) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    status = context->GetNodeAndRegistration(context, nodes[i], &node, &registration);
    if (status != kTfLiteOk) break;
    const FileOp* kind = kind_of(registration);
    TfLiteRegistration ours;
    memset(&ours, 0, sizeof ours);
    ours.version = 1;
    if (kind) {
      ours.init = op_init;
      ours.free = op_free;
      ours.prepare = op_prepare;
      ours.invoke = op_invoke;
      ours.custom_name = kind->name;
    } else if (!register_shared(registration, &ours) && !register_sizes(registration, &ours)) {
      continue;
    }
    one->size = 1;
    one->data[0] = nodes[i];
    status = context->ReplaceNodeSubsetsWithDelegateKernels(context, ours, one, delegate);
  }
  free(one);
  free(nodes);
  return status;
}

EXPORT TfLiteDelegate* tflite_plugin_create_delegate(const char* const* option_names, const char* const*,
                                                     size_t option_count, void (*report_error)(const char*)) {
  char reason[160] = "out of memory";
  Delegate* delegate = NULL;
  const BgnnKernels* kernels = bgnn_kernels();
  if (option_count != 0) {
    snprintf(reason, sizeof reason, "bgnn's delegate has no option %.80s", option_names[0]);
  } else if (!kernels) {
    const char* isa = getenv("BGNN_ISA");
    snprintf(reason, sizeof reason, "BGNN_ISA=%.40s names no instruction set of this machine", isa ? isa : "");
  } else {
    delegate = (Delegate*)calloc(1, sizeof(Delegate));
    if (delegate && !(delegate->pool = pool_create())) {
      free(delegate);
      delegate = NULL;
    }
  }
  if (!delegate) {
    if (report_error) report_error(reason);
    return NULL;
  }
  delegate->kernels = kernels;
  delegate->tflite.data = delegate;
  delegate->tflite.Prepare = prepare_delegate;
  delegate->tflite.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return &delegate->tflite;
}

EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* tflite) {
  if (!tflite) return;
  Delegate* delegate = (Delegate*)tflite->data;
  profile_forget(&delegate->graph);
  pool_destroy(delegate->pool);
  free(delegate);
}

static const ProfiledGraph* graph_of(TfLiteDelegate* delegate) { return &((Delegate*)delegate->data)->graph; }

/* profile.h's functions, for who has the delegate. */
EXPORT int bgnn_profile_start(TfLiteDelegate* delegate) { return profile_start(graph_of(delegate)); }
EXPORT void bgnn_profile_stop(TfLiteDelegate* delegate) { profile_stop(graph_of(delegate)); }
EXPORT int bgnn_profile_operator(TfLiteDelegate* delegate, int place, int* number, const char** name,
                                 const int** replaced) {
  return profile_operator(graph_of(delegate), place, number, name, replaced);
}
EXPORT int bgnn_profile_read(TfLiteDelegate* delegate, int64_t* start, int64_t* ns) {
  return profile_read(graph_of(delegate), start, ns);
}

/* The instruction set whose kernels a new delegate would use, or NULL. */
EXPORT const char* bgnn_delegate_isa(void) {
  const BgnnKernels* kernels = bgnn_kernels();
  return kernels ? kernels->isa : NULL;
}
