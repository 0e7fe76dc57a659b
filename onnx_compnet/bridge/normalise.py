"""A model as onnx2torch can take it: a light copy whose floating-point weights are inputs.

Weights as inputs are what makes every one of them trainable, keeps shared ones shared, and lets a chain of nodes
between a stored weight and its reader (Identity, Transpose, Cast …) be computed at each call, so that gradients pass
through it to what is stored. The caller's model is only read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch import nn

from onnx_compnet.bridge.converters import DOMAIN, OWN, is_known
from onnx_compnet.bridge.roles import Role, learnable, products_of, readers_of, role_of
from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.folding import fold, held_type, held_value, is_sparse
from onnx_compnet.graph.index import STANDARD_DOMAINS, GraphIndex, describe, is_op, label
from onnx_compnet.graph.inference import without_large_weights
from onnx_compnet.graph.weights import FLOATS

_INLININGS = 3  # functions may be made of functions


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that the module holds: under its name in the model, with its role and its value.

    Of a sparse tensor the value is the vector of those elements that are stored. ``stored`` says whether the model's
    main graph holds it (else it was computed, or lies in a function), ``reason`` why it is frozen.
    """

    name: str
    role: Role
    value: NDArray[Any]
    stored: bool
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Normalised:
    """A light model whose inputs are the caller's ``inputs`` and then what is ``held``, in these orders."""

    model: ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    held: tuple[Held, ...]


def stored_value(index: GraphIndex, name: str) -> NDArray[Any]:
    """A constant's value as ``Held`` has it: of a sparse one the elements that are stored."""
    if not is_sparse(index, name):
        return held_value(index, name)
    return numpy_helper.to_array(_sparse(index, name).values)


def normalise(model: ModelProto) -> Normalised:
    """The light copy of ``model``, and what it needs at each call.

    Raises:
        UnsupportedError: there is no converter for an op; names all such ops, their versions and a node of each.
    """
    index = GraphIndex.of(model)
    inlined = GraphIndex.of(written_out(model))
    source = _constants(index, inlined)
    nodes = [node for node in inlined.nodes if not set(node.output) & source.keys()]
    alias = {name: name for name in source}
    for node in nodes:
        if is_op(node, "Identity") and node.input[0] in alias:
            alias[node.output[0]] = alias[node.input[0]]
    outputs = [item.name for item in model.graph.output]
    nodes = [_renamed(node, alias) for node in nodes if node.output[0] not in alias]
    held, nodes, constants = _held(index, source, nodes, [alias.get(name, name) for name in outputs])
    light = _light(model, index, inlined, nodes, constants)
    for position, name in enumerate(outputs):
        light.graph.node.append(
            onnx.helper.make_node("Identity", [alias.get(name, name)], [f"output:{position}"])
        )
        light.graph.output.add().CopyFrom(model.graph.output[position])
        light.graph.output[-1].name = f"output:{position}"
    held = [*held, *_fold(light)]
    _keep_what_is_needed(light)
    _check_ops(light)
    statistics = {item.name for item in held if item.role == "statistic" and item.stored}
    _prepare(light, statistics)
    needed = {name for node in light.graph.node for name in node.input}
    held = [item for item in held if item.name in needed]
    inputs = [item.name for item in model.graph.input if item.name in index.inputs]
    _declare_inputs(light, index, inputs, held)
    return Normalised(light, tuple(inputs), tuple(outputs), tuple(held))


def written_out(model: ModelProto) -> ModelProto:
    """The model without large constants, with its functions, and those ops that are functions, written out."""
    light = without_large_weights(model)
    try:
        if light.functions:
            _write_own_defaults(light)
            light = onnx.inliner.inline_local_functions(light)
        for _ in range(_INLININGS):
            version = GraphIndex.of(light).opset
            unknown = {
                n.op_type for n in light.graph.node if not _known(n, version) and _is_function(n, version)
            }
            if not unknown:
                break
            _write_defaults(light, unknown, version)
            light = onnx.inliner.inline_selected_functions(
                _typed(light), [("", op) for op in sorted(unknown)], inline_schema_functions=True
            )
    except Exception as error:  # whatever the inliner raises, a C++ exception for one
        raise UnsupportedError(f"the model's functions can't be written out: {error}") from error
    for node in light.graph.node:
        node.domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    return light


def _write_defaults(light: ModelProto, ops: set[str], version: int) -> None:
    """Give the nodes that are written out the attributes that they leave to ONNX's defaults.

    The inliner leaves such an attribute out of the function's nodes, where its default may be another one.
    """
    for node in light.graph.node:
        if is_op(node, *ops):
            known = onnx.defs.get_schema(node.op_type, version).attributes.values()
            _complete(node, [item.default_value for item in known])


