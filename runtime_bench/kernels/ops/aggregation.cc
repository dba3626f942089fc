#include "aggregation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph_kernels.h"
#include "quantisers.h"
#include "table.h"

/* ---- the graph ---- */

/* Inputs 1 and 2 are indptr and indices; 3 and 4, where `weighted`, the optional weight and edges. */
static bool read_graph(Call* call, bool weighted, Csr* csr, int64_t* most_entries) {
  const Input *indptr = &call->in[1], *indices = &call->in[2];
  REQUIRE(indptr->count >= 1, "indptr is empty: it has one number more than there are nodes");
  csr->indptr = (const int32_t*)indptr->data;
  csr->indices = (const int32_t*)indices->data;
  csr->edges = NULL;
  csr->nodes = indptr->count - 1;
  const int64_t places = indices->count;
  REQUIRE(places < INT32_MAX && csr->nodes < INT32_MAX, "the graph has more than 2^31 - 2 nodes or entries");
  csr->entries = csr->indptr[csr->nodes];
  REQUIRE(csr->indptr[0] == 0 && (csr->entries == places || (call->gaps && csr->entries >= 0 && csr->entries < places)),
          "indptr goes from %d to %d, not from 0 to the %lld indices", csr->indptr[0], csr->indptr[csr->nodes],
          (long long)places);
  int64_t most = 0;
  bool rising = true;
  for (int64_t i = 0; i < csr->nodes; ++i) {
    const int64_t entries = (int64_t)csr->indptr[i + 1] - csr->indptr[i];
    rising &= entries >= 0;
    most = entries > most ? entries : most;
  }
  REQUIRE(rising, "indptr falls");
  *most_entries = most;
  if (!weighted) return true;

  const Input *weight = &call->in[3], *edges = &call->in[4];
  REQUIRE(!edges->data || weight->data, "edges without weight");
  REQUIRE(!edges->data || edges->count == places, "edges has %lld numbers, not one for each of the %lld indices",
          (long long)edges->count, (long long)places);
  REQUIRE(weight->rank < 2 || weight->dim[1] == 1, "weight must be [edges] or [edges, 1]");
  REQUIRE(!weight->data || weight->count == places, "weight has %lld numbers, not one for each of the %lld edges",
          (long long)weight->count, (long long)places);
  csr->edges = (const int32_t*)edges->data;
  return true;
}

/* The numbers in one row of x, [rows, ...]. */
static int64_t width_of(const Input* x) {
  int64_t width = 1;
  for (int i = 1; i < x->rank; ++i) width *= x->dim[i];
  return width;
}

/* Output 0: x's shape with a row for each node. */
static bool make_rows(Call* call, const Input* x, const Csr* csr, void** out) {
  int64_t dims[kMaxRank];
  memcpy(dims, x->dim, sizeof dims);
  dims[0] = csr->nodes;
  return make_output(call, 0, x->rank, dims, out);
}

/* ---- tasks ---- */

/* About as much memory traffic as is worth another thread's wake-up, and enough tasks to even out the threads. */
static const int64_t kTaskBytes = 256 * 1024, kMostTasks = 128;

typedef void (*RunNodes)(const void* args, int64_t task, int64_t first, int64_t last);

struct Tasks {
  const GraphKernels* kernels;
  const Csr* csr;
  int64_t rows, edges, count;
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
  bad = csr->edges ? t->kernels->first_bad_index(csr->edges, begin, end, t->edges) : end;
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
  const int64_t edges = call->in[2].count; /* and of the weights, where there are any */
  Tasks t = {call->kernel->graph, csr, rows, edges, tasks, run, args, -1, -1};
  if (!parallel(call, tasks, run_task, &t)) return false;
  REQUIRE(t.bad_index < 0, "indices[%lld] = %d is not one of the %lld rows of x", (long long)t.bad_index,
          csr->indices[t.bad_index], (long long)rows);
  REQUIRE(t.bad_edge < 0, "edges[%lld] = %d is not one of the %lld edges", (long long)t.bad_edge,
          csr->edges[t.bad_edge], (long long)edges);
  return true;
}

/* ---- attributes ---- */

static int reduce_of(const char* name) {
  return strcmp(name, "sum") == 0 ? kSum : strcmp(name, "mean") == 0 ? kMean : strcmp(name, "max") == 0 ? kMax : -1;
}

static const char kNoReduce[] = "reduce is none of 'sum', 'mean' and 'max'";
static Requantise requantise_to(const Kernel* kernel, int at, float multiplier) {
  const Attribute* a = kernel->attribute + at;
  return {multiplier, (int32_t)a[1].i, (int32_t)a[2].i, (int32_t)a[3].i};
}

