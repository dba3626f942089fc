"""What the user gives `bgnn-graph run`: edges and features, as Parquet, .npy, .npz, or a PyG dataset's processed file.

Nodes are numbered in the order of their features. Parquet names them by the column `id`, whole numbers or text; without
it, and in all other files, a node is named by its row.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgnn.runtime_bench.graph import torch_files
from bgnn.runtime_bench.graph.manifest import Manifest, Value
from bgnn.runtime_bench.runtime import limits
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError
from bgnn.runtime_bench.runtime.live import numbers_by_value

ID, SOURCE, TARGET = "id", "source", "target"
ROWS = 1 << 18  # of features at a time
Allocate = Callable[[str, Sequence[int], np.dtype], np.ndarray]


class Names:
    """What nodes are called: `ids`, whole numbers or an Arrow array of text (None: by row). `path`: who says so.

    Raises UsageError where two nodes have one name.
    """

    def __init__(self, path: Path, ids: Any, count: int) -> None:
        self.path, self.ids, self.count = path, ids, count
        if isinstance(ids, np.ndarray):
            self._order = np.argsort(ids, kind="stable")
            self._sorted = ids[self._order]
            same = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
            if len(same):
                raise UsageError(f"{path} has several rows of id {self._sorted[same[0]]}")
        elif ids is not None:
            pc = _arrow().pc
            if len(pc.unique(ids)) != len(ids):
                twice = next(one["values"].as_py() for one in pc.value_counts(ids) if one["counts"].as_py() > 1)
                raise UsageError(f"{path} has several rows of id {twice}")

    def numbers(self, names: Any, where: str) -> np.ndarray:
        """The nodes' numbers by what they are called: an Arrow array or a NumPy one -> int64 [k].

        Raises UsageError with the first name that no node has.
        """
        if self.ids is None:
            given, numbers, lost = _whole(names, where, np.dtype(np.int64))
            wrong = lost | (numbers < 0) | (numbers >= self.count)
            if wrong.any():
                bad = given[int(wrong.argmax())]
                raise UsageError(f"{where} name node {bad}, and {self.path} has rows 0 to {self.count - 1}")
            return numbers
        if isinstance(self.ids, np.ndarray):
            given, numbers, lost = _whole(names, where, self.ids.dtype)
            at = np.minimum(np.searchsorted(self._sorted, numbers), self.count - 1)
            unknown = lost | (self._sorted[at] != numbers)
            if unknown.any():
                raise UsageError(f"{where} name node {given[int(unknown.argmax())]}, which {self.path} does not have")
            return self._order[at]
        return self._numbers_of_text(names, where)

    def _numbers_of_text(self, names: Any, where: str) -> np.ndarray:
        pa, pc = _arrow().pa, _arrow().pc
        if not isinstance(names, np.ndarray):
            names = _plain(names)
        if isinstance(names, np.ndarray) or not pa.types.is_large_string(names.type):
            kind = names.dtype if isinstance(names, np.ndarray) else names.type
            raise UsageError(f"{where} name nodes by {kind}, and {self.path} by text")
        found = pc.index_in(names.cast(self.ids.type), value_set=self.ids)
        if found.null_count:
            unknown = names[int(np.argmax(found.is_null().to_numpy(zero_copy_only=False)))]
            raise UsageError(f"{where} name node {unknown}, which {self.path} does not have")
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


class Features:
    """The nodes: `values` by the names of the network's inputs, and what the nodes are called."""

    def __init__(self, path: Path, manifest: Manifest, allocate: Allocate) -> None:
        ids: Any = None
        wanted = manifest.inputs_per("node")
        if _is_parquet(path):
            self.values, ids = _read_parquet(path, wanted, allocate)
        else:
            self.values = _arrays(path, wanted, "features")
        lengths = {name: len(array) for name, array in self.values.items()}
        self.count = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1:
            raise UsageError(f"{path}: the inputs are of different numbers of nodes: {lengths}")
        if not self.count:
            raise UsageError(f"{path} holds no nodes")
        self.names = Names(path, ids, self.count)


