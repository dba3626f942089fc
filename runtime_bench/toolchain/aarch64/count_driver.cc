// count_driver CASE TIMES: calls one kernel TIMES times on one thread; without arguments, prints the cases' names.
// The sizes are those of the paper's DGCNN on one cloud: 1024 points, 20 neighbours; of a graph of as many nodes, with 8
// edges each on average, for the graph kernels and dense layers. Linked statically with the kernels.
// The last call stands between two system calls that profile_plugin.c waits for.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "../../kernels/ops/dense_kernels.h"

namespace {

constexpr int64_t kNodes = 1024, kNeighbours = 20;

uint64_t state = 88172645463325252ull;
uint64_t bits() { return state ^= state << 13, state ^= state >> 7, state ^= state << 17, state; }

void* block(int64_t bytes) { return aligned_alloc(64, size_t(bytes + 127) / 64 * 64); }

int32_t* words(int64_t count) {
  auto* data = static_cast<int32_t*>(block(4 * count));
  for (int64_t i = 0; i < count; i++) data[i] = int32_t(bits() >> 32);
  return data;
}

int32_t* indices(int64_t count) {
  int32_t* data = words(count);
  for (int64_t i = 0; i < count; i++) data[i] = int32_t(uint32_t(data[i]) % kNodes);
  return data;
}

int32_t* thresholds(int64_t count, int32_t middle) {
  int32_t* data = words(count);
  for (int64_t i = 0; i < count; i++) data[i] = middle + int32_t(uint32_t(data[i]) % 9) - 4;
  return data;
}

float* floats(int64_t count) {
  auto* data = static_cast<float*>(block(4 * count));
  for (int64_t i = 0; i < count; i++) data[i] = float(int64_t(bits() >> 40)) / float(1 << 23) - 1;
  return data;
}

template <class T>
T* room(int64_t count) {
  return static_cast<T*>(block(count * int64_t(sizeof(T))));
}

void call(const BgnnKernel& kernel, const void* args, int times) {
  void *shared = block(kernel.shared_bytes(args)), *scratch = block(kernel.scratch_bytes(args));
  for (int i = 0; i < times; i++) {
    if (i == times - 1) getpriority(PRIO_PROCESS, 0);
    kernel.run(args, shared, scratch, 0, kernel.begin(args, shared));
  }
  getpriority(PRIO_PROCESS, 0);
}

void hamming_knn(const BgnnKernels& k, int times, int64_t w) {
  BgnnHammingKnn a = {words(kNodes * w), room<int32_t>(kNodes * kNeighbours), 1, kNodes, w, kNeighbours};
  call(k.hamming_knn, &a, times);
}

void xor_edge_conv(const BgnnKernels& k, int times, int64_t w, int64_t outputs) {
  BgnnXorEdgeConv a = {words(kNodes * w), indices(kNodes * kNeighbours), words(outputs * 2 * w),
                       thresholds(outputs, int32_t(32 * w)), room<int32_t>(kNodes * outputs / 32),
                       1, kNodes, w, kNeighbours, outputs, 1};
  call(k.xor_edge_conv, &a, times);
}

void bconv2d(const BgnnKernels& k, int times, bool to_bits) {
  const int64_t w = 16, outputs = 256;
  BgnnBconv2d a = {};
  a.x = words(kNodes * w), a.weights = words(outputs * w);
  a.batch = 1, a.height = a.out_height = kNodes, a.width = a.out_width = 1, a.words = w, a.channels = 32 * w;
  a.groups = 1, a.out_channels = outputs, a.filter_height = a.filter_width = 1;
  a.stride_height = a.stride_width = a.dilation_height = a.dilation_width = 1;
  a.clamp_min = INT32_MIN, a.clamp_max = INT32_MAX;
  if (to_bits) a.thresholds = thresholds(outputs, 256), a.out_bits = room<int32_t>(kNodes * outputs / 32);
  else a.multiplier = floats(outputs), a.bias = floats(outputs), a.out = room<float>(kNodes * outputs);
  call(k.bconv2d, &a, times);
}

// ---- graphs

constexpr int64_t kEdges = 8 * kNodes, kWidth = 64, kHeads = 8;

uint8_t* codes(int64_t count) { return reinterpret_cast<uint8_t*>(words((count + 3) / 4)); }

Csr graph() {
  auto* indptr = room<int32_t>(kNodes + 1);
  memset(indptr, 0, size_t(4 * (kNodes + 1)));
  const int32_t* targets = indices(kEdges);
  for (int64_t p = 0; p < kEdges; p++) indptr[targets[p] + 1]++;
  for (int64_t i = 0; i < kNodes; i++) indptr[i + 1] += indptr[i];
  return {indptr, indices(kEdges), nullptr, kNodes, kEdges};
}

template <class Args, class... Scratch>
void call_graph(void (*run)(const Args*, Scratch..., int64_t, int64_t), const Args& args, int times, Scratch... scratch) {
  for (int i = 0; i < times; i++) {
    if (i == times - 1) getpriority(PRIO_PROCESS, 0);
    run(&args, scratch..., 0, kNodes);
  }
  getpriority(PRIO_PROCESS, 0);
}

QAggregate codes_of(int reduce, const uint8_t* weight) {
  QAggregate a = {};
  a.csr = graph(), a.x = codes(kNodes * kWidth), a.weight = weight, a.out = room<uint8_t>(kNodes * kWidth);
  a.width = kWidth, a.x_zp = 7, a.w_zp = 0, a.result = {0.02f, 3, 0, 255}, a.unit = 0.1f, a.y_scale = 0.2f;
  a.reduce = reduce;
  return a;
}

// Requantised messages; by lines where `multiplier` is that of a network, whose largest product is the largest message.
void messages(const GraphKernels& k, int times, float multiplier) {
  QAggregate a = codes_of(kSum, codes(kEdges));
  a.message = {multiplier, 5, 0, 255};
  auto* tables = room<MessageTables>(1);
  fill_message_tables(a.x_zp, a.w_zp, &a.message, tables);
  a.messages = tables, a.by_lines = true;
  call_graph(k.q_aggregate, a, times);
}

void floats_of(const GraphKernels& k, int times, int reduce, const float* weight) {
  Aggregate a = {graph(), floats(kNodes * kWidth), weight, room<float>(kNodes * kWidth), kWidth, reduce};
  call_graph(k.aggregate, a, times);
}

void attention(const GraphKernels& k, int times, bool on_codes, int64_t heads) {
  GatAggregate a = {};
  a.csr = graph(), a.from = floats(kNodes * heads), a.to = floats(kNodes * heads);
  a.heads = heads, a.channels = kWidth / heads, a.slope = 0.2f;
  if (on_codes) {
    a.codes = codes(kNodes * kWidth), a.out_codes = room<uint8_t>(kNodes * kWidth), a.x_scale = 0.02f, a.x_zp = 128;
    a.score = {0.01f, 128, 0, 255}, a.message = {0.02f, 128, 0, 255}, a.result = {0.5f, 128, 0, 255};
  } else {
    a.x = floats(kNodes * kWidth), a.out = room<float>(kNodes * kWidth);
  }
  call_graph<GatAggregate, float*>(k.gat_aggregate, a, times, room<float>(gat_scratch(kEdges, heads, kWidth)));
}

void table(const GraphKernels& k, int times, int64_t tables) {
  const QTable a = {codes(kNodes * kWidth), codes(256 * tables), room<uint8_t>(kNodes * kWidth), kWidth, tables};
  call_graph(k.q_table, a, times);
}

// A dense layer to codes, from codes (`one_in` 0) or from real numbers of which one in `one_in` is not 0.
void q_linear(const DenseKernels& k, int times, int64_t inputs, int64_t outputs, int64_t one_in) {
  const int64_t places = kLanes * dense_blocks(outputs);
  Dense a = {};
  if (one_in) {
    float* real = floats(kNodes * inputs);
    for (int64_t i = 0; i < kNodes * inputs; i++) real[i] = bits() % uint64_t(one_in) ? 0 : real[i];
    a.real = real;
  } else {
    a.codes = codes(kNodes * inputs);
  }
  a.quantiser = {0.01f, 128, 0, 255}, a.weights = words(places * dense_groups(inputs)), a.bias = indices(places);
  a.multiplier = floats(places), a.inputs = inputs, a.outputs = outputs, a.x_zero = 128;
  a.result = {0, 128, 0, 255}, a.out_codes = room<uint8_t>(kNodes * outputs);
  auto *scratch = room<uint8_t>(dense_scratch(inputs, outputs));
  auto* whole_bias = room<int32_t>(places);
  k.prepare(&a, scratch, whole_bias);
  a.whole_bias = whole_bias;
  for (int i = 0; i < times; i++) {
    if (i == times - 1) getpriority(PRIO_PROCESS, 0);
    k.dense(&a, scratch, 0, kNodes);
  }
  getpriority(PRIO_PROCESS, 0);
}

struct Case {
  const char* name;
  void (*run)(const BgnnKernels&, int times);
};

struct GraphCase {
  const char* name;
  void (*run)(const GraphKernels&, int times);
};

struct DenseCase {
  const char* name;
  void (*run)(const DenseKernels&, int times);
};

const DenseCase kDenseCases[] = {
    {"q_linear_64_64", [](const DenseKernels& k, int times) { q_linear(k, times, 64, 64, 0); }},
    {"q_linear_200_10", [](const DenseKernels& k, int times) { q_linear(k, times, 200, 10, 0); }},
    {"q_linear_real_1433_16", [](const DenseKernels& k, int times) { q_linear(k, times, 1433, 16, 1); }},
    {"q_linear_sparse_1433_16", [](const DenseKernels& k, int times) { q_linear(k, times, 1433, 16, 80); }},
};

const GraphCase kGraphCases[] = {
    {"q_aggregate_sum", [](const GraphKernels& k, int times) { call_graph(k.q_aggregate, codes_of(kSum, nullptr), times); }},
    {"q_aggregate_mean", [](const GraphKernels& k, int times) { call_graph(k.q_aggregate, codes_of(kMean, nullptr), times); }},
    {"q_aggregate_max", [](const GraphKernels& k, int times) { call_graph(k.q_aggregate, codes_of(kMax, nullptr), times); }},
    {"q_aggregate_products",
     [](const GraphKernels& k, int times) { call_graph(k.q_aggregate, codes_of(kSum, codes(kEdges)), times); }},
    {"q_aggregate_messages", [](const GraphKernels& k, int times) { messages(k, times, 1.0f / 256); }},
    {"q_aggregate_messages_steep", [](const GraphKernels& k, int times) { messages(k, times, 1.0f / 32); }},
    {"aggregate_sum", [](const GraphKernels& k, int times) { floats_of(k, times, kSum, nullptr); }},
    {"aggregate_mean", [](const GraphKernels& k, int times) { floats_of(k, times, kMean, nullptr); }},
    {"aggregate_max", [](const GraphKernels& k, int times) { floats_of(k, times, kMax, nullptr); }},
    {"aggregate_weighted", [](const GraphKernels& k, int times) { floats_of(k, times, kSum, floats(kEdges)); }},
    {"aggregate_int32",
     [](const GraphKernels& k, int times) {
       const Aggregate a = {graph(), floats(kNodes * kWidth), nullptr, room<float>(kNodes * kWidth), kWidth, kSum};
       call_graph(k.aggregate_int32, a, times);
     }},
    {"gat_aggregate_1", [](const GraphKernels& k, int times) { attention(k, times, false, 1); }},
    {"gat_aggregate_8", [](const GraphKernels& k, int times) { attention(k, times, false, kHeads); }},
    {"q_gat_aggregate_1", [](const GraphKernels& k, int times) { attention(k, times, true, 1); }},
    {"q_gat_aggregate_8", [](const GraphKernels& k, int times) { attention(k, times, true, kHeads); }},
    {"segment_softmax_8",
     [](const GraphKernels& k, int times) {
       Csr edges = graph();
       auto* places = room<int32_t>(kEdges);
       for (int64_t p = 0; p < kEdges; p++) places[p] = int32_t(p);
       edges.indices = places;
       const SegmentSoftmax a = {edges, floats(kEdges * kHeads), room<float>(kEdges * kHeads), kHeads};
       call_graph<SegmentSoftmax, float*>(k.segment_softmax, a, times, room<float>(gat_scratch(kEdges, kHeads, 0)));
     }},
    {"edge_product",
     [](const GraphKernels& k, int times) {
       const EdgeProduct a = {graph(), floats(kNodes), floats(kNodes), room<float>(kEdges), nullptr, {}};
       call_graph(k.edge_product, a, times);
     }},
    {"q_edge_product",
     [](const GraphKernels& k, int times) {
       const EdgeProduct a = {graph(), floats(kNodes), floats(kNodes), nullptr, room<uint8_t>(kEdges), {0.01f, 100, 0, 255}};
       call_graph(k.edge_product, a, times);
     }},
    {"q_table_one", [](const GraphKernels& k, int times) { table(k, times, 1); }},
    {"q_table_each", [](const GraphKernels& k, int times) { table(k, times, kWidth); }},
};

const Case kCases[] = {
    {"hamming_knn_64", [](const BgnnKernels& k, int times) { hamming_knn(k, times, 2); }},
    {"hamming_knn_128", [](const BgnnKernels& k, int times) { hamming_knn(k, times, 4); }},
    {"hamming_far_64",
     [](const BgnnKernels& k, int times) {
       BgnnHammingFar a = {words(kNodes * 2), room<int32_t>(kNodes * kNeighbours), 1, kNodes, 2, kNeighbours};
       call(k.hamming_far, &a, times);
     }},
    {"knn_3",
     [](const BgnnKernels& k, int times) {
       BgnnKnn a = {floats(kNodes * 3), room<int32_t>(kNodes * kNeighbours), 1, kNodes, 3, kNeighbours};
       call(k.knn, &a, times);
     }},
    {"knn_64",
     [](const BgnnKernels& k, int times) {
       BgnnKnn a = {floats(kNodes * 64), room<int32_t>(kNodes * kNeighbours), 1, kNodes, 64, kNeighbours};
       call(k.knn, &a, times);
     }},
    {"xor_edge_conv_64_64", [](const BgnnKernels& k, int times) { xor_edge_conv(k, times, 2, 64); }},
    {"xor_edge_conv_64_128", [](const BgnnKernels& k, int times) { xor_edge_conv(k, times, 2, 128); }},
    {"xor_edge_conv_128_256", [](const BgnnKernels& k, int times) { xor_edge_conv(k, times, 4, 256); }},
    {"gather_max_64",
     [](const BgnnKernels& k, int times) {
       BgnnGatherMax a = {floats(kNodes * 64), indices(kNodes * kNeighbours), room<float>(kNodes * 64), 1, kNodes,
                          kNodes, 64, kNeighbours};
       call(k.gather_max, &a, times);
     }},
    {"bin_edge_conv_64_64",
     [](const BgnnKernels& k, int times) {
       BgnnBinEdgeConv a = {words(kNodes * 2), floats(kNodes * 64), indices(kNodes * kNeighbours), floats(64),
                            floats(64), words(64 * 4), floats(64), floats(kNodes), floats(kNeighbours), floats(64),
                            room<float>(kNodes * 64), 1, kNodes, 64, 2, kNeighbours, 64, kNodes, kNeighbours, 64};
       call(k.bin_edge_conv, &a, times);
     }},
    {"dense_pool_512_1024",
     [](const BgnnKernels& k, int times) {
       BgnnDensePool a = {words(kNodes * 16), words(1024 * 16), room<float>(4 * 1024), 1, kNodes, 16, 512, 1024};
       call(k.dense_pool, &a, times);
     }},
    {"edge_max_64",
     [](const BgnnKernels& k, int times) {
       BgnnEdgeMax a = {floats(kNodes * 64), floats(kNodes * 64), indices(kNodes * kNeighbours), floats(kNodes),
                        floats(kNeighbours), room<float>(kNodes * 64), 1, kNodes, 64, kNeighbours, kNodes, kNeighbours};
       call(k.edge_max, &a, times);
     }},
    {"scaled_pool_512_1024",
     [](const BgnnKernels& k, int times) {
       BgnnScaledPool a = {words(kNodes * 16), words(1024 * 16), floats(kNodes), room<float>(4 * 1024), 1, kNodes, 16,
                           512, 1024, kNodes};
       call(k.scaled_pool, &a, times);
     }},
    {"quantize_64",
     [](const BgnnKernels& k, int times) {
       BgnnQuantize a = {floats(kNodes * 64), room<int32_t>(kNodes * 2), kNodes, 64};
       call(k.quantize, &a, times);
     }},
    {"quantize_int8_64",
     [](const BgnnKernels& k, int times) {
       BgnnQuantizeInt8 a = {reinterpret_cast<int8_t*>(words(kNodes * 16)), room<int32_t>(kNodes * 2), kNodes, 64, 3};
       call(k.quantize_int8, &a, times);
     }},
    {"dequantize_64",
     [](const BgnnKernels& k, int times) {
       BgnnDequantize a = {words(kNodes * 2), room<float>(kNodes * 64), kNodes, 64};
       call(k.dequantize, &a, times);
     }},
    {"dequantize_int8_64",
     [](const BgnnKernels& k, int times) {
       BgnnDequantizeInt8 a = {words(kNodes * 2), room<int8_t>(kNodes * 64), kNodes, 64, 1, 0};
       call(k.dequantize_int8, &a, times);
     }},
    {"bconv2d_512_256_float", [](const BgnnKernels& k, int times) { bconv2d(k, times, false); }},
    {"bconv2d_512_256_bits", [](const BgnnKernels& k, int times) { bconv2d(k, times, true); }},
    {"bmaxpool2d_64",
     [](const BgnnKernels& k, int times) {
       BgnnBMaxPool2d a = {words(kNodes * kNeighbours * 2), room<int32_t>(kNodes * 2), 1, kNodes, kNeighbours, 2,
                           kNodes, 1, 1, kNeighbours, 1, 1, 0, 0};
       call(k.bmaxpool2d, &a, times);
     }},
};

}  // namespace

int main(int argc, char** argv) {
  const BgnnKernels* kernels = bgnn_kernels();
  if (!kernels) return 2;
  for (const Case& c : kCases) {
    if (argc < 3) puts(c.name);
    else if (strcmp(c.name, argv[1]) == 0) return c.run(*kernels, atoi(argv[2])), 0;
  }
  for (const GraphCase& c : kGraphCases) {
    if (argc < 3) puts(c.name);
    else if (strcmp(c.name, argv[1]) == 0) return c.run(*graph_kernels_for(kernels->isa), atoi(argv[2])), 0;
  }
  for (const DenseCase& c : kDenseCases) {
    if (argc < 3) puts(c.name);
    else if (strcmp(c.name, argv[1]) == 0) return c.run(*dense_kernels_for(kernels->isa), atoi(argv[2])), 0;
  }
  return argc < 3 ? 0 : 2;
}
