"""What a lowering sees while the graph is walked: the file's tensors behind the nodes, and ways to add ops.

A *lowering* is a function `(walk, node, *arguments) -> Value` (or a tuple of them), with the node's arguments
in the order of the op's schema, defaults filled in. It adds TFLite operators through the walk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from bgnn.converter.errors import ConversionError
from bgnn.converter.padding import Sizes
from bgnn.converter.tflite.builder import Codes, FileBuilder, Value, numel
from bgnn.passes import user_code
from bgnn.passes.graph import by_name, parameters

# The file's dtype for each of PyTorch's. int64 tensors are indices, and TFLite's indices are int32.
_DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int32),
    torch.bool: np.dtype(np.bool_),
}
FLOAT = np.dtype(np.float32)
INT = np.dtype(np.int32)
INT8 = np.dtype(np.int8)
BOOL = np.dtype(np.bool_)
SHIFT = 128  # codes are 0..255 in a graph and -128..127 in a file: TFLite's integer kernels want int8


class Walk:
    """The walk's state: `values` maps the nodes met so far to the file's tensors.

    `kept` are the nodes that must exist as tensors (outputs and probes): nothing may be fused over them. `sizes`: what
    numbers stand for a graph network's open sizes.
    """

    def __init__(self, builder: FileBuilder, kept: Collection[fx.Node], sizes: Sizes) -> None:
        self.builder = builder
        self.sizes = sizes
        self.shared: dict[Any, Any] = {}  # what lowerings have written and may need again, by keys of their own
        self.gaps = False  # whether indices may be -1, for what is not there
        self.edges: dict[str, tuple[Value, Any]] = {}  # by length: targets of a list of edges with gaps, their number
        self.kept = set(kept)
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.arrays: dict[fx.Node, np.ndarray] = {}  # constants; they enter the file when a lowering asks
        self.absorbed: set[fx.Node] = set()  # activations that the op before them computes
        self._prefix = ""
        self._claimed: set[int] = set()

    # What the graph says.

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.sizes.number(n) for n in node.meta["val"].shape)

    def known(self, given: Any) -> Any:
        """An argument of a call, with numbers in the place of sizes."""
        if isinstance(given, (list, tuple)):
            return [self.known(one) for one in given]
        size = given.meta.get("val") if isinstance(given, fx.Node) else given
        return self.sizes.number(size) if isinstance(size, torch.SymInt) else given

    def dtype(self, node: fx.Node) -> np.dtype:
        """The file's dtype of a node's tensor; refuses dtypes that the target has no kernels for.

        What makes uint8 in a graph are the integer ops: codes, int8 in the file.
        """
        dtype = node.meta["val"].dtype
        return INT8 if dtype == torch.uint8 and node.op == "call_function" else self.file_dtype(node, dtype)

    def file_dtype(self, node: fx.Node, dtype: torch.dtype) -> np.dtype:
        if dtype not in _DTYPES:
            self.refuse(node, f"has dtype {dtype}", "make it float32, int32, int64 or bool")
        return _DTYPES[dtype]

    def axis(self, node: fx.Node, dim: int) -> int:
        """A dimension of `node` counted from the front."""
        rank = len(self.shape(node))
        return dim + rank if dim < 0 else dim

    def axes(self, node: fx.Node, dims: Sequence[int] | None) -> list[int]:
        """The dimensions of a reduction over `node`; none given means all."""
        if not dims:
            return list(range(len(self.shape(node))))
        return sorted(self.axis(node, dim) for dim in dims)

    def only_user(self, node: fx.Node) -> fx.Node | None:
        """The single node that reads `node`, unless `node` must stand as a tensor."""
        return next(iter(node.users)) if len(node.users) == 1 and node not in self.kept else None

    # What the file holds.

    def value(self, node: fx.Node) -> Value:
        if node in self.arrays:
            return self.builder.constant(node.name, self.arrays[node])
        value = self.values[node]
        assert isinstance(value, Value), f"{node} is a tuple"
        return value

    def coded(self, node: fx.Node, codes: Codes) -> Value:
        """A tensor of codes as int8, read as `codes` say: where its maker said otherwise, a copy that does."""
        if node in self.arrays:
            return self.builder.constant(node.name, (self.arrays[node].astype(INT) - SHIFT).astype(INT8), codes)
        return self.recoded(self.value(node), codes)

    def rows_there(self, index: Value) -> Value:
        """An index for a GATHER: 0 where it names no row, being -1."""
        key = ("there", index.index)
        if not self.gaps or index.constant:
            return index
        if key not in self.shared:
            inputs = [index, self.constant(np.array(0, INT))]
            self.shared[key] = self.op("MAXIMUM", inputs, index.shape, INT, schema.MaximumMinimumOptionsT())
        return self.shared[key]

    def recoded(self, value: Value, codes: Codes) -> Value:
        """The same bytes, which stand for other numbers."""
        return value if value.codes == codes else self.copy(value, codes=codes)

    def array(self, node: fx.Node) -> np.ndarray | None:
        """A constant's numbers, in the file's dtype; None where the node is computed."""
        return self.arrays.get(node)

    def operand(self, arg: fx.Node | float | bool, dtype: np.dtype) -> Value:
        """A node's tensor or a Python scalar, as `dtype`."""
        if isinstance(arg, fx.Node):
            return self.cast(self.value(arg), dtype)
        return self.constant(np.array(arg, dtype=dtype))

    def constant(self, array: np.ndarray | Sequence[int], dtype: np.dtype | None = None) -> Value:
        return self.builder.constant(f"{self._prefix}/constant", np.asarray(array, dtype=dtype))

    def indices(self, numbers: Sequence[int]) -> Value:
        """An int32 vector: axes, shapes, positions."""
        return self.constant(np.array(list(numbers), dtype=INT))

    def result(self, shape: Sequence[int], dtype: np.dtype, codes: Codes | None = None) -> Value:
        """A new tensor for an operator to fill."""
        return self.builder.tensor(f"{self._prefix}/part", shape, dtype, codes)

    def op(
        self, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: np.dtype, options: Any = None,
        codes: Codes | None = None,
    ) -> Value:  # fmt: skip
        """Adds a builtin operator with one output; of int8, it stands for what the first input's does if not told."""
        if codes is None and dtype == INT8:
            codes = inputs[0].codes
        out = self.result(shape, dtype, codes)
        self.builder.builtin(op, inputs, [out], options)
        return out

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape; no operator where the shape is already right."""
        shape = tuple(shape)
        return value if shape == value.shape else self.copy(value, shape)

    def copy(self, value: Value, shape: Sequence[int] | None = None, codes: Codes | None = None) -> Value:
        """A RESHAPE, to the same shape where none is given."""
        shape = value.shape if shape is None else tuple(shape)
        assert numel(shape) == numel(value.shape)
        if not shape:  # TFLite has no empty constants, so the shape of a scalar cannot be given
            if not value.rank:
                value = self.copy(value, [1])
            options = schema.SqueezeOptionsT(squeezeDims=list(range(value.rank)))
            return self.op("SQUEEZE", [value], shape, value.dtype, options, codes)
        options = schema.ReshapeOptionsT(newShape=list(shape))
        return self.op("RESHAPE", [value, self.indices(shape)], shape, value.dtype, options, codes)

    def cast(self, value: Value, dtype: np.dtype) -> Value:
        """The same numbers in another dtype; no operator where it is already right."""
        return value if value.dtype == dtype else self.op("CAST", [value], value.shape, dtype)

    def concatenation(self, parts: Sequence[Value], axis: int) -> Value:
        """The parts one after the other along an axis."""
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.op("CONCATENATION", parts, shape, parts[0].dtype, schema.ConcatenationOptionsT(axis=axis))

    def broadcast(self, value: Value, shape: Sequence[int]) -> Value:
        """The value repeated to a shape, by PyTorch's rule.

        TILE and not BROADCAST_TO: for int32 [8,1024,1,4] -> [8,1024,20,4], on one x86 thread, TILE takes
        0.3 ms in both runtimes, BROADCAST_TO 0.3 ms in LCE's but 4.6 ms in LiteRT 2.3, a CONCATENATION of
        copies 0.5 ms. BITWISE_XOR that broadcasts by itself takes 1.7 ms, after a TILE 1.3 in all.
        """
        shape = tuple(shape)
        if shape == value.shape:
            return value
        value = self.reshape(value, (1,) * (len(shape) - value.rank) + value.shape)
        times = self.indices([whole // part for whole, part in zip(shape, value.shape, strict=True)])
        return self.op("TILE", [value, times], shape, value.dtype, schema.TileOptionsT())

    def name_after(self, node: fx.Node) -> None:
        """Tensors made from now on are parts of this node's lowering."""
        self._prefix = node.name

    def claim(self, value: Value, name: str) -> None:
        """Names a tensor after the first node whose value it is."""
        if not value.constant and value.index not in self._claimed:
            self._claimed.add(value.index)
            self.builder.rename(value, name)

    # Errors.

    def refuse(self, node: fx.Node, what: str, way_out: str) -> NoReturn:
        """Raises the one-line error: the op, where the user wrote it, what is wrong, the way out."""
        raise ConversionError(f"{user_code.called(node)}{user_code.where(node)} {what}: {way_out} (see docs/ops.md)")


def op_name(node: fx.Node) -> str:
    """The op of a call, as `aten.add.Tensor`; an op given without its overload gets `.default`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        return f"{target}.default"
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__name__", str(target))


def arguments(node: fx.Node) -> list[Any]:
    """A call's arguments in the order of its op's schema, with defaults filled in."""
    return list(by_name(node).values())


def named(node: fx.Node, given: Sequence[Any]) -> dict[str, Any]:
    """`arguments`, as a lowering was given them, by the schema's names; what is a real number there is a float."""
    return {
        one.name: float(value) if one.type.kind() == "FloatType" else value
        for one, value in zip(parameters(node), given, strict=True)
    }
