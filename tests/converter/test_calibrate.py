"""Post-training quantisation: ranges from samples, nodes of high degree apart, files that compute what is promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_models import GCN, awkward_graphs, random_graph
from rich.console import Console
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.nn import BatchNorm, GATConv, GCNConv, GINConv, MessagePassing, SAGEConv

from bgnn.converter import calibrate, cli, stages
from bgnn.converter.api import Conversion, convert
from bgnn.converter.calibrate import Calibration, FileGap, read_samples
from bgnn.converter.errors import ConversionError, UsageError
from bgnn.passes.graph import PassResult
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel


class Net(nn.Module):
    """Two layers of a kind, a norm and a ReLU between."""

    def __init__(self, kind: str = "gcn") -> None:
        super().__init__()
        torch.manual_seed(0)
        make: dict[str, Any] = {
            "gcn": GCNConv, "sage": SAGEConv, "gat": GATConv,
            "gin": lambda a, b: GINConv(nn.Sequential(nn.Linear(a, 9), nn.ReLU(), nn.Linear(9, b)), train_eps=True),
        }  # fmt: skip
        self.first, self.norm, self.second = make[kind](6, 8), BatchNorm(8), make[kind](8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x, edge_index))), edge_index)


def sample(seed: int = 0, **more: Tensor) -> dict[str, Tensor]:
    x, edge_index = random_graph(60, 240, seed)
    return {"x": x, "edge_index": edge_index, **more}


def quantised(
    model: nn.Module, *samples: dict[str, Tensor], keep: tuple[str, ...] = (), percentile: float | None = None,
    **more: Any,
) -> Conversion:  # fmt: skip
    first = samples[0]
    return convert(
        model.eval(), (first["x"], first["edge_index"]), target="onnx-int8-x86",
        calibration=Calibration(samples, keep, percentile), **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gcn", "sage", "gin", "gat"])
def test_layers(kind: str) -> None:
    conversion = quantised(Net(kind), sample(), sample(1))
    report = conversion.report
    assert report.calibration is not None
    assert report.calibration.output_error < 0.15
    assert len(report.calibration.activations) >= 4
    dense = [layer for layer in report.layers if "lin" in layer.name or "nn" in layer.name]
    assert dense
    assert all(layer.became.startswith("INT8") for layer in dense), report.layers
    check = report.checks[-1]
    assert check.what == "emitted file"
    assert check.codes > check.inside
    assert (check.inside > 0) == (kind in ("gcn", "gat")), "messages made on edges, of which the file has no tensors"
    printed = Console(record=True, width=400)
    report.print(printed)
    assert ("in no tensor of it" in printed.export_text()) == (check.inside > 0)


class Apart(MessagePassing):
    """Dense layers on what is between two nodes: nothing of it can be computed on nodes."""

    def __init__(self) -> None:
        super().__init__(aggr="max")
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.second(self.first((x_i - x_j).abs()).relu())


def test_codes_on_edges_alone_are_compared() -> None:
    """Neighbour tables have no tensors of edges."""
    check = quantised(Apart(), sample()).report.checks[-1]
    assert check.codes >= 240 * (6 + 8)
    assert check.inside == 0
    assert "with -O0" in check.note


def test_the_float_network_is_compared_before_it_is_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the quantised network is the reference: an error made before would go unseen."""
    assert quantised(Net(), sample()).report.checks[0].what == "float network"

    def broken(gm: fx.GraphModule) -> PassResult:
        node = next(n for n in gm.graph.nodes if n.op == "get_attr" and "second_lin_weight" in str(n.target))
        setattr(gm, str(node.target), getattr(gm, str(node.target)) * 1.1)
        return PassResult()

    monkeypatch.setattr(stages, "BEFORE_CALIBRATION", [*stages.BEFORE_CALIBRATION, ("broken", broken)])
    with pytest.raises(ConversionError, match=r"^float network: output 0 differs by"):
        quantised(Net(), sample())


