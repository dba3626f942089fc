#include "csr.h"

#include <string.h>

static const int64_t kMostEntries = INT32_MAX - 1; /* CSR is int32 */

/* COO edges: source row, destination row. Sources may be of another kind than the nodes that edges end at, and more:
 * what gathers by them checks them against its own rows. */
struct Coo {
  const int64_t *source, *target;
  int64_t edges, nodes;
};

static bool read_coo(Call* call, Coo* coo) {
  const Input *edges = &call->in[0], *nodes = &call->in[1];
  REQUIRE(edges->dim[0] == 2, "edge_index must be [2, edges], not [%lld, %lld]", (long long)edges->dim[0],
          (long long)edges->dim[1]);
  REQUIRE(nodes->count == 1, "num_nodes must be one number, not %lld", (long long)nodes->count);
  coo->edges = edges->dim[1];
  coo->nodes = *(const int64_t*)nodes->data;
  coo->source = (const int64_t*)edges->data;
  coo->target = coo->source + coo->edges;
  REQUIRE(coo->nodes >= 0 && coo->nodes <= kMostEntries, "num_nodes = %lld is outside of [0, 2^31 - 2]",
          (long long)coo->nodes);
  REQUIRE(coo->edges <= kMostEntries, "%lld edges are more than 2^31 - 2", (long long)coo->edges);
  return true;
}

/* Names the first edge with a target outside of [0, targets) or a source that is no int32. */
static bool report_bad_edge(Call* call, const Coo* coo, int64_t targets) {
  for (int64_t e = 0; e < coo->edges; ++e) {
    if (call->gaps && coo->source[e] == -1 && coo->target[e] == -1) continue;
    for (int row = 0; row < 2; ++row) {
      const int64_t node = row ? coo->target[e] : coo->source[e], nodes = row ? targets : kMostEntries;
      REQUIRE(node >= 0 && node < nodes, "edge_index[%d, %lld] = %lld is not one of the %lld nodes", row, (long long)e,
              (long long)node, (long long)nodes);
    }
  }
  return fail(call, "edge_index changed while it was read");
}

static bool check_edges(Call* call, const Coo* coo) {
  uint64_t bad = 0;
  for (int64_t e = 0; e < 2 * coo->edges; ++e) bad |= (uint64_t)((uint64_t)coo->source[e] >= (uint64_t)kMostEntries);
  return !bad || report_bad_edge(call, coo, kMostEntries);
}

static int64_t count_loops(const Coo* coo) {
  int64_t loops = 0;
  for (int64_t e = 0; e < coo->edges; ++e) loops += coo->source[e] == coo->target[e];
  return loops;
}

/* PyG's add_remaining_self_loops without weights: loops go, one per node comes, at the end, in the nodes' order. What
 * reads the list checks it against the rows that it has. */
bool with_self_loops(Call* call) {
  Coo coo;
  if (!read_coo(call, &coo) || !check_edges(call, &coo)) return false;
  const int64_t kept = coo.edges - count_loops(&coo), total = kept + coo.nodes;
  const int64_t dims[2] = {2, total};
  void* data;
  if (!make_output(call, 0, 2, dims, &data)) return false;
  int64_t *source = (int64_t*)data, *target = source + total;
  for (int64_t e = 0; e < coo.edges; ++e) {
    if (coo.source[e] == coo.target[e]) continue;
    *source++ = coo.source[e];
    *target++ = coo.target[e];
  }
  for (int64_t i = 0; i < coo.nodes; ++i) source[i] = target[i] = i;
  return true;
}

const char* check_coo_to_csr(Kernel* kernel) {
  const char* loops = kernel->attribute[0].s;
  const bool known = strcmp(loops, "none") == 0 || strcmp(loops, "add_remaining") == 0;
  return known ? NULL : "self_loops is neither 'none' nor 'add_remaining'";
}

/* A stable sort by destination in two steps, so that every write stays near others: the edges are dealt into buckets
 * of consecutive nodes, and each bucket, which a second-level cache holds, is sorted by counting. In the first step
 * threads take chunks of the edges, in the second, buckets; the result does not depend on either. */
static const int64_t kMostBuckets = 512, kMostChunks = 16;
static const int64_t kChunkEdges = 256 * 1024;

struct Edge {
  int32_t source, target;
};
struct NumberedEdge {
  int32_t source, target, number; /* in COO order */
};

