/* Nodes and calls of ONNX Runtime's: those of ../ops/call.h, and what the runtime gave for them. */
#ifndef BGNN_ORT_CALL_H
#define BGNN_ORT_CALL_H

#include "call.h"
#include "ort_abi.h"

struct OrtKernel {
  Kernel kernel; /* first: the operators see it alone */
  const OrtApi* api;
};

struct OrtCall {
  Call call; /* first */
  const OrtApi* api;
  OrtKernelContext* context;
  OrtStatus* status; /* why it failed */
};

/* The operator's plan, made and run. */
bool run_plan(Call*);

#endif
