"""The operators' two bindings: ONNX Runtime's library and TFLite's delegate give the same bits for the same operands.

TFLite has no int64 here, and its codes are int8, 128 less; files state the outputs' shapes. What only TFLite files
have, edges that are not there, is compared with a list without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from onnx_files import INPUTS, run
from operands import CASES, EDGES, NODES, Arrays, codes, floats, graph, words

from bgnn.converter.tflite.builder import Codes, FileBuilder
from bgnn.converter.tflite.lce_ops import flexbuffer
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

BOTH = [case for case in CASES if case[0] != "WithSelfLoops"]  # TFLite's lists have loops from CooToCsr alone


def on_tflite(
    op: str, attributes: dict[str, Any], given: Arrays, outputs: list[np.ndarray], threads: int = 1
) -> list[np.ndarray]:
    """The operator's outputs, which have the shapes and types of `outputs`; codes from 0."""
    builder = FileBuilder(op)
    tensors, fed, order = [], {}, [name for name, _ in INPUTS[op]]
    while order[-1] not in given:
        order.pop()
    for name in order:
        if name not in given:
            tensors.append(None)
            continue
        array = given[name]
        if array.dtype == np.int64:
            array = array.astype(np.int32)
        if array.dtype == np.uint8 and name != "table":
            array = (array.astype(np.int16) - 128).astype(np.int8)
        fed[name] = array
        plain = Codes((1.0,)) if array.dtype == np.int8 else None
        tensors.append(builder.tensor(name, array.shape, array.dtype, plain))
    dtypes = [np.dtype(np.int8) if out.dtype == np.uint8 else out.dtype for out in outputs]
    made = [
        builder.tensor(f"out{i}", out.shape, dtype, Codes((1.0,)) if dtype == np.int8 else None)
        for i, (out, dtype) in enumerate(zip(outputs, dtypes, strict=True))
    ]
    builder.custom(f"Bgnn{op}", tensors, made, flexbuffer(attributes))
    inputs = [(value_name, value) for value_name, value in zip(order, tensors, strict=True) if value is not None]
    data = builder.finish(inputs, [(f"out{i}", value) for i, value in enumerate(made)], {})
    found = LiteRTInterpreter(data, threads, delegate=True).run(*fed.values())
    return [(a.astype(np.int16) + 128).astype(np.uint8) if a.dtype == np.int8 else a for a in found]


@pytest.mark.parametrize("case", range(len(BOTH)), ids=lambda i: f"{BOTH[i][0]}-{i}")
def test_both_runtimes_give_the_same_bits(case: int) -> None:
    op, attributes, operands = BOTH[case]
    for seed, threads in ((0, 1), (1, 2)):
        given = operands(np.random.default_rng(seed))
        expected = run(op, attributes, **given)
        if op == "CooToCsr":  # TFLite has room for all edges, and for a loop of every node
            entries = expected[1].shape[0]
            most = EDGES + (NODES if attributes["self_loops"] != "none" else 0)
            shapes = [expected[0], np.zeros(most, np.int32), np.zeros(most, np.int32)]
            bounds, sources, places = on_tflite(op, attributes, given, shapes, threads)
            np.testing.assert_array_equal(bounds, expected[0])
            np.testing.assert_array_equal(sources[:entries], expected[1])
            # An edge's number is its place in the list; ONNX's list has no loops that others replace.
            whole = given["edge_index"]
            kept = np.flatnonzero(whole[0] != whole[1]) if most > EDGES else np.arange(EDGES)
            numbers = np.concatenate([kept, EDGES + np.arange(most - EDGES)])
            np.testing.assert_array_equal(places[:entries], numbers[expected[2]])
            continue
        for mine, theirs in zip(on_tflite(op, attributes, given, expected, threads), expected, strict=True):
            np.testing.assert_array_equal(mine.view(np.uint8), theirs.view(np.uint8))


def test_every_operator_of_the_list_is_tried() -> None:
    """But for the one whose lists are of int64."""
    assert set(INPUTS) - {op for op, _, _ in BOTH} == {"WithSelfLoops"}


# The operators that are one of runtime_bench/kernels' kernels: all sizes follow from shapes and attributes.
SIGNS = list(INPUTS)[list(INPUTS).index("HammingKnn") :]
PLANNED = [case for case in CASES if case[0] in SIGNS]


def changed(attributes: dict[str, Any], given: Arrays) -> Iterator[tuple[dict[str, Any], Arrays]]:
    """One operand, or attribute, with another rank, size or value; few of them are still right."""
    for name, array in given.items():
        variants = [
            array[None],
            array[:0],
            array[..., :0],
            *(np.concatenate([array, array], axis) for axis in range(array.ndim)),
        ]
        if name == "neighbours":
            variants += [np.where(array == array.flat[-1], value, array) for value in (-1, 12, 2**31 - 1)]
        for variant in variants:
            yield attributes, {**given, name: np.ascontiguousarray(variant)}
    for name in attributes:
        for value in (-(2**63), -1, 0, 1, 2, 13, 97, 65536, 2**30, 2**62):
            yield {**attributes, name: value}, given


def outcome(runtime: Callable[[], list[np.ndarray]], place: str) -> str | list[bytes]:
    """The outputs, or the reason why there are none: what follows on the operator's place in the file."""
    try:
        return [array.tobytes() for array in runtime()]
    except Exception as error:
        said = str(error).partition(f"{place}: ")[2].partition("\n")[0]
        return said.partition(".Node number")[0].removesuffix(".") or repr(error)  # LiteRT goes on in the same line


