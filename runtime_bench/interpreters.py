"""The two runtimes that emitted files run on: Larq Compute Engine's interpreter and stock LiteRT.

Both take the model as bytes and run with arrays in the file's own input order, returning outputs in the
file's own output order. Larq Compute Engine (LCE) is loaded by the path of its shared object, because
importing its package imports TensorFlow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from bgnn.converter.errors import BgnnError, UsageError

KERNELS = ("indirect", "default", "reference")
_LCE_WRAPPER = Path("tflite/python/interpreter_wrapper_lite.so")


class Interpreter(Protocol):
    """What both runtimes offer. Shapes and dtypes are in the file's order; the shapes are static."""

    input_shapes: list[tuple[int, ...]]
    input_dtypes: list[np.dtype]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[np.dtype]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]: ...


def _check_inputs(
    inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]
) -> list[np.ndarray]:
    """The inputs as contiguous arrays, or one UsageError that lists each that does not fit the file."""
    if len(inputs) != len(shapes):
        raise UsageError(f"the file takes {len(shapes)} inputs, {len(inputs)} were given")
    arrays = [np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array) for array in inputs]
    wrong = [
        f"input {i} must be {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}"
        for i, (array, shape, dtype) in enumerate(zip(arrays, shapes, dtypes, strict=True))
        if array.shape != shape or array.dtype != dtype
    ]
    if wrong:
        raise UsageError("; ".join(wrong))
    return arrays


