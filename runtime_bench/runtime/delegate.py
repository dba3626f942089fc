"""Stock LiteRT with this project's operators: finds the delegate library of this machine and loads files with it.

Part of the `bgnn-runtime` wheel: it needs numpy and one of ai-edge-litert, tflite-runtime and TensorFlow, no PyTorch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from bgnn.runtime_bench.runtime import libraries, limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

LIBRARY = "libbgnn_delegate.so"
# The first that is installed runs the files; they share their Python interface.
_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
_FILE_IDENTIFIER = b"TFL3"
FLOAT_KERNELS = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


def library_path() -> Path:
    """The delegate library of this machine's architecture: BGNN_DELEGATE's, or the one in this package.

    Raises BgnnError where it is not there.
    """
    return libraries.find(LIBRARY, "BGNN_DELEGATE", "binary files run")


def runtime() -> ModuleType:
    """The installed TFLite runtime's module with `Interpreter` and `load_delegate`.

    Raises BgnnError, with the remedy, where none is; one that is there and does not work is named with its reason.
    """
    reasons = []
    for name in _RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            if not isinstance(error, ModuleNotFoundError) or error.name != package:
                reasons.append(f"{package}: {error}")
    found = f"can be imported ({'; '.join(reasons)})" if reasons else "is installed"
    raise BgnnError(f"no TFLite runtime {found}, and TFLite files run on one: pip install ai-edge-litert")


def load_delegate() -> Any:
    """A new delegate, for `Interpreter(experimental_delegates=[...])`. Raises BgnnError where it does not load."""
    path, module = library_path(), runtime()
    try:
        return module.load_delegate(str(path))
    except (ValueError, OSError) as error:
        raise BgnnError(f"the delegate {path} does not load: {str(error).strip()}") from error


def load_interpreter(model: Path | str | bytes, num_threads: int = 1, *, float_kernels: str = "xnnpack") -> Any:
    """An Interpreter of the installed runtime with its tensors allocated, that runs LCE's and bgnn's operators.

    `model`: a TFLite file's path or its bytes. `num_threads`: for our operators and XNNPACK's, each.
    `float_kernels`: the runtime's own float operators, "xnnpack" (fast), "builtin" or "reference" (slow; they round
    most alike on different processors). A file of bgnn-convert holds constants of the sizes it was made for: resize
    its inputs only along axes that are -1 in their `shape_signature`. The environment's BGNN_ISA chooses our kernels.

    Raises UsageError for a missing file or a wrong thread count, and BgnnError, with the runtime's reason, for a
    file that it refuses.
    """
    limits.check_threads("num_threads", num_threads)
    if isinstance(model, (str, Path)):
        try:
            content = Path(model).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {model}: {error.strerror}") from error
    else:
        content = bytes(model)
    if content[4:8] != _FILE_IDENTIFIER:
        raise BgnnError("not a TFLite file: the identifier TFL3 is missing at byte 4")
    if float_kernels not in FLOAT_KERNELS:
        raise UsageError(f"float_kernels {float_kernels!r} is none of {', '.join(FLOAT_KERNELS)}")
    delegate, module = load_delegate(), runtime()
    chosen = {}
    if float_kernels != "xnnpack":
        chosen["experimental_op_resolver_type"] = getattr(module.OpResolverType, FLOAT_KERNELS[float_kernels])
    try:
        interpreter = module.Interpreter(
            model_content=content, num_threads=num_threads, experimental_delegates=[delegate], **chosen
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"the runtime refuses the file: {str(error).strip()}") from error
    return interpreter
