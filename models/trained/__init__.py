"""Trained checkpoints that ship with the package; README.md says how they were made."""
