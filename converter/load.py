"""From the file the user names to a model and example inputs. Its code runs only when asked for.

model.pt of bgnn.models        says its architecture and settings itself; a graph network's has an example graph, too
.pt2 of torch.export.save      carries its program (load_pt2.py)
state_dict + --arch, --set     one of bgnn.models, stated by the user: BF1 and BF2 have the same keys
state_dict + --model, --set    the user's own class, importable from the current folder
pickled nn.Module              only with --allow-pickle, which runs whatever code the file holds
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bgnn.converter.errors import UsageError
from bgnn.converter.example_inputs import (
    forward_names,
    input_names,
    named_inputs,
    order_inputs,
    random_like,
    random_points,
)
from bgnn.converter.load_pt2 import is_pt2, load_pt2
from bgnn.converter.pyg_knn import provide
from bgnn.converter.untrusted import check_archive, read_torch
from bgnn.models.checkpoint import (
    build_model,
    example_of,
    keeps_values,
    model_of,
    settings_of,
    unseen_settings,
    without_prefix,
)
from bgnn.models.dgcnn import ARCHITECTURES

# Where training scripts put the weights beside the epoch and the optimiser's state.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What foreign code may raise: sys.exit, too.
_RAISED = (Exception, SystemExit)
# DataParallel and torch.compile put these before every key.
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass
class LoadOptions:
    """What the command line says about the model beside its file.

    `settings` are keyword arguments of the architecture or factory. `inputs` are `--input` arguments (see
    `example_inputs.named_inputs`); without them, `example` may hold the model's inputs among others. `batch`
    (default 1) and `points` (default: the configuration's) shape the input of the project's own models.
    """

    arch: str | None = None
    model: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    example: Mapping[str, Tensor] | None = None
    inputs: tuple[str, ...] = ()
    batch: int | None = None
    points: int | None = None
    allow_pickle: bool = False


@dataclasses.dataclass
class Loaded:
    """A model in eval mode, the tensors to trace it with, and its name (the file's stem)."""

    model: nn.Module | ExportedProgram
    example_inputs: tuple[Tensor, ...]
    name: str


def load(path: Path | str, options: LoadOptions | None = None) -> Loaded:
    """Reads the model at `path` (see the module's docstring for what it can be).

    Raises UsageError, in one line that says what is missing, damaged, unsafe or contradictory.
    """
    path, options = Path(path), options or LoadOptions()
    if options.arch and options.model:
        raise UsageError("--arch and --model exclude each other: the first is for bgnn's models, the second for yours")
    if options.settings and not (options.arch or options.model):
        raise UsageError("--set needs --arch NAME or --model PACKAGE.MODULE:FACTORY: what should it set?")
    name = path.stem.encode(errors="replace").decode()  # it is written into the file, as UTF-8
    if _holds_program(path):
        if options.arch or options.model:
            raise UsageError(f"{path} carries its own program: leave out --arch, --model and --set")
        program = load_pt2(path)
        return Loaded(program, _program_inputs(program, options), name)
    content = _read(path, options.allow_pickle)
    carried: Mapping[str, Tensor] = {}
    if isinstance(content, nn.Module):
        if options.arch or options.model:
            raise UsageError(f"{path} holds a whole module: leave out --arch, --model and --set")
        model = content
    elif isinstance(content, dict) and "format_version" in content:
        if options.arch or options.model:
            raise UsageError(f"{path} states its own architecture: leave out --arch, --model and --set")
        model = _or_usage_error(model_of, path, content)
        carried = {} if options.inputs or options.example is not None else _or_usage_error(example_of, path, content)
    else:
        state = _state_dict(path, content)
        if options.arch:
            # sizes are compared before there is memory for them; torch warns that nothing is copied then
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _fill(path, _build_arch(options), state)
        model = _build_arch(options) if options.arch else _build_factory(path, options)
        _fill(path, model, state)
    model.eval()
    return Loaded(model, _module_inputs(path, model, options, carried), name)


def _holds_program(path: Path) -> bool:
    """Whether `path` is a .pt2; raises UsageError where it is no PyTorch file at all."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the model's file in it")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise UsageError(f"{path} is empty")
    if start != b"PK\x03\x04":
        if start[:1] != b"\x80":  # what every pickle starts with since protocol 2
            raise UsageError(f"{path} is not a PyTorch file (neither an archive nor a pickle)")
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            program, names = is_pt2(archive), archive.namelist()
            if program:
                return True
            if any(name.endswith("/data.pkl") for name in names) and not _is_torchscript(names):
                check_archive(archive, path.stat().st_size)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path}: the archive is truncated or damaged ({error})") from error
    if _is_torchscript(names):
        raise UsageError(
            f"{path} is TorchScript, which is not read: save torch.export.export(...) as .pt2, "
            "or give the state_dict with --model PACKAGE.MODULE:FACTORY"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise UsageError(f"{path} is a zip archive, but not one of PyTorch")
    return False


def _is_torchscript(names: Sequence[str]) -> bool:
    return any(name.endswith("/constants.pkl") for name in names)


def _read(path: Path, allow_pickle: bool) -> Any:
    """What torch.save wrote. Without `allow_pickle`, only tensors and plain containers, and no code runs."""
    if allow_pickle:
        _make_cwd_importable()
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except _RAISED as error:  # the file's own code may raise anything
            raise UsageError(f"{path}: unpickling it failed: {_one_line(error)}") from error
    try:
        return read_torch(path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # torch's readers raise many kinds for damaged files
        if culprit := re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error)):
            raise UsageError(
                f"{path} holds a pickled Python object ({culprit[1]}), and reading one can run any code: "
                "save model.state_dict() instead and name the class with --model, or, only if you trust "
                "whoever made the file, add --allow-pickle"
            ) from error
        # torch's own text goes on to advise reading without checks
        reason = type(error).__name__ if "eights" in str(error) else _one_line(error).split(". ")[0]
        raise UsageError(f"{path}: truncated, damaged or not written by torch.save ({reason})") from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors by name, without what training scripts wrap around them."""
    if isinstance(content, dict):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, neither a model nor a state_dict")
    state = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{path} is not a state_dict: {str(key)[:80]!r} is a {type(value).__name__}, not a tensor")
        state[key] = value
    for prefix in _PREFIXES:
        state = _or_usage_error(without_prefix, path, state, prefix)
    return state


def _build_arch(options: LoadOptions) -> nn.Module:
    arch, settings = str(options.arch), dict(options.settings)
    unseen = _or_usage_error(unseen_settings, arch, settings)
    missing = {name: value for name, value in unseen.items() if name not in settings}
    if missing:
        hint = " ".join(f"{name}={value}" for name, value in missing.items())
        own = {name: value for name, value in settings_of(arch).items() if name in missing and value != missing[name]}
        raise UsageError(
            f"a state_dict does not show these settings of {arch}: state what it was trained with; "
            + (
                f"bgnn.models' defaults are --set {hint}"
                if arch == "dq"
                else f"the paper's authors' code has --set {hint}"
            )
            + (f"; bgnn.models' defaults are {' '.join(f'{n}={v}' for n, v in own.items())}" if own else "")
        )
    if options.points is not None:
        settings.setdefault("num_points", options.points)
    return _or_usage_error(build_model, arch, **settings)


def _build_factory(path: Path, options: LoadOptions) -> nn.Module:
    if options.model is None:
        raise UsageError(
            f"{path} is a bare state_dict, and its architecture is never guessed: "
            f"add --arch NAME --set KEY=VALUE ... (bgnn's own: {', '.join(ARCHITECTURES)}) "
            "or --model PACKAGE.MODULE:FACTORY (your own class)"
        )
    module_name, _, factory_name = options.model.partition(":")
    if not module_name or not factory_name:
        raise UsageError(f"--model {options.model!r} must look like package.module:factory, with a class or function")
    _make_cwd_importable()
    try:
        factory: Any = importlib.import_module(module_name)
        for part in factory_name.split("."):
            factory = getattr(factory, part)
    except _RAISED as error:  # whatever the user's module raises on import
        raise UsageError(f"--model {options.model}: cannot import it from {os.getcwd()}: {_one_line(error)}") from error
    provide()  # PyG's layers that search neighbours ask for it when they are made
    try:
        model = factory(**options.settings)
    except _RAISED as error:
        raise UsageError(f"--model {options.model}: the factory raised {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {options.model} gave a {type(model).__name__}, not an nn.Module")
    return model


def _fill(path: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads the tensors as the model's own `load_state_dict` does: every key and shape must match.

    Tensors of the model without elements, `register_buffer("scale", torch.tensor([]))`, take the file's shape: any
    in place of [0], else one that agrees in the other axes.
    """
    for key, value in _tensors(model).items():
        if key in state and _is_open(value.shape, state[key].shape):
            owner, _, name = key.rpartition(".")
            _take_shape(model.get_submodule(owner), name, state[key])
    for key, value in _tensors(model).items():
        if key in state and not keeps_values(state[key], value.dtype):
            raise UsageError(f"{path}: {key!r} holds {state[key].dtype} values that the model's {value.dtype} cannot")
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        wanted, kind = _tensors(model), type(model).__name__
        missing, extra = [key for key in wanted if key not in state], [k for k in state if k not in model.state_dict()]
        if missing or extra:
            parts = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has unknown", extra)) if keys]
            raise UsageError(f"{path} does not fit {kind}: it {' and '.join(parts)}{_deciding(model)}") from error
        for key, value in wanted.items():
            if value.shape != state[key].shape:
                found, needed = list(state[key].shape), list(value.shape)
                why = f"{key!r} has shape {found}, but {kind} needs {needed}{_deciding(model)}"
                raise UsageError(f"{path}: {why}") from error
        raise UsageError(f"{path} does not fit {kind}: {_one_line(error, with_type=False)}") from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name, but for those whose shape its first input decides."""
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor) and not nn.parameter.is_lazy(v)}


def _is_open(shape: torch.Size, found: torch.Size) -> bool:
    return shape == (0,) or (
        0 in shape and len(shape) == len(found) and all(map(lambda a, b: a in (0, b), shape, found))
    )


def _take_shape(module: nn.Module, name: str, like: Tensor) -> None:
    """Gives a parameter or buffer of a module another shape, and a memory of its own; its dtype stays."""
    tensor = getattr(module, name, None)
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(tensor.detach().new_empty(like.shape), tensor.requires_grad))
    elif isinstance(tensor, Tensor):
        setattr(module, name, tensor.new_empty(like.shape))


