/* One operator of the file while the delegate runs it: what it is, what was checked, what invoke will need. */
#ifndef BGNN_OP_H
#define BGNN_OP_H

#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"
#include "tflite_abi.h"

enum { kMaxRank = 6, kMaxInputs = 10, kMaxOptions = 8 };

/* The largest tensor or scratch buffer, in bytes: TFLite's own shapes and files end there. */
static const int64_t kMaxBytes = INT32_MAX;

struct Op;

/* What an input must be. type 0: `plan` checks it; rank 0: any from 1 to kMaxRank. */
struct FileInput {
  const char* name;
  int type, rank;
  bool optional;
};

/* One entry of the list of operators. The kernel's argument struct starts with pointers to the inputs, in the
 * file's order, and then the output: invoke fills them in without knowing the operator. */
struct FileOp {
  const char* name;
  int input_count;
  FileInput inputs[kMaxInputs];
  const char* options[kMaxOptions + 1]; /* flexbuffer integers, ended by NULL; "?name" is 0 where it is not given */

  /* Checks shapes and options against each other, sets op->args (integers), op->kernel and the shape of op->out.
   * False with op->problem set where something does not fit. */
  bool (*plan)(Op* op, const BgnnKernels* kernels);

  /* Around the kernel, both or neither. `temporary` is the op->temporary_bytes that plan asked for. `after` follows
   * on each piece of the kernel's items, on its thread, while the piece is in the cache. */
  void (*before)(Op* op, void* temporary);
  void (*after)(const Op* op, const void* temporary, int64_t first, int64_t last);
};

/* A tensor as prepare saw it; `data` is set for the duration of invoke. */
struct Tensor {
  bool present;
  TfLiteType type;
  int rank;
  int64_t dim[kMaxRank];
  int64_t bytes;
  TfLiteQuantizationType quantization;
  float scale;
  int32_t zero_point;
  void* data;
};

struct Op {
  const FileOp* kind;
  struct Delegate* delegate;
  int node; /* its number in the file's graph */
  int input_index[kMaxInputs], output_index;
  int64_t option[kMaxOptions];

  Tensor in[kMaxInputs], out;
  union {
#define BGNN_UNION_MEMBER(function, Args, FIELDS) Args function;
    BGNN_KERNELS(BGNN_UNION_MEMBER)
#undef BGNN_UNION_MEMBER
    void* pointers[kMaxInputs + 2];
  } args;
  const BgnnKernel* kernel;
  int64_t shared_bytes, scratch_bytes, temporary_bytes;
  int threads;
  int64_t piece;     /* items between two calls of kind->after */
  int scratch_index; /* of the tensor that holds the three, or -1 */

  bool broken;       /* init found a problem: prepare reports it */
  char problem[256]; /* why the operator is refused */
};

static inline bool is_optional(const FileOp* kind, int option) { return kind->options[option][0] == '?'; }
static inline const char* option_name(const FileOp* kind, int option) {
  return kind->options[option] + is_optional(kind, option);
}

extern const FileOp kFileOps[];
extern const int kFileOpCount;

/* Sets op->problem; returns false. */
bool refuse(Op* op, const char* format, ...) __attribute__((format(printf, 2, 3)));

/* The tensor's size from its type and shape; false with a reason where it is empty or beyond kMaxBytes. */
bool measure(Op* op, const char* name, Tensor* tensor);

const char* type_name(int type);

#endif