def _write_own_defaults(light: ModelProto) -> None:
    """The same for the calls of the model's own functions, from within others, too."""
    functions = {(item.domain, item.name, item.overload): item for item in light.functions}
    for part in (light.graph, *light.functions):
        for node in part.node:
            called = functions.get((node.domain, node.op_type, node.overload))
            _complete(node, called.attribute_proto if called is not None else ())


def _complete(node: NodeProto, defaults: Iterable[onnx.AttributeProto]) -> None:
    given = {item.name for item in node.attribute}
    node.attribute.extend(item for item in defaults if item.type != item.UNDEFINED and item.name not in given)


def _typed(light: ModelProto) -> ModelProto:
    """With the types declared that the inliner asks for."""
    known = {item.name for part in (light.graph.value_info, light.graph.input) for item in part}
    for tensor in light.graph.initializer:
        if tensor.name not in known:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.value_info.append(kind)
    return onnx.shape_inference.infer_shapes(light, data_prop=True)


def _is_function(node: NodeProto, version: int) -> bool:
    if node.domain not in STANDARD_DOMAINS or not onnx.defs.has(node.op_type):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, version)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _constants(index: GraphIndex, inlined: GraphIndex) -> dict[str, GraphIndex]:
    """Each constant that is stored in the model, and then in its functions → the graph that holds it."""
    found: dict[str, GraphIndex] = {}
    for graph in (index, inlined):
        names = (*graph.initializers, *graph.sparse) if graph is index else ()
        produced = [node.output[0] for node in graph.nodes if is_op(node, "Constant")]
        found |= {n: graph for n in (*names, *produced) if n not in found and held_type(graph, n) is not None}
    return found


def _renamed(node: NodeProto, alias: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for place, name in enumerate(node.input):
        copy.input[place] = alias.get(name, name)
    while copy.input and not copy.input[-1]:
        del copy.input[-1]
    return copy


def _held(
    index: GraphIndex, source: dict[str, GraphIndex], nodes: list[NodeProto], outputs: list[str]
) -> tuple[list[Held], list[NodeProto], list[str]]:
    """What the module holds, the nodes (with those that make sparse tensors dense), and the other constants."""
    readers, products, reached = readers_of(nodes), products_of(nodes), learnable(nodes, outputs, source)
    beyond = learnable(nodes, outputs, source, states=False)
    held: list[Held] = []
    constants: list[str] = []
    dense: dict[str, str] = {}
    first: list[NodeProto] = []
    for name, graph in source.items():
        if name not in readers and name not in outputs:
            continue
        kind = held_type(graph, name)
        role: Role = "constant"
        if kind is not None and kind[1] in FLOATS and name in reached:
            value = stored_value(graph, name)
            if (
                name in beyond or value.any()
            ):  # an initial state of zeros is none, one for each place in a batch
                role = role_of(value, readers.get(name, ()), products)
        if role == "constant":
            constants.append(name)
            continue
        stored, reason = graph is index, ""
        if role == "frozen":
            finite = bool(np.isfinite(value).all())
            reason = "is read both as a running statistic and as a weight" if finite else "holds infinities"
        elif not stored:
            role, reason = "frozen", "lies in a function"
        held.append(Held(name, role, value, stored, reason))
        if is_sparse(graph, name):
            dense[name] = f"{name}:dense"
            first.append(_densify(graph, name, dense[name]))
    return held, [*first, *(_renamed(node, dense) for node in nodes)] if dense else nodes, constants


def _sparse(graph: GraphIndex, name: str) -> onnx.SparseTensorProto:
    if name in graph.sparse:
        return graph.sparse[name]
    node = graph.producer(name)
    assert node is not None
    return cast(onnx.SparseTensorProto, node.attribute[0].sparse_tensor)


def _densify(graph: GraphIndex, name: str, output: str) -> NodeProto:
    sparse = _sparse(graph, name)
    dims, places = tuple(sparse.dims), numpy_helper.to_array(sparse.indices)
    if places.ndim > 1:
        places = np.ravel_multi_index(tuple(places.T), dims)
    return onnx.helper.make_node(
        "Densify", [name], [output], domain=DOMAIN, places=places.tolist(), dims=dims
    )


def _light(
    model: ModelProto, index: GraphIndex, inlined: GraphIndex, nodes: list[NodeProto], constants: list[str]
) -> ModelProto:  # fmt: skip
    """The nodes and the small constants, and all inputs declared that shapes may be inferred from."""
    light = ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(
        item for item in inlined.model.opset_import if item.domain not in STANDARD_DOMAINS
    )
    light.opset_import.append(onnx.helper.make_opsetid("", inlined.opset))
    if DOMAIN not in {item.domain for item in light.opset_import}:
        light.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    light.graph.name = model.graph.name or "model"
    light.graph.node.extend(nodes)
    for name in constants:
        graph = index if held_type(index, name) is not None else inlined
        light.graph.initializer.append(numpy_helper.from_array(held_value(graph, name), name))
    return light


def _fold(light: ModelProto) -> list[Held]:
    """Replace what is computed from constants alone: by an initialiser, or, many floats, by a tensor to hold."""
    index = GraphIndex.of(light)
    held, done = [], set()
    for node in index.nodes:
        if node.output[0] in index.constants and not node.output[0].startswith("output:"):
            continue
        for name in node.input:
            if name not in index.constants or name not in index.producers or name in done:
                continue
            try:
                value = fold(index, name)
            except UnsupportedError:
                continue  # then its nodes are converted
            done.add(name)
            if value.size > 1 and onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in FLOATS:
                held.append(Held(name, "frozen", value, False, "is computed from constants"))
            else:
                light.graph.initializer.append(numpy_helper.from_array(value, name))
    for position in reversed(range(len(light.graph.node))):
        if done & set(light.graph.node[position].output):
            del light.graph.node[position]
    return held


def _keep_what_is_needed(light: ModelProto) -> None:
    needed = {item.name for item in light.graph.output}
    for position in reversed(range(len(light.graph.node))):
        node = light.graph.node[position]
        if needed.isdisjoint(node.output):
            del light.graph.node[position]
            continue
        needed.update(node.input)
        while len(node.output) > 1 and node.output[-1] not in needed:
            del node.output[-1]
    kept = [tensor for tensor in light.graph.initializer if tensor.name in needed]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)


