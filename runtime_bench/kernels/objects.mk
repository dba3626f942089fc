# Where compiled units lie, and how those under sanitizers are compiled; included by the Makefiles of this folder. They share
# one folder, so that a unit is compiled once, whoever links it.
, := ,
SANITIZE ?=
ifndef BUILD
BUILD := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))../../build)/objects$(if $(SANITIZE),-$(firstword $(subst $(,), ,$(SANITIZE))))
endif
# -O1, and checks as calls instead of inline: the graph kernels compile in 60% of the time. -g1 has the lines of a report.
# The three checks left out are a third of the rest; a pointer that they would find ends at AddressSanitizer when it is used.
OPTIMISE := $(if $(SANITIZE),-O1,-O3)
CHECKS := $(if $(SANITIZE),-g1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE) -fno-sanitize-recover=all \
  -fno-sanitize=null$(,)object-size$(,)pointer-overflow \
  --param asan-instrumentation-with-call-threshold=0)
