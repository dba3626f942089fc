"""Refusals name the operation as the user wrote it, their file and line, and a way out: never a fault of ours."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")
sys.path.insert(0, str(Path(__file__).parent))
import users_refused as users
from torch_geometric.data import Data

from bgnn.converter.api import convert
from bgnn.converter.errors import BgnnError, ConversionError, UsageError

POINTS = (torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0)),)
EDGES = (
    torch.randn(30, 6, generator=torch.Generator().manual_seed(0)),
    torch.randint(0, 30, (2, 90), generator=torch.Generator().manual_seed(1)),
)
WRONG = ("internal error", "fault of its own", "site-packages", "\n")


def refusal(model: nn.Module, inputs: tuple[Any, ...], target: str) -> str:
    with pytest.raises(BgnnError) as error:
        convert(model.eval(), inputs, target=target)
    message = str(error.value)
    assert not any(text in message for text in WRONG), message
    return message


def line_of(code: Callable[..., Any] | type, mark: str = "# here") -> int:
    lines, start = inspect.getsourcelines(code)
    return start + next(i for i, line in enumerate(lines) if line.rstrip().endswith(mark))


def check(message: str, words: tuple[str, str], line: int) -> None:
    operation, way_out = words
    assert operation in message, message
    assert re.findall(r"users_refused\.py:(\d+)", message)[:1] == [str(line)], message
    assert way_out in message.partition("users_refused.py")[2], message


@pytest.mark.parametrize(("helper", "words"), users.CLOUDS.items(), ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("target", ["tflite-arm64"])
def test_clouds(helper: Callable[[Tensor], Tensor], words: tuple[str, str], target: str) -> None:
    check(refusal(users.Cloud(helper), POINTS, target), words, line_of(helper))


@pytest.mark.parametrize(("helper", "words"), users.GRAPHS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_graphs(helper: Callable[[Tensor], Tensor], words: tuple[str, str]) -> None:
    check(refusal(users.Graph(helper), EDGES, "onnx-x86"), words, line_of(helper))


def test_what_onnx_alone_has_is_told_of_graph_networks() -> None:
    message = refusal(users.Graph(users.summed_up), EDGES, "tflite-arm64")
    check(message, ("Tensor.cumsum", "--target onnx-x86 or onnx-int8-x86"), line_of(users.summed_up))


def test_a_layer_of_pyg_is_named_at_the_users_line() -> None:
    message = refusal(users.Median(), EDGES, "onnx-x86")
    check(message, ("Tensor.take_along_dim in MedianAggregation", "docs/ops.md"), line_of(users.Median))


@pytest.mark.parametrize("how", ["list", "numbers", "tensors", "nodes"])
def test_loops_over_edges_and_nodes(how: str) -> None:
    """Refused with the loop's line, before an export writes out every step."""
    message = refusal(users.Loop(how), (EDGES[0][:9], EDGES[1][:, :30] % 9), "onnx-x86")
    assert f"users_refused.py:{line_of(users.Loop, f'# {how}')}:" in message
    assert ("with tensors alone" if how == "nodes" else "index_add(0, edge_index[1], h[edge_index[0]])") in message
    assert "--target" not in message  # the target is not to blame


def test_a_row_picked_by_a_number_that_is_computed() -> None:
    class Picked(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = x.index_add(0, edge_index[1], x[edge_index[0]])
            return h[edge_index.shape[1] // 40 + int(edge_index[0, 0])]  # here

    message = refusal(Picked(), EDGES, "onnx-x86")
    assert f"test_refusals.py:{line_of(Picked)}:" in message


def test_a_condition_on_an_open_size_is_named_at_its_line() -> None:
    class BySize(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = x.index_add(0, edge_index[1], x[edge_index[0]])
            if x.shape[0] > 40:  # here
                h = h * 2
            return h

    message = refusal(BySize(), EDGES, "onnx-x86")
    assert re.search(rf"a condition is made of an open size at .*test_refusals\.py:{line_of(BySize)}:", message)


class Wrapped(nn.Module):
    """A network that takes an object, and a wrapper that builds one: Dynamo refuses the object's class."""

    def __init__(self, holder: Any) -> None:
        super().__init__()
        self.net, self.holder = users.Switched(), holder

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        held = self.holder(x=x, edge_index=edge_index)
        return self.net(held.x, held.edge_index)


@pytest.mark.parametrize("holder", [types.SimpleNamespace, Data])
def test_both_ways_of_export_say_why(holder: Any) -> None:
    message = refusal(Wrapped(holder), EDGES, "onnx-x86")
    check(message, ("torch.export cannot trace the model", "size="), line_of(users.Switched))
    assert "nor with Dynamo" in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Data(x=EDGES[0], edge_index=EDGES[1]), "self.net(Data(x=x"),
        (None, "leave it out"),
        (10, "give torch.tensor(10), and it stays an input"),
        ({"a": EDGES[0]}, "each of the dictionary's tensors"),
        (EDGES[0].double(), ".float()"),
        (EDGES[0].bfloat16(), ".float()"),
        (EDGES[0].to_sparse(), "give edge_index"),
    ],
    ids=["Data", "None", "int", "dict", "float64", "bfloat16", "sparse"],
)
def test_inputs_that_are_no_plain_tensors(value: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        convert(users.Graph(torch.relu), (value, EDGES[1]), target="onnx-x86")
    assert words in str(error.value)
    assert "input 'x'" in str(error.value)


def test_edges_as_rows_are_to_be_turned() -> None:
    message = refusal(users.Graph(torch.relu), (EDGES[0], EDGES[1].t().contiguous()), "onnx-x86")
    assert "edges are [2, E], and edge_index is [90, 2]: give it transposed (edge_index.T)" in message


def test_a_fault_of_ours_is_said_to_be_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("bgnn.converter.api.trace_sized", broken)
    with pytest.raises(ConversionError, match=r"a fault of its own: IndexError: tuple index out of range"):
        convert(users.Cloud(torch.relu), POINTS, target="tflite-arm64")


def test_an_output_of_nan_is_the_models_own() -> None:
    message = refusal(users.Cloud(lambda x: (x - 100).log()), POINTS, "tflite-arm64")
    assert "the model itself gives 320 NaN in output 0" in message


def test_cat_with_an_empty_tensor_converts() -> None:
    net = users.Cloud(lambda x: torch.cat((x.amax(1), torch.as_tensor([])), 1))
    assert convert(net.eval(), POINTS, target="tflite-arm64").model_bytes


def test_a_quantised_cloud_is_told_where_it_goes() -> None:
    """Not `Tensor.mul is not supported`, of a network whose products are: its quantisers are not."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(torch.clamp(torch.round(x / 0.03), -128, 127) * 0.03).amax(1)

    net, inputs = Quantised().eval(), (torch.randn(2, 12, 6),)
    with pytest.raises(ConversionError, match=r"the quantiser that ends in Tensor.mul is not supported.*onnx-int8-x86"):
        convert(net, inputs, target="tflite-arm64")
    assert convert(net, inputs, target="onnx-int8-x86").report.checks[-1].codes == 144


def test_a_model_of_pytorchs_layers_alone() -> None:
    """There is no line of the user's: the layer is named, and PyTorch's line, none of what PyTorch traces with."""
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1), torch.nn.FractionalMaxPool2d(2, output_size=(2, 2)))
    with pytest.raises(ConversionError) as error:
        convert(model.eval(), (torch.randn(2, 4, 6),), target="onnx-x86")
    message = str(error.value)
    assert "fractional_max_pool2d in FractionalMaxPool2d (at " in message
    assert "torch/nn/" in message.partition("(at ")[2].partition(":")[0]
