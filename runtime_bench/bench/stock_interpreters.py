"""`make interpreters`: the same files, through the same library, in every TFLite interpreter that people have.

Each release of INTERPRETERS gets an environment of its own under .cache/interpreters and, in it, a process that loads
the delegate and runs every file twice: with the release's default float operators (XNNPACK, mostly) and with its
plain ones. The outputs are compared with those of the reference release, bit for bit.

LCE's and our operators are computed by the same library everywhere. What differs is what the release itself computes:
the few float operators between them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOAT_KERNELS = ("xnnpack", "builtin")
THREADS = 2


@dataclass(frozen=True)
class Release:
    """A package of PyPI with an interpreter, and what must be installed beside it."""

    package: str
    version: str
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.package} {self.version}"


INTERPRETERS = [
    Release("ai-edge-litert", "2.3.0"),
    Release("ai-edge-litert", "2.0.2"),
    Release("ai-edge-litert", "1.2.0"),
    Release("tflite-runtime", "2.14.0", ("numpy<2",)),
    Release("tensorflow-cpu", "2.21.0"),
]
REFERENCE = INTERPRETERS[0]


# ------------------------------------------------------------------------------------ in the release's own process


def run_files(folder: Path) -> dict[str, Any]:
    """Runs every FOLDER/*.tflite on FOLDER/*.npy, in the interpreter that is installed here.

    Returns the versions, and for each file and kind of float operators the output's path or the reason why not.
    Needs no PyTorch.
    """
    from bgnn.runtime_bench.runtime.delegate import load_interpreter, runtime
    from bgnn.runtime_bench.runtime.errors import BgnnError
    from bgnn.runtime_bench.runtime.tflite_model import run

    found: dict[str, Any] = {
        "module": runtime().__name__,
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "files": {},
    }
    for file in sorted(folder.glob("*.tflite")):
        for kind in FLOAT_KERNELS:
            outcome: dict[str, str] = {}
            found["files"].setdefault(file.stem, {})[kind] = outcome
            try:
                interpreter = load_interpreter(file, THREADS, float_kernels=kind)
                outputs = run(interpreter, {"arr_0": np.load(file.with_suffix(".npy"))})
            except BgnnError as error:
                outcome["error"] = str(error).partition("\n")[0]
                continue
            name = f"{file.stem}-{kind}-{found['module'].partition('.')[0]}-{os.getpid()}.out"
            np.save(folder / name, next(iter(outputs.values())))
            outcome["output"] = f"{name}.npy"
    return found


# ---------------------------------------------------------------------------------------------- around the releases


def environment_of(release: Release, cache: Path) -> Path:
    """The Python of the release's environment, made where it is not there. Raises RuntimeError with pip's reason."""
    folder = cache / f"{release.package}-{release.version}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.is_file():
        return python
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--cache-dir", ".cache/pip"]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, f"{release.package}=={release.version}", *release.beside],
    ]
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            lines = (result.stderr or result.stdout).strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {result.returncode}")
    done.touch()
    return python


def run_in(python: Path, folder: Path) -> dict[str, Any]:
    """`run_files` in a process of that Python. Raises RuntimeError where it dies, with its last words."""
    import bgnn

    sources = str(Path(str(bgnn.__file__)).parent.parent)
    environment = os.environ | {"PYTHONPATH": sources, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-m", "bgnn.runtime_bench.bench.stock_interpreters", "--run-files", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise RuntimeError(f"{ended}: {lines[-1] if lines else 'no word'}")
    return json.loads(done.stdout.splitlines()[-1])


def write_files(folder: Path, full_size: bool, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Converts the trained BF2 and, if `full_size`, the paper's BF2 and RF; PyTorch's outputs by file."""
    import torch

    from bgnn.converter.api import convert
    from bgnn.models.checkpoint import load_checkpoint
    from bgnn.models.shapes import HELD_OUT_SEED, make_clouds
    from bgnn.runtime_bench.bench.cases import HAMMING, Case, Sizes, calibrated, clouds

    trained = load_checkpoint(str(Path(__file__).resolve().parents[2] / "models" / "trained" / "bf2_shapes.pt"))
    shapes, _ = make_clouds(8, int(trained.config["num_points"]), seed=HELD_OUT_SEED)
    models: list[tuple[str, torch.nn.Module, np.ndarray, str]] = [
        ("BF2 trained, stock LCE", trained, shapes, "stock"),
        ("BF2 trained, bgnn", trained, shapes, "bgnn"),
    ]
    if full_size:
        sizes = Sizes(batch=2)
        for arch, settings in (("bf2", HAMMING), ("rf", {})):
            model = calibrated(Case(arch, arch, settings, "lce-arm64"), sizes)
            models.append((f"{arch.upper()} full size, bgnn", model, clouds(sizes), "bgnn"))
    outputs = {}
    for name, model, points, kernels in models:
        say(f"converting {name}")
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.tflite"
        convert(model, (torch.from_numpy(points),), target="lce-arm64", kernels=kernels, output=path, name=path.stem)
        np.save(path.with_suffix(".npy"), points)
        with torch.inference_mode():
            outputs[path.stem] = model(torch.from_numpy(points)).numpy()
    return outputs


def compare(ours: np.ndarray, reference: np.ndarray) -> str:
    """ "equal" for the same bits, else the largest difference and, where it is so, that a class changes."""
    if ours.dtype == reference.dtype and ours.tobytes() == reference.tobytes():
        return "equal"
    if ours.shape != reference.shape:
        return f"shape {list(ours.shape)}, not {list(reference.shape)}"
    changed = int((ours.argmax(1) != reference.argmax(1)).sum())
    text = f"{np.abs(ours.astype(np.float64) - reference).max():.1e}"
    return text + (f", {changed} of {len(ours)} classes" if changed else "")


def judge(release: dict[str, Any], reference: dict[str, Any], folder: Path) -> list[dict[str, str]]:
    """The table's rows for a release: file, what the comparisons say, and why."""
    rows = []
    for name, outcomes in release["files"].items():
        row = {"file": name}
        errors = [outcome["error"] for outcome in outcomes.values() if "error" in outcome]
        for kind in FLOAT_KERNELS:
            output = outcomes[kind].get("output")
            known = reference["files"][name][kind].get("output")
            row[kind] = (
                "-" if output is None or known is None else compare(np.load(folder / output), np.load(folder / known))
            )
        row["loads"] = "no" if errors else "yes"
        row["why"] = errors[0] if errors else why(row)
        rows.append(row)
    return rows


def why(row: dict[str, str]) -> str:
    """What the two comparisons show about where a difference comes from."""
    if row["xnnpack"] == row["builtin"] == "equal":
        return ""
    if row["builtin"] == "equal":
        return "its XNNPACK rounds float operators differently"
    if row["xnnpack"] == "equal":
        return "its plain float operators round differently"
    return "its float operators round differently"


def print_rows(rows: list[dict[str, str]], reference: str) -> None:
    from bgnn.runtime_bench.bench.report import print_table  # not in a release's process

    heads = {"release": "", "numpy": "numpy", "file": "file", "loads": "loads", "xnnpack": "with its XNNPACK",
             "builtin": "plain float operators", "why": "why"}  # fmt: skip
    caption = f"output beside {reference}: the same bits, or the largest difference; {THREADS} threads"
    cells = [[row.get(key, "") for key in heads] for row in rows]
    print_table("Stock interpreters with libbgnn_delegate.so", list(heads.values()), cells, caption)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stock_interpreters", description=__doc__.partition("\n")[0])
    parser.add_argument("--run-files", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("out/interpreters"), help="folder for files and JSON")
    parser.add_argument("--cache", type=Path, default=Path(".cache/interpreters"), help="folder of the environments")
    parser.add_argument("--small", action="store_true", help="only the small trained network")
    given = parser.parse_args(arguments)
    if given.run_files:
        print(json.dumps(run_files(given.run_files)))
        return

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder: Path = given.output
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.tflite"), *folder.glob("*.npy")]:
        old.unlink()
    eager = write_files(folder, not given.small, say)
    found: dict[str, dict[str, Any]] = {}
    for release in INTERPRETERS:
        say(release.name)
        try:
            found[release.name] = run_in(environment_of(release, given.cache), folder)
        except RuntimeError as error:
            if release is REFERENCE:
                raise SystemExit(f"stock_interpreters: {release.name}: {error}") from error
            found[release.name] = {"failed": str(error)}
    rows = []
    for name, result in found.items():
        if "failed" in result:
            rows.append({"release": name, "loads": "no", "why": result["failed"]})
            continue
        for row in judge(result, found[REFERENCE.name], folder):
            rows.append({"release": name, "numpy": result["numpy"], **row})
    print_rows(rows, REFERENCE.name)
    for file, outputs in found[REFERENCE.name]["files"].items():
        difference = compare(np.load(folder / outputs["xnnpack"]["output"]), eager[file])
        print(f"{REFERENCE.name} beside PyTorch, {file}: {difference}")
    path = folder / "interpreters.json"
    path.write_text(json.dumps({"reference": REFERENCE.name, "threads": THREADS, "rows": rows}, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
