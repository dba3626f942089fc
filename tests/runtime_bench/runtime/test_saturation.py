"""Sums that leave their range on a larger or denser graph: counted, and said."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_graphs import FORMS, Form
from torch import Tensor, nn
from torch_geometric.nn import MLP, GINConv, global_add_pool

from bgnn.converter.api import convert
from bgnn.converter.calibrate import Calibration
from bgnn.runtime_bench.runtime import run as bgnn_run
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.saturation import SaturationWarning

NAMES = ("x", "edge_index", "batch")


class Molecules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GINConv(MLP([6, 16, 16], norm=None))
        self.out = MLP([16, 16, 4], norm=None)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.out(global_add_pool(self.conv(x, edge_index).relu(), batch))


def graph(nodes: int, degree: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, nodes, (2, degree * nodes), generator=generator)
    return torch.randn(nodes, 6, generator=generator), edges, torch.zeros(nodes, dtype=torch.long)


def arrays(values: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in zip(NAMES, values, strict=True)}


def converted(form: Form) -> bytes:
    torch.manual_seed(0)
    sample = graph(40, 4)
    calibration = Calibration((dict(zip(NAMES, sample, strict=True)),))
    done = convert(
        Molecules().eval(), sample, target="onnx-int8-x86", optimize=form[0], kernels=form[1], calibration=calibration
    )
    assert done.model_bytes is not None
    return done.model_bytes


@pytest.mark.parametrize("form", FORMS)
def test_counted_and_said(form: Form, tmp_path: Any, capsys: Any) -> None:
    data = converted(form)
    model = OnnxModel(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run(**arrays(graph(40, 4)))  # the example
    assert all(one.share == one.seen for one in model.saturation)

    larger = arrays(graph(500, 4, 1))
    with pytest.warns(SaturationWarning, match=r"aggregation 2: \d+ of 16 codes \(.*%\) are at an end of their 8-bit"):
        out = model.run(**larger)["output"]
    pooled = next(one for one in model.saturation if one.name == "aggregation 2")
    assert pooled.codes == 16
    assert pooled.at_ends == np.count_nonzero(of_tensor(data, model, larger, "aggregation 2") == 255)
    assert pooled.at_ends > 4
    np.testing.assert_array_equal(model.run_feeds(model.feeds(**larger))["output"], out)

    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    np.savez(tmp_path / "in.npz", **larger)
    assert bgnn_run.main([str(path), "--input", str(tmp_path / "in.npz")]) == 0
    assert "bgnn-run: warning: aggregation 2: " in capsys.readouterr().err


def of_tensor(data: bytes, model: OnnxModel, given: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A sum's codes, read by ONNX's own tools."""
    wanted = next(one["tensor"] for one in model.sums if one["name"] == name)
    file = onnx.load_from_string(data)
    file.graph.output.append(onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.UINT8, None))
    other = OnnxModel(onnx_without_sums(file))
    return other.session.run([wanted], other.feeds(**given))[0]


def onnx_without_sums(file: onnx.ModelProto) -> bytes:
    kept = [entry for entry in file.metadata_props if entry.key != "bgnn.sums"]
    del file.metadata_props[:]
    file.metadata_props.extend(kept)
    return file.SerializeToString()


def test_a_denser_graph_of_the_same_size() -> None:
    model = OnnxModel(converted((1, "stock")))
    with pytest.warns(SaturationWarning, match="so are those of 1 more sums"):
        model.run(**arrays(graph(40, 16, 2)))
    more = [one for one in model.saturation if one.is_more]
    assert len(more) == 2
    assert all(one.codes > 0 for one in more)


def test_a_file_without_codes_counts_nothing() -> None:
    torch.manual_seed(0)
    data = convert(Molecules().eval(), graph(40, 4), target="onnx-x86").model_bytes
    assert data is not None
    model = OnnxModel(data)
    model.run(**arrays(graph(90, 9)))
    assert model.sums == []
    assert model.saturation == []
