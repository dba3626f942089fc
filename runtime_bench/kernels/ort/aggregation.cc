#include "aggregation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph_kernels.h"

/* ---- the graph ---- */

/* Inputs `at` and `at + 1` are indptr and indices, of x's rows; `edges` (or -1) and `weight` (or -1) inputs as well. */
static bool read_graph(Call* call, int at, int weight, int edges, Csr* csr, int64_t* most_entries) {
  const Input *indptr = &call->in[at], *indices = &call->in[at + 1];
  REQUIRE(indptr->count >= 1, "indptr is empty: it has one number more than there are nodes");
  csr->indptr = (const int32_t*)indptr->data;
  csr->indices = (const int32_t*)indices->data;
  csr->nodes = indptr->count - 1;
  csr->entries = indices->count;
  csr->edges = edges >= 0 ? (const int32_t*)call->in[edges].data : NULL;
  REQUIRE(csr->entries < INT32_MAX && csr->nodes < INT32_MAX, "the graph has more than 2^31 - 2 nodes or entries");
  REQUIRE(csr->indptr[0] == 0 && csr->indptr[csr->nodes] == csr->entries,
          "indptr goes from %d to %d, not from 0 to the %lld indices", csr->indptr[0], csr->indptr[csr->nodes],
          (long long)csr->entries);
  int64_t most = 0;
  bool rising = true;
  for (int64_t i = 0; i < csr->nodes; ++i) {
    const int64_t entries = (int64_t)csr->indptr[i + 1] - csr->indptr[i];
    rising &= entries >= 0;
    most = entries > most ? entries : most;
  }
  REQUIRE(rising, "indptr falls");
  *most_entries = most;
  if (csr->edges) {
    REQUIRE(call->in[edges].count == csr->entries, "edges has %lld numbers, not one for each of the %lld indices",
            (long long)call->in[edges].count, (long long)csr->entries);
    REQUIRE(call->in[weight].data, "edges without weight");
  }
  if (weight >= 0 && call->in[weight].data) {
    const Input* w = &call->in[weight];
    REQUIRE(w->rank == 1 || w->dim[1] == 1, "weight must be [edges] or [edges, 1]");
    REQUIRE(w->count == csr->entries, "weight has %lld numbers, not one for each of the %lld edges",
            (long long)w->count, (long long)csr->entries);
  }
  return true;
}

/* ---- tasks ---- */

/* About as much memory traffic as is worth another thread's wake-up, and enough tasks to even out the threads. */
static const int64_t kTaskBytes = 256 * 1024, kMostTasks = 128;

typedef void (*RunNodes)(const void* args, int64_t task, int64_t first, int64_t last);

struct Tasks {
  const GraphKernels* kernels;
  const Csr* csr;
  int64_t rows, count;
  RunNodes run;
  const void* args;
  int64_t bad_index, bad_edge; /* an entry, or -1 */
};