@dataclasses.dataclass(frozen=True)
class Span:
    """Some of the edges, which can be read alone: a row group of a Parquet file, or all of another file. `first`: how
    many edges stand before these `count`."""

    file: Path
    group: int
    first: int
    count: int


class Edges:
    """The edges, as they are in the file or files. It can be sent to another process, which opens them there."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.index = path, manifest.edges
        self.wanted = manifest.inputs_per("edge")
        self.spans: list[Span] = []
        self._opened: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
        if not _is_parquet(path):
            self.count = self._arrays()[0].shape[1]
            self.spans = [Span(path, 0, 0, self.count)]
            return
        self.count = 0
        for file in _parquet_files(path):
            opened = _open_parquet(file)
            _check_columns(file, opened, self._columns())
            for group in range(opened.metadata.num_row_groups):
                self.spans.append(Span(file, group, self.count, opened.metadata.row_group(group).num_rows))
                self.count += self.spans[-1].count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _columns(self) -> list[str]:
        return [SOURCE, TARGET, *(one.name for one in self.wanted)]

    def _arrays(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if self._opened is None:
            path = self.path
            given = {self.index: _load(path)} if path.suffix == ".npy" else _load_named(path)
            if path.suffix == ".npy" and self.wanted:
                names = ", ".join(one.name for one in self.wanted)
                raise UsageError(f"{path} holds no {names}: the network reads values of edges; give an .npz or Parquet")
            if self.index not in given:
                raise UsageError(f"{path} holds no {self.index}: it has {', '.join(given)}")
            index = given[self.index]
            if index.ndim != 2 or len(index) != 2 or index.dtype.kind not in "iu":
                raise UsageError(f"{path}: edges are whole numbers [2, edges], got {index.dtype} {list(index.shape)}")
            self._opened = index, {one.name: _checked(given, one, path, index.shape[1]) for one in self.wanted}
        return self._opened

    def mapped(self) -> list[np.ndarray]:
        """The arrays that the pieces are parts of, if they are."""
        return [] if self._opened is None else [self._opened[0], *self._opened[1].values()]

    def read(self, span: Span, rows: int) -> Iterator[tuple[Any, Any, dict[str, np.ndarray]]]:
        """(sources, targets, the edges' values by name) of a span, at most so many edges at a time."""
        if not _is_parquet(self.path):
            index, values = self._arrays()
            for start in range(0, self.count, rows):
                part = slice(start, start + rows)
                yield index[0, part], index[1, part], {k: np.ascontiguousarray(v[part]) for k, v in values.items()}
            return
        left = span.count
        for batch in _batches(span.file, _open_parquet(span.file), rows, self._columns(), [span.group]):
            left -= batch.num_rows
            values = {one.name: _rows(batch.column(one.name), one, span.file) for one in self.wanted}
            yield batch.column(SOURCE), batch.column(TARGET), values
        if left:
            raise UsageError(f"{span.file} is damaged: it has {span.count - left} edges, and says {span.count}")


def _whole(names: Any, where: str, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers as they are, the same in a dtype of 64 bits, and which of them it does not hold."""
    if not isinstance(names, np.ndarray):
        if names.null_count:
            raise UsageError(f"{where} have {names.null_count} rows without a node")
        names = _plain(names)
        if not _arrow().pa.types.is_integer(names.type):
            raise UsageError(
                f"{where} name nodes by {names.type}, and the features by whole numbers; text is looked up in a "
                f"column {ID!r} of text, of features in Parquet"
            )
        names = names.to_numpy(zero_copy_only=False)
    numbers = names.astype(dtype)
    return names, numbers, (names < 0) != (numbers < 0)


def _plain(names: Any) -> Any:
    """Names of nodes without the ways to store them: categories are what they stand for, text is of one type."""
    pa = _arrow().pa
    if pa.types.is_dictionary(names.type):
        names = names.dictionary_decode()
    if pa.types.is_string(names.type) or str(names.type) == "string_view":
        names = names.cast(pa.large_string())
    return names


def _is_parquet(path: Path) -> bool:
    return path.suffix in (".parquet", ".pq") or path.is_dir()


def _load(path: Path) -> np.ndarray:
    """A single array, mapped."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no whole .npy array ({' '.join(str(error).split())[:200]})") from error


def _load_named(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix in (".pt", ".pth"):
        return torch_files.read(path)
    if path.suffix == ".npz":
        return limits.read_npz(path, str(path))
    raise UsageError(f"{path}: give Parquet (.parquet, or a folder of them), .npy, .npz, or a PyG dataset's .pt")


def _arrays(path: Path, wanted: Sequence[Value], what: str) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        if len(wanted) != 1:
            raise UsageError(
                f"{path} holds one array, and the network reads {', '.join(v.name for v in wanted)}: an .npz"
            )
        given: Mapping[str, np.ndarray] = {wanted[0].name: _load(path)}
    else:
        given = _load_named(path)
    return {one.name: _checked(given, one, path, None) for one in wanted}


def _checked(given: Mapping[str, np.ndarray], wanted: Value, path: Path, rows: int | None) -> np.ndarray:
    if wanted.name not in given:
        raise UsageError(f"{path} holds no {wanted.name}: it has {', '.join(given)}")
    array = given[wanted.name]
    shape = ", ".join(["rows" if rows is None else str(rows), *map(str, wanted.shape)])
    if array.ndim != 1 + len(wanted.shape) or array.shape[1:] != wanted.shape or rows not in (None, len(array)):
        raise UsageError(f"{path}: {wanted.name} must be {wanted.dtype} [{shape}], got {list(array.shape)}")
    if array.dtype != wanted.dtype:
        raise UsageError(f"{path}: {wanted.name} must be {wanted.dtype} [{shape}], got {array.dtype}: save it as that")
    return array


# Parquet.


class _Arrow:
    def __init__(self) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        self.pa, self.pc, self.pq = pa, pc, pq


_loaded: list[_Arrow] = []


def _arrow() -> Any:
    if not _loaded:
        try:
            _loaded.append(_Arrow())
        except ImportError as error:
            raise UsageError("Parquet needs pyarrow: pip install 'bgnn-convert[graph]'") from error
    return _loaded[0]


def need_arrow() -> None:
    """Raises UsageError without pyarrow."""
    _arrow()


def _parquet_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if not path.is_dir():
        return [path]
    files = [one for one in path.rglob("*") if one.suffix in (".parquet", ".pq")]
    if not files:
        raise UsageError(f"{path} is a folder without .parquet files")
    deeper = next((one for one in files if one.parent != path), None)
    if deeper is not None:
        raise UsageError(f"{path}: {deeper} lies in a folder of its own: give one folder that holds all files")
    return sorted(files, key=numbers_by_value)


def _open_parquet(file: Path) -> Any:
    pq = _arrow().pq
    try:
        opened = pq.ParquetFile(file, memory_map=True)
    except Exception as error:  # Arrow's errors are ValueErrors and OSErrors of its own
        raise UsageError(f"{file} is no whole Parquet file ({' '.join(str(error).split())[:200]})") from error
    names = opened.schema_arrow.names
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{file} has {names.count(name)} columns {name!r}")
    return opened


def _check_columns(file: Path, opened: Any, wanted: Sequence[str]) -> None:
    there = opened.schema_arrow.names
    for name in wanted:
        if name not in there:
            raise UsageError(f"{file} has no column {name!r}: its columns are {', '.join(there)}")


def _batches(
    file: Path, opened: Any, rows: int, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[Any]:
    try:
        yield from opened.iter_batches(batch_size=rows, row_groups=groups, columns=list(columns), use_threads=False)
    except (OSError, ValueError) as error:
        if isinstance(error, BgnnError):
            raise
        raise UsageError(f"{file} is damaged ({' '.join(str(error).split())[:200]})") from error


def _read_parquet(path: Path, wanted: Sequence[Value], allocate: Allocate) -> tuple[dict[str, np.ndarray], Any]:
    pa = _arrow().pa
    files = _parquet_files(path)
    count = sum(_open_parquet(file).metadata.num_rows for file in files)
    values = {one.name: allocate(one.name, [count, *one.shape], np.dtype(one.dtype)) for one in wanted}
    ids: list[Any] = []
    start, first = 0, dict[str, list[str]]()
    for file in files:
        opened = _open_parquet(file)
        names = opened.schema_arrow.names
        of = {one.name: _columns_of(one, wanted, names, file) for one in wanted}
        first = first or of  # whose columns' order counts
        if any(sorted(of[name]) != sorted(first[name]) for name in of):
            raise UsageError(f"{file} has other columns than {files[0]}")
        of = first
        columns = list(dict.fromkeys([*([ID] if ID in names else []), *(c for group in of.values() for c in group)]))
        for batch in _batches(file, opened, ROWS, columns):
            stop = start + batch.num_rows
            for one in wanted:
                group = of[one.name]
                if group == [one.name]:
                    values[one.name][start:stop] = _rows(batch.column(one.name), one, file)
                else:
                    for place, name in enumerate(group):
                        column = Value(name, one.dtype, ())
                        values[one.name][start:stop, place] = _rows(batch.column(name), column, file)
            if ID in names:
                ids.append(_plain(batch.column(ID)))
            start = stop
    if not ids:
        return values, None
    if len({str(one.type) for one in ids}) > 1:
        raise UsageError(f"{path}: column {ID!r} is of several types: {', '.join(sorted({str(i.type) for i in ids}))}")
    named = pa.concat_arrays(ids)
    if len(named) != count or named.null_count:
        raise UsageError(f"{path}: {count - len(named) + named.null_count} rows have no {ID}")
    if pa.types.is_integer(named.type):
        numbers = named.to_numpy(zero_copy_only=False)
        return values, numbers.astype(np.uint64 if numbers.dtype == np.uint64 else np.int64)
    if not pa.types.is_large_string(named.type):
        raise UsageError(f"{path}: column {ID!r} is {named.type}, and nodes are named by whole numbers or text")
    return values, named


def _columns_of(one: Value, wanted: Sequence[Value], names: Sequence[str], file: Path) -> list[str]:
    """The columns that an input stands in: one of its name, or all that are left, in the file's order."""
    if one.name in names:
        return [one.name]
    rest = [name for name in names if name != ID]
    if len(wanted) == 1 and one.shape == (len(rest),):
        return rest
    shape = list(one.shape)
    raise UsageError(
        f"{file} has no column {one.name!r} of lists {shape}"
        + (f", nor {shape[0]} columns of numbers beside {ID!r}" if len(wanted) == 1 and len(shape) == 1 else "")
        + f": its columns are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    )


def _rows(column: Any, wanted: Value, file: Path) -> np.ndarray:
    """A column of numbers, or of lists of them, in the input's dtype and shape."""
    pa = _arrow().pa
    size = int(np.prod(wanted.shape, dtype=np.int64))
    flat = column
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        if flat.null_count:
            break
        if len(_arrow().pc.unique(flat.value_lengths())) > 1:
            raise UsageError(f"{file}: the lists of column {wanted.name!r} are of different lengths")
        flat = flat.flatten()
    if flat.null_count:
        raise UsageError(f"{file}: column {wanted.name!r} has empty rows: replace missing values first")
    if len(flat) != size * len(column):
        raise UsageError(f"{file}: column {wanted.name!r} must hold {size} numbers a row ({list(wanted.shape)})")
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cast = flat.cast(pa.from_numpy_dtype(np.dtype(wanted.dtype)), safe=np.dtype(wanted.dtype).kind != "f")
        found = cast.to_numpy(zero_copy_only=False)
        rounded = found.dtype.kind == "f" and cast.type != flat.type
        if rounded and np.any(np.isinf(found) & ~np.isinf(flat.to_numpy(zero_copy_only=False))):
            raise UsageError(f"{file}: column {wanted.name!r} holds numbers beyond {wanted.dtype}")
        return found.reshape(len(column), *wanted.shape)
    raise UsageError(f"{file}: column {wanted.name!r} holds {flat.type}, and the network reads {wanted.dtype}")
