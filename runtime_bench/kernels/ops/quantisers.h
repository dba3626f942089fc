/* Attributes that are quantisers: their checks, and what operators make of them. */
#ifndef BGNN_QUANTISERS_H
#define BGNN_QUANTISERS_H

#include "call.h"
#include "graph_kernels.h"

static const char kNoScale[] = "a scale is not a positive number of an ordinary size (msg_scale and score_scale may be 0)";
static const char kNoZero[] = "a zero point is outside of [0, 255]";
static const char kNoRange[] = "low and high are not codes in [0, 255], in this order";

static inline bool is_code(int64_t v) { return v >= 0 && v <= 255; }
static inline bool is_scale(float v) { return v >= 1e-30f && v <= 1e30f; }

/* Consecutive attributes (scale, zero point, low, high) at `at`. */
static inline const char* check_quantiser(const Kernel* kernel, int at, bool may_be_none) {
  const Attribute* a = kernel->attribute + at;
  if (!is_scale(a[0].f) && !(may_be_none && a[0].f == 0)) return kNoScale;
  if (!is_code(a[1].i)) return kNoZero;
  return is_code(a[2].i) && is_code(a[3].i) && a[2].i <= a[3].i ? NULL : kNoRange;
}

static inline Quantiser quantiser(const Kernel* kernel, int at) {
  const Attribute* a = kernel->attribute + at;
  return {a[0].f, (int32_t)a[1].i, (int32_t)a[2].i, (int32_t)a[3].i};
}

#endif
