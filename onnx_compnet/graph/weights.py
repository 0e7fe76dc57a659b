"""Constants of a graph, where they are held and who reads them, and readers' canonical weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnx_compnet.errors import UsageError
from onnx_compnet.graph.folding import fold, fold_small, held_type, is_sparse
from onnx_compnet.graph.index import (
    GraphIndex,
    attribute,
    float_attribute,
    int_attribute,
    ints_attribute,
    is_op,
)
from onnx_compnet.graph.structures import Reader, Site
from onnx_compnet.layers import Array, ConvGeometry, ReaderWeights

FloatName = Literal["float32", "float64", "float16", "bfloat16"]
FLOATS: dict[int, FloatName] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class ConstantSource:
    """A constant as it is read, and where it is held.

    ``name`` is the tensor that is read, ``dims`` and ``elem_type`` are its own. ``tensor`` is an initialiser
    (dense or sparse), or the output of the Constant node at position ``node``; ``path`` has the positions of
    the nodes from there to ``name``, in that order: each reads the one before as its first input.
    """

    name: str
    tensor: str
    node: int | None
    dims: tuple[int, ...]
    elem_type: int
    path: tuple[int, ...] = ()

    @property
    def dtype(self) -> FloatName | None:
        """The numpy name of a float type that is supported, else None."""
        return FLOATS.get(self.elem_type)


def find_constant(index: GraphIndex, tensor: str) -> ConstantSource | None:
    """The constant that a tensor is, or None where it is computed, fed, a string or of unknown shape."""
    if tensor not in index.constants:
        return None
    name = tensor
    path: list[int] = []
    while (position := index.producers.get(name)) is not None and not is_op(
        index.nodes[position], "Constant"
    ):
        path.append(position)
        name = index.nodes[position].input[0]
    same = all(is_op(index.nodes[position], "Identity") for position in path)
    kind = held_type(index, name) if same else _inferred_type(index, tensor)
    if kind is None:
        return None
    return ConstantSource(tensor, name, index.producers.get(name), *kind, tuple(reversed(path)))


def _inferred_type(index: GraphIndex, tensor: str) -> tuple[tuple[int, ...], int] | None:
    kind, shape = index.types.get(tensor), index.shape(tensor)
    if kind is None or shape is None:
        return None
    dims = tuple(size for size in shape if isinstance(size, int))
    return (dims, kind.tensor_type.elem_type) if len(dims) == len(shape) else None


def permutation(node: NodeProto, rank: int) -> tuple[int, ...]:
    """Which axis of its input each axis of a Transpose's output is."""
    return ints_attribute(node, "perm") or tuple(reversed(range(rank)))


def can_hold(index: GraphIndex, source: ConstantSource, rank: int) -> bool:
    """Whether other values, of that rank, may be written where a constant is held.

    Only Identity and Transpose may lie between, and nothing else may read any of it.
    """
    nodes = [index.nodes[position] for position in source.path]
    transposed = any(is_op(node, "Transpose") for node in nodes)
    return (
        all(is_op(node, "Identity", "Transpose") for node in nodes)
        and not (transposed and rank != len(source.dims))
        and not is_sparse(index, source.tensor)
        and source.tensor not in index.overridable
        and all(_read_once(index, name) for name in (source.tensor, *(node.output[0] for node in nodes)))
    )


def _read_once(index: GraphIndex, tensor: str) -> bool:
    once = len(index.consumers.get(tensor, ())) == 1
    return once and tensor not in index.outputs and tensor not in index.captured


def constant_value(index: GraphIndex, source: ConstantSource) -> NDArray[Any]:
    """The constant's values. Raises UnsupportedError where they can't be computed."""
    return fold(index, source.name)


def scalar(index: GraphIndex, tensor: str) -> float | None:
    """The value of a constant with one element, or None."""
    source = find_constant(index, tensor)
    if source is None or math.prod(source.dims) != 1:
        return None
    value = fold_small(index, tensor)
    return None if value is None or value.dtype.kind not in "biufV" else float(value.reshape(()))


