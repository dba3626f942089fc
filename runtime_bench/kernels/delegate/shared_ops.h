/* The operators of ../ops as nodes of the delegate: "Bgnn" and the list's name. */
#ifndef BGNN_SHARED_OPS_H
#define BGNN_SHARED_OPS_H

#include "../kernels.h"
#include "pool.h"
#include "profile.h"
#include "tflite_abi.h"

struct Delegate {
  TfLiteDelegate tflite; /* first: what the runtime sees */
  const BgnnKernels* kernels;
  Pool* pool;
  ProfiledGraph graph;
};

/* Fills in what runs an operator of the list; false where `file` names none of them. */
bool register_shared(const TfLiteRegistration* file, TfLiteRegistration* ours);

#endif
