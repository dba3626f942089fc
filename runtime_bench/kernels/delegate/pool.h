/* The delegate's threads. They start when a run first wants them and sleep between runs. */
#ifndef BGNN_POOL_H
#define BGNN_POOL_H

#include <stddef.h>
#include <stdint.h>

enum { kMaxThreads = 64 };

struct Pool;

/* NULL where memory is out. */
Pool* pool_create(void);
void pool_destroy(Pool* pool);

/* Calls task(data, thread, first, last) until the items [0, items) are done, in pieces, on up to `threads` threads
 * of which the caller is one; `thread` is below `threads` and differs between calls that run at the same time.
 * Where the pool is in use by another caller, or no thread can be had, the caller does all of it. */
void pool_run(Pool* pool, int threads, int64_t items,
              void (*task)(void* data, int thread, int64_t first, int64_t last), void* data);

#endif
