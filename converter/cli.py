"""`bgnn-convert`: the command line around `load` and `convert`.

The report goes to standard output, progress and errors to standard error. Exit codes: 0 done, 1 the model
cannot be converted or the file does not verify, 2 the command is wrong. On an error no file is left behind.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bgnn.converter.errors import BgnnError, UsageError
from bgnn.converter.targets import STAGES, TARGETS
from bgnn.runtime_bench.runtime import streams
from bgnn.runtime_bench.runtime.outputs import Stopped, check_output, is_special, stops_as_errors, write_files

if TYPE_CHECKING:
    from rich.console import Console

    from bgnn.converter.api import Conversion


_EXAMPLES = """\
examples:
  bgnn-convert model.pt --target lce-arm64
      a checkpoint of bgnn.models, which says what it is
  bgnn-convert program.pt2 --target lce-arm64 -o classifier.tflite
      your own model, saved with torch.export.save(torch.export.export(model, inputs), "program.pt2")
  bgnn-convert weights.pt --target lce-arm64 --model my_models:make_net --set k=20 --input points=8x1024x3
      your own class (my_models.py is in this folder) and its state_dict
  bgnn-convert weights.pt --target lce-arm64 --arch bf2 --set k=20 stage=3 knn=hamming activation=prelu ...
      a bare state_dict of one of the papers' models; without --set it says what to state, and the authors' values
  bgnn-convert models/trained/cora_gcn_dq8.pt --target onnx-int8-x86
      a Degree-Quant network with an example graph in it; else --input graph.npz, which holds x and edge_index
  bgnn-convert program.pt2 --target onnx-x86 --open points=0 --open points=1
      a point network whose file takes any number of clouds, and of points in them
  bgnn-convert weights.pt --model my_models:make_net --target onnx-int8-x86 --calibrate graph.npz
      post-training quantisation of a float PyG network
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="bgnn-convert",
        description="Converts a trained PyTorch graph neural network into a TFLite or ONNX file for a stock\n"
        "runtime, runs it, and succeeds only if the file computes what the PyTorch model computes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="MODEL", help="model.pt, a .pt2 of torch.export, or a state_dict")
    parser.add_argument(
        "--target",
        required=True,
        metavar="TARGET",
        help="; ".join(f"{row.name}: {row.about}" for row in TARGETS.values()),
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the file to write (default: ./MODEL's name.tflite or .onnx)"
    )
    parser.add_argument(
        "-O",
        dest="optimize",
        type=int,
        default=1,
        metavar="{0,1}",
        help="1 (default): all optimisations; 0: only what makes the model legal for the target",
    )
    parser.add_argument(
        "--kernels",
        default="stock",
        metavar="{stock,bgnn}",
        help="stock (default): a file that any LCE runtime runs; bgnn: fused operators of this project, which "
        "its small library brings to a stock TFLite interpreter (bgnn-run, or load_interpreter)",
    )
    parser.add_argument(
        "--knn",
        metavar="HOW",
        help="how k-NN is computed: matmul, by a matrix product (with --kernels stock), or popcount, by one "
        "operator (with --kernels bgnn); default: whichever goes with the kernels",
    )
    parser.add_argument(
        "--sign-zero",
        default="plus",
        metavar="{plus,error}",
        help="torch.sign(0) is 0, which one bit cannot hold. plus (default): take it as +1 and say how often "
        "that happened on the example inputs; error: refuse such a model",
    )
    parser.add_argument(
        "--keep-output",
        type=int,
        action="append",
        metavar="I",
        help="which of several outputs the file keeps, counted from 0; may be repeated (default: the first)",
    )

    parser.add_argument(
        "--open",
        action="append",
        default=[],
        metavar="NAME[=AXIS]",
        help="an input of forward whose size stays open (ONNX targets): its axis, a number or batch, points, nodes or "
        "edges; without it the first, of edges [2, E] the second. Axes that the model ties to it open with it. May be "
        "repeated. Default: clouds are fixed; a graph's numbers of nodes and edges are open",
    )
    parser.add_argument(
        "--fixed",
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="an input of forward whose axis of that size is fixed where it would be open: the nodes (x=2708) or edges "
        "(edge_index=10556) of one graph. For TFLite targets also nodes=N, edges=E and graphs=G: the largest graph (or "
        "batch of graphs) that the file takes; default: the example's. May be repeated",
    )
    parser.add_argument(
        "--split-layers",
        metavar="DIR",
        help="also cut a graph network at its aggregations (ONNX targets), into a folder of small files with a "
        "manifest, with which bgnn-graph computes all nodes of a graph that no one process can hold (docs/scale.md)",
    )

    source = parser.add_argument_group("what the model is")
    source.add_argument(
        "--arch",
        metavar="NAME",
        help="for a bare state_dict: the architecture, dgcnn, rf, bf1, bf2, bf1_bal or dq; "
        "what a state_dict does not show is asked for, with the values of the papers' code",
    )
    source.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="for a state_dict of your own model: the class or function that makes the nn.Module (imported, "
        "and so run, from the current folder or the environment)",
    )
    source.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of --arch, or keyword arguments of --model's factory",
    )
    source.add_argument(
        "--input",
        dest="inputs",
        action="append",
        default=[],
        metavar="SPEC",
        help="the model's example input, as NAME=SHAPE[:DTYPE] (points=8x1024x3:float32; random values; "
        "repeat it for several inputs) or an .npz file with one array for each input. "
        "The file is made for these shapes",
    )
    source.add_argument(
        "--calibrate",
        metavar="FILE",
        help="post-training quantisation of a float network, for targets with 8-bit integers: samples, as an .npz "
        "with one array for each input, or a PyG dataset's processed .pt; with labels y (and test_mask) the "
        "report compares accuracies. Also the example input, unless --input is given",
    )
    source.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="NAME",
        help="with --calibrate: a layer (or a module with all its layers) that stays float; may be repeated",
    )
    source.add_argument(
        "--percentile",
        type=float,
        metavar="P",
        help="with --calibrate: each activation's range leaves out the P percent least and the P percent largest of "
        "its values that are not 0; 0 is least to largest (default: each range is chosen, by the error at the output)",
    )
    source.add_argument("--batch", type=int, metavar="N", help="clouds in a batch, for bgnn's own models (default: 1)")
    source.add_argument(
        "--points",
        type=int,
        metavar="N",
        help="points in a cloud, for bgnn's own models (default: as trained)",
    )
    source.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read a pickled nn.Module. This runs whatever code the file holds: only for files you trust",
    )

    output = parser.add_argument_group("looking inside")
    output.add_argument(
        "--report",
        metavar="FILE",
        help="where to write the report as JSON (default: report.json beside the output, or OUTPUT.report.json if "
        "that is another conversion's)",
    )
    output.add_argument("--html", metavar="FILE", help="write the report as one page for a browser, too")
    output.add_argument("--dump", metavar="DIR", help="write every stage of the conversion as readable Python")
    output.add_argument("--stop-after", metavar="STAGE", help=f"stop after a stage ({', '.join(STAGES)}); no file")
    output.add_argument("--no-verify", action="store_true", help="do not run and compare the file (not advised)")
    output.add_argument("--debug", action="store_true", help="show tracebacks and PyTorch's warnings")
    output.add_argument("--version", action="version", version=f"bgnn-convert {_version()}")
    return parser


