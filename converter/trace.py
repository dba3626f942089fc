"""From a PyTorch model to the IR: `torch.export`, functionalised, with the weights frozen as constants."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import keyword
import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._export.utils import _fakify_params_buffers
from torch._functorch._aot_autograd import graph_capture_wrappers
from torch._subclasses import fake_tensor
from torch._subclasses.fake_impls import _is_tensor_constructor, op_implementations_dict
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.ao.quantization import FakeQuantizeBase
from torch.export import ExportedProgram, _trace
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.sym_node import SymNode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

import bgnn.converter.dialect  # noqa: F401  (defines the bgnn:: ops)
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.example_inputs import input_names
from bgnn.converter.exchanged_calls import ExchangedCalls, whole_numbers
from bgnn.converter.pyg_knn import traceable
from bgnn.converter.sizes import open_sizes
from bgnn.converter.sparse_matrices import WITHOUT_SPARSE, held_as_parts
from bgnn.passes import masked_writes, ops, user_code
from bgnn.passes.graph import as_meta, by_name, is_call, is_static, remove_dead_code
from bgnn.passes.index_limits import edge_inputs, inputs_of
from bgnn.passes.neighbour_rows import is_search

aten = torch.ops.aten


# What no target has stays whole as well, so that it is refused by its own name: solvers, transforms, quantiles. Norms
# and products are none.
SOLVERS = re.compile(r"(nan)?quantile|fft_|_?sparse|to_sparse|linalg_(?!norm|vecdot|matmul|cross|multi_dot)")

NUMBERS = "numbers of sizes"  # in a graph's meta: lines of the user's that made numbers of open sizes
LARGEST_VALUE = 1 << 24  # elements of a tensor whose values forward may look at
LARGEST_MADE = 1 << 16  # elements of one that forward makes of numbers


def trace(
    model: nn.Module | ExportedProgram,
    inputs: Sequence[Tensor],
    keep_outputs: Sequence[int] = (0,),
    open_axes: Sequence[dict[int, Any]] | None = None,
) -> fx.GraphModule:
    """Traces an eval-mode model on example inputs into the IR (stage "traced").

    `inputs`: the positional arguments, with the shapes and dtypes the emitted file will have. `keep_outputs`:
    which of the model's flattened outputs the file keeps (default: the first). `open_axes`: the axes of each input
    whose sizes stay open (`converter.sizes`). The result is an FX graph over ATen ops without in-place updates; its
    constants are attributes. Raises ConversionError where PyTorch cannot export it.
    """
    # Example inputs must be contiguous: traced from a permuted view, `contiguous` vanishes (facts: tracing).
    inputs = tuple(t.detach().contiguous() for t in inputs)
    fixed: list[str] = []
    if isinstance(model, ExportedProgram):
        program = _functionalise(model)
    else:
        with _in_eval_mode(model), held_as_parts(model):
            program = _export(model, inputs, open_axes, fixed)
    gm = _freeze(program, inputs, keep_outputs, open_axes is not None)
    gm.meta[NUMBERS] = fixed
    return gm


def _export(
    model: nn.Module, inputs: tuple[Tensor, ...], open_axes: Sequence[dict[int, Any]] | None, fixed: list[str]
) -> ExportedProgram:
    """Exports without Dynamo; where that fails, with it. `fixed` gets the lines that made numbers of open sizes."""
    dynamic = None if open_axes is None else _as_arguments(model, open_axes)
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        _without_logs(),
        _known_values(),
        traceable(),
        ExchangedCalls() as calls,
        _numbers_of_sizes(fixed),
    ):
        warnings.simplefilter("ignore")
        try:
            return _export_functional(model, inputs, dynamic)
        except ConversionError:  # of what forward does with sparse matrices
            raise
        except Exception as error:  # export raises whatever the model's forward raises
            first, makers = error, set[str]()
            _run_eagerly(model, inputs)
            if "Could not extract specialized integer" in str(first):
                try:
                    with whole_numbers() as makers:
                        return _export_functional(model, inputs, dynamic)
                except Exception as further:  # it went past that number: what stops it there is the reason
                    first = further
            if _loop(fixed):  # Dynamo would run through it again, and slower, to fix the same size
                raise ConversionError(_not_exported(first, first, fixed, calls, makers)) from first
            try:
                program = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=True)
            except Exception as second:
                raise ConversionError(_not_exported(first, second, fixed, calls, makers)) from first
    return _functionalise(program)


def _export_functional(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> ExportedProgram:
    """Exports without Dynamo, and in the same walk through forward takes apart what `_functionalise` does.

    PyTorch's two steps, `export` and `run_decompositions`, cost half as much again as its private parts that do both
    at once. Arithmetic of sizes is noted where an operation needs it: most is PyTorch's own, on strides, and unused.
    """
    to_aten = functools.partial(_trace._export_to_aten_ir, decomp_table=_split_taken_apart()[1])
    with (
        user_code.recorded(),
        _any_names(),
        _composites_taken_apart(),
        mock.patch.object(_trace, "_export_to_aten_ir", to_aten),
        mock.patch.object(graph_capture_wrappers, "maybe_disable_thunkify", nullcontext),
        mock.patch.multiple(FunctionalTensor, **{name: getattr(Tensor, name) for name in _CONVERSIONS}),
        mock.patch.object(nn.Module, "named_buffers", _buffers_once),
        _each_forward_afresh(model),
    ):
        return _trace._export(model, inputs, dynamic_shapes=dynamic, strict=False, pre_dispatch=False)


def _run_eagerly(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raises ConversionError where forward fails without any export: then the model or its inputs are to blame."""
    try:
        model(*inputs)
    except Exception as error:
        given = ", ".join(f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in inputs)
        raise ConversionError(
            f"the model's forward fails eagerly, in PyTorch itself (on {given}) at {user_code.raised_at(error)}: "
            f"{user_code.reason(error)}: {_edges_turned(model, inputs)}"
        ) from error


