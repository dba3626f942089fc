/* One run of one operator: its checked inputs, its outputs, its error, and work on the runtime's threads. The bindings
 * (../ort, ../delegate) make calls of what their runtimes give, and have the functions at the end. */
#ifndef BGNN_CALL_H
#define BGNN_CALL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

/* Types of tensors: TensorProto.DataType's numbers; kAny: the operator looks itself. */
enum { kAny = -1, kFloat32 = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7 };

struct GraphKernels;
struct DenseKernels;

enum { kMaxInputs = 10, kMaxOutputs = 3, kMaxAttributes = 16, kMaxRank = 6 };

/* A value of an attribute; which member holds it is the operator's entry's matter. */
union Attribute {
  float f;
  int64_t i;
  char s[16];
};

struct Kernel;
struct Call;
struct Plan;

struct InputSpec {
  const char* name;
  int type;          /* of those above */
  int low, high;     /* least and largest rank */
  bool optional;
  bool as_stored = false; /* codes that may stand as int8, 128 less: `flip` of the input tells */
};

struct Shape {
  int rank;
  int64_t dim[kMaxRank];
};

/* An entry of the list of operators (op_list.h): what it accepts and does. Lists end with a NULL name. */
struct OpKind {
  const char* name;
  InputSpec inputs[kMaxInputs + 1];
  int outputs[kMaxOutputs];        /* types; 0 ends the list */
  int optional_outputs;            /* how many of the last ones may be left out */
  const char* attributes[kMaxAttributes + 1]; /* "f name", "i name", "s name"; "i?name" is 0 where it is not given */
  /* Checks the attributes when the session is made, and prepares what depends on nothing else. NULL, or a reason that
   * ends "operator X: ...". */
  const char* (*check)(Kernel*);
  bool (*compute)(Call*); /* NULL: it has a plan */
  /* The outputs' shapes by those of the inputs, where no other data is read than `num_nodes`: false where it is not
   * known, or the inputs do not fit. NULL: none are told before a run. */
  bool (*shapes)(const Call*, Shape* outputs) = NULL;
  /* For an operator with one output that is one of ../kernels.h's kernels: checks the inputs' shapes and fills in a plan of
   * zeroes. A binding may ask when it has no data yet, and for each run. False with an error set where something does
   * not fit. */
  bool (*plan)(Call*, Plan*) = NULL;
};

static inline bool is_optional(const char* attribute) { return attribute[1] == '?'; }
static inline const char* attribute_name(const char* attribute) { return attribute + 2; }

/* How to run a kernel for a call. `before` and `after` stand around it, both or neither; their memory is temporary_bytes,
 * at a multiple of 64. `after` follows on each `piece` of the kernel's items, on its thread, while it is in the cache. */
struct Plan {
  const BgnnKernel* kernel;
  union {
#define BGNN_UNION_MEMBER(function, Args, FIELDS) Args function;
    BGNN_KERNELS(BGNN_UNION_MEMBER)
#undef BGNN_UNION_MEMBER
  } args;
  Shape shape;  /* the output's */
  void* out;    /* of args: where the output's address is stored */
  void* result; /* the output */
  float scale;  /* of an output in 8 bits; 0: it is none */
  int32_t zero;
  int64_t temporary_bytes, piece;
  void (*before)(const Call*, Plan*, void* temporary);
  void (*after)(const Call*, const Plan*, const void* temporary, int64_t first, int64_t last);
};

/* A node of the model. */
struct Kernel {
  const OpKind* kind;
  const GraphKernels* graph;
  const BgnnKernels* binary;
  const DenseKernels* dense; /* set by those that use it */
  Attribute attribute[kMaxAttributes]; /* in the entry's order */
  char node[64];
  void* prepared; /* what `check` made of the attributes for `compute`; freed with the node */
};

struct Input {
  const void* data; /* NULL: an optional input that is missing */
  int64_t dim[kMaxRank];
  int64_t count; /* of elements */
  int rank;
  uint8_t flip; /* the bits of its codes that are turned over: 0 or 0x80 */
};

struct Call {
  const Kernel* kernel;
  Input in[kMaxInputs];
  bool failed;
  bool gaps; /* edges may be -1, -1: not there; and CSR arrays longer than indptr says, up to all edges there could be */
};

/* Ends the call with an error that names the operator and its node. Returns false. */
bool fail(Call*, const char* format, ...) __attribute__((format(printf, 2, 3)));

#define REQUIRE(condition, ...)                         \
  do {                                                  \
    if (!(condition)) return fail(call, __VA_ARGS__);   \
  } while (0)

/* Makes output `index`. False with an error set where that fails; *data is NULL where nobody wants an optional one. */
bool make_output(Call*, int index, int rank, const int64_t* dims, void** data);

/* Clears the elements from..to of an output, which is no memory at all where the output has none. */
static inline void clear(void* data, int64_t from, int64_t to, int64_t size) {
  if (from < to) memset((char*)data + from * size, 0, (size_t)((to - from) * size));
}

/* fn(data, 0) .. fn(data, tasks - 1), on the runtime's threads where there is more than one task. */
bool parallel(Call*, int64_t tasks, void (*fn)(void* data, size_t task), void* data);

/* Memory at a multiple of 64, from the session's own arena where there is one; NULL with an error set
 * where there is none. */
void* allocate(Call*, int64_t bytes);
void release(Call*, void*); /* what `allocate` gave, or NULL */

/* ---- what bindings ask for (run.cc) ---- */

/* Takes an input's rank, if it has one of those that the operator accepts. */
bool read_rank(Call*, int input, int64_t rank);

/* Sets an input's count by its rank and dimensions. */
bool count_elements(Call*, int input);

/* Whether there is anything to compute: a graph may have no edges. */
bool has_elements(const Plan*);

/* A run of a plan, for which a binding brings memory, and threads that call run_items. Takes the output, and the memory
 * that the plan and its kernel ask for. The number of items, or -1 with an error set. */
int64_t begin_plan(Call*, Plan*, void* result, void* temporary, void* shared);
void run_items(const Call*, const Plan*, const void* temporary, const void* shared, void* scratch, int64_t first,
               int64_t last);

#endif
