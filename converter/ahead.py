"""What certainly cannot be converted is refused before the model is exported, which takes minutes for a deep one.

PyTorch runs the model once, and each call of its forward is noted. One that depends on the inputs and makes an
operation that no row of the table of ops names (passes/ops.py), or a row "alone", or that draws random numbers, is
converted alone: no pass looks for such an op among others, so what refuses it there refuses it in the model. A real
number or a condition that forward makes of a tensor's values is refused as it is. Unless it does not count
(`g(x) - g(x).detach()`, a part that is cut off): so the model is run again with the call's results changed, and it is
refused only where the outputs change as well. All else is left to the passes, as everything is in a model of few
operations, of which they tell as fast. And a loop that reads many whole numbers of tensors, edge by edge, would be
written out by the export, in minutes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.utils import _compiling_state_context
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from bgnn.converter.eager import EagerModel
from bgnn.converter.errors import ConversionError
from bgnn.converter.exchanged_calls import ExchangedCalls
from bgnn.converter.pyg_knn import traceable
from bgnn.converter.stages import Plan, misplaced, passes_to, unsupported
from bgnn.converter.trace import AT_ONCE, no_number, trace
from bgnn.passes import ops, user_code

FEW = 100  # operations; a model of fewer is exported in a second or two
MANY = 8  # different whole numbers read from tensors that vary: a loop over edges, which export would write out
CHANGES = (0.01, 0.5)  # of a value: what a sign hides of the one shows with the other
SAME = 1e-4  # of the output's largest value: as much may rounding change


def refuse_ahead(eager: EagerModel, inputs: Sequence[Tensor], plan: Plan) -> None:
    """Raises ConversionError for a call that the target certainly has not, with the words that the passes have for it.

    `inputs`: the example's. An exported program, and a model that PyTorch cannot run, are left to what follows.
    """
    if isinstance(eager.model, ExportedProgram):
        return
    noted = _Noted()
    try:
        outputs = noted.run(eager, inputs)
    except Exception:  # whatever forward raises: the export says why
        return
    if len(noted.read) > MANY and noted.reads is not None:
        what, at = noted.reads
        raise ConversionError(
            f"{what}{f' (at {at})' if at else ''} makes Python numbers of a tensor's values, {len(noted.read)} of "
            f"them, and a file has one program for all graphs: {AT_ONCE}"
        )
    if noted.count < FEW:
        return
    for key, call in noted.strange.items():
        reason = _refused_alone(call, plan) if call.made is None else _no_number(call)
        if reason is not None and _counts(key, eager, inputs, outputs, errors=not isinstance(call.made, bool)):
            raise ConversionError(reason)


def _counts(
    key: str, eager: EagerModel, inputs: Sequence[Tensor], outputs: Sequence[Tensor], errors: bool = True
) -> bool:
    """Whether the outputs depend on what calls with this key give; `errors`: what a failure tells."""
    for change in CHANGES:
        try:
            found = _Noted(key, change).run(eager, inputs)
        except Exception:  # a changed index, a changed number of rows; of a condition, an assertion
            return errors
        if not all(_same(a, b) for a, b in zip(outputs, found, strict=True)):
            return True
    return False


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=0, atol=SAME * float(a.abs().amax()), equal_nan=True)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of forward: copies of its arguments; which of the tensors among them depend on the model's inputs.

    `made`: the number that it gives, if it gives no tensor.
    """

    function: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    varying: list[bool]
    told: tuple[str, str]
    made: float | bool | None = None