/* The largest |code - zero|. */
static int64_t reach(int64_t zero) { return zero > 255 - zero ? zero : 255 - zero; }

/* Sums of `most` numbers up to `largest` (at least a byte, which is what is summed) fit int32. */
static bool sums_fit(Call* call, int64_t most, int64_t largest) {
  const int64_t limit = INT32_MAX / (largest > 255 ? largest : 255);
  REQUIRE(most <= limit, "a node has %lld neighbours; beyond %lld their int32 sum could overflow", (long long)most,
          (long long)limit);
  return true;
}

/* ---- QAggregate ---- */

enum { kReduce, kXScale, kXZero, kWScale, kWZero, kMessage, kResult = kMessage + 4 };

static Requantise message_of(const Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  return requantise_to(kernel, kMessage, a[kXScale].f * a[kWScale].f / a[kMessage].f);
}

/* The multiplier may be no number: a call with weights is refused then. */
static const char* prepare_messages(Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  if (a[kMessage].f == 0) return NULL;
  const Requantise message = message_of(kernel);
  if (!(message.multiplier > 0 && isfinite(message.multiplier))) return NULL;
  kernel->prepared = aligned_alloc(alignof(MessageTables), sizeof(MessageTables));
  if (!kernel->prepared) return "no memory for its tables";
  fill_message_tables((int32_t)a[kXZero].i, (int32_t)a[kWZero].i, &message, (MessageTables*)kernel->prepared);
  return NULL;
}

const char* check_q_aggregate(Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  if (reduce_of(a[kReduce].s) < 0) return kNoReduce;
  if (!is_scale(a[kXScale].f) || !is_scale(a[kWScale].f)) return kNoScale;
  if (!is_code(a[kXZero].i) || !is_code(a[kWZero].i)) return kNoZero;
  const char* reason = check_quantiser(kernel, kMessage, true);
  if (!reason) reason = check_quantiser(kernel, kResult, false);
  return reason ? reason : prepare_messages(kernel);
}

struct QAggregateCall {
  QAggregate args;
  QTable table; /* of the result's codes, in place; NULL: none */
  int64_t rows; /* of it, for each node */
  const GraphKernels* kernels;
};

/* With a table, in pieces: their codes are still in the cache when they are looked up. */
static const int64_t kPieceBytes = 16 * 1024;

static void run_q_aggregate(const void* args, int64_t, int64_t first, int64_t last) {
  const QAggregateCall* c = (const QAggregateCall*)args;
  const int64_t piece = c->table.table ? kPieceBytes / (c->args.width + 1) + 64 : last - first;
  for (int64_t next; first < last; first = next) {
    next = last - first < piece ? last : first + piece;
    c->kernels->q_aggregate(&c->args, first, next);
    if (c->table.table) c->kernels->q_table(&c->table, first * c->rows, next * c->rows);
  }
}

/* Without weights a message depends on its source alone: all rows' messages are made once. */
struct Messages {
  const uint8_t* x;
  uint8_t* out;
  uint8_t table[256];
  int64_t count, tasks;
};

static void run_messages(void* data, size_t task) {
  const Messages* m = (const Messages*)data;
  const int64_t last = m->count * ((int64_t)task + 1) / m->tasks;
  for (int64_t i = m->count * (int64_t)task / m->tasks; i < last; ++i) m->out[i] = m->table[m->x[i]];
}

/* What `requantize` of the dialect makes of each code: real numbers, unlike with weights. */
static bool make_messages(Call* call, QAggregate* a, const Input* x, uint8_t** memory) {
  const Attribute* at = call->kernel->attribute;
  Messages m;
  const Quantiser q = quantiser(call->kernel, kMessage);
  for (int i = 0; i < 256; ++i) {
    float real = (float)(i - a->x_zp) * at[kXScale].f / q.scale;
    const float low = (float)(q.low - q.zp), high = (float)(q.high - q.zp);
    real = real > low ? real : low;
    real = real < high ? real : high;
    m.table[i] = (uint8_t)((int)nearbyintf(real) + q.zp);
  }
  if (!(*memory = (uint8_t*)allocate(call, x->count))) return false;
  m.x = a->x;
  m.out = *memory;
  m.count = x->count;
  m.tasks = m.count / kTaskBytes + 1;
  a->x = m.out;
  a->x_zp = q.zp;
  return parallel(call, m.tasks, run_messages, &m);
}

