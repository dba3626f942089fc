// A fuzzer for the delegate: a runtime of one operator that speaks TFLite's binary interface and nothing else.
//
//   harness COUNT SEED CASE...
//
// Each case (cases.py writes them) is one operator with its tensors and options. COUNT times one is taken, changed at
// a few random places (options' bytes, shapes, ranks, types, values, left-out tensors, threads), prepared and, where
// the delegate accepts it, run; then the same again after a change of shape, as a resized interpreter would. Every
// tensor is a block of exactly its size, so that a sanitizer sees a read or write one byte beyond it. Prints how many
// were refused and how many ran; exits 1 where the delegate breaks TFLite's rules. Sanitizers do the rest.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "../../../../../runtime_bench/kernels/delegate/tflite_abi.h"

extern "C" TfLiteDelegate* tflite_plugin_create_delegate(const char* const*, const char* const*, size_t,
                                                         void (*)(const char*));
extern "C" void tflite_plugin_destroy_delegate(TfLiteDelegate*);

namespace {

// Above these nothing is run, only prepared: a fuzzer has no time for it.
constexpr int kLongestDimension = 300;
constexpr size_t kLargestBlock = 1 << 20;

uint64_t state;
uint64_t random_bits() {  // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return state * 2685821657736338717ull;
}
int below(int n) { return int((random_bits() >> 33) % uint64_t(n)); }

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "harness: %s\n", what);
  exit(1);
}

struct Slot {  // a tensor of the case
  bool present = true;
  int type = 0;
  std::vector<int> dims;
  bool quantized = false, constant = false;
  float scale = 0;
  int zero_point = 0;
  std::vector<uint8_t> data;
};

struct Case {
  std::string op;
  std::vector<Slot> inputs;
  Slot output;
  std::vector<uint8_t> options;
};

struct Reader {
  const uint8_t *at, *end;
  const uint8_t* take(size_t n) {
    if (size_t(end - at) < n) fail("a case of the corpus is cut off");
    at += n;
    return at - n;
  }
  template <class T>
  T number() {
    T value;
    memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::vector<uint8_t> block() {
    const auto size = number<uint32_t>();
    const uint8_t* from = take(size);
    return std::vector<uint8_t>(from, from + size);
  }
  Slot slot() {
    Slot s;
    s.present = number<uint8_t>();
    s.type = number<uint8_t>();
    s.dims.resize(number<uint8_t>());
    for (int& dim : s.dims) dim = number<int32_t>();
    s.quantized = number<uint8_t>();
    s.constant = number<uint8_t>();
    s.scale = number<float>();
    s.zero_point = number<int32_t>();
    s.data = block();
    return s;
  }
};

Case read_case(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) fail(path);
  std::vector<uint8_t> bytes(1 << 22);
  bytes.resize(fread(bytes.data(), 1, bytes.size(), file));
  fclose(file);
  Reader reader{bytes.data(), bytes.data() + bytes.size()};
  Case c;
  const auto name = reader.block();
  c.op.assign(name.begin(), name.end());
  c.inputs.resize(reader.number<uint8_t>());
  for (Slot& s : c.inputs) s = reader.slot();
  c.output = reader.slot();
  c.options = reader.block();
  return c;
}

int hostile_number() {
  static const int numbers[] = {0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, -1, -2, 65535,
                                65536, 1 << 20, 1 << 29, 1 << 30, INT32_MAX, INT32_MAX - 31, INT32_MIN};
  return numbers[below(sizeof numbers / sizeof *numbers)];
}

void mutate_shape(Slot& s) {
  const int what = below(10);
  if (what == 0) {
    s.dims.push_back(below(4));
  } else if (what == 1 && !s.dims.empty()) {
    s.dims.erase(s.dims.begin() + below(int(s.dims.size())));
  } else if (!s.dims.empty()) {
    int& dim = s.dims[below(int(s.dims.size()))];
    if (what < 6) dim = int(unsigned(dim) + (below(2) ? 1u : ~0u));
    else if (what < 8) dim = below(80);
    else if (what == 8) dim = hostile_number();
    else dim = int(unsigned(dim) * 2);
  }
}