class _Noted(TorchFunctionMode):
    """Notes the calls of a run; changes what those with the key `changed` give, by a share of each value.

    `strange`: the first call of each key that may have to be refused; `count`: how many calls made operations.
    """

    def __init__(self, changed: str = "", change: float = 0.0) -> None:
        super().__init__()
        self.changed, self.change, self.count = changed, change, 0
        self.strange: dict[str, _Call] = {}
        self.read: set[int] = set()  # whole numbers that forward made of tensors that vary
        self.reads: tuple[str, str] | None = None  # the first call that did
        self.varying: Any = WeakIdKeyDictionary()  # tensors that depend on the model's inputs
        self.made = _Operations()

    def run(self, eager: EagerModel, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The model's outputs, as torch.export would go through it."""
        given = [value.clone() for value in inputs]
        self.varying.update(dict.fromkeys(given, True))
        with _compiling_state_context(), traceable(), ExchangedCalls():
            return eager.run(given, self._seeded())

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        torch.manual_seed(0)
        with self.made, self:
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call's result, or one beside it."""
        given = _tensors((args, kwargs or {}))
        self.made.operations.clear()
        result = func(*args, **(kwargs or {}))
        made, name = self.made.operations, getattr(func, "__name__", "")
        varying = [value in self.varying for value in given]
        if any(varying) and name in ("tolist", "item", "__int__", "__index__"):
            self.reads = self.reads or user_code.describe(func)
            self.read |= {leaf for leaf in pytree.tree_leaves(result) if type(leaf) is int}
        if not made:
            return result
        self.count += 1
        results = _tensors(result) if result is not None else given[:1]  # x[i] = y gives x another value
        depends = any(varying) and not name.startswith("new_") and not name.endswith("_like")
        self.varying.update(dict.fromkeys(results, True) if depends else {})
        number = result if isinstance(result, float | bool) else None
        key = _key(name, made, depends) if number is None else f"{name} makes a number" if depends else ""
        if key and (results or number is not None) and key not in self.strange:
            copied = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (tuple(args), dict(kwargs or {})))
            self.strange[key] = _Call(func, copied, varying, user_code.describe(func), number)
        return result if not key or key != self.changed else self._beside(result, results, given)

    def _beside(self, result: Any, results: Sequence[Tensor], given: Sequence[Tensor]) -> Any:
        if isinstance(result, float | bool):
            return not result if isinstance(result, bool) else result * (1 + self.change)
        for value in results:
            if any(value is other for other in given):  # written in place
                value.copy_(_changed(value, self.change))
                return result
        new = pytree.tree_map_only(Tensor, lambda value: _changed(value, self.change), result)
        self.varying.update(dict.fromkeys(_tensors(new), True))
        return new


class _Operations(TorchDispatchMode):
    """Keeps the ATen operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's result."""
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def _key(name: str, made: Sequence[Any], depends: bool) -> str:
    """What tells calls that are refused alike from others: the call's name and its strange operation; else empty."""
    if any(torch.Tag.nondeterministic_seeded in op.tags for op in made):
        return f"{name} draws"
    if not depends or f"aten.{name.rstrip('_')}" in _named() or any(op.namespace != "aten" for op in made):
        return ""
    strange = (op.overloadpacket._qualified_op_name.split("::")[1].rstrip("_") for op in made)
    return next((f"{name} makes {op}" for op in strange if f"aten.{op}" not in _named()), "")


@functools.cache
def _named() -> frozenset[str]:
    """The ops that a pass may take together with others."""
    return frozenset(ops.name_of(op) for words, row in ops.TRAITS for op in row if "alone" not in words.split())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _changed(value: Tensor, share: float) -> Tensor:
    """Each number a share of it more, and of the whole's size: equal numbers stay equal."""
    if value.dtype == torch.bool:
        return ~value
    if not (value.is_floating_point() or value.is_complex()):
        return value + 1
    return value * (1 + share) + share * value.abs().mean()


class _Alone(nn.Module):
    """A model of one call: those of its tensors that vary are the inputs, the others its own."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.function = call.function
        self.leaves, self.tree = pytree.tree_flatten(call.arguments)
        tensors = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.given = [i for i, varies in zip(tensors, call.varying, strict=True) if varies]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All tensors that the call gives."""
        leaves = list(self.leaves)
        for place, value in zip(self.given, inputs, strict=True):
            leaves[place] = value.clone()
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        result = self.function(*args, **kwargs)
        return tuple(_tensors(result) if result is not None else _tensors(args)[:1])


def _no_number(call: _Call) -> str:
    """Why a file has no such number."""
    what, at = call.told
    place = f" (at {at})" if at else ""
    if not isinstance(call.made, bool):
        return no_number(f"{what}{place}")
    return (
        f"{what}{place} makes a condition of a tensor's values, which differ in each run: torch.export cannot trace "
        "both branches: use torch.where"
    )


def _refused_alone(call: _Call, plan: Plan) -> str | None:
    """Why the call cannot be converted, if that is because of an op that no pass takes with others."""
    alone = _Alone(call)
    inputs = [alone.leaves[place] for place in alone.given]
    try:
        with user_code.said_to_be(*call.told):
            results = len(alone(*inputs))
            gm = trace(alone, inputs, range(results), [{} for _ in inputs] or None)
            for stage in ("traced", "semantic"):
                for _, run in passes_to(stage, plan):
                    run(gm)
    except ConversionError as error:
        return str(error) if call.told[1] in str(error) and "random" in str(error) else None
    node = misplaced(gm, "semantic", plan)
    return None if node is None or ops.name_of(node.target) in _named() else unsupported(node, plan.target)