/* Of some of the weights: are there so few without a line that leaving it for them costs less than tables for all? */
static bool mostly_on_lines(const QAggregate* a) {
  static const int64_t kSample = 1024, kOneIn = 24;
  const int64_t count = a->csr.entries < kSample ? a->csr.entries : kSample;
  int64_t without = 0;
  for (int64_t i = 0; i < count; ++i) {
    without += a->messages->missing[a->weight[a->csr.entries / count * i]];
  }
  return without * kOneIn <= count;
}

bool q_aggregate(Call* call) {
  const Kernel* kernel = call->kernel;
  const Input *x = &call->in[0], *weight = &call->in[3], *table = &call->in[5];
  const Attribute* at = kernel->attribute;
  QAggregateCall c;
  memset(&c, 0, sizeof c);
  QAggregate* a = &c.args;
  c.kernels = kernel->graph;
  int64_t most;
  if (!read_graph(call, true, &a->csr, &most)) return false;
  a->x = (const uint8_t*)x->data;
  a->weight = (const uint8_t*)weight->data;
  a->width = width_of(x);
  a->x_zp = (int32_t)at[kXZero].i;
  a->w_zp = (int32_t)at[kWZero].i;
  a->reduce = reduce_of(at[kReduce].s);
  const float message_scale = at[kMessage].f, product_scale = a->weight ? at[kXScale].f * at[kWScale].f : at[kXScale].f;
  REQUIRE(a->reduce != kMax || (!a->weight && message_scale == 0), "a maximum takes neither weight nor msg_scale");
  a->unit = message_scale != 0 ? message_scale : product_scale;
  a->y_scale = at[kResult].f;
  a->result = requantise_to(kernel, kResult, a->unit / a->y_scale);
  if (message_scale != 0 && a->weight) a->message = message_of(kernel);
  REQUIRE(a->result.multiplier > 0 && isfinite(a->result.multiplier) && isfinite(a->message.multiplier) &&
              (!a->weight || message_scale == 0 || a->message.multiplier > 0),
          "the ratio of the scales is not a float32 number");
  const int64_t largest = message_scale != 0 ? reach(at[kMessage + 1].i)
                                             : reach(a->x_zp) * (a->weight ? reach(a->w_zp) : 1);
  void* out;
  if (!sums_fit(call, most, largest)) return false;
  if (table->data && !read_table(call, x->rank > 1 ? x->dim[x->rank - 1] : 1, table, &c.table)) return false;
  if (!make_rows(call, x, &a->csr, &out)) return false;
  a->out = (uint8_t*)out;
  c.table.x = c.table.out = a->out;
  c.rows = c.table.channels ? a->width / c.table.channels : 0;

  uint8_t* memory = NULL; /* the messages */
  bool done = true;
  if (a->weight && message_scale != 0) {
    a->messages = (const MessageTables*)kernel->prepared;
    a->by_lines = mostly_on_lines(a);
  } else if (message_scale != 0) {
    done = make_messages(call, a, x, &memory);
  }
  done = done && run_nodes(call, &a->csr, x->dim[0], task_count(&a->csr, a->width), run_q_aggregate, &c);
  release(call, memory);
  return done;
}

/* ---- Aggregate, AggregateInt32 ---- */

const char* check_aggregate(Kernel* kernel) { return reduce_of(kernel->attribute[0].s) >= 0 ? NULL : kNoReduce; }

struct AggregateCall {
  Aggregate args;
  void (*run)(const Aggregate*, int64_t first, int64_t last);
};

static void run_aggregate(const void* args, int64_t, int64_t first, int64_t last) {
  const AggregateCall* c = (const AggregateCall*)args;
  c->run(&c->args, first, last);
}

/* Of float32 with weights and a reduction, or of int32. */
bool aggregate(Call* call) {
  const Input* x = &call->in[0];
  const bool whole = call->kernel->kind->outputs[0] == kInt32;
  AggregateCall c;
  memset(&c, 0, sizeof c);
  Aggregate* a = &c.args;
  c.run = whole ? call->kernel->graph->aggregate_int32 : call->kernel->graph->aggregate;
  int64_t most;
  if (!read_graph(call, !whole, &a->csr, &most)) return false;
  a->x = (const float*)x->data;
  a->weight = (const float*)call->in[3].data;
  a->width = width_of(x);
  a->reduce = whole ? kSum : reduce_of(call->kernel->attribute[0].s);
  void* out;
  if (!make_rows(call, x, &a->csr, &out)) return false;
  a->out = (float*)out;
  return run_nodes(call, &a->csr, x->dim[0], task_count(&a->csr, a->width * 4), run_aggregate, &c);
}