_fail = partial(streams.fail, "bgnn-convert: error")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv` (default: the process's arguments) and returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help, the version or its error
        return int(stop.code or 0)
    streams.make_safe()
    try:
        with _quiet(args.debug), stops_as_errors():
            _run(args)
        return 0
    except Stopped as stop:
        return _fail(str(stop), stop.exit_code, False)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, False)
    except SystemExit as stop:  # sys.exit in the user's code: this command has not done its work
        return _fail(f"the model's code ended the program: sys.exit({stop.code!r})", 1, args.debug)
    except Exception as error:
        if _is_out_of_memory(error):
            return _fail(_OUT_OF_MEMORY, 1, args.debug)
        if isinstance(error, BgnnError):
            return _fail(str(error), error.exit_code, args.debug)
        if isinstance(error, OSError):  # a full disk, a --dump folder that cannot be made
            return _fail(str(error), 1, args.debug)
        what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        hint = "" if args.debug else " (a bug in bgnn-convert: run again with --debug and report it)"
        return _fail(f"internal error: {what}{hint}", 1, args.debug)
    except BaseException as stop:  # only foreign code raises others
        return _fail(f"the model's code ended the program: {type(stop).__name__}: {stop}", 1, args.debug)


def _run(args: argparse.Namespace) -> None:
    _check(args)
    output = Path(_default_output(args) if args.output is None else args.output)
    report = output if args.stop_after else _checked_report(args, output)
    # as the user meant them, wherever the user's own code goes to
    written, reported = Path(os.path.abspath(output)), Path(os.path.abspath(report))
    paged = Path(os.path.abspath(args.html)) if args.html else None
    layers = Path(os.path.abspath(args.split_layers or ""))
    with _progress(_console(sys.stderr)) as say:
        say(f"reading {args.file}")
        conversion = _convert(args, say)
    console = _console(sys.stdout)
    if args.stop_after:
        with streams.results():
            conversion.report.print(console)
            console.print(f"stopped after stage {args.stop_after}: no file written")
        return

    def announce() -> None:
        with streams.results():
            conversion.report.print(console)
            *paths, last = [str(p) for p in (output, report, args.html, args.split_layers) if p]
            console.print(f"wrote {', '.join(paths)} and {last}", soft_wrap=True)

    assert conversion.model_bytes is not None
    found = {"output": output.name, **conversion.report.to_json()}
    files = {written: conversion.model_bytes, reported: (json.dumps(found, indent=2) + "\n").encode()}
    if conversion.layers:
        layers.mkdir(exist_ok=True)
        files |= {layers / name: data for name, data in conversion.layers.items()}
    if paged is not None:
        from bgnn.runtime_bench.bench import page
        from bgnn.runtime_bench.bench.measure import describe_machine

        files[paged] = page.of_conversion(found, describe_machine()).encode("utf-8", "backslashreplace")
    write_files(files, announce)


def _convert(args: argparse.Namespace, say: Callable[[str], None]) -> Conversion:
    from bgnn.converter.api import convert
    from bgnn.converter.load import LoadOptions, load

    calibration = None
    if args.calibrate:
        from bgnn.converter.calibrate import read_samples

        calibration = read_samples(Path(args.calibrate), args.keep_float, args.percentile)
    loaded = load(
        args.file,
        LoadOptions(
            example=calibration.samples[0] if calibration is not None else None,
            arch=args.arch,
            model=args.model,
            settings=_settings(args.settings),
            inputs=tuple(args.inputs),
            batch=args.batch,
            points=args.points,
            allow_pickle=args.allow_pickle,
        ),
    )
    return convert(
        loaded.model,
        loaded.example_inputs,
        target=args.target,
        optimize=args.optimize,
        verify=not args.no_verify,
        kernels=args.kernels,
        knn=args.knn,
        sign_zero=args.sign_zero,
        stop_after=args.stop_after,
        dump=Path(args.dump) if args.dump else None,
        name=loaded.name,
        keep_outputs=tuple(args.keep_output or (0,)),
        open_axes=tuple(args.open),
        fixed_sizes=tuple(args.fixed),
        calibration=calibration,
        split_layers=bool(args.split_layers),
        progress=say,
    )


def _default_output(args: argparse.Namespace) -> str:
    return Path(args.file).stem + (".onnx" if args.target.startswith("onnx-") else ".tflite")


def _check(args: argparse.Namespace) -> None:
    """What can be checked before the model is read: a conversion takes a minute."""
    for what, value, allowed in (
        ("--target", args.target, TARGETS),
        ("--stop-after", args.stop_after, STAGES),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"{what} {value}: there is no such thing; choose from {', '.join(allowed)}")
    if args.keep_float and not args.calibrate:
        raise UsageError("--keep-float goes with --calibrate: without it nothing is quantised that was float")
    if args.percentile is not None and not args.calibrate:
        raise UsageError("--percentile goes with --calibrate: it says how ranges are taken from the samples")
    for what, value in (("--batch", args.batch), ("--points", args.points)):
        if value is not None and value < 1:
            raise UsageError(f"{what} {value}: must be at least 1")
    if args.dump and Path(args.dump).exists() and not Path(args.dump).is_dir():
        raise UsageError(f"--dump {args.dump}: not a folder")
    if args.split_layers is not None:
        folder = Path(args.split_layers)
        if TARGETS[args.target].format != "onnx":
            raise UsageError(f"--split-layers goes with ONNX targets, and {args.target} is none")
        if args.stop_after:
            raise UsageError(f"--split-layers {folder}: with --stop-after no file is made that could be cut")
        if not args.split_layers or (folder.exists() and not folder.is_dir()) or not folder.absolute().parent.is_dir():
            raise UsageError(f"--split-layers {folder}: name a folder, in one that is there")
    if args.html is not None and args.stop_after:
        raise UsageError(f"--html {args.html}: with --stop-after no file is made that it would tell of")


def _checked_report(args: argparse.Namespace, output: Path) -> Path:
    """Where the report goes. Raises UsageError where that or the output cannot be written, or is something else."""
    for flag, text in (("-o", args.output), ("--report", args.report), ("--html", args.html)):
        if text is not None and (not text or text.endswith("/")):
            raise UsageError(f"{flag} {text!r}: name a file" + (" in the folder" if text else ""))
    given = {"the model itself": Path(args.file), "the --calibrate data": Path(args.calibrate or args.file)}
    given |= {f"the --input data {spec}": Path(spec) for spec in args.inputs if spec.endswith(".npz")}
    if args.model:
        given["the code of --model"] = Path(args.model.partition(":")[0].replace(".", "/") + ".py")
    check_output(output, given)
    report = Path(args.report) if args.report else _usual_report(output)
    check_output(report, given | {"the output, too: give the two different names": output})
    if args.html:
        check_output(Path(args.html), given | {"the output, too": output, "the report, too": report})
    if _report_at(output) is not None:
        raise UsageError(f"cannot write {output}: it is the report of another conversion")
    if report.is_file() and report.stat().st_size and _report_at(report) is None:
        raise UsageError(f"cannot write {report}: it is there already, and is no report of a conversion")
    if _is_of_another(report, output):
        raise UsageError(f"cannot write {report}: it is the report of another conversion")
    return report


def _usual_report(output: Path) -> Path:
    """report.json beside the output, or OUTPUT.report.json where that one tells of another file. Beside a device or a
    pipe (/dev/null) nothing is written: there it is in the current folder."""
    folder = Path() if is_special(output) else output.parent
    usual = folder / "report.json"
    return folder / f"{output.name}.report.json" if _is_of_another(usual, output) else usual


def _is_of_another(report: Path, output: Path) -> bool:
    """Whether a report is there, and not of an earlier conversion to the same output."""
    found = _report_at(report)
    return found is not None and found.get("output") != output.name


def _report_at(path: Path) -> dict[str, Any] | None:
    """The report of this command that is there, if one is."""
    if not path.is_file() or path.stat().st_size > _MOST_REPORT:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and {"name", "target", "checks"} <= content.keys() else None


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE arguments with values as Python literals (20, 0.5, true, [64, 64]) or else plain text."""
    settings: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {argument!r} must look like KEY=VALUE (put MODEL before --set)")
        if key in settings:
            raise UsageError(f"--set {key} is given twice")
        if text.lower() in ("true", "false"):
            settings[key] = text.lower() == "true"
            continue
        try:
            settings[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            settings[key] = text
    return settings


def _console(stream: TextIO | None) -> Console:
    """A console that prints text as it is: paths and names of layers are no markup."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise

    width = None if stream is not None and stream.isatty() else 120
    return Plain(file=stream or io.StringIO(), markup=False, emoji=False, highlight=False, width=width)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A function that shows a line of progress: a spinner on a terminal, plain lines elsewhere."""
    from rich.text import Text

    if not console.is_terminal:
        yield lambda line: streams.complain(f"bgnn-convert: {line}")
        return
    with console.status("") as status:

        def say(line: str) -> None:
            console.print(Text.assemble(("bgnn-convert:", "dim"), " ", line))
            status.update(Text(line))

        yield say


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Silences PyTorch's warnings and log lines, which are not about the command; `debug` keeps them."""
    if debug:
        yield
        return
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(previous)


_OUT_OF_MEMORY = "out of memory: give a smaller batch, fewer points or a smaller example graph"
_MOST_REPORT = 64 << 20
# How the libraries say it where they raise no MemoryError.
_NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|bad_alloc|failed to allocate memory", re.IGNORECASE
)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the exception, or one that it was raised from, is about memory."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bgnn-convert")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
