"""The wheels: the check finds what is wrong, bgnn-runtime runs a file without PyTorch, bgnn-convert converts with it.

Where `make wheels` has not been run, the tests of the wheels themselves are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tomllib
from bgnn_files import hamming_knn, xor_edge_conv

import bgnn.runtime_bench

PACKAGING = Path(bgnn.runtime_bench.__file__).resolve().parent / "toolchain" / "packaging"
DIST = PACKAGING.parents[2] / "dist"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheels", PACKAGING / "check_wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "entry"),
    [("libbgnn_delegate.so", "tflite_plugin_create_delegate"), ("libbgnn_ort.so", "RegisterCustomOps")],
)
def test_a_library_that_is_none_of_ours(name: str, entry: str, tmp_path: Path) -> None:
    library = tmp_path / name
    library.symlink_to(np.linalg._umath_linalg.__file__)  # needs what it brings along, and has no entry of ours
    found = load().problems(library, "aarch64" if platform.machine() == "x86_64" else "x86_64")
    assert any("it is not an" in line for line in found)
    assert f"it has no {entry}" in found


def test_missing_wheels_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load().main(tmp_path) == 1
    said = capsys.readouterr().err
    assert "no wheel of bgnn-runtime for aarch64" in said
    assert "no wheel of bgnn-convert" in said


def write_wheel(path: Path, requires: str, *files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.name.split('-')[0]}-1.0.dist-info/METADATA", f"Name: x\nRequires-Dist: {requires}\n")
        for name in files:
            archive.writestr(name, "")
    return path


def test_a_wheel_without_its_libraries_fails(tmp_path: Path) -> None:
    one = "bgnn/runtime_bench/runtime/lib/x86_64/libbgnn_delegate.so"
    wheel = write_wheel(tmp_path / "bgnn_runtime-1.0-py3-none-any.whl", "numpy", one)
    (line,) = load().check_runtime(wheel, "x86_64")
    assert line.startswith(f"its libraries are ['{one}'], not ")


def test_shared_files_and_other_versions_fail(tmp_path: Path) -> None:
    runtime = write_wheel(tmp_path / "bgnn_runtime-1.0-py3-none-any.whl", "numpy", "bgnn/__init__.py", "bgnn/a.py")
    good = write_wheel(tmp_path / "bgnn_convert-1.0-py3-none-any.whl", "bgnn-runtime==1.0", "bgnn/b.py")
    assert load().check_convert(good, [runtime]) == []
    bad = write_wheel(tmp_path / "bgnn_convert-1.1-py3-none-any.whl", "bgnn-runtime==1.0", "bgnn/a.py", "bgnn/b.py")
    assert load().check_convert(bad, [runtime]) == [
        "it does not depend on bgnn-runtime==1.1",
        f"bgnn/a.py is in {runtime.name} too",
    ]


def test_both_projects_have_one_version() -> None:
    runtime, convert = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (PACKAGING, DIST.parent)
    )
    assert runtime["version"] == convert["version"]
    assert f"bgnn-runtime=={runtime['version']}" in convert["dependencies"]


@pytest.fixture
def wheel() -> Path:
    found = sorted(DIST.glob(f"bgnn_runtime-*_{platform.machine()}.whl"))
    if not found:
        pytest.skip("no wheel: make wheels")
    return found[0]


def test_all_wheels_are_good(wheel: Path) -> None:
    assert load().main(DIST) == 0


def test_a_wheel_runs_a_file_without_torch(wheel: Path, tmp_path: Path) -> None:
    case = xor_edge_conv(np.random.default_rng(0))
    (tmp_path / "model.tflite").write_bytes(case.file())
    np.savez(tmp_path / "in.npz", *case.arrays())
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from bgnn.runtime_bench.runtime import delegate, run\n"
        "assert 'site' in delegate.__file__, delegate.__file__\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    files = [str(tmp_path / name) for name in ("model.tflite", "in.npz", "out.npz")]
    subprocess.run(
        [sys.executable, "-c", program, files[0], "--input", files[1], "--output", files[2]],
        check=True,
        env={k: v for k, v in os.environ.items() if k != "BGNN_DELEGATE"} | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
    )
    with np.load(files[2]) as out:
        assert np.array_equal(out["t4"], case.expected)


def test_the_wheel_agrees_on_every_instruction_set(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's compiler is another one than the tests' elsewhere. Several sizes: work memory differs by set."""
    from bgnn.runtime_bench.runtime import delegate, tflite_model
    from bgnn.runtime_bench.runtime.errors import BgnnError

    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(f"bgnn/runtime_bench/runtime/lib/{platform.machine()}/libbgnn_delegate.so", tmp_path)
    monkeypatch.setenv("BGNN_DELEGATE", library)
    rng = np.random.default_rng(0)
    cases = [*(hamming_knn(rng, nodes=nodes) for nodes in (40, 300, 1025)), xor_edge_conv(rng)]
    tried = []
    for isa in ("portable", "avx2", "avx512", "neon"):
        monkeypatch.setenv("BGNN_ISA", isa)
        try:
            delegate.load_delegate()
        except BgnnError:
            continue  # not of this machine
        tried.append(isa)
        for case in cases:
            interpreter = delegate.load_interpreter(case.file())
            (out,) = tflite_model.run(
                interpreter, {f"arr_{i}": array for i, array in enumerate(case.arrays())}
            ).values()
            assert np.array_equal(out, case.expected), isa
    assert "portable" in tried


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.mark.slow
def test_one_goes_and_the_other_stays(wheel: Path, tmp_path: Path) -> None:
    (convert,) = DIST.glob("bgnn_convert-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    pip = [*PIP, "--python", str(tmp_path / "venv/bin/python")]
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")

    def files() -> set[str]:
        return {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    def modules(path: Path) -> set[str]:
        with zipfile.ZipFile(path) as archive:
            return {name for name in archive.namelist() if name.startswith("bgnn/")}

    def run(program: str) -> None:
        """With this environment's packages, but not its bgnn."""
        path = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
        program = (
            f"import sys; sys.path[:0] = [{str(site)!r}]; import bgnn; assert {str(site)!r} in bgnn.__file__\n{program}"
        )
        environment = {k: v for k, v in os.environ.items() if k not in ("BGNN_DELEGATE", "PYTHONPATH")}
        command = [str(tmp_path / "venv/bin/python"), "-S", "-c", program]
        subprocess.run(command, check=True, env=environment | {"PYTHONPATH": path}, cwd=tmp_path)

    subprocess.run([*pip, "install", "-qq", "--no-deps", str(wheel), str(convert)], check=True)
    assert modules(wheel) | modules(convert) <= files()
    assert (tmp_path / "venv/bin/bgnn-run").is_file()
    assert (tmp_path / "venv/bin/bgnn-convert").is_file()
    run(
        "import torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()\n"
        "done = bgnn.convert(model, (torch.randn(2, 8),), target='tflite-arm64', output='out.tflite')\n"
        "assert done.model_bytes\n"
        "from bgnn.runtime_bench.runtime import load_interpreter\n"
        "load_interpreter('out.tflite').invoke()"
    )
    subprocess.run([*pip, "uninstall", "-qq", "--yes", "bgnn-convert"], check=True)
    assert modules(wheel) <= files()
    assert not modules(convert) & files()
    run("from bgnn.runtime_bench.runtime import load_interpreter; load_interpreter('out.tflite').invoke()")
    subprocess.run([*pip, "install", "-qq", "--no-deps", str(convert)], check=True)
    subprocess.run([*pip, "uninstall", "-qq", "--yes", "bgnn-runtime"], check=True)
    assert modules(convert) <= files()
    assert not modules(wheel) & files()
