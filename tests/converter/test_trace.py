"""From a model to the IR: functional, frozen, with only the outputs asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Wrapped, aten, check_meta, count, outputs, randn
from torch import Tensor, nn

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.trace import trace

X = randn(2, 3)


class Clamped(nn.Module):
    """The binary papers' habit: the latent weight is clamped in forward, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(4, 3) * 3)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.clamp(self.weight.data, -1, 1)
        return F.linear(x, self.weight)


def test_the_graph_computes_what_the_model_computes() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Dropout(), nn.Linear(8, 2))
    gm = trace(model, (X,))
    check_meta(gm, X)
    assert torch.equal(outputs(gm, X)[0], model.eval()(X))
    assert not list(gm.parameters()), "weights are constants"
    sources = {n.meta["source"] for n in gm.graph.nodes if n.op == "get_attr"}
    assert {"0.weight", "0.bias", "1.running_mean", "2.weight", "4.bias"} <= sources


def test_in_place_ops_are_gone_and_the_input_is_untouched() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1).relu_()
        y[:, 0] = 5.0
        return y

    x = X.clone()
    gm = trace(Wrapped(function, {}), (x,))
    assert not any(getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in gm.graph.nodes)
    assert torch.equal(outputs(gm, x)[0], function(None, X.clone()))
    assert torch.equal(x, X)


def test_a_model_that_writes_to_its_input() -> None:
    gm = trace(Wrapped(lambda m, x: x.mul_(2) + 1, {}), (X.clone(),))
    assert torch.equal(outputs(gm, X.clone())[0], X * 2 + 1)


def test_weights_clamped_in_forward() -> None:
    model = Clamped()
    before = model.weight.detach().clone()
    gm = trace(model, (X,))
    assert torch.equal(outputs(gm, X)[0], F.linear(X, before.clamp(-1, 1)))
    assert count(gm, aten.set_) == 0


class InPlaceBinary(torch.nn.Linear):
    """A layer that binarises its input's and its weight's data in place, and keeps the real weight beside."""

    def forward(self, x: Tensor) -> Tensor:
        x.data = x.data.sign()
        if not hasattr(self.weight, "real"):
            self.weight.real = self.weight.data.clone()
        self.weight.data = torch.where(self.weight.real.data >= 0, 1.0, -1.0)
        return F.linear(x, self.weight, self.bias)


def test_data_written_in_forward() -> None:
    """The sign of the input holds for all who read it after, and the caller's tensors stay."""
    layer = InPlaceBinary(3, 4)
    before = layer.weight.detach().clone()

    def function(m: Any, x: Tensor) -> Tensor:
        h = x * 2
        return torch.cat([layer(h), h], 1)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    gm = trace(Net(), (X,))
    assert torch.equal(layer.weight, before)
    assert count(gm, aten.sign) == 1
    assert torch.equal(outputs(gm, X)[0], Net()(X.clone()))


READS_ITS_TENSORS = {
    "a number": lambda m, x: x * float(m.scale) + m.scale.item(),
    "computed": lambda m, x: (x / ((m.high - m.low).item() / 255)).round() + int(-m.low / m.scale),
    "of a weight": lambda m, x: x / m.weight.detach().abs().amax().item(),
    "a list": lambda m, x: torch.cat([x * v for v in m.weight.amax(0).tolist()]),
    "a branch": lambda m, x: x * 2 if m.high > 1 and not torch.equal(m.low, m.high) else x,
    "a loop": lambda m, x: sum((x + i for i in range(int(m.levels) - 1)), start=x),
    "a mask": lambda m, x: x[:, m.mask] + m.mask.nonzero()[0],
    "a made-up tensor": lambda m, x: x * torch.max(m.low, torch.zeros(1)).add(3).item(),
    "a copy written to": lambda m, x: x * m.weight.clone().mul_(3).fill_diagonal_(0).sum().item(),
    "a counter": lambda m, x: x * m.steps.add_(1).item(),
}


@pytest.mark.parametrize("habit", READS_ITS_TENSORS)
def test_forward_may_look_at_the_values_of_its_own_tensors(habit: str) -> None:
    tensors = {
        "scale": torch.tensor(0.3),
        "high": torch.tensor(3.0),
        "low": torch.tensor([-1.7]),
        "weight": randn(5, 3),
    }
    tensors |= {"levels": torch.tensor(4), "mask": torch.tensor([True, False, True]), "steps": torch.tensor(1)}
    model = Wrapped(READS_ITS_TENSORS[habit], tensors).eval()
    gm = trace(model, (X,))
    assert all(torch.equal(t, tensors[name]) for name, t in model.named_buffers()), "the caller's model is as it was"
    for x in (X, randn(2, 3, seed=1)):
        expected = Wrapped(READS_ITS_TENSORS[habit], {k: v.clone() for k, v in tensors.items()})(x)
        assert torch.equal(outputs(gm, x)[0], expected)


