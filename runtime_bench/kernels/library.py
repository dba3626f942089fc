"""The kernels from Python, for tests and benchmarks: numpy arrays in, numpy arrays filled.

The argument structs are made from the library's own list (`bgnn_kernels_list`), so a kernel that is added in
kernels.h can be called here at once. Devices do not use this module: there the TFLite delegate calls the kernels.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

HERE = Path(__file__).resolve().parent
ISAS = ("portable", "avx2", "avx512", "neon")
_NUMPY_TYPES: dict[str, np.dtype] = {
    "int32_t": np.dtype(np.int32),
    "float": np.dtype(np.float32),
    "int8_t": np.dtype(np.int8),
}
_ALIGNMENT = 64


@dataclass(frozen=True)
class Field:
    """One member of a kernel's argument struct: a tensor ("in", "out") or an "int"."""

    kind: str
    name: str
    dtype: np.dtype | None


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("shared_bytes", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)),
        ("scratch_bytes", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)),
        ("begin", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)),
        (
            "run",
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
        ),
    ]


def build(arch: str = "x86_64") -> Path:
    """Build the library for `arch` where it is out of date, and return its path."""
    done = subprocess.run(["make", "-s", "-C", str(HERE), arch], capture_output=True, text=True)
    if done.returncode != 0:
        raise BgnnError(f"the kernels do not build for {arch} (make -C {HERE} {arch}):\n{done.stderr}")
    return HERE.parent.parent / "build" / "objects" / arch / "libbgnn_kernels.so"


def parse_list(text: str) -> dict[str, list[Field]]:
    """`bgnn_kernels_list` as kernel -> fields, in the order of the struct `BgnnKernels`."""
    kernels = {}
    for line in text.splitlines():
        name, _, fields = line.partition(":")
        kernels[name] = [
            Field(kind, words[-1], _NUMPY_TYPES[words[0]] if kind != "int" else None)
            for kind, *words in (field.split() for field in fields.strip(",").split(","))
        ]
    return kernels


def aligned(size: int) -> np.ndarray:
    """Uninitialised bytes at an address that 64 divides; at least one."""
    block = np.empty(size + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + max(size, 1)]


class Call:
    """One kernel with its arguments: `run(threads)` fills the outputs. Work memory is allocated once."""

    def __init__(self, kernel: _Kernel, struct: ctypes.Structure, name: str, arrays: list[np.ndarray]) -> None:
        self._kernel, self._struct, self._name, self._arrays = kernel, struct, name, arrays
        self._args = ctypes.addressof(struct)
        self._shared = aligned(kernel.shared_bytes(self._args))
        self._scratch_bytes = kernel.scratch_bytes(self._args)
        self._scratches: list[np.ndarray] = []

    @property
    def work_bytes(self) -> tuple[int, int]:
        """Shared bytes, and bytes per thread."""
        return self._shared.size, self._scratch_bytes

    def begin(self) -> int:
        """The number of work items. Raises `UsageError` for a neighbour index that is out of range."""
        items = self._kernel.begin(self._args, self._shared.ctypes.data)
        if items < 0:
            raise UsageError(f"{self._name}: a neighbour index is outside [0, nodes)")
        return items

    def run_items(self, first: int, last: int, thread: int = 0) -> None:
        """The work items [first, last), after `begin`, in the scratch memory of `thread`."""
        while len(self._scratches) <= thread:
            self._scratches.append(aligned(self._scratch_bytes))
        self._kernel.run(self._args, self._shared.ctypes.data, self._scratches[thread].ctypes.data, first, last)

    def run(self, threads: int = 1) -> None:
        """All of it, on contiguous shares of the items."""
        items = self.begin()
        if threads == 1:
            return self.run_items(0, items)
        self.run_items(0, 0, threads - 1)  # makes the scratch memory
        cuts = [items * t // threads for t in range(threads + 1)]
        workers = [threading.Thread(target=self.run_items, args=(cuts[t], cuts[t + 1], t)) for t in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return None


class Kernels:
    """All kernels for one instruction set."""

    def __init__(self, isa: str | None = None, path: Path | None = None) -> None:
        """`isa`: one of `ISAS`, default the processor's best. Raises `UsageError` where it cannot run here."""
        library = ctypes.CDLL(str(path or build()))
        library.bgnn_kernels_list.restype = ctypes.c_char_p
        library.bgnn_kernels.restype = library.bgnn_kernels_for.restype = ctypes.c_void_p
        self.fields = parse_list(library.bgnn_kernels_list().decode())
        table_type: type[ctypes.Structure] = type(
            "BgnnKernels",
            (ctypes.Structure,),
            {"_fields_": [("isa", ctypes.c_char_p), *((name, _Kernel) for name in self.fields)]},
        )
        address = library.bgnn_kernels_for(isa.encode()) if isa else library.bgnn_kernels()
        if not address:
            raise UsageError(f"instruction set {isa or 'in BGNN_ISA'}: unknown, or this processor lacks it")
        self._table = table_type.from_address(address)
        self.isa: str = self._table.isa.decode()

    def call(self, name: str, **values: np.ndarray | int | None) -> Call:
        """Kernel `name` on its arguments: dense numpy arrays of the right dtype (None: NULL), and ints."""
        fields = self.fields[name]
        if set(values) != {field.name for field in fields}:
            raise UsageError(f"{name}: wants {[field.name for field in fields]}, got {sorted(values)}")
        struct_type: type[ctypes.Structure] = type(
            name,
            (ctypes.Structure,),
            {
                "_fields_": [
                    (field.name, ctypes.c_int64 if field.dtype is None else ctypes.c_void_p) for field in fields
                ]
            },
        )
        struct = struct_type()
        arrays = []
        for field in fields:
            value = values[field.name]
            if isinstance(value, np.ndarray):
                if value.dtype != field.dtype or not value.flags.c_contiguous:
                    raise UsageError(f"{name}: {field.name} must be a dense {field.dtype} array")
                arrays.append(value)
                value = value.ctypes.data
            setattr(struct, field.name, value)
        return Call(getattr(self._table, name), struct, name, arrays)


def runnable() -> Iterator[Kernels]:
    """The instruction sets that this machine runs, the portable one first."""
    path = build()
    for isa in ISAS:
        try:
            yield Kernels(isa, path)
        except UsageError:
            continue
