/* Times of each operator that a graph runs: the runtime's own, other delegates' and ours alike.
 *
 * A runtime installs a profiler only from C++. But the delegate is shown the graph while it is prepared, and the
 * registrations that it is shown are those that the runtime will call: after the tensors are allocated, when every
 * delegate has had its turn, each is given a function that looks at the clock around the one that was there.
 *
 * One graph of a process at a time: the runtime passes an operator nothing that would tell two apart.
 */
#include "profile.h"

#include <stdlib.h>
#include <time.h>

namespace {

typedef TfLiteStatus (*Invoke)(TfLiteContext*, TfLiteNode*);

struct Timed {
  const TfLiteNode* node;
  int number; /* in the file's graph; beyond its end for what a delegate put there */
  Invoke invoke;
  const char* name; /* of a custom operator or a delegate, or NULL */
  int64_t start, ns;
};

struct Running {
  const ProfiledGraph* graph;
  Timed* operators;
  int count, next;
} running;

int64_t now() {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

TfLiteStatus timed_invoke(TfLiteContext* context, TfLiteNode* node) {
  /* They come in the plan's order, but for branches. */
  int place = running.next;
  for (int tried = 0; tried < running.count && running.operators[place].node != node; ++tried) {
    place = place + 1 < running.count ? place + 1 : 0;
  }
  Timed* operation = &running.operators[place];
  running.next = place + 1 < running.count ? place + 1 : 0;
  operation->start = now();
  const TfLiteStatus status = operation->invoke(context, node);
  operation->ns = now() - operation->start;
  return status;
}

/* What a node of a delegate has in its builtin_data, or NULL for another. */
const TfLiteDelegateParams* replaced_by(const TfLiteNode* node) {
  return node->delegate ? (const TfLiteDelegateParams*)node->builtin_data : NULL;
}

}  // namespace

void profile_see(ProfiledGraph* graph, TfLiteContext* context) {
  if (graph->context) return; /* of a file's graphs the first is the one that runs */
  graph->context = context;
  graph->plan = context->GetExecutionPlan;
  graph->node = context->GetNodeAndRegistration;
}

void profile_forget(const ProfiledGraph* graph) {
  if (running.graph != graph) return;
  free(running.operators);
  running = Running{};
}

/* The first `count` operators get back what ran them before. */
static void restore(const ProfiledGraph* graph, const Timed* operators, int count) {
  for (int i = 0; i < count; ++i) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    if (graph->node(graph->context, operators[i].number, &node, &registration) == kTfLiteOk) {
      registration->invoke = operators[i].invoke;
    }
  }
}

int profile_start(const ProfiledGraph* graph) {
  TfLiteIntArray* plan;
  if (running.graph || !graph->context || graph->plan(graph->context, &plan) != kTfLiteOk) return -1;
  Timed* operators = (Timed*)calloc(plan->size > 0 ? plan->size : 1, sizeof(Timed));
  if (!operators) return -1;
  for (int i = 0; i < plan->size; ++i) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    if (graph->node(graph->context, plan->data[i], &node, &registration) != kTfLiteOk || !registration->invoke) {
      restore(graph, operators, i); /* all of them or none */
      free(operators);
      return -1;
    }
    operators[i] = Timed{node, plan->data[i], registration->invoke, registration->custom_name, 0, 0};
    registration->invoke = timed_invoke;
  }
  running = Running{graph, operators, plan->size, 0};
  return plan->size;
}

void profile_stop(const ProfiledGraph* graph) {
  if (running.graph != graph) return;
  restore(graph, running.operators, running.count);
  profile_forget(graph);
}

int profile_operator(const ProfiledGraph* graph, int place, int* number, const char** name, const int** replaced) {
  if (running.graph != graph || place < 0 || place >= running.count) return -1;
  const Timed* operation = &running.operators[place];
  const TfLiteDelegateParams* params = replaced_by(operation->node);
  *number = operation->number;
  *name = operation->name;
  *replaced = params ? params->nodes_to_replace->data : NULL;
  return params ? params->nodes_to_replace->size : 0;
}

int profile_read(const ProfiledGraph* graph, int64_t* start, int64_t* ns) {
  if (running.graph != graph) return -1;
  for (int i = 0; i < running.count; ++i) {
    start[i] = running.operators[i].start;
    ns[i] = running.operators[i].ns;
    running.operators[i].ns = 0;
  }
  return running.count;
}
