// Runs recorded kernel calls and compares the outputs, for machines without Python: replay FILE ISA [THREADS].
// The file is written by test_replay.py; every item is 8 bytes or padded to them: the kernel's number, then its
// fields in order: an int's value; a tensor's size in bytes (-1: NULL) and contents (for an output, the expected).
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static FILE* file;

static bool read_int(int64_t* value) { return fread(value, 8, 1, file) == 1; }

// Of the exact size (which kernels round up to 64), so that a sanitizer sees what lies beyond.
static void* aligned(int64_t bytes) { return aligned_alloc(64, bytes > 0 ? size_t(bytes) : 64); }

static void* tensors[32];
static int tensor_count;

static void release() {
  while (tensor_count) free(tensors[--tensor_count]);
}

// The file's next tensor; `contents` filled from the file; NULL for NULL.
static char* read_tensor(int64_t* bytes) {
  if (!read_int(bytes)) exit(2);
  if (*bytes < 0) return nullptr;
  const size_t size = size_t(*bytes), padding = -size % 8;
  char* contents = static_cast<char*>(tensors[tensor_count++] = malloc(size));
  char ignored[8];
  if (fread(contents, 1, size, file) != size || fread(ignored, 1, padding, file) != padding) exit(2);
  return contents;
}

struct Output {
  char* found;
  char* expected;
  int64_t bytes;
};

static Output outputs[4];
static int output_count;

template <class T>
static void read_input(const T*& field) {
  int64_t bytes;
  field = reinterpret_cast<const T*>(read_tensor(&bytes));
}

template <class T>
static void read_output(T*& field) {
  Output& out = outputs[output_count];
  out.expected = read_tensor(&out.bytes);
  field = nullptr;
  if (!out.expected) return;
  out.found = static_cast<char*>(tensors[tensor_count++] = malloc(size_t(out.bytes)));
  memset(out.found, 0xa5, size_t(out.bytes));
  field = reinterpret_cast<T*>(out.found);
  output_count++;
}

constexpr int kMostThreads = 8;

struct Share {
  const BgnnKernel* kernel;
  const void *args, *shared;
  int64_t first, last;
  pthread_t thread;
};

static void* run_share(void* data) {
  const Share& share = *static_cast<const Share*>(data);
  void* scratch = aligned(share.kernel->scratch_bytes(share.args));
  share.kernel->run(share.args, share.shared, scratch, share.first, share.last);
  free(scratch);
  return nullptr;
}

// Runs the items in two shares, the later one first, or in one for each of `threads` at the same time; returns whether
// all outputs are as expected.
static bool check(const BgnnKernel& kernel, const void* args, int threads) {
  void* shared = aligned(kernel.shared_bytes(args));
  const int64_t items = kernel.begin(args, shared);
  if (items < 0) return false;
  if (threads == 1) {
    Share shares[2] = {{&kernel, args, shared, items / 3, items, {}}, {&kernel, args, shared, 0, items / 3, {}}};
    for (Share& share : shares) run_share(&share);
  } else {
    Share shares[kMostThreads];
    for (int i = 0; i < threads; i++) {
      shares[i] = {&kernel, args, shared, items * i / threads, items * (i + 1) / threads, {}};
      if (pthread_create(&shares[i].thread, nullptr, run_share, &shares[i]) != 0) exit(2);
    }
    for (int i = 0; i < threads; i++) pthread_join(shares[i].thread, nullptr);
  }
  bool same = true;
  for (int i = 0; i < output_count; i++) {
    const Output& out = outputs[i];
    same &= memcmp(out.found, out.expected, size_t(out.bytes)) == 0;
  }
  free(shared);
  return same;
}

int main(int count, char** words) {
  const int threads = count == 4 ? atoi(words[3]) : 1;
  if (count < 3 || count > 4 || threads < 1 || threads > kMostThreads || !(file = fopen(words[1], "rb"))) return 2;
  const BgnnKernels* kernels = bgnn_kernels_for(words[2]);
  if (!kernels) return 2;
  int64_t number, calls = 0, wrong = 0;
  while (read_int(&number)) {
    int64_t at = 0;
    output_count = 0;
    bool same = false;
#define READ_IN(type, name) read_input(args.name);
#define READ_OUT(type, name) read_output(args.name);
#define READ_INT(name) if (!read_int(&args.name)) return 2;
#define REPLAY(function, Args, FIELDS)            \
  if (number == at++) {                           \
    Args args;                                    \
    FIELDS(READ_IN, READ_OUT, READ_INT)           \
    same = check(kernels->function, &args, threads);  \
  }
    BGNN_KERNELS(REPLAY)
    if (!same) printf("call %lld of kernel %lld differs\n", static_cast<long long>(calls), static_cast<long long>(number));
    wrong += !same;
    calls++;
    release();
  }
  printf("%lld calls, %lld wrong\n", static_cast<long long>(calls), static_cast<long long>(wrong));
  return wrong != 0;
}
