"""Rewrites of the IR: one idea per file, its algebra in the docstring."""
