"""docs/ops.md says what converts: each of its rows is an expression that is tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bgnn.converter import promises
from bgnn.converter.promises import BEGIN, BOTH, END, FORMATS, GRAPHS, Promise, model_of, refusal

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ops.md"
EVERY = list(promises.promises())


def cells() -> dict[tuple[str, str], dict[str, str]]:
    """By section and expression, what the document says of each format."""
    made = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    found: dict[tuple[str, str], dict[str, str]] = {}
    section = ""
    for line in made.splitlines():
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if row and row[0].startswith("`"):
            formats = ["onnx"] if section in GRAPHS else list(FORMATS)
            found[section, row[0].strip("`").replace("\\|", "|")] = dict(zip(formats, row[1:], strict=True))
        elif row and row[0] and not row[0].startswith("-"):
            section = row[0]
    return found


def is_promised(promise: Promise, format: str) -> bool:
    cell = cells()[promise.section, promise.code][format]
    assert cell in ("yes", "refused", "in clouds only", "in graphs only"), cell
    return cell == "yes" or cell == ("in graphs only" if promise.graph else "in clouds only")


def check(promise: Promise) -> None:
    for name in FORMATS:
        if promise.graph and name == "tflite":
            continue
        reason = refusal(promise, name)
        assert (reason is None) == is_promised(promise, name), reason
        assert reason is None or "\n" not in reason


def test_every_expression_has_its_row_and_runs_in_pytorch() -> None:
    rows = cells()
    assert rows.keys() == {(promise.section, promise.code) for promise in EVERY}
    for promise in EVERY[::7]:
        model, inputs = model_of(promise)
        with torch.no_grad():
            assert isinstance(model(*inputs), torch.Tensor)
    assert any(promise.section in BOTH and promise.graph for promise in EVERY)


@pytest.mark.parametrize("promise", EVERY[::24], ids=lambda promise: f"{promise.code} {promise.graph}")
def test_what_is_promised_is_kept(promise: Promise) -> None:
    check(promise)


@pytest.mark.slow
@pytest.mark.parametrize("promise", EVERY[3::9], ids=lambda promise: f"{promise.code} {promise.graph}")
def test_more_of_what_is_promised(promise: Promise) -> None:
    check(promise)
