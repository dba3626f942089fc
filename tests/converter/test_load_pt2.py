"""Reading .pt2 files: the program comes back as it was, and nothing a file holds is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import random_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from bgnn.converter import load_pt2 as load_pt2_module
from bgnn.converter.api import convert
from bgnn.converter.errors import BgnnError, ConversionError, UsageError
from bgnn.converter.load import load
from bgnn.converter.load_pt2 import load_pt2
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel


class Net(nn.Module):
    """A little of everything that programs hold: parameters that share storage, buffers, constants, inf."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.tied = nn.Parameter(self.first.weight.detach().t())
        self.register_buffer("shift", torch.randn(8))
        self.constant = torch.arange(8.0)

    def forward(self, points: Tensor, mask: Tensor) -> dict[str, Any]:
        x = self.norm(self.first(points).transpose(1, 2)).transpose(1, 2)
        x = torch.where(mask.unsqueeze(-1) > 0, x, -float("inf"))
        idx = torch.cdist(points, points).topk(2, largest=False)[1]
        batch = torch.arange(points.shape[0])[:, None, None]
        x = x[batch, idx].amax(2) + self.shift * self.constant
        return {"logits": x @ self.tied.t(), "none": None, "both": [x.mean(1), x.sum()]}


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 6, 3), torch.ones(2, 6)


def save(tmp_path: Path, model: nn.Module, inputs: tuple[Any, ...], **kwargs: Any) -> Path:
    path = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model.eval(), inputs, **kwargs), path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(tmp_path, Net(), example())


def rewrite(path: Path, change: dict[str, Callable[[bytes], bytes]], add: dict[str, bytes] | None = None) -> Path:
    """A copy of the archive with some records (named by their end) changed and others added."""
    out = path.with_name("hostile.pt2")
    done = set()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            for end, function in change.items():
                if info.filename.endswith(end):
                    data = function(data)
                    done.add(end)
            new.writestr(info.filename, data)
        for name, data in (add or {}).items():
            new.writestr("model/" + name, data)
    assert done == set(change), "the archive has no such record"
    return out


