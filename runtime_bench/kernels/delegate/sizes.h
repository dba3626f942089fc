/* What the graph's shapes are while it is prepared: sizes that users give by resizing inputs. */
#ifndef BGNN_SIZES_H
#define BGNN_SIZES_H

#include <stdint.h>

#include "tflite_abi.h"

/* Whether a tensor's numbers are there when the graph is prepared. */
bool is_known(const TfLiteTensor* tensor);

/* Why an operator's output cannot take the shape that follows from its inputs: its memory is the file's, or has the
 * file's size whatever its shape. NULL where it can. */
const char* fixed_memory(const TfLiteTensor* output);

/* Gives a tensor a shape. */
TfLiteStatus resize_tensor(TfLiteContext* context, int index, int rank, const int64_t* dims);

/* Fills in what runs a file's BgnnSizes; false where `file` is another operator. */
bool register_sizes(const TfLiteRegistration* file, TfLiteRegistration* ours);

#endif
