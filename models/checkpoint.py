"""`model.pt`: a plain dict that says what it is, and loads with `weights_only=True`.

    {"format_version": 1, "architecture": "bf2", "config": {"classes": 40, ...}, "state_dict": {...}}

`config` holds the constructor's arguments as plain numbers, strings and lists. An architecture is always
stated and never guessed: BF1, BF2 and their stages have the same keys and shapes. "dq" is a Degree-Quant network
(bgnn.models.dq; needs torch-geometric); bits and signedness of its quantisers stand in the config alone. "sage",
"binsage" and "gcn" (bgnn.models.sage) are networks on the nodes of a graph, too. Such a file may have one more entry,
"example": a small graph that the network takes, by the names of forward's arguments, since nobody can guess the indices
of a graph. It is stored as int32, and tensors that are mostly zero by the places of the others.

A compact file holds the latent weights of binary dot products as int8 signs, a quarter of the space.
Inference only ever sees their signs, so it computes exactly the same; further training would start from +-1.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bgnn.models import dgcnn, sage
from bgnn.models.dgcnn import ARCHITECTURES, PointCloudNet
from bgnn.models.layers import BinaryDot, sign
from bgnn.models.sage import NODE_ARCHITECTURES, NodeNet

if TYPE_CHECKING:
    from bgnn.models.dq import DegreeQuantNet

FORMAT_VERSION = 1
_KNOWN: dict[str, type[PointCloudNet] | type[NodeNet]] = {**ARCHITECTURES, **NODE_ARCHITECTURES}
MOST_VALUES = 2**28  # of a tensor of an example; a damaged file must not ask for all memory


def settings_of(architecture: str) -> dict[str, Any]:
    """The settings of an architecture with their defaults. Raises ValueError on an unknown name."""
    if architecture == "dq":
        return _dq().build({}).config
    if architecture in NODE_ARCHITECTURES:
        return sage.settings_of(NODE_ARCHITECTURES[architecture])
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known are {', '.join(_KNOWN)}, dq")
    return dgcnn.settings_of(ARCHITECTURES[architecture])


def unseen_settings(architecture: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a state_dict does not show, with usual values. Raises ValueError on an unknown name."""
    if architecture == "dq":
        return {name: settings_of("dq")[name] for name in ("bits", "symmetric", "signed_input")}
    settings = settings_of(architecture)
    if architecture in NODE_ARCHITECTURES:
        return {name: settings[name] for name in ("normalise", "activation", "stage") if name in settings}
    return dgcnn.unseen_settings(architecture, stated)