def test_a_buffer_that_the_input_is_written_to_is_not_a_constant() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        seen = m.scale.clone()
        first = seen[0]
        seen.copy_(x[0, :2])
        return x * first.item()

    model = Wrapped(function, {"scale": torch.tensor([2.0, 3.0])})
    gm = trace(model, (X,))
    other = randn(2, 3, seed=1)
    assert torch.equal(outputs(gm, other)[0], other * other[0, 0])


def test_every_module_is_left_in_the_mode_it_was_in() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    model.train()[1][1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gm = trace(model, (X,))
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(outputs(gm, X)[0], model.eval()(X))


def test_straight_through_estimators_disappear() -> None:
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sign()

        @staticmethod
        def backward(ctx: Any, *g: Any) -> Any:
            return g[0]

    gm = trace(Wrapped(lambda m, x: Sign.apply(x), {}), (X,))
    assert torch.equal(outputs(gm, X)[0], X.sign())


def test_outputs_on_request() -> None:
    model = Wrapped(lambda m, x: {"a": x + 1, "b": (x * 2, [x - 3])}, {})
    assert torch.equal(outputs(trace(model, (X,)), X)[0], X + 1)
    found = outputs(trace(model, (X,), (2, 0)), X)
    assert torch.equal(found[0], X - 3)
    assert torch.equal(found[1], X + 1)
    assert count(trace(model, (X,)), aten.mul, aten.sub) == 0, "what no kept output needs is dropped"
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=rf"no tensor output {wrong}: the model returns 3"):
            trace(model, (X,), (wrong,))


def test_two_inputs_and_an_unused_one() -> None:
    gm = trace(Wrapped(lambda m, x, y: x * 2, {}), (X, randn(4)))
    assert len([n for n in gm.graph.nodes if n.op == "placeholder"]) == 2
    assert torch.equal(outputs(gm, X, randn(4))[0], X * 2)


def test_permuted_example_inputs_are_made_contiguous() -> None:
    x = randn(3, 2).t()
    gm = trace(Wrapped(lambda m, x: x.contiguous().view(-1), {}), (x,))
    assert torch.equal(outputs(gm, x.contiguous())[0], x.reshape(-1))


def test_an_exported_program() -> None:
    program = torch.export.export(Wrapped(lambda m, x: x * m.c, {"c": randn(3)}), (X,))
    gm = trace(program, (X,))
    assert torch.equal(outputs(gm, X)[0], X * randn(3))
    with pytest.raises(UsageError, match=r"is \(4, 3\) torch.float32, but the program was exported for \(2, 3\)"):
        trace(program, (randn(4, 3),))
    with pytest.raises(UsageError, match=r"torch.int64, but the program was exported for \(2, 3\) torch.float32"):
        trace(program, (X.long(),))
    with pytest.raises(UsageError, match="takes 1 tensors, but 2 example inputs"):
        trace(program, (X, X))


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_broken_weights_are_named(value: float, word: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight[0, 1] = value
    with pytest.raises(ConversionError, match=rf"1\.weight holds an? {word} value"):
        trace(model, (X,))


def test_an_unused_broken_buffer_does_not_matter() -> None:
    trace(Wrapped(lambda m, x: x * 2, {"unused": torch.tensor([float("nan")])}), (X,))


def test_data_dependent_control_flow_is_one_clear_line() -> None:
    with pytest.raises(ConversionError) as error:
        trace(Wrapped(lambda m, x: x * 2 if bool(x.sum() > 0) else x, {}), (X,))
    assert str(error.value).startswith("torch.export cannot trace the model")
    assert "\n" not in str(error.value)


def test_data_dependent_sizes_are_refused() -> None:
    with pytest.raises(ConversionError) as error:
        trace(Wrapped(lambda m, x: x[x > 0], {}), (X,))
    assert "\n" not in str(error.value)


def test_a_model_that_fails_on_the_inputs() -> None:
    with pytest.raises(ConversionError, match=r"forward fails eagerly, in PyTorch itself \(on \[2.*RuntimeError"):
        trace(nn.Linear(7, 2), (X,))


class Keeps(nn.Module):
    """What people keep from one forward to the next, in attributes, lists and buffers."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.grid: Tensor | None = None
        self.calls, self.seen, self.by_size = 0, [], {}  # type: ignore[var-annotated]
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[1])
        self.calls += 1
        self.step = self.step + 1
        self.seen.append(x.mean())
        size = self.by_size.setdefault(x.shape[0], x.new_ones(x.shape[1]))
        self.linear.last = x  # type: ignore[assignment]
        return self.linear(x + self.grid * size) * (self.calls + self.step)


def test_what_forward_keeps_is_as_it_was() -> None:
    """PyTorch runs forward more than once to trace it."""
    model = Keeps().eval()
    gm = trace(model, (X,))
    assert (model.grid, model.calls, model.seen, model.by_size) == (None, 0, [], {})
    assert not hasattr(model.linear, "last")
    assert type(model.step) is torch.Tensor
    assert model.step == 0
    torch.testing.assert_close(outputs(gm, X)[0], model(X))
