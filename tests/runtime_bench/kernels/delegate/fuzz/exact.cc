// Stands between a TFLite runtime and the delegate under test: every tensor that an operator sees while it runs is a
// block of its own, of exactly the tensor's size. In a runtime's arena the tensors lie side by side, and a read one
// byte beyond one of them would go unnoticed; here a sanitizer sees it.
//
// Each operator runs twice, on different rubbish in its output and its scratch memory. Aborts where an input was
// changed, or where the two outputs differ: then something was used that nobody wrote.
//
// The runtime loads this library as its delegate; BGNN_FUZZED names the real one.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../../../runtime_bench/kernels/delegate/tflite_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Prepare = TfLiteStatus (*)(TfLiteContext*, TfLiteDelegate*);
using Replace = decltype(TfLiteContext::ReplaceNodeSubsetsWithDelegateKernels);
using Invoke = decltype(TfLiteRegistration::invoke);

// One real delegate, with two kinds of operators: those of its lists, and BgnnSizes.
constexpr int kKinds = 2;
Prepare real_prepare;
Invoke real_invokes[kKinds];
thread_local Replace real_replace;

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "exact: %s\n", what);
  abort();
}

struct Block {
  int index;
  bool written;  // an output or scratch
  void *original, *memory, *data;
  size_t bytes;
};

struct Blocks {
  Block block[16];
  int count = 0;

  void add(const TfLiteContext* context, const TfLiteIntArray* tensors, bool written) {
    for (int i = 0; tensors && i < tensors->size; ++i) {
      const int index = tensors->data[i];
      if (index < 0) continue;
      int at = 0;
      while (at < count && block[at].index != index) ++at;
      if (at == 16) fail("an operator with more tensors than any has");
      const TfLiteTensor& tensor = context->tensors[index];
      // Nothing of 2 GiB is copied: the operator must refuse it, here at its run, before it reads or writes any.
      void* data = tensor.bytes < size_t{1} << 31 ? tensor.data : nullptr;
      if (at == count) block[count++] = {index, false, data, nullptr, nullptr, tensor.bytes};
      block[at].written |= written && tensor.allocation_type != kTfLitePersistentRo;  // such a one Prepare has written
    }
  }
};

TfLiteStatus run(TfLiteContext* context, TfLiteNode* node, Invoke real_invoke, Blocks& blocks,
                 unsigned char rubbish) {
  for (int i = 0; i < blocks.count; ++i) {
    Block& block = blocks.block[i];
    if (!block.original) continue;
    // The end is what counts. A tensor that the file stores at an odd address stays at one.
    const size_t skew = reinterpret_cast<uintptr_t>(block.original) % 4;
    block.memory = malloc(block.bytes + skew);
    if (!block.memory) fail("out of memory");
    block.data = static_cast<char*>(block.memory) + skew;
    if (block.written) memset(block.data, rubbish, block.bytes);
    else memcpy(block.data, block.original, block.bytes);
    context->tensors[block.index].data = block.data;
  }
  const TfLiteStatus status = real_invoke(context, node);
  for (int i = 0; i < blocks.count; ++i) context->tensors[blocks.block[i].index].data = blocks.block[i].original;
  return status;
}

template <int kKind>
TfLiteStatus invoke(TfLiteContext* context, TfLiteNode* node) {
  const Invoke real_invoke = real_invokes[kKind];
  Blocks first;
  first.add(context, node->inputs, false);
  first.add(context, node->outputs, true);
  first.add(context, node->temporaries, true);
  Blocks second = first;
  const TfLiteStatus status = run(context, node, real_invoke, first, 0x5a);
  if (run(context, node, real_invoke, second, 0xa5) != status) fail("an operator fails only sometimes");
  for (int i = 0; i < first.count; ++i) {
    const Block &one = first.block[i], &two = second.block[i];
    if (!one.original) continue;
    bool output = false;
    for (int j = 0; node->outputs && j < node->outputs->size; ++j) output |= node->outputs->data[j] == one.index;
    if (!one.written && memcmp(one.data, one.original, one.bytes) != 0) fail("an operator changes its input");
    if (output && status == kTfLiteOk) {
      if (memcmp(one.data, two.data, one.bytes) != 0) fail("an output depends on memory that nobody wrote");
      memcpy(one.original, one.data, one.bytes);
    }
    free(one.memory);
    free(two.memory);
  }
  return status;
}

TfLiteStatus replace(TfLiteContext* context, TfLiteRegistration registration, const TfLiteIntArray* nodes,
                     TfLiteDelegate* delegate) {
  constexpr Invoke invokes[kKinds] = {invoke<0>, invoke<1>};
  int kind = 0;
  while (kind < kKinds && real_invokes[kind] && real_invokes[kind] != registration.invoke) ++kind;
  if (kind == kKinds) fail("the delegate has more kinds of operators");
  real_invokes[kind] = registration.invoke;
  registration.invoke = invokes[kind];
  return real_replace(context, registration, nodes, delegate);
}

TfLiteStatus prepare(TfLiteContext* context, TfLiteDelegate* delegate) {
  real_replace = context->ReplaceNodeSubsetsWithDelegateKernels;
  context->ReplaceNodeSubsetsWithDelegateKernels = replace;
  const TfLiteStatus status = real_prepare(context, delegate);
  context->ReplaceNodeSubsetsWithDelegateKernels = real_replace;
  return status;
}

void* library() {
  static void* handle = dlopen(getenv("BGNN_FUZZED") ? getenv("BGNN_FUZZED") : "", RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail(dlerror());
  return handle;
}

}  // namespace

EXPORT TfLiteDelegate* tflite_plugin_create_delegate(const char* const* names, const char* const* values, size_t count,
                                                     void (*report_error)(const char*)) {
  using Create = TfLiteDelegate* (*)(const char* const*, const char* const*, size_t, void (*)(const char*));
  TfLiteDelegate* delegate =
      reinterpret_cast<Create>(dlsym(library(), "tflite_plugin_create_delegate"))(names, values, count, report_error);
  if (!delegate) return nullptr;
  real_prepare = delegate->Prepare;
  delegate->Prepare = prepare;
  return delegate;
}

EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  reinterpret_cast<void (*)(TfLiteDelegate*)>(dlsym(library(), "tflite_plugin_destroy_delegate"))(delegate);
}
