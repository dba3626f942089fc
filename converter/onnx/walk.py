"""What a lowering sees while the graph is walked: the file's tensors behind the nodes, and ways to add operators.

A *lowering* is a function `(walk, node, *arguments) -> Value` (or a tuple of them), with the node's arguments
in the order of the op's schema, defaults filled in.

Axes are always counted from the end. So the same lowering writes an op on edge tensors [E, ...] and, inside a bucket
of neighbour tables, on [rows, width, ...] (see tables.py), where `walk.lead` is 2: the number of axes that stand
for a tensor's first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from onnx import helper
from torch import fx

from bgnn.converter.dialect import WORD
from bgnn.converter.errors import ConversionError
from bgnn.converter.onnx.builder import CONTRIB, ModelBuilder, Value
from bgnn.converter.tflite.walk import arguments, op_name
from bgnn.passes import user_code

if TYPE_CHECKING:
    from bgnn.converter.onnx.tables import Bucket, TableForm

_DTYPES: dict[torch.dtype, np.dtype] = {
    torch.float32: np.dtype(np.float32),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.uint8: np.dtype(np.uint8),
    torch.int8: np.dtype(np.int8),
    torch.bool: np.dtype(np.bool_),
}
FLOAT = np.dtype(np.float32)
I64 = np.dtype(np.int64)
I32 = np.dtype(np.int32)
U8 = np.dtype(np.uint8)
I8 = np.dtype(np.int8)
BOOL = np.dtype(np.bool_)


class Walk:
    """The walk's state: `values` maps the nodes met so far to the file's tensors.

    Nodes are lowered when something asks for them. `find` answers first for nodes that have another form where the
    walk stands now, such as edge tensors in a bucket of tables.
    """

    def __init__(self, builder: ModelBuilder, lowerings: dict[str, Callable[..., Any]]) -> None:
        self.builder = builder
        self.lowerings = lowerings
        self.values: dict[fx.Node, Any] = {}
        self.arrays: dict[fx.Node, np.ndarray] = {}  # constants; they enter the file when a lowering asks
        self.naive = False  # with -O0
        self.packed: set[fx.Node] = set()  # packed signs, which the file holds as codes (sign_ops.py)
        self.shared: dict[Any, Any] = {}  # what lowerings have written and may need again, by keys of their own
        self.find: Callable[[fx.Node], Any] = lambda node: None
        self.lead = 1
        self.tables: TableForm | None = None  # with -O1
        self.bucket: Bucket | None = None  # while a bucket's body is written

    # What the graph says.

    def dims(self, node: fx.Node) -> tuple[int | None, ...]:
        """The file's shape, None where a dimension is dynamic."""
        dims = tuple(dim if type(dim) is int else None for dim in node.meta["val"].shape)
        if node in self.packed:
            return (*dims[:-1], int(node.meta["val"].shape[-1]) * WORD)
        return dims

    def trailing(self, node: fx.Node) -> list[int]:
        """All dimensions but the first, which must be static."""
        dims = self.dims(node)[1:]
        if None in dims:
            self.refuse(node, "has a dynamic dimension beside the first", "export it with only nodes and edges dynamic")
        return [int(dim) for dim in dims if dim is not None]

    def rank(self, node: fx.Node) -> int:
        return len(node.meta["val"].shape)

    def dtype(self, node: fx.Node) -> np.dtype:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return I64  # a size
        if node in self.packed:
            return U8
        return self.file_dtype(node, value.dtype)

    def file_dtype(self, node: fx.Node, dtype: torch.dtype) -> np.dtype:
        """The file's dtype; refuses those that the operators have no kernels for."""
        if dtype not in _DTYPES:
            self.refuse(node, f"has dtype {dtype}", "make it float32, int32, int64, uint8, int8 or bool")
        return _DTYPES[dtype]

    def axis(self, node: fx.Node, dim: int) -> int:
        """A dimension of `node` counted from the end, so negative."""
        rank = self.rank(node)
        return dim - rank if dim >= 0 else dim

    # What the file holds.

    def value(self, node: fx.Node) -> Value:
        value = self.any_value(node)
        assert isinstance(value, Value), f"{node} is a tuple"
        return value

    def any_value(self, node: fx.Node) -> Any:
        """The tensor, or tuple of tensors, of a node, lowered now if it was not yet."""
        if node in self.arrays:
            return self.builder.constant(self.arrays[node], node.name)
        found = self.find(node)
        if found is not None:
            return found
        if node not in self.values:
            with self.outside():
                self.values[node] = self.lower(node)
        return self.values[node]

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within the block, operators go to the graph and not to a body, and nodes have their plain form."""
        state = (self.find, self.lead, self.bucket)
        self.find, self.lead, self.bucket = (lambda node: None), 1, None
        try:
            with self.builder.outside():
                yield
        finally:
            self.find, self.lead, self.bucket = state

    def lower(self, node: fx.Node) -> Any:
        """Emits one call where the walk stands; returns its tensor, or tensors."""
        name = op_name(node)
        if name not in self.lowerings:
            self.refuse(node, "is not supported by the ONNX targets", "rewrite this line with supported ops")
        given = arguments(node) if hasattr(node.target, "_schema") or hasattr(node.target, "default") else node.args
        with self.builder.named_after(node.name):
            return self.lowerings[name](self, node, *given)

    def array(self, node: Any) -> np.ndarray | None:
        """A constant's numbers, in the file's dtype; None where the node is computed."""
        return self.arrays.get(node) if isinstance(node, fx.Node) else None

    def operand(self, arg: fx.Node | float | bool, dtype: np.dtype) -> Value:
        """A node's tensor or a Python scalar, as `dtype`."""
        if isinstance(arg, fx.Node):
            array = self.array(arg)
            if array is not None:
                return self.constant(array.astype(dtype))
            return self.cast(self.value(arg), dtype)
        return self.constant(np.array(arg, dtype=dtype))

    def constant(self, array: Any, dtype: np.dtype | None = None) -> Value:
        return self.builder.constant(np.asarray(array, dtype=dtype))

    def indices(self, numbers: Sequence[int]) -> Value:
        """An int64 vector: axes, shapes, positions."""
        return self.constant(np.array(list(numbers), dtype=np.int64))

    def op(self, op: str, inputs: Sequence[Value | None], dtype: np.dtype, **attributes: Any) -> Value:
        """Adds an operator with one output."""
        value = self.builder.op(op, inputs, dtype, **attributes)
        assert isinstance(value, Value)
        return value

    def contrib(self, op: str, inputs: Sequence[Value | None], dtype: np.dtype, **attributes: Any) -> Value:
        """Adds one of ONNX Runtime's own operators (com.microsoft)."""
        return self.op(op, inputs, dtype, domain=CONTRIB, **attributes)

    def cast(self, value: Value, dtype: np.dtype) -> Value:
        """The same numbers in another dtype; no operator where it is already right."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", [value], dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def size(self, size: int | fx.Node) -> Value:
        """A size as an int64 scalar."""
        if isinstance(size, fx.Node):
            return self.cast(self.value(size), I64)
        return self.constant(np.array(size, dtype=np.int64))

    def shape(self, sizes: Sequence[int | fx.Node]) -> Value:
        """Sizes as an int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return self.indices([int(size) for size in sizes])  # type: ignore[arg-type]
        parts = [
            self.op("Unsqueeze", [self.size(size), self.indices([0])], I64)
            if isinstance(size, fx.Node)
            else self.indices([size])
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, I64, axis=0)

    def reshape(self, value: Value, sizes: Sequence[int]) -> Value:
        """0 keeps the dimension in its place, -1 is what remains."""
        return self.op("Reshape", [value, self.indices(sizes)], value.dtype)

    def keep_lead(self, value: Value, trailing: Sequence[int]) -> Value:
        """The elements of each node or edge in another shape."""
        return self.reshape(value, [*[0] * self.lead, *trailing])

    # Errors.

    def refuse(self, node: fx.Node, what: str, way_out: str) -> NoReturn:
        """Raises the one-line error: the op, where the user wrote it, what is wrong, the way out."""
        raise ConversionError(f"{user_code.called(node)}{user_code.where(node)} {what}: {way_out} (see docs/ops.md)")
