#ifndef BGNN_OP_LIST_H
#define BGNN_OP_LIST_H

#include "call.h"

extern const OpKind kOpKinds[];
extern const int kOpKindCount;

#endif
