/* A plugin for qemu-user 7.2: what one stretch of a program executes, for model_a72.py. The stretch begins and ends
 * with the system call getpriority. On standard error, when the program ends, lines for each block of code that ran:
 *
 *   block NUMBER ADDRESS RUNS MISPREDICTED L2 L2_STREAMED RAM RAM_STREAMED CODE
 *   edge NUMBER NUMBER RUNS
 *
 * With the argument sections=on, each look at CLOCK_MONOTONIC within the stretch ends a section: its lines are written,
 * then the line "section", and the counts begin anew; what the predictor and the caches hold stays.
 *
 * A block ends with a branch; CODE is its words in hexadecimal. L2 and RAM count the lines that came from there,
 * *_STREAMED those among them that a prefetcher had asked for. An edge says how often a block ran right after another.
 * The branch predictor and the caches are simulated, with the sizes of the Raspberry Pi 4's; model_a72.py says what is
 * assumed. One thread only. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Debian ships no qemu-plugin.h; these are the declarations of the interface's version 1 that are used. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb*, void (*)(unsigned, void*), int flags, void*);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn*, void (*)(unsigned, uint32_t, uint64_t, void*), int flags,
                                      int rw, void*);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                          void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void*), void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn*);
unsigned qemu_plugin_mem_size_shift(uint32_t info);

int qemu_plugin_version = 1;

enum { kClockGetTime = 113, kGetPriority = 141, kClockMonotonic = 1, kReadAndWrite = 3 };

struct Edge {
  struct Block* to;
  uint64_t runs;
  struct Edge* next;
};

struct Block {
  uint64_t address, end; /* of the code; `end` is where it goes on when no branch is taken */
  uint64_t runs, mispredicted, fetched[2], streamed[2];
  uint32_t* code;
  size_t length;
  unsigned number;
  bool is_conditional;
  struct Edge* edges;
  struct Block* next; /* in the hash table */
};

static bool recording, sections;
static unsigned blocks;
static struct Block *current, *table[1 << 16];

static void* allocate(size_t bytes) {
  void* memory = calloc(1, bytes);
  if (!memory) abort();
  return memory;
}

/* ---- caches: least recently used of a set goes; a write allocates ---- */

enum { kLineShift = 6, kStreams = 16 };

struct Cache {
  uint64_t* tags; /* [sets][ways], most recent first; a line's number + 1 */
  uint64_t sets;
  int ways;
  uint64_t streams[kStreams]; /* the last lines that it lacked, most recent first */
};

static uint64_t first_tags[256 * 2], second_tags[1024 * 16];
static struct Cache caches[2] = {
    {first_tags, 256, 2, {0}},    /* 32 KiB, 2 ways */
    {second_tags, 1024, 16, {0}}, /* 1 MiB, 16 ways */
};

/* Moves `value` to the front of the list, over `old` or else over the last entry; returns whether `old` was there. */
static bool to_front(uint64_t* list, int length, uint64_t old, uint64_t value) {
  int at = 0;
  while (at < length && list[at] != old) ++at;
  const bool found = at < length;
  for (int i = found ? at : length - 1; i > 0; --i) list[i] = list[i - 1];
  list[0] = value;
  return found;
}

static void accessed(unsigned cpu, uint32_t info, uint64_t address, void* data) {
  (void)cpu;
  if (!recording) return;
  struct Block* block = data;
  const uint64_t bytes = (uint64_t)1 << qemu_plugin_mem_size_shift(info);
  for (uint64_t line = address >> kLineShift; line <= (address + bytes - 1) >> kLineShift; ++line) {
    for (int level = 0; level < 2; ++level) {
      struct Cache* cache = &caches[level];
      if (to_front(cache->tags + line % cache->sets * cache->ways, cache->ways, line + 1, line + 1)) break;
      ++block->fetched[level];
      block->streamed[level] += to_front(cache->streams, kStreams, line - 1, line);
    }
  }
}

/* ---- branches: two-bit counters chosen by address and the last outcomes (gshare) ---- */

enum { kHistory = 12 };
static uint8_t counters[1 << kHistory];
static uint32_t outcomes;

