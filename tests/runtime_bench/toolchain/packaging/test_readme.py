"""The README's section on a Raspberry Pi does what it says: its lines, its service, its C++."""

from __future__ import annotations

import configparser
import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tflite_files
from bgnn_files import xor_edge_conv
from test_devices import PIP_CACHE, ROOT, run, wheel_of

from bgnn.runtime_bench.runtime import delegate, onnx_ops


def blocks() -> dict[str, str]:
    """The section's code, by its language; one of each."""
    section = (ROOT / "README.md").read_text().partition("## On a Raspberry Pi\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found) == 4
    return dict(found)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the user has copied to the device, but for the wheel."""
    tflite_files.build()
    case = xor_edge_conv(np.random.default_rng(0))
    (tmp_path / "model.tflite").write_bytes(case.file())
    np.savez(tmp_path / "cloud.npz", *case.arrays())
    (tmp_path / "sensor.py").write_text(blocks()["python"])
    (tmp_path / "my_sensor.py").write_text(
        "import numpy as np\ndef clouds():\n    for _ in range(3):\n        yield from np.load('cloud.npz').values()\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_lines_and_the_service(home: Path) -> None:
    wheel = wheel_of(platform.machine())
    shutil.copy(wheel, home)
    lines = blocks()["sh"].replace("aarch64", platform.machine()).splitlines()
    assert len(lines) == 3
    # Not the package of the system: that is root's, and this machine has it.
    lines[0] = lines[0].removeprefix("sudo apt-get install -y python3-venv && ")
    lines[0] = lines[0].replace("python3", shlex.quote(sys.executable), 1)
    for line in lines:
        done = run(["/bin/sh", "-c", line], home, PIP_CACHE_DIR=PIP_CACHE, PIP_DISABLE_PIP_VERSION_CHECK="1")
        assert done.returncode == 0, done.stderr
    assert done.stdout == "t4: int32 [2, 30, 2]\n"

    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(blocks()["ini"])
    assert unit["Service"]["WorkingDirectory"] == f"/home/{unit['Service']['User']}"
    done = run(shlex.split(unit["Service"]["ExecStart"]), home)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["item 1", "item 2", "item 3"]
    assert said[3].startswith("3 items; latency, ms: p50 ")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ as a library whose functions have C names."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    tflite_files.build()
    folder = tmp_path_factory.mktemp("cpp")
    names = ("TfLiteDelegate* bgnn_delegate", "OrtStatus* bgnn_operators")
    code = blocks()["cpp"]
    for name in names:
        assert code.count(f"\n{name}") == 1
        code = code.replace(f"\n{name}", f'\nextern "C" {name}')
    (folder / "device.cc").write_text(code)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", "libdevice.so", "device.cc", "-ldl"], check=True, cwd=folder)
    return folder / "libdevice.so"


class Delegate:
    """A delegate that C++ made, as LiteRT's Python takes it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def _get_native_delegate_pointer(self) -> int:
        return self._pointer


def test_the_cpp_makes_a_delegate_that_runs(compiled: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    library = ctypes.CDLL(str(compiled))
    library.bgnn_delegate.restype = ctypes.c_void_p
    made = library.bgnn_delegate(str(delegate.library_path()).encode())
    case = xor_edge_conv(np.random.default_rng(0))
    interpreter = Interpreter(model_content=case.file(), experimental_delegates=[Delegate(made)])
    interpreter.allocate_tensors()
    for given, array in zip(interpreter.get_input_details(), case.arrays(), strict=True):
        interpreter.set_tensor(given["index"], array)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.array_equal(found, case.expected)


# In a process that has no onnxruntime but this one: sys.argv is the C++, the operators, ONNX Runtime and a file.
WITH_ONNX = """
import ctypes, sys
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_void_p
cpp, operators, runtime, file = sys.argv[1:]

class Base(ctypes.Structure):
    _fields_ = [("api", ctypes.CFUNCTYPE(POINTER(c_void_p), c_uint32))]

library = ctypes.CDLL(runtime)
library.OrtGetApiBase.restype = POINTER(Base)
base = library.OrtGetApiBase()
functions = base.contents.api(17)

def call(place, *arguments):
    # Functions are known by their places (kernels/ort/ort_abi.h).
    types = [type(one) if isinstance(one, ctypes._SimpleCData) else c_void_p for one in arguments]
    status = ctypes.CFUNCTYPE(c_void_p, *types)(functions[place])(*arguments)
    if status:
        sys.exit(ctypes.CFUNCTYPE(c_char_p, c_void_p)(functions[2])(status).decode())

environment, options, session = c_void_p(), c_void_p(), c_void_p()
call(3, c_int(3), c_char_p(b"test"), ctypes.addressof(environment))  # CreateEnv
call(10, ctypes.addressof(options))  # CreateSessionOptions
if operators:
    register = ctypes.CDLL(cpp).bgnn_operators
    register.restype, register.argtypes = c_void_p, [c_char_p, c_void_p, c_void_p]
    if register(operators.encode(), options, ctypes.cast(base, c_void_p)):
        sys.exit("not registered")
call(7, environment, c_char_p(file.encode()), options, ctypes.addressof(session))  # CreateSession
print("a session")
"""


def test_the_cpp_registers_the_operators(compiled: Path, tmp_path: Path) -> None:
    import torch
    from onnx_graphs import file_of, open_graph, random_edges

    def layer(m, x, edges):
        return torch.ops.bgnn.segment_sum(x.index_select(0, edges.select(0, 0)), edges.select(0, 1), x.shape[0])

    file = tmp_path / "sum.onnx"
    file.write_bytes(file_of(open_graph(layer, torch.randn(9, 8), random_edges(9, 20)), (1, "bgnn")))
    (runtime,) = (Path(onnx_ops.runtime().__file__).parent / "capi").glob("libonnxruntime.so.*")
    for operators in (str(onnx_ops.library_path()), ""):
        command = [sys.executable, "-c", WITH_ONNX, str(compiled), operators, str(runtime), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert (done.stdout == "a session\n") == bool(operators), done.stderr