def integers(index: GraphIndex, tensor: str) -> tuple[int, ...] | None:
    """The values of a constant list (or scalar) of integers, or None."""
    value = fold_small(index, tensor)
    if value is None or value.dtype not in (np.int64, np.int32):
        return None
    return tuple(int(item) for item in value.reshape(-1))


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


def holds_rows(node: NodeProto, reader: Reader) -> bool:
    """Whether the weight of a Gemm or MatMul has the features first, (D2, D1·taps): W2 transposed."""
    if reader.op_type == "MatMul":
        return reader.weight_slot == 0
    left = reader.weight_slot == 0
    return bool(int_attribute(node, "transA" if left else "transB", 0)) != left


def canonical_weight(node: NodeProto, reader: Reader, weight: Array) -> Array:
    """W2 (D1/groups·taps, D2) of a reader's own weight; Gemm's alpha is left out."""
    if isinstance(reader.geometry, ConvGeometry):
        if reader.geometry.transposed:  # (D1, D2/groups, *kernel), and the taps the other way round
            flipped = np.flip(weight, tuple(range(2, weight.ndim)))
            groups, taps = reader.geometry.groups, reader.geometry.taps
            parts = flipped.reshape(groups, len(weight) // groups, -1, taps).transpose(1, 3, 0, 2)
            return parts.reshape(len(weight) // groups * taps, -1)
        return weight.reshape(weight.shape[0], -1).T
    matrix = weight.reshape(weight.shape[-2:])
    return matrix.T if holds_rows(node, reader) else matrix


def native_weight(node: NodeProto, reader: Reader, W2: Array, rank: int) -> Array:
    """A reader's own weight, of that rank, from W2: what ``canonical_weight`` undoes."""
    if isinstance(reader.geometry, ConvGeometry):
        kernel, groups, taps = reader.geometry.kernel, reader.geometry.groups, reader.geometry.taps
        if not reader.geometry.transposed:
            return W2.T.reshape(W2.shape[1], -1, *kernel)
        parts = W2.reshape(len(W2) // taps, taps, groups, -1).transpose(2, 0, 3, 1)
        weight = parts.reshape(groups * len(W2) // taps, -1, *kernel)
        return np.flip(weight, tuple(range(2, weight.ndim)))
    matrix = W2.T if holds_rows(node, reader) else W2
    return matrix.reshape((1,) * (rank - 2) + matrix.shape)


def weight_names(index: GraphIndex, site: Site) -> list[str]:
    """The tensors that the site's readers take as their weights; none of a reader that the model does not have."""
    found = []
    for reader in site.linear if site.mode == "replace" else ():
        node = index.nodes[reader.index] if reader.index < len(index.nodes) else None
        if node is not None and node.op_type == reader.op_type and len(node.input) > reader.weight_slot:
            found.append(node.input[reader.weight_slot])
    return found


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
    W2 = canonical_weight(node, reader, _values(index, node.input[reader.weight_slot]))
    bias: Array | None = None
    scale_w, scale_b = 1.0, 1.0
    if reader.op_type == "Gemm":
        scale_w, scale_b = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    if reader.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
        bias = _values(index, node.input[2])
    elif reader.add_index is not None:
        bias = _values(index, index.nodes[reader.add_index].input[bias_slot(index, reader)])
    b2 = np.zeros(reader.features, W2.dtype) if bias is None else bias.reshape(-1) * bias.dtype.type(scale_b)
    W2 = W2 if scale_w == 1.0 else W2 * W2.dtype.type(scale_w)
    b2 = np.broadcast_to(b2, (reader.features,))
    return ReaderWeights(np.ascontiguousarray(W2), np.ascontiguousarray(b2))


def _values(index: GraphIndex, tensor: str) -> Array:
    source = find_constant(index, tensor)
    if source is None:
        raise UsageError(f"'{tensor}' is no constant of this model; take readers from find_sites(model)")
    return cast(Array, constant_value(index, source))
