"""TFLite files on stock LiteRT, with our delegate where a file needs it.

The model comes as bytes, and runs with arrays in the file's own input order, returning outputs in the file's own
output order.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.graph_inputs import well_formed
from bgnn.runtime_bench.runtime.padded import padding_of


def check_inputs(
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
                from bgnn.runtime_bench.runtime.delegate import load_interpreter

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
        start = np.frombuffer(model_bytes, np.uint8).ctypes.data
        self._file = start, start + len(model_bytes)
        self._describe()

    def _describe(self) -> None:
        # Details come in the subgraph's order of inputs and outputs (a signature runner's are by name).
        inputs, outputs = self._wrapped.get_input_details(), self._wrapped.get_output_details()
        self._input_tensors = [detail["index"] for detail in inputs]
        self._output_tensors = [detail["index"] for detail in outputs]
        self.input_names = [str(detail["name"]) for detail in inputs]
        self.output_names = [str(detail["name"]) for detail in outputs]
        self.input_shapes = [tuple(int(n) for n in detail["shape"]) for detail in inputs]
        self.output_shapes = [tuple(int(n) for n in detail["shape"]) for detail in outputs]
        self.input_dtypes = [np.dtype(detail["dtype"]) for detail in inputs]
        self.output_dtypes = [np.dtype(detail["dtype"]) for detail in outputs]

    def resize(self, inputs: Sequence[np.ndarray]) -> None:
        """Gives the inputs the shapes of these arrays, in the file's order."""
        with _told():
            for tensor, array in zip(self._input_tensors, inputs, strict=True):
                self._wrapped.resize_tensor_input(tensor, array.shape)
            self._wrapped.allocate_tensors()
        self._describe()

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file once. `inputs` must have exactly the file's shapes and dtypes, else UsageError."""
        self.set_inputs(*inputs)
        self.invoke()
        return self.outputs()

    def set_inputs(self, *inputs: np.ndarray) -> None:
        """Sets what `invoke` reads, until it is set again."""
        arrays = check_inputs(inputs, self.input_shapes, self.input_dtypes)
        with _told():
            for tensor, array in zip(self._input_tensors, arrays, strict=True):
                self._wrapped.set_tensor(tensor, array)

    def invoke(self) -> None:
        """Runs the file on the inputs that were set."""
        with _told():
            self._wrapped.invoke()

    def outputs(self) -> list[np.ndarray]:
        """Copies of what the last `invoke` gave."""
        with _told():
            return [self._wrapped.get_tensor(tensor) for tensor in self._output_tensors]

    def arena_bytes(self) -> int | None:
        """How much memory the runtime has planned for the tensors between operators (its arena, without what delegates
        hold); None where it does not tell. Right only before the first `invoke`, which may add tensors of its own.
        """
        places = []
        for detail in self._wrapped.get_tensor_details():
            try:
                view = self._wrapped.tensor(detail["index"])()
            except (RuntimeError, ValueError):
                continue  # it has no memory: a delegate's own, or of another subgraph
            if not isinstance(view, np.ndarray):
                continue  # a single number, given as a copy
            if not self._file[0] <= view.ctypes.data < self._file[1]:  # a constant lies in the file
                places.append((view.ctypes.data, view.nbytes))
        if not places:
            return None
        start, end = min(at for at, _ in places), max(at + size for at, size in places)
        return end - start if end - start <= sum(size + 64 for _, size in places) else None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise BgnnError(f"LiteRT failed while running the file: {str(error).strip()}") from error


def has_lce_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists a custom operator whose name starts with `Lce`."""
    return _has_ops(model_bytes, b"Lce")


def has_bgnn_ops(model_bytes: bytes) -> bool:
    """Whether the flatbuffer lists one of this project's operators."""
    return _has_ops(model_bytes, b"Bgnn")


def _has_ops(model_bytes: bytes, prefix: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    if not schema.Model.ModelBufferHasIdentifier(model_bytes, 0):
        raise BgnnError("not a TFLite file: the identifier TFL3 is missing at byte 4")
    try:
        model = schema.Model.GetRootAs(model_bytes, 0)
        codes = [model.OperatorCodes(i).CustomCode() for i in range(model.OperatorCodesLength())]
    except (struct.error, IndexError, TypeError, ValueError, OverflowError) as error:
        raise BgnnError(f"the TFLite file is damaged: its list of operators cannot be read ({error})") from error
    return any(code is not None and code.startswith(prefix) for code in codes)


def open_file(model_bytes: bytes, num_threads: int = 1, xnnpack: bool = True) -> LiteRTInterpreter:
    """Stock LiteRT, with our delegate if the file has LCE's operators or this project's."""
    delegate = has_lce_ops(model_bytes) or has_bgnn_ops(model_bytes)
    return LiteRTInterpreter(model_bytes, num_threads, xnnpack, delegate)


def run_file(
    model_bytes: bytes, inputs: Sequence[np.ndarray], num_threads: int = 1, xnnpack: bool = True, resized: bool = True
) -> list[np.ndarray]:
    """Opens the file as `open_file` does, runs it once and returns the outputs in the file's order.

    A graph may be smaller than a file of a graph network has room for: inputs are resized as TfliteModel does, or it is
    filled up, and the outputs are cut; not `resized`, it is filled up in any case.
    """
    interpreter, padding = open_file(model_bytes, num_threads, xnnpack), padding_of(model_bytes)
    if padding is None:
        return interpreter.run(*inputs)
    if len(inputs) != len(padding.input_names):
        raise UsageError(f"the file takes {len(padding.input_names)} inputs, {len(inputs)} were given")
    with well_formed():
        arrays = padding.check(dict(zip(padding.input_names, inputs, strict=True)))
        filled = padding.fill(arrays, resized and padding.resizes)
    if resized and padding.resizes:
        interpreter.resize(filled)
    found = interpreter.run(*filled)
    with well_formed():
        return padding.cut(found, interpreter.output_names, arrays)
