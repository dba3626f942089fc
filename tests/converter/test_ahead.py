"""What no target can write is refused before the export, and nothing else is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.converter import ahead
from bgnn.converter.api import convert
from bgnn.converter.eager import EagerModel
from bgnn.converter.errors import ConversionError
from bgnn.converter.stages import Plan

CLOUD = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(0, 12, (2, 40), generator=torch.Generator().manual_seed(1))


class Deep(nn.Module):
    """A tower of 60 dense layers, with something of the user's in its middle."""

    def __init__(self, extra: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.extra, self.layers = extra, nn.ModuleList(nn.Linear(8, 8) for _ in range(60))
        self.register_buffer("own", torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = x + 0.3 * layer(x).tanh()
            x = self.extra(x, self.own) if i == 30 else x
        return x.mean(1)


class DeepGraph(nn.Module):
    """PyG's layers, written by somebody who keeps his spectra in a module of their own."""

    class Spectrum(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.view_as_real(torch.fft.fft(h)).sum(-1)  # here

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.convs = nn.ModuleList(GCNConv(8, 8) for _ in range(24))
        self.spectrum = self.Spectrum()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(x, edge_index).relu()
        return self.spectrum(x)


def gamma(x: Tensor, own: Tensor) -> Tensor:
    return torch.lgamma(x.abs() + 1)  # here


def in_place(x: Tensor, own: Tensor) -> Tensor:
    x = x.clone()
    x.erfinv_()  # here
    return x.nan_to_num(0.0).clamp(-1, 1)


def inverse(x: Tensor, own: Tensor) -> Tensor:
    gram = x.transpose(1, 2) @ x + torch.eye(8)
    return x @ torch.linalg.inv(gram)  # here


def unique(x: Tensor, own: Tensor) -> Tensor:
    kinds = torch.unique(x.round())  # here
    return x - kinds[:1]


def rank(x: Tensor, own: Tensor) -> Tensor:
    place = torch.searchsorted(own[0].sort().values, x)  # here
    return x + 0.1 * place


def noise(x: Tensor, own: Tensor) -> Tensor:
    return x + torch.randn(8)  # here


def dropped(x: Tensor, own: Tensor) -> Tensor:
    return F.dropout(x, 0.3)  # here


def running(x: Tensor, own: Tensor) -> Tensor:
    return x.cumsum(1) / 12  # here


def pooled(x: Tensor, own: Tensor) -> Tensor:
    return x + F.max_pool1d(x.transpose(1, 2), 2).repeat(1, 1, 2).transpose(1, 2)  # here


def by_the_largest(x: Tensor, own: Tensor) -> Tensor:
    return x / x.abs().max().item()  # here


def a_branch(x: Tensor, own: Tensor) -> Tensor:
    if (x > 2).sum() > 3:  # here
        return x.clamp(max=2)
    return x * 2


REFUSED: list[tuple[Callable[..., Tensor], str]] = [
    (gamma, "torch.lgamma"), (in_place, "Tensor.erfinv_"), (inverse, "torch.linalg.inv"), (rank, "torch.searchsorted"),
    (noise, "torch.randn"), (dropped, "torch.nn.functional.dropout"), (unique, "torch.unique"),
    (running, "Tensor.cumsum is not supported by tflite-arm64"), (pooled, "torch.nn.functional.max_pool1d"),
    (by_the_largest, "Tensor.item"), (a_branch, "Tensor.__bool__"),
]  # fmt: skip


def line_of(code: Any) -> str:
    lines, start = inspect.getsourcelines(code)
    return f"test_ahead.py:{start + next(i for i, line in enumerate(lines) if line.rstrip().endswith('# here'))}:"


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model is exported")

    monkeypatch.setattr("bgnn.converter.api.trace_sized", exported)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(("extra", "name"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_refused_before_the_export(extra: Callable[..., Tensor], name: str) -> None:
    with pytest.raises(ConversionError) as error:
        convert(Deep(extra).eval(), (CLOUD,), target="tflite-arm64")
    assert str(error.value).startswith(name)
    assert line_of(extra) in str(error.value)


@pytest.mark.usefixtures("no_export")
def test_a_graph_network_is_refused_before_the_export() -> None:
    pytest.importorskip("torch_geometric")
    with pytest.raises(ConversionError, match=r"torch\.fft\.fft is not supported by onnx-int8-x86") as error:
        convert(DeepGraph().eval(), (CLOUD[0], EDGES), target="onnx-int8-x86")
    assert line_of(DeepGraph.Spectrum) in str(error.value)


def of_constants(x: Tensor, own: Tensor) -> Tensor:
    return x @ torch.linalg.inv(own + torch.eye(8)) + torch.lgamma(torch.ones_like(x))


def unused(x: Tensor, own: Tensor) -> Tensor:
    torch.lgamma(x.abs())
    x.clone().erfinv_()
    return x


def cut_off(x: Tensor, own: Tensor) -> Tensor:
    return torch.cat([x, torch.lgamma(x)], -1)[..., :8]


def straight_through(x: Tensor, own: Tensor) -> Tensor:
    soft = torch.erfinv(0.9 * x.tanh())
    return torch.where(x >= 0, 1.0, -1.0).detach() - soft.detach() + soft


def only_its_size(x: Tensor, own: Tensor) -> Tensor:
    return x / torch.fft.rfft(x).shape[-1]


def random_and_unused(x: Tensor, own: Tensor) -> Tensor:
    torch.rand_like(x)
    return x


def asserted(x: Tensor, own: Tensor) -> Tensor:
    assert x.isfinite().all()
    assert float(x.sum()) < 1e9
    return x * float(own.abs().max())


def counted(x: Tensor, own: Tensor) -> Tensor:
    return x[:, : int((x[0, 0] > -1e9).sum())]


def taken_apart(x: Tensor, own: Tensor) -> Tensor:
    x = F.layer_norm(x, (8,)) + F.group_norm(x, 2) + torch.einsum("bnc,cd->bnd", x, own)
    x = x + F.avg_pool1d(x.transpose(1, 2), 12).transpose(1, 2) + F.adaptive_max_pool1d(x.transpose(1, 2), 1).mT
    x = F.scaled_dot_product_attention(x, x, x) + F.pad(x, (1, 0))[..., :8] + torch.var_mean(x, -1, keepdim=True)[0]
    return x + torch.cdist(x, x).topk(3, largest=False).values.sum(-1, keepdim=True)


LEFT = [
    of_constants,
    unused,
    cut_off,
    straight_through,
    only_its_size,
    random_and_unused,
    asserted,
    counted,
    taken_apart,
]


@pytest.mark.parametrize("extra", LEFT, ids=lambda v: v.__name__)
def test_what_may_convert_is_left_to_the_passes(extra: Callable[..., Tensor]) -> None:
    ahead.refuse_ahead(EagerModel(Deep(extra).eval(), [0]), (CLOUD,), Plan("tflite-arm64"))


class Shallow(nn.Module):
    def __init__(self, extra: Callable[..., Tensor]) -> None:
        super().__init__()
        self.extra, self.own = extra, nn.Parameter(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(x, self.own)


@pytest.mark.parametrize("extra", [of_constants, unused, cut_off, straight_through], ids=lambda v: v.__name__)
def test_and_does(extra: Callable[..., Tensor]) -> None:
    """The same parts in a model of their own: what is left to the passes is converted."""
    assert convert(Shallow(extra).eval(), (CLOUD,), target="onnx-x86").model_bytes


def test_a_model_that_fails_says_so_as_before() -> None:
    def misfit(x: Tensor, own: Tensor) -> Tensor:
        return x @ own[:5, :5]

    with pytest.raises(ConversionError, match="fails eagerly"):
        convert(Deep(misfit).eval(), (CLOUD,), target="onnx-x86")


def test_the_model_and_its_inputs_are_left_as_they_were() -> None:
    class Counting(Deep):
        def forward(self, x: Tensor) -> Tensor:
            self.own += 1
            x.mul_(1.5)
            return super().forward(x)

    model, given = Counting(lambda x, own: x).eval(), CLOUD.clone()
    before = model.own.clone()
    state = torch.get_rng_state()
    ahead.refuse_ahead(EagerModel(model, [0]), (given,), Plan("tflite-arm64"))
    assert torch.equal(model.own, before)
    assert torch.equal(given, CLOUD)
    assert torch.equal(torch.get_rng_state(), state)
