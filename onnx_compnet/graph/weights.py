"""Constants of a graph (initialisers, Constant nodes, Identity) and readers' canonical weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from onnx_compnet.errors import UsageError
from onnx_compnet.graph.index import GraphIndex, attribute, float_attribute, int_attribute, is_op
from onnx_compnet.graph.structures import Reader
from onnx_compnet.layers import Array, ConvGeometry, ReaderWeights

FloatName = Literal["float32", "float64", "float16"]
FLOATS: dict[int, FloatName] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
}
_SCALARS = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64}


@dataclass(frozen=True)
class ConstantSource:
    """Where a constant is held.

    ``tensor`` is the initialiser's name, or the output of the Constant node at position ``node``.
    """

    tensor: str
    node: int | None
    dims: tuple[int, ...]
    elem_type: int

    @property
    def dtype(self) -> FloatName | None:
        """The numpy name of a float type that is supported, else None."""
        return FLOATS.get(self.elem_type)


def find_constant(index: GraphIndex, tensor: str) -> ConstantSource | None:
    """The constant behind a tensor, or None where it is computed, fed, sparse or a string."""
    name = tensor
    while (node := index.producer(name)) is not None and is_op(node, "Identity"):
        name = node.input[0]
    if name in index.initializers:
        held = index.initializers[name]
        dims, elem_type, position = tuple(held.dims), held.data_type, None
    elif node is not None and is_op(node, "Constant"):
        found = _constant_type(node)
        if found is None:
            return None
        dims, elem_type = found
        position = index.producers[name]
    else:
        return None
    return ConstantSource(name, position, dims, elem_type)


def _constant_type(node: NodeProto) -> tuple[tuple[int, ...], int] | None:
    for item in node.attribute:
        if item.name == "value":
            return tuple(item.t.dims), item.t.data_type
        if item.name in _SCALARS:
            return (), _SCALARS[item.name]
        if item.name in _LISTS:
            return (len(item.floats) or len(item.ints),), _LISTS[item.name]
    return None


@dataclass(frozen=True)
class Usage:
    """Who reads a constant, directly or through Identity.

    ``count`` is the number of node inputs, graph outputs and bodies, ``users`` the positions of the nodes,
    ``aliases`` the outputs of the Identity nodes.
    """

    count: int
    users: tuple[int, ...]
    aliases: tuple[str, ...]


def usage(index: GraphIndex, source: ConstantSource) -> Usage:
    """All that read the constant."""
    users: list[int] = []
    aliases: list[str] = []
    extra = 0
    pending = [source.tensor]
    while pending:
        current = pending.pop()
        extra += (current in index.outputs) + (current in index.captured)
        for position in index.consumers.get(current, ()):
            node = index.nodes[position]
            if is_op(node, "Identity"):
                aliases.append(node.output[0])
                pending.append(node.output[0])
            else:
                users.append(position)
    return Usage(len(users) + extra, tuple(users), tuple(aliases))


def constant_value(index: GraphIndex, source: ConstantSource) -> NDArray[Any]:
    """The constant's values."""
    if source.node is None:
        return numpy_helper.to_array(index.initializers[source.tensor])
    for item in index.nodes[source.node].attribute:
        if item.name == "value":
            return numpy_helper.to_array(item.t)
        if item.name == "value_float":
            return np.array(item.f, np.float32)
        if item.name == "value_int":
            return np.array(item.i, np.int64)
        if item.name == "value_floats":
            return np.array(item.floats, np.float32)
        if item.name == "value_ints":
            return np.array(item.ints, np.int64)
    raise AssertionError(f"Constant '{source.tensor}' has no value")


def scalar(index: GraphIndex, tensor: str) -> float | None:
    """The value of a constant with one element, or None."""
    source = find_constant(index, tensor)
    if source is None or int(np.prod(source.dims)) != 1:
        return None
    return float(constant_value(index, source).reshape(()))


def integers(index: GraphIndex, tensor: str) -> tuple[int, ...] | None:
    """The values of a constant list (or scalar) of integers, or None."""
    source = find_constant(index, tensor)
    if source is None or source.elem_type not in (TensorProto.INT64, TensorProto.INT32):
        return None
    return tuple(int(value) for value in constant_value(index, source).reshape(-1))


def axes_of(index: GraphIndex, node: NodeProto) -> tuple[int, ...] | None:
    """The axes of a Squeeze, Unsqueeze or Reduce node, attribute or constant input; None where not known."""
    found = attribute(node, "axes")
    if found is not None:
        return tuple(found.ints)
    return integers(index, node.input[1]) if len(node.input) > 1 and node.input[1] else None


def bias_slot(index: GraphIndex, reader: Reader) -> int:
    """Which input of a MatMul's bias Add is the bias."""
    assert reader.add_index is not None
    product = index.nodes[reader.index].output[0]
    return 1 if index.nodes[reader.add_index].input[0] == product else 0


def reader_weights(index: GraphIndex, reader: Reader) -> ReaderWeights:
    """A reader's present weights in canonical form: y = W2ᵀu + b2, W2 (D1·taps, D2) grouped by channel.

    Gemm's alpha and beta are multiplied in; a missing bias is zero.

    Raises:
        UsageError: the reader does not belong to this graph.
    """
    node = index.nodes[reader.index] if reader.index < len(index.nodes) else None
    if node is None or node.op_type != reader.op_type:
        raise UsageError(
            f"reader '{reader.node}' is not part of this model; find the sites of this model first"
        )
    weight = _values(index, node.input[1])
    bias: Array | None = None
    scale_w, scale_b = 1.0, 1.0
    if isinstance(reader.geometry, ConvGeometry):
        W2 = weight.reshape(weight.shape[0], -1).T
    elif reader.op_type == "Gemm":
        W2 = weight.T if int_attribute(node, "transB", 0) else weight
        scale_w, scale_b = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    else:
        W2 = weight
        if reader.add_index is not None:
            bias = _values(index, index.nodes[reader.add_index].input[bias_slot(index, reader)])
    if reader.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
        bias = _values(index, node.input[2])
    b2 = np.zeros(reader.features, W2.dtype) if bias is None else bias.reshape(-1) * bias.dtype.type(scale_b)
    W2 = W2 if scale_w == 1.0 else W2 * W2.dtype.type(scale_w)
    b2 = np.broadcast_to(b2, (reader.features,))
    return ReaderWeights(np.ascontiguousarray(W2), np.ascontiguousarray(b2))


def _values(index: GraphIndex, tensor: str) -> Array:
    source = find_constant(index, tensor)
    if source is None:
        raise UsageError(f"'{tensor}' is no constant of this model; take readers from find_sites(model)")
    return cast(Array, constant_value(index, source))
