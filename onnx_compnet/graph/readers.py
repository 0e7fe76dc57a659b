"""Linear nodes: which of them can be readers of a site, with what geometry, and why the others can't."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import NodeProto

from onnx_compnet.graph.flatten import unflatten
from onnx_compnet.graph.index import (
    STANDARD_DOMAINS,
    GraphIndex,
    describe,
    int_attribute,
    ints_attribute,
    is_op,
    label,
    text_attribute,
)
from onnx_compnet.graph.structures import Reader
from onnx_compnet.graph.weights import ConstantSource, FloatName, find_constant, usage
from onnx_compnet.layers import ConvGeometry, DenseGeometry

OLDEST_OPSET = 7
SUPPORTED = ("Conv", "Gemm", "MatMul")
LINEAR_OPS = frozenset(
    (
        *SUPPORTED,
        *("ConvTranspose", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv"),
        # onnxruntime's own
        *(
            "FusedConv",
            "FusedGemm",
            "FusedMatMul",
            "FusedMatMulActivation",
            "TransposeMatMul",
            "GemmFastGelu",
        ),
        *(
            "QGemm",
            "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat",
            "MatMulNBits",
            "MatMulBnb4",
            "GemmFloat8",
        ),
        *(
            "NhwcConv",
            "NhwcFusedConv",
            "NhwcMaxPoolConv",
            "SparseToDenseMatMul",
            "ConvTransposeWithDynamicPads",
        ),
    )
)
_FOLD = " from constants (fold them first, with onnxslim for one)"
_QUANTISED = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits")


class NotAReaderError(Exception):
    """Why a linear node can't be a reader; never leaves the graph room."""


@dataclass(frozen=True)
class Candidate:
    """A linear node as a possible reader of ``tensor``, a channel axis of which it contracts."""

    tensor: str
    reader: Reader
    channels: int
    channel_axis: int
    dtype: FloatName
    spatial: bool
    """whether the tensor is (N, C, *spatial)"""


def is_linear(node: NodeProto) -> bool:
    """Whether the node is one that sites and refusals speak of."""
    return node.op_type in LINEAR_OPS


def candidates(index: GraphIndex, position: int) -> list[Candidate]:
    """The tensors that the linear node at ``position`` reads linearly: its input, and those behind a Flatten.

    Raises:
        NotAReaderError: with the reason.
    """
    node = index.nodes[position]
    if node.op_type not in SUPPORTED:
        raise NotAReaderError(_why_not_supported(node))
    if node.domain not in STANDARD_DOMAINS:
        raise NotAReaderError(f"it is an op of the domain '{node.domain}', only standard ops are understood")
    if index.opset < OLDEST_OPSET:
        raise NotAReaderError(
            f"the model has opset {index.opset}, older than {OLDEST_OPSET}; "
            "convert it with onnx.version_converter"
        )
    read = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op_type]
    direct = read(index, position, node)
    return [direct, *_flattened(index, direct)]


def _why_not_supported(node: NodeProto) -> str:
    if node.op_type in _QUANTISED:
        return "it is quantised; grow the float model and quantise the child"
    if node.op_type in ("ConvTranspose", "DeformConv"):
        return f"{node.op_type} can't be a reader in this version"
    where = f" of the domain '{node.domain}'" if node.domain not in STANDARD_DOMAINS else ""
    return f"the op {node.op_type}{where} can't be a reader; export the model without fused ops"


# ---------------------------------------------------------------- weights


def _weight(index: GraphIndex, node: NodeProto) -> ConstantSource:
    name = node.input[1]
    source = find_constant(index, name)
    if source is None:
        raise NotAReaderError(f"its weight is {_origin(index, name)}, not a constant")
    if source.dtype is None:
        raise NotAReaderError(f"its weight '{source.tensor}' is neither float32, float64 nor float16")
    if 0 in source.dims:
        raise NotAReaderError(f"its weight '{source.tensor}' is empty")
    used = usage(index, source)
    if used.count > 1:
        others = [describe(index.nodes[i]) for i in used.users if index.nodes[i] is not node]
        other = others[0] if others else "a graph output, a body or a second input"
        raise NotAReaderError(f"its weight '{source.tensor}' is shared with {other}; give each its own copy")
    return source


def _origin(index: GraphIndex, name: str) -> str:
    producer = index.producer(name)
    if producer is not None and is_op(producer, "Constant"):
        return f"a sparse or unreadable {describe(producer)}"
    if producer is not None:
        return f"computed by {describe(producer)}" + (_FOLD if name in index.constants else "")
    if name in index.inputs:
        return f"the graph input '{name}'"
    return f"a sparse initialiser ('{name}')" if name in index.sparse else f"unknown ('{name}')"


