"""The file as a whole: names, signature, metadata, probes, determinism, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from bgnn.converter.errors import ConversionError, UsageError
from bgnn.converter.tflite import emit
from bgnn.converter.tflite.emit import supported_ops
from bgnn.runtime_bench.runtime.tflite_runner import run_file

aten, bgnn = torch.ops.aten, torch.ops.bgnn


def parsed(file: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))


def node_of(gm, name):
    return next(node for node in gm.graph.nodes if node.name.startswith(name))


@pytest.fixture
def two_by_two(graph):
    """Two inputs, two outputs, whose order and shapes all differ."""
    return graph(lambda m, x, y: (aten.neg.default(y), aten.add.Tensor(x, 1.0)), [torch.randn(2, 3), torch.randn(4)])


def test_names_signature_and_metadata(two_by_two):
    file = emit(
        two_by_two,
        name="a model",
        input_names=["points", "other"],
        output_names=["negated", "more"],
        metadata={"bgnn.version": "1", "bgnn.report": "grün"},
    )
    model = parsed(file)
    assert model.version == 3
    assert model.description == b"a model"
    assert file[4:8] == b"TFL3"
    text = {entry.name.decode(): bytes(model.buffers[entry.buffer].data).decode() for entry in model.metadata}
    assert text == {"bgnn.version": "1", "bgnn.report": "grün"}
    interpreter = Interpreter(model_content=file)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["other", "points"], "outputs": ["more", "negated"]}
    }
    runner = interpreter.get_signature_runner("serving_default")
    found = runner(points=np.ones((2, 3), np.float32), other=np.ones(4, np.float32))
    np.testing.assert_array_equal(found["negated"], -np.ones(4))
    np.testing.assert_array_equal(found["more"], 2 * np.ones((2, 3)))
    assert [d["name"] for d in interpreter.get_input_details()] == ["points", "other"]
    assert [d["name"] for d in interpreter.get_output_details()] == ["negated", "more"]


def test_outputs_come_in_the_graphs_order(two_by_two, emitted):
    inputs = [np.ones((2, 3), np.float32), np.ones(4, np.float32)]
    first, second = run_file(emitted(two_by_two), inputs)
    assert (first.shape, second.shape) == ((4,), (2, 3))


def test_names_must_fit_the_graph(two_by_two):
    with pytest.raises(UsageError, match="2 inputs and 2 outputs"):
        emit(two_by_two, name="", input_names=["x"], output_names=["a", "b"], metadata={})


def test_probes_follow_the_outputs(graph, emitted):
    x = torch.randn(2, 3)
    gm = graph(lambda m, x: aten.relu.default(aten.mul.Tensor(aten.neg.default(x), m.row)), [x], row=torch.randn(3))
    probes = {"scaled": node_of(gm, "mul"), "input": node_of(gm, "x0"), "constant": node_of(gm, "row")}
    file = emitted(gm, probes)
    names = [d["name"] for d in Interpreter(model_content=file).get_output_details()]
    assert names == ["out0", "scaled", "input", "constant"]
    out, scaled, same, row = run_file(file, [x.numpy()])
    np.testing.assert_allclose(scaled, -x * gm.row)
    np.testing.assert_array_equal(out, np.maximum(scaled, 0))
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(row, gm.row)


def test_a_probe_keeps_the_transpose_that_a_product_would_swallow(graph, emitted):
    x = torch.randn(2, 3, 4)
    gm = graph(lambda m, x: aten.matmul.default(x, aten.permute.default(x, [0, 2, 1])), [x])
    product, transposed = run_file(emitted(gm, {"t": node_of(gm, "permute")}), [x.numpy()])
    np.testing.assert_array_equal(transposed, x.permute(0, 2, 1))
    np.testing.assert_allclose(product, x @ x.permute(0, 2, 1), rtol=1e-5, atol=1e-5)


def test_a_tuple_is_no_probe(graph, emitted):
    gm = graph(lambda m, x: aten.topk.default(x, 2)[0], [torch.randn(3, 4)])
    with pytest.raises(UsageError, match=r"probe p: topk.* tuple"):
        emitted(gm, {"p": node_of(gm, "topk")})


def test_inputs_constants_and_repeats_can_be_outputs(check):
    x = torch.randn(2, 3)
    check(lambda m, x: (x, m.row, aten.relu.default(x), x, aten.clone.default(x)), x, row=torch.randn(3))
    check(lambda m, x: (lambda y: (y, aten.view.default(y, [2, 3]), y))(aten.neg.default(x)), x)


def test_equal_constants_are_stored_once(graph, emitted):
    big = torch.randn(64, 64)
    gm = graph(
        lambda m, x: aten.add.Tensor(aten.linear.default(x, m.a), aten.linear.default(x, m.b)),
        [torch.randn(2, 64)],
        a=big,
        b=big.clone(),
    )
    file = emitted(gm)
    assert file.count(big.numpy().tobytes()) == 1
    assert file.index(big.numpy().tobytes()) % 16 == 0


def test_unused_constants_are_left_out(graph, emitted):
    gm = graph(lambda m, x: (m.unused, aten.neg.default(x))[1], [torch.randn(2)], unused=torch.randn(999))
    assert gm.unused.numpy().tobytes() not in emitted(gm)


def test_operator_codes_are_where_old_and_new_readers_look(graph, emitted):
    """Older readers look at the signed byte deprecatedBuiltinCode alone, so codes below 127 stand in both."""
    gm = graph(lambda m, x, y: aten.bitwise_xor.Tensor(bgnn.pack(x), y), [torch.randn(3, 4), torch.zeros(1).int()])
    for code in parsed(emitted(gm)).operatorCodes:
        assert code.deprecatedBuiltinCode == min(code.builtinCode, 127)
        assert code.builtinCode in (schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.BITWISE_XOR)


def test_an_unsupported_op_names_the_users_line(graph, emitted):
    gm = graph(lambda m, x: aten.erfinv.default(x), [torch.randn(3)])
    node_of(gm, "erfinv").meta["stack_trace"] = (
        '  File "/lib/torch/nn/functional.py", line 1, in call\n    inner()\n'
        '  File "/home/me/model.py", line 12, in forward\n    y = torch.erfinv(x)\n'
    )
    with pytest.raises(ConversionError) as error:
        emitted(gm)
    message = str(error.value)
    assert "torch.erfinv (at /home/me/model.py:12: y = torch.erfinv(x))" in message
    assert "rewrite" in message
    assert "docs/ops.md" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (lambda m, x: aten.neg.default(x), [torch.randn(3).double()], "torch.float64"),
        (lambda m, x: aten.add.Tensor(x, m.c), [torch.zeros(1, dtype=torch.int64)], "32 bits"),
        (lambda m, x: aten.reshape.default(x, [1] * 7), [torch.randn(1)], "rank 7"),
        (lambda m, x: aten.matmul.default(x, x), [torch.randn(3)], "vector"),
    ],
)
def test_what_tflite_cannot_express(graph, emitted, function, inputs, message):
    gm = graph(function, inputs, c=torch.tensor([2**31]))
    with pytest.raises(ConversionError, match=message):
        emitted(gm)


def test_supported_ops_are_ops():
    for name in supported_ops():
        if "." in name:  # getitem and sums of sizes are Python's
            namespace, op, overload = name.split(".")
            assert getattr(getattr(getattr(torch.ops, namespace), op), overload)
