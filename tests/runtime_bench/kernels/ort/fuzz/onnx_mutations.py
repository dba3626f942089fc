"""Changes to an ONNX file: to our operators, to the constants they read, to the graph around them and to the properties
that the runner reads. What ONNX Runtime does with changes to its own operators is not the question."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "bgnn"
HOSTILE = [0, 1, -1, 2, 31, 32, 33, 127, 255, 256, 65535, 65536, 1 << 20, 2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1]
FLOATS = [0.0, -0.0, -1.0, 1e-45, 1e-40, 1e38, 0.5, float("nan"), float("inf"), float("-inf")]
PLAIN = [*HOSTILE, 0.5, None, True, False, "", "x", "edge_index", "one", [], {}, [[]], {"value": 2**40}, 10**30]
TYPES = [TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL]
LARGEST = 1 << 22  # bytes of a constant


def special(dtype: np.dtype, rng: random.Random) -> np.ndarray:
    """A number that may not be meant, cut to the type."""
    if dtype.kind == "f":
        return np.array(rng.choice(FLOATS), dtype)
    return np.array(rng.choice(HOSTILE), np.int64).astype(dtype)


class Mutator:
    """Changes `model` in place, once for each call."""

    def __init__(self, model: onnx.ModelProto, rng: random.Random) -> None:
        self.model, self.rng = model, rng
        self.changes = [
            self.attribute, self.attribute, self.inputs, self.inputs, self.outputs, self.values, self.values,
            self.shape, self.type, self.kind, self.order, self.declared, self.property, self.property,
        ]  # fmt: skip

    def __call__(self) -> None:
        # What earlier changes removed or damaged (the last operator, the JSON of a property) cannot be changed again.
        with contextlib.suppress(IndexError, RecursionError, ValueError):
            self.rng.choice(self.changes)()

    def node(self) -> onnx.NodeProto:
        """One of our operators; of a file without any, whichever."""
        ours = [node for node in self.model.graph.node if node.domain == DOMAIN]
        return self.rng.choice(ours or list(self.model.graph.node))

    def constant(self) -> onnx.TensorProto | None:
        """A constant that one of our operators reads."""
        read = {name for node in self.model.graph.node if node.domain == DOMAIN for name in node.input}
        constants = [one for one in self.model.graph.initializer if one.name in read]
        return self.rng.choice(constants) if constants else None

    def integer(self, now: int) -> int:
        near = now + self.rng.choice([-32, -2, -1, 1, 2, 32])
        return max(-(2**63), min(2**63 - 1, self.rng.choice([near, self.rng.choice(HOSTILE)])))

    def attribute(self) -> None:
        node = self.node()
        if not node.attribute:
            return self.inputs()
        place, what = self.rng.randrange(len(node.attribute)), self.rng.random()
        attribute = node.attribute[place]
        if what < 0.05:
            del node.attribute[place]
        elif what < 0.1:
            node.attribute.append(helper.make_attribute(f"{attribute.name}s", 1))
        elif what < 0.15:
            node.attribute[place].CopyFrom(
                helper.make_attribute(attribute.name, self.rng.choice([1, 0.5, "x", [1, 2]]))
            )
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = self.rng.choice([*FLOATS, attribute.f * 2])
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = self.rng.choice(
                [b"", b"sum", b"max", b"mean", b"none", b"add_remaining", b"\xff", b"s" * 300]
            )
        else:
            attribute.i = self.integer(attribute.i)

    def names(self) -> list[str]:
        graph = self.model.graph
        made = [name for node in graph.node for name in node.output]
        return [*made, *(one.name for one in graph.initializer), *(one.name for one in graph.input)]

    def inputs(self) -> None:
        """An operator's input becomes another tensor, is left out, is one too many or too few."""
        names, what = self.node().input, self.rng.random()
        if what < 0.1 or not names:
            names.append(self.rng.choice(self.names()))
        elif what < 0.2:
            del names[self.rng.randrange(len(names))]
        elif what < 0.3:
            names[self.rng.randrange(len(names))] = ""
        elif what < 0.5 and len(names) > 1:
            one, two = self.rng.sample(range(len(names)), 2)
            names[one], names[two] = names[two], names[one]
        else:
            names[self.rng.randrange(len(names))] = self.rng.choice(self.names())

    def outputs(self) -> None:
        names = self.node().output
        if self.rng.random() < 0.5:
            names.append(f"more{len(names)}")
        elif self.rng.random() < 0.5:
            del names[-1]
        else:
            names[self.rng.randrange(len(names))] = ""

    def values(self) -> None:
        """Numbers in a constant: indices, thresholds, factors, tables."""
        tensor = self.constant()
        if tensor is None:
            return self.attribute()
        array = numpy_helper.to_array(tensor).copy()
        if array.size:
            for _ in range(self.rng.choice([1, 1, 3, array.size])):
                place = self.rng.randrange(array.size)
                array.reshape(-1)[place] = special(array.dtype, self.rng)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def shape(self) -> None:
        """A constant of another shape, its values cut or repeated; now and then without an axis, or empty."""
        tensor = self.constant()
        if tensor is None:
            return self.inputs()
        array, shape = numpy_helper.to_array(tensor), list(tensor.dims)
        what = self.rng.random()
        if what < 0.15 or not shape:
            shape.insert(self.rng.randrange(len(shape) + 1), self.rng.randrange(4))
        elif what < 0.3:
            del shape[self.rng.randrange(len(shape))]
        else:
            axis = self.rng.randrange(len(shape))
            shape[axis] = self.rng.choice([0, 1, max(0, shape[axis] - 1), shape[axis] + 1, self.rng.randrange(80)])
        if int(np.prod(shape)) * array.itemsize <= LARGEST:
            tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))

    def type(self) -> None:
        tensor = self.constant()
        if tensor is None:
            return self.kind()
        dtype = helper.tensor_dtype_to_np_dtype(self.rng.choice(TYPES))
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))

    def kind(self) -> None:
        """The operator becomes another of ours, or moves to a domain that is not."""
        node = self.node()
        kinds = sorted({one.op_type for one in self.model.graph.node if one.domain == DOMAIN})
        if kinds and self.rng.random() < 0.8:
            node.op_type = self.rng.choice(kinds)
        else:
            node.domain = self.rng.choice(["", "other", DOMAIN])

    def order(self) -> None:
        """An operator is not there, or there twice."""
        nodes, node = self.model.graph.node, self.node()
        if self.rng.random() < 0.5:
            nodes.remove(node)
            return
        twin = nodes.add()
        twin.CopyFrom(node)
        del twin.output[:]
        twin.output.extend(f"{name}_again" for name in node.output)

    def declared(self) -> None:
        """What the file says of its inputs and outputs."""
        value = self.rng.choice([*self.model.graph.input, *self.model.graph.output])
        kind, what = value.type.tensor_type, self.rng.random()
        if what < 0.3:
            kind.elem_type = self.rng.choice(TYPES)
        elif what < 0.5 or not kind.shape.dim:
            kind.shape.dim.add().dim_value = self.rng.randrange(4)
        elif what < 0.7:
            del kind.shape.dim[-1]
        else:
            # No 2^31: ONNX Runtime's own Scan then asks for a list of 16 GiB by itself (docs/trust.md).
            self.rng.choice(kind.shape.dim).dim_value = self.rng.choice([0, 1, 7, 2**16])

    def property(self) -> None:
        """One of the properties that the runner reads: another value somewhere in its JSON, or damaged text."""
        ours = [one for one in self.model.metadata_props if one.key.startswith("bgnn.")]
        if not ours:
            return self.declared()
        entry, what = self.rng.choice(ours), self.rng.random()
        if what < 0.1:
            self.model.metadata_props.remove(entry)
        elif what < 0.2:
            entry.value = self.rng.choice(["", "{", "[" * 5000, "9" * 5000, "-1", "1.5", entry.value[:-2]])
        else:
            entry.value = json.dumps(self._other(json.loads(entry.value)))

    def _other(self, value: Any) -> Any:
        if isinstance(value, list) and value and self.rng.random() < 0.9:
            place = self.rng.randrange(len(value))
            return [self._other(one) if i == place else one for i, one in enumerate(value)]
        if isinstance(value, dict) and value and self.rng.random() < 0.9:
            key = self.rng.choice(sorted(value))
            if self.rng.random() < 0.1:
                return {k: v for k, v in value.items() if k != key}
            return {k: self._other(v) if k == key else v for k, v in value.items()}
        return self.rng.choice(PLAIN)
