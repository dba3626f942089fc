#include "dense_generic.h"
#include "dense_isa.h"

namespace {

struct Portable {
  static constexpr uint8_t kTurned = 0;
  static constexpr int64_t kAll = 1, kFind = 1, kSome = 1;

  // 4 inputs of a row by a block of weights.
  static void add(const int32_t* code, const int32_t* weights, uint32_t* sums) {
    for (int o = 0; o < kLanes; o++) {
      int8_t w[4];
      memcpy(w, weights + o, 4);
      sums[o] += uint32_t(code[0] * w[0] + code[1] * w[1] + code[2] * w[2] + code[3] * w[3]);
    }
  }

  static void some(const uint8_t* row, uint8_t zero, const int32_t* weights, int64_t groups, int64_t blocks,
                   int32_t* sums) {
    memset(sums, 0, size_t(blocks * kLanes) * 4);
    for (int64_t g = 0; g < groups; g++, row += 4) {
      const int32_t code[4] = {row[0] - zero, row[1] - zero, row[2] - zero, row[3] - zero};
      if (!(code[0] | code[1] | code[2] | code[3])) continue;
      for (int64_t b = 0; b < blocks; b++) {
        add(code, weights + (b * groups + g) * kLanes, reinterpret_cast<uint32_t*>(sums) + b * kLanes);
      }
    }
  }

  static void all(const uint8_t* panel, int64_t stride, const int32_t* weights, int64_t groups, int64_t blocks,
                  int32_t* sums) {
    memset(sums, 0, size_t(kPanel * blocks * kLanes) * 4);
    for (int64_t b = 0; b < blocks; b++) {
      for (int r = 0; r < kPanel; r++) {
        const uint8_t* row = panel + r * stride;
        uint32_t total[kLanes] = {};
        for (int64_t g = 0; g < groups; g++) {
          const int32_t code[4] = {row[4 * g], row[4 * g + 1], row[4 * g + 2], row[4 * g + 3]};
          add(code, weights + (b * groups + g) * kLanes, total);
        }
        memcpy(sums + (r * blocks + b) * kLanes, total, sizeof total);
      }
    }
  }
};

}  // namespace

extern const DenseKernels dense_kernels_portable = BGNN_DENSE_KERNELS("portable", Portable);
