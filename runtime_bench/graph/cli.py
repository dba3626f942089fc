"""`bgnn-graph run MANIFEST --edges E --features X -o OUT`: all nodes of a large graph, layer by layer."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bgnn.runtime_bench.graph.run import run
from bgnn.runtime_bench.runtime import limits, streams
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.outputs import Stopped, stops_as_errors

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


_fail = partial(streams.fail, "bgnn-graph")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0; 1 it cannot be computed; 2 the command or its files are wrong)."""
    parser = argparse.ArgumentParser(prog="bgnn-graph", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("run", help="compute all nodes of a graph", description=__doc__)
    one.add_argument("manifest", type=Path, help="the folder of bgnn-convert --split-layers, or its manifest.json")
    one.add_argument(
        "--edges",
        type=Path,
        required=True,
        help="Parquet (a file, or a folder of them) with columns source and target, and one for each value of edges "
        "that the network reads; int64 [2, edges] as .npy; .npz; or a PyG dataset's processed .pt",
    )
    one.add_argument(
        "--features",
        type=Path,
        required=True,
        help="Parquet with a column id (whole numbers or text; without it edges name nodes by row) and the features, "
        "a column of lists with the input's name or a column for each; .npy (memory-mapped); .npz; or the .pt",
    )
    one.add_argument("-o", "--output", type=Path, required=True, help="OUT.npy, or OUT.parquet with the ids")
    one.add_argument("--memory", default="2G", help="what to stay below, as 500M or 8G (default: 2G)")
    one.add_argument("--workers", type=int, default=1, help="threads, or actors of Ray (default: 1)")
    one.add_argument(
        "--engine", default="local", metavar="{local,ray}", help="local (default): threads of this process"
    )
    one.add_argument("--address", help="with --engine ray: the cluster (default: one on this machine, while it runs)")
    one.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    fail = partial(_fail, debug=options.debug)
    streams.make_safe()
    try:
        with stops_as_errors():
            _run(options)
        return 0
    except (Stopped, KeyboardInterrupt) as stop:
        return _fail(f"{str(stop) or 'interrupted'}: the same command goes on", getattr(stop, "exit_code", 130))
    except BgnnError as error:
        return fail(str(error), error.exit_code)
    except MemoryError:
        return fail("out of memory: give a smaller --memory, which makes the parts smaller", 1)
    except OSError as error:
        return fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        hint = "" if options.debug else " (a bug in bgnn-graph: run again with --debug and report it)"
        return fail(f"internal error: {type(error).__name__}: {error}{hint}", 1)


def _run(options: argparse.Namespace) -> None:
    limits.check_threads("--workers", options.workers)
    if options.engine not in ("local", "ray"):
        raise UsageError(f"--engine {options.engine}: there is no such thing; choose from local, ray")
    if options.address is not None and options.engine != "ray":
        raise UsageError("--address is of --engine ray")
    started = time.perf_counter()
    run(
        options.manifest, options.edges, options.features, options.output,
        memory=_bytes(options.memory), workers=options.workers, engine=options.engine, address=options.address,
        say=streams.complain,
    )  # fmt: skip
    with streams.results():
        print(f"wrote {options.output} in {time.perf_counter() - started:.1f} s")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if not match:
        raise UsageError(f"--memory {text[:40]} is no size: write 2G, 500M or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


if __name__ == "__main__":
    sys.exit(main())
