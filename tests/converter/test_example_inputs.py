"""Example inputs: what `--input` means, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bgnn.converter.errors import UsageError
from bgnn.converter.example_inputs import (
    forward_names,
    named_inputs,
    order_inputs,
    random_like,
    random_points,
)


def test_points_are_seeded_and_fill_the_unit_ball() -> None:
    points = random_points(4, 500)
    assert points.shape == (4, 500, 3)
    assert points.dtype == torch.float32
    assert torch.equal(points, random_points(4, 500))
    radius = points.norm(dim=-1)
    assert radius.max() <= 1 + 1e-6
    assert 0.7 < radius.mean() < 0.8  # 3/4 for a uniform ball


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_described_input_has_its_shape(shape: list[int]) -> None:
    text = "x".join(str(s) for s in shape)
    inputs = named_inputs([f"a={text}", f"b={text}:float64"])
    assert list(inputs) == ["a", "b"]
    assert list(inputs["a"].shape) == shape
    assert inputs["a"].dtype == torch.float32
    assert inputs["b"].dtype == torch.float64


def test_whole_numbers_are_not_guessed() -> None:
    with pytest.raises(UsageError, match=r"npz"):
        random_like("index", (4, 2), torch.int64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x=",
        "x=3x",
        "=3",
        "x=-1x3",
        "x=3x4:float33",
        "x=3:4",
        "x=1e3",
        "x=3x4:float32:y",
        "x=\uff13x3",
        "x=0x3",
    ],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="input"):
        named_inputs([text])


def test_huge_shapes_are_refused_before_they_are_made() -> None:
    for text in ("x=65536x65536x3", "x=99999999999999999999", "x=2147483649:int8"):
        with pytest.raises(UsageError, match=r"2\^31|npz"):
            named_inputs([text])


def test_a_name_given_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        named_inputs(["x=3", "x=3"])


def test_npz_round_trip(tmp_path: Path) -> None:
    x, index = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32), np.arange(4)
    np.savez_compressed(tmp_path / "in.npz", x=x.T, index=index)
    inputs = named_inputs([str(tmp_path / "in.npz")])
    assert list(inputs) == ["x", "index"]
    assert np.array_equal(inputs["x"].numpy(), x.T)
    assert inputs["x"].is_contiguous()
    assert inputs["index"].dtype == torch.int64


def test_npz_pickles_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return marker.touch, ()

    np.savez(tmp_path / "in.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(UsageError, match="pickled"):
        named_inputs([str(tmp_path / "in.npz")])
    assert not marker.exists()


def test_npz_that_asks_for_all_memory(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999), }"
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        archive.writestr("x.npy", header.ljust(127) + b"\n")
    with pytest.raises(UsageError, match=r"asks for 37\.3 GiB of memory, more than the budget of 2 GiB: .*BGNN_MEMORY"):
        named_inputs([str(tmp_path / "in.npz")])


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04" + bytes(50)])
def test_npz_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(data)
    with pytest.raises(UsageError, match=r"in\.npz"):
        named_inputs([str(tmp_path / "in.npz")])


def test_npz_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        named_inputs([str(tmp_path / "no.npz")])
    np.savez(tmp_path / "in.npz")
    with pytest.raises(UsageError, match="no array"):
        named_inputs([str(tmp_path / "in.npz")])


def test_npz_of_types_torch_lacks(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array(["a", "b"]))
    with pytest.raises(UsageError, match=r"in\.npz"):
        named_inputs([str(tmp_path / "in.npz")])


def test_inputs_follow_the_order_of_forward() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor, flag: bool = False, extra: Tensor | None = None) -> Tensor:
            return a

    given_inputs = {"b": torch.ones(1), "a": torch.zeros(1)}
    names = forward_names(Two(), list(given_inputs))
    assert names == ["a", "b"]
    assert [t.item() for t in order_inputs(given_inputs, names)] == [0, 1]
    assert forward_names(Two(), ["extra", "a", "b"]) == ["a", "b", "extra"]
    with pytest.raises(UsageError, match=r"'c'.*'a', 'b'"):
        order_inputs({"a": torch.ones(1), "c": torch.ones(1)}, names)


def test_a_single_input_may_have_any_name() -> None:
    assert len(order_inputs({"whatever": torch.ones(1)}, ["points"])) == 1


def test_several_arrays_for_a_model_of_one_object() -> None:
    given = {"x": torch.zeros(3, 2), "edge_index": torch.zeros(2, 4, dtype=torch.int64)}
    with pytest.raises(UsageError, match=r"model's inputs are 'data': .* forward\(x, edge_index\)"):
        order_inputs(given, ["data"])
    with pytest.raises(UsageError, match=r"model's inputs are 'x', 'y'$"):
        order_inputs(given, ["x", "y"])
