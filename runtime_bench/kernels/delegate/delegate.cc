/* The external delegate: TensorFlow Lite loads this library, hands it the graph, and our operators (nodes.h) run
 * here. One delegate node per operator: inside a larger group the tensors between operators would have no memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes.h"
#include "sizes.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

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
    TfLiteRegistration ours;
    memset(&ours, 0, sizeof ours);
    ours.version = 1;
    if (!register_node(registration, &ours) && !register_sizes(registration, &ours)) continue;
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
