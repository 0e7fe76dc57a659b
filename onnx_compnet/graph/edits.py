"""Edits to a copy of a model that leave everything else byte for byte as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from onnx_compnet.errors import VerificationError
from onnx_compnet.graph.index import (
    INITIALIZERS_NEED_NOT_BE_INPUTS,
    GraphIndex,
    captured_names,
    is_op,
    nodes_within,
    subgraphs,
)
from onnx_compnet.graph.weights import ConstantSource, permutation


class Edits:
    """Collects edits to ``index.model`` and applies them to a copy. Gives out the new names."""

    def __init__(self, index: GraphIndex, label: str) -> None:
        self._index = index
        self._constants: dict[str, tuple[ConstantSource, NDArray[Any]]] = {}
        self._attributes: list[tuple[int, str, Any]] = []
        self._axes: dict[str, tuple[int, int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._released: list[str] = []
        self._given: set[str] = set()
        self.base = _free_base(index.model, f"compnet/{label}")

    def fresh(self, name: str) -> str:
        """A name that is not in the model: compnet/<label>/<name>, numbered where it was given out before."""
        number, free = 0, f"{self.base}/{name}"
        while free in self._given:
            number += 1
            free = f"{self.base}/{name}_{number}"
        self._given.add(free)
        return free

    def set_constant(self, source: ConstantSource, values: NDArray[Any]) -> None:
        """Other values for a constant that ``can_hold`` them; what lies between it and its reader stays."""
        self._shapes[source.name] = values.shape
        for position in reversed(source.path):
            node = self._index.nodes[position]
            if is_op(node, "Transpose"):
                values = values.transpose(np.argsort(permutation(node, values.ndim)))
            self._shapes[node.input[0]] = values.shape
        self._constants[source.tensor] = (source, values)

    def release(self, tensor: str) -> None:
        """A reader of this constant has another one now: it goes, and what computes it, unless still read."""
        self._released.append(tensor)

    def set_attribute(self, position: int, key: str, value: Any) -> None:
        """Another value for a node's attribute; None takes it away."""
        self._attributes.append((position, key, value))

    def resize_axis(self, tensor: str, axis: int, size: int) -> None:
        """Where the shape of ``tensor`` is declared, one axis has another size now."""
        self._axes[tensor] = (axis, size)

    def apply(
        self,
        before: int,
        new: list[NodeProto],
        behind: dict[int, list[NodeProto]],
        edges: dict[int, NodeProto],
        initializers: list[TensorProto],
    ) -> ModelProto:
        """The edited copy.

        ``new`` nodes go in front of position ``before``, others ``behind`` a position; the nodes in ``edges``
        take the inputs and outputs of those given (and nothing else of them).

        Raises:
            VerificationError: the result is not consistent.
        """
        child = ModelProto()
        child.CopyFrom(self._index.model)
        nodes = child.graph.node
        for position, key, value in self._attributes:
            _set_attribute(nodes[position], key, value)
        for position, edited in edges.items():
            _set_edges(nodes[position], edited)
        self._write_constants(child)
        self._write_shapes(child)
        child.graph.initializer.extend(initializers)
        if child.ir_version < INITIALIZERS_NEED_NOT_BE_INPUTS:
            for tensor in initializers:
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                child.graph.input.append(info)
        for position in sorted({*behind, before}, reverse=True):
            for node in reversed(behind.get(position, [])):
                nodes.insert(position + 1, node)
            if position == before:
                for node in reversed(new):
                    nodes.insert(position, node)
        _remove_unread(child, self._released, self._index.overridable)
        _check_consistent(self._index, child)
        return child

    def _write_constants(self, child: ModelProto) -> None:
        held = {name: entry for name, entry in self._constants.items() if entry[0].node is None}
        for tensor in child.graph.initializer:
            if tensor.name in held:
                _set_values(tensor, held[tensor.name][1])
        for source, values in self._constants.values():
            if source.node is not None:
                _set_constant_node(child.graph.node[source.node], values)

    def _write_shapes(self, child: ModelProto) -> None:
        for item in (*child.graph.value_info, *child.graph.input):
            if item.name in self._shapes:
                _set_shape(item, self._shapes[item.name])
            elif item.name in self._axes:
                axis, size = self._axes[item.name]
                shape = item.type.tensor_type.shape
                if axis < len(shape.dim):
                    shape.dim[axis].dim_value = size


