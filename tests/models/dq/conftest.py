"""What tests of several files use."""

from __future__ import annotations

import zipfile

import pytest


@pytest.fixture
def zipped(tmp_path):
    """Twenty stars of 3 to 22 nodes, labels 1 and -1, in powerful-gnns' format."""
    lines = ["20"]
    for i in range(20):
        nodes = i + 3
        lines.append(f"{nodes} {1 if i % 2 else -1}")
        lines.append(f"0 {nodes - 1} " + " ".join(map(str, range(1, nodes))))
        lines += ["0 1 0"] * (nodes - 1)
    (tmp_path / "reddit-binary").mkdir()
    with zipfile.ZipFile(tmp_path / "reddit-binary" / "REDDIT-BINARY.zip", "w") as archive:
        archive.writestr("REDDIT-BINARY/REDDIT-BINARY.txt", "\n".join(lines) + "\n")
        for k in range(10):
            archive.writestr(f"REDDIT-BINARY/10fold_idx/test_idx-{k + 1}.txt", f"{2 * k}\n{2 * k + 1}\n")
    return tmp_path
