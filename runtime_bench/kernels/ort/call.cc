#include "call.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool fail(Call* call, const char* format, ...) {
  if (call->status) return false; /* the first reason stays */
  char text[512];
  int used = snprintf(text, sizeof text, "bgnn.%s (node '%s'): ", call->kernel->kind->name, call->kernel->node);
  if (used < 0 || used >= (int)sizeof text) used = 0;
  va_list values;
  va_start(values, format);
  vsnprintf(text + used, sizeof text - (size_t)used, format, values);
  va_end(values);
  call->status = call->api->CreateStatus(kOrtInvalidArgument, text);
  return false;
}

bool make_output(Call* call, int index, int rank, const int64_t* dims, void** data) {
  OrtValue* value = NULL;
  *data = NULL;
  call->status = call->api->KernelContext_GetOutput(call->context, (size_t)index, dims, (size_t)rank, &value);
  if (call->status) return false;
  if (!value) return true;
  call->status = call->api->GetTensorMutableData(value, data);
  return !call->status;
}

bool parallel(Call* call, int64_t tasks, void (*fn)(void*, size_t), void* data) {
  if (tasks > 1) {
    call->status = call->api->KernelContext_ParallelFor(call->context, fn, (size_t)tasks, 0, data);
    return !call->status;
  }
  if (tasks == 1) fn(data, 0);
  return true;
}

void* allocate(Call* call, int64_t bytes) {
  void* memory = NULL;
  if (bytes < 0 || posix_memalign(&memory, 64, bytes > 0 ? (size_t)bytes : 1) != 0) {
    fail(call, "no memory for %lld bytes of work space", (long long)bytes);
    return NULL;
  }
  return memory;
}
