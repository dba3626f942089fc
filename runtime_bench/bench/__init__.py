"""Time, size and memory, side by side with what a user would pick: one module for each of the Makefile's benchmarks."""
