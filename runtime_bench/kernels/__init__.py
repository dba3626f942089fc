"""The native kernels in C++, one file per instruction set, and their loader for tests and benchmarks."""
