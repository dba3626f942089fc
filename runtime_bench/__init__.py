"""Running emitted files on the runtimes that users have, and measuring them: four rooms.

`runtime` ships to devices and imports nothing of the rest; `kernels` is its C++; `bench` measures; `toolchain` builds
wheels and runs aarch64 without a board.
"""
