/* What ONNX Runtime loads: registers every operator of op_list.h in the domain "bgnn", and turns its callbacks into
 * calls with checked inputs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph_kernels.h"
#include "op_list.h"
#include "ort_call.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

/* The runtime hands the address of `ort` back. */
struct CustomOp {
  OrtCustomOp ort;
  const OpKind* kind;
};

static const OpKind* kind_of(const OrtCustomOp* op) { return ((const CustomOp*)op)->kind; }

/* ---- the schema ---- */

static size_t input_count(const OrtCustomOp* op) {
  size_t count = 0;
  while (kind_of(op)->inputs[count].name) ++count;
  return count;
}
static size_t output_count(const OrtCustomOp* op) {
  size_t count = 0;
  while (count < kMaxOutputs && kind_of(op)->outputs[count]) ++count;
  return count;
}
static const char* name_of(const OrtCustomOp* op) { return kind_of(op)->name; }
static const char* on_cpu(const OrtCustomOp*) { return NULL; }
static int input_type(const OrtCustomOp* op, size_t index) { return kind_of(op)->inputs[index].type; }
static int output_type(const OrtCustomOp* op, size_t index) { return kind_of(op)->outputs[index]; }
static int input_is_optional(const OrtCustomOp* op, size_t index) {
  return kind_of(op)->inputs[index].optional ? kOptional : kRequired;
}
static int output_is_optional(const OrtCustomOp* op, size_t index) {
  return index + (size_t)kind_of(op)->optional_outputs >= output_count(op) ? kOptional : kRequired;
}
static int in_default_memory(const OrtCustomOp*, size_t) { return 0; }
static int no_variadic(const OrtCustomOp*) { return 0; }
static int first_version(const OrtCustomOp*) { return 1; }
static int last_version(const OrtCustomOp*) { return INT32_MAX; }

/* ---- a node ---- */

static OrtStatus* read_attribute(const OrtApi* api, const OrtKernelInfo* info, const char* spec, Attribute* value) {
  const char* name = attribute_name(spec);
  switch (spec[0]) {
    case 'f': return api->KernelInfoGetAttribute_float(info, name, &value->f);
    case 'i': return api->KernelInfoGetAttribute_int64(info, name, &value->i);
    default: {
      size_t size = sizeof value->s;
      return api->KernelInfoGetAttribute_string(info, name, value->s, &size);
    }
  }
}

/* Whether an attribute that cannot be read is not there: the runtime says the same of one of another type. */
static bool is_missing(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t whole;
  float real;
  size_t size = 0; /* a text's is asked for */
  OrtStatus* wrong[] = {api->KernelInfoGetAttribute_int64(info, name, &whole),
                        api->KernelInfoGetAttribute_float(info, name, &real),
                        api->KernelInfoGetAttribute_string(info, name, NULL, &size)};
  bool missing = true;
  for (OrtStatus* status : wrong) {
    missing = missing && status;
    if (status) api->ReleaseStatus(status);
  }
  return missing;
}

static OrtStatus* error(const OrtApi* api, const Kernel* kernel, const char* reason, const char* more) {
  char text[512];
  snprintf(text, sizeof text, "bgnn.%s (node '%s'): %s%s", kernel->kind->name, kernel->node, reason, more);
  return api->CreateStatus(kOrtInvalidArgument, text);
}

static OrtStatus* prepare(Kernel* kernel, const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = sizeof kernel->node;
  OrtStatus* status = api->KernelInfo_GetNodeName(info, kernel->node, &size);
  if (status) { /* longer than the buffer: the errors go without it */
    api->ReleaseStatus(status);
    kernel->node[0] = 0;
  }
  kernel->binary = bgnn_kernels();
  kernel->graph = kernel->binary ? graph_kernels_for(kernel->binary->isa) : NULL;
  if (!kernel->graph) return error(api, kernel, "BGNN_ISA names an instruction set that is unknown or not here", "");
  for (int i = 0; kernel->kind->attributes[i]; ++i) {
    const char* spec = kernel->kind->attributes[i];
    status = read_attribute(api, info, spec, &kernel->attribute[i]);
    if (!status) continue;
    api->ReleaseStatus(status);
    if (is_optional(spec) && is_missing(api, info, attribute_name(spec))) continue;
    const char* type = spec[0] == 'f' ? "no usable float attribute " : spec[0] == 'i' ? "no usable int attribute "
                                                                                      : "no usable string attribute ";
    return error(api, kernel, type, attribute_name(spec));
  }
  const char* reason = kernel->kind->check ? kernel->kind->check(kernel) : NULL;
  return reason ? error(api, kernel, reason, "") : NULL;
}

static void destroy_kernel(void* kernel) {
  free(((Kernel*)kernel)->prepared);
  free(kernel);
}

static OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  OrtKernel* made = (OrtKernel*)calloc(1, sizeof(OrtKernel));
  Kernel* kernel = &made->kernel;
  *out = NULL;
  if (!made) return api->CreateStatus(kOrtFail, "bgnn: no memory for an operator");
  made->api = api;
  kernel->kind = kind_of(op);
  OrtStatus* status = prepare(kernel, api, info);
  if (status) {
    destroy_kernel(kernel);
  } else {
    *out = kernel;
  }
  return status;
}

/* ---- a run ---- */

static const char* type_name(int type) {
  switch (type) {
    case kFloat32: return "float32";
    case kUint8: return "uint8";
    case kInt32: return "int32";
    case kInt64: return "int64";
    default: return "another type";
  }
}