def edit(function: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Changes a JSON record in place."""

    def run(data: bytes) -> bytes:
        value = json.loads(data)
        function(value)
        return json.dumps(value).encode()

    return run


def rename(old: str, new: str) -> Callable[[bytes], bytes]:
    """Renames a tensor everywhere in the program."""
    quoted = json.dumps(new).encode()
    return lambda data: data.replace(json.dumps(old).encode(), quoted)


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def bombs(marker: Path) -> tuple[bytes, bytes]:
    """Pickles that make `marker` when read: one of torch.save, one of pickle."""
    buffer = io.BytesIO()
    torch.save(Bomb(marker), buffer)
    return buffer.getvalue(), pickle.dumps(Bomb(marker))


def test_program_computes_what_the_model_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Net(), example()
    program = load_pt2(save(tmp_path, model, inputs))
    found = program.module()(*inputs)
    expected = model(*inputs)
    for got, want in zip(found, [expected["logits"], *expected["both"]], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_input_names_and_source_lines_survive(saved: Path) -> None:
    program = load_pt2(saved).run_decompositions({})
    assert program.graph_signature.user_inputs == ("points", "mask")
    cdist = next(n for n in program.graph.nodes if "cdist" in str(n.target))
    assert "torch.cdist(points, points)" in cdist.meta["stack_trace"]


def test_parameters_and_buffers_keep_their_names(saved: Path) -> None:
    program = load_pt2(saved)
    assert {"first.weight", "norm.running_var", "shift", "tied"} <= set(program.state_dict)
    assert isinstance(program.state_dict["first.weight"], nn.Parameter)
    assert not isinstance(program.state_dict["shift"], nn.Parameter)


def test_open_sizes_stay_open(tmp_path: Path) -> None:
    class Dynamic(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            b, n, c = points.shape
            return points.reshape(b * n, c).cumsum(0).view(b, n, c) * b

    size = torch.export.Dim("b", min=2, max=64)
    points = torch.randn(3, 5, 2)
    program = load_pt2(save(tmp_path, Dynamic(), (points,), dynamic_shapes=({0: size},)))
    assert "sym_size" in str(program.graph)
    for other in (points, torch.randn(4, 5, 2)):
        torch.testing.assert_close(program.module(check_guards=False)(other)[0], Dynamic()(other))
    (found,) = program.example_inputs[0]
    assert torch.equal(found, points)


class Graph(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(x, edge_index)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("layer", [GCNConv(6, 3), GATConv(6, 2, heads=2), GINConv(nn.Linear(6, 3)), SAGEConv(6, 3)])
def test_graph_networks_convert(tmp_path: Path, layer: nn.Module, opened: bool) -> None:
    """From the file alone: the example graph is in it."""
    model, graph = Graph(layer), random_graph(20, 70)
    axes = ({0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim.DYNAMIC}) if opened else None
    loaded = load(save(tmp_path, model, graph, dynamic_shapes=axes, strict=False))
    assert torch.equal(loaded.example_inputs[1], graph[1])
    data = convert(loaded.model, loaded.example_inputs, target="onnx-x86").model_bytes
    assert data is not None
    x, edge_index = random_graph(*((33, 90) if opened else (20, 70)), 1)
    (found,) = OnnxModel(data).run(x=x.numpy(), edge_index=edge_index.numpy()).values()
    torch.testing.assert_close(torch.from_numpy(found), model(x, edge_index).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "s0", "Symbol('s0').evalf()", "Symbol('os')", "Pow(Integer(9), Integer(99))", "Integer('1')", "Add(Integer(1))",
        "Symbol('s0', positive=exec('1'))[0]", "[Integer(1)]", "Integer(" * 300 + "1" + ")" * 300, "Lambda(1, 2)",
    ],
)  # fmt: skip
def test_sizes_are_sums_and_products_of_symbols(text: str) -> None:
    with pytest.raises(UsageError, match="the program has a size"):
        load_pt2_module._size({"as_expr": {"expr_str": text, "hint": None}})


def test_a_size_is_written_anew() -> None:
    text = (
        "Add(Mul(Integer(-1), Symbol('u3', integer=True)), Pow(Symbol('s77', positive=True, integer=True), Integer(2)))"
    )
    assert load_pt2_module._size({"as_expr": {"expr_str": text, "hint": {"as_int": 7}}}) == (
        {"as_expr": {"expr_str": text, "hint": {"as_int": 7}}},
        7,
    )


def test_constant_inputs_are_left_out(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, times: int, extra: Tensor | None) -> Tensor:
            return x * times if extra is None else x + extra

    program = load_pt2(save(tmp_path, Scaled(), (torch.ones(2, 3), 4, None)))
    assert program.graph_signature.user_inputs == ("x",)
    assert torch.equal(program.module()(torch.ones(2, 3))[0], torch.full((2, 3), 4.0))


def test_shared_storage_and_strides(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(24.0)
            self.register_buffer("rows", base.view(4, 6)[1:3, ::2])
            self.register_buffer("columns", base.view(4, 6).t())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.rows.sum() + self.columns[0, 1]

    model, x = Shared(), torch.randn(2)
    program = load_pt2(save(tmp_path, model, (x,)))
    assert torch.equal(program.state_dict["rows"], model.rows)
    assert torch.equal(program.state_dict["columns"], model.columns)
    assert torch.equal(program.module()(x)[0], model(x))


def test_updates_of_buffers_ask_for_eval(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3).train()
    path = tmp_path / "train.pt2"
    program = torch.export.export(model, (torch.randn(4, 3),)).run_decompositions({})
    torch.export.save(program, path)
    with pytest.raises(UsageError, match=r"updates 'running_mean'.*eval"):
        load_pt2(path)


def test_higher_order_ops_are_refused_by_name(tmp_path: Path) -> None:
    class NoGrad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            return y + x

    with pytest.raises(ConversionError, match=r"torch\.ops\.higher_order\.\w+"):
        load_pt2(save(tmp_path, NoGrad(), (torch.randn(2),)))


# --- hostile files: each would run code, or read a file, under torch.export.load


def test_sample_inputs_are_not_read(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    load_pt2(rewrite(saved, {"sample_inputs/model.pt": lambda _: bombs(marker)[0]}))
    assert not marker.exists()


@pytest.mark.parametrize("folder", ["weights", "constants"])
@pytest.mark.parametrize("record", ["weight_0", "opaque_obj_0", "custom_obj_0"])
def test_pickled_weights_and_objects_do_not_run(saved: Path, tmp_path: Path, folder: str, record: str) -> None:
    marker = tmp_path / "ran"

    def point_at_bomb(config: Any) -> None:
        entry = {"path_name": record, "is_param": False, "use_pickle": True}
        size = {
            "dtype": 7,
            "sizes": [{"as_int": 1}],
            "strides": [{"as_int": 1}],
            "storage_offset": {"as_int": 0},
        }
        config["config"]["first.weight"] = {**entry, "tensor_meta": size}

    config = f"data/{folder}/model_{folder}_config.json"
    for bomb in bombs(marker):
        add = {f"data/{folder}/{record}": bomb}
        change: dict[str, Callable[[bytes], bytes]] = {config: edit(point_at_bomb)}
        if folder == "weights" and record == "weight_0":
            change[f"data/{folder}/{record}"], add = (lambda _, bomb=bomb: bomb), {}
        with pytest.raises(UsageError):
            load_pt2(rewrite(saved, change, add))
    assert not marker.exists()


def test_legacy_pickled_weights_are_not_read(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    add = {"data/weights/model.pt": bombs(marker)[0], "data/constants/model.pt": bombs(marker)[0]}
    load_pt2(rewrite(saved, {}, add))
    assert not marker.exists()


def test_size_expressions_are_not_evaluated(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    size = torch.export.Dim("b", min=2, max=64)
    path = save(tmp_path, nn.Linear(3, 2), (torch.randn(4, 3),), dynamic_shapes=({0: size},))
    attack = f"__import__('os').system('touch {marker}')"

    def replace(value: Any) -> None:
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = attack
            value = list(value.values())
        for inner in value if isinstance(value, list) else []:
            replace(inner)

    hostile = rewrite(path, {"models/model.json": edit(replace)})
    assert attack.encode() in zipfile.ZipFile(hostile).read("model/models/model.json")
    with pytest.raises(UsageError, match="no sum or product of symbols"):
        load_pt2(hostile)
    assert not marker.exists()


def test_names_cannot_carry_source_text(saved: Path, tmp_path: Path) -> None:
    """torch.fx writes the names of nodes into source text and executes it."""
    marker = tmp_path / "ran"
    attack = f"mask=__import__('os').system('touch {marker}')"  # forward(self, points, mask=...)
    for old, new in (
        ("mask", attack),
        ("cdist", attack),
        ("cdist", "class"),
        ("cdist", "a\nb"),
        ("cdist", ""),
    ):
        with pytest.raises(UsageError, match="name"):
            load_pt2(rewrite(saved, {"models/model.json": rename(old, new)}))
    assert not marker.exists()


def test_parameter_names_cannot_carry_source_text(saved: Path) -> None:
    change = rename("first.weight", "first.weight'); import os; ('")
    with pytest.raises(UsageError, match="name of a parameter"):
        load_pt2(rewrite(saved, {"models/model.json": change}))
    with pytest.raises(UsageError, match="name of a parameter"):
        load_pt2(rewrite(saved, {"weights_config.json": change}))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten._foreach_add.List",
        "torch.ops.aten.save.default",
        "torch.ops.aten.add.__class__",
        "torch.ops.profiler._record_function_enter_new.default",
        "torch.ops.higher_order.cond",
        "torch.ops.load_library",
        "torch.hub.load",
        "torch.load",
        "torch.serialization.os.system",
        "_operator.call",
        "math.sin",
        "#namespace:op",
        "os.system",
        "torch.ops.aten.cdist.default\n",
    ],
)
def test_only_public_aten_ops(saved: Path, target: str) -> None:
    change = rename("torch.ops.aten.cdist.default", target)
    with pytest.raises(ConversionError) as caught:
        load_pt2(rewrite(saved, {"models/model.json": change}))
    assert repr(target)[:60] in str(caught.value)


@pytest.mark.parametrize("kind", ["as_graph", "as_custom_obj", "as_operator", "as_string_to_argument", "as_expr"])
def test_arguments_are_plain_data(saved: Path, kind: str) -> None:
    def change(program: Any) -> None:
        node = next(n for n in program["graph_module"]["graph"]["nodes"] if "cdist" in n["target"])
        node["inputs"][0]["arg"] = {kind: "os.system"}

    with pytest.raises(UsageError, match=kind):
        load_pt2(rewrite(saved, {"models/model.json": edit(change)}))


def test_tree_specs_and_guards_are_dropped(saved: Path) -> None:
    """A tree spec may name a module to import, guards are source text."""

    def change(program: Any) -> None:
        program["guards_code"] = ["__import__('antigravity')"]
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x"})
        signature["in_spec"] = json.dumps(
            [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
        )

    program = load_pt2(rewrite(saved, {"models/model.json": edit(change)}))
    assert "antigravity" not in sys.modules
    assert not program._guards_code


def test_source_lines_hold_no_control_characters(saved: Path) -> None:
    """They are printed to terminals and into --dump's Python files."""

    def change(program: Any) -> None:
        for node in program["graph_module"]["graph"]["nodes"]:
            node["metadata"]["stack_trace"] = 'File "a.py", line 1\rimport os\x1b[2J\x00'

    program = load_pt2(rewrite(saved, {"models/model.json": edit(change)}))
    traces = [n.meta["stack_trace"] for n in program.graph.nodes if n.op == "call_function"]
    assert traces
    assert not any(c in trace for trace in traces for c in "\r\x1b\x00")


def test_tensors_cannot_reach_beyond_their_record(saved: Path) -> None:
    def change(key: str, value: Any) -> Callable[[bytes], bytes]:
        return edit(lambda c: c["config"]["first.weight"]["tensor_meta"].__setitem__(key, value))

    for key, value in (
        ("sizes", [{"as_int": 8}, {"as_int": 3000}]),
        ("strides", [{"as_int": 1 << 40}, {"as_int": 1}]),
        ("storage_offset", {"as_int": 1 << 20}),
        ("storage_offset", {"as_int": -8}),
        ("sizes", [{"as_int": -8}, {"as_int": 3}]),
    ):
        with pytest.raises(UsageError):
            load_pt2(rewrite(saved, {"weights_config.json": change(key, value)}))


def test_huge_tensors_are_refused(saved: Path) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["tensor_values"]["points"]["sizes"] = [{"as_int": 1 << 16}] * 3

    with pytest.raises(UsageError, match=r"2\^31"):
        load_pt2(rewrite(saved, {"models/model.json": edit(change)}))


def test_compressed_records_are_refused(saved: Path) -> None:
    bomb = saved.with_name("compressed.pt2")
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        new.writestr("model/data/weights/weight_99", bytes(50_000_000))
    with pytest.raises(UsageError, match="compressed"):
        load_pt2(bomb)


def test_deep_json_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError):
        load_pt2(rewrite(saved, {"models/model.json": lambda _: b"[" * 200_000}))


