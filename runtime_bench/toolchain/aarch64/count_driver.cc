// count_driver CASE TIMES: calls one kernel TIMES times on one thread; without arguments, prints the cases' names.
// The sizes are those of the paper's DGCNN on one cloud: 1024 points, 20 neighbours. Linked statically with the kernels.
// The last call stands between two system calls that profile_plugin.c waits for.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "../../kernels/kernels.h"

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

struct Case {
  const char* name;
  void (*run)(const BgnnKernels&, int times);
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
  return argc < 3 ? 0 : 2;
}