def test_a_file_on_graphs_it_has_not_seen(tmp_path: Path) -> None:
    model = Net("sage")
    path = tmp_path / "net.onnx"
    quantised(model, sample(), output=path)
    runner = OnnxModel(path)
    for name, (x, edge_index) in awkward_graphs().items():
        found = runner.run(x=x.numpy(), edge_index=edge_index.numpy())["output"]
        with torch.no_grad():
            expected = model(x, edge_index)
        assert found.shape == tuple(expected.shape), name
        assert np.abs(found - expected.numpy()).max() < 0.3 * max(1.0, float(expected.abs().max())), name


def test_accuracy_if_there_are_labels() -> None:
    model = Net().eval()
    one = sample()
    with torch.no_grad():
        labels = model(one["x"], one["edge_index"]).argmax(1)
    report = quantised(model, {**one, "y": labels, "test_mask": torch.arange(60) < 40}).report
    assert report.calibration is not None
    assert report.calibration.float_accuracy == 1.0
    assert report.calibration.quantised_accuracy is not None
    assert report.calibration.quantised_accuracy > 0.8
    assert report.to_json()["calibration"]["float_accuracy"] == 1.0


def test_what_is_kept_float() -> None:
    report = quantised(Net(), sample(), keep=("second",)).report
    became = {layer.name: layer.became for layer in report.layers}
    assert became["first.lin.weight"].startswith("INT8")
    assert became["second.lin.weight"] == "float"


def test_unknown_names_are_told_the_layers() -> None:
    with pytest.raises(UsageError, match=r"--keep-float third: .*first\.lin\.weight"):
        quantised(Net(), sample(), keep=("third",))


def test_a_model_with_quantisers_of_its_own() -> None:
    with pytest.raises(ConversionError, match="quantisers of its own"):
        quantised(GCN(), sample())


