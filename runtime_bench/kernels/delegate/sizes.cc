/* BgnnSizes: numbers that follow from its inputs' shapes, known when the graph is prepared, as SHAPE's are. So what a
 * file of one size has as constants (new shapes, numbers of segments, ends of ranges) can follow resized inputs.
 *
 *   terms int32 [n, 1 + k], axes int32 [k], k tensors of any type -> int32 of n elements
 *   out[i] = terms[i, 0] + sum over j of terms[i, 1 + j] * (size of tensor j along axes[j]) */
#include "sizes.h"

#include <stdlib.h>
#include <string.h>

static const char kName[] = "BgnnSizes";

bool is_known(const TfLiteTensor* tensor) {
  return tensor->data && (tensor->allocation_type == kTfLiteMmapRo || tensor->allocation_type == kTfLitePersistentRo);
}

const char* fixed_memory(const TfLiteTensor* output) {
  if (output->allocation_type == kTfLiteMmapRo) return "a constant of the file";
  return output->allocation_type == kTfLiteArenaRwPersistent ? "a variable of the file" : NULL;
}

TfLiteStatus resize_tensor(TfLiteContext* context, int index, int rank, const int64_t* dims) {
  TfLiteIntArray* shape = (TfLiteIntArray*)malloc(sizeof(TfLiteIntArray) + sizeof(int) * rank);
  if (!shape) return kTfLiteError;
  shape->size = rank;
  for (int i = 0; i < rank; ++i) shape->data[i] = (int)dims[i];
  return context->ResizeTensor(context, &context->tensors[index], shape);
}

/* Its number in the file, and the file's inputs: the delegate's own node has each once, in another order. */
struct Sizes {
  int number, inputs;
  int input[];
};

static TfLiteStatus refuse(TfLiteContext* context, const Sizes* sizes, const char* reason) {
  context->ReportError(context, "%s (operator %d of the file): %s.", kName, sizes->number, reason);
  return kTfLiteError;
}

/* An int32 constant of `rank` axes. */
static const TfLiteTensor* constant(const TfLiteContext* context, int index, int rank) {
  const TfLiteTensor* tensor = &context->tensors[index];
  const bool fits = is_known(tensor) && tensor->type == kTfLiteInt32 && tensor->dims && tensor->dims->size == rank;
  return fits ? tensor : NULL;
}

static int32_t number(const TfLiteTensor* tensor, int64_t place) {
  int32_t value;
  memcpy(&value, (const char*)tensor->data + place * sizeof value, sizeof value);
  return value;
}

static void* init(TfLiteContext* context, const char* buffer, size_t) {
  const int number = ((const TfLiteDelegateParams*)buffer)->nodes_to_replace->data[0];
  TfLiteNode* node = NULL;
  TfLiteRegistration* registration = NULL;
  const bool found = context->GetNodeAndRegistration(context, number, &node, &registration) == kTfLiteOk;
  const int inputs = found && node->inputs ? node->inputs->size : 0;
  Sizes* sizes = (Sizes*)malloc(sizeof(Sizes) + sizeof(int) * (size_t)inputs);
  if (!sizes) return NULL;
  sizes->number = number;
  sizes->inputs = inputs;
  if (inputs) memcpy(sizes->input, node->inputs->data, sizeof(int) * (size_t)inputs);
  return sizes;
}

static void release(TfLiteContext*, void* user_data) { free(user_data); }

static TfLiteStatus prepare(TfLiteContext* context, TfLiteNode* node) {
  const Sizes* sizes = (const Sizes*)node->user_data;
  if (!sizes) {
    context->ReportError(context, "%s: out of memory.", kName);
    return kTfLiteError;
  }
  const int inputs = sizes->inputs, outputs = node->outputs ? node->outputs->size : 0;
  if (inputs < 3 || outputs != 1) return refuse(context, sizes, "it takes terms, axes and tensors, and has one output");
  for (int i = 0; i < inputs + 1; ++i) {
    const int index = i < inputs ? sizes->input[i] : node->outputs->data[0];
    if (index < 0 || (size_t)index >= context->tensors_size) return refuse(context, sizes, "a tensor is missing");
  }
  const int count = inputs - 2;
  const TfLiteTensor *terms = constant(context, sizes->input[0], 2), *axes = constant(context, sizes->input[1], 1);
  if (!terms || !axes) return refuse(context, sizes, "its terms and axes must be constants of int32");
  const int64_t rows = terms->dims->data[0], width = 1 + (int64_t)count;
  if (rows < 0 || terms->dims->data[1] != width || axes->dims->data[0] != count ||
      terms->bytes != (size_t)(rows * width) * sizeof(int32_t) || axes->bytes != (size_t)count * sizeof(int32_t)) {
    return refuse(context, sizes, "its terms and axes do not fit its tensors");
  }
  const int index = node->outputs->data[0];
  TfLiteTensor* out = &context->tensors[index];
  int64_t dims[1] = {rows};
  if (out->type != kTfLiteInt32 || !out->dims || out->dims->size > 1 || (out->dims->size == 0 && rows != 1)) {
    return refuse(context, sizes, "its output must be a vector of int32, or one number");
  }
  if (out->allocation_type != kTfLitePersistentRo) {
    if (out->allocation_type != kTfLiteArenaRw) return refuse(context, sizes, "its output is made elsewhere");
    out->data = NULL; /* what the arena gave is no memory that the tensor may enlarge or free */
    out->allocation_type = kTfLitePersistentRo;
  }
  if (resize_tensor(context, index, out->dims->size, dims) != kTfLiteOk) return kTfLiteError;
  out = &context->tensors[index];
  if (!out->data || out->bytes != (size_t)rows * sizeof(int32_t)) {
    return refuse(context, sizes, "its output has no memory");
  }
  for (int64_t row = 0; row < rows; ++row) {
    int64_t sum = number(terms, row * width);
    for (int j = 0; j < count; ++j) {
      const TfLiteIntArray* shape = context->tensors[sizes->input[2 + j]].dims;
      const int32_t axis = number(axes, j);
      if (!shape || axis < 0 || axis >= shape->size) return refuse(context, sizes, "a tensor has no such axis");
      int64_t term;
      if (__builtin_mul_overflow((int64_t)number(terms, row * width + 1 + j), (int64_t)shape->data[axis], &term) ||
          __builtin_add_overflow(sum, term, &sum)) {
        return refuse(context, sizes, "a number is larger than 2^31 - 1");
      }
    }
    if (sum < INT32_MIN || sum > INT32_MAX) return refuse(context, sizes, "a number is larger than 2^31 - 1");
    ((int32_t*)out->data)[row] = (int32_t)sum;
  }
  return kTfLiteOk;
}

static TfLiteStatus invoke(TfLiteContext*, TfLiteNode*) { return kTfLiteOk; }

bool register_sizes(const TfLiteRegistration* file, TfLiteRegistration* ours) {
  if (!file || !file->custom_name || strcmp(file->custom_name, kName) != 0) return false;
  ours->init = init;
  ours->free = release;
  ours->prepare = prepare;
  ours->invoke = invoke;
  ours->custom_name = kName;
  return true;
}