def build_model(architecture: str, **config: Any) -> PointCloudNet | NodeNet | DegreeQuantNet:
    """A fresh model in training mode: `architecture` is a name of `_KNOWN` or "dq", `config` its settings.

    Raises ValueError, one line, on an unknown architecture or setting or a value out of range.
    """
    if architecture == "dq":
        return _dq().build(config)
    known = settings_of(architecture)
    for name, value in config.items():
        if name not in known:
            raise ValueError(f"{architecture} has no setting {name!r}; it has {', '.join(known)}")
        kinds = {tuple: (tuple, list), float: (float, int)}.get(type(known[name]), type(known[name]))
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ValueError(f"setting {name!r} is {value!r}; the default is {known[name]!r}")
    return _KNOWN[architecture](**config)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    compact: bool = False,
    example: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes one of this package's models to `path`; a failed write leaves no partial file.

    `compact` stores the latent weights of binary dot products as int8 signs (see the module's docstring). `example`:
    inputs f32 or int64 by the names of forward's arguments, from which the file can be converted by its path alone.
    Raises ValueError when `model` is of another class, OSError when the path cannot be written.
    """
    if not isinstance(model, PointCloudNet | NodeNet) and getattr(model, "architecture", "") != "dq":
        raise ValueError(f"{type(model).__name__} is not a model of bgnn.models; save its state_dict instead")
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    if compact:
        for name, module in model.named_modules():
            if isinstance(module, BinaryDot) and module.binary:
                key = f"{name}.weights_real"
                state[key] = sign(state[key], module.zero).to(torch.int8)
    whole = {
        "format_version": FORMAT_VERSION,
        "architecture": str(model.architecture),
        "config": dict(model.config),  # type: ignore[arg-type]
        "state_dict": state,
    }
    if example is not None:
        whole["example"] = {name: _packed(value) for name, value in example.items()}
    if not Path(path).parent.is_dir():  # torch.save would raise a RuntimeError
        raise FileNotFoundError(f"{path}: no such directory")
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        torch.save(whole, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> PointCloudNet | NodeNet | DegreeQuantNet:
    """The model of a `model.pt`, in eval mode, on the CPU.

    Raises FileNotFoundError, or ValueError naming what is wrong in one line. Nothing in the file is executed.
    """
    return model_of(path, _read(path))


def model_of(path: str | os.PathLike[str], content: Any) -> PointCloudNet | NodeNet | DegreeQuantNet:
    """The same, of what has been read from `path` already."""
    whole = _checkpoint(path, content)
    for name, kind in (("architecture", str), ("config", dict), ("state_dict", Mapping)):
        if not isinstance(whole.get(name), kind):
            raise ValueError(f"{path}: {name!r} is missing or not a {kind.__name__.lower()}")
    _check_config(path, whole["config"])
    return _filled(path, whole["architecture"][:40], whole["config"], whole["state_dict"])


def load_example(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The inputs that a `model.pt` carries, by the names of forward's arguments; none in most files.

    Raises FileNotFoundError, or ValueError naming what is wrong in one line.
    """
    return example_of(path, _read(path))


def example_of(path: str | os.PathLike[str], content: Any) -> dict[str, Tensor]:
    """The same, of what has been read from `path` already."""
    example = _checkpoint(path, content).get("example", {})
    try:
        return {str(name): _unpacked(value) for name, value in example.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the example in it is damaged; give another with --input FILE.npz") from error


def _packed(value: Tensor) -> Any:
    """A tensor f32 or int64 as the file has it: whole numbers as int32, mostly zeros by what else there is."""
    if not value.is_floating_point():
        return value.to(torch.int32)
    places = value.flatten().nonzero().flatten()
    if 2 * len(places) >= value.numel():
        return value.clone()
    return {"shape": list(value.shape), "places": places.to(torch.int32), "values": value.flatten()[places]}


def _unpacked(stored: Any) -> Tensor:
    if isinstance(stored, Tensor):
        return stored.to(torch.float32 if stored.is_floating_point() else torch.int64)
    if math.prod(stored["shape"]) > MOST_VALUES:
        raise ValueError("too large")
    flat = torch.zeros(math.prod(stored["shape"]))
    return flat.index_copy(0, stored["places"].long(), stored["values"]).reshape(stored["shape"])


def load_state_dict(
    path: str | os.PathLike[str], architecture: str, **config: Any
) -> PointCloudNet | NodeNet | DegreeQuantNet:
    """A model in eval mode from a bare state_dict file and its stated architecture and settings.

    A prefix `module.` (of DataParallel) is taken off the keys. Weights of the DGCNN authors' code load as
    "dgcnn" with activation="leaky_relu", those of the binary GNN paper's code as "rf", "bf1" or "bf2".
    Raises FileNotFoundError, or ValueError naming what is wrong in one line.
    """
    state = _read(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: not a state_dict (a dict of tensors)")
    return _filled(path, architecture, config, state)


def _read(path: str | os.PathLike[str]) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a zip, pickle or tensor reader's: there are many, and the file is to blame
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: not a PyTorch file that loads with weights_only=True ({reason[0]})") from error


def _checkpoint(path: str | os.PathLike[str], whole: Any) -> dict[str, Any]:
    """The dict of a `model.pt`, if it is one of a known version."""
    if not isinstance(whole, dict) or "format_version" not in whole:
        raise ValueError(
            f"{path}: not a model.pt of this package (no format_version); "
            "a bare state_dict needs its architecture and settings stated"
        )
    version = whole["format_version"]
    if not isinstance(version, (int, str)) or version != FORMAT_VERSION:
        stated = str(version)[:40] if _is_plain(version) else f"is a {type(version).__name__}"
        raise ValueError(f"{path}: format_version {stated}; this version reads {FORMAT_VERSION}")
    return whole


def _is_plain(value: Any) -> bool:
    """A number or text, short enough to be printed. Anything else in a file may be endless when it is."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) or (isinstance(value, str) and len(value) <= 100)


def _check_config(path: str | os.PathLike[str], config: Mapping[Any, Any]) -> None:
    """Settings are numbers, short texts, or short lists of them: errors print them."""
    for name, value in config.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if not _is_plain(name) or len(values) > 100 or not all(_is_plain(one) for one in values):
            shown = repr(name) if _is_plain(name) else "one"
            raise ValueError(f"{path}: of the settings in 'config', {shown} is neither a number, a text nor a list")


def _dq() -> Any:
    """The package of Degree-Quant's networks, which needs torch-geometric."""
    try:
        from bgnn.models import dq
    except ModuleNotFoundError as error:
        raise ValueError('a "dq" network needs torch-geometric: pip install "bgnn-convert[pyg]"') from error
    return dq


def _filled(
    path: str | os.PathLike[str], architecture: str, config: dict[str, Any], state: Mapping
) -> PointCloudNet | NodeNet | DegreeQuantNet:
    """The model with the tensors of `state` in it; every key and shape must match.

    They are compared on a model without memory first: a file may state any width and depth.
    """
    state = without_prefix(path, state, "module.")
    try:
        with torch.device("meta"), _no_more_parameters(2 * len(state) + 100):
            wanted = build_model(architecture, **config).state_dict()
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).strip().splitlines()[0][:300]}") from error
    for key, value in wanted.items():
        if key not in state:
            raise ValueError(f"{path}: no tensor {key!r}, which {architecture} with these settings has")
        if not isinstance(state[key], Tensor) or state[key].shape != value.shape:
            found = list(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__
            raise ValueError(f"{path}: {key!r} is {found}; {architecture} with these settings has {list(value.shape)}")
        if not keeps_values(state[key], value.dtype):
            raise ValueError(f"{path}: {key!r} holds {state[key].dtype} values that {value.dtype} cannot")
    for key in state:
        if key not in wanted:
            raise ValueError(f"{path}: tensor {key!r} is not part of {architecture} with these settings")
    model = build_model(architecture, **config)
    model.load_state_dict(state)  # copies into float32, whatever the stored type
    return model.eval()


def without_prefix(path: str | os.PathLike[str], state: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """The entries without a prefix that all of their keys have: else it is part of a name, or two files are in one."""
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: the names of its tensors are not all texts")
    if state and all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def keeps_values(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor can be taken as `dtype` with its values; rounding from one float type to another is meant."""
    if value.dtype == dtype or (value.is_floating_point() and dtype.is_floating_point):
        return True
    return bool((value.to(dtype).to(value.dtype) == value).all())


@contextlib.contextmanager
def _no_more_parameters(most: int) -> Iterator[None]:
    """Within the block, building a network of more than `most` parameters fails: a file that states 10^7 layers has
    tensors for each."""
    count = 0

    def registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError("its settings ask for more layers than it has tensors")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
