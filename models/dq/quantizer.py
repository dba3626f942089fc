"""The quantisers of Degree-Quant (sections 2.2 and 3.2, appendix A.3): affine, one range per tensor.

    q = clamp(round(x / scale + zero_point), low, high)        y = (q - zero_point) * scale

The zero point is added before rounding. scale and zero_point follow from the range (min_val, max_val) that was
observed in training; the range is all the state there is, and bits, signedness and symmetry are configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bgnn.models.dq.bags import Bags

OBSERVERS = ("min_max", "momentum", "percentile", "learned")
GRADIENTS = ("vanilla", "clipped")
FLOAT_BITS = 32
#: A sampled observer looks at no fewer values than have so many beyond the percentile (or at all there are). With few,
#: it would be the sample's extreme value; and ranges only widen, so after some steps the tensor's, uncut.
MIN_TAIL = 100


@dataclass(frozen=True)
class Scheme:
    """How tensors are quantised; plain values, part of a checkpoint's configuration.

    bits: 2 to 16; 32 switches quantisation off (the float twin).
    symmetric: a zero point in the middle of the codes in place of one fitted to the range.
    observer: "min_max" widens the range to all that was seen (Eq. 1), "momentum" is a moving average with rate
        `momentum` (Eq. 2), "percentile" is min_max with the share `percentile` of values cut off at each end. "learned"
        takes the percentiles of the first values seen, and learns the step between codes from there (A.5.4; LSQ).
    gradient: the straight-through estimator: "vanilla" passes gradients unchanged, "clipped" (GC, appendix A.3)
        stops them where the code leaves [low, high].
    noise: the share of a weight's elements that is quantised in a training step; below 1 it is noisy QAT (nQAT).
    sample: the share of a tensor's elements that a percentile observer looks at (A.5.3), or MIN_TAIL / percentile.

    Raises ValueError, one line, on a value out of range.
    """

    bits: int = 8
    symmetric: bool = False
    observer: str = "percentile"
    percentile: float = 0.001
    momentum: float = 0.01
    gradient: str = "clipped"
    noise: float = 1.0
    sample: float = 1.0

    def __post_init__(self) -> None:
        if self.bits != FLOAT_BITS and not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits!r}; it must be 2 to 16, or 32 for no quantisation")
        for name, value, allowed in (("observer", self.observer, OBSERVERS), ("gradient", self.gradient, GRADIENTS)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        if self.observer == "learned" and self.gradient != "clipped":
            raise ValueError(f"gradient is {self.gradient!r}; a learned step needs 'clipped'")
        if not 0 <= self.percentile < 0.5:
            raise ValueError(f"percentile is {self.percentile}; it is a share below 0.5, for example 0.001")
        for name in ("momentum", "noise", "sample"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1")


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest code: [-128, 127] for 8 signed bits, [0, 255] unsigned."""
    low = -(2 ** (bits - 1)) if signed else 0
    return low, low + 2**bits - 1