# ---------------------------------------------------------------- ops


def _own(node: NodeProto, version: int) -> str:
    """The name by which this package converts the node, or ""."""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if name == "Resize" and version < 11:
        name = "Resize10"
    return name if name in OWN else ""


def _known(node: NodeProto, version: int) -> bool:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    return node.domain == DOMAIN or bool(_own(node, version)) or is_known(domain, node.op_type, version)


def _check_ops(light: ModelProto) -> None:
    versions = {item.domain: item.version for item in light.opset_import}
    missing: dict[tuple[str, str], list[NodeProto]] = {}
    for node in light.graph.node:
        if not _known(node, versions[""]):
            missing.setdefault((node.domain, node.op_type), []).append(node)
    if missing:
        parts = [
            f"{describe(nodes[0])} ({domain or 'ai.onnx'} version {_version(domain, op, versions.get(domain, 1))}"
            + (f", {len(nodes) - 1} more)" if len(nodes) > 1 else ")")
            for (domain, op), nodes in missing.items()
        ]
        raise UnsupportedError(
            f"no conversion to torch for {', '.join(parts)}; such a model can't be trained here"
        )


def _version(domain: str, op: str, opset: int) -> int:
    """The version of an op that an opset has; the opset's own where onnx does not know the op."""
    known = onnx.defs.has(op, opset, domain)
    return int(onnx.defs.get_schema(op, opset, domain).since_version) if known else opset


def _prepare(light: ModelProto, statistics: set[str]) -> None:
    """Give each node a name of its own (its doc_string keeps the model's), and those converted here their domain."""
    graph, version = light.graph, next(item.version for item in light.opset_import if item.domain == "")
    taken = {
        *dir(nn.Module()),
        "initializers",
        *(name for node in graph.node for name in (*node.input, *node.output)),
    }
    for node in graph.node:
        node.doc_string = describe(node)
        node.name = _free(label(node).replace(".", "/").strip("/") or node.op_type, taken)
        for place, name in enumerate(node.output):
            node.output[place] = name or _free("unused", taken)
        own = _own(node, version)
        if not own:
            continue
        if own == "BatchNormalization" and not statistics.issuperset(node.input[3:5]):
            node.attribute.append(onnx.helper.make_attribute("frozen", 1))
        if own in ("Softmax", "LogSoftmax"):
            node.attribute.append(onnx.helper.make_attribute("since", _version("", node.op_type, version)))
        node.op_type, node.domain = own, DOMAIN


def _free(wanted: str, taken: set[str]) -> str:
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _declare_inputs(
    light: ModelProto, index: GraphIndex, inputs: Iterable[str], held: Iterable[Held]
) -> None:
    declared = {item.name: item for item in index.model.graph.input}
    light.graph.input.extend(declared[name] for name in inputs)
    for item in held:
        kind = onnx.helper.np_dtype_to_tensor_dtype(item.value.dtype)
        light.graph.input.append(onnx.helper.make_tensor_value_info(item.name, kind, list(item.value.shape)))
