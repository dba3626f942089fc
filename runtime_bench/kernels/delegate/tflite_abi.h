/* TensorFlow Lite's C binary interface, as far as an external delegate uses it.
 *
 * No package ships a current common.h, so the layouts are declared here: little more than offsets, which agree in
 * tflite-runtime 2.14, TensorFlow 2.16 to 2.21 and ai-edge-litert 1.2 to 2.3 (64-bit Linux). Two structs grow at
 * their end from version to version; how each is made safe stands beside it.
 */
#ifndef BGNN_TFLITE_ABI_H
#define BGNN_TFLITE_ABI_H

#include <stddef.h>
#include <stdint.h>

extern "C" {

enum TfLiteStatus : int { kTfLiteOk = 0, kTfLiteError = 1 };

enum TfLiteType : int {
  kTfLiteFloat32 = 1,
  kTfLiteInt32 = 2,
  kTfLiteUInt8 = 3,
  kTfLiteBool = 6,
  kTfLiteInt8 = 9,
};

enum TfLiteAllocationType : int {
  kTfLiteMmapRo = 1, /* a constant of the file: never written */
  kTfLiteArenaRw = 2,
  kTfLiteArenaRwPersistent = 3, /* a variable: keeps its memory, of the file's size, from run to run */
  kTfLitePersistentRo = 5, /* what prepare writes once: a constant of the sizes that the tensors have then */
};

enum TfLiteQuantizationType : int { kTfLiteAffineQuantization = 1 };

struct TfLiteIntArray {
  int size;
  int data[]; /* `size` entries; the runtime frees with free() what it takes over */
};

struct TfLiteTensor {
  TfLiteType type;
  void* data;
  TfLiteIntArray* dims;
  float scale;
  int32_t zero_point;
  TfLiteAllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  struct TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  TfLiteQuantizationType quantization_type;
  void* quantization_params;
  void* sparsity;
  const TfLiteIntArray* dims_signature;
};

struct TfLiteNode {
  TfLiteIntArray* inputs;
  TfLiteIntArray* outputs;
  TfLiteIntArray* intermediates;
  TfLiteIntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  struct TfLiteDelegate* delegate;
  bool might_have_side_effect;
};

struct TfLiteContext;

/* Passed by value to ReplaceNodeSubsetsWithDelegateKernels: the callee copies its own, perhaps larger, struct from
 * the stack. Zeroes beyond what we know make every later field absent (88 bytes is the largest yet). */
struct TfLiteRegistration {
  void* (*init)(TfLiteContext*, const char* buffer, size_t length);
  void (*free)(TfLiteContext*, void* user_data);
  TfLiteStatus (*prepare)(TfLiteContext*, TfLiteNode*);
  TfLiteStatus (*invoke)(TfLiteContext*, TfLiteNode*);
  const char* (*profiling_string)(const TfLiteContext*, const TfLiteNode*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* later_fields[11];
};

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext*, TfLiteIntArray** execution_plan);
  TfLiteTensor* tensors; /* moves when tensors are added */
  void* impl;
  TfLiteStatus (*ResizeTensor)(TfLiteContext*, TfLiteTensor*, TfLiteIntArray* new_size); /* takes new_size over */
  void (*ReportError)(TfLiteContext*, const char* format, ...);
  TfLiteStatus (*AddTensors)(TfLiteContext*, int count, int* first_new_tensor_index);
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext*, int node_index, TfLiteNode**, TfLiteRegistration**);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(TfLiteContext*, TfLiteRegistration,
                                                        const TfLiteIntArray* nodes, struct TfLiteDelegate*);
  int recommended_num_threads;
  /* more follows that is not used here */
};

/* What init of a delegate's node gets as its buffer. */
struct TfLiteDelegateParams {
  struct TfLiteDelegate* delegate;
  TfLiteIntArray* nodes_to_replace;
  TfLiteIntArray* input_tensors;
  TfLiteIntArray* output_tensors;
};

enum : int64_t {
  /* Without it the runtime prepares the graph, and stops at the unknown operators, before it asks the delegate. */
  kTfLiteDelegateFlagsAllowDynamicTensors = 1,
};

struct TfLiteDelegate {
  void* data;
  TfLiteStatus (*Prepare)(TfLiteContext*, TfLiteDelegate*);
  TfLiteStatus (*CopyFromBufferHandle)(TfLiteContext*, TfLiteDelegate*, int handle, TfLiteTensor*);
  TfLiteStatus (*CopyToBufferHandle)(TfLiteContext*, TfLiteDelegate*, int handle, TfLiteTensor*);
  void (*FreeBufferHandle)(TfLiteContext*, TfLiteDelegate*, int* handle);
  int64_t flags;
  void* opaque_delegate_builder; /* younger than the rest; NULL: the fields above count */
  void* later_fields[7];
};

} /* extern "C" */

static_assert(sizeof(void*) == 8, "the layouts below are those of 64-bit Linux");
static_assert(sizeof(TfLiteTensor) == 112 && offsetof(TfLiteTensor, dims) == 16 &&
                  offsetof(TfLiteTensor, scale) == 24 && offsetof(TfLiteTensor, allocation_type) == 32 &&
                  offsetof(TfLiteTensor, bytes) == 40 && offsetof(TfLiteTensor, quantization_type) == 80,
              "TfLiteTensor");
static_assert(sizeof(TfLiteNode) == 80 && offsetof(TfLiteNode, temporaries) == 24 &&
                  offsetof(TfLiteNode, user_data) == 32 && offsetof(TfLiteNode, custom_initial_data) == 48 &&
                  offsetof(TfLiteNode, custom_initial_data_size) == 56,
              "TfLiteNode");
static_assert(offsetof(TfLiteRegistration, builtin_code) == 40 && offsetof(TfLiteRegistration, custom_name) == 48 &&
                  offsetof(TfLiteRegistration, version) == 56 && sizeof(TfLiteRegistration) == 152,
              "TfLiteRegistration");
static_assert(offsetof(TfLiteContext, tensors) == 16 && offsetof(TfLiteContext, ResizeTensor) == 32 &&
                  offsetof(TfLiteContext, ReportError) == 40 && offsetof(TfLiteContext, AddTensors) == 48 &&
                  offsetof(TfLiteContext, GetNodeAndRegistration) == 56 &&
                  offsetof(TfLiteContext, ReplaceNodeSubsetsWithDelegateKernels) == 64 &&
                  offsetof(TfLiteContext, recommended_num_threads) == 72,
              "TfLiteContext");
static_assert(offsetof(TfLiteDelegate, flags) == 40 && offsetof(TfLiteDelegate, opaque_delegate_builder) == 48,
              "TfLiteDelegate");

#endif
