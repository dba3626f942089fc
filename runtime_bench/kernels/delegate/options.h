/* Reading an operator's options: a flexbuffer map of integers, from a file that nobody has checked. */
#ifndef BGNN_OPTIONS_H
#define BGNN_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

enum OptionResult { kOptionRead, kOptionMissing, kOptionNoInteger, kOptionsBroken };

/* The integer under `key` in the flexbuffer `data[0, size)`. kOptionMissing: the map has no such key;
 * kOptionNoInteger: it holds something else there; kOptionsBroken: the bytes are no flexbuffer map. Reads nothing
 * outside of the bytes, whatever they are. */
OptionResult read_option(const uint8_t* data, size_t size, const char* key, int64_t* value);

/* The same of a text, which ends with a 0 within `most` bytes; kOptionNoInteger: it is none, or longer. */
OptionResult read_text(const uint8_t* data, size_t size, const char* key, char* text, size_t most);

#endif