def write_values(model: ModelProto, values: dict[str, NDArray[Any]]) -> ModelProto:
    """A copy of the model with other values of the same shapes for constants that its main graph holds.

    A sparse constant takes the values of its stored elements.
    """
    child = ModelProto()
    child.CopyFrom(model)
    for tensor in (*child.graph.initializer, *(item.values for item in child.graph.sparse_initializer)):
        if tensor.name in values:
            _set_values(tensor, values[tensor.name])
    for node in child.graph.node:
        if is_op(node, "Constant") and node.output[0] in values:
            if node.attribute[0].name == "sparse_value":
                _set_values(node.attribute[0].sparse_tensor.values, values[node.output[0]])
            else:
                _set_constant_node(node, values[node.output[0]])
    return child


def _set_attribute(node: NodeProto, key: str, value: Any) -> None:
    place = next((i for i, item in enumerate(node.attribute) if item.name == key), len(node.attribute))
    if value is None:
        del node.attribute[place : place + 1]
        return
    made = onnx.helper.make_attribute(key, value)
    if place < len(node.attribute):
        node.attribute[place].CopyFrom(made)
    else:
        node.attribute.append(made)


def _set_edges(node: NodeProto, edited: NodeProto) -> None:
    if list(node.input) != list(edited.input):
        del node.input[:]
        node.input.extend(edited.input)
    if list(node.output) != list(edited.output):
        del node.output[:]
        node.output.extend(edited.output)


def _set_values(tensor: TensorProto, values: NDArray[Any]) -> None:
    fresh = numpy_helper.from_array(values, tensor.name)
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.ClearField("data_location")
    del tensor.dims[:]
    tensor.dims.extend(fresh.dims)
    tensor.data_type = fresh.data_type
    tensor.raw_data = fresh.raw_data


def _set_constant_node(node: NodeProto, values: NDArray[Any]) -> None:
    if node.attribute[0].name == "value":
        _set_values(node.attribute[0].t, values)
    else:
        node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))


def _remove_unread(child: ModelProto, tensors: list[str], overridable: frozenset[str]) -> None:
    """Remove those of the constants that nothing reads, and with them what only they were computed from.

    What is ``overridable`` is part of the model's interface and stays.
    """
    graph = child.graph
    producers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    read = Counter(item.name for item in graph.output)
    for node in graph.node:
        read.update(node.input)
        for body in subgraphs(node):
            read.update(captured_names(body))
    gone: set[str] = set()
    positions: set[int] = set()
    pending = list(tensors)
    while pending:
        name = pending.pop()
        if read[name] or name in gone or name in overridable:
            continue
        position = producers.get(name)
        if position is None:
            gone.add(name)
        elif not any(read[output] for output in graph.node[position].output):
            gone.update(output for output in graph.node[position].output if output)
            positions.add(position)
            read.subtract(graph.node[position].input)
            pending.extend(item for item in graph.node[position].input if item)
    for position in sorted(positions, reverse=True):
        del graph.node[position]
    for part in (graph.initializer, graph.value_info, graph.input, graph.quantization_annotation):
        _remove(part, [getattr(item, "name", "") or getattr(item, "tensor_name", "") for item in part], gone)
    _remove(graph.sparse_initializer, [item.values.name for item in graph.sparse_initializer], gone)


def _remove(part: Any, names: list[str], gone: set[str]) -> None:
    for position in reversed(range(len(names))):
        if names[position] in gone:
            del part[position]


def _set_shape(item: ValueInfoProto, dims: Iterable[int]) -> None:
    shape = item.type.tensor_type.shape
    del shape.dim[:]
    for size in dims:
        shape.dim.add(dim_value=size)


def _free_base(model: ModelProto, wanted: str) -> str:
    """``wanted``, numbered until no name in the model is it or lies under it."""
    graph = model.graph
    taken = {item.name for part in (graph.input, graph.initializer, graph.value_info) for item in part}
    for node in nodes_within(graph):
        taken.update((node.name, *node.output))
        for body in subgraphs(node):
            taken.update(item.name for part in (body.input, body.initializer) for item in part)
    number, base = 1, wanted
    while any(name == base or name.startswith(base + "/") for name in taken):
        number += 1
        base = f"{wanted}_{number}"
    return base


def _check_consistent(index: GraphIndex, child: ModelProto) -> None:
    parent = index.model.graph
    own = index.inputs
    same_inputs = [i for i in child.graph.input if i.name in own] == [
        i for i in parent.input if i.name in own
    ]
    if not same_inputs or list(child.graph.output) != list(parent.output):
        raise VerificationError("the surgery changed the model's inputs or outputs; please report this")
    known = {item.name for part in (child.graph.input, child.graph.initializer) for item in part}
    known |= index.sparse.keys()
    for node in child.graph.node:
        missing = [name for name in node.input if name and name not in known]
        doubled = [name for name in node.output if name and name in known]
        if missing or doubled:
            what = f"reads '{missing[0]}' too early" if missing else f"produces '{doubled[0]}' again"
            raise VerificationError(f"after the surgery the node '{node.name}' {what}; please report this")
        known.update(node.output)
