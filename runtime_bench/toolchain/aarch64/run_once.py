"""run_once.py MODEL.tflite INPUT.npy OUTPUT.npy MAPS: runs a file between the system calls of profile_plugin.c.

The first run is not counted: the runtime packs its weights then. Writes the output, and where the libraries are in
memory to MAPS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.delegate import load_interpreter

model, points, output, maps = sys.argv[1:]
interpreter = load_interpreter(model)
(given,) = interpreter.get_input_details()
interpreter.set_tensor(given["index"], np.load(points))
interpreter.invoke()
os.getpriority(os.PRIO_PROCESS, 0)
interpreter.invoke()
os.getpriority(os.PRIO_PROCESS, 0)
np.save(output, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
Path(maps).write_text(Path("/proc/self/maps").read_text())
