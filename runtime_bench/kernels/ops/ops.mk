# The operators that both bindings have, as units of theirs: included by ../ort/Makefile and ../delegate/Makefile, which
# set ARCH first. Every float operation is rounded by itself, so that all instruction sets agree. uninitialized: GCC 12's
# own immintrin.h, false alarms.
ISA_graph_avx2 := -mavx2 -mbmi -mbmi2 -mpopcnt -mlzcnt
ISA_graph_avx512 := $(ISA_graph_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 \
  -mavx512vpopcntdq -mprefer-vector-width=512
ISA_dense_avx2 := $(ISA_graph_avx2)
ISA_dense_avx512 := $(ISA_graph_avx512) -mavx512vnni
ISA_dense_neon := -mcpu=cortex-a72
ISA_dense_dotprod := -mcpu=generic+dotprod
ISA_dense_i8mm := -mcpu=generic+dotprod+i8mm
OPS_FLAGS := -std=c++17 $(OPTIMISE) -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -ffp-contract=off \
  -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-warning-option -Wno-uninitialized -Wno-maybe-uninitialized
OPS := $(patsubst %,$(BUILD)/$(ARCH)/%.o,op_list run csr aggregation table binary graph_kernels messages graph_portable \
  dense dense_kernels dense_portable \
  $(if $(filter x86_64,$(ARCH)),graph_avx2 graph_avx512 dense_avx2 dense_avx512) $(if $(filter aarch64,$(ARCH)),graph_neon dense_neon dense_dotprod dense_i8mm))

$(OPS): $(BUILD)/$(ARCH)/%.o: ../ops/%.cc $(wildcard ../ops/*.h) ../kernels.h ../ops/ops.mk ../objects.mk
	@mkdir -p $(@D)
	$(CXX) $(OPS_FLAGS) $(CHECKS) $(ISA_$*) -c $< -o $@