class Rounding(Net):
    """A quantiser that stays unrecognised: each row has a step of its own."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True) / 127
        return super().forward((x / step).round() * step, edge_index)


def test_quantisers_that_are_not_understood_are_refused_with_their_line() -> None:
    with pytest.raises(ConversionError, match=r"aten\.round \(at .*test_calibrate\.py:\d+: .*\.round\(\)"):
        quantised(Rounding(), sample())


def test_the_file_is_compared_with_the_float_model() -> None:
    model, one, two = Net("gin"), sample(), sample(1)
    said: list[str] = []
    conversion = quantised(model, one, two, progress=said.append)
    assert conversion.model_bytes is not None
    runner, lost, size, changed = OnnxModel(conversion.model_bytes), 0.0, 0.0, 0
    for graph in (one, two):
        with torch.no_grad():
            expected = model(graph["x"], graph["edge_index"]).numpy()
        found = runner.run(x=graph["x"].numpy(), edge_index=graph["edge_index"].numpy())["output"]
        lost, size = lost + ((found - expected) ** 2).sum(), size + (expected**2).sum()
        changed += int((found.argmax(1) != expected.argmax(1)).sum())
    report = conversion.report.calibration
    assert report is not None
    assert report.file is not None
    assert report.file.error == pytest.approx((lost / size) ** 0.5, rel=1e-4)
    assert (report.file.rows, report.file.changed_rows) == (120, changed)
    assert report.warning() is None
    assert not any("warning" in line for line in said)
    assert conversion.report.to_json()["calibration"]["file"]["changed_rows"] == changed


def test_a_file_that_is_far_from_the_float_model_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    report = quantised(Net("gin"), sample(), percentile=20.0, progress=said.append).report
    assert report.calibration is not None
    assert report.calibration.file is not None
    assert report.calibration.file.error > 0.1
    assert any(line.startswith("warning: 8 bits change this model's output by ") for line in said)
    report.print(Console())
    printed = capsys.readouterr().out
    assert "warning: 8 bits change" in printed
    assert "beside the float model" in printed


def test_a_warning_names_what_to_keep_float_and_what_that_gives() -> None:
    model, one = Net("gin"), sample()
    report = quantised(model, one, percentile=20.0).report.calibration
    assert report is not None
    assert report.file is not None
    assert report.relief is not None
    assert report.relief.gap.excess < report.file.excess
    assert f"--keep-float {report.relief.module} leaves a part float, then" in str(report.warning())
    kept = quantised(model, one, percentile=20.0, keep=(report.relief.module,)).report.calibration
    assert kept is not None
    assert kept.file is not None
    assert kept.file.error == pytest.approx(report.relief.gap.error, rel=0.01)
    assert kept.file.changed_rows == report.relief.gap.changed_rows
    assert quantised(model, one).report.calibration.relief is None  # type: ignore[union-attr]


def test_rows_of_another_class_are_worth_a_warning() -> None:
    assert not FileGap(0.09, 100, 3).is_large
    assert FileGap(0.01, 100, 4).is_large
    assert FileGap(0.11, 0, 0).is_large
    assert FileGap(float("nan"), 100, 0).is_large


def test_the_quantised_network_is_what_a_calibrated_file_is_checked_against(capsys: pytest.CaptureFixture[str]) -> None:
    quantised(Net(), sample()).report.print(Console(width=400))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "emitted file " in line and "second" not in line]
    assert "another class than the quantised network's in 0 of 60 rows" in line
    (line,) = [line for line in printed.splitlines() if "float network " in line and "second" not in line]
    assert "another class in 0 of 60 rows" in line


def test_layers_have_the_users_names() -> None:
    report = quantised(Net("gin"), sample()).report.calibration
    assert report is not None
    places = [(row.layer, row.what) for row in report.activations]
    assert ("first", "messages") in places
    assert ("first", "sum over edges") not in places, "it is exact"
    assert ("first.nn.0", "input") in places
    gaps = {(gap.layer, gap.what): gap.error for gap in report.layers}
    assert ("first", "sum over edges") in gaps
    assert [name for name, what in gaps if what == "output"] == [
        "first.nn.0", "first.nn.2", "second.nn.0", "second.nn.2",
    ]  # fmt: skip
    assert gaps["second.nn.2", "output"] == pytest.approx(report.output_error)
    assert all(0 < gap < 0.1 for gap in gaps.values())


def test_a_small_module_stays_float_by_itself_where_that_mends_a_large_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(**how: Any) -> Any:
        return quantised(Net("gin"), sample(), verify=False, **how).report

    whole = report()
    assert whole.calibration.spared is None
    monkeypatch.setattr(calibrate, "CLASSES", 1.0)
    monkeypatch.setattr(calibrate, "LARGE", 0.9 * whole.calibration.output_error)
    advised = report()
    assert advised.calibration.spared is None, "the modules hold more than a tenth of the weights"
    monkeypatch.setattr(calibrate, "SPARED", 0.9)
    spared = report()
    module = advised.calibration.relief.module
    assert (spared.calibration.spared.module, spared.calibration.relief) == (module, None)
    assert spared.calibration.spared.gap.error == pytest.approx(whole.calibration.output_error, rel=1e-3)
    assert spared.calibration.output_error < 0.9 * whole.calibration.output_error
    assert spared.macs["INT8"] < whole.macs["INT8"]
    floats = [layer for layer in spared.layers if layer.became == "float" and module in layer.name]
    assert floats
    assert all("--calibrate" not in layer.why for layer in floats)
    printed = Console(record=True, width=400)
    spared.print(printed)
    assert f"{module} stays float: with its 8 bits" in printed.export_text()
    assert report(percentile=0.0).calibration.spared is None
    assert report(keep=(module,)).calibration.spared is None


@pytest.mark.parametrize("percentile", [-1.0, 50.0, float("nan")])
def test_percentiles_that_there_are_not(percentile: float) -> None:
    with pytest.raises(UsageError, match="--percentile"):
        Calibration((sample(),), (), percentile)


def test_percentiles_are_as_given() -> None:
    report = quantised(Net("sage"), sample(), percentile=5.0).report.calibration
    assert report is not None
    assert report.activations[0].clipped == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("target", ["onnx-x86", "tflite-arm64"])
def test_other_targets(target: str) -> None:
    one = sample()
    with pytest.raises(UsageError, match=f"8-bit layers, which {target} does not have: --target .*onnx-int8-x86"):
        convert(Net().eval(), (one["x"], one["edge_index"]), target=target, calibration=Calibration((one,)))


def test_what_forward_does_not_take_is_said() -> None:
    one = sample(edge_attr=torch.rand(5), y=torch.zeros(60, dtype=torch.int64))
    report = convert(
        Net().eval(), (one["x"], one["edge_index"]), target="onnx-int8-x86", calibration=Calibration((one,))
    ).report
    assert any("hold edge_attr, which forward does not take" in warning for warning in report.warnings)
    assert not any(" y" in warning for warning in report.warnings if "does not take" in warning)


class Points(nn.Module):
    """A shared MLP and a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.out = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 5)

    def forward(self, points: Tensor) -> Tensor:
        return self.out(self.mlp(points).amax(1))