static void branched(struct Block* from, bool taken) {
  uint8_t* counter = &counters[((from->end >> 2) ^ outcomes) & ((1 << kHistory) - 1)];
  from->mispredicted += (*counter >= 2) != taken;
  if (taken && *counter < 3) ++*counter;
  if (!taken && *counter > 0) --*counter;
  outcomes = outcomes << 1 | taken;
}

static void follow(struct Block* from, struct Block* to) {
  struct Edge** at = &from->edges;
  while (*at && (*at)->to != to) at = &(*at)->next;
  struct Edge* edge = *at;
  if (edge) {
    *at = edge->next;
  } else {
    edge = allocate(sizeof *edge);
    edge->to = to;
  }
  edge->next = from->edges; /* likely the next one again */
  from->edges = edge;
  ++edge->runs;
}

static void executed(unsigned cpu, void* data) {
  (void)cpu;
  struct Block* block = data;
  if (recording) {
    if (current && current->is_conditional) branched(current, block->address != current->end);
    if (current) follow(current, block);
    ++block->runs;
  }
  current = block;
}

/* ---- translation ---- */

/* b.cond, cbz, cbnz, tbz, tbnz */
static bool is_conditional_branch(uint32_t code) {
  return (code & 0xff000010) == 0x54000000 || (code & 0x7e000000) == 0x34000000 || (code & 0x7e000000) == 0x36000000;
}

static struct Block* find(uint64_t address, const uint32_t* code, size_t length) {
  struct Block** head = &table[(address >> 2) & 0xffff];
  for (struct Block* b = *head; b; b = b->next) {
    if (b->address != address || b->length != length) continue;
    size_t same = 0;
    while (same < length && b->code[same] == code[same]) ++same;
    if (same == length) return b;
  }
  struct Block* b = allocate(sizeof *b);
  b->address = address;
  b->end = address + 4 * length;
  b->code = allocate(length * sizeof *code);
  for (size_t i = 0; i < length; ++i) b->code[i] = code[i];
  b->length = length;
  b->number = blocks++;
  b->is_conditional = is_conditional_branch(code[length - 1]);
  b->next = *head;
  return *head = b;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  enum { kMost = 512 }; /* qemu's own limit */
  uint32_t code[kMost];
  const size_t length = qemu_plugin_tb_n_insns(tb);
  if (length > kMost) abort();
  for (size_t i = 0; i < length; ++i) code[i] = *(const uint32_t*)qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i));
  struct Block* block = find(qemu_plugin_tb_vaddr(tb), code, length);
  qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, block);
  for (size_t i = 0; i < length; ++i) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), accessed, 0, kReadAndWrite, block);
  }
}

static void write_counts(void) {
  for (size_t i = 0; i < sizeof table / sizeof table[0]; ++i) {
    for (const struct Block* b = table[i]; b; b = b->next) {
      if (!b->runs) continue;
      for (const struct Edge* e = b->edges; e; e = e->next) {
        fprintf(stderr, "edge %u %u %" PRIu64 "\n", b->number, e->to->number, e->runs);
      }
      fprintf(stderr, "block %u %" PRIx64 " %" PRIu64 " %" PRIu64 " ", b->number, b->address, b->runs, b->mispredicted);
      for (int level = 0; level < 2; ++level) {
        fprintf(stderr, "%" PRIu64 " %" PRIu64 " ", b->fetched[level], b->streamed[level]);
      }
      for (size_t j = 0; j < b->length; ++j) fprintf(stderr, "%08x", b->code[j]);
      fputc('\n', stderr);
    }
  }
}

static void end_section(void) {
  write_counts();
  fputs("section\n", stderr);
  for (size_t i = 0; i < sizeof table / sizeof table[0]; ++i) {
    for (struct Block* b = table[i]; b; b = b->next) {
      b->runs = b->mispredicted = 0;
      for (int level = 0; level < 2; ++level) b->fetched[level] = b->streamed[level] = 0;
      while (b->edges) {
        struct Edge* edge = b->edges;
        b->edges = edge->next;
        free(edge);
      }
    }
  }
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == kGetPriority) recording = !recording;
  if (number == kClockGetTime && a == kClockMonotonic && recording && sections) end_section();
}

static void finished(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  write_counts();
}

int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc, char** argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) sections = sections || !strcmp(argv[i], "sections=on");
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
