"""Calls of PyTorch that torch.export cannot trace as they are, exchanged for others while a model is exported.

    x.data                                   x.detach(); `x.data = y` is a write of y to x
    bincount(i, minlength=n)                 zeros(n) with ones added at i
    segment_reduce(x, "sum", offsets=ptr)    a scatter by the segment that each row lies in
    repeat_interleave(x, counts)             x[the segment that each row lies in]
    quantize_per_tensor(x, s, z, quint8)     the fake-quantiser of the same codes; `.dequantize()` leaves it
    batch_norm(x), x of a number of graphs   the same without questions about the number
    where(condition)                         condition.nonzero(as_tuple=True)
    x.fill_diagonal_(v)                      x.masked_fill_(row == column, v), of an open number of rows
    int(x.max())                             the number that x.max() is in each run
    sparse_coo_tensor(edge_index, w, (n, n)) its parts (sparse_matrices.py)

The third to the fifth have sizes that depend on values; here the sizes are those that the user's call says, or that
follow. A file checks its indices, so that a count beyond `minlength` is refused when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bgnn.converter import sparse_matrices
from bgnn.passes.user_code import is_library


class ExchangedCalls(TorchFunctionMode):
    """Within it such calls become others.

    Layers that binarise `input.data` and `weight.data` in forward (BinaryNet's) are traced so; what export makes of the
    assignment itself drops y. Where x is a view, PyTorch leaves the tensor that it views alone, and this does not.
    `sparse`: whether a call has given a sparse tensor; `masks`: whether one has picked rows by a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sparse = self.masks = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the call gives."""
        data: Any = Tensor.data
        kwargs = kwargs or {}
        if func == data.__get__:
            return args[0].detach()
        if func == data.__set__ and args[0].shape == args[1].shape and args[0].dtype == args[1].dtype:
            args[0].copy_(args[1])
            return None
        exchange = _EXCHANGED.get(func)
        made = exchange(*args, **kwargs) if exchange is not None else None
        result = func(*args, **kwargs) if made is None else made
        self.sparse |= isinstance(result, Tensor) and result.layout is not torch.strided
        if func is Tensor.__getitem__ and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in pytree.tree_leaves(args[1])
        ):
            self.masks = True
            for size in result.shape:  # it is taken to pick something: a norm asks whether it has any rows
                if isinstance(size, torch.SymInt):
                    torch._check(size > 0)
        return result


def _bincount(input: Tensor, weights: Tensor | None = None, minlength: Any = 0) -> Tensor | None:
    """Counts, or sums of weights, of each whole number below `minlength`, or below the largest of them plus 1."""
    if isinstance(minlength, int) and minlength == 0:
        minlength = input.max().item() + 1
    ones = torch.ones_like(input) if weights is None else weights
    return ones.new_zeros(minlength).scatter_add(0, input.long(), ones)


def _segments(ends: Tensor, rows: Any) -> Tensor:
    """Which segment each of the rows lies in: `ends` int64 `[G]` -> int64 `[rows]`."""
    return (torch.arange(rows)[:, None] >= ends).sum(1)


_REDUCTIONS = {"sum": ("sum", 0.0), "mean": ("mean", 0.0), "max": ("amax", -torch.inf), "min": ("amin", torch.inf)}


def _segment_reduce(
    data: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None,
    offsets: Tensor | None = None, axis: int = 0, unsafe: bool = False, initial: Any = None,
) -> Tensor | None:  # fmt: skip
    """A reduction of rows between offsets, or of as many as lengths say."""
    how, empty = _REDUCTIONS.get(reduce.removeprefix("a"), ("", 0.0))
    given = offsets if offsets is not None else lengths
    if not how or given is None or indices is not None or given.dim() != 1 or axis != 0:
        return None
    if initial is not None and (how != "mean" or initial != 0):
        return None
    ends = lengths.cumsum(0) if offsets is None and lengths is not None else given[1:]
    index = _segments(ends, data.shape[0]).reshape(-1, *[1] * (data.dim() - 1)).expand_as(data)
    start = data.new_full([ends.shape[0], *data.shape[1:]], empty)
    if how == "sum":
        return start.scatter_add(0, index, data)
    return start.scatter_reduce(0, index, data, how, include_self=how != "mean")


def _repeat_interleave(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: Any = None
) -> Tensor | None:
    """Each row as often as a tensor says; of counts alone, which of them each result belongs to."""
    if repeats is None:
        repeats, input, dim = input, torch.arange(input.shape[0]), 0
    if not isinstance(repeats, Tensor) or repeats.dim() != 1:
        return None
    if dim is None:
        input, dim = input.flatten(), 0
    size = repeats.sum().item() if output_size is None else output_size
    return input.index_select(dim, _segments(repeats.cumsum(0), size))


_CODES = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}


def _quantize(input: Tensor, scale: Any, zero_point: Any, dtype: torch.dtype) -> Tensor | None:
    """Codes are what a quantised tensor holds; what a network computes of it, it computes of their values.

    PyTorch multiplies by the inverse scale and adds the zero point before it rounds, all at once (FMA): in float64.
    """
    if dtype not in _CODES:
        return None
    step = torch.as_tensor(scale, dtype=torch.float32)
    codes = (input.double() * step.reciprocal().double() + zero_point).float().round().clamp(*_CODES[dtype])
    return (codes - zero_point) * step


def _quantize_channels(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, dtype: torch.dtype
) -> Tensor | None:
    if dtype not in _CODES:
        return None
    zeros = zero_points.to(torch.int32)
    return torch.fake_quantize_per_channel_affine(input, scales.float(), zeros, axis, *_CODES[dtype])


def _dequantize(tensor: Tensor) -> Tensor:
    return tensor.float()


def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    """Of as many rows as the values say there are graphs: PyTorch's own asks whether that is one."""
    if training or running_mean is None or not free_unbacked_symbols(input):
        return None
    stored = (running_mean, running_var, momentum, eps)
    return torch.ops.aten._native_batch_norm_legit_no_training(input, weight, bias, *stored)[0]


def _where(condition: Tensor, *sides: Any, **named: Any) -> Any:
    """Of a condition alone, the places where it holds, axis by axis."""
    return None if sides or named else condition.nonzero(as_tuple=True)


def _fill_diagonal(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor | None:
    """PyTorch's own makes numbers of the sizes."""
    if wrap or input.dim() != 2 or not any(isinstance(size, torch.SymInt) for size in input.shape):
        return None
    rows, columns = (torch.arange(size) for size in input.shape)
    return input.masked_fill_(rows[:, None] == columns, fill_value)


_EXCHANGED: dict[Any, Callable[..., Any]] = {
    torch.bincount: _bincount,
    Tensor.bincount: _bincount,
    torch.segment_reduce: _segment_reduce,
    torch.repeat_interleave: _repeat_interleave,
    Tensor.repeat_interleave: _repeat_interleave,
    torch.quantize_per_tensor: _quantize,
    torch.quantize_per_channel: _quantize_channels,
    F.batch_norm: _batch_norm,
    torch.where: _where,
    Tensor.fill_diagonal_: _fill_diagonal,
    torch.dequantize: _dequantize,
    Tensor.dequantize: _dequantize,
    torch.sparse_coo_tensor: sparse_matrices.made_of,
}


_makers: set[str] = set()  # the functions that made whole numbers of tensors since `whole_numbers` began


class _Int(type):
    """What stands for `int` in a module whose functions are exported."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            _makers.add(sys._getframe(1).f_code.co_name)
        if args and isinstance(args[0], Tensor) and args[0].numel() == 1:
            args = (args[0].item(), *args[1:])
        if args and isinstance(args[0], torch.SymInt | torch.SymFloat | torch.SymBool):
            return torch.sym_int(args[0])
        return int(*args, **kwargs)


class _WholeNumber(metaclass=_Int):
    pass


@contextmanager
def whole_numbers() -> Iterator[set[str]]:
    """Within the block `int(x.max())`, in PyG and in what is no library, is the number of each run.

    Python's own `int` gives a number of this run alone, which export does not know. Gives the names of the functions
    that made such numbers.
    """
    _makers.clear()
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.startswith("torch_geometric.") or (file and "-packages" not in file and not is_library(file)):
                stack.enter_context(mock.patch.object(module, "int", _WholeNumber, create=True))
        yield _makers
