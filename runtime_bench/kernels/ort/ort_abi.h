/* What this library uses of ONNX Runtime's C API: 27 of its functions and the struct of a custom operator.
 *
 * OrtApi is a struct of function pointers to which ONNX Runtime only ever appends, so a function is known by its
 * place. Declared by hand, because no package ships the header: the numbers are the places in API version 17
 * (ONNX Runtime 1.17, the first with KernelContext_ParallelFor). tests/runtime_bench/kernels/ort/test_versions.py runs the
 * operators on the newest runtime and on older ones. */
#ifndef BGNN_ORT_ABI_H
#define BGNN_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { kOrtApiVersion = 17 };

/* Opaque. */
struct OrtStatus;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtCustomOp;

/* OrtErrorCode */
enum { kOrtFail = 1, kOrtInvalidArgument = 2 };

/* OrtAllocatorType, OrtMemType */
enum { kArena = 1, kDefaultMemory = 0 };

/* OrtCustomOpInputOutputCharacteristic */
enum { kRequired = 0, kOptional = 1 };

/* A function that returns a status returns NULL on success; statuses and shapes are the caller's to release. */
struct OrtApi {
  OrtStatus* (*CreateStatus)(int code, const char* message);
  void* unused_1;
  const char* (*GetErrorMessage)(const OrtStatus*);
  void* unused_3[26 - 3];
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain*, const OrtCustomOp*);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions*, OrtCustomOpDomain*);
  void* unused_29[51 - 29];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);
  void* unused_52[60 - 52];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, int* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t* out, size_t count);
  void* unused_63[65 - 63];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo** out);
  void* unused_66[69 - 66];
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator_type, int memory_type, OrtMemoryInfo** out);
  void* unused_70[75 - 70];
  OrtStatus* (*AllocatorAlloc)(OrtAllocator*, size_t bytes, void** out);
  OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
  void* unused_77[85 - 77];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo*, const char* name, float* out);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo*, const char* name, int64_t* out);
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo*, const char* name, char* out, size_t* size);
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext*, size_t* out);
  void* unused_89;
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext*, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext*, size_t index, const int64_t* dims, size_t rank,
                                        OrtValue** out);
  void* unused_92;
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void* unused_95[99 - 95];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  void* unused_100;
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain*);
  void* unused_102[132 - 102];
  void (*ReleaseAllocator)(OrtAllocator*);
  void* unused_133[244 - 133];
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo*, char* out, size_t* size);
  void* unused_245[253 - 245];
  OrtStatus* (*KernelContext_GetAllocator)(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator** out);
  void* unused_254[274 - 254];
  /* Calls fn(data, 0) .. fn(data, total - 1) on the session's own threads; batches 0 lets it choose their number. */
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext*, void (*fn)(void* data, size_t item), size_t total,
                                          size_t batches, void* data);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version); /* NULL where the runtime is older than `version` */
  const char* (*GetVersionString)(void);
};

struct OrtCustomOp {
  uint32_t version; /* kOrtApiVersion: the runtime reads no member that came later */
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

#define BGNN_ORT_SLOT(name, number) \
  static_assert(offsetof(OrtApi, name) == (number) * sizeof(void*), #name " is not at its place")
BGNN_ORT_SLOT(CreateStatus, 0);
BGNN_ORT_SLOT(GetErrorMessage, 2);
BGNN_ORT_SLOT(CreateCustomOpDomain, 26);
BGNN_ORT_SLOT(CustomOpDomain_Add, 27);
BGNN_ORT_SLOT(AddCustomOpDomain, 28);
BGNN_ORT_SLOT(GetTensorMutableData, 51);
BGNN_ORT_SLOT(GetTensorElementType, 60);
BGNN_ORT_SLOT(GetDimensionsCount, 61);
BGNN_ORT_SLOT(GetDimensions, 62);
BGNN_ORT_SLOT(GetTensorTypeAndShape, 65);
BGNN_ORT_SLOT(KernelInfoGetAttribute_float, 85);
BGNN_ORT_SLOT(KernelInfoGetAttribute_int64, 86);
BGNN_ORT_SLOT(KernelInfoGetAttribute_string, 87);
BGNN_ORT_SLOT(KernelContext_GetInputCount, 88);
BGNN_ORT_SLOT(KernelContext_GetInput, 90);
BGNN_ORT_SLOT(KernelContext_GetOutput, 91);
BGNN_ORT_SLOT(ReleaseStatus, 93);
BGNN_ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
BGNN_ORT_SLOT(ReleaseCustomOpDomain, 101);
BGNN_ORT_SLOT(KernelInfo_GetNodeName, 244);
BGNN_ORT_SLOT(CreateCpuMemoryInfo, 69);
BGNN_ORT_SLOT(AllocatorAlloc, 75);
BGNN_ORT_SLOT(AllocatorFree, 76);
BGNN_ORT_SLOT(ReleaseMemoryInfo, 94);
BGNN_ORT_SLOT(ReleaseAllocator, 132);
BGNN_ORT_SLOT(KernelContext_GetAllocator, 253);
BGNN_ORT_SLOT(KernelContext_ParallelFor, 274);
static_assert(offsetof(OrtCustomOp, CreateKernel) == 8 && offsetof(OrtCustomOp, KernelCompute) == 8 * 8 &&
                  offsetof(OrtCustomOp, CreateKernelV2) == 17 * 8 && sizeof(OrtCustomOp) == 22 * 8,
              "the layout of OrtCustomOp");
#undef BGNN_ORT_SLOT

#endif