/* The first node of a task: nodes and entries both count as work. */
static int64_t first_node(const Csr* csr, int64_t task, int64_t tasks) {
  const int64_t work = (csr->nodes + csr->entries) / tasks * task;
  if (task >= tasks) return csr->nodes;
  int64_t low = 0, high = csr->nodes;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (csr->indptr[middle] + middle < work) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

static void run_task(void* data, size_t task) {
  Tasks* t = (Tasks*)data;
  const Csr* csr = t->csr;
  const int64_t first = first_node(csr, (int64_t)task, t->count), last = first_node(csr, (int64_t)task + 1, t->count);
  const int64_t begin = csr->indptr[first], end = csr->indptr[last];
  int64_t bad = t->kernels->first_bad_index(csr->indices, begin, end, t->rows);
  if (bad < end) {
    __atomic_store_n(&t->bad_index, bad, __ATOMIC_RELAXED);
    return;
  }
  bad = csr->edges ? t->kernels->first_bad_index(csr->edges, begin, end, csr->entries) : end;
  if (bad < end) {
    __atomic_store_n(&t->bad_edge, bad, __ATOMIC_RELAXED);
    return;
  }
  t->run(t->args, (int64_t)task, first, last);
}

static int64_t task_count(const Csr* csr, int64_t row_bytes) {
  const int64_t work = csr->nodes + csr->entries, least = kTaskBytes / (row_bytes + 16) + 1;
  const int64_t tasks = work / least;
  return tasks < 1 ? 1 : tasks > kMostTasks ? kMostTasks : tasks;
}

/* All nodes, after a check of every index against x's `rows`. */
static bool run_nodes(Call* call, const Csr* csr, int64_t rows, int64_t tasks, RunNodes run, const void* args) {
  Tasks t = {call->kernel->graph, csr, rows, tasks, run, args, -1, -1};
  if (!parallel(call, tasks, run_task, &t)) return false;
  REQUIRE(t.bad_index < 0, "indices[%lld] = %d is not one of the %lld rows of x", (long long)t.bad_index,
          csr->indices[t.bad_index], (long long)rows);
  REQUIRE(t.bad_edge < 0, "edges[%lld] = %d is not one of the %lld edges", (long long)t.bad_edge,
          csr->edges[t.bad_edge], (long long)csr->entries);
  return true;
}

/* ---- QAggregate ---- */

enum { kXScale, kXZp, kWScale, kWZp, kMessageScale, kMessageZp, kYScale, kYZp, kLow, kHigh };

static bool is_code(int64_t v) { return v >= 0 && v <= 255; }
static bool is_scale(float v) { return v >= 1e-30f && v <= 1e30f; }

const char* check_q_aggregate(Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  if (!is_scale(a[kXScale].f) || !is_scale(a[kWScale].f) || !is_scale(a[kYScale].f)) {
    return "x_scale, w_scale and y_scale must be positive numbers of an ordinary size";
  }
  if (a[kMessageScale].f != 0 && !is_scale(a[kMessageScale].f)) {
    return "msg_scale must be 0 (messages are not requantised) or a positive number of an ordinary size";
  }
  if (!is_code(a[kXZp].i) || !is_code(a[kWZp].i) || !is_code(a[kMessageZp].i) || !is_code(a[kYZp].i)) {
    return "zero points must be in [0, 255]";
  }
  if (!is_code(a[kLow].i) || !is_code(a[kHigh].i) || a[kLow].i > a[kHigh].i) {
    return "low and high must be codes in [0, 255], in this order";
  }
  return NULL;
}

static void run_q_aggregate(const void* args, int64_t, int64_t first, int64_t last);

struct QAggregateCall {
  QAggregate args;
  const GraphKernels* kernels;
};

static void run_q_aggregate(const void* args, int64_t, int64_t first, int64_t last) {
  const QAggregateCall* c = (const QAggregateCall*)args;
  c->kernels->q_aggregate(&c->args, first, last);
}

/* The largest |code - zp|. */
static int64_t reach(int64_t zp) { return zp > 255 - zp ? zp : 255 - zp; }

bool q_aggregate(Call* call) {
  const Input *x = &call->in[0], *weight = &call->in[3];
  const Attribute* at = call->kernel->attribute;
  QAggregateCall c;
  memset(&c, 0, sizeof c);
  QAggregate* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_graph(call, 1, 3, 4, &a->csr, &most)) return false;
  a->x = (const uint8_t*)x->data;
  a->weight = (const uint8_t*)weight->data;
  a->width = x->dim[1];
  a->x_zp = (int32_t)at[kXZp].i;
  a->w_zp = (int32_t)at[kWZp].i;
  const int32_t low = (int32_t)at[kLow].i, high = (int32_t)at[kHigh].i;
  const float product_scale = a->weight ? at[kXScale].f * at[kWScale].f : at[kXScale].f;
  const float message_scale = at[kMessageScale].f;
  int64_t largest; /* message */
  if (message_scale != 0) {
    a->message = {product_scale / message_scale, (int32_t)at[kMessageZp].i, low, high};
    a->result = {message_scale / at[kYScale].f, (int32_t)at[kYZp].i, low, high};
    largest = reach(at[kMessageZp].i);
  } else {
    a->result = {product_scale / at[kYScale].f, (int32_t)at[kYZp].i, low, high};
    largest = reach(at[kXZp].i) * (a->weight ? reach(at[kWZp].i) : 1);
  }
  REQUIRE(most <= INT32_MAX / (largest > 255 ? largest : 255),
          "a node has %lld neighbours: their int32 sum could overflow beyond %lld", (long long)most,
          (long long)(INT32_MAX / (largest > 255 ? largest : 255)));
  REQUIRE(isfinite(a->result.multiplier) && isfinite(a->message.multiplier), "the ratio of the scales is infinite");

  const int64_t dims[2] = {a->csr.nodes, a->width};
  void* out;
  if (!make_output(call, 0, 2, dims, &out)) return false;
  a->out = (uint8_t*)out;
  uint8_t* table = NULL;
  if (message_scale != 0) {
    if (!(table = (uint8_t*)allocate(call, kMessageTableBytes))) return false;
    fill_message_table(a, table);
    a->table = table;
  }
  const bool done =
      run_nodes(call, &a->csr, x->dim[0], task_count(&a->csr, a->width), run_q_aggregate, &c);
  free(table);
  return done;
}

/* ---- Aggregate ---- */

static int reduce_of(const char* name) {
  return strcmp(name, "sum") == 0 ? kSum : strcmp(name, "mean") == 0 ? kMean : strcmp(name, "max") == 0 ? kMax : -1;
}