def _edges_turned(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """The way out: where edges were given as [E, 2] forward takes them as [2, E]."""
    for i, value in enumerate(inputs):
        if value.dim() == 2 and value.shape[1] == 2 != value.shape[0] and not value.is_floating_point():
            with suppress(Exception):
                model(*inputs[:i], value.t(), *inputs[i + 1 :])
                name = input_names(model, len(inputs))[i]
                return f"edges are [2, E], and {name} is {list(value.shape)}: give it transposed ({name}.T)"
    return "mend the model, or give inputs that it takes"


@contextmanager
def _numbers_of_sizes(places: list[str]) -> Iterator[None]:
    """Within the block, adds each line of the user's that makes a number or a condition of an open size."""
    guard_int, guard_bool = SymNode.guard_int, SymNode.guard_bool

    def noted(node: SymNode, *args: Any) -> int:
        if node.expr.free_symbols and (place := user_code.running()):
            by_user = user_code.running_function() == ""  # else the loop that it stands in may be over layers
            places.append(place if by_user else place.partition(": ")[0])
        return guard_int(node, *args)

    def noted_condition(node: SymNode, *args: Any) -> bool:
        asked = sys._getframe(3).f_code.co_filename  # SymBool.__bool__ was called there, `if x.size(0) > 40`
        if node.expr.free_symbols and not user_code.is_library(asked) and (place := user_code.running()):
            places.append(place)
        return guard_bool(node, *args)

    with (
        mock.patch.object(SymNode, "guard_int", noted),
        mock.patch.object(SymNode, "guard_bool", noted_condition),
    ):
        yield


def _loop(fixed: Sequence[str]) -> str:
    """The first line of the user's that loops over an open size; "" where none does."""
    return next((line for line in fixed if re.search(r": (.*[\[(\s])?for .* in ", line)), "")


DENSE_BATCH = (
    "to_dense_batch has as many columns as the largest graph of a batch has nodes, so attend over all nodes and mask "
    "those of other graphs, as in scores.masked_fill(batch[:, None] != batch, -torch.inf).softmax(-1), or give it "
    "max_num_nodes= and batch_size="
)


WITHOUT_MASKS = (
    "forward picks rows by a mask, x[mask], as many as the values say: keep all, and multiply those edges' messages by "
    "0 that do not count, as in h[edge_index[0]] * (edge_type == r)[:, None] (FastRGCNConv in place of RGCNConv)"
)


def _not_exported(
    first: Exception, second: Exception, fixed: Sequence[str], calls: ExchangedCalls, makers: Collection[str]
) -> str:
    """Why neither way of torch.export went through, each with the user's line; `first` is the one without Dynamo.

    `fixed`: lines that made numbers of open sizes; `calls`: what forward was seen to call; `makers`: functions that
    made numbers of values, and were passed.
    """
    at, also = user_code.raised_at(first, others=False), user_code.raised_at(second, others=False)
    text = f"torch.export cannot trace the model{f', at {at}' if at else ''}: {user_code.reason(first)}"
    if constant := re.search(r"(\S+) was inferred to be a constant \((\d+)\)", str(first)):
        return (
            f"{text}: forward fixes {constant[1]} to {constant[2]}, and a graph's nodes and edges are any number: "
            "take sizes from the tensors (x.size(0)), and no slices or tables of that length"
        )
    if axis := re.search(r"Constraints violated \(L\['(\w+)'\]\.size\(\)\[(\d+)\]", str(first)):
        line = f", at {fixed[0]}" if fixed else ""
        return (
            f"torch.export cannot trace the model{line}: forward makes a number of axis {axis[2]} of {axis[1]}, which "
            "is to stay open (by a loop over it, say): write it with tensors alone, take sizes from the tensors "
            f"(x.size(0)), or fix it with --fixed {axis[1]}=SIZE"
        )
    if user_code.reason(second) != user_code.reason(first):
        text += f"; nor with Dynamo{f', at {also}' if also and also != at else ''}: {user_code.reason(second)}"
    loop = _loop(fixed)
    if calls.sparse or "sparse" in f"{first}{second}".lower():
        way_out = WITHOUT_SPARSE
    elif "to_dense_batch" in {*makers, *user_code.functions_of(first)}:
        way_out = DENSE_BATCH
    elif loop:
        way_out = f"the loop at {loop} is one step for each node or edge, of which graphs have any number: {AT_ONCE}"
    elif calls.masks and "data-dependent" in str(first).lower():
        way_out = WITHOUT_MASKS
    elif "data-dependent" in str(first).lower() or "DataDependent" in type(first).__name__:
        way_out = (
            "a number or a condition is made there of a tensor's values: use torch.where for a condition, and give "
            "sizes as numbers (PyG's pooling: size=, its layers: num_nodes or dim_size)"
        )
        if re.search(r"\w\[", at.partition(": ")[2]):  # x[i], i one number
            way_out += f"; in a loop over edges, {AT_ONCE}"
    else:
        way_out = "write that line with tensors alone, or do it before the model"
    return f"{text}: {way_out}"


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block the model is as in inference; after it, each module is in the mode it was in."""
    before = {module: module.training for module in model.modules()}
    with suppress(NotImplementedError):  # a program's own module, which is what it is
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _known_values() -> Iterator[None]:
    """Within the block, `float(self.scale)`, `if self.flag:` and their like see the values that the model holds.

    PyTorch exports a model by running forward on tensors without values ("fake" ones). It lets those that are made
    from literals keep their value, as well as what is computed from such ones alone, until an operation writes to them
    what is not known. In inference the model's own tensors are such literals, too: here they get their values, as
    copies, which forward may write to; and so do tensors that are made of numbers alone, `zeros(12, 12)`. PyTorch keeps
    values of one element, here as many as a weight has. So what forward makes of a graph in a buffer has known sizes.
    """
    dispatch = fake_tensor.FakeTensorMode.dispatch
    running = 0  # operations; what one makes while another runs is a place for its result, which is not known

    def made(mode: fake_tensor.FakeTensorMode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        nonlocal running
        running += 1
        try:
            result = dispatch(mode, func, types, args, kwargs)
        finally:
            running -= 1
        if running or not isinstance(result, fake_tensor.FakeTensor) or result.constant is not None:
            return result
        if _is_made_of_numbers(func, result):
            given = [*args, *(kwargs or {}).values()]
            if not any(isinstance(one, torch.SymInt) for one in pytree.tree_leaves(given)):
                with no_dispatch():
                    value = func(*args, **(kwargs or {}))
                    result.constant = value.zero_() if "empty" in func.__name__ else value
                mode.fake_tensor_converter.add_constant_storage_mapping(result)
        return result

    def with_values(mode: fake_tensor.FakeTensorMode, model: nn.Module) -> dict[str, Any]:
        fakes = _fakify_params_buffers(mode, model)
        own = [*model.named_parameters(), *model.named_buffers()]
        plain = {name: t.detach() for name, t in own if not nn.parameter.is_lazy(t) and t.layout is torch.strided}
        values = copy.deepcopy(plain)  # all at once: those that share memory go on sharing it
        for name, value in values.items():
            fake = cast(fake_tensor.FakeTensor, fakes[name])
            fake.constant = value
            mode.fake_tensor_converter.add_constant_storage_mapping(fake)
        return fakes

    with (
        mock.patch("torch.export._trace._fakify_params_buffers", with_values),
        mock.patch("torch.export.exported_program._fakify_params_buffers", with_values),
        mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", LARGEST_VALUE),
        mock.patch.object(fake_tensor.FakeTensorMode, "dispatch", made),
    ):
        yield


def _is_made_of_numbers(func: Any, result: fake_tensor.FakeTensor) -> bool:
    """Whether an operation makes a tensor, not a large one, of its sizes and numbers alone: no random one."""
    return (
        _is_tensor_constructor(func)
        and torch.Tag.nondeterministic_seeded not in func.tags
        and all(isinstance(size, int) for size in result.shape)
        and result.numel() <= LARGEST_MADE
        and result.device.type == "cpu"
    )


def _as_arguments(model: nn.Module, axes: Sequence[Any]) -> tuple[Any, ...]:
    """One entry for each argument of forward: all that `*args` takes are one."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    single = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:single], tuple(axes[single:]))


@contextmanager
def uncached(model: nn.Module | ExportedProgram) -> Iterator[None]:
    """Within the block no forward leaves a trace in the model, of which a file could know nothing.

    PyG's layers with `cached=True` do not keep the first graph they meet: a file takes any. torch.ao's observers, which
    `eval()` leaves on, do not move their ranges: a file has those that are stored.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [
        (
            module,
            {name: value for name, value in vars(module).items() if name == "cached" or name.startswith("_cached_")},
        )
        for module in modules
        if getattr(module, "cached", None) is True
    ]
    for module, values in before:
        vars(module).update({name: False if name == "cached" else None for name in values})
    observing = [m for m in modules if isinstance(m, FakeQuantizeBase) and bool(m.observer_enabled.any())]
    for observer in observing:
        observer.disable_observer()
    try:
        yield
    finally:
        for observer in observing:
            observer.enable_observer()
        for module, values in before:
            vars(module).update(values)


@contextmanager
def _without_logs() -> Iterator[None]:
    """Where one way to export fails, PyTorch prints the whole graph, although the next way may succeed."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _functionalise(program: ExportedProgram) -> ExportedProgram:
    """No in-place ops after this; composites mostly stay whole (cdist, linear, conv, prelu: easier to match)."""
    program = _without_shared_buffers(program)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _known_values(), _any_names():
            warnings.simplefilter("ignore")
            return program.run_decompositions(dict(taken_apart()))
    except Exception as error:
        raise ConversionError(
            f"torch.export cannot take the model's in-place updates apart: {user_code.reason(error)}"
        ) from error


def _without_shared_buffers(program: ExportedProgram) -> ExportedProgram:
    """The program, or a copy in which one name is used of each buffer that has several.

    PyTorch cannot take apart what is written to a tensor that it knows by two names: torch.ao's FX mode gives one
    fake-quantiser to all that a `cat` joins.
    """

    def key(value: Tensor) -> tuple[Any, ...]:
        return value.data_ptr(), value.shape, value.stride(), value.dtype

    names = [spec.target for spec in program.graph_signature.input_specs if spec.kind == InputKind.BUFFER]
    values = {name: program.state_dict.get(cast(str, name)) for name in names}
    keys = [key(v) for v in values.values() if v is not None and v.numel() > 0]
    if len(set(keys)) == len(keys):
        return program
    program = copy.deepcopy(program)
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    first: dict[tuple[Any, ...], fx.Node] = {}
    for spec in program.graph_signature.input_specs:
        value = program.state_dict.get(cast(str, spec.target)) if spec.kind == InputKind.BUFFER else None
        if value is None or value.numel() == 0:
            continue
        node = placeholders[cast(Any, spec.arg).name]
        kept = first.setdefault(key(value), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            program.state_dict[cast(str, spec.target)] = value.clone()
    program.graph_module.recompile()
    return program


@contextmanager
def _each_forward_afresh(model: nn.Module) -> Iterator[None]:
    """Within the block each forward finds in its modules what they hold now, and the caller finds it afterwards.

    PyTorch runs forward twice, and what the first run keeps (`if self.degrees is None: ...`) is of no use in another.
    """
    internal = vars(nn.Module()).keys()

    def held(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in values.items() if name not in internal}
        return {name: copy.copy(v) if isinstance(v, list | dict | set) else v for name, v in kept.items()}

    before = [(module, held(vars(module))) for module in model.modules()]

    def put_back(*_: Any) -> None:
        for module, values in before:
            for name in vars(module).keys() - values.keys() - internal:
                del vars(module)[name]
            vars(module).update(held(values))

    hook = model.register_forward_pre_hook(put_back)
    try:
        yield
    finally:
        hook.remove()
        put_back()


def _buffers_once(module: nn.Module, prefix: str = "", recurse: bool = True, **_: Any) -> Iterator[tuple[str, Tensor]]:
    """Buffers, each by its first name: PyTorch cannot take apart what is written to one that it knows by two.

    torch.ao's FX mode gives one fake-quantiser to all that a `cat` joins.
    """
    return module._named_members(lambda one: one._buffers.items(), prefix=prefix, recurse=recurse)


# PyTorch's tensors of this walk make `x.to(torch.float64)` of `x.double()`; the user is told of what they wrote.
_CONVERSIONS = ("bfloat16", "bool", "byte", "char", "cpu", "double", "float", "half", "int", "long", "to")


@functools.cache
def _split_taken_apart() -> tuple[Any, Any]:
    """`taken_apart`, as PyTorch's walk takes it: composites that it knows by itself, and the other ones.

    A `partial` is the kernel that PyTorch runs anyway.
    """
    implicit, others = _split_decomp_table_to_cia_and_python_decomp(dict(taken_apart()))
    written = {op: how for op, how in implicit.items() if not isinstance(how, functools.partial)}
    return written, others


@functools.cache
def _kernels_of_composites() -> Mapping[Any, tuple[dict[Any, Any], Any]]:
    """What PyTorch puts in place so that its walk takes a composite apart as `taken_apart` says, by composite."""
    implicit, _ = _split_taken_apart()
    with _override_composite_implicit_decomp(implicit):
        return {op: (dict(op.py_kernels), op_implementations_dict[op]) for op in implicit}


@contextmanager
def _composites_taken_apart() -> Iterator[None]:
    """PyTorch's `_override_composite_implicit_decomp`, which makes 4,800 kernels anew for each small export."""
    made = _kernels_of_composites()
    before = {op: (dict(op.py_kernels), op_implementations_dict.get(op)) for op in made}

    def put(these: Mapping[Any, tuple[dict[Any, Any], Any]]) -> None:
        for op, (kernels, of_fakes) in these.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
            op_implementations_dict.pop(op, None)
            if of_fakes is not None:
                op_implementations_dict[op] = of_fakes

    put(made)
    try:
        yield
    finally:
        put(before)


@contextmanager
def _any_names() -> Iterator[None]:
    """Within the block, modules may have the names of Python's keywords, `ModuleDict({"in": ...})`.

    PyTorch writes code that reads them, and takes what is no identifier with getattr; a keyword is one.
    """
    written = fx.graph._format_target

    def format_target(base: str, target: str) -> str:
        for part in target.split("."):
            base = f'getattr({base}, "{part}")' if keyword.iskeyword(part) else written(base, part)
        return base

    with mock.patch.object(fx.graph, "_format_target", format_target):
        yield


@functools.cache  # 0.07 s, of half a second that a small conversion takes
def taken_apart() -> Mapping[Any, Any]:
    """PyTorch's decomposition of each composite op that no pass looks for and no emitter writes (passes/ops.py).

    Aliases (`torch.multiply`), activations, norms and products become a few dozen ops.
    """
    whole = {ops.name_of(op).removeprefix("aten.") for _, row in ops.TRAITS for op in row}
    known = torch.export.default_decompositions()
    names = {op: op._schema.name.split("::")[1] for op in known if op.namespace == "aten"}
    return {op: known[op] for op, name in names.items() if name not in whole and not SOLVERS.match(name)}


def _with_attributes(program: ExportedProgram) -> fx.GraphModule:
    """The program's graph with its lifted parameters, buffers and constants turned back into attributes."""
    signature = program.graph_signature
    graph = fx.Graph()
    gm = fx.GraphModule(nn.Module(), graph)
    specs = {spec.arg.name: spec for spec in signature.input_specs if hasattr(spec.arg, "name")}
    state: dict[str, Any] = {**program.constants, **program.state_dict}
    remap: dict[fx.Node, fx.Node] = {}
    output: fx.Node | None = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                if not isinstance(node.meta.get("val"), Tensor):
                    raise ConversionError(f"input {node.name!r} is not a tensor: fix it as a constant in the model")
                remap[node] = graph.node_copy(node, lambda n: remap[n])
                continue
            name = cast(str, spec.target)
            value = state.get(name)
            if not isinstance(value, Tensor):
                raise ConversionError(f"the model holds {name!r}, which is not a tensor, and cannot be frozen")
            attribute = name.replace(".", "_")
            while hasattr(gm, attribute):
                attribute += "_"
            own = spec.kind == InputKind.BUFFER  # a switch may be back in a moment where it was (`uncached`)
            gm.register_buffer(attribute, value.detach().clone() if own else value.detach())
            remap[node] = graph.get_attr(attribute)
            remap[node].meta = {"val": as_meta(value), "source": name}
        elif node.op == "output":
            output = node
        else:
            remap[node] = graph.node_copy(node, lambda n: remap[n])
    assert output is not None
    results = list(cast(tuple[Any, ...], output.args[0]))
    user = [
        value
        for value, spec in zip(results, signature.output_specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    graph.output(tuple(remap[v] if isinstance(v, fx.Node) else v for v in user))
    return gm


def _refuse_what_changes(node: fx.Node) -> None:
    """Raises ConversionError for random numbers: no run repeats another's."""
    if node.op != "call_function":
        return
    named = f"{user_code.called(node)}{user_code.where(node)}"
    given = by_name(node)
    share = next((name for name in ("dropout_p", "dropout", "p") if name in given), None)
    dropout = share is not None and (share != "p" or "dropout" in str(node.target))
    if dropout and given[str(share)] and given.get("train", True) is not False:
        raise ConversionError(
            f"{named} is a dropout that stays on in eval mode, and its output random: write "
            "F.dropout(x, p, training=self.training), or use nn.Dropout"
        )
    if not dropout and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise ConversionError(
            f"{named} draws random numbers in forward, which no file can repeat: draw them before the model and give "
            "them as an input, or keep fixed ones in a buffer"
        )


def refuse_numbers(gm: fx.GraphModule) -> None:
    """Raises ConversionError for what forward makes of its inputs and a file of tensors has not: real Python numbers,
    and sparse matrices (export takes the number of their entries for none)."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and "sparse" in str(node.target) and inputs_of(node):
            call = f"{user_code.called(node)} is not supported{user_code.where(node)}"
            raise ConversionError(f"{call}: {WITHOUT_SPARSE}")
        real = isinstance(node.meta.get("val"), torch.SymFloat | torch.SymBool)
        if real and node.users and is_call(node, aten.item, aten._local_scalar_dense) and inputs_of(node):
            raise ConversionError(no_number(f"{user_code.called(node)}{user_code.where(node)}"))
        if is_call(node, aten.select_scatter, aten.select):
            index = node.args[-1]
            made = isinstance(index, fx.Node) and not is_call(index, aten.item, aten._local_scalar_dense)
            if made or (isinstance(index, fx.Node) and is_call(node, aten.select_scatter)):
                named = f"{user_code.called(node)}{user_code.where(node)}"
                raise ConversionError(f"{named} takes a row by a Python number of a tensor's values: {AT_ONCE}")


AT_ONCE = (
    "take rows by the tensor itself, and sum over all edges at once, as in "
    "torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])"
)


def no_number(call: str) -> str:
    """Why a call, named with its place, that gives a real number is refused."""
    return (
        f"{call} makes a Python number of a tensor's values, which differ in each run: keep it a tensor of one element "
        "(leave out .item(), float() or bool())"
    )


def _freeze(
    program: ExportedProgram, inputs: Sequence[Tensor], keep: Sequence[int], may_be_open: bool = False
) -> fx.GraphModule:
    gm = _with_attributes(program)
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    if len(placeholders) != len(inputs):
        raise UsageError(f"the model takes {len(placeholders)} tensors, but {len(inputs)} example inputs were given")
    for node, value in zip(placeholders, inputs, strict=True):
        wanted = node.meta["val"]
        fits = len(wanted.shape) == value.dim() and all(
            a == b for a, b in zip(wanted.shape, value.shape, strict=True) if isinstance(a, int)
        )
        if not fits or wanted.dtype != value.dtype:
            raise UsageError(
                f"input {node.name!r} is {tuple(value.shape)} {value.dtype}, "
                f"but the program was exported for {tuple(wanted.shape)} {wanted.dtype}"
            )
    output = next(n for n in gm.graph.nodes if n.op == "output")
    results = list(cast(tuple[Any, ...], output.args[0]))
    for index in keep:
        if not 0 <= index < len(results) or not isinstance(results[index], fx.Node):
            raise UsageError(f"there is no tensor output {index}: the model returns {len(results)} outputs")
    output.args = (tuple(results[i] for i in keep),)
    remove_dead_code(gm)
    for node in gm.graph.nodes:
        _refuse_what_changes(node)
        if node.op == "get_attr":
            tensor = getattr(gm, node.target)
            in_forward = str(node.target).startswith("lifted_tensor")  # a number there may be infinite
            if tensor.is_floating_point() and (torch.isnan(tensor) if in_forward else ~torch.isfinite(tensor)).any():
                kind = "a NaN" if torch.isnan(tensor).any() else "an infinite"
                name = node.meta.get("source", node.target)
                raise ConversionError(f"{name} holds {kind} value: mend the checkpoint (training diverged?)")
        if node.target is aten.view.default:  # possible with the strides that export foresaw, not with all real ones
            node.target = aten.reshape.default
        value = node.meta.get("val")
        if value is not None:
            node.meta["val"] = as_meta(value)
    open_sizes(gm)
    masked_writes.run(gm)
    return gm if may_be_open else refuse_open(gm)


def refuse_open(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph itself; raises ConversionError if a size in it is not a number.

    With a search of neighbours it is asked again, when neighbour_rows has given that a size.
    """
    if any(is_search(node) for node in gm.graph.nodes):
        return gm
    for node in gm.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor) and not is_static(node):
            way_out = "keep all rows and mask them (torch.where), or choose a fixed number (topk)"
            if edge_inputs(gm.graph):
                way_out = "graph networks on edges go to ONNX: --target onnx-x86, or onnx-int8-x86"
            elif node.meta["val"].dtype == torch.int64:  # indices: PyG's layers drop self-loops
                way_out = (
                    "if these are a graph's edges, give them as an input of forward, edge_index int64 [2, E], with "
                    f"--target onnx-x86; else {way_out}"
                )
            raise ConversionError(
                f"{user_code.called(node)}{user_code.where(node)} gives a size that depends on the data, and the "
                f"file's sizes are fixed: {way_out}"
            )
    return gm
