"""Models that end in chosen tensors: cut down to what these need, or whole with more outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import FunctionProto, ModelProto, NodeProto, ValueInfoProto

from onnx_compnet.errors import UsageError
from onnx_compnet.graph.index import GraphIndex, captured_names, nodes_within, subgraphs


def prefix(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """The part of ``model`` that computes ``tensors``, and nothing else.

    Its outputs are the tensors under their own names, each once, in their order. (A graph input among them is
    input and output at once; a runtime may then hand out the caller's own memory.) Graph inputs that are not
    needed are gone; weights are copied once, and only those that are needed.

    Raises:
        UsageError: no tensor of that name, or none asked for.
    """
    wanted = list(dict.fromkeys(tensors))
    index = GraphIndex.of(model)
    _check(index, wanted)
    kept, read = _needed(index, wanted)
    graph = model.graph
    part = ModelProto(ir_version=model.ir_version)
    part.producer_name, part.producer_version = model.producer_name, model.producer_version
    part.opset_import.extend(model.opset_import)
    nodes = [index.nodes[position] for position in sorted(kept)]
    part.functions.extend(_needed_functions(model, nodes))
    part.graph.name = graph.name or "prefix"
    part.graph.node.extend(nodes)
    part.graph.input.extend(item for item in graph.input if item.name in read)
    part.graph.initializer.extend(item for item in graph.initializer if item.name in read)
    part.graph.sparse_initializer.extend(i for i in graph.sparse_initializer if i.values.name in read)
    produced = {name for node in nodes for name in node.output}
    part.graph.value_info.extend(
        item for item in graph.value_info if item.name in produced and item.name not in wanted
    )
    _add_outputs(part, index, wanted)
    return part


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """The whole model with ``tensors`` as further outputs, in their order; its own outputs are skipped.

    Raises:
        UsageError: no tensor of that name.
    """
    index = GraphIndex.of(model)
    wanted = [name for name in dict.fromkeys(tensors) if name not in index.outputs]
    if wanted:
        _check(index, wanted)
    whole = ModelProto()
    whole.CopyFrom(model)
    _add_outputs(whole, index, wanted)
    return whole


def _check(index: GraphIndex, wanted: list[str]) -> None:
    if not wanted:
        raise UsageError("no tensor was asked for; name at least one")
    for name in wanted:
        if not index.is_tensor(name) and name not in index.initializers:
            raise UsageError(
                f"the model has no tensor '{name}'; take the name of an input or a node's output"
            )


def _needed(index: GraphIndex, wanted: list[str]) -> tuple[set[int], set[str]]:
    """Positions of the nodes that ``wanted`` depend on, and every name that they read."""
    kept: set[int] = set()
    read: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in read:
            continue
        read.add(name)
        position = index.producers.get(name)
        if position is None or position in kept:
            continue
        kept.add(position)
        node = index.nodes[position]
        pending.extend(item for item in node.input if item)
        for body in subgraphs(node):
            pending.extend(captured_names(body))
    return kept, read


def _needed_functions(model: ModelProto, nodes: Iterable[NodeProto]) -> list[FunctionProto]:
    known = {(item.domain, item.name): item for item in model.functions}
    needed: set[tuple[str, str]] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending.extend(inner for body in subgraphs(node) for inner in nodes_within(body))
        key = (node.domain, node.op_type)
        if key in known and key not in needed:
            needed.add(key)
            pending.extend(known[key].node)
    return [item for item in model.functions if (item.domain, item.name) in needed]


def _add_outputs(model: ModelProto, index: GraphIndex, wanted: list[str]) -> None:
    graph = index.model.graph
    declared = {item.name: item for part in (graph.value_info, graph.input, graph.output) for item in part}
    for name in wanted:
        info = ValueInfoProto()
        if name in declared and declared[name].type.HasField("tensor_type"):
            info.CopyFrom(declared[name])
        elif name in index.types:
            info.type.CopyFrom(index.types[name])
        info.name = name
        model.graph.output.append(info)
