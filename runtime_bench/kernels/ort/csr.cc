#include "csr.h"

#include <stdlib.h>
#include <string.h>

static const int64_t kMostEntries = INT32_MAX - 1; /* CSR is int32 */

/* COO edges: source row, destination row. */
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

/* Names the first edge with an end outside of [0, nodes). */
static bool report_bad_edge(Call* call, const Coo* coo) {
  for (int64_t e = 0; e < coo->edges; ++e) {
    for (int row = 0; row < 2; ++row) {
      const int64_t node = row ? coo->target[e] : coo->source[e];
      REQUIRE(node >= 0 && node < coo->nodes, "edge_index[%d, %lld] = %lld is not one of the %lld nodes", row,
              (long long)e, (long long)node, (long long)coo->nodes);
    }
  }
  return fail(call, "edge_index changed while it was read");
}

static bool check_edges(Call* call, const Coo* coo) {
  const uint64_t nodes = (uint64_t)coo->nodes;
  uint64_t bad = 0;
  for (int64_t e = 0; e < 2 * coo->edges; ++e) bad |= (uint64_t)((uint64_t)coo->source[e] >= nodes);
  return !bad || report_bad_edge(call, coo);
}

static int64_t count_loops(const Coo* coo) {
  int64_t loops = 0;
  for (int64_t e = 0; e < coo->edges; ++e) loops += coo->source[e] == coo->target[e];
  return loops;
}

/* PyG's add_remaining_self_loops without weights: loops go, one per node comes, at the end, in the nodes' order. */
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

/* A counting sort by destination. The edges are cut into `chunks` that different threads count and place; the order
 * of the edges, and so the result, does not depend on them. */
static const int64_t kMostChunks = 4, kChunkEdges = 128 * 1024;

struct Sort {
  Coo coo;
  bool add_loops;
  int64_t chunks;
  int32_t* next; /* [chunks, nodes + 1]: a node's edges in a chunk, later the place of the next one; last: bad edges */
  int64_t kept[kMostChunks]; /* edges of a chunk that are not replaced loops; later: of those before it */
  bool bad[kMostChunks];
  int32_t *indices, *edges;
};

static void count_chunk(void* data, size_t chunk) {
  Sort* s = (Sort*)data;
  const Coo* coo = &s->coo;
  const int64_t first = coo->edges * (int64_t)chunk / s->chunks, last = coo->edges * ((int64_t)chunk + 1) / s->chunks;
  const uint64_t nodes = (uint64_t)coo->nodes;
  int32_t* count = s->next + (int64_t)chunk * (coo->nodes + 1);
  memset(count, 0, (size_t)(coo->nodes + 1) * 4);
  int64_t kept = 0;
  bool bad = false;
  for (int64_t e = first; e < last; ++e) {
    const uint64_t source = (uint64_t)coo->source[e], target = (uint64_t)coo->target[e];
    bad |= source >= nodes || target >= nodes;
    const bool keep = !s->add_loops || source != target;
    count[target < nodes ? target : nodes] += keep;
    kept += keep;
  }
  s->kept[chunk] = kept;
  s->bad[chunk] = bad;
}

/* From counts to places; fills indptr, and each node's own loop as its last entry. */
static void start_nodes(Sort* s, int64_t kept, int32_t* indptr) {
  const int64_t nodes = s->coo.nodes, stride = nodes + 1;
  int32_t place = 0;
  for (int64_t i = 0; i < nodes; ++i) {
    indptr[i] = place;
    for (int64_t c = 0; c < s->chunks; ++c) {
      const int32_t count = s->next[c * stride + i];
      s->next[c * stride + i] = place;
      place += count;
    }
    if (!s->add_loops) continue;
    s->indices[place] = (int32_t)i;
    if (s->edges) s->edges[place] = (int32_t)(kept + i);
    ++place;
  }
  indptr[nodes] = place;
}

