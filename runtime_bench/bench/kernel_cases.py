"""Kernels and single operations to be measured: ours on each instruction set, beside what else does the same.

Hamming k-NN alone stands beside FAISS's `IndexBinaryFlat` and usearch's exact search: all search the same random codes
on one thread and must find the same distances; what is done once for the codes is not timed (adding them to an index,
our kernel's search for equal rows). The sum over a large graph's neighbours stands beside what there is in float32
without our operators, and beside a loop that only reads rows. What TFLite's own operators can do about sums over edges
is a gather and UNSORTED_SEGMENT_SUM, a neighbour table, or a product with an adjacency matrix.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from bgnn.runtime_bench.bench import graphs
from bgnn.runtime_bench.bench.cases import Sizes
from bgnn.runtime_bench.bench.measure import measure
from bgnn.runtime_bench.bench.running import Subject, call_subject
from bgnn.runtime_bench.kernels import library
from bgnn.runtime_bench.runtime.errors import BgnnError
from bgnn.runtime_bench.runtime.onnx_ops import session
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel
from bgnn.runtime_bench.runtime.tflite_runner import LiteRTInterpreter

# ------------------------------------------------------------------------------------------ kernels, by instruction set

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """A row of the table: a kernel, its arguments, and how often BF and RF call it."""

    name: str
    kernel: str
    arguments: Arguments
    bf: int
    rf: int


def random_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape, dtype=np.int32)


def random_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def ops(sizes: Sizes) -> list[Op]:
    """What the paper's networks call: four k-NN and edge convolutions (3-64-64-128-256), the dense layer 512-1024 with
    pooling, BF's classifier. Codes are random and no two rows of a cloud equal, so nothing is saved by sharing."""
    rng = np.random.default_rng(0)
    batch, nodes, k = sizes.batch, sizes.points, sizes.k
    neighbours = rng.integers(0, nodes, (batch, nodes, k), dtype=np.int32)
    common = {"batch": batch, "nodes": nodes, "k": k}
    found = np.zeros_like(neighbours)

    def knn(channels: int) -> Arguments:
        x = random_floats(rng, batch, nodes, channels)
        return {"x": x, "neighbours": found, "channels": channels, **common}

    def quantize(channels: int) -> Arguments:
        rows = batch * nodes
        out = np.zeros((rows, channels // 32), np.int32)
        return {"x": random_floats(rng, rows, channels), "out": out, "rows": rows, "channels": channels}

    def hamming_knn(channels: int) -> Arguments:
        x = random_bits(rng, batch, nodes, channels // 32)
        return {"x": x, "neighbours": found, "words": channels // 32, **common}

    def xor_edge_conv(channels: int, outputs: int) -> Arguments:
        return {
            "x": random_bits(rng, batch, nodes, channels // 32),
            "neighbours": neighbours,
            "weights": random_bits(rng, outputs, 2 * channels // 32),
            "thresholds": np.full((1, outputs), channels - 10, np.int32),
            "out": np.zeros((batch, nodes, outputs // 32), np.int32),
            "words": channels // 32,
            "out_channels": outputs,
            "tables": 1,
            **common,
        }

    def bin_edge_conv(channels: int, outputs: int) -> Arguments:
        return {
            "node_bits": random_bits(rng, batch, nodes, channels // 32),
            "x": random_floats(rng, batch, nodes, channels),
            "neighbours": neighbours,
            "edge_scale": random_floats(rng, channels),
            "edge_shift": random_floats(rng, channels),
            "weights": random_bits(rng, outputs, 2 * channels // 32),
            "alpha": random_floats(rng, outputs),
            "beta": random_floats(rng, nodes),
            "gamma": random_floats(rng, k),
            "slope": random_floats(rng, 1),
            "out": np.zeros((batch, nodes, outputs), np.float32),
            "channels": channels,
            "words": channels // 32,
            "out_channels": outputs,
            "betas": nodes,
            "gammas": k,
            "slopes": 1,
            **common,
        }

    edge_max = {
        "x": random_floats(rng, batch, nodes, 64),
        "node": random_floats(rng, batch, nodes, 64),
        "neighbours": neighbours,
        "beta": random_floats(rng, nodes),
        "gamma": random_floats(rng, k),
        "out": np.zeros((batch, nodes, 64), np.float32),
        "channels": 64,
        "betas": nodes,
        "gammas": k,
        **common,
    }
    gather_max = {
        "x": random_floats(rng, batch, nodes, 64),
        "neighbours": neighbours,
        "out": np.zeros((batch, nodes, 64), np.float32),
        "rows": nodes,
        "channels": 64,
        **common,
    }
    dense_pool = {
        "x": random_bits(rng, batch, nodes, 16),
        "weights": random_bits(rng, 1024, 16),
        "out": np.zeros((batch, 4, 1024), np.float32),
        "batch": batch,
        "nodes": nodes,
        "words": 16,
        "channels": 512,
        "out_channels": 1024,
    }
    scaled_pool = {
        **dense_pool,
        "scale": random_floats(rng, nodes),
        "out": np.zeros((batch, 4, 1024), np.float32),
        "scales": nodes,
    }
    ones = dict.fromkeys(
        ["out_height", "out_width", "filter_height", "filter_width", "stride_height", "stride_width"], 1
    )
    classifier = {
        "x": random_bits(rng, batch, 1, 1, 64),
        "weights": random_bits(rng, 512, 1, 1, 64),
        "multiplier": random_floats(rng, 512),
        "bias": random_floats(rng, 512),
        "thresholds": None,
        "out": np.zeros((batch, 1, 1, 512), np.float32),
        "out_bits": None,
        "batch": batch,
        "height": 1,
        "width": 1,
        "words": 64,
        "channels": 2048,
        "groups": 1,
        "out_channels": 512,
        "dilation_height": 1,
        "dilation_width": 1,
        "pad_top": 0,
        "pad_left": 0,
        "pad_one": 1,
        "clamp_min": -(2**31),
        "clamp_max": 2**31 - 1,
        **ones,
    }
    return [
        Op("k-NN, 3-D", "knn", knn(3), 1, 1),
        Op("k-NN, 64-D", "knn", knn(64), 0, 2),
        Op("k-NN, 128-D", "knn", knn(128), 0, 1),
        Op("Hamming k-NN, 64 bits", "hamming_knn", hamming_knn(64), 2, 0),
        Op("Hamming k-NN, 128 bits", "hamming_knn", hamming_knn(128), 1, 0),
        Op("gather + max, 64 floats", "gather_max", gather_max, 1, 0),
        Op("gather + scale + max, 64 floats", "edge_max", edge_max, 0, 1),
        Op("sign + pack, 64", "quantize", quantize(64), 1, 4),
        Op("sign + pack, 128", "quantize", quantize(128), 0, 2),
        Op("sign + pack, 256", "quantize", quantize(256), 0, 1),
        Op("XOR edge conv 64-64", "xor_edge_conv", xor_edge_conv(64, 64), 1, 0),
        Op("XOR edge conv 64-128", "xor_edge_conv", xor_edge_conv(64, 128), 1, 0),
        Op("XOR edge conv 128-256", "xor_edge_conv", xor_edge_conv(128, 256), 1, 0),
        Op("RF edge conv 64-64", "bin_edge_conv", bin_edge_conv(64, 64), 0, 1),
        Op("RF edge conv 64-128", "bin_edge_conv", bin_edge_conv(64, 128), 0, 1),
        Op("RF edge conv 128-256", "bin_edge_conv", bin_edge_conv(128, 256), 0, 1),
        Op("dense 512-1024 + pooling", "dense_pool", dense_pool, 1, 0),
        Op("dense 512-1024 + scales + pooling", "scaled_pool", scaled_pool, 0, 1),
        Op("dense 2048-512", "bconv2d", classifier, 1, 1),
    ]


def kernel_subjects(op: Op, threads: int) -> list[Subject]:
    """A kernel on each instruction set that this processor has."""
    return [
        call_subject(op.name, f"bgnn {isa.isa}", _quiet(partial(isa.call(op.kernel, **op.arguments).run, threads)),
                     isa=isa.isa, BF=op.bf, RF=op.rf)
        for isa in library.runnable()
    ]  # fmt: skip


def _quiet(run: Callable[[], object]) -> Callable[[], None]:
    """A call whose result nobody compares."""

    def quiet() -> None:
        run()

    return quiet


# ----------------------------------------------------------------------------------------------------------------- k-NN

KNN_NODES, KNN_BITS, QUERIES = (1000, 10_000, 100_000), (64, 128, 256, 512, 1024), 1000


def words_per_second() -> float:
    """The processor's popcount roofline: 64-bit words xored and counted a second, by its best instruction."""
    subprocess.run(["make", "-s", "-C", str(library.HERE), "roofline"], check=True)
    roofline = ctypes.CDLL(str(library.build().with_name("roofline.so")))
    run = roofline.roofline_avx512 if roofline.roofline_has_avx512() else roofline.roofline_popcnt
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    data, rounds = library.aligned(4096), 20_000
    data[:] = 0x5A
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run(data.ctypes.data, rounds)
        times.append(time.perf_counter() - start)
    return 512 * rounds / min(times)


def faiss_search(codes: np.ndarray, queries: int, k: int) -> Callable[[], np.ndarray]:
    """FAISS's exact search as a callable that returns distances `[queries, k]`. Raises BgnnError without FAISS."""
    try:
        import faiss  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BgnnError("FAISS is not installed (make .cache/bench/.installed; PYTHONPATH=.cache/bench)") from error
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    index.add(codes)
    return lambda: index.search(codes[:queries], k)[0]


def usearch_search(codes: np.ndarray, queries: int, k: int) -> Callable[[], np.ndarray]:
    """usearch's exact search, likewise."""
    try:
        from usearch.index import MetricKind, search  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BgnnError("usearch is not installed (make .cache/bench/.installed; PYTHONPATH=.cache/bench)") from error

    def run() -> np.ndarray:
        found = search(codes, codes[:queries], k, MetricKind.Hamming, exact=True, threads=1, dtype="b1")
        return found.distances.astype(np.int64)

    return run


def our_search(codes: np.ndarray, queries: int, k: int, isa: library.Kernels) -> Callable[[], np.ndarray]:
    """Our kernel on the first `queries` rows: their neighbours `[queries, k]`."""
    neighbours, (nodes, width) = np.zeros((codes.shape[0], k), np.int32), codes.shape
    call = isa.call(
        "hamming_knn", x=codes.view(np.int32), neighbours=neighbours, batch=1, nodes=nodes, words=width // 4, k=k
    )
    if call.begin() != nodes:
        raise BgnnError("random codes repeat, so the rows cannot be compared one by one")

    def run() -> np.ndarray:
        call.run_items(0, queries)
        return neighbours[:queries]

    return run


def hamming_distances(codes: np.ndarray, queries: int, neighbours: np.ndarray) -> np.ndarray:
    differing = codes[:queries, None] ^ codes[neighbours[:queries]]
    return np.unpackbits(differing, axis=-1).sum(-1, dtype=np.int64)


class _Search:
    """A search that is open; what is compared are the distances that it finds."""

    def __init__(self, run: Callable[[], np.ndarray], distances: Callable[[np.ndarray], np.ndarray]) -> None:
        self._run, self._distances, self._found = run, distances, np.zeros(0)

    def run(self) -> None:
        self._found = self._run()

    def outputs(self) -> list[np.ndarray]:
        return [np.sort(self._distances(self._found), axis=1)]

    def arena_bytes(self) -> None:
        return None


def knn_subjects(nodes: int, bits: int, k: int) -> list[Subject]:
    """Each library's search of the same codes on one thread; the first is our best instruction set's."""
    codes = np.random.default_rng(0).integers(0, 256, (nodes, bits // 8), dtype=np.uint8)
    queries = min(nodes, QUERIES)
    about = {"bits": bits, "nodes": nodes, "words": queries * nodes * bits / 64}
    ours = {f"bgnn {isa.isa}": partial(our_search, codes, queries, k, isa) for isa in library.runnable()}
    others = {"FAISS": partial(faiss_search, codes, queries, k), "usearch": partial(usearch_search, codes, queries, k)}
    found = [
        (name, lambda make=make: _Search(make(), partial(hamming_distances, codes, queries)))
        for name, make in reversed(ours.items())
    ] + [(name, lambda make=make: _Search(make(), np.asarray)) for name, make in others.items()]
    return [Subject(f"{nodes} codes of {bits} bits", name, None, make, None, about) for name, make in found]


# ------------------------------------------------------------------------------------- the sum over a node's neighbours

KERNELS = Path(__file__).resolve().parent.parent / "kernels" / "ort"
LINE = 64  # bytes that memory hands over at once
WIDTH = 2 * LINE  # features
DISTANCES = (64, 96, 128, 192)  # rows asked for ahead, of which the fastest reading loop counts
RANDOM, IN_ORDER, U8, WEIGHTED = "rows at random", "the graph's rows", "u8 codes", "u8 codes, weights"
SCIPY, TORCH, STOCK = "SciPy CSR f32", "PyTorch CSR f32", "stock ONNX f32"
STOCK_FLOAT = (SCIPY, TORCH, STOCK)


def one_operator(op: str, attributes: dict[str, Any], inputs: dict[str, np.ndarray], outputs: list[str]) -> bytes:
    """An ONNX file of one bgnn operator, whose inputs and outputs are the graph's."""
    from onnx import helper

    node = helper.make_node(op, list(inputs), outputs, name=op, domain="bgnn", **attributes)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in inputs.items()
    ]
    dtype = next(iter(inputs.values())).dtype if op != "CooToCsr" else np.dtype(np.int32)
    outs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None) for name in outputs]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bgnn", 1)]
    model = helper.make_model(helper.make_graph([node], op, infos, outs), opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def stock_file(width: int) -> bytes:
    """The sum of neighbours' rows as our converter writes it with stock operators: on neighbour tables."""
    import torch

    from bgnn.converter.api import convert

    class SumOfNeighbours(torch.nn.Module):
        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x).index_add(0, edge_index[1], x.index_select(0, edge_index[0]))

    example = torch.randn(12, width), torch.randint(0, 12, (2, 40))
    done = convert(SumOfNeighbours().eval(), example, target="onnx-x86", name="sum")
    assert done.model_bytes is not None
    return done.model_bytes


def run_operator(
    op: str, attributes: dict[str, Any], inputs: dict[str, np.ndarray], outputs: list[str], threads: int
) -> Callable[[], object]:
    """The operator as a callable."""
    return run_without_copies(session(one_operator(op, attributes, inputs, outputs), threads), inputs, outputs)


def run_without_copies(runner: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> Callable[[], object]:
    """A session as a callable that leaves its outputs in ONNX Runtime's memory."""
    binding = runner.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name in outputs:
        binding.bind_output(name)
    return lambda: runner.run_with_iobinding(binding)


def row_reader() -> ctypes.CDLL:
    """The loop that only reads, built where it is out of date. Raises BgnnError where that fails."""
    build = KERNELS.parents[2] / "build" / "ort"
    made = subprocess.run(
        ["make", "-s", "-C", str(KERNELS), "roofline", f"BUILD={build}"], capture_output=True, text=True
    )
    if made.returncode != 0:
        raise BgnnError(f"the reading loop does not build: {made.stderr.strip()}")
    library = ctypes.CDLL(str(next(build.glob("*/roofline.so"))))
    library.read_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3]
    return library


def read_rows(library: ctypes.CDLL, x: np.ndarray, index: np.ndarray, ahead: int, threads: int) -> Callable[[], None]:
    """Reads x[index], each thread its share of the index."""
    shares = np.array_split(index, threads)

    def read(share: np.ndarray) -> None:
        library.read_rows(x.ctypes.data, share.ctypes.data, share.size, x.shape[1] // LINE, ahead)

    def run() -> None:
        others = [threading.Thread(target=read, args=(share,)) for share in shares[1:]]
        for other in others:
            other.start()
        read(shares[0])
        for other in others:
            other.join()

    return run


def at_lines(array: np.ndarray) -> np.ndarray:
    """A copy that starts with a cache line."""
    memory = np.empty(array.nbytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def aggregate_subjects(nodes: int, edges: int, threads: int) -> list[Subject]:
    """The sum of the neighbours' rows in a power-law graph: our operator on 8-bit codes, its twins on float32 and
    int32 (which show what is due to the 8 bits), and what else sums. Raises BgnnError where a result is wrong."""
    import torch
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    coo = {"edge_index": graphs.power_law(nodes, edges, rng), "num_nodes": np.array(nodes)}
    csr_names, loops = ["indptr", "indices", "edges"], {"self_loops": "none"}
    found = session(one_operator("CooToCsr", loops, coo, csr_names)).run(None, coo)
    graph = dict(zip(csr_names[:2], found[:2], strict=True))
    x = at_lines(rng.integers(0, 256, (nodes, WIDTH), dtype=np.uint8))
    real, whole = at_lines(x.astype(np.float32)), at_lines(x.astype(np.int32))
    weight = rng.integers(0, 256, edges, dtype=np.uint8)
    degree = np.diff(graph["indptr"])

    scales = {"x_scale": 1.0, "x_zero": 0, "y_scale": float(degree.max()), "y_zero": 0, "low": 0, "high": 255}
    plain = {"w_scale": 1.0, "w_zero": 0, "msg_scale": 0.0, "msg_zero": 0, "msg_low": 0, "msg_high": 255}
    codes = {"reduce": "sum", **scales, **plain}
    messages = {**codes, "w_scale": 1 / 255, "msg_scale": 1.0}
    matrix = csr_matrix((np.ones(edges, np.float32), graph["indices"], graph["indptr"]), shape=(nodes, nodes))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse matrices a beta
        csr = [torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data)]
        torch_matrix = torch.sparse_csr_tensor(csr[0], csr[1], csr[2], (nodes, nodes))
    torch_real = torch.from_numpy(real)
    stock = OnnxModel(stock_file(WIDTH), threads)
    feeds = stock.feeds(**dict(zip(stock.input_names, (real, coo["edge_index"]), strict=True)))

    expected = matrix @ real
    for name, sums in ((TORCH, (torch_matrix @ torch_real).numpy()), (STOCK, stock.session.run(None, feeds)[0])):
        if not np.array_equal(sums, expected):
            raise BgnnError(f"{name} differs from SciPy's sum")
    for op, attributes, values, exact in (
        ("QAggregate", codes, x, np.clip(np.rint(expected * np.float32(1 / scales["y_scale"])), 0, 255)),
        ("Aggregate", {"reduce": "sum"}, real, expected),
        ("AggregateInt32", {}, whole, expected),
    ):
        inputs = {"x": values, **graph}
        (got,) = session(one_operator(op, attributes, inputs, ["out"]), threads).run(None, inputs)
        # float32 sums of whole numbers are exact here; a code may be one off through the rounding of 1 / y_scale
        if np.abs(got - exact.astype(np.float64)).max() > (op == "QAggregate"):
            raise BgnnError(f"{op} differs from SciPy's sum")

    def ours(op: str, attributes: dict[str, Any], values: np.ndarray, **more: np.ndarray) -> Callable[[], object]:
        return run_operator(op, attributes, {"x": values, **graph, **more}, ["out"], threads)

    library = row_reader()
    anywhere = rng.integers(0, nodes, edges, dtype=np.int32)
    readers = {ahead: read_rows(library, x, anywhere, ahead, threads) for ahead in DISTANCES}
    times = measure({str(ahead): run for ahead, run in readers.items()}, rounds=3).timings
    ahead = min(DISTANCES, key=lambda one: times[str(one)].wall.min)
    runs: dict[str, Callable[[], object]] = {
        RANDOM: readers[ahead],
        IN_ORDER: read_rows(library, x, graph["indices"], ahead, threads),
        U8: ours("QAggregate", codes, x),
        WEIGHTED: ours("QAggregate", messages, x, weight=weight),
        "f32": ours("Aggregate", {"reduce": "sum"}, real),
        "int32": ours("AggregateInt32", {}, whole),
        SCIPY: lambda: matrix @ real,
        TORCH: lambda: torch_matrix @ torch_real,
        STOCK: run_without_copies(stock.session, feeds, stock.output_names),
        "COO to CSR": run_operator("CooToCsr", loops, coo, csr_names[:2], threads),
    }
    row = edges * WIDTH
    read = {RANDOM: row, IN_ORDER: row, U8: row, WEIGHTED: row}
    read.update(dict.fromkeys(("f32", "int32", *STOCK_FLOAT), 4 * row))
    case = f"sum over {nodes:,} nodes' neighbours, {edges:,} edges, {WIDTH} features"
    names = sorted(runs, key=lambda name: name != U8)
    return [call_subject(case, name, _quiet(runs[name]), row_bytes=read.get(name, 0)) for name in names]


# -------------------------------------------------------------------------------- sums over edges by TFLite's operators

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int32)
SEGMENT_GRAPHS = ((30, 120, 32), (1000, 8000, 64), (2708, 10832, 16), (2708, 10832, 64), (10000, 80000, 64))
MOST_DENSE = 4000  # nodes: beyond it the matrix alone has more than 64 MB


def file_of(inputs: dict[str, np.ndarray], body: Callable[..., None]) -> bytes:
    """A file whose output has x's shape."""
    from bgnn.converter.tflite.builder import FileBuilder

    builder = FileBuilder("segments")
    values = [builder.tensor(name, array.shape, array.dtype) for name, array in inputs.items()]
    out = builder.tensor("sums", inputs["x"].shape, inputs["x"].dtype)
    body(builder, values, out)
    return builder.finish(list(zip(inputs, values, strict=True)), [("sums", out)], {})


def segments(builder: Any, values: list[Any], out: Any) -> None:
    x, source, target = values
    rows = builder.tensor("rows", (*source.shape, *x.shape[1:]), x.dtype)
    builder.builtin("GATHER", [x, source], [rows], schema.GatherOptionsT(axis=0))
    number = builder.constant("number", np.array(x.shape[0], INT))
    builder.builtin("UNSORTED_SEGMENT_SUM", [rows, target, number], [out])


def table(builder: Any, values: list[Any], out: Any) -> None:
    x, neighbours = values
    rows = builder.tensor("rows", (*neighbours.shape, *x.shape[1:]), x.dtype)
    builder.builtin("GATHER", [x, neighbours], [rows], schema.GatherOptionsT(axis=0))
    axis = builder.constant("axis", np.array([1], INT))
    builder.builtin("SUM", [rows, axis], [out], schema.ReducerOptionsT())


def matrix(builder: Any, values: list[Any], out: Any) -> None:
    x, adjacency = values
    builder.builtin("BATCH_MATMUL", [adjacency, x], [out], schema.BatchMatMulOptionsT())


def segment_subjects(nodes: int, edges: int, width: int) -> list[Subject]:
    """The ways on one random graph. Raises AssertionError unless all give the same sums, but for rounding."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((nodes, width)).astype(np.float32)
    source, target = rng.integers(0, nodes, (2, edges)).astype(np.int32)
    degrees = np.bincount(target, minlength=nodes)
    # A row of zeros behind x stands for what the table has free.
    with_zeros = np.concatenate([x, np.zeros((1, width), np.float32)])
    neighbours = np.full((nodes + 1, degrees.max()), nodes, np.int32)
    order = np.argsort(target, kind="stable")
    neighbours[target[order], np.arange(edges) - np.repeat(degrees.cumsum() - degrees, degrees)] = source[order]
    ways = {
        "segments": ({"x": x, "source": source, "target": target}, segments),
        "table": ({"x": with_zeros, "neighbours": neighbours}, table),
    }
    if nodes <= MOST_DENSE:
        adjacency = np.zeros((nodes, nodes), np.float32)
        np.add.at(adjacency, (target, source), 1)
        ways["matrix"] = ({"x": x, "adjacency": adjacency}, matrix)
    calls = {
        name: partial(LiteRTInterpreter(file_of(inputs, body)).run, *inputs.values())
        for name, (inputs, body) in ways.items()
    }
    wanted = calls["segments"]()[0]
    for run in calls.values():
        np.testing.assert_allclose(run()[0][:nodes], wanted, rtol=1e-3, atol=1e-3)
    case = f"{nodes} nodes, {edges} edges, {width} channels"
    return [call_subject(case, name, _quiet(run)) for name, run in calls.items()]
