"""Time, size and memory, side by side with what a user would pick. `cli` is `bgnn-bench`."""