static void place_chunk(void* data, size_t chunk) {
  const Sort* s = (const Sort*)data;
  const Coo* coo = &s->coo;
  const int64_t first = coo->edges * (int64_t)chunk / s->chunks, last = coo->edges * ((int64_t)chunk + 1) / s->chunks;
  int32_t* next = s->next + (int64_t)chunk * (coo->nodes + 1);
  int32_t edge = (int32_t)s->kept[chunk];
  for (int64_t e = first; e < last; ++e) {
    /* Both accesses go anywhere: ask for the counter first, then for what it points at. */
    if (e + 32 < last) __builtin_prefetch(next + coo->target[e + 32], 1);
    if (e + 16 < last) {
      const int32_t soon = next[coo->target[e + 16]];
      __builtin_prefetch(s->indices + soon, 1);
      if (s->edges) __builtin_prefetch(s->edges + soon, 1);
    }
    if (s->add_loops && coo->source[e] == coo->target[e]) continue;
    const int32_t at = next[coo->target[e]]++;
    s->indices[at] = (int32_t)coo->source[e];
    if (s->edges) s->edges[at] = edge;
    ++edge;
  }
}

static bool sort_edges(Call* call, Sort* s) {
  if (!parallel(call, s->chunks, count_chunk, s)) return false;
  int64_t kept = 0;
  for (int64_t c = 0; c < s->chunks; ++c) {
    if (s->bad[c]) return report_bad_edge(call, &s->coo);
    const int64_t here = s->kept[c];
    s->kept[c] = kept;
    kept += here;
  }
  const int64_t total = kept + (s->add_loops ? s->coo.nodes : 0), rows = s->coo.nodes + 1;
  REQUIRE(total <= kMostEntries, "%lld edges with self loops are more than 2^31 - 2", (long long)total);
  void *indptr, *indices, *edges;
  if (!make_output(call, 0, 1, &rows, &indptr) || !make_output(call, 1, 1, &total, &indices) ||
      !make_output(call, 2, 1, &total, &edges)) {
    return false;
  }
  s->indices = (int32_t*)indices;
  s->edges = (int32_t*)edges;
  start_nodes(s, kept, (int32_t*)indptr);
  return parallel(call, s->chunks, place_chunk, s);
}

bool coo_to_csr(Call* call) {
  Sort s;
  memset(&s, 0, sizeof s);
  if (!read_coo(call, &s.coo)) return false;
  s.add_loops = call->kernel->attribute[0].s[0] == 'a';
  /* A chunk's counters must be worth their while. */
  const int64_t chunks = s.coo.edges / (kChunkEdges + s.coo.nodes);
  s.chunks = chunks < 1 ? 1 : chunks > kMostChunks ? kMostChunks : chunks;
  s.next = (int32_t*)allocate(call, s.chunks * (s.coo.nodes + 1) * 4);
  if (!s.next) return false;
  const bool done = sort_edges(call, &s);
  free(s.next);
  return done;
}

/* Segments given by the number of each row's. */
bool index_to_csr(Call* call) {
  const Input *index = &call->in[0], *nodes = &call->in[1];
  REQUIRE(nodes->count == 1, "num_nodes must be one number, not %lld", (long long)nodes->count);
  const int64_t *segment = (const int64_t*)index->data, count = *(const int64_t*)nodes->data, rows = count + 1;
  REQUIRE(count >= 0 && count <= kMostEntries, "num_nodes = %lld is outside of [0, 2^31 - 2]", (long long)count);
  REQUIRE(index->count <= kMostEntries, "%lld rows are more than 2^31 - 2", (long long)index->count);
  for (int64_t e = 0; e < index->count; ++e) {
    REQUIRE(segment[e] >= 0 && segment[e] < count, "index[%lld] = %lld is not one of the %lld nodes", (long long)e,
            (long long)segment[e], (long long)count);
  }
  void *indptr_data, *edges_data;
  if (!make_output(call, 0, 1, &rows, &indptr_data) || !make_output(call, 1, 1, &index->count, &edges_data)) {
    return false;
  }
  int32_t *indptr = (int32_t*)indptr_data, *edges = (int32_t*)edges_data;
  memset(indptr, 0, (size_t)rows * 4);
  for (int64_t e = 0; e < index->count; ++e) ++indptr[segment[e] + 1];
  for (int64_t i = 0; i < count; ++i) indptr[i + 1] += indptr[i];
  /* indptr[i] serves as the place of i's next entry, and ends as the start of i + 1: shifted back afterwards. */
  for (int64_t e = 0; e < index->count; ++e) edges[indptr[segment[e]]++] = (int32_t)e;
  memmove(indptr + 1, indptr, (size_t)count * 4);
  indptr[0] = 0;
  return true;
}
