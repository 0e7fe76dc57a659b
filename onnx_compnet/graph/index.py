"""A model's graph, indexed once: who produces, reads and captures each tensor, and its shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, TypeProto

from onnx_compnet.graph.inference import inferred_types
from onnx_compnet.layers import Dimension

STANDARD_DOMAINS = ("", "ai.onnx")
INITIALIZERS_NEED_NOT_BE_INPUTS = 4  # IR version; before, every initialiser is a graph input, too
_RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


def describe(node: NodeProto) -> str:
    """A node as messages name it: its op and its name (that of its first output when it has none)."""
    return f"{node.op_type} '{label(node)}'"


def label(node: NodeProto) -> str:
    """A node's name, or its first output's name when it has none."""
    if node.name:
        return node.name
    return next((name for name in node.output if name), node.op_type)


def is_op(node: NodeProto, *ops: str) -> bool:
    """Whether the node is one of these standard ops; a local function may have the same name."""
    return node.op_type in ops and node.domain in STANDARD_DOMAINS


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """The node's attribute of that name, or None."""
    return next((item for item in node.attribute if item.name == name), None)


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    found = attribute(node, name)
    return default if found is None else found.i


def float_attribute(node: NodeProto, name: str, default: float) -> float:
    """A float attribute, or its default."""
    found = attribute(node, name)
    return default if found is None else found.f


def text_attribute(node: NodeProto, name: str, default: str) -> str:
    """A string attribute, or its default."""
    found = attribute(node, name)
    return default if found is None else found.s.decode("utf-8", "replace")


def ints_attribute(node: NodeProto, name: str) -> tuple[int, ...] | None:
    """An attribute that is a list of integers, or None."""
    found = attribute(node, name)
    return None if found is None else tuple(found.ints)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies that a node carries (If, Loop, Scan …)."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def nodes_within(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        yield from _inside(node)


def draws_random_numbers(model: ModelProto) -> list[str]:
    """The nodes, as messages name them, on account of which two runs on the same inputs differ."""
    found = list(nodes_within(model.graph))
    for function in model.functions:
        found += [node for top in function.node for node in (top, *_inside(top))]
    drawn = [node for node in found if is_op(node, *_RANDOM) and attribute(node, "seed") is None]
    trained = [node for node in found if is_op(node, "Dropout") and _may_train(model, node)]
    return [describe(node) for node in (*drawn, *trained)]


def _may_train(model: ModelProto, dropout: NodeProto) -> bool:
    name = dropout.input[2] if len(dropout.input) > 2 else ""
    held = [tensor for tensor in model.graph.initializer if tensor.name == name]
    held += [item.t for node in model.graph.node if name in node.output for item in node.attribute]
    return bool(name) and not (held and not any(held[0].raw_data) and not any(held[0].int32_data))


def _inside(node: NodeProto) -> Iterator[NodeProto]:
    for body in subgraphs(node):
        yield from nodes_within(body)


def captured_names(body: GraphProto) -> set[str]:
    """The names that a body reads from the graphs around it."""
    own = {item.name for item in body.input} | {item.name for item in body.initializer}
    own |= {item.values.name for item in body.sparse_initializer}
    own |= {name for node in body.node for name in node.output}
    read = {name for node in body.node for name in node.input} | {item.name for item in body.output}
    for node in body.node:
        for inner in subgraphs(node):
            read |= captured_names(inner)
    return read - own - {""}


def opset(model: ModelProto) -> int:
    """The version of the standard operators that the model imports (1 where it says nothing)."""
    return next((item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS), 1)