def affine(min_val: Tensor, max_val: Tensor, low: int, high: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """(scale, zero_point), float32 scalars, that map the observed range onto the codes [low, high].

    The range is widened to hold 0, which is so a code. An empty range (all zeros) gives scale 1 and zero point 0.
    Plain tensor operations: exported, they fold to constants.
    """
    lowest, highest = min_val.clamp(max=0.0), max_val.clamp(min=0.0)
    if symmetric:
        scale = 2 * torch.maximum(-lowest, highest) / (high - low)
        zero_point = torch.full_like(scale, (low + high + 1) // 2)
    else:
        scale = (highest - lowest) / (high - low)
    empty = highest <= lowest
    scale = torch.where(empty, 1.0, scale.clamp(min=torch.finfo(torch.float32).eps))
    if not symmetric:
        zero_point = torch.where(empty, 0.0, low - torch.round(lowest / scale)).clamp(low, high)
    return scale, zero_point


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`x`, any shape, as its codes represent it: float32 of the same shape."""
    codes = torch.clamp(torch.round(x / scale + zero_point), low, high)
    return (codes - zero_point) * scale


class _StraightThrough(torch.autograd.Function):
    """`fake_quantize` with a gradient; the same operations in the same order, in place. `protected` rows stay."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        low: int,
        high: int,
        clipped: bool,
        protected: Tensor | None,
    ) -> Tensor:
        codes = x.div(scale).add_(zero_point).round_()
        ctx.clipped = clipped and ctx.needs_input_grad[0]
        if ctx.clipped:
            y = codes.clamp(low, high)
            outside = y != codes
            if protected is not None:
                outside[protected] = False
            ctx.save_for_backward(outside)
        else:
            y = codes.clamp_(low, high)
        y.sub_(zero_point).mul_(scale)
        if protected is not None:
            y[protected] = x[protected]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if ctx.clipped:
            gradient = gradient.masked_fill(ctx.saved_tensors[0], 0.0)
        return gradient, None, None, None, None, None, None


class _Round(torch.autograd.Function):
    """Rounding that passes the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def learned_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`fake_quantize` with LSQ's gradients (Esser et al., 2020), of `x` and of `scale`.

    Within the codes' range x passes its gradient, and the scale has (q - zero_point) - x / scale; beyond, 0 and
    q - zero_point. LSQ's constant factor on the latter is left out: Adam divides by it.
    """
    codes = torch.clamp(_Round.apply(x / scale + zero_point), low, high)
    return (codes - zero_point) * scale


class Quantizer(nn.Module):
    """Observes a tensor's range while training, and rounds the tensor to the codes of that range.

    A learned step is exp(`log_step`) times the one of the range, a parameter float32 scalar: as a logarithm it changes
    by shares of itself, whatever the size of the tensor's values, and stays positive.

    Buffers `min_val`, `max_val`: float32 scalars, +inf and -inf until data was seen. `signed` says which codes.
    `weight`: this quantiser is of a weight, where noisy QAT applies.
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(self, scheme: Scheme, *, signed: bool = True, weight: bool = False) -> None:
        super().__init__()
        self.scheme = scheme
        self.signed = signed
        self.low, self.high = code_range(scheme.bits, signed)
        self.noise = scheme.noise if weight else 1.0
        #: Whether there is a range. A Python bool, for a forward pass that torch.export can follow.
        self.seen = False
        self.register_buffer("min_val", torch.tensor(float("inf")))
        self.register_buffer("max_val", torch.tensor(float("-inf")))
        if scheme.observer == "learned":
            self.log_step = nn.Parameter(torch.zeros(()))

    def extra_repr(self) -> str:
        return f"bits={self.scheme.bits}, codes=[{self.low}, {self.high}], observer={self.scheme.observer}"

    def forward(self, x: Any, protected: Tensor | None = None) -> Any:
        """`x` `[N, ...]` float32, a tensor or `Bags`, quantised; the same kind and shape.

        `protected` bool `[N]`: rows that stay at full precision and out of the range. Only in training; in eval
        mode every row is quantised. Raises ValueError in eval mode when no range was ever observed.
        """
        if isinstance(x, Bags):
            entries = None if protected is None else protected[x.rows]
            rows = x.shape[0] if protected is None else int((~protected).sum())
            seen = len(x.rows) if entries is None else int((~entries).sum())
            return x.holding(self._quantized(x.values, entries, rows * x.shape[1] - seen))
        return self._quantized(x, protected)

    def _quantized(self, x: Tensor, protected: Tensor | None, zeros: int = 0) -> Tensor:
        """`forward` of a tensor; the observer sees `zeros` zeros besides the values of unprotected rows."""
        if not self.training:
            if not self.seen:
                raise ValueError("a quantiser never saw data: train the model, or run one pass in training mode, first")
            return fake_quantize(x, *self.affine(), self.low, self.high)
        self.observe(x.detach(), protected, zeros)
        if not self.seen:  # every row is protected, and always was
            return x
        scale, zero_point = self.affine()
        if self.scheme.observer == "learned":
            y = learned_quantize(x, scale, zero_point, self.low, self.high)
            if protected is not None:
                y = torch.where(protected.view(-1, *[1] * (x.dim() - 1)), x, y)
        else:
            clipped = self.scheme.gradient == "clipped"
            y = _StraightThrough.apply(x, scale, zero_point, self.low, self.high, clipped, protected)
        if self.noise < 1.0:
            y = torch.where(torch.rand_like(x) < self.noise, y, x)
        return y

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) of the present range, float32 scalars; the scale is a learned one where it is learned."""
        scale, zero_point = affine(self.min_val, self.max_val, self.low, self.high, self.scheme.symmetric)
        return (scale * self.log_step.exp() if self.scheme.observer == "learned" else scale), zero_point

    @torch.no_grad()
    def observe(self, x: Tensor, protected: Tensor | None = None, zeros: int = 0) -> None:
        """Updates the range with the values of `x`, any shape, less those in `protected` rows, and so many zeros.

        Where the step is learned, the first range stays.
        """
        if self.seen and self.scheme.observer == "learned":
            return
        x, zeros = self._looked_at(x, protected, zeros)
        count = x.numel() + zeros
        if count == 0:
            return
        by_share = self.scheme.observer in ("percentile", "learned")
        cut = max(1, int(count * self.scheme.percentile)) if by_share else 1
        lowest, highest = _end(x, zeros, cut, False), _end(x, zeros, cut, True)
        if not self.seen:
            self.min_val.copy_(lowest)
            self.max_val.copy_(highest)
        elif self.scheme.observer == "momentum":
            self.min_val.lerp_(lowest, self.scheme.momentum)
            self.max_val.lerp_(highest, self.scheme.momentum)
        else:
            torch.minimum(self.min_val, lowest, out=self.min_val)
            torch.maximum(self.max_val, highest, out=self.max_val)
        self.seen = True

    def _looked_at(self, x: Tensor, protected: Tensor | None, zeros: int) -> tuple[Tensor, int]:
        """What an observer looks at, all or a sample: values `[M]` of unprotected rows, and how many zeros besides."""
        scheme, total = self.scheme, x.numel() + zeros
        count = total
        if scheme.observer == "percentile" and scheme.sample < 1 and scheme.percentile > 0:
            count = max(int(MIN_TAIL / scheme.percentile), int(total * scheme.sample))
        if count >= total:
            return (x if protected is None else x[~protected]).reshape(-1), zeros
        chosen = torch.randint(total, (count,), device=x.device)
        values = chosen[chosen < x.numel()]
        zeros = count - len(values)
        if protected is not None:
            values = values[~protected[values // (x.numel() // x.shape[0])]]
        return x.reshape(-1)[values], zeros

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.seen = bool(torch.isfinite(self.min_val) & torch.isfinite(self.max_val))


def _end(x: Tensor, zeros: int, k: int, largest: bool) -> Tensor:
    """The k-th largest or smallest, counted from 1, of the values `[M]` and of so many zeros besides: a scalar."""
    if zeros:
        beyond = int((x > 0 if largest else x < 0).sum())
        if beyond < k <= beyond + zeros:
            return x.new_zeros(())
        k -= zeros if k > beyond else 0
    if k > 1:  # topk is several times faster than kthvalue, k being small
        x = x.topk(k, largest=largest, sorted=False)[0]
        largest = not largest
    return x.amax() if largest else x.amin()


class FullPrecision(nn.Module):
    """In a quantiser's place in the float twin: returns what it is given."""

    def forward(self, x: Any, protected: Tensor | None = None) -> Any:
        return x


def quantizer(scheme: Scheme, *, signed: bool = True, weight: bool = False) -> Quantizer | FullPrecision:
    """A quantiser, or, at 32 bits, what stands in its place."""
    return FullPrecision() if scheme.bits == FLOAT_BITS else Quantizer(scheme, signed=signed, weight=weight)


def unseen(model: nn.Module) -> list[str]:
    """The names of the quantisers in `model` that never saw data, so that evaluation would fail."""
    return [name for name, m in model.named_modules() if isinstance(m, Quantizer) and not m.seen]
