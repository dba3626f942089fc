"""`make demo-graph`: a network cut at its aggregations, and all nodes of a graph computed from Parquet files.

A 3-layer binary GraphSAGE (random weights; it is about bits) becomes a chain of files; `bgnn-graph run` computes a
graph whose nodes have text ids, in parts; the result is compared with what the whole file gives for the whole graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bgnn.converter.api import convert
from bgnn.models.sage import BinSAGE
from bgnn.runtime_bench.graph import cli
from bgnn.runtime_bench.graph.synthetic import products_like
from bgnn.runtime_bench.runtime.onnx_runner import OnnxModel

FEATURES, CLASSES = 64, 16


def main(arguments: Sequence[str] | None = None) -> int:
    """The demo; returns 0 where the two are equal bit for bit."""
    parser = argparse.ArgumentParser(prog="demo-graph", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/demo-graph"))
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=400_000)
    options = parser.parse_args(arguments)
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder: Path = options.folder
    (folder / "layers").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = BinSAGE(features=FEATURES, classes=CLASSES, hidden=64, layers=3).eval()
    example = torch.randn(200, FEATURES), torch.from_numpy(products_like(200, 2000))
    print("converting a binary GraphSAGE and cutting it ...")
    done = convert(
        model, example, target="onnx-int8-x86", kernels="bgnn", output=folder / "whole.onnx", split_layers=True
    )
    for name, data in done.layers.items():
        (folder / "layers" / name).write_bytes(data)
        print(f"  {folder / 'layers' / name}: {len(data):,} bytes")

    print(f"writing a graph of {options.nodes:,} nodes and {options.edges:,} edges as Parquet ...")
    x = np.random.default_rng(1).standard_normal((options.nodes, FEATURES), np.float32)
    edges = products_like(options.nodes, options.edges, seed=1)
    ids = np.array([f"product-{number * 7919 % 1_000_003}" for number in range(options.nodes)])
    pq.write_table(
        pa.table({"id": ids, "x": pa.FixedSizeListArray.from_arrays(x.reshape(-1), FEATURES)}), folder / "x.parquet"
    )
    (folder / "edges").mkdir(exist_ok=True)
    for number, part in enumerate(np.array_split(edges, 4, axis=1)):
        columns = {"source": ids[part[0]], "target": ids[part[1]]}
        pq.write_table(pa.table(columns), folder / "edges" / f"{number}.parquet")

    command = ["run", str(folder / "layers"), "--edges", str(folder / "edges"), "--features", str(folder / "x.parquet")]
    command += ["-o", str(folder / "out.parquet"), "--memory", "200M", "--workers", "2"]
    print("bgnn-graph " + " ".join(command))
    if code := cli.main(command):
        return code
    table = pq.read_table(folder / "out.parquet")
    made = np.array(table.column(1).to_pylist(), np.float32)
    assert done.model_bytes is not None
    (expected,) = OnnxModel(done.model_bytes).run(x=x, edge_index=edges).values()
    equal = table["id"].to_pylist() == ids.tolist() and np.array_equal(made, expected)
    apart = float(np.abs(made - expected).max())
    print(
        "every number is that of the whole file, bit for bit" if equal else f"DIFFERENT from the whole file by {apart}"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