def test_models_without_edges() -> None:
    """A network of points is calibrated like a network of graphs; its samples go by its inputs' names."""
    with pytest.raises(UsageError, match="the model takes 'points', the file holds x, edge_index"):
        convert(Points().eval(), (torch.randn(1, 9, 3),), target="onnx-int8-x86", calibration=Calibration((sample(),)))
    points = torch.randn(2, 40, 3)
    calibration = Calibration(({"points": points},))
    report = convert(Points().eval(), (points,), target="onnx-int8-x86", calibration=calibration).report
    assert report.macs["float"] == 0 < report.macs["INT8"]
    assert report.calibration is not None
    assert report.calibration.file is not None
    assert report.calibration.file.error < 0.02


def test_npz_and_pyg_files(tmp_path: Path) -> None:
    one = sample(y=torch.arange(60) % 3)
    np.savez(tmp_path / "graph.npz", **{k: v.numpy() for k, v in one.items()})
    read = read_samples(tmp_path / "graph.npz", ["a"])
    assert read.keep_float == ("a",)
    assert torch.equal(read.samples[0]["edge_index"], one["edge_index"])
    graphs = [Data(x=torch.randn(n, 6), edge_index=torch.randint(0, n, (2, 2 * n))) for n in (5, 7, 9)]
    InMemoryDataset.save(graphs, str(tmp_path / "data.pt"))
    read = read_samples(tmp_path / "data.pt")
    assert [len(s["x"]) for s in read.samples] == [5, 7, 9]
    for found, graph in zip(read.samples, graphs, strict=True):
        assert torch.equal(found["x"], graph.x)
        assert torch.equal(found["edge_index"], graph.edge_index)