def _row_bias(index: GraphIndex, node: NodeProto, features: int) -> None:
    """Check that the third input, where there is one, is a constant: a row of ``features`` or one number."""
    if len(node.input) < 3 or not node.input[2]:
        return
    source = find_constant(index, node.input[2])
    if source is None:
        raise NotAReaderError(f"its bias is {_origin(index, node.input[2])}, not a constant")
    *rows, columns = source.dims or (1,)
    if columns not in (1, features) or any(size != 1 for size in rows):
        raise NotAReaderError(f"its bias '{source.tensor}' of shape {source.dims} differs from row to row")


def _check_data(index: GraphIndex, name: str) -> None:
    if find_constant(index, name) is not None or name in index.sparse:
        raise NotAReaderError(f"its input '{name}' is a constant")


# ---------------------------------------------------------------- the three readers


def _conv(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    _check_data(index, node.input[0])
    groups = int_attribute(node, "group", 1)
    source = _weight(index, node)
    if len(source.dims) not in (3, 4, 5):
        raise NotAReaderError(
            f"its weight has the shape {source.dims}; Conv of one to three spatial axes can be read"
        )
    features, channels, *kernel = source.dims
    if groups < 1 or features % groups:
        raise NotAReaderError(f"its {features} outputs can't be shared out among {groups} groups")
    _row_bias(index, node, features)
    axes = len(kernel)
    geometry = ConvGeometry(
        kernel=tuple(kernel),
        strides=ints_attribute(node, "strides") or (1,) * axes,
        dilations=ints_attribute(node, "dilations") or (1,) * axes,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=text_attribute(node, "auto_pad", "NOTSET") or "NOTSET",
        groups=groups,
    )
    reader = Reader(label(node), "Conv", position, node.input[0], node.output[0], features, geometry)
    assert source.dtype is not None
    return Candidate(node.input[0], reader, channels * groups, 1, source.dtype, spatial=True)


def _constant_right_operand(index: GraphIndex, node: NodeProto) -> ConstantSource:
    left, right = (find_constant(index, name) for name in node.input[:2])
    if left is not None and right is None:
        raise NotAReaderError(
            f"its constant weight is the left operand; the data '{node.input[1]}' must be the left one"
        )
    _check_data(index, node.input[0])
    if right is None and node.input[1] in index.constants:
        raise NotAReaderError(f"its weight is {_origin(index, node.input[1])}, not a constant")
    if right is None:
        computed = _origin(index, node.input[1])
        raise NotAReaderError(
            f"its second operand is {computed}: a product of two tensors has no constant weight"
        )
    source = _weight(index, node)
    if len(source.dims) != 2:
        raise NotAReaderError(
            f"its weight '{source.tensor}' has the shape {source.dims}; a matrix (two axes) can be fitted"
        )
    return source


def _gemm(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    source = _constant_right_operand(index, node)
    channels, features = reversed(source.dims) if int_attribute(node, "transB", 0) else source.dims
    _row_bias(index, node, features)
    axis = 0 if int_attribute(node, "transA", 0) else -1
    reader = Reader(
        label(node),
        "Gemm",
        position,
        node.input[0],
        node.output[0],
        features,
        DenseGeometry(channel_axis=axis),
    )
    assert source.dtype is not None
    return Candidate(node.input[0], reader, channels, axis, source.dtype, spatial=False)


def _matmul(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    source = _constant_right_operand(index, node)
    channels, features = source.dims
    shape = index.shape(node.input[0])
    if shape is not None and len(shape) < 2:
        raise NotAReaderError(f"its input '{node.input[0]}' is a vector without a sample axis")
    add = _bias_add(index, node, features)
    output = node.output[0] if add is None else index.nodes[add].output[0]
    reader = Reader(label(node), "MatMul", position, node.input[0], output, features, DenseGeometry(), add)
    assert source.dtype is not None
    return Candidate(node.input[0], reader, channels, -1, source.dtype, spatial=False)


def _bias_add(index: GraphIndex, node: NodeProto, features: int) -> int | None:
    """The position of the Add that gives a MatMul its bias, if there is one."""
    product = node.output[0]
    reading = index.consumers.get(product, ())
    if len(reading) != 1 or product in index.outputs or product in index.captured:
        return None
    add = index.nodes[reading[0]]
    if not is_op(add, "Add") or len(add.input) != 2:
        return None
    source = find_constant(index, add.input[1] if add.input[0] == product else add.input[0])
    if source is None or not source.dims or source.dims[-1] != features or math.prod(source.dims) != features:
        return None
    shape = index.shape(product)
    rank = 2 if shape is None else len(shape)
    return reading[0] if len(source.dims) <= rank else None


def _flattened(index: GraphIndex, direct: Candidate) -> Iterator[Candidate]:
    if direct.spatial or direct.channel_axis == 0:
        return
    for found in unflatten(index, direct.tensor, direct.channels):
        geometry = DenseGeometry(channel_axis=1, taps=found.taps, flattened=True)
        reader = replace(direct.reader, geometry=geometry, between=found.between)
        yield Candidate(found.tensor, reader, found.channels, 1, direct.dtype, spatial=True)
