"""The ATen ops, as ONNX operators. Arguments come in the order of each op's ATen schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from bgnn.converter.onnx.builder import Value
from bgnn.converter.onnx.walk import BOOL, FLOAT, I64, Walk
from bgnn.converter.tflite.walk import op_name
from bgnn.passes.insert_fake_quant import is_edge_tensor

Lowering = Callable[..., Any]
Scalar = float | bool


# --- elementwise ---


def _unary(op: str, **attributes: Any) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, *_: Any) -> Value:
        return walk.op(op, [walk.operand(x, walk.dtype(node))], walk.dtype(node), **attributes)

    return lower


def _rsqrt(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    return walk.op("Reciprocal", [walk.op("Sqrt", [walk.operand(x, FLOAT)], FLOAT)], FLOAT)


def _leaky_relu(walk: Walk, node: fx.Node, x: fx.Node, slope: float) -> Value:
    return walk.op("LeakyRelu", [walk.value(x)], FLOAT, alpha=float(slope))


def _elu(walk: Walk, node: fx.Node, x: fx.Node, alpha: float, scale: float, input_scale: float) -> Value:
    if (scale, input_scale) != (1, 1):
        walk.refuse(node, "scales its input or output", "use a plain ELU")
    return walk.op("Elu", [walk.value(x)], FLOAT, alpha=float(alpha))


def _gelu(walk: Walk, node: fx.Node, x: fx.Node, approximate: str = "none") -> Value:
    """`x / 2 * (1 + erf(x / sqrt 2))`, which ONNX Runtime fuses again; or with tanh for erf."""
    value = walk.value(x)
    if approximate == "none":
        erf = walk.op("Erf", [walk.op("Div", [value, walk.operand(2**0.5, FLOAT)], FLOAT)], FLOAT)
    else:
        cube = walk.op("Mul", [value, walk.op("Mul", [value, value], FLOAT)], FLOAT)
        inner = walk.op("Add", [value, walk.op("Mul", [cube, walk.operand(0.044715, FLOAT)], FLOAT)], FLOAT)
        erf = walk.op("Tanh", [walk.op("Mul", [inner, walk.operand((2 / np.pi) ** 0.5, FLOAT)], FLOAT)], FLOAT)
    product = walk.op("Mul", [value, walk.op("Add", [erf, walk.operand(1, FLOAT)], FLOAT)], FLOAT)
    return walk.op("Mul", [product, walk.operand(0.5, FLOAT)], FLOAT)


def _silu(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    value = walk.value(x)
    return walk.op("Mul", [value, walk.op("Sigmoid", [value], FLOAT)], FLOAT)


def _softplus(walk: Walk, node: fx.Node, x: fx.Node, beta: float = 1, threshold: float = 20) -> Value:
    value = walk.value(x)
    scaled = value if beta == 1 else walk.op("Mul", [value, walk.operand(beta, FLOAT)], FLOAT)
    made = walk.op("Softplus", [scaled], FLOAT)
    if beta != 1:
        made = walk.op("Div", [made, walk.operand(beta, FLOAT)], FLOAT)
    if threshold >= 20:  # beyond it x itself, which is the same in float32
        return made
    high = walk.op("Greater", [scaled, walk.operand(threshold, FLOAT)], BOOL)
    return walk.op("Where", [high, value, made], FLOAT)


def _clip(walk: Walk, value: Value, low: float | None, high: float | None) -> Value:
    bounds = [None if bound is None else walk.constant(np.array(bound, dtype=value.dtype)) for bound in (low, high)]
    return walk.op("Clip", [value, *bounds], value.dtype)


def _clamp(walk: Walk, node: fx.Node, x: fx.Node, low: float | None = None, high: float | None = None) -> Value:
    return _clip(walk, walk.operand(x, walk.dtype(node)), low, high)


def _relu6(walk: Walk, node: fx.Node, x: fx.Node) -> Value:
    return _clip(walk, walk.operand(x, walk.dtype(node)), 0, 6)


def _arithmetic(op: str) -> Lowering:
    """add, sub, mul and div; `alpha` (add and sub) scales the second operand. Bodies of sizes are plain integers."""

    def lower(walk: Walk, node: fx.Node, x: fx.Node | Scalar, y: fx.Node | Scalar, alpha: Scalar = 1) -> Value:
        dtype = walk.dtype(node)
        a, b = walk.operand(x, dtype), walk.operand(y, dtype)
        if alpha != 1:
            b = walk.op("Mul", [b, walk.operand(alpha, dtype)], dtype)
        return walk.op(op, [a, b], dtype)

    return lower


def _binary(op: str) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, y: fx.Node) -> Value:
        dtype = walk.dtype(node)
        return walk.op(op, [walk.operand(x, dtype), walk.operand(y, dtype)], dtype)

    return lower


def _comparison(op: str, negated: bool = False) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, y: fx.Node | Scalar) -> Value:
        tensors = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in (x, y)]
        dtype = walk.file_dtype(node, torch.result_type(*tensors))
        out = walk.op(op, [walk.operand(x, dtype), walk.operand(y, dtype)], BOOL)
        return walk.op("Not", [out], BOOL) if negated else out

    return lower


def _logical(op: str) -> Lowering:
    def lower(walk: Walk, node: fx.Node, *operands: fx.Node) -> Value:
        if walk.dtype(node) != BOOL:
            walk.refuse(node, "works on integers", "use it on booleans")
        return walk.op(op, [walk.value(x) for x in operands], BOOL)

    return lower


def _pow(walk: Walk, node: fx.Node, x: fx.Node, exponent: Scalar) -> Value:
    value = walk.operand(x, walk.dtype(node))
    if exponent == 2:
        return walk.op("Mul", [value, value], value.dtype)
    if exponent == 0.5:
        return walk.op("Sqrt", [value], value.dtype)
    if exponent == -0.5:  # as PyTorch computes it
        return _rsqrt(walk, node, x)
    if exponent == -1:
        return walk.op("Reciprocal", [value], value.dtype)
    return walk.op("Pow", [value, walk.constant(np.array(exponent, dtype=value.dtype))], value.dtype)


def _prelu(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node) -> Value:
    return walk.op("PRelu", [walk.value(x), walk.value(weight)], FLOAT)


def _where(walk: Walk, node: fx.Node, condition: fx.Node, x: fx.Node | Scalar, y: fx.Node | Scalar) -> Value:
    dtype = walk.dtype(node)
    return walk.op("Where", [walk.value(condition), walk.operand(x, dtype), walk.operand(y, dtype)], dtype)


def _masked_fill(walk: Walk, node: fx.Node, x: fx.Node, mask: fx.Node, value: fx.Node | Scalar) -> Value:
    dtype = walk.dtype(node)
    return walk.op("Where", [walk.value(mask), walk.operand(value, dtype), walk.value(x)], dtype)


def _to_dtype(walk: Walk, node: fx.Node, x: fx.Node, *_: Any) -> Value:
    return walk.cast(walk.value(x), walk.dtype(node))


# --- sizes and fillings ---


def _sym_size(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    shape = walk.op("Shape", [walk.value(x)], I64)
    return walk.op("Gather", [shape, walk.constant(np.array(dim, dtype=np.int64))], I64, axis=0)


def _size_math(op: str) -> Lowering:
    """Of sizes, whole numbers; and of real ones that are made of them, `n ** 0.5`."""

    def lower(walk: Walk, node: fx.Node, *numbers: fx.Node | float) -> Value:
        dtype = FLOAT if isinstance(node.meta["val"], (float, torch.SymFloat)) else I64
        return walk.op(op, [walk.operand(number, dtype) for number in numbers], dtype)

    return lower


def filled(walk: Walk, node: fx.Node, number: Scalar | fx.Node, sizes: Sequence[int | fx.Node]) -> Value:
    """A tensor of one number, or of an open size; on edges one stands for all, as operators broadcast it."""
    dtype = walk.dtype(node)
    if isinstance(number, fx.Node):
        shape = walk.indices([1, 1, *walk.trailing(node)]) if walk.lead == 2 else walk.shape(sizes)
        return walk.op("Expand", [walk.operand(number, dtype), shape], dtype)
    if walk.lead == 2:
        return walk.constant(np.full([1, 1, *walk.trailing(node)], number, dtype=dtype))
    dims = walk.dims(node)
    if None not in dims:
        return walk.constant(np.full([int(dim) for dim in dims if dim is not None], number, dtype=dtype))
    return walk.op("Expand", [walk.constant(np.array(number, dtype=dtype)), walk.shape(sizes)], dtype)


def _full(walk: Walk, node: fx.Node, sizes: Sequence[int | fx.Node], number: Scalar, *_: Any) -> Value:
    return filled(walk, node, number, sizes)


def _constant_like(number: Scalar | None) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, *rest: Any) -> Value:
        given = rest[0] if number is None else number
        if walk.lead == 2:
            return filled(walk, node, given, [])
        shape = walk.op("Shape", [walk.value(x)], I64)
        return walk.op("Expand", [walk.operand(given, walk.dtype(node)), shape], walk.dtype(node))

    return lower


def _of_sizes(number: Scalar) -> Lowering:
    return lambda walk, node, sizes, *_: filled(walk, node, number, sizes)


def _arange(walk: Walk, node: fx.Node, *given: Any) -> Value:
    bounds = given[: {"default": 1, "start": 2, "start_step": 3}[op_name(node).rpartition(".")[2]]]
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    limits = [walk.size(part) for part in (start, end, step)]
    return walk.cast(walk.op("Range", limits, I64), walk.dtype(node))


# --- shape ---


def _reshape(walk: Walk, node: fx.Node, x: fx.Node, sizes: Sequence[int | fx.Node] = (), *_: Any) -> Value:
    value = walk.value(x)
    if walk.lead == 2:
        return walk.keep_lead(value, walk.trailing(node))
    dims = walk.dims(node)
    dynamic = [axis for axis, dim in enumerate(dims) if dim is None]
    if not dynamic:
        return walk.reshape(value, [int(dim) for dim in dims if dim is not None])
    if len(dynamic) == 1:
        if 0 in dims:
            walk.refuse(node, "makes an empty axis", "take it out of the model")
        return walk.reshape(value, [-1 if dim is None else dim for dim in dims])
    if not sizes:
        walk.refuse(node, "has several dynamic dimensions", "use a view with given sizes")
    return walk.op("Reshape", [value, walk.shape(sizes)], value.dtype)


def _unsqueeze(walk: Walk, node: fx.Node, x: fx.Node, dim: int) -> Value:
    return walk.op("Unsqueeze", [walk.value(x), walk.indices([walk.axis(node, dim)])], walk.dtype(node))


def _squeeze(walk: Walk, node: fx.Node, x: fx.Node, dims: int | Sequence[int]) -> Value:
    dims = [dims] if isinstance(dims, int) else dims
    axes = [walk.axis(x, dim) for dim in dims if walk.dims(x)[dim] == 1]
    return walk.op("Squeeze", [walk.value(x), walk.indices(sorted(axes))], walk.dtype(node)) if axes else walk.value(x)


def _transposed(walk: Walk, node: fx.Node, x: fx.Node, order: Sequence[int]) -> Value:
    value = walk.value(x)
    if walk.lead == 2:
        order = [0, *(axis + 1 for axis in order)]
    if list(order) == sorted(order):
        return value
    return walk.op("Transpose", [value], value.dtype, perm=list(order))


def _permute(walk: Walk, node: fx.Node, x: fx.Node, order: Sequence[int]) -> Value:
    return _transposed(walk, node, x, [dim % walk.rank(x) for dim in order])


def _expand(walk: Walk, node: fx.Node, x: fx.Node, sizes: Sequence[int | fx.Node], *_: Any) -> Value:
    value = walk.value(x)
    if walk.lead == 2:
        return walk.op("Expand", [value, walk.indices([1, 1, *walk.trailing(node)])], value.dtype)
    dims, missing = walk.dims(node), len(sizes) - walk.rank(x)
    wanted: list[int | fx.Node] = []
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        # Expand broadcasts both ways: a 1 keeps what is there.
        kept = axis >= missing and str(x.meta["val"].shape[axis - missing]) == str(node.meta["val"].shape[axis])
        wanted.append(1 if kept else dim if dim is not None else size)
    return walk.op("Expand", [value, walk.shape(wanted)], value.dtype)


def _repeat(walk: Walk, node: fx.Node, x: fx.Node, times: Sequence[int | fx.Node]) -> Value:
    value, missing = walk.value(x), len(times) - walk.rank(x)
    if missing:
        value = walk.op("Unsqueeze", [value, walk.indices(range(missing))], value.dtype)
    return walk.op("Tile", [value, walk.shape(times)], value.dtype)


def _cat(walk: Walk, node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> Value:
    dtype = walk.dtype(node)
    # PyTorch lets tensors of shape [0] join anything.
    parts = [walk.operand(tensor, dtype) for tensor in tensors if walk.dims(tensor) != (0,)]
    if walk.lead == 2:
        parts = _alike(walk, parts, [walk.trailing(t) for t in tensors if walk.dims(t) != (0,)])
    return parts[0] if len(parts) == 1 else walk.op("Concat", parts, dtype, axis=walk.axis(node, dim))


def _alike(walk: Walk, parts: list[Value], trailing: Sequence[Sequence[int]]) -> list[Value]:
    """Edge tensors of a bucket, repeated to its width where they hold one value for a whole row."""
    shapes = [walk.op("Shape", [part], I64, start=0, end=2) for part in parts]
    widest = walk.op("Max", shapes, I64)
    wanted = [walk.op("Concat", [widest, walk.indices(rest)], I64, axis=0) for rest in trailing]
    return [walk.op("Expand", [part, shape], part.dtype) for part, shape in zip(parts, wanted, strict=True)]


def _slice(
    walk: Walk, node: fx.Node, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    limits = [0 if start is None else start, np.iinfo(np.int64).max if end is None else end, step]
    vectors = [walk.shape([limit]) if isinstance(limit, fx.Node) else walk.indices([limit]) for limit in limits]
    inputs = [walk.value(x), *vectors[:2], walk.indices([walk.axis(x, dim)]), vectors[2]]
    return walk.op("Slice", inputs, walk.dtype(node))


def _select(walk: Walk, node: fx.Node, x: fx.Node, dim: int, index: int | fx.Node) -> Value:
    where = walk.size(index) if isinstance(index, fx.Node) else walk.constant(np.array(index, dtype=np.int64))
    return walk.op("Gather", [walk.value(x), where], walk.dtype(x), axis=walk.axis(x, dim))


def _unbind(walk: Walk, node: fx.Node, x: fx.Node, dim: int = 0) -> tuple[Value, ...]:
    return tuple(_select(walk, node, x, dim, i) for i in range(len(node.meta["val"])))


# --- reductions and normalisations ---


def _axes(walk: Walk, x: fx.Node, dims: int | Sequence[int] | None) -> list[int]:
    if dims is None or dims == [] or dims == ():
        return [dim - walk.rank(x) for dim in range(walk.rank(x))]
    return sorted(walk.axis(x, dim) for dim in ([dims] if isinstance(dims, int) else dims))


def _reduction(op: str) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, dims: Any = None, keep: bool = False, *_: Any) -> Value:
        axes, shape = _axes(walk, x, dims), walk.dims(node)
        value = walk.operand(x, walk.dtype(node))
        if walk.lead == 1 and -walk.rank(x) in axes and op in ("ReduceSum", "ReduceMean") and is_edge_tensor(x):
            return _over_edges(walk, x, value, op, axes, keep)
        made = reduce(walk, op, value, axes, keep)
        rows_stay = walk.lead == 1 and walk.dims(x)[:1] == (None,) and -walk.rank(x) not in axes
        if rows_stay and None not in shape[1:]:  # ONNX Runtime leaves a tensor without rows (no edges) unreduced
            made = walk.reshape(made, [0, *(dim for dim in shape[1:] if dim is not None)])
        return made

    return lower


def _over_edges(walk: Walk, x: fx.Node, value: Value, op: str, axes: Sequence[int], keep: bool) -> Value:
    """A sum or mean over all edges, of which there may be none: ONNX Runtime would leave such a tensor unreduced."""
    row = walk.constant(np.zeros([1, *walk.trailing(x)], value.dtype))
    total = reduce(walk, "ReduceSum", walk.op("Concat", [value, row], value.dtype, axis=0), axes, keep)
    if op == "ReduceSum":
        return total
    others = math.prod(dim for i, dim in enumerate(walk.dims(x)) if dim is not None and i - walk.rank(x) not in axes)
    count = walk.op("Div", [walk.op("Size", [value], I64), walk.constant(np.array(others))], I64)
    return walk.op("Div", [total, walk.cast(count, value.dtype)], value.dtype)


def reduce(walk: Walk, op: str, value: Value, axes: Sequence[int], keep: bool = False) -> Value:
    """A reduction; ReduceSum and, from opset 18 on, the others take their axes as an input."""
    return walk.op(op, [value, walk.indices(axes)], value.dtype, keepdims=int(keep))


def _sum_all(walk: Walk, node: fx.Node, x: fx.Node, *_: Any) -> Value:
    return _reduction("ReduceSum")(walk, node, x, None)


def _softmax(op: str) -> Lowering:
    def lower(walk: Walk, node: fx.Node, x: fx.Node, dim: int, *_: Any) -> Value:
        return walk.op(op, [walk.operand(x, FLOAT)], FLOAT, axis=walk.axis(x, dim))

    return lower


def _topk(
    walk: Walk, node: fx.Node, x: fx.Node, k: int, dim: int = -1, largest: bool = True, *_: Any
) -> tuple[Value, Value]:
    """TopK: ONNX Runtime gives the best first, equal values by lowest index."""
    values, indices = walk.builder.op(
        "TopK", [walk.value(x), walk.indices([k])], [walk.value(x).dtype, I64],
        axis=walk.axis(x, dim), largest=int(largest), sorted=1,
    )  # fmt: skip
    return values, indices


def _getitem(walk: Walk, node: fx.Node, x: fx.Node, index: int) -> Any:
    return walk.any_value(x)[index]


# --- products ---


def _linear(walk: Walk, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Value:
    value, numbers = walk.value(x), walk.array(weight)
    shift = [walk.value(bias)] if bias is not None else []
    if walk.rank(x) + walk.lead - 1 == 2:
        return walk.op("Gemm", [value, walk.value(weight), *shift], FLOAT, transB=1)
    turned = (
        walk.constant(numbers.T)
        if numbers is not None
        else walk.op("Transpose", [walk.value(weight)], FLOAT, perm=[1, 0])
    )
    product = walk.op("MatMul", [value, turned], FLOAT)
    return walk.op("Add", [product, *shift], FLOAT) if shift else product


def _matmul(walk: Walk, node: fx.Node, x: fx.Node, y: fx.Node) -> Value:
    return walk.op("MatMul", [walk.value(x), walk.value(y)], walk.dtype(node))


def _addmm(walk: Walk, node: fx.Node, bias: fx.Node, x: fx.Node, y: fx.Node, *_: Any) -> Value:
    return walk.op("Gemm", [walk.value(x), walk.value(y), walk.value(bias)], FLOAT)


# --- gathers ---


def _gather_nodes(walk: Walk, node: fx.Node, x: fx.Node, index: fx.Node) -> Value:
    """`x[B, N, C]`, `index[B, M, k]` -> `[B, M, k, C]`."""
    rows = walk.value(index)
    if walk.dims(x)[0] == 1:  # no batch to count
        flat = walk.op("Squeeze", [rows, walk.indices([0])], rows.dtype)
        return walk.op("Gather", [walk.value(x), flat], walk.dtype(node), axis=1)
    deep = walk.op("Unsqueeze", [walk.cast(rows, I64), walk.indices([-1])], I64)
    return walk.op("GatherND", [walk.value(x), deep], walk.dtype(node), batch_dims=1)


def index_select(walk: Walk, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Value:
    """Rows of one axis."""
    rows = walk.value(index)
    if walk.rank(index) == 0:  # PyTorch lets a scalar stand for one index
        rows = walk.reshape(rows, [1])
    return walk.op("Gather", [walk.value(x), rows], walk.dtype(node), axis=walk.axis(x, dim))


LOWERINGS: dict[str, Lowering] = {
    **{
        f"aten.{name}.default": _unary(op)
        for name, op in (
            ("neg", "Neg"), ("abs", "Abs"), ("exp", "Exp"), ("log", "Log"), ("sqrt", "Sqrt"), ("tanh", "Tanh"),
            ("sigmoid", "Sigmoid"), ("relu", "Relu"), ("reciprocal", "Reciprocal"), ("sign", "Sign"),
            ("round", "Round"), ("floor", "Floor"), ("ceil", "Ceil"), ("erf", "Erf"), ("sin", "Sin"), ("cos", "Cos"),
            ("atan", "Atan"),
        )
    },
    "aten.rsqrt.default": _rsqrt,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.elu.default": _elu,
    "aten.gelu.default": _gelu,
    "aten.silu.default": _silu,
    "aten.softplus.default": _softplus,
    "aten.clamp.default": _clamp,
    "aten.hardtanh.default": lambda walk, node, x, low=-1, high=1: _clamp(walk, node, x, low, high),
    "aten.relu6.default": _relu6,
    "bgnn.prelu.default": _prelu,
    **{
        f"aten.{name}.{kind}": _arithmetic(name.capitalize())
        for name in ("add", "sub", "mul", "div")
        for kind in ("Tensor", "Scalar")
    },
    "aten.maximum.default": _binary("Max"),
    "aten.minimum.default": _binary("Min"),
    "aten.pow.Tensor_Scalar": _pow,
    **{
        f"aten.{name}.{kind}": _comparison(op, negated)
        for name, op, negated in (
            ("gt", "Greater", False),
            ("ge", "GreaterOrEqual", False),
            ("lt", "Less", False),
            ("le", "LessOrEqual", False),
            ("eq", "Equal", False),
            ("ne", "Equal", True),
        )
        for kind in ("Tensor", "Scalar")
    },
    **dict.fromkeys(("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.__and__.Tensor"), _logical("And")),
    **dict.fromkeys(("aten.logical_or.default", "aten.bitwise_or.Tensor", "aten.__or__.Tensor"), _logical("Or")),
    **dict.fromkeys(("aten.logical_not.default", "aten.bitwise_not.default"), _logical("Not")),
    "aten.where.self": _where,
    "aten.where.ScalarSelf": _where,
    "aten.where.ScalarOther": _where,
    "aten.where.Scalar": _where,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
    **dict.fromkeys(("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout"), _to_dtype),
    "aten.sym_size.int": _sym_size,
    **{
        name: _size_math(op)
        for name, op in (
            ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("floordiv", "Div"), ("sym_min", "Min"), ("sym_max", "Max"),
            ("truediv", "Div"), ("pow", "Pow"), ("_sym_sqrt", "Sqrt"),
        )
    },
    "sym_float": lambda walk, node, x: walk.operand(x, FLOAT),
    "aten.full.default": _full,
    "aten.ones.default": _of_sizes(1),
    "aten.zeros.default": _of_sizes(0),
    "aten.new_zeros.default": lambda walk, node, x, sizes, *_: filled(walk, node, 0, sizes),
    "aten.new_ones.default": lambda walk, node, x, sizes, *_: filled(walk, node, 1, sizes),
    "aten.new_full.default": lambda walk, node, x, sizes, number, *_: filled(walk, node, number, sizes),
    "aten.ones_like.default": _constant_like(1),
    "aten.zeros_like.default": _constant_like(0),
    "aten.full_like.default": _constant_like(None),
    **{f"aten.arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    **dict.fromkeys(
        ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), _reshape
    ),
    "aten.flatten.using_ints": lambda walk, node, x, *_: _reshape(walk, node, x),
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.permute.default": _permute,
    "aten.expand.default": _expand,
    "aten.repeat.default": _repeat,
    "aten.cat.default": _cat,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.unbind.int": _unbind,
    "aten.amax.default": _reduction("ReduceMax"),
    "aten.amin.default": _reduction("ReduceMin"),
    "aten.mean.dim": _reduction("ReduceMean"),
    "aten.sum.dim_IntList": _reduction("ReduceSum"),
    "aten.sum.default": _sum_all,
    "aten.softmax.int": _softmax("Softmax"),
    "aten._softmax.default": _softmax("Softmax"),
    "aten.log_softmax.int": _softmax("LogSoftmax"),
    "aten._log_softmax.default": _softmax("LogSoftmax"),
    "aten.topk.default": _topk,
    "bgnn.topk_lowest.default": _topk,
    "getitem": _getitem,
    "aten.linear.default": _linear,
    **dict.fromkeys(("aten.matmul.default", "aten.bmm.default", "aten.mm.default"), _matmul),
    "aten.addmm.default": _addmm,
    "bgnn.gather_nodes.default": _gather_nodes,
    "aten.index_select.default": index_select,
}  # fmt: skip
