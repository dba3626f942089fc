"""Every ATen op, in both runtimes with and without XNNPACK, against PyTorch."""

from __future__ import annotations

import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgnn.converter.errors import ConversionError

aten, bgnn = torch.ops.aten, torch.ops.bgnn

SHAPES = [(7,), (3, 37), (1, 5, 6), (3, 5, 6), (1, 4, 5, 3), (3, 4, 5, 40), (2, 1, 3, 2, 5)]
ELEMENTWISE = {
    "neg": lambda m, x: aten.neg.default(x),
    "abs": lambda m, x: aten.abs.default(x),
    "exp": lambda m, x: aten.exp.default(x),
    "sqrt": lambda m, x: aten.sqrt.default(aten.abs.default(x)),
    "rsqrt": lambda m, x: aten.rsqrt.default(aten.add.Scalar(aten.abs.default(x), 0.5)),
    "tanh": lambda m, x: aten.tanh.default(x),
    "sigmoid": lambda m, x: aten.sigmoid.default(x),
    "relu": lambda m, x: aten.relu.default(x),
    "relu6": lambda m, x: aten.hardtanh.default(aten.mul.Scalar(x, 9.0), 0.0, 6.0),
    "hardtanh": lambda m, x: aten.hardtanh.default(x),
    "clamp": lambda m, x: aten.clamp.default(x, -0.3, 0.7),
    "clamp_min": lambda m, x: aten.clamp.default(x, -0.3),
    "clamp_max": lambda m, x: aten.clamp.default(x, None, 0.7),
    "leaky_relu": lambda m, x: aten.leaky_relu.default(x, 0.2),
    "square": lambda m, x: aten.square.default(x),
    "pow 2": lambda m, x: aten.pow.Tensor_Scalar(x, 2),
    "pow 3": lambda m, x: aten.pow.Tensor_Scalar(aten.abs.default(x), 3.0),
    "pow 0.5": lambda m, x: aten.pow.Tensor_Scalar(aten.abs.default(x), 0.5),
    "add scalar": lambda m, x: aten.add.Tensor(x, 2.5, alpha=2),
    "sub scalar": lambda m, x: aten.sub.Scalar(x, 1.5),
    "mul scalar": lambda m, x: aten.mul.Tensor(x, -3),
    "div scalar": lambda m, x: aten.div.Scalar(x, 3.0),
    "softmax": lambda m, x: aten.softmax.int(x, -1),
    "_softmax": lambda m, x: aten._softmax.default(x, -1, False),
    "log_softmax": lambda m, x: aten.log_softmax.int(x, -1),
    "_log_softmax": lambda m, x: aten._log_softmax.default(x, -1, False),
    "log": lambda m, x: aten.log.default(aten.abs.default(x)),
    "sin": lambda m, x: aten.sin.default(x),
    "cos": lambda m, x: aten.cos.default(x),
    "round": lambda m, x: aten.round.default(aten.mul.Scalar(x, 3.0)),
    "floor": lambda m, x: aten.floor.default(aten.mul.Scalar(x, 3.0)),
    "ceil": lambda m, x: aten.ceil.default(aten.mul.Scalar(x, 3.0)),
    "gelu": lambda m, x: aten.gelu.default(x),
    "gelu by tanh": lambda m, x: aten.gelu.default(x, approximate="tanh"),
    "silu": lambda m, x: aten.silu.default(x),
    "elu": lambda m, x: aten.elu.default(x),
    "scaled elu": lambda m, x: aten.elu.default(x, 0.7, 1.3, 2.0),
    "softplus": lambda m, x: aten.softplus.default(aten.mul.Scalar(x, 30.0)),
    "scaled softplus": lambda m, x: aten.softplus.default(x, 2.0, 1.0),
    "reciprocal": lambda m, x: aten.reciprocal.default(aten.add.Tensor(aten.abs.default(x), 0.5)),
    "masked_fill": lambda m, x: aten.masked_fill.Scalar(x, aten.gt.Scalar(x, 0.3), -2.0),
    "logical": lambda m, x: aten.where.self(
        aten.logical_and.default(aten.gt.Scalar(x, -1.0), aten.logical_not.default(aten.gt.Scalar(x, 1.0))),
        x,
        aten.neg.default(x),
    ),
    "clone": lambda m, x: aten.add.Tensor(aten.clone.default(x), aten.contiguous.default(x)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(check, name, shape):
    check(ELEMENTWISE[name], torch.randn(shape))


@pytest.mark.parametrize("name", ["neg", "abs", "relu", "square", "add scalar", "mul scalar", "div scalar"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_elementwise_integers(check, name, dtype):
    check(
        ELEMENTWISE[name] if name != "add scalar" else lambda m, x: aten.add.Tensor(x, 5), integers(3, 5, dtype=dtype)
    )


def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(-9, 10, shape, dtype=dtype)


# Equal shapes, either side broadcasting, ranks that differ, and rank 5 and 6, where kernels broadcast 4 axes.
PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((1, 5, 1), (3, 1, 4)),
    ((2, 3, 1, 5), (2, 3, 4, 5)),
    ((), (2, 3)),
    ((2, 3, 4, 5, 6), (2, 3, 4, 5, 6)),
    ((2, 3, 4, 5, 6), (6,)),
    ((2, 1, 3, 4, 1), (2, 3, 1, 4, 5)),
    ((2, 1, 3, 1, 2, 1), (1, 3, 1, 2, 1, 4)),
]
BINARY = {
    **{name: getattr(aten, name).Tensor for name in ("add", "sub", "mul", "gt", "ge", "lt", "le", "eq", "ne")},
    **{name: getattr(aten, name).default for name in ("maximum", "minimum")},
}


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize("name", BINARY)
def test_binary(check, name, left, right):
    op = BINARY[name]
    check(lambda m, x, y: (op(x, y), op(y, x)), torch.randn(left), torch.randn(right))
    check(lambda m, x, y: op(x, y), integers(*left), integers(*right))


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_division_and_xor(check, left, right):
    check(lambda m, x, y: aten.div.Tensor(x, y), torch.randn(left), torch.randn(right).abs() + 0.5)
    check(lambda m, x, y: aten.bitwise_xor.Tensor(x, y), integers(*left), integers(*right))


def test_xor_of_booleans(check):
    check(
        lambda m, x, y: aten.bitwise_xor.Tensor(aten.gt.Scalar(x, 0.0), aten.gt.Scalar(y, 0.0)),
        torch.randn(3, 4),
        torch.randn(3, 4),
    )


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_where(check, left, right):
    check(lambda m, x, y: aten.where.self(aten.gt.Scalar(x, 0.1), x, y), torch.randn(left), torch.randn(right))


def test_mixed_dtypes_are_promoted(check):
    check(lambda m, x, y: aten.add.Tensor(x, y), torch.randn(3, 4), integers(4))
    check(lambda m, x: aten.gt.Scalar(x, 0.5), integers(3, 4))
    check(lambda m, x, y: aten.where.self(aten.ge.Tensor(x, y), x, y), torch.randn(3, 4), integers(3, 4))


def test_casts(check):
    check(lambda m, x: aten._to_copy.default(x, dtype=torch.int32), torch.randn(3, 4) * 5)
    check(lambda m, x: aten.to.dtype(x, torch.float32), integers(3, 4, dtype=torch.int64))
    check(lambda m, x: aten._to_copy.default(aten.gt.Scalar(x, 0.0), dtype=torch.float32), torch.randn(3, 4))
    check(lambda m, x: aten._to_copy.default(x, dtype=torch.int64), integers(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slopes", [1, None])
def test_prelu(check, shape, slopes):
    x = torch.randn(shape)
    check(lambda m, x: bgnn.prelu(x, m.slopes), x, slopes=torch.randn(slopes or shape[-1]))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((7,), [0]), ((3, 5), [-1]), ((3, 5), []), ((2, 5, 6), [1]), ((2, 3, 4, 5), [2]), ((2, 3, 4, 5), [1, -1]),
     ((2, 3, 4, 1, 5), [0, 3])],
)  # fmt: skip
@pytest.mark.parametrize("name", ["amax", "amin", "mean", "sum"])
def test_reductions(check, name, shape, dims, keep):
    op = {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList}.get(name) or getattr(aten, name).default
    check(lambda m, x: op(x, dims, keep), torch.randn(shape))
    if name != "mean":
        check(lambda m, x: op(x, dims, keep), integers(*shape))


SHAPING = {
    "view": ((2, 6, 5), lambda m, x: aten.view.default(x, [3, -1, 2])),
    "view same": ((2, 6), lambda m, x: aten.view.default(x, [2, 6])),
    "view to scalar": ((1, 1), lambda m, x: aten.view.default(x, [])),
    "view of scalar": ((), lambda m, x: aten.view.default(x, [1, 1])),
    "reshape": ((2, 6, 5), lambda m, x: aten.reshape.default(x, [-1])),
    "unsqueeze": ((2, 6), lambda m, x: aten.unsqueeze.default(x, -1)),
    "squeeze": ((2, 1, 6), lambda m, x: aten.squeeze.dim(x, 1)),
    "squeeze nothing": ((2, 1, 6), lambda m, x: aten.squeeze.dim(x, 0)),
    "permute": ((2, 3, 4), lambda m, x: aten.permute.default(x, [0, 2, 1])),
    "permute 4": ((2, 3, 4, 5), lambda m, x: aten.permute.default(x, [0, -1, 1, 2])),
    "permute 5": ((2, 3, 4, 5, 2), lambda m, x: aten.permute.default(x, [4, 0, 3, 1, 2])),
    "permute of ones": ((1, 3, 1, 5), lambda m, x: aten.permute.default(x, [2, 1, 0, 3])),
    "transpose": ((2, 3, 4), lambda m, x: aten.transpose.int(x, 0, -1)),
    "t": ((2, 3), lambda m, x: aten.t.default(x)),
    "expand": ((2, 1, 4), lambda m, x: aten.expand.default(x, [-1, 5, 4])),
    "expand rank": ((3, 1), lambda m, x: aten.expand.default(x, [2, 3, 6])),
    "expand 4": ((2, 3, 1, 4), lambda m, x: aten.expand.default(x, [2, 3, 7, 4])),
    "cat": ((2, 3, 4), lambda m, x: aten.cat.default([x, aten.neg.default(x), x], -1)),
    "cat first": ((2, 3), lambda m, x: aten.cat.default([x, aten.neg.default(x)])),
    "cat one": ((2, 3), lambda m, x: aten.cat.default([x])),
    "slice": ((3, 9), lambda m, x: aten.slice.Tensor(x, 1, 2, 7)),
    "slice to end": ((3, 9), lambda m, x: aten.slice.Tensor(x, -1, -4, 2**63 - 1)),
    "slice all": ((3, 9), lambda m, x: aten.slice.Tensor(x, 0, 0, 2**63 - 1)),
    "slice by step": ((3, 9, 2), lambda m, x: aten.slice.Tensor(x, 1, 1, 8, 3)),
    "slice rank 6": ((2, 1, 4, 2, 1, 3), lambda m, x: aten.slice.Tensor(x, 2, 1, 3)),
    "select": ((3, 4, 5), lambda m, x: aten.select.int(x, 1, 2)),
    "select last": ((3, 4, 5), lambda m, x: aten.select.int(x, -1, -1)),
    "select to scalar": ((5,), lambda m, x: aten.select.int(x, 0, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPING)
def test_shaping(check, name):
    shape, function = SHAPING[name]
    check(function, torch.randn(shape), tolerance=0)
    check(function, torch.randint(-(2**31), 2**31, shape).int() if "cat" not in name else integers(*shape))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(check, shape, bias):
    constants = {"weight": torch.randn(9, shape[-1])} | ({"bias": torch.randn(9)} if bias else {})
    check(lambda m, x: aten.linear.default(x, m.weight, m.bias if bias else None), torch.randn(shape), **constants)


PRODUCTS = [((4, 6), (6, 5)), ((3, 4, 6), (3, 6, 5)), ((1, 4, 6), (1, 6, 5)), ((2, 3, 4, 6), (2, 3, 6, 5)),
            ((2, 1, 3, 4, 6), (2, 2, 3, 6, 5))]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), PRODUCTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul(check, left, right, transposed):
    order = [*range(len(right) - 2), len(right) - 1, len(right) - 2]

    def product(m, x, y):
        return aten.matmul.default(x, aten.permute.default(y, order) if transposed else y)

    y = torch.randn(right).permute(order).contiguous() if transposed else torch.randn(right)
    file = check(product, torch.randn(left), y)
    assert operators(file).count("TRANSPOSE") == 0


def test_bmm_and_mm(check):
    check(lambda m, x, y: aten.bmm.default(x, y), torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    check(lambda m, x: aten.mm.default(x, m.y), torch.randn(3, 4), y=torch.randn(4, 5))


def test_a_transpose_that_others_read_is_emitted(check):
    def product(m, x):
        t = aten.permute.default(x, [0, 2, 1])
        return aten.matmul.default(x, t), aten.neg.default(t)

    assert operators(check(product, torch.randn(2, 3, 4))).count("TRANSPOSE") == 1


def test_a_transposed_first_operand(check):
    def product(m, x):
        t = aten.permute.default(x, [0, 2, 1])
        return aten.matmul.default(t, t)

    check(product, torch.randn(2, 4, 4))


TOPK = {
    "topk": lambda m, x: pair(aten.topk.default(x, 4)),
    "topk smallest": lambda m, x: pair(aten.topk.default(x, 4, -1, False)),
    "topk_lowest": lambda m, x: pair(bgnn.topk_lowest(x, 4, -1, True)),
    "topk_lowest smallest": lambda m, x: pair(bgnn.topk_lowest(x, 4, -1, False)),
}


def pair(result):
    return result[0], result[1]


@pytest.mark.parametrize("name", TOPK)
@pytest.mark.parametrize("shape", [(9,), (3, 4), (1, 5, 11), (3, 5, 40)])
def test_topk(check, name, shape):
    check(TOPK[name], torch.randperm(torch.Size(shape).numel()).view(shape).float(), tolerance=0)
    check(TOPK[name], torch.randperm(torch.Size(shape).numel()).view(shape).int())


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_equal_values_go_to_the_lowest_index(check, largest, dtype):
    x = torch.randint(-2, 3, (6, 50)).to(dtype)
    check(lambda m, x: pair(bgnn.topk_lowest(x, 20, -1, largest)), x, tolerance=0)


def test_topk_smallest_of_extreme_integers(check):
    x = torch.tensor([[5, -(2**31), 2**31 - 1, -(2**31), 0]], dtype=torch.int32)
    check(lambda m, x: pair(bgnn.topk_lowest(x, 5, -1, False)), x)


@pytest.mark.parametrize("op", ["topk", "softmax", "log_softmax"])
def test_an_inner_axis_is_refused(graph, emitted, op):
    calls = {
        "topk": lambda m, x: bgnn.topk_lowest(x, 2, 0, True)[1],
        "softmax": lambda m, x: aten.softmax.int(x, 0),
        "log_softmax": lambda m, x: aten.log_softmax.int(x, 0),
    }
    with pytest.raises(ConversionError, match=rf"{op}.* axis 0: permute"):
        emitted(graph(calls[op], [torch.randn(3, 4)]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [1, 7, 64])
@pytest.mark.parametrize("kind", ["float", "words", "bool"])
def test_gather_nodes(check, batch, channels, kind):
    x = torch.randn(batch, 9, channels)
    x = {"float": x, "words": x.view(torch.int32), "bool": x > 0}[kind]
    check(lambda m, x, index: bgnn.gather_nodes(x, index), x, torch.randint(0, 9, (batch, 5, 4)), tolerance=0)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_select(check, dim):
    check(lambda m, x, i: aten.index_select.default(x, dim, i), torch.randn(4, 5, 6), torch.tensor([3, 0, 3]))
    check(lambda m, x: aten.index_select.default(x, dim, m.i), torch.randn(4, 5, 6), i=torch.tensor([1, 2]))


def operators(file: bytes) -> list[str]:
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[op.opcodeIndex] for op in model.subgraphs[0].operators]


RELUS = {
    "relu": aten.relu.default,
    "relu6": lambda x: aten.hardtanh.default(x, 0.0, 6.0),
    "hardtanh": lambda x: aten.clamp.default(x, -1.0, 1.0),
}
FUSING = {
    "linear": lambda m, x: aten.linear.default(x, m.weight),
    "add": lambda m, x: aten.add.Tensor(x, m.row),
    "mul": lambda m, x: aten.mul.Tensor(x, m.row),
}
CONSTANTS = {"linear": {"weight": torch.randn(4, 4) * 5}, "add": {"row": torch.randn(4) * 5}}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("op", FUSING)
def test_an_only_user_relu_is_fused(check, op, relu):
    constants = CONSTANTS.get(op, CONSTANTS["add"])
    file = check(lambda m, x: RELUS[relu](FUSING[op](m, x)), torch.randn(3, 4), **constants)
    assert len(operators(file)) == 1
    file = check(
        lambda m, x: (lambda y: (RELUS[relu](y), aten.neg.default(y)))(FUSING[op](m, x)),
        torch.randn(3, 4),
        **constants,
    )
    assert len(operators(file)) == 3


def test_a_relu_of_integers_is_not_fused(check):
    check(lambda m, x: aten.relu.default(aten.add.Tensor(x, 1)), integers(3, 4))


def test_relu_fused_over_an_output_is_not(check):
    check(lambda m, x: (lambda y: (y, aten.relu.default(y)))(aten.add.Tensor(x, 1.0)), torch.randn(3, 4))


def test_a_single_element_of_many_axes_broadcasts(check):
    check(lambda m, x, y: aten.sub.Tensor(x, y), torch.randn(1, 1, 1, 1, 1), torch.randn(1))


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, data=st.data())
def test_any_broadcast(check, shape, data):
    """Operands with any axes of length 1 and any leading axes left out."""
    sides = [
        [1 if data.draw(st.booleans()) else n for n in shape][data.draw(st.integers(0, len(shape) - 1)) :]
        for _ in range(2)
    ]
    check(lambda m, x, y: aten.bitwise_xor.Tensor(x, y), *(integers(*side) for side in sides))
    check(lambda m, x, y: aten.sub.Tensor(x, y), *(torch.randn(side) for side in sides))