/* ---- Degree, EdgeProduct, QEdgeProduct ---- */

bool degree(Call* call) {
  const Input* indptr = &call->in[0];
  REQUIRE(indptr->count >= 1, "indptr is empty: it has one number more than there are nodes");
  const int32_t* at = (const int32_t*)indptr->data;
  const int64_t nodes = indptr->count - 1;
  void* out;
  if (!make_output(call, 0, 1, &nodes, &out)) return false;
  for (int64_t i = 0; i < nodes; ++i) ((float*)out)[i] = (float)((int64_t)at[i + 1] - at[i]);
  return true;
}

struct ProductCall {
  EdgeProduct args;
  const GraphKernels* kernels;
};

static void run_product(const void* args, int64_t, int64_t first, int64_t last) {
  const ProductCall* c = (const ProductCall*)args;
  c->kernels->edge_product(&c->args, first, last);
}

const char* check_q_edge_product(Kernel* kernel) { return check_quantiser(kernel, 0, false); }

/* Codes where the operator has a quantiser. */
bool edge_product(Call* call) {
  const Input *a = &call->in[0], *b = &call->in[3];
  ProductCall c;
  memset(&c, 0, sizeof c);
  c.kernels = call->kernel->graph;
  Csr* csr = &c.args.csr;
  int64_t most;
  if (!read_graph(call, false, csr, &most)) return false;
  REQUIRE(b->count == csr->nodes, "target has %lld numbers, not one for each of the %lld nodes", (long long)b->count,
          (long long)csr->nodes);
  c.args.a = (const float*)a->data;
  c.args.b = (const float*)b->data;
  void* out;
  const int64_t places = call->in[2].count, size = call->kernel->kind->outputs[0] == kUint8 ? 1 : 4;
  if (!make_output(call, 0, 1, &places, &out)) return false;
  clear(out, csr->entries, places, size);
  if (call->kernel->kind->outputs[0] == kUint8) {
    c.args.codes = (uint8_t*)out;
    c.args.quantiser = quantiser(call->kernel, 0);
  } else {
    c.args.out = (float*)out;
  }
  return run_nodes(call, csr, a->count, task_count(csr, 16), run_product, &c);
}

/* ---- SegmentSoftmax, GatAggregate, QGatAggregate ---- */

static int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }

/* Each task's scratch, a multiple of a cache line. */
static bool make_scratch(Call* call, int64_t heads, int64_t width, int64_t most, int64_t tasks, int64_t* stride,
                         float** scratch) {
  int64_t floats, bytes;
  REQUIRE(!__builtin_mul_overflow(most + 1, heads + 1, &floats) && width < INT64_MAX / 16 && floats < INT64_MAX / 16 &&
              !__builtin_mul_overflow(up16(gat_scratch(most, heads, width)), 4 * tasks, &bytes),
          "a node has %lld neighbours and %lld heads: too many", (long long)most, (long long)heads);
  *stride = up16(gat_scratch(most, heads, width));
  *scratch = (float*)allocate(call, bytes);
  return *scratch != NULL;
}

struct SoftmaxCall {
  SegmentSoftmax args;
  const GraphKernels* kernels;
  int64_t stride;
  float* scratch;
};

static void run_softmax(const void* args, int64_t task, int64_t first, int64_t last) {
  const SoftmaxCall* c = (const SoftmaxCall*)args;
  c->kernels->segment_softmax(&c->args, c->scratch + task * c->stride, first, last);
}

bool segment_softmax(Call* call) {
  const Input* values = &call->in[0];
  SoftmaxCall c;
  memset(&c, 0, sizeof c);
  SegmentSoftmax* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_graph(call, false, &a->csr, &most)) return false;
  REQUIRE(values->dim[0] == call->in[2].count, "values has %lld rows, not one for each of the %lld edges",
          (long long)values->dim[0], (long long)call->in[2].count);
  a->values = (const float*)values->data;
  a->heads = width_of(values);
  void* out;
  if (!make_output(call, 0, values->rank, values->dim, &out)) return false;
  a->out = (float*)out;
  /* An edge that two entries name would leave another one's row unwritten. */
  clear(out, 0, values->count, 4);
  const int64_t tasks = task_count(&a->csr, a->heads * 8);
  if (!make_scratch(call, a->heads, 0, most, tasks, &c.stride, &c.scratch)) return false;
  const bool done = run_nodes(call, &a->csr, values->dim[0], tasks, run_softmax, &c);
  release(call, c.scratch);
  return done;
}

