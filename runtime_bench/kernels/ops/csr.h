/* Edge lists: checking, self loops, sorting by destination. */
#ifndef BGNN_CSR_H
#define BGNN_CSR_H

#include "call.h"

bool with_self_loops(Call*);
bool coo_to_csr(Call*);
bool index_to_csr(Call*);
const char* check_coo_to_csr(Kernel*);

#endif
