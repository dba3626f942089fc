#include "table.h"

#include "graph_kernels.h"

bool read_table(Call* call, int64_t channels, const Input* table, QTable* out) {
  REQUIRE(table->dim[1] == 256, "table has %lld entries for a channel, not 256", (long long)table->dim[1]);
  REQUIRE(table->dim[0] == 1 || table->dim[0] == channels,
          "table has %lld rows: neither one nor one for each of the %lld channels", (long long)table->dim[0],
          (long long)channels);
  out->table = (const uint8_t*)table->data;
  out->tables = table->dim[0];
  out->channels = out->tables == 1 ? 1 : channels;
  return true;
}

/* What is worth another thread's wake-up. */
static const int64_t kTaskBytes = 256 * 1024;

struct TableCall {
  QTable args;
  const GraphKernels* kernels;
  int64_t rows, each; /* of a task */
};

static void run_task(void* data, size_t task) {
  const TableCall* c = (const TableCall*)data;
  const int64_t first = (int64_t)task * c->each, last = first + c->each;
  c->kernels->q_table(&c->args, first, last < c->rows ? last : c->rows);
}

bool q_table(Call* call) {
  const Input* x = &call->in[0];
  TableCall c;
  void* out;
  if (!read_table(call, x->dim[x->rank - 1], &call->in[1], &c.args) || !make_output(call, 0, x->rank, x->dim, &out)) return false;
  if (x->count == 0) return true;
  c.args.x = (const uint8_t*)x->data;
  c.args.out = (uint8_t*)out;
  c.kernels = call->kernel->graph;
  c.rows = x->count / c.args.channels;
  c.each = kTaskBytes / c.args.channels / 64 * 64 + 64; /* the kernels like 64 rows at a time */
  return parallel(call, (c.rows + c.each - 1) / c.each, run_task, &c);
}
