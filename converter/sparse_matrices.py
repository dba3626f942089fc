"""Sparse matrices in forward, which files do not have: their products as sums over their entries, while it is exported.

    torch.sparse_coo_tensor(edge_index, w, (n, m))   rows, columns and values, each a plain tensor
    adj @ x, torch.sparse.mm(adj, x)                 zeros(n).index_add(0, rows, x[columns] * values[:, None])
    adj.t(), 2 * adj, adj.coalesce()                 the same of other rows, columns and values

So a layer that multiplies by an adjacency is one that sums over edges. A sparse matrix that the model holds, as a
buffer, a parameter, an attribute or in a list of them, is held as its parts while the model is exported.

Entries that name the same place count as often as they stand there, for products and for sums. What would tell them
from one entry of their sum (the values after `coalesce`) is refused, as is all else of sparse matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch

from bgnn.converter.errors import ConversionError
from bgnn.passes import user_code

WITHOUT_SPARSE = "sum over edges instead, as in torch.zeros_like(h).index_add(0, rows, h[columns] * values[:, None])"
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class SparseMatrix(Tensor):
    """Stands for a sparse matrix. It is a tensor by its class alone; PyTorch's calls of it are answered here.

    `indices`: int64 `[2, E]`, `values`: `[E]`, `sizes`: (rows, columns), each a number or an open size. `merged`:
    whether equal places were said to become one entry, which they did not.
    """

    indices_: Tensor
    values_: Tensor
    sizes: tuple[Any, Any]
    merged: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the call gives; raises ConversionError for one that is not known here."""
        answer = _ANSWERS.get(_name(func))
        found = answer(*args, **(kwargs or {})) if answer is not None else NotImplemented
        if found is NotImplemented:
            call, place = user_code.describe(func)
            merged = " after coalesce()" if any(isinstance(a, SparseMatrix) and a.merged for a in args) else ""
            at = f" (at {place})" if place else ""
            raise ConversionError(f"{call} of a sparse matrix{merged} is not supported{at}: {WITHOUT_SPARSE}")
        return found


def matrix(indices: Tensor, values: Tensor, sizes: Sequence[Any], merged: bool = False) -> SparseMatrix:
    """The stand-in of these parts."""
    with no_dispatch(), torch._C.DisableTorchFunction():
        made = Tensor._make_subclass(SparseMatrix, torch.empty(0))
        made.indices_, made.values_ = indices, values
        made.sizes, made.merged = (sizes[0], sizes[1]), merged
    return made


def made_of(indices: Any, values: Any, size: Any = None, *_: Any, dtype: Any = None, **__: Any) -> Any:
    """What stands for `torch.sparse_coo_tensor`; None of one that is no matrix of numbers or has no size of its own."""
    if not isinstance(indices, Tensor) or not isinstance(values, Tensor) or values.dim() != 1:
        return None
    if size is None or len(size) != 2:
        return None
    return matrix(indices, values if dtype is None else values.to(dtype), size)


@contextmanager
def held_as_parts(model: nn.Module) -> Iterator[None]:
    """Within the block the sparse matrices that the model's modules hold are held as their parts, two buffers each.

    Their names are properties of a class that the module is of meanwhile: PyTorch exports copies of modules, and
    exchanges how they look for attributes.
    """
    with ExitStack() as stack:
        for module in list(model.modules()):
            held = _hold(module, stack)
            if held:
                kind = type(module)
                stack.callback(setattr, module, "__class__", kind)
                more = {name: _property(name, made) for name, made in held.items()}
                module.__class__ = type(kind.__name__, (kind,), {**more, "__module__": kind.__module__})
        yield


def _hold(module: nn.Module, stack: ExitStack) -> dict[str, Callable[[nn.Module], Any]]:
    """Takes a module's sparse matrices and lists with some until the stack is left; gives what stands for them."""
    held: dict[str, Callable[[nn.Module], Any]] = {}
    places: tuple[dict[str, Any], ...] = (module._buffers, module._parameters, vars(module))
    for values in places:
        for name, value in list(values.items()):
            if _is_sparse(value):
                held[name] = _parts(module, name, value, stack)
            elif isinstance(value, (list, tuple)) and any(map(_is_sparse, value)):
                each = [_parts(module, f"{name}_{i}", one, stack) for i, one in enumerate(value)]
                held[name] = functools.partial(_all, each)
            else:
                continue
            stack.callback(values.__setitem__, name, values.pop(name))
    return held


def _property(name: str, made: Callable[[nn.Module], Any]) -> property:
    """What a module has in place of an attribute; what forward assigns to it stays until forward is run again."""
    kept = f"{name}_of_forward"
    return property(
        lambda module: vars(module)[kept] if kept in vars(module) else made(module),
        lambda module, value: vars(module).__setitem__(kept, value),
    )


def _all(each: Sequence[Callable[[nn.Module], Any]], module: nn.Module) -> list[Any]:
    return [one(module) for one in each]


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout in _SPARSE and value.dim() == 2


def _parts(module: nn.Module, name: str, value: Any, stack: ExitStack) -> Callable[[nn.Module], Any]:
    """Registers the parts until the stack is left; gives what makes the stand-in of what a module's buffers are then.

    What is no sparse matrix stands for itself.
    """
    if not _is_sparse(value):
        return lambda module: value
    plain = value.detach().to_sparse_coo()
    sizes, merged = tuple(value.shape), not plain.is_coalesced()
    names = []
    for part, tensor in (("indices", plain._indices()), ("values", plain._values())):
        name_of_part = f"{name}_{part}"
        while hasattr(module, name_of_part):
            name_of_part += "_"
        module.register_buffer(name_of_part, tensor.clone())
        stack.callback(module._buffers.pop, name_of_part)
        names.append(name_of_part)
    return lambda module: matrix(getattr(module, names[0]), getattr(module, names[1]), sizes, merged)


