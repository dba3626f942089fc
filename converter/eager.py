"""The model itself, run once by PyTorch: what the traced graph is compared with.

`torch.export` gives a graph of what the model did while it was traced, which need not be what the model does: a module
may ask `torch.compiler.is_exporting()`, or keep something of an earlier run. So the model is run eagerly on the example
inputs, with two points settled that PyTorch leaves open and a file cannot: among equals the lowest index comes first
(`topk`, `sort`), and sign(0) is +1 (zeros are counted elsewhere). Nothing of the caller's module is changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import bgnn.converter.dialect
from bgnn.converter import pyg_knn
from bgnn.converter.errors import ConversionError
from bgnn.passes import user_code
from bgnn.passes.graph import arg

T = TypeVar("T")
bgnn = torch.ops.bgnn
aten = torch.ops.aten


class EagerModel:
    """A model that can be run as its user runs it, on inputs like the example's.

    `keep`: which of the flattened outputs count, as in `trace`. `within`: what the model is run in.
    """

    def __init__(
        self, model: nn.Module | ExportedProgram, keep: Sequence[int],
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self.model, self.keep, self.within = model, list(keep), within

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The kept outputs, ties and zeros settled. Raises ConversionError if the model fails on these inputs."""
        return self.run(_copies(inputs), TieRule())

    def compare(
        self, compare: Callable[[Mapping[str, Sequence[Tensor]], list[Tensor]], T], inputs: Sequence[Tensor],
        outputs: list[Tensor], ops: Mapping[str, str],
    ) -> T:  # fmt: skip
        """The traced graph compared with the model: `compare(taps, outputs)` of its reference.

        `ops`: the kind of op (`kinds`) that each of the reference's decisions was exported as. Where the outputs
        differ, rounding may have turned a decision: the model is run again, its decisions are noted, and the traced
        graph must agree with them within the tolerance of later stages.
        """
        try:
            return compare({}, outputs)
        except ConversionError:
            mode = Recording(set(ops.values()))
            again = self.run(_copies(inputs), mode)
            return compare({name: mode.seen.get(kind, []) for name, kind in ops.items()}, again)

    def run(self, inputs: Sequence[Tensor], mode: AbstractContextManager[Any]) -> list[Tensor]:
        """The kept outputs of one run within `mode`; forward may write to the inputs."""
        given: tuple[Any, ...] = tuple(inputs)
        named: dict[str, Any] = {}
        with self.within(), _copy_of(self.model) as function, torch.random.fork_rng(devices=[]), torch.no_grad(), mode:
            if isinstance(self.model, ExportedProgram):
                given, named = pytree.tree_unflatten(given, self.model.call_spec.in_spec)
            try:
                found = function(*given, **named)
            except Exception as error:  # whatever the user's forward raises
                at = user_code.raised_at(error, others=False)
                raise ConversionError(
                    f"the model fails when PyTorch runs it: {user_code.reason(error)}{f' (at {at})' if at else ''}"
                ) from error
        leaves = pytree.tree_leaves(found)
        return [leaves[i].detach().clone() for i in self.keep]


def _copies(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [value.clone() for value in inputs]


@contextmanager
def _copy_of(model: nn.Module | ExportedProgram) -> Iterator[Callable[..., Any]]:
    """A copy to run; where a module cannot be copied, itself, with what it holds put back afterwards."""
    if isinstance(model, ExportedProgram):
        yield model.module(check_guards=False)
        return
    try:
        copied = copy.deepcopy(model)
    except Exception:  # a module may hold anything
        with _put_back(model):
            yield model.eval()
        return
    yield copied.eval()


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Within the block the model works on copies of its tensors; then its attributes are what they were."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    copies: dict[int, Any] = {}  # tied weights stay tied

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            new = copy.copy(value)
            new.update({key: copied(inner) for key, inner in value.items()})
            return new
        if isinstance(value, (list, set)):
            return copy.copy(value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            data = value.detach().clone()
            copies[id(value)] = nn.Parameter(data, value.requires_grad) if isinstance(value, nn.Parameter) else data
        return copies[id(value)]

    try:
        for module, values in before:
            vars(module).update({name: copied(value) for name, value in values.items()})
        yield
    finally:
        for module, values in before:
            vars(module).clear()
            vars(module).update(values)


class TieRule(TorchDispatchMode):
    """Within it PyTorch follows the rules for ties and zeros that the emitted file follows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`topk` and `sort` with the lowest index among equals, `sign` with +1 at 0."""
        kwargs = kwargs or {}
        kind = kind_of(func)
        if kind == "topk" and "values" not in kwargs:
            given = dict(zip(("x", "k", "dim", "largest", "sorted"), args, strict=False)) | kwargs
            return bgnn.topk_lowest(args[0], given["k"], given.get("dim", -1), given.get("largest", True))
        if func is aten.sort.default:
            given = dict(zip(("x", "dim", "descending"), args, strict=False)) | kwargs
            dim, descending = given.get("dim", -1), given.get("descending", False)
            return aten.sort.stable(args[0], stable=True, dim=dim, descending=descending)
        if kind == "sign":
            into = kwargs.get("out", args[0] if func in (aten.sign_.default, aten.sgn_.default) else None)
            signs = bgnn.binarize(args[0])
            return signs if into is None else into.copy_(signs)
        return func(*args, **kwargs)


class Recording(TieRule):
    """`TieRule`, which also keeps what ops of some kinds gave."""

    def __init__(self, kinds: set[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.seen: dict[str, list[Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The op's result."""
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if kind_of(func) in self.kinds:
            known = pyg_knn.table_of(found, *args, **(kwargs or {})) if kind_of(func) == "knn" else found
            self.seen.setdefault(kind_of(func), []).extend(
                leaf.clone() for leaf in pytree.tree_leaves(known) if isinstance(leaf, Tensor)
            )
        return found


_SAME = {"sgn": "sign", "argsort": "sort", "msort": "sort"}  # export keeps names that eager PyTorch takes apart


def kind_of(target: Any) -> str:
    """An op's name, the same for all its overloads and in place."""
    name = str(getattr(target, "overloadpacket", target)).rsplit(".", 1)[-1].rstrip("_")
    return _SAME.get(name, name)


def kinds(gm: fx.GraphModule) -> dict[str, str]:
    """By the name of each node of an exported graph, the kind of op it is; of one of several results, its maker's."""
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function":
            source = arg(node, 0, "self")
            several = isinstance(source, fx.Node) and not isinstance(source.meta.get("val"), Tensor)
            found[node.name] = kind_of(source.target if several else node.target)
    return found