void mutate(Case& c) {
  const int input = below(int(c.inputs.size()) + 1);
  Slot& s = input < int(c.inputs.size()) ? c.inputs[input] : c.output;
  switch (below(12)) {
    case 0: case 1: case 2:  // an option's value: the small integers of a flexbuffer stand in single bytes
      if (!c.options.empty()) c.options[below(int(c.options.size()))] = uint8_t(below(3) ? below(70) : random_bits());
      break;
    case 3:
      if (!c.options.empty()) c.options[below(int(c.options.size()))] ^= uint8_t(1 << below(8));
      break;
    case 4:
      if (below(4) == 0) c.options.resize(below(int(c.options.size()) + 20));
      break;
    case 5: case 6: mutate_shape(s); break;
    case 7:  // shapes that still agree: every first dimension, or one number wherever it stands
      if (!c.inputs[0].dims.empty()) {
        const size_t axis = below(int(c.inputs[0].dims.size()));
        const int from = c.inputs[0].dims[axis], to = below(60);
        for (Slot& other : c.inputs) {
          for (int& dim : other.dims) dim = dim == from ? to : dim;
        }
      }
      break;
    case 8: s.type = below(4) ? s.type : below(12); break;
    case 9: s.present = below(4) != 0; break;
    case 10:
      if (s.data.size() >= 4) {
        const int number = hostile_number();
        memcpy(&s.data[below(int(s.data.size()) / 4) * 4], &number, 4);
      }
      break;
    default:
      s.zero_point = below(2) ? hostile_number() : s.zero_point;
      static const float scales[] = {0, -1, 1e-45f, 1e38f, 0.5f, __builtin_nanf(""), __builtin_inff()};
      s.scale = scales[below(7)];
      s.quantized = below(3) != 0;
  }
}

size_t bytes_of(int type, const TfLiteIntArray* dims) {  // SIZE_MAX: too many to run
  if (dims->size == 1 && type == kTfLiteUInt8 && dims->data[0] >= 0) return size_t(dims->data[0]);  // scratch
  size_t bytes = type == 1 || type == 2 ? 4 : type == 4 ? 8 : 1;
  for (int i = 0; i < dims->size; ++i) {
    if (dims->data[i] < 0 || dims->data[i] > kLongestDimension) return SIZE_MAX;
    bytes *= size_t(dims->data[i]);
    if (bytes > kLargestBlock) return SIZE_MAX;
  }
  return bytes;
}

TfLiteIntArray* int_array(const std::vector<int>& values) {
  auto* array = static_cast<TfLiteIntArray*>(malloc(sizeof(TfLiteIntArray) + sizeof(int) * values.size()));
  array->size = int(values.size());
  for (size_t i = 0; i < values.size(); ++i) array->data[i] = values[i];
  return array;
}

// The runtime: tensors [inputs..., output, more], one node 0, which the delegate replaces by its own node 1.
struct Runtime {
  TfLiteContext context = {};
  std::vector<TfLiteTensor> tensors;
  TfLiteNode nodes[2] = {};
  TfLiteRegistration registrations[2] = {};
  TfLiteIntArray* plan = nullptr;
  bool replaced = false;
  std::string error;

  static Runtime& of(TfLiteContext* context) { return *static_cast<Runtime*>(context->impl); }
  void moved() {
    context.tensors = tensors.data();
    context.tensors_size = tensors.size();
  }
};

