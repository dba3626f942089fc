/* What the graph's shapes are while it is prepared: sizes that users give by resizing inputs. */
#ifndef BGNN_SIZES_H
#define BGNN_SIZES_H

#include <stdint.h>

#include "tflite_abi.h"

/* Whether a tensor's numbers are there when the graph is prepared. */
bool is_known(const TfLiteTensor* tensor);

/* Gives a tensor a shape. */
TfLiteStatus resize_tensor(TfLiteContext* context, int index, int rank, const int64_t* dims);

/* Fills in what runs a file's BgnnSizes; false where `file` is another operator. */
bool register_sizes(const TfLiteRegistration* file, TfLiteRegistration* ours);

#endif
