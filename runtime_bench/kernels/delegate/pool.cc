#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* Pieces per thread: enough to even out unequal items, few enough that taking one costs nothing. */
static const int64_t kPiecesPerThread = 8;

namespace {

struct Job {
  void (*task)(void* data, int thread, int64_t first, int64_t last);
  void* data;
  int64_t items, piece;
  int64_t next; /* atomic */
};

struct Worker {
  Pool* pool;
  int thread;
  uint64_t seen; /* the last round it knows of: those before its start are not its own */
  pthread_t id;
};

} /* namespace */

struct Pool {
  pthread_mutex_t in_use; /* held by the caller whose job runs */
  pthread_mutex_t mutex;  /* guards everything below, except job.next */
  pthread_cond_t wake, finished;
  Job job;
  uint64_t round; /* counts jobs: a worker takes part once in each */
  int wanted;     /* workers with thread <= wanted take part */
  int running;    /* of those, how many have not finished */
  bool stop;
  int workers;
  pid_t process; /* a forked child has the memory, but not the threads */
  Worker worker[kMaxThreads - 1];
};

static void work(Job* job, int thread) {
  for (;;) {
    const int64_t first = __atomic_fetch_add(&job->next, job->piece, __ATOMIC_RELAXED);
    if (first >= job->items) return;
    const int64_t last = job->items - first < job->piece ? job->items : first + job->piece;
    job->task(job->data, thread, first, last);
  }
}

static void* worker_main(void* argument) {
  Worker* self = (Worker*)argument;
  Pool* pool = self->pool;
  uint64_t seen = self->seen;
  pthread_mutex_lock(&pool->mutex);
  for (;;) {
    while (!pool->stop && (pool->round == seen || self->thread > pool->wanted)) {
      seen = pool->round;
      pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    if (pool->stop) break;
    seen = pool->round;
    pthread_mutex_unlock(&pool->mutex);
    work(&pool->job, self->thread);
    pthread_mutex_lock(&pool->mutex);
    if (--pool->running == 0) pthread_cond_signal(&pool->finished);
  }
  pthread_mutex_unlock(&pool->mutex);
  return NULL;
}

static void reset(Pool* pool) {
  pthread_mutex_init(&pool->in_use, NULL);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pthread_cond_init(&pool->finished, NULL);
  pool->round = 0;
  pool->wanted = pool->running = pool->workers = 0;
  pool->stop = false;
  pool->process = getpid();
}

/* Called with in_use held: nobody else starts workers. A worker starts with all signals blocked, since the
 * program's handlers (Python's Ctrl-C) expect its own threads. */
static void start_workers(Pool* pool, int count) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool->workers < count) {
    Worker* worker = &pool->worker[pool->workers];
    worker->pool = pool;
    worker->thread = pool->workers + 1;
    worker->seen = pool->round;
    if (pthread_create(&worker->id, NULL, worker_main, worker) != 0) break;
    ++pool->workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

Pool* pool_create(void) {
  Pool* pool = (Pool*)calloc(1, sizeof(Pool));
  if (pool) reset(pool);
  return pool;
}

void pool_destroy(Pool* pool) {
  if (!pool) return;
  if (pool->process == getpid()) {
    pthread_mutex_lock(&pool->mutex);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->workers; ++i) pthread_join(pool->worker[i].id, NULL);
    pthread_mutex_destroy(&pool->in_use);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->finished);
  }
  free(pool);
}

void pool_run(Pool* pool, int threads, int64_t items,
              void (*task)(void* data, int thread, int64_t first, int64_t last), void* data) {
  if (threads > kMaxThreads) threads = kMaxThreads;
  if (threads > items) threads = (int)items;
  if (threads > 1 && pool->process != getpid()) reset(pool);
  if (threads <= 1 || pthread_mutex_trylock(&pool->in_use) != 0) {
    if (items > 0) task(data, 0, 0, items);
    return;
  }
  start_workers(pool, threads - 1);
  pthread_mutex_lock(&pool->mutex);
  const int helpers = pool->workers < threads - 1 ? pool->workers : threads - 1;
  int64_t piece = items / ((helpers + 1) * kPiecesPerThread);
  if (piece < 1) piece = 1;
  pool->job = Job{task, data, items, piece, 0};
  pool->wanted = pool->running = helpers;
  ++pool->round;
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
  work(&pool->job, 0);
  pthread_mutex_lock(&pool->mutex);
  while (pool->running > 0) pthread_cond_wait(&pool->finished, &pool->mutex);
  pthread_mutex_unlock(&pool->mutex);
  pthread_mutex_unlock(&pool->in_use);
}