TfLiteStatus get_plan(TfLiteContext* context, TfLiteIntArray** plan) {
  *plan = Runtime::of(context).plan;
  return kTfLiteOk;
}
TfLiteStatus get_node(TfLiteContext* context, int index, TfLiteNode** node, TfLiteRegistration** registration) {
  if (index < 0 || index > 1) fail("asked for a node that is not there");
  *node = &Runtime::of(context).nodes[index];
  *registration = &Runtime::of(context).registrations[index];
  return kTfLiteOk;
}
void report_error(TfLiteContext* context, const char* format, ...) {
  char text[1000];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  Runtime::of(context).error = text;
}
TfLiteStatus add_tensors(TfLiteContext* context, int count, int* first) {
  Runtime& runtime = Runtime::of(context);
  *first = int(runtime.tensors.size());
  runtime.tensors.resize(runtime.tensors.size() + size_t(count));  // moves them, as the real one may
  runtime.moved();
  return kTfLiteOk;
}
TfLiteStatus resize_tensor(TfLiteContext*, TfLiteTensor* tensor, TfLiteIntArray* dims) {
  for (int i = 0; i < dims->size; ++i) {
    if (dims->data[i] < 1) fail("the delegate resizes a tensor to nothing");
  }
  if (tensor->allocation_type == kTfLiteMmapRo) fail("the delegate resizes a constant");
  free(tensor->dims);
  tensor->dims = dims;
  free(tensor->data);
  tensor->data = nullptr;
  tensor->bytes = 0;
  return kTfLiteOk;
}
TfLiteStatus replace_nodes(TfLiteContext* context, TfLiteRegistration registration, const TfLiteIntArray* nodes,
                           TfLiteDelegate* delegate) {
  Runtime& runtime = Runtime::of(context);
  if (nodes->size != 1 || nodes->data[0] != 0) fail("the delegate replaces other nodes than the one there is");
  runtime.registrations[1] = registration;
  TfLiteDelegateParams params = {delegate, int_array({0}), nullptr, nullptr};
  runtime.nodes[1].user_data =
      registration.init(context, reinterpret_cast<const char*>(&params), sizeof params);
  free(params.nodes_to_replace);
  runtime.replaced = true;
  return kTfLiteOk;
}

void set_tensor(TfLiteTensor& tensor, const Slot& slot) {
  free(tensor.dims);
  free(tensor.data);
  tensor.type = TfLiteType(slot.type);
  tensor.dims = int_array(slot.dims);
  tensor.data = nullptr;
  tensor.bytes = 0;
  tensor.allocation_type = slot.constant ? kTfLiteMmapRo : kTfLiteArenaRw;
  tensor.quantization_type = TfLiteQuantizationType(slot.quantized);
  tensor.scale = slot.scale;
  tensor.zero_point = slot.zero_point;
}

// Memory of exactly the tensor's size, with the case's values, repeated or cut. False: too much to run.
bool fill(TfLiteTensor& tensor, const Slot* slot) {
  if (!tensor.dims) return true;
  const size_t bytes = bytes_of(tensor.type, tensor.dims);
  if (bytes == SIZE_MAX) return false;
  free(tensor.data);
  tensor.bytes = bytes;
  tensor.data = malloc(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    static_cast<uint8_t*>(tensor.data)[i] = slot && !slot->data.empty() ? slot->data[i % slot->data.size()] : 0x5a;
  }
  return true;
}

bool prepare_and_run(Runtime& runtime, const Case& c) {
  const size_t count = c.inputs.size();
  for (size_t i = 0; i <= count; ++i) set_tensor(runtime.tensors[i], i < count ? c.inputs[i] : c.output);
  runtime.error.clear();
  if (runtime.registrations[1].prepare(&runtime.context, &runtime.nodes[1]) != kTfLiteOk) {
    if (runtime.error.compare(0, c.op.size(), c.op) != 0) fail("an error does not name its operator");
    if (getenv("VERBOSE")) fprintf(stderr, "%s\n", runtime.error.c_str());
    return false;
  }
  if (runtime.tensors[count].allocation_type == kTfLiteMmapRo) fail("a constant is accepted as output");
  for (size_t i = 0; i < runtime.tensors.size(); ++i) {
    if (!fill(runtime.tensors[i], i < count ? &c.inputs[i] : nullptr)) return false;
  }
  // Now and then something happens to a tensor between prepare and invoke.
  if (below(50) == 0) {
    TfLiteTensor& tensor = runtime.tensors[below(int(runtime.tensors.size()))];
    if (below(2)) {
      free(tensor.data);
      tensor.data = nullptr;
    }
    tensor.bytes /= 2;
  }
  const bool done = runtime.registrations[1].invoke(&runtime.context, &runtime.nodes[1]) == kTfLiteOk;
  if (!done && getenv("VERBOSE")) fprintf(stderr, "%s\n", runtime.error.c_str());
  return done;
}

struct Tally {
  int refused = 0, ran = 0;
};