static bool read_shape(OrtCall* ort, int index, const OrtTensorTypeAndShapeInfo* shape) {
  Call* call = &ort->call;
  const InputSpec* spec = &call->kernel->kind->inputs[index];
  Input* input = &call->in[index];
  int type = 0;
  size_t rank = 0;
  if ((ort->status = ort->api->GetTensorElementType(shape, &type)) ||
      (ort->status = ort->api->GetDimensionsCount(shape, &rank))) {
    return false;
  }
  REQUIRE(type == spec->type, "%s must be %s, not %s", spec->name, type_name(spec->type), type_name(type));
  return read_rank(call, index, (int64_t)rank) && !(ort->status = ort->api->GetDimensions(shape, input->dim, rank)) &&
         count_elements(call, index);
}

static bool read_input(OrtCall* ort, int index) {
  Call* call = &ort->call;
  const InputSpec* spec = &call->kernel->kind->inputs[index];
  const OrtValue* value = NULL;
  if ((ort->status = ort->api->KernelContext_GetInput(ort->context, (size_t)index, &value))) return false;
  if (!value) {
    REQUIRE(spec->optional, "%s is missing", spec->name);
    return true;
  }
  OrtTensorTypeAndShapeInfo* shape = NULL;
  if ((ort->status = ort->api->GetTensorTypeAndShape(value, &shape))) return false;
  const bool fits = read_shape(ort, index, shape);
  ort->api->ReleaseTensorTypeAndShapeInfo(shape);
  if (!fits) return false;
  void* data = NULL;
  if ((ort->status = ort->api->GetTensorMutableData((OrtValue*)value, &data))) return false;
  static const char kEmpty[64] = {}; /* a tensor without elements may have no memory; NULL means that it is missing */
  call->in[index].data = data ? data : kEmpty;
  return true;
}

static bool read_inputs(OrtCall* ort) {
  Call* call = &ort->call;
  size_t count = 0;
  if ((ort->status = ort->api->KernelContext_GetInputCount(ort->context, &count))) return false;
  const InputSpec* specs = ort->call.kernel->kind->inputs;
  for (int i = 0; specs[i].name; ++i) {
    if ((size_t)i >= count) {
      REQUIRE(specs[i].optional, "%s is missing", specs[i].name);
    } else if (!read_input(ort, i)) {
      return false;
    }
  }
  return true;
}

static OrtStatus* compute(void* data, OrtKernelContext* context) {
  OrtCall ort;
  memset(&ort, 0, sizeof ort);
  ort.call.kernel = &((const OrtKernel*)data)->kernel;
  ort.api = ((const OrtKernel*)data)->api;
  ort.context = context;
  const OpKind* kind = ort.call.kernel->kind;
  if (read_inputs(&ort)) kind->plan ? run_plan(&ort.call) : kind->compute(&ort.call);
  return ort.status;
}

/* ---- registration ---- */

enum { kMaxOps = 32 };
static CustomOp ops[kMaxOps];
static OrtCustomOpDomain* domain;
static const OrtApi* domain_api;
static int lock;

static void fill_ops() {
  for (int i = 0; i < kOpKindCount; ++i) {
    OrtCustomOp* op = &ops[i].ort;
    ops[i].kind = &kOpKinds[i];
    op->version = kOrtApiVersion;
    op->GetName = name_of;
    op->GetExecutionProviderType = on_cpu;
    op->GetInputType = input_type;
    op->GetInputTypeCount = input_count;
    op->GetOutputType = output_type;
    op->GetOutputTypeCount = output_count;
    op->KernelDestroy = destroy_kernel;
    op->GetInputCharacteristic = input_is_optional;
    op->GetOutputCharacteristic = output_is_optional;
    op->GetInputMemoryType = in_default_memory;
    op->GetVariadicInputMinArity = no_variadic;
    op->GetVariadicInputHomogeneity = no_variadic;
    op->GetVariadicOutputMinArity = no_variadic;
    op->GetVariadicOutputHomogeneity = no_variadic;
    op->CreateKernelV2 = create_kernel;
    op->KernelComputeV2 = compute;
    op->GetStartVersion = first_version;
    op->GetEndVersion = last_version;
  }
}

/* All sessions share one domain. */
static OrtStatus* make_domain(const OrtApi* api) {
  if (domain) return NULL;
  if (kOpKindCount > kMaxOps) return api->CreateStatus(kOrtFail, "bgnn: kMaxOps is too small");
  fill_ops();
  OrtCustomOpDomain* made = NULL;
  OrtStatus* status = api->CreateCustomOpDomain("bgnn", &made);
  for (int i = 0; i < kOpKindCount && !status; ++i) status = api->CustomOpDomain_Add(made, &ops[i].ort);
  if (!status) {
    domain = made;
    domain_api = api;
  }
  return status;
}

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (!api) {
    char text[128];
    snprintf(text, sizeof text, "bgnn's operators need ONNX Runtime 1.17 or newer; this is %s", base->GetVersionString());
    return base->GetApi(1)->CreateStatus(kOrtFail, text);
  }
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
  }
  OrtStatus* status = make_domain(api);
  __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
  return status ? status : api->AddCustomOpDomain(options, domain);
}

/* The runtime unloads the library with the last session that uses it. */
__attribute__((destructor)) static void release_domain() {
  if (domain) domain_api->ReleaseCustomOpDomain(domain);
}

/* The instruction set that a new session would use ("avx512"), or NULL where BGNN_ISA names none that runs here. */
EXPORT const char* bgnn_ort_isa(void) {
  const BgnnKernels* kernels = bgnn_kernels();
  const GraphKernels* graph = kernels ? graph_kernels_for(kernels->isa) : NULL;
  return graph ? graph->isa : NULL;
}
