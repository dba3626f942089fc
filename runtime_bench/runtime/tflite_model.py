"""A TFLite file with its inputs by name: `TfliteModel("model.tflite").run(x=..., edge_index=...)`.

Needs NumPy and a TFLite runtime (delegate.py), no PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.delegate import load_interpreter
from bgnn.runtime_bench.runtime.graph_inputs import well_formed
from bgnn.runtime_bench.runtime.padded import padding_of
from bgnn.runtime_bench.runtime.run import in_order, run


class TfliteModel:
    """A file that bgnn-convert wrote, on the installed TFLite runtime with our operators.

    `model`: a path, or the file's bytes. `threads`: of our operators and XNNPACK's. Raises UsageError for a missing
    file, and BgnnError, with the runtime's reason, for one that it refuses. `padding`: what the file says of the
    graphs that it takes; None where its inputs have one shape each.
    """

    def __init__(self, model: Path | str | bytes, threads: int = 1) -> None:
        self._interpreter = load_interpreter(model, threads)
        self.padding = padding_of(model if isinstance(model, bytes) else Path(model).read_bytes())

    def run(self, /, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file once; returns the outputs by name. `inputs`: by the file's names, or arr_0, arr_1 in its order.

        A graph may have fewer nodes, edges and graphs than the file has room for: it is filled up, and the outputs
        have the rows of what is there. Raises UsageError where inputs do not fit, BgnnError where the runtime fails.
        """
        if self.padding is None:
            return run(self._interpreter, inputs)
        names = self.padding.input_names
        with well_formed():
            arrays = self.padding.check(dict(zip(names, in_order(inputs, names), strict=True)))
            filled = dict(zip(names, self.padding.fill(arrays), strict=True))
        found = run(self._interpreter, filled)
        with well_formed():
            return dict(zip(found, self.padding.cut(list(found.values()), list(found), arrays), strict=False))
