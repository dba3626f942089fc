"""The papers' figures, and what this project set itself: each once, with where it stands.

bgnn: the binary GNN paper, section 5.1 and appendix B: a Raspberry Pi 4B at 1.5 GHz, batch 8, 1024 points, k = 20, 40
classes, LCE's benchmark over 50 runs. Its BF-H has Hamming distances simulated, at a 32nd of their matrix products'
time; its Figure 4 gives numbers for two bars alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

# Times of DGCNN's run time (Figure 4, and section 5.1: "halves the run-time").
BGNN_RUN_TIME = {"DGCNN": 1.0, "BF-H": 0.5}
# Section 5.1: of the file, and of the process at its peak.
BGNN_FILE_BYTES = {"DGCNN": 7_200_000, "BF-H": 341_000}
BGNN_PEAK_BYTES = {"DGCNN": 575_000_000, "BF-H": 346_000_000}
# Table 5: parameters (float, binary), by torchsummaryX.
BGNN_PARAMETERS = {
    "DGCNN": (1_812_648, 0), "BF1": (11_064, 1_804_672), "BF2": (11_064, 1_804_672), "RF": (15_243, 1_804_672),
}  # fmt: skip
# Table 6: milliseconds and calls by node type of BF-H, its Hamming distances as matrix products.
BGNN_NODE_TYPES = {
    "TOPK_V2": (488.007, 4), "CONCATENATION": (384.707, 6), "FULLY_CONNECTED": (171.175, 32), "PRELU": (143.086, 7),
    "TILE": (136.443, 4), "LceBconv2d": (127.371, 6), "MAX_POOL_2D": (122.743, 5), "MUL": (105.993, 11),
    "SUB": (92.382, 4), "LceQuantize": (91.168, 10), "NEG": (78.453, 4), "PACK": (56.301, 4), "GATHER": (55.989, 4),
    "CONV_2D": (39.096, 2), "RESHAPE": (35.091, 82), "ADD": (28.557, 6), "TRANSPOSE": (23.829, 36),
    "AVERAGE_POOL_2D": (8.071, 1), "SLICE": (5.278, 64), "LceDequantize": (5.174, 4), "SUM": (1.132, 1),
    "SQUARE": (0.153, 1), "SOFTMAX": (0.01, 1),
}  # fmt: skip


# Table 4: which have binary weights, binary features, Hamming distances.
BGNN_FEATURES = {
    "DGCNN": (False, False, False), "RF": (True, False, False), "BF": (True, True, False), "BF-H": (True, True, True),
}  # fmt: skip
# Table 7: milliseconds and operators by node type of one Hamming distance of 64 bits as a matrix product.
BGNN_ONE_DISTANCE = {
    "FULLY_CONNECTED": (69.515, 8), "SUB": (29.934, 1), "PACK": (13.822, 1), "TRANSPOSE": (11.303, 9),
    "RESHAPE": (3.260, 16), "SLICE": (2.748, 16),
}  # fmt: skip

# Degree-Quant, Tables 4 and 10: milliseconds of fp32 and W8A8, the speedup as printed; 22 cores of a Xeon Gold 6152.
DQ_LATENCY: dict[str, dict[str, tuple[float, float, float]]] = {
    "zinc": {"gcn": (181, 42, 4.3), "gat": (190, 50, 3.8), "gin": (182, 43, 4.2)},
    "reddit": {"gcn": (13_100, 3_100, 4.2), "gat": (13_100, 2_800, 4.7), "gin": (13_100, 3_100, 4.2)},
    "cifar10": {"gcn": (182, 88, 2.1), "gat": (500, 496, 1.0), "gin": (144, 44, 3.3)},
    "cora": {"gcn": (0.94, 0.74, 1.3), "gat": (0.86, 0.78, 1.1), "gin": (0.85, 0.68, 1.3)},
    "citeseer": {"gcn": (0.97, 0.76, 1.3), "gat": (0.99, 0.88, 1.1), "gin": (0.95, 0.55, 1.7)},
}


@dataclass(frozen=True)
class Aim:
    """A figure that the project set itself, beside what was found. Information: no exit code depends on it."""

    what: str
    aim: str
    found: str
    met: bool

    def __str__(self) -> str:
        return f"{'PASS ' if self.met else 'SHORT'}  {self.what}: {self.found} (aim: {self.aim})"


# Times as fast as the float DGCNN at -O0 on LiteRT, one thread, at the paper's sizes; ours by instruction set.
STOCK_SPEED = 1.4
OWN_SPEED = {"avx512": 45.0, "avx2": 15.0, "portable": 4.0}
OWN_RF_SPEED = 8.0
# Of BF-H.
STOCK_FILE_BYTES, OWN_FILE_BYTES = 360_000, 290_000
STOCK_PEAK_SHARE = 0.25  # of the float DGCNN's peak
OWN_MEMORY_BYTES = 12_000_000  # over the empty runtime


def instruction_set(flags: Sequence[str]) -> str:
    """What our kernels use on a processor with these flags of /proc/cpuinfo, or what BGNN_ISA tells them to."""
    chosen = os.environ.get("BGNN_ISA")
    if chosen:
        return chosen
    if "asimd" in flags:
        return "neon"
    return "avx512" if "avx512_vpopcntdq" in flags else "avx2" if "avx2" in flags else "portable"