def _name(func: Any) -> str:
    """A call's name, "mm" of all that multiply; of an attribute, the attribute's."""
    name = str(getattr(func, "__name__", func))
    name = func.__self__.__name__ if name == "__get__" else name
    return _SAME.get(name.removeprefix("_sparse_"), name.removeprefix("_sparse_"))


_SAME = {
    "matmul": "mm", "__matmul__": "mm", "__rmatmul__": "mm", "mv": "mm", "spmm": "mm", "dsmm": "mm", "hspmm": "mm",
    "_indices": "indices", "_values": "values", "T": "t", "transpose": "t", "__mul__": "mul", "__rmul__": "mul",
    "__truediv__": "div", "__neg__": "neg", "multiply": "mul", "divide": "div", "negative": "neg",
    "to_sparse_csr": "to", "to_sparse": "to", "to_sparse_coo": "to", "type": "to", "float": "to", "cpu": "to",
    "contiguous": "to", "detach": "to", "clone": "to",
}  # fmt: skip


def _mm(a: Any, b: Any) -> Any:
    """A sparse matrix by a plain one or a vector; a plain one by a sparse one, of the transposed."""
    if not isinstance(a, SparseMatrix):
        return _mm(_t(b), a.t()).t() if a.dim() == 2 else _mm(_t(b), a) if a.dim() == 1 else NotImplemented
    if isinstance(b, SparseMatrix) or b.dim() not in (1, 2):
        return NotImplemented
    rows, columns = a.indices_[0], a.indices_[1]
    if b.dim() == 1:
        return b.new_zeros(a.sizes[0]).index_add(0, rows, b[columns] * a.values_)
    return b.new_zeros(a.sizes[0], b.shape[1]).index_add(0, rows, b[columns] * a.values_[:, None])


def _addmm(added: Tensor, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    product = _mm(a, b)
    return NotImplemented if product is NotImplemented else beta * added + alpha * product


def _t(a: SparseMatrix, *axes: int) -> Any:
    if axes and sorted(axis % 2 for axis in axes) != [0, 1]:
        return NotImplemented
    return matrix(a.indices_.flip(0), a.values_, a.sizes[::-1], a.merged)


def _with_values(a: SparseMatrix, values: Tensor) -> SparseMatrix:
    return matrix(a.indices_, values, a.sizes, a.merged)


def _is_number(value: Any) -> bool:
    return not isinstance(value, SparseMatrix) and (not isinstance(value, Tensor) or value.dim() == 0)


def _mul(a: Any, b: Any) -> Any:
    if not isinstance(a, SparseMatrix):
        a, b = b, a
    return _with_values(a, a.values_ * b) if _is_number(b) else NotImplemented


def _div(a: Any, b: Any) -> Any:
    return _with_values(a, a.values_ / b) if isinstance(a, SparseMatrix) and _is_number(b) else NotImplemented


def _sum(a: SparseMatrix, dim: Any = None, **given: Any) -> Any:
    """Of rows or of columns: a plain tensor, in which PyTorch's sparse one has zeros."""
    axes = [dim] if isinstance(dim, int) else list(dim or (0, 1))
    values = a.values_ if given.get("dtype") is None else a.values_.to(given["dtype"])
    if len(axes) == 2:
        return values.sum()
    kept = 1 - axes[0] % 2
    return values.new_zeros(a.sizes[kept]).index_add(0, a.indices_[kept], values)


def _coalesce(a: SparseMatrix) -> SparseMatrix:
    return matrix(a.indices_, a.values_, a.sizes, merged=True)


def _part(which: str) -> Callable[[SparseMatrix], Any]:
    return lambda a: NotImplemented if a.merged else getattr(a, which)


def _to(a: SparseMatrix, *given: Any, **named: Any) -> SparseMatrix:
    """Of another type of values, if one is named; of the same layout as before, whichever is asked for."""
    kinds = [one for one in (*given, *named.values()) if isinstance(one, torch.dtype)]
    return _with_values(a, a.values_.to(kinds[0])) if kinds else a


def _size(a: SparseMatrix, dim: int | None = None) -> Any:
    return tuple(a.sizes) if dim is None else a.sizes[dim]


def _to_dense(a: SparseMatrix, *_: Any, **__: Any) -> Tensor:
    place = a.indices_[0] * a.sizes[1] + a.indices_[1]
    return a.values_.new_zeros(a.sizes[0] * a.sizes[1]).index_add(0, place, a.values_).view(*a.sizes)


_ANSWERS: dict[str, Callable[..., Any]] = {
    "mm": _mm,
    "addmm": _addmm,
    "t": _t,
    "mul": _mul,
    "div": _div,
    "neg": lambda a: _with_values(a, -a.values_),
    "sum": _sum,
    "coalesce": _coalesce,
    "is_coalesced": lambda a: a.merged,
    "indices": _part("indices_"),
    "values": _part("values_"),
    "to": _to,
    "size": _size,
    "shape": _size,
    "dim": lambda a: 2,
    "ndim": lambda a: 2,
    "to_dense": _to_dense,
    "dtype": lambda a: a.values_.dtype,
    "device": lambda a: a.values_.device,
    "layout": lambda a: torch.sparse_coo,
    "is_sparse": lambda a: True,
    "is_sparse_csr": lambda a: False,
    "is_cuda": lambda a: False,
    "is_floating_point": lambda a: a.values_.is_floating_point(),
    "requires_grad": lambda a: False,
}
