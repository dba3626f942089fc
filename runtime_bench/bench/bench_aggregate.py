"""`python -m bgnn.runtime_bench.bench.bench_aggregate`: one aggregation over a large graph, beside what memory allows.

The sum of the neighbours' rows, on a power-law graph of Reddit's size: our operator on 8-bit codes, its twins on
float32 and int32 (which show what is due to the 8 bits), what there is in float32 without this project's operators
(SciPy's CSR product, PyTorch's, and our converter's file of stock ONNX operators), and a loop that only reads rows:
those of the graph's own order, and as many at random. All in interleaved rounds; written to JSON as well.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.bench.measure import Measurement, measure, print_table, write_json
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.onnx_ops import session
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

KERNELS = Path(__file__).resolve().parent.parent / "kernels" / "ort"
LINE = 64  # bytes that memory hands over at once
WIDTHS = tuple(LINE * lines for lines in (1, 2, 4, 8))  # that the reading loop knows
DISTANCES = (64, 96, 128, 192)  # rows asked for ahead, of which the fastest reading loop counts
RANDOM, IN_ORDER, U8, WEIGHTED = "rows at random", "the graph's rows", "u8 codes", "u8 codes, weights"
SCIPY, TORCH, STOCK = "SciPy CSR f32", "PyTorch CSR f32", "stock ONNX f32"
STOCK_FLOAT = (SCIPY, TORCH, STOCK)


def power_law_graph(nodes: int, edges: int, rng: np.random.Generator) -> np.ndarray:
    """edge_index int64 [2, edges]: both ends drawn with probability ~ rank^-1/2, ranks unrelated to numbers."""
    share = np.cumsum(np.arange(1, nodes + 1) ** -0.5)

    def ends() -> np.ndarray:
        ranks = np.searchsorted(share, rng.random(edges) * share[-1])
        return rng.permutation(nodes)[ranks.clip(0, nodes - 1)]

    return np.stack([ends(), ends()]).astype(np.int64)


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


def candidates(
    nodes: int, edges: int, width: int, threads: int, seed: int = 0
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is measured, and the bytes of rows that each reads. Raises BgnnError where a result is wrong."""
    import torch
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    coo = {"edge_index": power_law_graph(nodes, edges, rng), "num_nodes": np.array(nodes)}
    csr_names, loops = ["indptr", "indices", "edges"], {"self_loops": "none"}
    found = session(one_operator("CooToCsr", loops, coo, csr_names)).run(None, coo)
    graph = dict(zip(csr_names[:2], found[:2], strict=True))
    x = at_lines(rng.integers(0, 256, (nodes, width), dtype=np.uint8))
    real, whole = at_lines(x.astype(np.float32)), at_lines(x.astype(np.int32))
    weight = rng.integers(0, 256, edges, dtype=np.uint8)
    degree = np.diff(graph["indptr"])
    print(f"{nodes} nodes, {edges} edges, at most {degree.max()} at a node, {width} features", file=sys.stderr)

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
    stock = OnnxModel(stock_file(width), threads)
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
    row = edges * width
    read = {RANDOM: row, IN_ORDER: row, U8: row, WEIGHTED: row}
    read.update(dict.fromkeys(("f32", "int32", *STOCK_FLOAT), 4 * row))
    return runs, read


def report(result: Measurement, read: dict[str, int]) -> dict[str, dict[str, str]]:
    """The table's further columns: GB/s of rows (a processor's), the share of the reading loop's in the same round, and
    how many times as fast as the fastest float32 without our operators.

    By processor time: a wait for the processor is nobody's memory traffic.
    """

    def ratios(base: str, name: str) -> tuple[float, float, float]:
        """Least, median and largest of the rounds."""
        pairs = zip(result.timings[base].cpu_ms, result.timings[name].cpu_ms, strict=True)
        all_of_them = sorted(one / own for one, own in pairs)
        return all_of_them[0], all_of_them[len(all_of_them) // 2], all_of_them[-1]

    share, times = {}, {}
    for name in (IN_ORDER, U8, WEIGHTED):
        low, middle, high = ratios(RANDOM, name)
        share[name] = f"{middle:.0%} ({low:.0%}-{high:.0%})"
    best = min(STOCK_FLOAT, key=lambda name: result.timings[name].cpu.median)
    for name in (U8, WEIGHTED, "f32", "int32"):
        low, middle, high = ratios(best, name)
        times[name] = f"{middle:.1f} ({low:.1f}-{high:.1f})"
    speed = {name: f"{size / result.timings[name].cpu.median / 1e6:.1f}" for name, size in read.items()}
    return {"GB/s": speed, f"of {RANDOM}": share, f"x as fast as {best}": times}


def main(arguments: list[str] | None = None) -> None:
    """The command line; the defaults are a graph of Reddit's nodes (GraphSAGE) with 10 million edges."""
    parser = argparse.ArgumentParser(prog="bench_aggregate", description=__doc__.partition("\n")[0])
    listed = ", ".join(map(str, WIDTHS))
    parser.add_argument("--nodes", type=int, default=233_000)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=128, help=f"features: {listed}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("out/bench_aggregate"), help="folder for the JSON")
    given = parser.parse_args(arguments)
    if given.nodes < 1 or given.edges < 1 or given.threads < 1 or given.width not in WIDTHS:
        raise UsageError(f"nodes, edges and threads must be positive, and the width one of {listed}")
    runs, read = candidates(given.nodes, given.edges, given.width, given.threads)
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = measure(runs, base=U8, rounds=given.rounds, threads=given.threads, progress=say)
    columns = report(result, read)
    title = f"Sum over neighbours: {given.nodes} nodes, {given.edges} edges, {given.width} features"
    print_table(result, columns, title)
    path = given.output / "bench_aggregate.json"
    write_json(result, path, sizes={**vars(given), "output": None}, columns=columns)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
