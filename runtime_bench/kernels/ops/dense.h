/* Dense layers on codes: the operators QLinear and QLinearFloat. */
#ifndef BGNN_DENSE_H
#define BGNN_DENSE_H

#include "call.h"

const char* check_q_linear(Kernel*);
const char* check_q_linear_float(Kernel*);
bool q_linear(Call*);

#endif
