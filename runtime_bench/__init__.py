"""Running emitted files on the runtimes that users have, and measuring them: time, size and memory, side by side."""
