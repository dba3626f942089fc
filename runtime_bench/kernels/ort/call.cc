#include "ort_call.h"

#include <stdarg.h>
#include <stdio.h>

static OrtCall* whole(Call* call) { return (OrtCall*)call; }

/* Keeps a status; whether there is none. */
static bool keep(Call* call, OrtStatus* status) {
  whole(call)->status = status;
  call->failed = status != NULL;
  return !status;
}

bool fail(Call* call, const char* format, ...) {
  if (call->failed) return false; /* the first reason stays */
  char text[512];
  int used = snprintf(text, sizeof text, "bgnn.%s (node '%s'): ", call->kernel->kind->name, call->kernel->node);
  if (used < 0 || used >= (int)sizeof text) used = 0;
  va_list values;
  va_start(values, format);
  vsnprintf(text + used, sizeof text - (size_t)used, format, values);
  va_end(values);
  return keep(call, whole(call)->api->CreateStatus(kOrtInvalidArgument, text));
}

bool make_output(Call* call, int index, int rank, const int64_t* dims, void** data) {
  OrtValue* value = NULL;
  *data = NULL;
  OrtCall* ort = whole(call);
  if (!keep(call, ort->api->KernelContext_GetOutput(ort->context, (size_t)index, dims, (size_t)rank, &value))) return false;
  return !value || keep(call, ort->api->GetTensorMutableData(value, data));
}

bool parallel(Call* call, int64_t tasks, void (*fn)(void*, size_t), void* data) {
  if (tasks > 1) {
    OrtCall* ort = whole(call);
    return keep(call, ort->api->KernelContext_ParallelFor(ort->context, fn, (size_t)tasks, 0, data));
  }
  if (tasks == 1) fn(data, 0);
  return true;
}

/* What stands before the memory that `allocate` gives. */
struct Block {
  OrtAllocator* allocator;
  void* start;
};
static const int64_t kAlignment = 64;

/* Any status of the runtime's is an error of its own wording: what matters is that there is no memory. */
static bool succeeded(Call* call, OrtStatus* status) {
  if (status) whole(call)->api->ReleaseStatus(status);
  return !status;
}

static OrtAllocator* arena(Call* call) {
  const OrtApi* api = whole(call)->api;
  OrtMemoryInfo* info = NULL;
  OrtAllocator* allocator = NULL;
  if (!succeeded(call, api->CreateCpuMemoryInfo(kArena, kDefaultMemory, &info))) return NULL;
  const bool found = succeeded(call, api->KernelContext_GetAllocator(whole(call)->context, info, &allocator));
  api->ReleaseMemoryInfo(info);
  return found ? allocator : NULL;
}

void* allocate(Call* call, int64_t bytes) {
  OrtAllocator* allocator = bytes >= 0 && bytes < INT64_MAX / 2 ? arena(call) : NULL;
  void* start = NULL;
  if (!allocator || !succeeded(call, whole(call)->api->AllocatorAlloc(allocator, (size_t)(bytes + 2 * kAlignment), &start)) ||
      !start) {
    if (allocator) whole(call)->api->ReleaseAllocator(allocator);
    fail(call, "no memory for %lld bytes of work space", (long long)bytes);
    return NULL;
  }
  const uintptr_t at = ((uintptr_t)start + 2 * kAlignment - 1) / kAlignment * kAlignment;
  ((Block*)at)[-1] = {allocator, start};
  return (void*)at;
}

void release(Call* call, void* memory) {
  if (!memory) return;
  const Block block = ((Block*)memory)[-1];
  succeeded(call, whole(call)->api->AllocatorFree(block.allocator, block.start));
  whole(call)->api->ReleaseAllocator(block.allocator);
}
