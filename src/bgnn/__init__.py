"""bgnn-convert: trained binary graph neural networks, as files that stock runtimes run.

import bgnn
result = bgnn.convert(model, (points,), target="lce-arm64", output="model.tflite")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgnn.converter.api import Conversion, convert

__all__ = ["Conversion", "convert"]


def __getattr__(name: str) -> Any:
    """Imports the compiler (and so torch, which takes seconds) when it is first asked for."""
    if name in __all__:
        try:
            from bgnn.converter import api
        except ModuleNotFoundError as error:
            if error.name != "bgnn.converter":
                raise
            raise ImportError(f"bgnn.{name} is of bgnn-convert; here is bgnn-runtime alone, which runs files") from None
        return getattr(api, name)
    raise AttributeError(f"module 'bgnn' has no attribute {name!r}")