const char* check_aggregate(Kernel* kernel) {
  return reduce_of(kernel->attribute[0].s) >= 0 ? NULL : "reduce is none of 'sum', 'mean' and 'max'";
}

struct AggregateCall {
  Aggregate args;
  const GraphKernels* kernels;
};

static void run_aggregate(const void* args, int64_t, int64_t first, int64_t last) {
  const AggregateCall* c = (const AggregateCall*)args;
  c->kernels->aggregate(&c->args, first, last);
}

bool aggregate(Call* call) {
  const Input* x = &call->in[0];
  AggregateCall c;
  memset(&c, 0, sizeof c);
  Aggregate* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_graph(call, 1, 3, 4, &a->csr, &most)) return false;
  a->x = (const float*)x->data;
  a->weight = (const float*)call->in[3].data;
  a->width = x->dim[1];
  a->reduce = reduce_of(call->kernel->attribute[0].s);
  const int64_t dims[2] = {a->csr.nodes, a->width};
  void* out;
  if (!make_output(call, 0, 2, dims, &out)) return false;
  a->out = (float*)out;
  return run_nodes(call, &a->csr, x->dim[0], task_count(&a->csr, a->width * 4), run_aggregate, &c);
}

/* ---- AggregateInt32 ---- */

struct AggregateInt32Call {
  AggregateInt32 args;
  const GraphKernels* kernels;
};

static void run_aggregate_int32(const void* args, int64_t, int64_t first, int64_t last) {
  const AggregateInt32Call* c = (const AggregateInt32Call*)args;
  c->kernels->aggregate_int32(&c->args, first, last);
}

bool aggregate_int32(Call* call) {
  const Input* x = &call->in[0];
  AggregateInt32Call c;
  memset(&c, 0, sizeof c);
  AggregateInt32* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_graph(call, 1, -1, -1, &a->csr, &most)) return false;
  a->x = (const int32_t*)x->data;
  a->width = x->dim[1];
  const int64_t dims[2] = {a->csr.nodes, a->width};
  void* out;
  if (!make_output(call, 0, 2, dims, &out)) return false;
  a->out = (int32_t*)out;
  return run_nodes(call, &a->csr, x->dim[0], task_count(&a->csr, a->width * 4), run_aggregate_int32, &c);
}

/* ---- GatAggregate ---- */

const char* check_gat_aggregate(Kernel* kernel) {
  return isfinite(kernel->attribute[0].f) ? NULL : "negative_slope must be a finite number";
}

struct GatCall {
  GatAggregate args;
  const GraphKernels* kernels;
  int64_t stride; /* floats of one task's scratch */
  float* scratch;
};

static void run_gat(const void* args, int64_t task, int64_t first, int64_t last) {
  const GatCall* c = (const GatCall*)args;
  c->kernels->gat_aggregate(&c->args, c->scratch + task * c->stride, first, last);
}

bool gat_aggregate(Call* call) {
  const Input *x = &call->in[0], *from = &call->in[3], *to = &call->in[4];
  GatCall c;
  memset(&c, 0, sizeof c);
  GatAggregate* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_graph(call, 1, -1, -1, &a->csr, &most)) return false;
  a->heads = x->dim[1];
  a->channels = x->dim[2];
  REQUIRE(from->dim[0] == x->dim[0] && from->dim[1] == a->heads,
          "alpha_source is [%lld, %lld], not [rows of x, heads] = [%lld, %lld]", (long long)from->dim[0],
          (long long)from->dim[1], (long long)x->dim[0], (long long)a->heads);
  REQUIRE(to->dim[0] == a->csr.nodes && to->dim[1] == a->heads,
          "alpha_target is [%lld, %lld], not [nodes, heads] = [%lld, %lld]", (long long)to->dim[0],
          (long long)to->dim[1], (long long)a->csr.nodes, (long long)a->heads);
  a->x = (const float*)x->data;
  a->from = (const float*)from->data;
  a->to = (const float*)to->data;
  a->slope = call->kernel->attribute[0].f;
  const int64_t dims[3] = {a->csr.nodes, a->heads, a->channels};
  void* out;
  if (!make_output(call, 0, 3, dims, &out)) return false;
  a->out = (float*)out;
  const int64_t tasks = task_count(&a->csr, a->heads * a->channels * 4);
  int64_t bytes;
  REQUIRE(!__builtin_mul_overflow((most + 2) * tasks, a->heads * 4 + 64, &bytes), "x is too large");
  c.stride = ((most + 2) * a->heads + 15) / 16 * 16;
  if (!(c.scratch = (float*)allocate(call, c.stride * tasks * 4))) return false;
  const bool done = run_nodes(call, &a->csr, x->dim[0], tasks, run_gat, &c);
  free(c.scratch);
  return done;
}
