#include "call.h"

/* ---- inputs ---- */

bool read_rank(Call* call, int input, int64_t rank) {
  const InputSpec* spec = &call->kernel->kind->inputs[input];
  if (rank >= spec->low && rank <= spec->high) {
    call->in[input].rank = (int)rank;
    return true;
  }
  REQUIRE(spec->low != spec->high, "%s has rank %lld, not %d", spec->name, (long long)rank, spec->low);
  return fail(call, "%s has rank %lld, not %d to %d", spec->name, (long long)rank, spec->low, spec->high);
}

bool count_elements(Call* call, int index) {
  Input* input = &call->in[index];
  input->count = 1;
  for (int i = 0; i < input->rank; ++i) {
    REQUIRE(input->dim[i] >= 0 && !__builtin_mul_overflow(input->count, input->dim[i], &input->count), "%s is too large",
            call->kernel->kind->inputs[index].name);
  }
  return true;
}

/* ---- plans ---- */

bool has_elements(const Plan* plan) {
  for (int i = 0; i < plan->shape.rank; ++i) {
    if (plan->shape.dim[i] == 0) return false;
  }
  return true;
}

int64_t begin_plan(Call* call, Plan* plan, void* result, void* temporary, void* shared) {
  plan->result = result;
  memcpy(plan->out, &result, sizeof result);
  if (plan->before) plan->before(call, plan, temporary);
  const int64_t items = plan->kernel->begin(&plan->args, shared);
  if (items < 0) fail(call, "a neighbour's index is not one of the graph's nodes");
  return items;
}

void run_items(const Call* call, const Plan* plan, const void* temporary, const void* shared, void* scratch, int64_t first,
               int64_t last) {
  const int64_t step = plan->after && plan->piece ? plan->piece : last - first;
  for (int64_t end; first < last; first = end) {
    end = last - first > step ? first + step : last;
    plan->kernel->run(&plan->args, shared, scratch, first, end);
    if (plan->after) plan->after(call, plan, temporary, first, end);
  }
}
