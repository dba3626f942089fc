"""check_wheels.py FOLDER: whether the bgnn-runtime wheels keep the promise of their names. Exits 1 where not.

manylinux_2_17: the library is of the named architecture, asks for no glibc symbol younger than 2.17, and needs no
library but glibc's. And no wheel needs PyTorch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
FLOOR = (2, 17)
GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2"}


def readelf(library: Path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, str(library)], capture_output=True, text=True, check=True).stdout


def problems(library: Path, arch: str) -> list[str]:
    """Why `library` is not fit for a manylinux_2_17 wheel of `arch`; empty where it is."""
    found = []
    if not re.search(rf"Machine:\s+{MACHINES[arch]}$", readelf(library, "-h"), re.MULTILINE):
        found.append(f"it is not an {arch} library")
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", readelf(library, "-V"))}
    found += [f"it needs glibc {'.'.join(map(str, v))}" for v in sorted(versions) if v > FLOOR]
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", readelf(library, "-d")))
    found += [f"it needs {name}" for name in sorted(needed - GLIBC)]
    symbols = set(re.findall(r"\btflite_plugin_\w+", readelf(library, "--dyn-syms")))
    if symbols != {"tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"}:
        found.append("it is not a TFLite delegate")
    return found


def check(wheel: Path, arch: str) -> list[str]:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        member = f"bgnn/runtime_bench/lib/{arch}/libbgnn_delegate.so"
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        if libraries != [member]:
            return [f"its libraries are {libraries}, not {member}"]
        found = problems(Path(archive.extract(member, folder)), arch)
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        if "torch" in archive.read(metadata).decode().lower():
            found.append("it depends on PyTorch")
    return found


def main(folder: Path) -> int:
    failed = False
    for arch in MACHINES:
        wheels = sorted(folder.glob(f"bgnn_runtime-*-py3-none-manylinux_2_17_{arch}.whl"))
        if not wheels:
            print(f"wheels: no wheel for {arch} in {folder}", file=sys.stderr)
            failed = True
        for wheel in wheels:
            found = check(wheel, arch)
            failed |= bool(found)
            for line in found:
                print(f"wheels: {wheel.name}: {line}", file=sys.stderr)
            if not found:
                print(f"wheels: {wheel} is good ({wheel.stat().st_size:,} bytes)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