@pytest.mark.parametrize("case", range(len(PLANNED)), ids=lambda i: f"{PLANNED[i][0]}-{i}")
def test_both_runtimes_refuse_the_same_with_the_same_words(case: int) -> None:
    op, good, operands = PLANNED[case]
    right = operands(np.random.default_rng(0))
    out = run(op, good, **right)
    refused = 0
    for attributes, given in changed(good, right):
        onnx = outcome(lambda a=attributes, g=given: run(op, a, **g), f"bgnn.{op} (node 'the_{op}')")
        tflite = outcome(lambda a=attributes, g=given: on_tflite(op, a, g, out), f"Bgnn{op} (operator 0 of the file)")
        assert onnx == tflite, (attributes, {name: array.shape for name, array in given.items()})
        refused += isinstance(onnx, str)
    assert refused >= len(right) + 3 * len(good)


def test_a_text_is_no_number() -> None:
    """Of an attribute that may be left out, which is 0 then, but nothing else."""
    given = {"x": words(np.random.default_rng(0), 1, 5, 1)}
    attributes = {"channels": 32, "k": 2}
    plain = run("HammingKnn", attributes, **given)
    np.testing.assert_array_equal(run("HammingKnn", {**attributes, "largest": 0}, **given), plain)
    for wrong in ("yes", 1.0):
        with pytest.raises(BgnnError, match="no usable int attribute largest"):
            run("HammingKnn", {**attributes, "largest": wrong}, **given)


def test_edges_that_are_not_there() -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, NODES, (2, EDGES))
    there = rng.random(EDGES) < 0.6
    gaps = np.where(there, index, -1)
    expected = run("CooToCsr", {"self_loops": "none"}, edge_index=index[:, there], num_nodes=np.array([NODES]))
    shapes = [expected[0], np.zeros(EDGES, np.int32), np.zeros(EDGES, np.int32)]
    found = on_tflite("CooToCsr", {"self_loops": "none"}, {"edge_index": gaps, "num_nodes": np.array([NODES])}, shapes)
    entries = int(there.sum())
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1][:entries], expected[1])
    np.testing.assert_array_equal(found[2][:entries], np.flatnonzero(there)[expected[2]])
    # A sum over what is there, weights in the places of the whole list.
    x, weight = floats(rng, NODES, 9), floats(rng, EDGES)
    small = {"x": x, "indptr": expected[0], "indices": expected[1], "weight": weight[there], "edges": expected[2]}
    (sums,) = run("Aggregate", {"reduce": "sum"}, **small)
    given = {"x": x, "indptr": found[0], "indices": found[1], "weight": weight, "edges": found[2]}
    np.testing.assert_array_equal(on_tflite("Aggregate", {"reduce": "sum"}, given, [sums])[0], sums)


def test_what_a_file_gets_wrong_is_one_line() -> None:
    rng = np.random.default_rng(0)
    given = {"x": floats(rng, NODES, 4), **graph(rng)}
    out = [np.zeros((NODES, 4), np.float32)]
    for op, attributes, changed, outputs, message in (
        ("Aggregate", {"reduce": "most"}, {}, out, "reduce is none of 'sum', 'mean' and 'max'"),
        ("Aggregate", {}, {}, out, "its options are not a flexbuffer map|its options have no reduce"),
        ("Aggregate", {"reduce": 3}, {}, out, "its option reduce is of another type"),
        ("Aggregate", {"reduce": "sum"}, {"x": codes(rng, NODES, 4)}, out, "x must be float32"),
        ("Aggregate", {"reduce": "sum"}, {}, [out[0].astype(np.int32)], "output 0 must be float32"),
        ("Aggregate", {"reduce": "sum"}, {"indices": given["indices"] + 900}, out, r"indices\[0\] = .* is not one of"),
        ("Aggregate", {"reduce": "sum"}, {"indptr": given["indptr"][::-1].copy()}, out, "indptr goes from 140 to 0"),
        ("Aggregate", {"reduce": "sum"}, {"indptr": given["indptr"] * 2}, out, "indptr goes from 0 to 280"),
    ):
        with pytest.raises(BgnnError, match=message):
            on_tflite(op, attributes, {**given, **changed}, outputs)
    # A shape that the inputs tell is theirs, whatever the file says; another is the file's.
    assert on_tflite("Aggregate", {"reduce": "sum"}, given, [out[0][1:]])[0].shape == (NODES, 4)
    assert on_tflite("Pack", {}, {"x": given["x"]}, [np.zeros((NODES, 2), np.int32)])[0].shape == (NODES, 1)
    edge = {"edge_index": np.array([[0, 1], [1, -1]]), "num_nodes": np.array([3])}
    shapes = [np.zeros(4, np.int32), np.zeros(2, np.int32), np.zeros(2, np.int32)]
    with pytest.raises(BgnnError, match="output 0 has another shape in the file"):
        on_tflite(
            "CooToCsr", {"self_loops": "none"}, {**edge, "edge_index": np.zeros((2, 2), int)}, shapes[1:] + shapes[:1]
        )
    with pytest.raises(BgnnError, match=r"edge_index\[1, 1\] = -1 is not one of the 3 nodes"):
        on_tflite("CooToCsr", {"self_loops": "none"}, edge, shapes)
