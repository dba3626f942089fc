"""The `bgnn::` ops of integer arithmetic: what ONNX Runtime computes on 8-bit codes, in plain PyTorch.

Activations are uint8 codes: a value is `(code - zero_point) * scale`. Weights are int8. A *requantisation* takes an
exact integer to a code: `clamp(round(float32(integer) * multiplier) + zero_point, low, high)`, with the multiplier in
float32 and ties to the even integer; the zero point is added after rounding, as ONNX Runtime does it and unlike
Degree-Quant's own quantiser (converter.verify counts where that shows). `low` and `high`: the codes there are, 0 and
255, or 0 and 15 for 4 bits; a ReLU before the quantiser raises `low` to the zero point. Integer sums are int32 in the
runtime; the passes prove that they fit (passes/accumulators.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bgnn.converter.dialect_graph import define, rows, segment_softmax


def _f32(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float32)


def requantized(integer: Tensor, multiplier: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """`clamp(round(integer * multiplier) + zero_point, low, high)` as uint8; `integer` any dtype, whole values."""
    real = integer.to(torch.float32) * multiplier
    return (torch.round(real.clamp(low - zero_point, high - zero_point)) + zero_point).to(torch.uint8)


def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Real to codes (QuantizeLinear): f32 `[...]` -> u8 `[...]`: `clamp(round(x / scale) + zero_point, low, high)`."""
    real = (x / _f32(scale)).clamp(low - zero_point, high - zero_point)
    return (torch.round(real) + zero_point).to(torch.uint8)


def dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Codes to real (DequantizeLinear): u8 `[...]` -> f32 `[...]`: `(x - zero_point) * scale`."""
    return (x.to(torch.int32) - zero_point).to(torch.float32) * _f32(scale)


def requantize(
    x: Tensor, x_scale: float, x_zero: int, negative_slope: float, y_scale: float, y_zero: int, low: int, high: int
) -> Tensor:
    """Codes to codes of another scale, a leaky ReLU between: u8 `[...]` -> u8 `[...]` (QLinearLeakyRelu).

    `negative_slope` 1 is no activation, 0 a ReLU.
    """
    real = torch.nn.functional.leaky_relu(dequantize(x, x_scale, x_zero), negative_slope)
    return quantize(real, y_scale, y_zero, low, high)


def q_table(x: Tensor, table: Tensor) -> Tensor:
    """Any function of one code: u8 `[..., C]`, `table` u8 `[C, 256]` or `[1, 256]` -> u8 `[..., C]`: table[c, x]."""
    if table.shape[0] == 1:
        return table[0][x.long()]
    return table[torch.arange(x.shape[-1], device=x.device), x.long()]


def _integer_product(x: Tensor, x_zero: int, weight: Tensor, w_zero: int) -> Tensor:
    """Exact: products of codes, summed in float64, which holds whole numbers up to 2^53."""
    return (x.double() - x_zero) @ (weight.double() - w_zero).t()


def q_linear(
    x: Tensor, x_scale: float, x_zero: int, weight: Tensor, w_scales: Tensor, w_zero: int, bias: Tensor | None,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Tensor:  # fmt: skip
    """A dense layer on codes (QLinearConv 1x1): `x` u8 `[..., I]`, `weight` i8 `[O, I]` -> u8 `[..., O]`.

    `w_scales` f32 `[O]` or `[1]`; `bias` i32 `[O]` in units of x_scale * w_scale. The requantisation of
    `sum (x - x_zero) * (w - w_zero) + bias` by `x_scale * w_scale / y_scale`.
    """
    total = _integer_product(x, x_zero, weight, w_zero)
    if bias is not None:
        total = total + bias
    return requantized(total, _f32(x_scale) * w_scales / _f32(y_scale), y_zero, low, high)


def q_linear_float(
    x: Tensor, x_scale: float, x_zero: int, weight: Tensor, w_scales: Tensor, w_zero: int, bias: Tensor | None
) -> Tensor:
    """A dense layer on codes with real output: as `q_linear`, then `* (x_scale * w_scale) + bias`, bias f32 `[O]`.

    Returns f32 `[..., O]`.
    """
    real = _integer_product(x, x_zero, weight, w_zero).to(torch.float32) * (_f32(x_scale) * w_scales)
    return real if bias is None else real + bias


def q_mul(
    a: Tensor, a_scale: float, a_zero: int, b: Tensor, b_scale: float, b_zero: int,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Tensor:  # fmt: skip
    """Product of codes (QLinearMul): u8 `[...]`, u8 `[...]`, broadcast (`[E, F]` by `[E, 1]`) -> u8.

    `(a - a_zero) * (b - b_zero)` by `a_scale * b_scale / y_scale`, in float32. Alone among ONNX Runtime's operators it
    adds the zero point before it rounds: ties go to even codes (as Degree-Quant's do), not to even products.
    """
    product = (a.to(torch.int32) - a_zero) * (b.to(torch.int32) - b_zero)
    real = product.to(torch.float32) * (_f32(a_scale) * _f32(b_scale) / _f32(y_scale)) + y_zero
    return torch.round(real.clamp(low, high)).to(torch.uint8)


def q_add(
    a: Tensor, a_scale: float, a_zero: int, b: Tensor, b_scale: float, b_zero: int,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Tensor:  # fmt: skip
    """Sum of codes (QLinearAdd): u8 `[...]`, u8 `[...]`, broadcast -> u8.

    `clamp(round(((a - a_zero) * a_scale + (b - b_zero) * b_scale) / y_scale) + y_zero, low, high)` in float32.
    """
    real = dequantize(a, a_scale, a_zero) + dequantize(b, b_scale, b_zero)
    return quantize(real, y_scale, y_zero, low, high)


def _segment_total(m: Tensor, m_zero: int, index: Tensor, n: int) -> Tensor:
    codes = m.to(torch.int64) - m_zero
    return codes.new_zeros(n, *m.shape[1:]).scatter_add(0, rows(index, codes), codes)


def q_segment_sum(
    m: Tensor, m_scale: float, m_zero: int, index: Tensor, n: int, y_scale: float, y_zero: int, low: int, high: int
) -> Tensor:
    """Sums of codes over segments: `m` u8 `[E, ...]`, `index` int64 `[E]` in 0..n-1 -> u8 `[n, ...]`.

    The requantisation of the integer `sum (m - m_zero)` by `m_scale / y_scale`; an empty segment gives `y_zero`
    (clamped to [low, high]).
    """
    total = _segment_total(m, m_zero, index, n)
    return requantized(total, _f32(m_scale) / _f32(y_scale), y_zero, low, high)


def q_segment_sum_float(m: Tensor, m_scale: float, m_zero: int, index: Tensor, n: int) -> Tensor:
    """Sums of codes over segments with real output: as `q_segment_sum`, but the integer sum `* m_scale`, f32."""
    return _segment_total(m, m_zero, index, n).to(torch.float32) * _f32(m_scale)


def q_segment_mean(
    m: Tensor, m_scale: float, m_zero: int, index: Tensor, n: int, y_scale: float, y_zero: int, low: int, high: int
) -> Tensor:
    """Means of codes over segments, shapes as `q_segment_sum`: the integer sum by `m_scale / (y_scale * length)`."""
    total = _segment_total(m, m_zero, index, n)
    length = torch.bincount(index, minlength=n).clamp(min=1).reshape(-1, *[1] * (m.dim() - 1))
    multiplier = _f32(m_scale) / (_f32(y_scale) * length.to(torch.float32))
    return requantized(total, multiplier, y_zero, low, high)


def _axis_total(m: Tensor, m_zero: int, axis: int) -> Tensor:
    return (m.to(torch.int64) - m_zero).sum(axis)


def q_sum(
    m: Tensor, m_scale: float, m_zero: int, axis: int, length: Tensor | None,
    y_scale: float, y_zero: int, low: int, high: int,
) -> Tensor:  # fmt: skip
    """Sums of codes along an axis, which goes: u8 `[..., W, F]` -> u8 `[..., F]`.

    The requantisation of the integer `sum (m - m_zero)` by `m_scale / (y_scale * length)`; `length` f32, broadcast,
    makes means of sums (None: 1).
    """
    divisor = _f32(y_scale) if length is None else _f32(y_scale) * length
    return requantized(_axis_total(m, m_zero, axis), _f32(m_scale) / divisor, y_zero, low, high)


def q_sum_float(m: Tensor, m_scale: float, m_zero: int, axis: int) -> Tensor:
    """Sums of codes along an axis with real output: as `q_sum`, but the integer sum `* m_scale`, f32."""
    return _axis_total(m, m_zero, axis).to(torch.float32) * _f32(m_scale)


def q_segment_max(m: Tensor, m_zero: int, index: Tensor, n: int) -> Tensor:
    """The largest code of each segment, shapes as `q_segment_sum`, scale unchanged; an empty segment gives m_zero."""
    filled = torch.full((n, *m.shape[1:]), m_zero, dtype=torch.int32, device=m.device)
    out = filled.scatter_reduce(0, rows(index, m), m.to(torch.int32), "amax", include_self=False)
    return out.to(torch.uint8)


# Fused (`--kernels bgnn`): each is one operator of runtime_bench/kernels/ops.


def q_aggregate(
    x: Tensor, x_scale: float, x_zero: int, edge_index: Tensor, weight: Tensor | None, w_scale: float, w_zero: int,
    msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, n: int, table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Message passing on codes: `x` u8 `[N, F]`, edges int64 `[2, E]`, `weight` u8 `[E]` -> u8 `[n, F]`.

    A target's messages are its sources' rows: `x - x_zero`, in units of x_scale; with a weight `q_mul` of both, codes
    of msg_scale (`msg_low`..`msg_high`) less msg_zero. With msg_scale 0 they are not requantised: without a weight
    the codes themselves, with one the exact products, in units of x_scale * w_scale. Then the requantisation of their
    integer sum; with `table`, u8 `[F, 256]` or `[1, 256]`, `q_table` of its codes.
    """
    source, target = edge_index[0], edge_index[1]
    messages = x.index_select(0, source)
    unit, zero = _f32(x_scale), x_zero
    if weight is not None and msg_scale != 0:
        column = weight.unsqueeze(1)
        messages = q_mul(
            messages, x_scale, x_zero, column, w_scale, w_zero, msg_scale, msg_zero, msg_low, msg_high
        )  # fmt: skip
        unit, zero = _f32(msg_scale), msg_zero
    elif weight is not None:
        messages = (messages.to(torch.int64) - x_zero) * (weight.to(torch.int64).unsqueeze(1) - w_zero)
        unit, zero = unit * _f32(w_scale), 0
    elif msg_scale != 0:
        messages = requantize(messages, x_scale, x_zero, 1.0, msg_scale, msg_zero, msg_low, msg_high)
        unit, zero = _f32(msg_scale), msg_zero
    total = _segment_total(messages, zero, target, n)
    codes = requantized(total, unit / _f32(y_scale), y_zero, low, high)
    return codes if table is None else q_table(codes, table)


def q_gat_aggregate(
    x: Tensor, x_scale: float, x_zero: int, source_score: Tensor, target_score: Tensor, edge_index: Tensor,
    score_scale: float, score_zero: int, score_low: int, score_high: int, negative_slope: float,
    msg_scale: float, msg_zero: int, msg_low: int, msg_high: int,
    y_scale: float, y_zero: int, low: int, high: int, n: int,
) -> Tensor:  # fmt: skip
    """GAT's attention and sum on codes: u8 `[N, H, C]`, scores f32 `[N, H]`, edges int64 `[2, E]` -> u8 `[n, H, C]`.

    Each edge's score is `source_score[j] + target_score[i]`, quantised and dequantised where score_scale is not 0;
    leaky ReLU; softmax over the edges of i in float32 (segment_softmax); the message `quantize(a * x_j, msg_...)`,
    in float32; then the requantisation of the integer sum of `message - msg_zero`.
    """
    source, target = edge_index[0], edge_index[1]
    score = source_score.index_select(0, source) + target_score.index_select(0, target)
    if score_scale != 0:
        score = dequantize(quantize(score, score_scale, score_zero, score_low, score_high), score_scale, score_zero)
    attention = segment_softmax(torch.nn.functional.leaky_relu(score, negative_slope), target, n)
    messages = attention.unsqueeze(-1) * dequantize(x.index_select(0, source), x_scale, x_zero)
    codes = quantize(messages, msg_scale, msg_zero, msg_low, msg_high)
    return q_segment_sum(codes, msg_scale, msg_zero, target, n, y_scale, y_zero, low, high)


def _codes_like(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


def _rows_of_codes(x: Tensor, n: int) -> Tensor:
    return x.new_empty([n, *x.shape[1:]], dtype=torch.uint8)


def _without_axis(m: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return m.new_empty([*m.shape[:axis], *m.shape[axis + 1 :]], dtype=dtype)


_N = 14  # q_aggregate's n, behind x
_Y = "float y_scale, int y_zero, int low, int high"
_X = "Tensor x, float x_scale, int x_zero"
_AB = "Tensor a, float a_scale, int a_zero, Tensor b, float b_scale, int b_zero"
_SEGMENT = "Tensor m, float m_scale, int m_zero, Tensor index, SymInt n"
_WEIGHT = "Tensor weight, Tensor w_scales, int w_zero, Tensor? bias"
_SUM = "Tensor m, float m_scale, int m_zero, int axis"
_MESSAGE = "float msg_scale, int msg_zero, int msg_low, int msg_high"

for _schema, _reference, _fake in (
    ("quantize(Tensor x, float scale, int zero_point, int low, int high) -> Tensor", quantize, _codes_like),
    (
        "dequantize(Tensor x, float scale, int zero_point) -> Tensor",
        dequantize,
        lambda x, scale, zero_point: x.new_empty(x.shape, dtype=torch.float32),
    ),
    (f"requantize({_X}, float negative_slope, {_Y}) -> Tensor", requantize, _codes_like),
    ("q_table(Tensor x, Tensor table) -> Tensor", q_table, _codes_like),
    (
        f"q_linear({_X}, {_WEIGHT}, {_Y}) -> Tensor",
        q_linear,
        lambda x, x_scale, x_zero, weight, *rest: x.new_empty([*x.shape[:-1], weight.shape[0]], dtype=torch.uint8),
    ),
    (
        f"q_linear_float({_X}, {_WEIGHT}) -> Tensor",
        q_linear_float,
        lambda x, x_scale, x_zero, weight, *rest: x.new_empty([*x.shape[:-1], weight.shape[0]], dtype=torch.float32),
    ),
    (f"q_mul({_AB}, {_Y}) -> Tensor", q_mul, lambda a, s, z, b, *rest: _codes_like(a + b)),
    (f"q_add({_AB}, {_Y}) -> Tensor", q_add, lambda a, s, z, b, *rest: _codes_like(a + b)),
    (f"q_segment_sum({_SEGMENT}, {_Y}) -> Tensor", q_segment_sum, lambda m, s, z, i, n, *rest: _rows_of_codes(m, n)),
    (
        f"q_segment_sum_float({_SEGMENT}) -> Tensor",
        q_segment_sum_float,
        lambda m, scale, zero, index, n: m.new_empty([n, *m.shape[1:]], dtype=torch.float32),
    ),
    (f"q_segment_mean({_SEGMENT}, {_Y}) -> Tensor", q_segment_mean, lambda m, s, z, i, n, *rest: _rows_of_codes(m, n)),
    (
        f"q_sum({_SUM}, Tensor? length, {_Y}) -> Tensor",
        q_sum,
        lambda m, s, z, a, *rest: _without_axis(m, a, torch.uint8),
    ),
    (f"q_sum_float({_SUM}) -> Tensor", q_sum_float, lambda m, s, z, axis: _without_axis(m, axis, torch.float32)),
    (
        "q_segment_max(Tensor m, int m_zero, Tensor index, SymInt n) -> Tensor",
        q_segment_max,
        lambda m, zero, index, n: _rows_of_codes(m, n),
    ),
    (
        f"q_aggregate({_X}, Tensor edge_index, Tensor? weight, float w_scale, int w_zero, {_MESSAGE}, {_Y}, SymInt n, "
        "Tensor? table=None) -> Tensor",
        q_aggregate,
        lambda x, *rest: _rows_of_codes(x, rest[_N]),
    ),
    (
        f"q_gat_aggregate({_X}, Tensor source_score, Tensor target_score, Tensor edge_index, float score_scale, "
        f"int score_zero, int score_low, int score_high, float negative_slope, {_MESSAGE}, {_Y}, SymInt n) -> Tensor",
        q_gat_aggregate,
        lambda x, *rest: _rows_of_codes(x, rest[-1]),
    ),
):
    define(_schema, _reference, _fake)
