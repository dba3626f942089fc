/* The operators on points and signs: each a plan for one of ../kernels.h. */
#ifndef BGNN_BINARY_H
#define BGNN_BINARY_H

#include "call.h"

const char* check_channels(Kernel*); /* attribute 0 */
const char* check_hamming_knn(Kernel*);
bool hamming_knn(Call*, Plan*);
bool knn(Call*, Plan*);
bool xor_edge_conv(Call*, Plan*);
bool gather_max(Call*, Plan*);
bool bin_edge_conv(Call*, Plan*);
bool edge_max(Call*, Plan*);
bool dense_pool(Call*, Plan*);
bool scaled_pool(Call*, Plan*);
bool pack(Call*, Plan*);
bool unpack(Call*, Plan*);
bool binary_dense(Call*, Plan*);
bool binary_dense_bits(Call*, Plan*);
bool packed_max(Call*, Plan*);

/* ---- for plans of other operators (../delegate/lce_ops.cc) ---- */

static const int64_t kMostBytes = INT32_MAX, kMostExactFloat = 1 << 24;

static inline int64_t words_of(int64_t channels) { return (channels + 31) / 32; }

/* All dimensions but the last. */
static inline int64_t rows_of(const Input* x) { return x->count / x->dim[x->rank - 1]; }

/* Input's dimension must equal `expected`, which `why` names. */
bool dimension(Call*, int input, int axis, int64_t expected, const char* why);

/* The last axis of input 0 holds the words of `channels` channels. */
bool is_packed(Call*, int64_t channels);

/* No input that is there is empty. */
bool not_empty(Call*);

/* The output's shape, and the field of plan->args for its address. */
bool set_output(Call*, Plan*, void* field, int rank, const int64_t* dims);

/* For plan->args.bconv2d with a multiplier and a bias, when the output's shape is set: rounds as LCE does, which is not
 * as the kernel does, and to int8 where the plan has a scale. */
bool plan_multiplier(Call*, Plan*);

/* The nearest integer in [-128, 127], halves away from zero; NaN gives -128. */
int8_t to_int8(double value);

#endif
