/* A run of a plan (../ops/call.h) in ONNX Runtime. Threads are the runtime's, and how many there are it does not say:
 * each task borrows one of the scratch buffers, which are made when first wanted. */
#include <stdlib.h>

#include "ort_call.h"

static const int kBuffers = 64;

struct PlanRun {
  const Call* call;
  Plan plan;
  void *temporary, *shared;
  int64_t scratch_bytes, items, tasks;
  void* scratch[kBuffers];
  int taken[kBuffers];
  int no_memory;
};

static int take_buffer(PlanRun* run) {
  for (int i = 0;; i = (i + 1) % kBuffers) {
    if (__atomic_exchange_n(&run->taken[i], 1, __ATOMIC_ACQUIRE) == 0) return i;
  }
}

static void run_task(void* data, size_t task) {
  PlanRun* run = (PlanRun*)data;
  const int64_t first = run->items * (int64_t)task / run->tasks, last = run->items * ((int64_t)task + 1) / run->tasks;
  const int buffer = take_buffer(run);
  void** scratch = &run->scratch[buffer];
  const size_t bytes = run->scratch_bytes > 0 ? (size_t)run->scratch_bytes : 1;
  if (!*scratch && posix_memalign(scratch, 64, bytes) != 0) *scratch = NULL;
  if (*scratch) {
    run_items(run->call, &run->plan, run->temporary, run->shared, *scratch, first, last);
  } else {
    __atomic_store_n(&run->no_memory, 1, __ATOMIC_RELAXED);
  }
  __atomic_store_n(&run->taken[buffer], 0, __ATOMIC_RELEASE);
}

static bool run_with(Call* call, PlanRun* run, void* result) {
  Plan* plan = &run->plan;
  if (plan->temporary_bytes && !(run->temporary = allocate(call, plan->temporary_bytes))) return false;
  if (!(run->shared = allocate(call, plan->kernel->shared_bytes(&plan->args)))) return false;
  run->items = begin_plan(call, plan, result, run->temporary, run->shared);
  if (run->items < 0) return false;
  run->scratch_bytes = plan->kernel->scratch_bytes(&plan->args);
  run->tasks = run->items < kBuffers ? run->items : kBuffers;
  if (!parallel(call, run->tasks, run_task, run)) return false;
  REQUIRE(!run->no_memory, "no memory for %lld bytes of work space", (long long)run->scratch_bytes);
  return true;
}

bool run_plan(Call* call) {
  PlanRun run;
  memset(&run, 0, sizeof run);
  run.call = call;
  void* result;
  if (!call->kernel->kind->plan(call, &run.plan) ||
      !make_output(call, 0, run.plan.shape.rank, run.plan.shape.dim, &result)) {
    return false;
  }
  const bool done = !has_elements(&run.plan) || run_with(call, &run, result);
  for (int i = 0; i < kBuffers; ++i) free(run.scratch[i]);
  release(call, run.shared);
  release(call, run.temporary);
  return done;
}
