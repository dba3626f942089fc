"""run_files.py FILES.npz...: runs files of make_graphs.py, each call between the system calls of count_plugin.c.

A file's first run is not counted: the runtime packs its weights then. Prints each file's name, and ends with an error
where one in integers gives other bits than x86.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.tflite_model import TfliteModel

for path in sys.argv[1:]:
    with np.load(path) as archive:
        recorded = dict(archive)
    model = TfliteModel(recorded.pop("model").tobytes())
    expected = recorded.pop("output")
    (output,) = model.run(**recorded).values()
    if "float" in path:
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    elif output.tobytes() != expected.tobytes():
        raise SystemExit(f"{path}: {np.count_nonzero(output != expected)} of {output.size} numbers are not x86's")
    os.getpriority(os.PRIO_PROCESS, 0)
    model._interpreter.invoke()
    os.getpriority(os.PRIO_PROCESS, 0)
    print(Path(path).stem)
