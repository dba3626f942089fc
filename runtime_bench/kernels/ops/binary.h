/* The operators on signs, by the kernels that the TFLite delegate has too (../kernels.h). */
#ifndef BGNN_BINARY_H
#define BGNN_BINARY_H

#include "call.h"

const char* check_channels(Kernel*); /* attribute 0 */
bool hamming_knn(Call*);
bool knn(Call*);
bool xor_edge_conv(Call*);
bool gather_max(Call*);
bool bin_edge_conv(Call*);
bool edge_max(Call*);
bool dense_pool(Call*);
bool scaled_pool(Call*);
bool pack(Call*);
bool unpack(Call*);
bool binary_dense(Call*);
bool binary_dense_bits(Call*);
bool packed_max(Call*);

#endif
