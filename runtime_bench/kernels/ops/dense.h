/* Dense layers on codes, and what makes codes: the operators QLinear, QLinearFloat and Quantize. */
#ifndef BGNN_DENSE_H
#define BGNN_DENSE_H

#include "call.h"

const char* check_q_linear(Kernel*);
const char* check_q_linear_float(Kernel*);
bool q_linear(Call*);
const char* check_quantize(Kernel*);
bool quantize(Call*);

#endif
