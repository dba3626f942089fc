"""ONNX Runtime with this project's operators (domain `bgnn`): finds the library of this machine and registers it.

Files written with `--kernels bgnn` need it; files of stock operators do not. It needs onnxruntime 1.17 or newer.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from bgnn.runtime_bench.runtime import libraries, limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

LIBRARY = "libbgnn_ort.so"


def runtime() -> ModuleType:
    """The installed ONNX Runtime. Raises BgnnError, with the remedy, where it cannot be imported."""
    try:
        import onnxruntime
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        raise BgnnError(f"onnxruntime {reason}, and ONNX files run on it: pip install onnxruntime") from error
    module: ModuleType = onnxruntime
    return module


def library_path() -> Path:
    """The operators' library of this machine's architecture: BGNN_ORT_OPS's, or the one in this package.

    Raises BgnnError where it is not there.
    """
    return libraries.find(LIBRARY, "BGNN_ORT_OPS", "ONNX files of --kernels bgnn run")


def register_ops(options: Any) -> None:
    """Make the `bgnn` operators known to the sessions of these `onnxruntime.SessionOptions`.

    The environment's BGNN_ISA (portable, avx2, avx512) chooses the instruction set of sessions made from then on.
    Raises BgnnError, with the runtime's reason, where the library is missing or does not load.
    """
    path = library_path()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise BgnnError(f"the operators {path} do not load: {str(error).strip()}") from error


def session(model: Path | str | bytes, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU that also runs the `bgnn` operators.

    `model`: an ONNX file's path, or its bytes. `threads`: of each operator; operators run one after the other.
    Raises UsageError for a missing file or a wrong thread count, and BgnnError, with the runtime's reason, for a
    file that it refuses. Wrong inputs are refused by its `run` (onnxruntime's errors, which name the operator).
    """
    limits.check_threads("threads", threads)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise UsageError(f"cannot read {model}: no such file")
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    register_ops(options)
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise BgnnError(f"ONNX Runtime refuses the file: {str(error).strip()}") from error
