"""Quantisers: codes and ranges by hand, gradients, observers, noisy QAT, protection, and the state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bgnn.models.dq.bags import Bags
from bgnn.models.dq.quantizer import Quantizer, Scheme, affine, code_range, fake_quantize, quantizer, unseen


def made(low: float, high: float, signed: bool = True, **scheme) -> Quantizer:
    q = Quantizer(Scheme(**{"observer": "min_max", **scheme}), signed=signed)
    q(torch.tensor([low, high]))
    return q


def test_codes_by_hand():
    q = made(-1.0, 3.0, bits=4)  # scale 4/15, zero point -8 - round(-3.75) = -4
    scale, zero_point = q.affine()
    assert scale.item() == pytest.approx(4 / 15)
    assert zero_point.item() == -4
    x = torch.tensor([-5.0, -1.0, 0.0, 0.1, 0.2, 3.0, 9.0])
    codes = torch.tensor([-8.0, -8.0, -4.0, -4.0, -3.0, 7.0, 7.0])
    torch.testing.assert_close(q.eval()(x), (codes + 4) * 4 / 15)


def test_the_zero_point_is_added_before_rounding():
    scale, zero_point = torch.tensor(1.0), torch.tensor(1.0)
    x = torch.tensor([0.5, 1.5])  # round half to even: 1.5 -> 2 and 2.5 -> 2; rounding first gives 1 and 3
    assert fake_quantize(x, scale, zero_point, 0, 255).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("signed", "zero_point"), [(True, 0.0), (False, 8.0)])
def test_symmetric(signed, zero_point):
    q = made(-1.0, 0.5, signed, bits=4, symmetric=True)
    assert [v.item() for v in q.affine()] == pytest.approx([2 / 15, zero_point])


@given(
    ends=st.tuples(
        st.floats(-1e4, 1e4, width=32, allow_subnormal=False), st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
    ),
    bits=st.integers(2, 16),
    signed=st.booleans(),
    symmetric=st.booleans(),
)
def test_zero_is_a_code_and_the_error_is_at_most_half_a_step(ends, bits, signed, symmetric):
    lowest, highest = sorted(ends)
    low, high = code_range(bits, signed)
    scale, zero_point = affine(torch.tensor(lowest), torch.tensor(highest), low, high, symmetric)
    assert low <= zero_point <= high
    assert zero_point == zero_point.round()
    assert fake_quantize(torch.zeros(1), scale, zero_point, low, high).item() == 0.0
    # The zero point is rounded, so the last half step of the range may be cut off.
    x = torch.linspace(min(lowest, 0.0), max(highest, 0.0), 50)
    error = (fake_quantize(x, scale, zero_point, low, high) - x).abs().max()
    assert error <= 1.01 * scale + 1e-3 * x.abs().max()


def test_the_range_of_zeros_is_harmless():
    q = made(0.0, 0.0)
    assert [v.item() for v in q.affine()] == [1.0, 0.0]
    assert q.eval()(torch.zeros(3)).tolist() == [0.0] * 3


def test_observers():
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0])]
    ends = {}
    for observer in ("min_max", "momentum"):
        q = Quantizer(Scheme(observer=observer, momentum=0.25))
        for x in batches:
            q(x)
        ends[observer] = q.min_val.item(), q.max_val.item()
    assert ends == {"min_max": (-3.0, 2.0), "momentum": (-1.5, 1.75)}


def test_percentile_cuts_off_both_ends():
    q = Quantizer(Scheme(observer="percentile", percentile=0.01))
    q(torch.arange(1000.0)[torch.randperm(1000)])
    assert (q.min_val.item(), q.max_val.item()) == (9.0, 990.0)
    q(torch.arange(-20.0, 20.0))
    assert (q.min_val.item(), q.max_val.item()) == (-20.0, 990.0)  # ranges widen, as with min_max


def test_a_sampled_observer_is_near_the_whole():
    torch.manual_seed(0)
    q = Quantizer(Scheme(percentile=0.1, sample=0.05))
    q(torch.rand(100_000))
    assert q.min_val.item() == pytest.approx(0.1, abs=0.02)
    assert q.max_val.item() == pytest.approx(0.9, abs=0.02)


def test_many_small_samples_do_not_widen_the_range_to_the_extremes():
    """A sample of 1000 has one value beyond 0.1 %, its extreme; over 100 steps that is 0.001 % of the tensor."""
    torch.manual_seed(0)
    x = torch.randn(50_000)
    q = Quantizer(Scheme(percentile=0.001, sample=0.01))
    for _ in range(100):
        q(x)
    assert q.max_val.item() == pytest.approx(x.quantile(0.999).item(), rel=0.1)  # 3.09; of 50,000 the largest is 4.2


@pytest.mark.parametrize("percentile", [0.0, 0.001, 0.02, 0.3, 0.45])
@pytest.mark.parametrize("low", [-1.0, 0.0, 0.5])
def test_zeros_of_bags_count_for_the_percentile(percentile, low):
    torch.manual_seed(0)
    x = torch.rand(200, 50) * 2 + low
    x[torch.rand(200, 50) < 0.6] = 0
    protected = torch.arange(200) % 3 == 0
    edges = torch.empty(2, 0, dtype=torch.int64)
    dense, bags = (Quantizer(Scheme(percentile=percentile, observer="percentile", bits=4)) for _ in range(2))
    y, z = dense(x, protected), bags(Bags.of(x, edges), protected)
    assert (dense.min_val, dense.max_val) == (bags.min_val, bags.max_val)
    assert torch.equal(y, z.dense())
    assert torch.equal(dense.eval()(x), bags.eval()(Bags.of(x, edges)).dense())


def test_a_sample_of_bags_is_near_the_whole():
    torch.manual_seed(0)
    x = torch.rand(1000, 200) * (torch.rand(1000, 200) < 0.1)
    q = Quantizer(Scheme(percentile=0.02, sample=0.05))
    q(Bags.of(x, torch.empty(2, 0, dtype=torch.int64)), torch.arange(1000) < 300)
    assert (q.min_val.item(), q.max_val.item()) == (0.0, pytest.approx(0.8, abs=0.03))


@pytest.mark.parametrize(("gradient", "want"), [("vanilla", [1.0, 1.0, 1.0]), ("clipped", [0.0, 1.0, 0.0])])
def test_straight_through_gradients(gradient, want):
    q = made(-1.0, 1.0, gradient=gradient, observer="momentum", momentum=1e-6)
    x = torch.tensor([-2.0, 0.3, 2.0], requires_grad=True)
    q(x).sum().backward()
    assert x.grad.tolist() == want


@pytest.mark.parametrize("signed", [True, False])
def test_training_and_eval_agree_bit_by_bit(signed):
    torch.manual_seed(0)
    q = made(-1.0, 2.0, signed)
    x = torch.rand(1000) * 3 - 1
    assert torch.equal(q(x), q.eval()(x))


def test_protected_rows_stay_as_they_are_and_out_of_the_range():
    q = Quantizer(Scheme(observer="min_max", bits=4))
    x = torch.tensor([[0.1, 1.0], [50.0, 0.123], [0.33, -1.0]])
    protected = torch.tensor([False, True, False])
    y = q(x, protected)
    assert torch.equal(y[1], x[1])
    assert not torch.equal(y[0], x[0])
    assert (q.min_val.item(), q.max_val.item()) == (-1.0, 1.0)
    assert q.eval()(x, protected)[1, 0] < 1.1  # no protection at test time
    fresh = Quantizer(Scheme())
    assert torch.equal(fresh(x, torch.ones(3, dtype=torch.bool)), x)
    assert not fresh.seen


def test_gradients_of_protected_rows_pass():
    q = made(-1.0, 1.0, observer="momentum", momentum=1e-6)
    x = torch.tensor([[-2.0, 0.3], [-2.0, 0.3]], requires_grad=True)
    q(x, torch.tensor([True, False])).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_a_sample_leaves_protected_rows_out():
    q = Quantizer(Scheme(percentile=0.0, sample=0.5))
    x = torch.ones(100, 50)
    x[::2] = 9.0
    q(x, torch.arange(100) % 2 == 0)
    assert q.max_val == 1.0


def test_noisy_qat_quantises_a_share_of_a_weight():
    torch.manual_seed(0)
    scheme = Scheme(bits=4, observer="min_max", noise=0.7)
    x = torch.rand(10_000)
    weight, activation = Quantizer(scheme, weight=True), Quantizer(scheme)
    assert (weight(x) != x).float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert (activation(x) != x).float().mean() > 0.99
    assert (weight.eval()(x) != x).float().mean() > 0.99


def test_a_quantiser_without_data_says_so():
    q = Quantizer(Scheme()).eval()
    with pytest.raises(ValueError, match="never saw data"):
        q(torch.ones(2))
    model = torch.nn.Sequential(q, made(0.0, 1.0))
    assert unseen(model) == ["0"]


def test_state_is_two_scalars_and_loads():
    q = made(-1.0, 2.0)
    assert {key: value.shape for key, value in q.state_dict().items()} == {"min_val": (), "max_val": ()}
    other = Quantizer(Scheme()).eval()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(torch.tensor([0.7])), q.eval()(torch.tensor([0.7])))
    other.load_state_dict(Quantizer(Scheme()).state_dict())
    assert not other.seen


def test_32_bits_is_the_identity():
    x = torch.rand(3)
    assert quantizer(Scheme(bits=32))(x, torch.ones(3, dtype=torch.bool)) is x


@pytest.mark.parametrize(
    "bad",
    [
        {"bits": 1},
        {"bits": 17},
        {"observer": "mean"},
        {"gradient": "x"},
        {"percentile": 0.5},
        {"noise": 0.0},
        {"gradient": "vanilla", "observer": "learned"},
    ],
)
def test_bad_schemes(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Scheme(**bad)


@pytest.mark.parametrize("signed", [True, False])
def test_a_learned_step_has_lsqs_gradients(signed):
    q = made(-1.0, 2.0, signed, bits=4, observer="learned", percentile=0.0)
    first = q.affine()[0].item()
    x = torch.tensor([-3.0, -0.33, 0.0, 0.41, 1.17, 9.0], requires_grad=True)
    y = q(x)
    weight = torch.arange(1.0, 7.0)
    (y * weight).sum().backward()
    scale, zero_point = q.affine()
    codes = torch.round(x / scale + zero_point).clamp(q.low, q.high)
    inside = torch.tensor([0.0, 1, 1, 1, 1, 0])
    assert torch.equal(x.grad, weight * inside)
    of_scale = (weight * (codes - zero_point - inside * x / scale)).sum()
    torch.testing.assert_close(q.log_step.grad, (of_scale * scale).detach())
    torch.testing.assert_close(y, q.eval()(x))
    assert (q.min_val.item(), q.max_val.item()) == (-1.0, 2.0)  # the first range stays
    with torch.no_grad():
        q.log_step.fill_(0.5)
    assert q.affine()[0].item() == pytest.approx(first * 1.6487, rel=1e-4)
    assert q(torch.zeros(3)).tolist() == [0, 0, 0]  # whatever the step, 0 is a code


def test_a_learned_step_learns_a_narrower_range():
    """Values in +-1 and a first one of 6: the step shrinks to what loses least."""
    torch.manual_seed(0)
    q = made(-6.0, 6.0, bits=4, observer="learned", percentile=0.0)
    x = torch.rand(500) * 2 - 1
    optimizer = torch.optim.Adam(q.parameters(), lr=0.02)
    errors = []
    for _ in range(300):
        loss = (q(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert min(errors) == pytest.approx((2 / 15) ** 2 / 12, rel=0.3)
    assert errors[-1] < 0.1 * errors[0]
    assert q.affine()[0].item() == pytest.approx(2 / 15, rel=0.3)


def test_protected_rows_are_nothing_to_a_learned_step():
    q = made(-1.0, 1.0, bits=4, observer="learned", percentile=0.0)
    x = torch.tensor([[0.123, 5.0], [0.2, -0.7]], requires_grad=True)
    y = q(x, torch.tensor([True, False]))
    assert torch.equal(y[0], x[0])
    y[0].sum().backward()
    assert q.log_step.grad.item() == 0
    assert x.grad.tolist() == [[1, 1], [0, 0]]
