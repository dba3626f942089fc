/* Operators as nodes of the delegate: those of ../ops/op_list.h, "Bgnn" and the list's name, and LCE's (lce_ops.cc). */
#ifndef BGNN_NODES_H
#define BGNN_NODES_H

#include "../ops/call.h"
#include "pool.h"
#include "profile.h"
#include "tflite_abi.h"

struct Delegate {
  TfLiteDelegate tflite; /* first: what the runtime sees */
  const BgnnKernels* kernels;
  Pool* pool;
  ProfiledGraph graph;
};

extern const OpKind kLceKinds[];
extern const int kLceKindCount;

/* Fills in what runs an operator of the lists; false where `file` names none of them. */
bool register_node(const TfLiteRegistration* file, TfLiteRegistration* ours);

/* What the file says of a call's tensors, for operators whose types follow from it. */
const TfLiteTensor* file_input(const Call*, int input); /* NULL: an optional one that is missing */
const TfLiteTensor* file_output(const Call*);

const char* type_name(int type); /* a TfLiteType */

#endif