def test_bad_files(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no dataset")
    (tmp_path / "text.npz").write_text("no arrays")
    for name, message in (
        ("weights.pt", "no graph"), ("text.pt", "neither"), ("absent.pt", "no such file"), ("text.npz", "--calibrate"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            read_samples(tmp_path / name)
    with pytest.raises(UsageError, match="'edge_index'"):
        Calibration(({"x": torch.zeros(3, 2)},)).inputs(["x", "edge_index"])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own float model, from the command line; the sample graph is the example input as well."""
    (tmp_path / "user_nets.py").write_text(
        "from torch import nn\nfrom torch_geometric.nn import SAGEConv\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = SAGEConv(6, 3)\n"
        "    def forward(self, x, edge_index):\n        return self.conv(x, edge_index)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    torch.save({f"conv.{k}": v for k, v in SAGEConv(6, 3).state_dict().items()}, "weights.pt")
    one = sample(y=torch.arange(60) % 3)
    np.savez("graph.npz", **{k: v.numpy() for k, v in one.items()})
    arguments = ["weights.pt", "--model", "user_nets:Net", "--target", "onnx-int8-x86", "-o", "net.onnx"]
    assert cli.main([*arguments, "--calibrate", "graph.npz"]) == 0
    printed = capsys.readouterr().out
    assert "post-training quantisation" in printed
    assert "accuracy on the samples" in printed
    assert Path("net.onnx").is_file()
    assert cli.main([*arguments, "--input", "graph.npz", "--keep-float", "conv"]) == 2
    assert cli.main([*arguments, "--input", "graph.npz", "--percentile", "1"]) == 2
    assert cli.main([*arguments, "--calibrate", "graph.npz", "--percentile", "50"]) == 2
    assert cli.main([*arguments, "--calibrate", "graph.npz", "--percentile", "0.1"]) == 0


def test_the_property_says_what_was_compared_with_what() -> None:
    done = quantised(Net(), sample())
    said = OnnxModel(done.model_bytes or b"").properties["verification"]
    assert "another class than the quantised network's in 0 of 60 rows" in said
    assert "beside the float model, on the samples: outputs " in said
    assert "another class than the float model's in " in said


def test_what_no_target_has_is_found_before_the_samples_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return torch.lgamma(super().forward(x, edge_index).abs() + 1)

    monkeypatch.setattr("bgnn.converter.api.quantise", lambda *_: pytest.fail("ranges were chosen"))
    with pytest.raises(ConversionError, match=r"torch\.lgamma is not supported .*test_calibrate\.py"):
        quantised(Late(), sample())


class Mixed(nn.Module):
    """Real ends and a binary middle, as binary networks have them, with XNOR-Net's scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 48), nn.Linear(64, 5)
        self.middle = nn.Parameter(torch.randn(64, 48))

    def forward(self, points: Tensor) -> Tensor:
        signs = torch.where(self.first(points) - 0.2 >= 0, 1.0, -1.0)
        weight = torch.sign(self.middle) * self.middle.abs().mean(1, keepdim=True)
        return self.last(nn.functional.linear(signs, weight).relu().amax(1))


@pytest.mark.parametrize(
    ("target", "middle"), [("lce-arm64", "binary"), ("onnx-int8-x86", "binary"), ("tflite-int8-arm64", "INT8")]
)
def test_binary_layers_stay_binary_where_the_target_has_bits(target: str, middle: str) -> None:
    torch.manual_seed(0)
    samples = Calibration(({"points": torch.randn(8, 30, 3)},), percentile=0.0)  # four times the clouds of the example
    report = convert(Mixed().eval(), (torch.randn(2, 30, 3),), target=target, calibration=samples).report
    became = {layer.name: layer.became.split(",")[0] for layer in report.layers}
    assert became == {"first.weight": "INT8", "middle": middle, "last.weight": "INT8"}
    assert report.calibration is not None
    assert len({a.layer for a in report.calibration.activations}) >= 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.randn(3, 30, 3), r"points is float32 \[3, 30, 3\], the model takes float32 \[2, 30, 3\]"),
        (torch.randn(4, 31, 3), r"points is float32 \[4, 31, 3\]"),
        (torch.randn(2, 30), r"points is float32 \[2, 30\]"),
        (torch.zeros(2, 30, 3, dtype=torch.int64), r"points is int64 \[2, 30, 3\]"),
    ],
)
def test_samples_of_another_shape(given: Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=f"--calibrate: {said}"):
        convert(
            Mixed().eval(),
            (torch.randn(2, 30, 3),),
            target="onnx-int8-x86",
            calibration=Calibration(({"points": given},)),
        )


def test_an_example_that_the_samples_are_not_like() -> None:
    torch.manual_seed(0)
    samples = Calibration(({"points": torch.randn(2, 30, 3) / 20},))
    report = convert(
        Points().eval(),
        (torch.randn(1, 9, 3),),
        target="onnx-int8-x86",
        calibration=Calibration(({"points": torch.randn(64, 9, 3)},)),
    ).report
    assert not report.warnings
    report = convert(Mixed().eval(), (torch.randn(2, 30, 3),), target="onnx-int8-x86", calibration=samples).report
    assert any("on the example, which is none of the samples, 8 bits change" in text for text in report.warnings)
