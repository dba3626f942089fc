"""`load_interpreter` under the name that programs of users import it by; it stands in `runtime`."""

from bgnn.runtime_bench.runtime.delegate import load_interpreter

__all__ = ["load_interpreter"]