struct Sort {
  Coo coo;
  bool add_loops;
  bool gaps; /* as Call's: edges that are not there are passed over, and an edge's number counts them */
  int shift; /* node >> shift is its bucket */
  int64_t buckets, chunks;
  int64_t next[kMostChunks][kMostBuckets + 1]; /* a chunk's edges in a bucket; later where its next one goes */
  int64_t first[kMostBuckets + 1];             /* a bucket's first edge among the dealt */
  int64_t kept[kMostChunks]; /* edges of a chunk that are not replaced loops; later: of those before it */
  bool bad[kMostChunks];
  void* dealt;
  int32_t *indptr, *indices, *edges;
};

static int64_t chunk_start(const Sort* s, int64_t chunk) { return s->coo.edges * chunk / s->chunks; }

static void count_chunk(void* data, size_t chunk) {
  Sort* s = (Sort*)data;
  const Coo* coo = &s->coo;
  const uint64_t nodes = (uint64_t)coo->nodes;
  int64_t* count = s->next[chunk];
  int64_t kept = 0;
  bool bad = false;
  for (int64_t e = chunk_start(s, (int64_t)chunk); e < chunk_start(s, (int64_t)chunk + 1); ++e) {
    if (s->gaps && coo->source[e] == -1 && coo->target[e] == -1) continue;
    const uint64_t source = (uint64_t)coo->source[e], target = (uint64_t)coo->target[e];
    bad |= source >= (uint64_t)kMostEntries || target >= nodes;
    const bool keep = !s->add_loops || source != target;
    count[target < nodes ? target >> s->shift : kMostBuckets] += keep;
    kept += keep;
  }
  s->kept[chunk] = kept;
  s->bad[chunk] = bad;
}

static inline void number(Edge*, int64_t) {}
static inline void number(NumberedEdge* edge, int64_t n) { edge->number = (int32_t)n; }

template <class Record>
static void deal_chunk(void* data, size_t chunk) {
  Sort* s = (Sort*)data;
  const Coo* coo = &s->coo;
  Record* dealt = (Record*)s->dealt;
  int64_t* next = s->next[chunk];
  int64_t n = s->kept[chunk];
  for (int64_t e = chunk_start(s, (int64_t)chunk); e < chunk_start(s, (int64_t)chunk + 1); ++e) {
    const int64_t source = coo->source[e], target = coo->target[e];
    if ((s->add_loops && source == target) || (s->gaps && target == -1)) continue;
    Record* record = &dealt[next[target >> s->shift]++];
    record->source = (int32_t)source;
    record->target = (int32_t)target;
    number(record, s->gaps ? e : n);
    ++n;
  }
}

static inline void place_number(const Sort*, int32_t, const Edge&) {}
static inline void place_number(const Sort* s, int32_t at, const NumberedEdge& edge) { s->edges[at] = edge.number; }

/* indptr[i + 1] counts node i's entries, then says where its next one goes, and so ends as where they end. */
template <class Record>
static void sort_bucket(void* data, size_t bucket) {
  const Sort* s = (const Sort*)data;
  const int64_t nodes = s->coo.nodes, first = (int64_t)bucket << s->shift, all = first + ((int64_t)1 << s->shift);
  const int64_t last = all < nodes ? all : nodes;
  const Record *begin = (const Record*)s->dealt + s->first[bucket], *end = (const Record*)s->dealt + s->first[bucket + 1];
  int32_t* next = s->indptr + 1;
  memset(next + first, 0, (size_t)(last - first) * 4);
  for (const Record* record = begin; record < end; ++record) ++next[record->target];
  int32_t place = (int32_t)(s->first[bucket] + (s->add_loops ? first : 0));
  for (int64_t i = first; i < last; ++i) {
    const int32_t count = next[i];
    next[i] = place;
    place += count + s->add_loops;
  }
  for (const Record* record = begin; record < end; ++record) {
    const int32_t at = next[record->target]++;
    s->indices[at] = record->source;
    place_number(s, at, *record);
  }
  const int64_t kept = s->gaps ? s->coo.edges : s->first[s->buckets];
  for (int64_t i = first; s->add_loops && i < last; ++i) { /* a node's own loop is its last entry */
    const int32_t at = next[i]++;
    s->indices[at] = (int32_t)i;
    if (s->edges) s->edges[at] = (int32_t)(kept + i);
  }
}

/* From counts to places; the number of edges that stay. */
static int64_t start_buckets(Sort* s) {
  int64_t place = 0;
  for (int64_t b = 0; b < s->buckets; ++b) {
    s->first[b] = place;
    for (int64_t c = 0; c < s->chunks; ++c) {
      const int64_t count = s->next[c][b];
      s->next[c][b] = place;
      place += count;
    }
  }
  s->first[s->buckets] = place;
  for (int64_t c = 0, before = 0; c < s->chunks; ++c) {
    const int64_t here = s->kept[c];
    s->kept[c] = before;
    before += here;
  }
  return place;
}