struct GatCall {
  GatAggregate args;
  const GraphKernels* kernels;
  int64_t stride;
  float* scratch;
};

static void run_gat(const void* args, int64_t task, int64_t first, int64_t last) {
  const GatCall* c = (const GatCall*)args;
  c->kernels->gat_aggregate(&c->args, c->scratch + task * c->stride, first, last);
}

/* x, the graph and the scores: what both forms share. */
static bool read_attention(Call* call, GatAggregate* a, int64_t* most) {
  const Input *x = &call->in[0], *from = &call->in[3], *to = &call->in[4];
  if (!read_graph(call, false, &a->csr, most)) return false;
  a->heads = x->dim[1];
  a->channels = x->dim[2];
  REQUIRE(from->dim[0] == x->dim[0] && from->dim[1] == a->heads,
          "source_score is [%lld, %lld], not [rows of x, heads] = [%lld, %lld]", (long long)from->dim[0],
          (long long)from->dim[1], (long long)x->dim[0], (long long)a->heads);
  REQUIRE(to->dim[0] == a->csr.nodes && to->dim[1] == a->heads,
          "target_score is [%lld, %lld], not [nodes, heads] = [%lld, %lld]", (long long)to->dim[0],
          (long long)to->dim[1], (long long)a->csr.nodes, (long long)a->heads);
  a->from = (const float*)from->data;
  a->to = (const float*)to->data;
  return true;
}

static bool run_attention(Call* call, GatCall* c, int64_t most) {
  GatAggregate* a = &c->args;
  const int64_t tasks = task_count(&a->csr, a->heads * a->channels * (a->codes ? 1 : 4));
  if (!make_scratch(call, a->heads, a->heads * a->channels, most, tasks, &c->stride, &c->scratch)) return false;
  const bool done = run_nodes(call, &a->csr, call->in[0].dim[0], tasks, run_gat, c);
  release(call, c->scratch);
  return done;
}

const char* check_gat_aggregate(Kernel* kernel) {
  return isfinite(kernel->attribute[0].f) ? NULL : "negative_slope must be a finite number";
}

bool gat_aggregate(Call* call) {
  GatCall c;
  memset(&c, 0, sizeof c);
  GatAggregate* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_attention(call, a, &most)) return false;
  a->x = (const float*)call->in[0].data;
  a->slope = call->kernel->attribute[0].f;
  void* out;
  if (!make_rows(call, &call->in[0], &a->csr, &out)) return false;
  a->out = (float*)out;
  return run_attention(call, &c, most);
}

enum { kSlope, kGatXScale, kGatXZero, kScore, kGatMessage = kScore + 4, kGatResult = kGatMessage + 4 };

const char* check_q_gat_aggregate(Kernel* kernel) {
  const Attribute* a = kernel->attribute;
  const char* reason = check_gat_aggregate(kernel);
  if (!reason && !is_scale(a[kGatXScale].f)) reason = kNoScale;
  if (!reason && !is_code(a[kGatXZero].i)) reason = kNoZero;
  if (!reason) reason = check_quantiser(kernel, kScore, true);
  if (!reason) reason = check_quantiser(kernel, kGatMessage, false);
  if (!reason) reason = check_quantiser(kernel, kGatResult, false);
  return reason;
}

bool q_gat_aggregate(Call* call) {
  const Attribute* at = call->kernel->attribute;
  GatCall c;
  memset(&c, 0, sizeof c);
  GatAggregate* a = &c.args;
  c.kernels = call->kernel->graph;
  int64_t most;
  if (!read_attention(call, a, &most)) return false;
  a->codes = (const uint8_t*)call->in[0].data;
  a->slope = at[kSlope].f;
  a->x_scale = at[kGatXScale].f;
  a->x_zp = (int32_t)at[kGatXZero].i;
  a->score = quantiser(call->kernel, kScore);
  a->message = quantiser(call->kernel, kGatMessage);
  a->result = requantise_to(call->kernel, kGatResult, at[kGatMessage].f / at[kGatResult].f);
  REQUIRE(a->result.multiplier > 0 && isfinite(a->result.multiplier), "the ratio of the scales is not a float32 number");
  void* out;
  if (!sums_fit(call, most, reach(a->message.zp)) || !make_rows(call, &call->in[0], &a->csr, &out)) return false;
  a->out_codes = (uint8_t*)out;
  return run_attention(call, &c, most);
}
