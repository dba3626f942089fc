"""Reading an emitted file back: which operators it holds."""

from __future__ import annotations

from collections import Counter

from ai_edge_litert import schema_py_generated as schema

_BUILTIN_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}


def operators(data: bytes) -> dict[str, int]:
    """How many operators of each kind a TFLite file has, most frequent first; custom ones by their own name."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = []
    for code in model.operatorCodes:
        custom = code.customCode
        names.append(custom.decode() if custom else _BUILTIN_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])
    count = Counter(names[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators or [])
    return dict(count.most_common())