static bool sort_edges(Call* call, Sort* s) {
  if (!parallel(call, s->chunks, count_chunk, s)) return false;
  for (int64_t c = 0; c < s->chunks; ++c) {
    if (s->bad[c]) return report_bad_edge(call, &s->coo, s->coo.nodes);
  }
  const int64_t kept = start_buckets(s), total = kept + (s->add_loops ? s->coo.nodes : 0), rows = s->coo.nodes + 1;
  REQUIRE(total <= kMostEntries, "%lld edges with self loops are more than 2^31 - 2", (long long)total);
  const int64_t most = s->gaps ? s->coo.edges + (s->add_loops ? s->coo.nodes : 0) : total;
  void *indptr, *indices, *edges;
  if (!make_output(call, 0, 1, &rows, &indptr) || !make_output(call, 1, 1, &most, &indices) ||
      !make_output(call, 2, 1, &most, &edges)) {
    return false;
  }
  clear(indices, total, most, 4);
  if (edges) clear(edges, total, most, 4);
  s->indptr = (int32_t*)indptr;
  s->indices = (int32_t*)indices;
  s->edges = (int32_t*)edges;
  s->indptr[0] = 0;
  const int64_t record = edges ? sizeof(NumberedEdge) : sizeof(Edge);
  if (!(s->dealt = allocate(call, kept * record))) return false;
  const bool done = parallel(call, s->chunks, edges ? deal_chunk<NumberedEdge> : deal_chunk<Edge>, s) &&
                    parallel(call, s->buckets, edges ? sort_bucket<NumberedEdge> : sort_bucket<Edge>, s);
  release(call, s->dealt);
  return done;
}

bool coo_to_csr(Call* call) {
  Coo coo;
  if (!read_coo(call, &coo)) return false;
  Sort* s = (Sort*)allocate(call, sizeof(Sort));
  if (!s) return false;
  memset(s, 0, sizeof *s);
  s->coo = coo;
  s->gaps = call->gaps;
  s->add_loops = call->kernel->attribute[0].s[0] == 'a';
  /* Buckets of at least 256 nodes; few enough that the place of the next edge in each stays in the first-level cache. */
  s->shift = 8;
  while ((coo.nodes >> s->shift) >= kMostBuckets) ++s->shift;
  s->buckets = (coo.nodes + ((int64_t)1 << s->shift) - 1) >> s->shift;
  const int64_t chunks = coo.edges / kChunkEdges + 1;
  s->chunks = chunks > kMostChunks ? kMostChunks : chunks;
  const bool done = sort_edges(call, s);
  release(call, s);
  return done;
}

/* Segments given by the number of each row's. */
bool index_to_csr(Call* call) {
  const Input *index = &call->in[0], *nodes = &call->in[1];
  REQUIRE(nodes->count == 1, "num_nodes must be one number, not %lld", (long long)nodes->count);
  const int64_t *segment = (const int64_t*)index->data, count = *(const int64_t*)nodes->data;
  REQUIRE(count >= 0 && count <= kMostEntries, "num_nodes = %lld is outside of [0, 2^31 - 2]", (long long)count);
  REQUIRE(index->count <= kMostEntries, "%lld rows are more than 2^31 - 2", (long long)index->count);
  const int64_t rows = count + 1;
  int64_t there = 0;
  for (int64_t e = 0; e < index->count; ++e) {
    if (call->gaps && segment[e] == -1) continue;
    REQUIRE(segment[e] >= 0 && segment[e] < count, "index[%lld] = %lld is not one of the %lld nodes", (long long)e,
            (long long)segment[e], (long long)count);
    ++there;
  }
  void *indptr_data, *edges_data;
  if (!make_output(call, 0, 1, &rows, &indptr_data) || !make_output(call, 1, 1, &index->count, &edges_data)) {
    return false;
  }
  int32_t *indptr = (int32_t*)indptr_data, *edges = (int32_t*)edges_data;
  memset(indptr, 0, (size_t)rows * 4);
  clear(edges, there, index->count, 4);
  for (int64_t e = 0; e < index->count; ++e) {
    if (segment[e] >= 0) ++indptr[segment[e] + 1];
  }
  /* indptr[i + 1] then says where i's next entry goes, and so ends as where they end. */
  int32_t place = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t here = indptr[i + 1];
    indptr[i + 1] = place;
    place += here;
  }
  for (int64_t e = 0; e < index->count; ++e) {
    if (segment[e] >= 0) edges[indptr[segment[e] + 1]++] = (int32_t)e;
  }
  return true;
}
