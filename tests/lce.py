"""Larq Compute Engine's interpreter in tests: what our delegate and our files are compared with.

`make setup` makes its environment, so that in CI it is there; where it is not, what needs it skips with the reason.
"""

from __future__ import annotations

import pytest

from bgnn.converter.errors import BgnnError
from bgnn.runtime_bench.bench.lce import lce_python

try:
    lce_python()
    MISSING = ""
except BgnnError as error:
    MISSING = str(error)

needs_lce = pytest.mark.skipif(bool(MISSING), reason=MISSING)
