"""Reading a `.pt2` of `torch.export.save` without running what is in it.

`torch.export.load` trusts its file. In torch 2.13 a file can run code there in these ways: pickled sample
inputs, weights and constants (`torch.load(weights_only=False)`, tried even after the safe load failed),
opaque and custom objects (`pickle.loads`), sizes given as Python expressions (`sympy.sympify` evaluates
them), guards (source text), tree specs (they may name modules to import), AOTInductor libraries, and node
names, which torch.fx writes into source text that it then executes.

So the archive is opened here, and a new program is built from it that holds only what has been checked:
- operators: public `aten` ops of torch's dispatcher, less a few (`aten.from_file` opens files); no other
  namespace, no higher-order ops with their subgraphs;
- arguments: tensors by name, numbers, strings, types; every device becomes the CPU;
- sizes: numbers, or sums and products of symbols, taken apart and written anew: nothing of their text is evaluated;
- names: plain Python identifiers; source lines in the metadata: printable text;
- weights and constants: raw bytes with checked sizes, or a weights-only pickle; records may not be
  compressed;
- inputs and outputs: a flat list of tensors. Sample inputs are read as a weights-only pickle, or not at all;
  guards, nested call signatures and extra files are dropped. What remains: torch's own deserialiser runs on
  this clean program, and conversion executes its aten ops on the CPU. A hostile file can thus still ask for a
  long computation or much memory, or reach a bug in one of torch's kernels.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import keyword
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.converter.example_inputs import MAX_ELEMENTS
from bgnn.converter.untrusted import check_archive, read_torch
from bgnn.runtime_bench.runtime import limits

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z_][a-zA-Z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
# Private ops are not for users' programs, but these stand in exported ones.
_PRIVATE_OPS = {
    "_adaptive_avg_pool2d", "_assert_tensor_metadata", "_cdist_forward", "_euclidean_dist", "_log_softmax",
    "_native_batch_norm_legit_no_training", "_softmax", "_to_copy", "_unsafe_view",
}  # fmt: skip
# Ops that read files, rebind storage or skip bounds checks.
_REFUSED_OPS = {"from_file", "set_", "resize_", "resize_as_", "segment_reduce"}
_CHECKS = {"as_sym_float", "as_sym_bool"}
_SYMBOL = re.compile(r"[a-z]\d{1,9}")
# How sizes are written (sympy's srepr), with their numbers of operands.
_TERMS = {
    "Add": (2, 99), "Mul": (2, 99), "Max": (2, 99), "Min": (2, 99), "FloorDiv": (2, 2), "Mod": (2, 2),
    "PythonMod": (2, 2),
}  # fmt: skip
_SIZE_OPS = {f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "neg")}
_SIZE_OPS |= {"torch.sym_max", "torch.sym_min"}
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def is_pt2(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive says that it is a PT2 archive (its format record, or an exported program)."""
    return any(n.endswith("/archive_format") or n == "serialized_exported_program.json" for n in archive.namelist())


def load_pt2(path: Path) -> ExportedProgram:
    """The program of the `.pt2` file at `path`: on the CPU, a flat list of tensor inputs, open sizes as symbols.

    Its `example_inputs` are those in the file, if they are tensors; its flat outputs are those of the saved program
    that are tensors. Raises UsageError, with one line that names what is damaged, unsafe or not supported.
    """
    try:
        return _load(path)
    except BgnnError as error:
        raise type(error)(f"{path}: {error}") from error
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise UsageError(f"{path}: the archive is truncated or damaged ({error})") from error
    except MemoryError:
        raise
    except RecursionError as error:
        raise UsageError(f"{path}: the program is nested too deeply to be a real one") from error
    except Exception as error:  # whatever a malformed record leads to, here or in torch's deserialiser
        reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), "")
        raise UsageError(
            f"{path}: not a program that torch {torch.__version__} can read ({type(error).__name__}: {reason[:200]})"
        ) from error


