"""check_wheels.py FOLDER: whether the wheels keep the promise of their names, and share no file. Exits 1 where not.

bgnn-runtime is manylinux_2_17: its libraries, for LiteRT and for ONNX Runtime, are of the named architecture, ask for
no glibc symbol younger than 2.17, and need no library but glibc's; and it needs no PyTorch and brings no module of the
compiler. bgnn-convert depends on bgnn-runtime of its own version and brings none of its files, so that removing either
leaves the other whole.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
# What each runtime looks for in its library.
ENTRIES = {
    "libbgnn_delegate.so": {"tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"},
    "libbgnn_ort.so": {"RegisterCustomOps"},
}
FLOOR = (2, 17)
GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2"}


def readelf(library: Path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, str(library)], capture_output=True, text=True, check=True).stdout


def problems(library: Path, arch: str) -> list[str]:
    """Why `library`, of a name in ENTRIES, is not fit for a manylinux_2_17 wheel of `arch`; empty where it is."""
    found = []
    if not re.search(rf"Machine:\s+{MACHINES[arch]}$", readelf(library, "-h"), re.MULTILINE):
        found.append(f"it is not an {arch} library")
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", readelf(library, "-V"))}
    found += [f"it needs glibc {'.'.join(map(str, v))}" for v in sorted(versions) if v > FLOOR]
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", readelf(library, "-d")))
    found += [f"it needs {name}" for name in sorted(needed - GLIBC)]
    exported = set(re.findall(r"GLOBAL DEFAULT +\d+ (\w+)", readelf(library, "--dyn-syms")))
    found += [f"it has no {entry}" for entry in sorted(ENTRIES[library.name] - exported)]
    return found


def metadata(archive: zipfile.ZipFile) -> str:
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return archive.read(name).decode()


def check_runtime(wheel: Path, arch: str) -> list[str]:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        members = [f"bgnn/runtime_bench/runtime/lib/{arch}/{name}" for name in ENTRIES]
        libraries = sorted(name for name in archive.namelist() if name.endswith(".so"))
        if libraries != members:
            return [f"its libraries are {libraries}, not {members}"]
        found = [
            f"{Path(member).name}: {line}"
            for member in members
            for line in problems(Path(archive.extract(member, folder)), arch)
        ]
        around = "bgnn", "bgnn/runtime_bench"  # the packages that the room stands in, and the names kept there
        modules = [name for name in archive.namelist() if name.endswith(".py") and str(Path(name).parent) not in around]
        found += [f"it brings {name}" for name in modules if not name.startswith("bgnn/runtime_bench/runtime/")]
        if "torch" in metadata(archive).lower():
            found.append("it depends on PyTorch")
    return found


def check_convert(wheel: Path, runtimes: list[Path]) -> list[str]:
    found = []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        version = wheel.name.split("-")[1]
        if f"\nRequires-Dist: bgnn-runtime=={version}\n" not in metadata(archive):
            found.append(f"it does not depend on bgnn-runtime=={version}")
    for runtime in runtimes:
        with zipfile.ZipFile(runtime) as archive:
            found += [f"{name} is in {runtime.name} too" for name in sorted(names & set(archive.namelist()))]
    return found


def main(folder: Path) -> int:
    checked: list[tuple[Path, list[str]]] = []
    missing = []
    for arch in MACHINES:
        wheels = sorted(folder.glob(f"bgnn_runtime-*-py3-none-manylinux_2_17_{arch}.whl"))
        checked += [(wheel, check_runtime(wheel, arch)) for wheel in wheels]
        missing += [] if wheels else [f"bgnn-runtime for {arch}"]
    runtimes = [wheel for wheel, _ in checked]
    wheels = sorted(folder.glob("bgnn_convert-*-py3-none-any.whl"))
    checked += [(wheel, check_convert(wheel, runtimes)) for wheel in wheels]
    missing += [] if wheels else ["bgnn-convert"]
    for name in missing:
        print(f"wheels: no wheel of {name} in {folder}", file=sys.stderr)
    for wheel, found in checked:
        for line in found:
            print(f"wheels: {wheel.name}: {line}", file=sys.stderr)
        if not found:
            print(f"wheels: {wheel} is good ({wheel.stat().st_size:,} bytes)")
    return 1 if missing or any(found for _, found in checked) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
