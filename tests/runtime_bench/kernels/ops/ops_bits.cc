// ops_bits ISA...: for each graph and dense kernel with many sizes and settings, a line with a hash of its outputs by each
// of the instruction sets; all must be the same, and the same on every processor. test_ops_bits.py builds and runs it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "ops/dense_kernels.h"

namespace {

uint64_t state = 88172645463325252ull;
uint32_t bits() {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return uint32_t(state >> 32);
}

constexpr int64_t kNodes = 60, kMostEntries = 3000, kMostWidth = 200, kMostHeads = 9;

uint8_t x_codes[kNodes * kMostWidth], weights[kMostEntries], out_codes[kNodes * kMostWidth];
uint8_t tables[256 * kMostWidth];
float x_floats[kNodes * kMostWidth], factors[kMostEntries], from[kNodes * kMostHeads], to[kNodes * kMostHeads];
float values[kMostEntries * kMostHeads], out_floats[kMostEntries * kMostHeads], scratch[kMostWidth + kMostEntries * kMostHeads + 16];
int32_t x_ints[kNodes * kMostWidth], indptr[kNodes + 1], indices[kMostEntries], edges[kMostEntries];
MessageTables message_tables;

float number() { return float(int32_t(bits()) >> 8) / float(1 << 20); }  // in [-8, 8)

void fill() {
  // Entries: none for some nodes, a few for most, and more for one than 16 bits can sum.
  for (int64_t i = 0; i < kNodes; i++) {
    const int32_t count = i % 7 == 3 ? 0 : i == 20 ? 700 : int32_t(bits() % 24);
    indptr[i + 1] = indptr[i] + count;
  }
  for (int32_t& index : indices) index = int32_t(bits() % kNodes);
  for (int64_t p = 0; p < kMostEntries; p++) edges[p] = int32_t(kMostEntries - 1 - p);
  for (uint8_t& code : x_codes) code = uint8_t(bits() % 4 == 0 ? bits() % 2 * 255 : bits());
  for (uint8_t& code : weights) code = uint8_t(bits() % 4 == 0 ? bits() % 2 * 255 : bits());
  for (uint8_t& code : tables) code = uint8_t(bits());
  for (float& v : x_floats) v = number();
  for (float& v : factors) v = number();
  for (float& v : from) v = number();
  for (float& v : to) v = number();
  for (float& v : values) v = number();
  for (int32_t& v : x_ints) v = int32_t(bits());
}

Csr graph(bool places) { return {indptr, indices, places ? edges : nullptr, kNodes, indptr[kNodes]}; }

uint64_t hash(const void* data, size_t bytes) {
  uint64_t h = 14695981039346656037ull;
  for (size_t i = 0; i < bytes; i++) h = (h ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211ull;
  return h;
}

const GraphKernels* all[8];
const DenseKernels* dense_kernels[8];
int count, at;

// A line of what `run(kernels, first, last)` leaves in `out`, the rows in two parts.
template <class Run>
void line(const char* name, int64_t width, int setting, int64_t rows, void* out, size_t bytes, const Run& run) {
  printf("%s %lld %d", name, (long long)width, setting);
  for (at = 0; at < count; at++) {
    memset(out, 0xa5, bytes);
    run(*all[at], rows / 3, rows);
    run(*all[at], 0, rows / 3);
    printf(" %016llx", (unsigned long long)hash(out, bytes));
  }
  puts("");
}

struct Message {
  float multiplier;
  int32_t zp, low, high;
};

void q_aggregate(int64_t width) {
  // No requantised messages; lines of slopes below 1; others without lines for some weights; steep ones.
  const Message messages[] = {{0, 0, 0, 0}, {1.0f / 256, 5, 0, 255}, {1.0f / 300, 120, 3, 200}, {1.0f / 40, 7, 0, 255}, {0.9f, 128, 1, 254}};
  int setting = 0;
  for (int reduce : {kSum, kMean, kMax}) {
    for (int kind = 0; kind < (reduce == kMax ? 1 : 3); kind++) {  // no weights; in order; by their places
      for (const Message& m : messages) {
        for (int32_t w_zp : {0, 99}) {
          if (kind == 0 && (m.multiplier != 0 || w_zp != 0)) continue;
          QAggregate a = {};
          a.csr = graph(kind == 2), a.x = x_codes, a.weight = kind ? weights : nullptr, a.out = out_codes;
          a.width = width, a.x_zp = 7 + 60 * (setting % 3), a.w_zp = w_zp, a.reduce = reduce;
          a.result = {setting % 2 ? 0.0021f : 0.31f, setting % 5 * 60, setting % 4 * 9, 255 - setting % 6};
          a.unit = 0.01f, a.y_scale = 0.02f;
          if (m.multiplier != 0) {
            a.message = {m.multiplier, m.zp, m.low, m.high};
            fill_message_tables(a.x_zp, a.w_zp, &a.message, &message_tables);
            a.messages = &message_tables;
          }
          for (bool by_lines : {false, true}) {
            a.by_lines = by_lines;
            line("q_aggregate", width, setting++, kNodes, out_codes, size_t(kNodes * width),
                 [&](const GraphKernels& k, int64_t first, int64_t last) { k.q_aggregate(&a, first, last); });
          }
        }
      }
    }
  }
}

void aggregate(int64_t width) {
  int setting = 0;
  for (int reduce : {kSum, kMean, kMax}) {
    for (int kind = 0; kind < 3; kind++) {
      const Aggregate a = {graph(kind == 2), x_floats, kind ? factors : nullptr, out_floats, width, reduce};
      line("aggregate", width, setting++, kNodes, out_floats, size_t(4 * kNodes * width),
           [&](const GraphKernels& k, int64_t first, int64_t last) { k.aggregate(&a, first, last); });
    }
  }
  const Aggregate a = {graph(false), reinterpret_cast<const float*>(x_ints), nullptr, out_floats, width, kSum};
  line("aggregate_int32", width, 0, kNodes, out_floats, size_t(4 * kNodes * width),
       [&](const GraphKernels& k, int64_t first, int64_t last) { k.aggregate_int32(&a, first, last); });
}

void attention(int64_t heads, int64_t channels) {
  const int64_t width = heads * channels;
  for (int setting = 0; setting < 4; setting++) {
    GatAggregate a = {};
    a.csr = graph(false), a.from = from, a.to = to, a.heads = heads, a.channels = channels, a.slope = 0.2f;
    a.x_scale = 0.03f, a.x_zp = 100 * setting / 2, a.message = {0.011f, 90, 0, 250 + setting}, a.result = {0.37f, 30 * setting, 0, 255};
    if (setting % 2) a.score = {0.05f, 128, 2, 255};
    if (setting < 2) a.x = x_floats, a.out = out_floats;
    else a.codes = x_codes, a.out_codes = out_codes;
    line("gat_aggregate", width, int(heads) * 10 + setting, kNodes, setting < 2 ? (void*)out_floats : out_codes,
         size_t((setting < 2 ? 4 : 1) * kNodes * width),
         [&](const GraphKernels& k, int64_t first, int64_t last) { k.gat_aggregate(&a, scratch, first, last); });
  }
}

// Of the sparse ones, one in `one_in` codes or numbers is not zero.
void dense(int64_t inputs, int64_t outputs, uint32_t one_in = 32) {
  constexpr int64_t kMost = 224, kMostInputs = 10500;
  // Zeros, and what nearly is one.
  const float nothing[] = {0, 0, 0, -0.0f, 1e-42f, -1e-39f, 3e-38f};
  const float odd[] = {__builtin_nanf(""), __builtin_inff(), -__builtin_inff(), 0.02499f};
  static int32_t words[kMostInputs * 8], bias[kMost], whole_bias[kMost];
  static float multiplier[kMost], shift[kMost], real[kNodes * kMostInputs];
  static uint8_t codes[kNodes * kMostInputs];
  alignas(64) static uint8_t memory[1 << 20];
  const int64_t groups = dense_groups(inputs), lanes = kLanes * dense_blocks(outputs);
  for (int setting = 0; setting < 16; setting++) {
    const bool sparse = setting & 1, lowest = setting & 2, from_real = setting & 4, to_real = setting & 8;
    Dense a = {};
    a.x_zero = (setting / 2 + int(inputs)) % 3 * 100, a.w_zero = setting % 3 == 0 ? -7 : 0, a.flip = setting % 5 == 0 ? 0x80 : 0;
    memset(words, 0, sizeof words);
    for (int64_t o = 0; o < lanes; o++) {
      bias[o] = whole_bias[o] = 0, multiplier[o] = shift[o] = 0;
      if (o >= outputs) continue;
      bias[o] = int32_t(bits() >> 12) - (1 << 19), multiplier[o] = number() / 4096, shift[o] = number();
      for (int64_t k = 0; k < inputs; k++) {
        const int8_t w = int8_t(lowest && bits() % 3 == 0 ? -128 : int32_t(bits() % 255) - 127);
        reinterpret_cast<int8_t*>(words)[((o / kLanes * groups + k / 4) * kLanes + o % kLanes) * 4 + k % 4] = w;
      }
    }
    for (int64_t i = 0; i < kNodes * inputs; i++) {
      const bool zero = sparse && bits() % one_in != 0;
      codes[i] = uint8_t((zero ? uint32_t(a.x_zero) : bits() % 3 == 0 ? bits() % 2 * 255 : bits()) ^ a.flip);
      real[i] = zero ? nothing[bits() % 7] : bits() % 64 == 0 ? odd[bits() % 4] : number();
    }
    if (from_real) a.real = real, a.flip = 0;
    else a.codes = codes;
    const int32_t least = setting == 7 ? 110 : 0, most = setting == 13 ? 90 : 255;  // 0's code may not be x_zero
    a.quantiser = {0.05f, a.x_zero, least, most}, a.weights = words, a.bias = bias, a.multiplier = multiplier;
    a.shift = setting % 3 ? shift : nullptr, a.whole_bias = whole_bias, a.inputs = inputs, a.outputs = outputs;
    a.result = {0, 30, 2, 250};
    if (to_real) a.out = out_floats;
    else a.out_codes = out_codes;
    line("dense", inputs * 1000 + outputs, setting, kNodes, to_real ? (void*)out_floats : out_codes,
         size_t((to_real ? 4 : 1) * kNodes * outputs), [&](const GraphKernels&, int64_t first, int64_t last) {
           dense_kernels[at]->prepare(&a, memory, whole_bias);
           dense_kernels[at]->dense(&a, memory, first, last);
         });
  }
}

void rest() {
  for (int64_t heads = 1; heads <= kMostHeads; heads++) {
    Csr by_place = graph(false);
    by_place.indices = edges;
    const SegmentSoftmax a = {by_place, values, out_floats, heads};
    line("segment_softmax", heads, 0, kNodes, out_floats, size_t(4 * kMostEntries * heads),
         [&](const GraphKernels& k, int64_t first, int64_t last) { k.segment_softmax(&a, scratch, first, last); });
  }
  for (int on_codes = 0; on_codes < 2; on_codes++) {
    const EdgeProduct a = {graph(false), from, to, on_codes ? nullptr : out_floats, on_codes ? out_codes : nullptr, {0.05f, 120, 1, 255}};
    line("edge_product", 1, on_codes, kNodes, on_codes ? (void*)out_codes : out_floats, size_t(indptr[kNodes]) * (on_codes ? 1 : 4),
         [&](const GraphKernels& k, int64_t first, int64_t last) { k.edge_product(&a, first, last); });
  }
  int64_t found;
  for (int64_t limit : {kNodes, kNodes - 1, int64_t(1)}) {
    line("first_bad_index", limit, 0, 3, &found, sizeof found, [&](const GraphKernels& k, int64_t first, int64_t) {
      if (first == 0) found = k.first_bad_index(indices, 0, kMostEntries, limit);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc && i <= 8; i++) {
    if (!bgnn_kernels_for(argv[i]) || strcmp(dense_kernels_for(argv[i])->isa, argv[i]) != 0) return 2;
    dense_kernels[count] = dense_kernels_for(argv[i]);
    all[count++] = graph_kernels_for(argv[i]);
  }
  fill();
  const int64_t widths[] = {1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 130, 200};
  for (int64_t width : widths) {
    q_aggregate(width);
    aggregate(width);
    for (int64_t many : {int64_t(1), width}) {
      const QTable a = {x_codes, tables, out_codes, width, many};
      line("q_table", width, many > 1, kNodes, out_codes, size_t(kNodes * width),
           [&](const GraphKernels& k, int64_t first, int64_t last) { k.q_table(&a, first, last); });
    }
  }
  for (int64_t heads : {1, 2, 3, 4, 8, 9}) {
    for (int64_t channels : {1, 3, 4, 8, 16, 20}) attention(heads, channels);
  }
  for (int64_t inputs : {1, 3, 4, 5, 8, 9, 15, 16, 17, 31, 64, 65, 130, 200}) {
    for (int64_t outputs : {1, 7, 8, 16, 17, 33, 100}) dense(inputs, outputs);
  }
  dense(4200, 17);  // more groups of inputs than NEON lists at once, or even more of them that are not zeros
  dense(10500, 17, 8);
  for (uint32_t one_in : {2, 6, 9, 13, 1000}) dense(1433, 16, one_in);
  rest();
  return 0;
}
