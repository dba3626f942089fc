"""The models of the papers in PyTorch, with their training."""