def _load(path: Path) -> ExportedProgram:
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        records = _Records(archive)
        model = records.only_model()
        program = json.loads(records.read(f"models/{model}.json"))
        version = program["schema_version"]["major"]
        if version != schema.SCHEMA_VERSION[0]:
            raise UsageError(
                f"written by torch {str(program.get('torch_version'))[:40]} in version {version} of the "
                f"format; torch {torch.__version__} has version {schema.SCHEMA_VERSION[0]}: save it again"
            )
        clean = _Program(program["graph_module"]).clean()
        samples = _samples(records, model)
        weights = _tensors(records, "data/weights", f"data/weights/{model}_weights_config.json")
        constants = _tensors(records, "data/constants", f"data/constants/{model}_constants_config.json")
    serialised = {
        "graph_module": clean,
        "opset_version": {"aten": torch._C._get_max_operator_version()},
        "range_constraints": _ranges(program.get("range_constraints") or {}),
        "schema_version": {"major": schema.SCHEMA_VERSION[0], "minor": schema.SCHEMA_VERSION[1]},
        "verifiers": ["TRAINING"],
        "torch_version": torch.__version__,
        "guards_code": [],
    }
    typed = _dict_to_dataclass(schema.ExportedProgram, serialised)
    made = ExportedProgramDeserializer().deserialize(typed, weights, constants, None)
    if samples is not None and len(samples) == len(made.graph_signature.user_inputs):
        made._example_inputs = (samples, {})
    return made


def _samples(records: _Records, model: str) -> tuple[Tensor, ...] | None:
    """The inputs that the program was exported with, if they are tensors alone."""
    name = f"data/sample_inputs/{model}.pt"
    if name not in records.names:
        return None
    try:
        found = pytree.tree_leaves(read_torch(io.BytesIO(records.read(name))))
    except Exception:  # objects of other kinds, or damaged: then the user gives the inputs
        return None
    return tuple(found) if found and all(isinstance(value, Tensor) for value in found) else None


def _ranges(ranges: dict[str, Any]) -> dict[str, Any]:
    """What sizes may be, by their symbols."""
    return {
        name: {key: None if bound.get(key) is None else _int(bound[key]) for key in ("min_val", "max_val")}
        for name, bound in ranges.items()
        if _SYMBOL.fullmatch(name)
    }


