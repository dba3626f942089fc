"""The files that README's "How it works" names are there, and its reading order is how the compiler calls itself."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = re.search(r"^## How it works\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)


def named() -> list[str]:
    assert SECTION is not None
    return re.findall(r"`([\w./]+(?:\.py|\.md|/))`", SECTION[1])


def test_what_the_section_names_is_there() -> None:
    paths = named()
    assert len(paths) > 10
    missing = [p for p in paths if not any((ROOT / room / p).exists() for room in ("", "converter"))]
    assert missing == []


def test_each_file_of_the_reading_order_reads_the_next() -> None:
    """`cli` imports what loads and the driver, the driver the stages, the stages the emitters."""
    for reader, read in (
        ("cli", "load"), ("cli", "api"), ("api", "stages"), ("api", "verify"), ("verify", "decisions"),
        ("stages", "tflite.emit"), ("stages", "onnx.emit"),
    ):  # fmt: skip
        text = (ROOT / f"converter/{reader}.py").read_text()
        assert f"from bgnn.converter.{read} import " in text or f"from bgnn.converter import {read}" in text, read
    order = [p.removeprefix("converter/") for p in named()]
    places = [order.index(p) for p in ("cli.py", "load.py", "api.py", "trace.py", "stages.py", "tflite/emit.py",
                                       "onnx/emit.py", "verify.py", "decisions.py")]  # fmt: skip
    assert places == sorted(places)
