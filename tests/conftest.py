"""What all tests share: helpers beside the tests can be imported by name, and PyTorch keeps to one core."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # `from graphs import ...`: the tests are no package
torch.set_num_threads(1)
gc.set_threshold(20_000, 20, 20)  # a conversion makes and drops millions of objects: a twentieth of the tests' time