void run(const Case& original, int changes, TfLiteDelegate* delegate, Tally& tally) {
  Case c = original;
  for (int i = 0; i < changes; ++i) mutate(c);
  Runtime runtime;
  runtime.context.impl = &runtime;
  runtime.context.GetExecutionPlan = get_plan;
  runtime.context.GetNodeAndRegistration = get_node;
  runtime.context.ReportError = report_error;
  runtime.context.AddTensors = add_tensors;
  runtime.context.ResizeTensor = resize_tensor;
  runtime.context.ReplaceNodeSubsetsWithDelegateKernels = replace_nodes;
  runtime.context.recommended_num_threads = below(5) - 1;
  runtime.tensors.resize(c.inputs.size() + 1);
  runtime.moved();
  runtime.plan = int_array({0});

  TfLiteNode& node = runtime.nodes[0];
  std::vector<int> inputs;
  for (size_t i = 0; i < c.inputs.size(); ++i) inputs.push_back(c.inputs[i].present ? int(i) : -1);
  if (below(40) == 0) inputs.push_back(0);
  if (below(40) == 0) inputs.pop_back();
  std::vector<int> outputs(below(40) ? 1 : below(3), int(c.inputs.size()));
  if (below(60) == 0 && !outputs.empty()) outputs[0] = below(int(runtime.tensors.size()));
  node.inputs = int_array(inputs);
  node.outputs = int_array(outputs);
  uint8_t* options = static_cast<uint8_t*>(malloc(c.options.size()));
  for (size_t i = 0; i < c.options.size(); ++i) options[i] = c.options[i];
  node.custom_initial_data = options;
  node.custom_initial_data_size = int(c.options.size());
  runtime.registrations[0].custom_name = c.op.c_str();

  bool cyclic = false;
  for (int input : inputs) cyclic |= !outputs.empty() && input == outputs[0];
  const bool claimed = delegate->Prepare(&runtime.context, delegate) == kTfLiteOk;
  if (claimed == cyclic || claimed != runtime.replaced) fail("an operator is not claimed, or a cyclic one is");
  for (int round = 0; round < 2 && claimed; ++round) {
    (prepare_and_run(runtime, c) ? tally.ran : tally.refused)++;
    for (Slot& s : c.inputs) {
      if (!below(3)) mutate_shape(s);
    }
  }
  if (!claimed) tally.refused++;
  if (claimed) runtime.registrations[1].free(&runtime.context, runtime.nodes[1].user_data);
  free(runtime.nodes[1].temporaries);
  free(node.inputs);
  free(node.outputs);
  free(runtime.plan);
  free(options);
  for (TfLiteTensor& tensor : runtime.tensors) {
    free(tensor.dims);
    free(tensor.data);
  }
}

void print_error(const char* text) { fprintf(stderr, "harness: %s\n", text); }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) fail("usage: harness COUNT SEED CASE...");
  const int count = atoi(argv[1]);
  state = strtoull(argv[2], nullptr, 10) * 0x9e3779b97f4a7c15ull + 1;
  std::vector<Case> corpus;
  for (int i = 3; i < argc; ++i) corpus.push_back(read_case(argv[i]));
  TfLiteDelegate* delegate = tflite_plugin_create_delegate(nullptr, nullptr, 0, print_error);
  if (!delegate) return 1;
  std::vector<Tally> tallies(corpus.size());
  for (size_t i = 0; i < corpus.size(); ++i) {  // unchanged, each must run
    for (int attempt = 0; attempt < 5 && tallies[i].ran == 0; ++attempt) run(corpus[i], 0, delegate, tallies[i]);
    if (tallies[i].ran == 0) fail((corpus[i].op + ": the case itself does not run").c_str());
  }
  for (int i = 0; i < count; ++i) {
    const int which = below(int(corpus.size()));
    run(corpus[which], 1 + below(3), delegate, tallies[which]);
  }
  tflite_plugin_destroy_delegate(delegate);
  Tally all;
  for (size_t i = 0; i < corpus.size(); ++i) {
    printf("%-16s refused %6d  ran %6d\n", corpus[i].op.c_str(), tallies[i].refused, tallies[i].ran);
    all.refused += tallies[i].refused, all.ran += tallies[i].ran;
  }
  printf("%d files: %d preparations refused, %d runs\n", count, all.refused, all.ran);
}