class _Records:
    """The archive's records, by their path below its root folder."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        infos = archive.infolist()
        root = next((i.filename.split("/")[0] for i in infos if i.filename.endswith("/archive_format")), None)
        if root is None:
            raise UsageError(f"saved by an old torch: load it there and save it with torch {torch.__version__}")
        self.names = {i.filename.removeprefix(root + "/"): i for i in infos if i.filename.startswith(root + "/")}
        if self.read("archive_format").strip() != b"pt2":
            raise UsageError("not a PT2 archive")

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise UsageError(f"the archive has no {name}")
        return self.archive.read(self.names[name])

    def only_model(self) -> str:
        found = [n[len("models/") : -len(".json")] for n in self.names if re.fullmatch(r"models/[^/]+\.json", n)]
        if len(found) != 1:
            held = "no exported program" if not found else f"{len(found)} programs"
            raise UsageError(f"the archive holds {held}; one saved by torch.export.save is needed")
        return found[0]


def _tensors(records: _Records, folder: str, config: str) -> dict[str, Tensor]:
    """The tensors that a config record lists; parameters come as `nn.Parameter`."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    dtypes = {int(k): v for k, v in _SERIALIZE_TO_TORCH_DTYPE.items()}
    storages: dict[tuple[str, int], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, entry in json.loads(records.read(config))["config"].items():
        record = entry["path_name"]
        if not re.fullmatch(r"(weight|tensor)_\d+", record):
            raise UsageError(
                f"{name!r} is a pickled object ({str(record)[:60]}), which could run code: "
                "only tensors are read; export the model without custom objects"
            )
        if not _ATTRIBUTE.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is not a name of a parameter")
        data = records.read(f"{folder}/{record}")
        meta = entry["tensor_meta"]
        dtype = dtypes[meta["dtype"]]
        sizes, strides = ([_static_size(s) for s in meta[key]] for key in ("sizes", "strides"))
        total += max(0, math.prod(sizes)) * dtype.itemsize  # strides may repeat one number
        limits.check_bytes("its tensors together", total)
        if entry["use_pickle"]:
            tensor = read_torch(io.BytesIO(data))
            if not isinstance(tensor, Tensor) or list(tensor.shape) != sizes:
                raise UsageError(f"{name!r} is not a tensor of {sizes}")
        elif math.prod(sizes) == 0:
            tensor = torch.zeros(sizes, dtype=dtype)
        else:
            if (record, meta["dtype"]) not in storages:
                storages[record, meta["dtype"]] = torch.frombuffer(bytearray(data), dtype=dtype)
            # as_strided refuses what reaches beyond the record
            offset = _static_size(meta["storage_offset"])
            tensor = torch.as_strided(storages[record, meta["dtype"]], sizes, strides, offset).clone()
        tensors[name] = torch.nn.Parameter(tensor, requires_grad=False) if entry["is_param"] else tensor
    return tensors


def _static_size(value: dict[str, Any]) -> int:
    """A size that must be a number."""
    if type(value.get("as_int")) is not int:
        raise UsageError(f"the program holds {str(value)[:40]!r} where a size must be a number")
    return int(value["as_int"])


def _size(value: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """(a size, written anew; the number it had when the program was exported, or 1 if that depends on values)."""
    if "as_expr" not in value:
        number = _static_size(value)
        return {"as_int": number}, number
    text, hint = value["as_expr"]["expr_str"], (value["as_expr"].get("hint") or {}).get("as_int")
    if not isinstance(text, str) or len(text) > 2000:
        raise UsageError("the program has a size that is no expression of a reasonable length")
    try:
        clean = _term(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"the program has a size that is no sum or product of symbols: {text[:80]!r}") from error
    expression: dict[str, Any] = {"expr_str": clean, "hint": None if hint is None else {"as_int": _int(hint)}}
    return {"as_expr": expression}, 1 if hint is None else hint


def _term(node: ast.expr) -> str:
    """A part of a size, as sympy's srepr writes it; raises ValueError for what is none."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("no call of a name")
    name, given = node.func.id, node.args
    if name in ("Symbol", "Integer") and len(given) == 1:
        value = ast.literal_eval(given[0])
        if name == "Integer" and type(value) is int and abs(value) < 2**63:
            return f"Integer({value})"
        if name == "Symbol" and isinstance(value, str) and _SYMBOL.fullmatch(value):
            positive = any(one.arg == "positive" for one in node.keywords)
            return f"Symbol('{value}', {'positive=True, ' if positive else ''}integer=True)"
    if name == "Pow" and len(given) == 2 and (power := _term(given[1])) in ("Integer(2)", "Integer(3)", "Integer(4)"):
        return f"Pow({_term(given[0])}, {power})"
    least, most = _TERMS.get(name, (1, 0))
    if not least <= len(given) <= most:
        raise ValueError(f"{name} of {len(given)}")
    return f"{name}({', '.join(_term(one) for one in given)})"


class _Program:
    """Copies a serialised graph, field by field, keeping what is known to be harmless."""

    def __init__(self, module: dict[str, Any]):
        self.graph, self.signature = module["graph"], module["signature"]
        self.sizes = {_name(name): _size(v)[0] for name, v in self.graph.get("sym_int_values", {}).items()}

    def clean(self) -> dict[str, Any]:
        inputs, input_specs = self._inputs()
        outputs, output_specs = self._outputs()
        users = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in input_specs if "user_input" in spec]
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf] * len(users)}
        keywords = {"type": "builtins.dict", "context": "[]", "children_spec": []}
        in_spec = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, keywords]}
        out_spec = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf] * len(outputs)}
        call = {
            "inputs": [],
            "outputs": [],
            "in_spec": json.dumps([1, in_spec]),
            "out_spec": json.dumps([1, out_spec]),
            "forward_arg_names": users,
        }
        return {
            "graph": {
                "inputs": inputs,
                "outputs": outputs,
                "nodes": [clean for node in self.graph["nodes"] if (clean := self._node(node)) is not None],
                "tensor_values": {_name(n): self._meta(n, m) for n, m in self.graph["tensor_values"].items()},
                "sym_int_values": self.sizes,
                "sym_bool_values": {},
                "sym_float_values": {},
                "custom_obj_values": {},
                "is_single_tensor_return": False,
            },
            "signature": {"input_specs": input_specs, "output_specs": output_specs},
            "module_call_graph": [{"fqn": "", "signature": call}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        }

    def _inputs(self) -> tuple[list[Any], list[Any]]:
        inputs, specs = [], []
        for value, spec in zip(self.graph["inputs"], self.signature["input_specs"], strict=True):
            ((kind, body),) = spec.items()
            if kind == "constant_input" or (kind == "user_input" and not _is_tensor(body["arg"])):
                continue  # a number, string or None: it stands in the graph as a constant already
            if kind == "user_input":
                clean: dict[str, Any] = {"arg": _tensor_argument(body["arg"]["as_tensor"])}
            elif kind == "parameter":
                clean = {"arg": _argument(body), "parameter_name": _attribute(body["parameter_name"])}
            elif kind == "buffer":
                clean = {"arg": _argument(body), "buffer_name": _attribute(body["buffer_name"])}
                clean["persistent"] = bool(body["persistent"])
            elif kind == "tensor_constant":
                name = _attribute(body["tensor_constant_name"])
                clean = {"arg": _argument(body), "tensor_constant_name": name}
            else:
                raise UsageError(f"an input of kind {kind[:40]!r} is not supported: only tensors are")
            inputs.append(_tensor_argument(value["as_tensor"]))
            specs.append({kind: clean})
        return inputs, specs

    def _outputs(self) -> tuple[list[Any], list[Any]]:
        outputs, specs = [], []
        for value, spec in zip(self.graph["outputs"], self.signature["output_specs"], strict=True):
            ((kind, body),) = spec.items()
            if kind != "user_output":
                what = body.get("buffer_name") or body.get("parameter_name") or kind
                raise UsageError(f"the program updates {str(what)[:80]!r}: export it after model.eval()")
            if _is_tensor(value):
                clean = _tensor_argument(value["as_tensor"])
                outputs.append(clean)
                specs.append({"user_output": {"arg": clean}})
        return outputs, specs

    def _node(self, node: dict[str, Any]) -> dict[str, Any] | None:
        """The node, or None for one that only checks something."""
        outputs = node["outputs"]
        if all("as_none" in o or _CHECKS & o.keys() for o in outputs):
            return None
        if node["target"] not in _SIZE_OPS:
            self._check_operator(node["target"])
        metadata = {}
        for key in ("stack_trace", "nn_module_stack"):
            if text := node.get("metadata", {}).get(key):
                metadata[key] = "".join(c for c in str(text) if c.isprintable() or c == "\n")
        return {
            "target": node["target"],
            "inputs": [
                {"name": _name(i["name"]), "arg": self._value(i["arg"]), "kind": i.get("kind")} for i in node["inputs"]
            ],
            "outputs": [self._value(o) for o in outputs],
            "metadata": metadata,
            "is_hop_single_tensor_return": None,
            "name": None if node.get("name") is None else _name(node["name"]),
        }

    def _check_operator(self, target: str) -> None:
        match = _OPERATOR.fullmatch(target)
        name, overload = match.groups() if match else ("", "")
        public = not name.startswith("_") or name in _PRIVATE_OPS
        qualified = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
        if not match or not public or name in _REFUSED_OPS or qualified not in _dispatcher_ops():
            raise ConversionError(
                f"the program calls {target[:120]!r}; from a .pt2 file only public aten ops are read "
                "(give the model's class with --model and a state_dict instead)"
            )

    def _meta(self, name: str, meta: dict[str, Any]) -> dict[str, Any]:
        sizes, numbers = [_size(s)[0] for s in meta["sizes"]], [_size(s)[1] for s in meta["sizes"]]
        if any(s < 0 for s in numbers) or math.prod(numbers) > MAX_ELEMENTS:
            raise UsageError(f"tensor {name!r} has shape {numbers}: more than 2^31 elements")
        limits.check_bytes(f"tensor {name!r} of shape {numbers}", 4 * math.prod(numbers))
        return {
            "dtype": _int(meta["dtype"]),
            "sizes": sizes,
            "requires_grad": False,
            "device": _CPU,
            "strides": [_size(s)[0] for s in meta["strides"]],
            "storage_offset": {"as_int": 0},
            "layout": _int(meta["layout"]),
        }

    def _value(self, value: dict[str, Any]) -> dict[str, Any]:
        """One argument, of a kind that holds plain data."""
        ((kind, v),) = value.items()
        if kind == "as_none":
            return {kind: True}
        if kind == "as_tensor":
            return _tensor_argument(v)
        if kind == "as_tensors":
            return {kind: [_tensor_argument(t)["as_tensor"] for t in v]}
        if kind == "as_nested_tensors":
            return {kind: [[_tensor_argument(t)["as_tensor"] for t in row] for row in v]}
        if kind in ("as_optional_tensors", "as_optional_tensor"):
            clean = [self._value(t) for t in (v if isinstance(v, list) else [v])]
            return {kind: clean if isinstance(v, list) else clean[0]}
        if kind == "as_sym_int":
            return {kind: self._size(v)}
        if kind == "as_sym_ints":
            return {kind: [self._size(s) for s in v]}
        if kind in ("as_sym_float", "as_sym_bool"):
            ((constant, number),) = v.items()
            return self._value({constant: number})
        if kind in _PLAIN:
            return {kind: _PLAIN[kind](v)}
        if kind in _LISTS:
            return {kind: [_LISTS[kind](one) for one in v]}
        if kind == "as_int_lists":
            return {kind: [[_int(i) for i in row] for row in v]}
        if kind == "as_device":
            return {kind: _CPU}
        raise UsageError(f"an argument of kind {kind[:40]!r} (a subgraph or an object) is not supported")

    def _size(self, size: dict[str, Any]) -> dict[str, Any]:
        """A size among arguments: a number, or the name of what computes it."""
        if "as_name" not in size:
            return {"as_int": _int(size["as_int"])}
        if size["as_name"] not in self.sizes:
            raise UsageError(f"the program has no size {str(size['as_name'])[:80]!r}")
        return {"as_name": _name(size["as_name"])}


_CPU = {"type": "cpu", "index": None}


@functools.cache
def _dispatcher_ops() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())


def _is_tensor(argument: dict[str, Any]) -> bool:
    return "as_tensor" in argument


def _name(text: Any) -> str:
    """`text` where it is a plain identifier: torch.fx writes names into source text that it executes."""
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise UsageError(f"the program holds the name {str(text)[:80]!r}, which is not an identifier")
    return text


def _tensor_argument(argument: dict[str, Any]) -> dict[str, Any]:
    name = _name(argument["name"])
    if keyword.iskeyword(name):
        raise UsageError(f"the program holds the name {name!r}, which is a Python keyword")
    return {"as_tensor": {"name": name}}


def _argument(body: dict[str, Any]) -> dict[str, Any]:
    return _tensor_argument(body["arg"])["as_tensor"]


def _attribute(text: Any) -> str:
    if not isinstance(text, str) or not _ATTRIBUTE.fullmatch(text):
        raise UsageError(f"{str(text)[:80]!r} is not a name of a parameter")
    return text


def _int(value: Any) -> int:
    if type(value) is not int:
        raise UsageError(f"the program holds {str(value)[:40]!r} where a whole number must stand")
    return value


def _float(value: Any) -> float:
    number = _NUMBERS.get(value, value) if isinstance(value, str) else value
    if type(number) not in (int, float):
        raise UsageError(f"the program holds {str(value)[:40]!r} where a number must stand")
    return float(number)


# Arguments that are plain data, by their kinds in the file: what makes sure of it.
_PLAIN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("as_int", "as_scalar_type", "as_memory_format", "as_layout"), _int),
    "as_float": _float,
    "as_bool": bool,
    "as_string": str,
}
_LISTS: dict[str, Callable[[Any], Any]] = {"as_ints": _int, "as_floats": _float, "as_bools": bool, "as_strings": str}