def test_other_versions_say_what_to_do(saved: Path) -> None:
    change = edit(lambda p: p["schema_version"].__setitem__("major", 3))
    with pytest.raises(UsageError, match="save it again"):
        load_pt2(rewrite(saved, {"models/model.json": change}))


def test_truncated_files(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for keep in (10, len(data) // 2, len(data) - 1):
        path = tmp_path / "short.pt2"
        path.write_bytes(data[:keep])
        with pytest.raises(UsageError, match="truncated or damaged"):
            load_pt2(path)


PROGRAM: dict[str, Path] = {}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_programs_end_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever one JSON value is replaced by: the program loads, or one error line names the file."""
    if "path" not in PROGRAM:
        torch.manual_seed(0)
        PROGRAM["path"] = save(tmp_path_factory.mktemp("pt2"), Net(), example())
    path = PROGRAM["path"]

    def change(program: Any) -> None:
        value: Any = program["graph_module"]
        for _ in range(data.draw(st.integers(1, 8))):
            keys = sorted(value) if isinstance(value, dict) else range(len(value))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(value[key], dict | list) or not value[key]:
                break
            parent, value = value, value[key]
        else:
            parent[key] = data.draw(_JUNK)
            return
        value[key] = data.draw(_JUNK)

    hostile = rewrite(path, {"models/model.json": edit(change)})
    message = f"{hostile}: it loads"
    try:
        load_pt2(hostile)
    except BgnnError as error:
        message = str(error)
    assert message.startswith(f"{hostile}: ")
    assert "\n" not in message


_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.dictionaries(st.sampled_from(["as_int", "as_tensor", "as_none", "name"]), st.integers(), max_size=2),
)