def _load_lce() -> ModuleType:
    """LCE's binding, loaded by path: the package around it would import TensorFlow."""
    if int(np.__version__.split(".")[0]) >= 2:
        raise BgnnError(f"larq-compute-engine fails on every call with numpy {np.__version__}: install 'numpy<2'")
    package = importlib.util.find_spec("larq_compute_engine")  # does not execute the package
    if package is None or not package.submodule_search_locations:
        raise BgnnError(
            "larq-compute-engine is not installed, and files with Lce* ops need it: "
            "pip install --no-deps larq-compute-engine==0.16.0"
        )
    path = Path(package.submodule_search_locations[0]) / _LCE_WRAPPER
    spec = importlib.util.spec_from_file_location("interpreter_wrapper_lite", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BgnnError(f"larq-compute-engine has no {path}: install version 0.16.0")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LceInterpreter:
    """Runs a TFLite file, with or without Lce* ops, on Larq Compute Engine's own interpreter.

    `model_bytes`: the flatbuffer. `kernel`: the LceBconv2d implementation, one of "indirect" (fastest on
    x86), "default" or "reference". `xnnpack`: hand float ops to XNNPACK. Raises BgnnError when the package is
    missing, numpy is too new, or the runtime refuses the file.
    """

    def __init__(
        self, model_bytes: bytes, num_threads: int = 1, kernel: str = "indirect", xnnpack: bool = True
    ) -> None:
        if kernel not in KERNELS:
            raise UsageError(f"kernel {kernel!r} is none of {', '.join(KERNELS)}")
        self._model_bytes = model_bytes  # the runtime reads constants from this memory as long as it lives
        try:
            self._wrapped = _load_lce().LiteInterpreter(
                model_bytes, num_threads, kernel == "reference", kernel == "indirect", xnnpack
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise BgnnError(f"Larq Compute Engine refuses the file: {error}") from error
        self.input_shapes = [tuple(shape) for shape in self._wrapped.input_shapes]
        self.output_shapes = [tuple(shape) for shape in self._wrapped.output_shapes]
        self.input_dtypes = [np.dtype(dtype) for dtype in self._wrapped.input_types]
        self.output_dtypes = [np.dtype(dtype) for dtype in self._wrapped.output_types]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file once. `inputs` must have exactly the file's shapes and dtypes, else UsageError."""
        arrays = _check_inputs(inputs, self.input_shapes, self.input_dtypes)
        try:
            return [np.asarray(output) for output in self._wrapped.predict(arrays)]
        except (RuntimeError, ValueError) as error:
            raise BgnnError(f"Larq Compute Engine failed while running the file: {error}") from error


class LiteRTInterpreter:
    """Runs a TFLite file on stock LiteRT (ai-edge-litert), with or without XNNPACK.

    With `delegate`, our library adds LCE's and this project's operators; without, the file has builtin ops only.
    Raises BgnnError when the package is missing or the runtime refuses the file (as it does Lce* ops).
    """

    def __init__(self, model_bytes: bytes, num_threads: int = 1, xnnpack: bool = True, delegate: bool = False) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise BgnnError(
                f"ai-edge-litert cannot be imported ({error}): pip install ai-edge-litert==2.3.0"
            ) from error
        resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            if delegate:
                from bgnn.runtime_bench.delegate import load_interpreter

                self._wrapped = load_interpreter(
                    model_bytes, num_threads, float_kernels="xnnpack" if xnnpack else "builtin"
                )
            else:
                self._wrapped = Interpreter(
                    model_content=model_bytes, num_threads=num_threads, experimental_op_resolver_type=resolver
                )
            self._wrapped.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise BgnnError(f"LiteRT refuses the file: {str(error).strip()}") from error
        # Details come in the subgraph's order of inputs and outputs (a signature runner's are by name).
        inputs, outputs = self._wrapped.get_input_details(), self._wrapped.get_output_details()
        self._input_tensors = [detail["index"] for detail in inputs]
        self._output_tensors = [detail["index"] for detail in outputs]
        self.input_shapes = [tuple(int(n) for n in detail["shape"]) for detail in inputs]
        self.output_shapes = [tuple(int(n) for n in detail["shape"]) for detail in outputs]
        self.input_dtypes = [np.dtype(detail["dtype"]) for detail in inputs]
        self.output_dtypes = [np.dtype(detail["dtype"]) for detail in outputs]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file once. `inputs` must have exactly the file's shapes and dtypes, else UsageError."""
        arrays = _check_inputs(inputs, self.input_shapes, self.input_dtypes)
        try:
            for tensor, array in zip(self._input_tensors, arrays, strict=True):
                self._wrapped.set_tensor(tensor, array)
            self._wrapped.invoke()
            return [self._wrapped.get_tensor(tensor) for tensor in self._output_tensors]
        except (RuntimeError, ValueError) as error:
            raise BgnnError(f"LiteRT failed while running the file: {str(error).strip()}") from error


def has_lce_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists a custom operator whose name starts with `Lce`."""
    return _has_ops(model_bytes, b"Lce")


def has_bgnn_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists one of this project's operators, which its delegate runs."""
    return _has_ops(model_bytes, b"Bgnn")


def _has_ops(model_bytes: bytes, prefix: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    if not schema.Model.ModelBufferHasIdentifier(model_bytes, 0):
        raise BgnnError("not a TFLite file: the identifier TFL3 is missing at byte 4")
    model = schema.Model.GetRootAs(model_bytes, 0)
    codes = (model.OperatorCodes(i).CustomCode() for i in range(model.OperatorCodesLength()))
    return any(code is not None and code.startswith(prefix) for code in codes)


def open_file(model_bytes: bytes, num_threads: int = 1, kernel: str = "indirect", xnnpack: bool = True) -> Interpreter:
    """The runtime that a file needs: LiteRT with our delegate for Bgnn* ops, LCE's for Lce* ops, else LiteRT."""
    if has_bgnn_ops(model_bytes):
        return LiteRTInterpreter(model_bytes, num_threads, xnnpack, delegate=True)
    if has_lce_ops(model_bytes):
        return LceInterpreter(model_bytes, num_threads, kernel, xnnpack)
    return LiteRTInterpreter(model_bytes, num_threads, xnnpack)


def run_file(
    model_bytes: bytes,
    inputs: Sequence[np.ndarray],
    num_threads: int = 1,
    kernel: str = "indirect",
    xnnpack: bool = True,
) -> list[np.ndarray]:
    """Opens the file on the runtime it needs, runs it once and returns the outputs in the file's order."""
    return open_file(model_bytes, num_threads, kernel, xnnpack).run(*inputs)
