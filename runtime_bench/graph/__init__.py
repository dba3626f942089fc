"""`bgnn-graph`: all nodes of a graph that one process cannot hold, layer by layer (docs/scale.md).

Imports nothing of PyTorch or the compiler. `bgnn-convert --split-layers` writes what it runs.
"""