def _deciding(model: nn.Module) -> str:
    """The settings of one of the project's models that its keys and shapes follow from, as the end of a message."""
    arch = getattr(model, "architecture", None)
    if arch not in ARCHITECTURES:
        return ""
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    seen = [f"{n}={v}" for n, v in config.items() if n in ("k", "activation") or n not in unseen_settings(arch, {})]
    return f"; here {arch} has {' '.join(seen)}: --set what the file was trained with".replace(", ", ",")


def _module_inputs(
    path: Path, model: nn.Module, options: LoadOptions, carried: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The user's inputs, else those that the file carries, else points for the project's own point-cloud networks."""
    config = getattr(model, "config", None)
    own = getattr(model, "architecture", None) in ARCHITECTURES and isinstance(config, dict)
    if options.inputs:
        if options.batch is not None or options.points is not None:
            raise UsageError("--input gives the whole shape: leave out --batch and --points")
        given = named_inputs(options.inputs)
        return order_inputs(given, forward_names(model, list(given)))
    if options.example is not None:
        names = forward_names(model, list(options.example))
        return order_inputs({name: value for name, value in options.example.items() if name in names}, names)
    if carried:
        if options.batch is not None or options.points is not None:
            raise UsageError(f"--batch and --points shape clouds of points; {path} is a graph network: see --input")
        return order_inputs(dict(carried), forward_names(model, list(carried)))
    if not own:
        missing = " ".join(f"--input {name}=SHAPE" for name in forward_names(model, []))
        raise UsageError(
            f"the shapes of {type(model).__name__}'s inputs are not in {path}: "
            f"add {missing or '--input NAME=SHAPE'}, "
            "as in --input points=8x1024x3:float32, or --input FILE.npz"
        )
    assert isinstance(config, dict)
    points = options.points or config["num_points"]
    if config["k"] > points:
        raise UsageError(f"the model looks for k = {config['k']} neighbours among only {points} points")
    return (random_points(options.batch or 1, points),)


def _program_inputs(program: ExportedProgram, options: LoadOptions) -> tuple[Tensor, ...]:
    """The user's inputs, else those that the program was exported with, else random ones of their shapes."""
    names = input_names(program, len(program.graph_signature.user_inputs))
    wanted = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if options.inputs:
        given = order_inputs(named_inputs(options.inputs), names)
    elif options.example is not None:
        given = order_inputs({name: value for name, value in options.example.items() if name in names}, names)
    elif program.example_inputs is not None:
        given = tuple(program.example_inputs[0])
    else:
        given = tuple(
            random_like(name, [size if type(size) is int else size.node.hint for size in value.shape], value.dtype)
            for name, value in zip(names, wanted, strict=True)
        )
    sizes: dict[str, int] = {}  # of open axes
    for name, value, expected in zip(names, given, wanted, strict=True):
        fits = value.dim() == expected.dim() and value.dtype == expected.dtype
        if not fits or any(
            sizes.setdefault(str(size), found) != found if type(size) is not int else size != found
            for size, found in zip(expected.shape, value.shape, strict=True)
        ):
            shape = ", ".join(str(size) if type(size) is int else "open" for size in expected.shape)
            raise UsageError(
                f"input {name!r} is {list(value.shape)} {value.dtype}, but the program was exported for "
                f"[{shape}] {expected.dtype}: export it with the shape you want"
            )
    first = list(given[0].shape) if given else []
    for flag, size, axis in (("--batch", options.batch, 0), ("--points", options.points, 1)):
        if size is not None and (axis >= len(first) or first[axis] != size):
            raise UsageError(
                f"{flag} {size}: the program was exported for {first}: export it with the shape you want"
                + (", or give inputs of it with --input" if sizes else "")
            )
    return given


def _make_cwd_importable() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _or_usage_error(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `function`; its complaints are about what the user gave."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise UsageError(_one_line(error, with_type=False)) from error


def _one_line(error: BaseException, with_type: bool = True) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (f"{type(error).__name__}: {text}" if with_type or not text else text)[:300]


def _some(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