def type_shape(kind: TypeProto) -> tuple[Dimension, ...] | None:
    """The dimensions of a tensor type: int, symbol or None each; None where the rank is not known."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        item.dim_value if item.HasField("dim_value") else (item.dim_param or None)
        for item in kind.tensor_type.shape.dim
    )


@dataclass(frozen=True)
class GraphIndex:
    """A read-only view of a model's main graph. The model must not change while it is in use."""

    model: ModelProto
    nodes: tuple[NodeProto, ...]
    producers: dict[str, int]
    """tensor → position of the node that produces it"""
    consumers: dict[str, tuple[int, ...]]
    """tensor → positions of the nodes that list it as an input, once per input, in order"""
    captured: dict[str, int]
    """tensor → position of the node whose body reads it"""
    initializers: dict[str, TensorProto]
    sparse: dict[str, SparseTensorProto]
    inputs: frozenset[str]
    """graph inputs that are not initialisers"""
    outputs: frozenset[str]
    overridable: frozenset[str]
    """initialisers that are graph inputs as well, whose values the caller may replace (from IR version 4 on)"""
    opset: int

    @classmethod
    def of(cls, model: ModelProto) -> GraphIndex:
        """Index ``model``; shapes are inferred on first use."""
        graph = model.graph
        nodes = tuple(graph.node)
        producers: dict[str, int] = {}
        consumers: dict[str, list[int]] = {}
        captured: dict[str, int] = {}
        for position, node in enumerate(nodes):
            for name in node.output:
                if name:
                    producers[name] = position
            for name in node.input:
                if name:
                    consumers.setdefault(name, []).append(position)
            for body in subgraphs(node):
                for name in captured_names(body):
                    captured.setdefault(name, position)
        initializers = {tensor.name: tensor for tensor in graph.initializer}
        sparse = {item.values.name: item for item in graph.sparse_initializer}
        return cls(
            model=model,
            nodes=nodes,
            producers=producers,
            consumers={name: tuple(found) for name, found in consumers.items()},
            captured=captured,
            initializers=initializers,
            sparse=sparse,
            inputs=frozenset(
                i.name for i in graph.input if i.name not in initializers and i.name not in sparse
            ),
            outputs=frozenset(item.name for item in graph.output),
            overridable=frozenset(
                item.name
                for item in graph.input
                if model.ir_version >= INITIALIZERS_NEED_NOT_BE_INPUTS
                and (item.name in initializers or item.name in sparse)
            ),
            opset=opset(model),
        )

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that produces a tensor, or None (inputs, initialisers)."""
        position = self.producers.get(tensor)
        return None if position is None else self.nodes[position]

    def readers(self, tensor: str) -> tuple[int, ...]:
        """Positions of the nodes that read a tensor's values, each once. Shape reads none: it is left out."""
        found = dict.fromkeys(self.consumers.get(tensor, ()))
        return tuple(position for position in found if not is_op(self.nodes[position], "Shape"))

    def is_tensor(self, name: str) -> bool:
        """Whether the name is that of an input or of a node's output."""
        return name in self.producers or name in self.inputs

    @cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that no input changes: initialisers, Constants, and what standard ops make of these alone."""
        known = {*self.initializers, *self.sparse}
        for node in self.nodes:
            held = is_op(node, "Constant")
            computed = any(node.input) and all(name in known for name in node.input if name)
            drawn = is_op(node, *_RANDOM, "Dropout")
            if held or (
                computed and not drawn and node.domain in STANDARD_DOMAINS and not any(subgraphs(node))
            ):
                known.update(name for name in node.output if name)
        return frozenset(known)

    @cached_property
    def swayed(self) -> frozenset[str]:
        """Those of ``constants`` that change with a value which the caller may replace."""
        found = set(self.overridable)
        for node in self.nodes:
            if not found.isdisjoint(node.input) and self.constants.issuperset(node.output):
                found.update(name for name in node.output if name)
        return frozenset(found & self.constants)

    @cached_property
    def folded(self) -> dict[str, NDArray[Any] | None]:
        """Small constants that were computed already; see ``folding``."""
        return {}

    @cached_property
    def unfed(self) -> frozenset[str]:
        """What is the same in every run: ``constants``, and what nodes of other domains make of these."""
        found = {"", *self.initializers, *self.sparse}
        for node in self.nodes:
            source = any(node.input) or is_op(node, "Constant")
            fixed = not is_op(node, *_RANDOM, "Dropout") and not any(subgraphs(node))
            if source and fixed and found.issuperset(node.input):
                found.update(node.output)
        return frozenset(found - {""})

    @cached_property
    def types(self) -> dict[str, TypeProto]:
        """The type of every tensor that is declared or can be inferred."""
        found = inferred_types(self.model)
        for name, tensor in self.initializers.items():
            found[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        for name, sparse in self.sparse.items():
            found[name] = onnx.helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
        return found

    def shape(self, tensor: str) -> tuple[Dimension, ...] | None:
        """The tensor's dimensions, or None where its rank is not known."""
        kind = self.types.get(tensor)
        return None if kind is None else type_shape(kind)
