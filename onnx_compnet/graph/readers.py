"""Linear nodes: which of them can be readers of a site, with what geometry, and why the others can't."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import NodeProto

from onnx_compnet.graph.flatten import RESHAPING, unflatten
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
from onnx_compnet.graph.weights import (
    FLOATS,
    ConstantSource,
    FloatName,
    find_constant,
    holds_rows,
)
from onnx_compnet.layers import ConvGeometry, DenseGeometry

OLDEST_OPSET = 7
SUPPORTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LINEAR_OPS = frozenset(
    (
        *SUPPORTED,
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv"),
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

    Its weight may be any constant: shared, sparse, dequantised, or computed from constants otherwise.

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
    read = {"Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op_type]
    direct = read(index, position, node)
    _check_not_quantised(index, node, direct.reader.weight_slot)
    return [direct, *_flattened(index, direct)]


def _why_not_supported(node: NodeProto) -> str:
    if node.op_type in _QUANTISED:
        return "it is quantised; grow the float model and quantise the child"
    if node.op_type == "DeformConv":
        return "where a DeformConv reads depends on its data, so that no linear layer can take its place"
    where = f" of the domain '{node.domain}'" if node.domain not in STANDARD_DOMAINS else ""
    return f"the op {node.op_type}{where} can't be a reader; export the model without fused ops"


# ---------------------------------------------------------------- weights


def _weight(index: GraphIndex, name: str) -> tuple[ConstantSource, FloatName]:
    source = find_constant(index, name)
    if source is None:
        raise NotAReaderError(f"its weight is {_origin(index, name)}, not a constant")
    if source.dtype is None:
        raise NotAReaderError(f"its weight '{name}' is neither {', '.join(FLOATS.values())}; cast it to one")
    if 0 in source.dims:
        raise NotAReaderError(f"its weight '{name}' is empty")
    computed = any(not is_op(index.nodes[i], "Identity", "Transpose") for i in source.path)
    if computed and name in index.swayed:
        raise NotAReaderError(
            f"its weight '{name}' is computed from what the caller may replace (an initialiser among the inputs)"
        )
    return source, source.dtype


def _origin(index: GraphIndex, name: str) -> str:
    producer = index.producer(name)
    if producer is not None and is_op(producer, "Constant"):
        return f"an unreadable {describe(producer)}"
    if producer is not None:
        return f"computed by {describe(producer)}" + (_FOLD if name in index.unfed else "")
    return f"the graph input '{name}'" if name in index.inputs else f"unknown ('{name}')"


def _check_bias(index: GraphIndex, node: NodeProto, features: int, *, left: bool = False) -> None:
    """Check that the third input, where there is one, is a constant: ``features`` numbers or one number."""
    if len(node.input) < 3 or not node.input[2]:
        return
    source = find_constant(index, node.input[2])
    if source is None:
        raise NotAReaderError(f"its bias is {_origin(index, node.input[2])}, not a constant")
    rows, columns = (1, 1, *source.dims)[-2:]
    along, across = (rows, columns) if left else (columns, rows)
    if along not in (1, features) or across != 1:
        what = "column to column" if left else "row to row"
        raise NotAReaderError(
            f"its bias '{source.name}' of shape {source.dims} differs from {what}; write it as an Add behind it"
        )


def _check_data(index: GraphIndex, name: str) -> None:
    if name in index.constants:
        raise NotAReaderError(f"its input '{name}' is a constant")


def _check_not_quantised(index: GraphIndex, node: NodeProto, weight_slot: int) -> None:
    """Refuse a layer in QDQ form: onnxruntime runs it in integers. A dequantised weight alone is none."""
    weight = find_constant(index, node.input[weight_slot])
    assert weight is not None
    producer = index.producer(node.input[1 - weight_slot])
    while producer is not None and is_op(producer, *RESHAPING, "Identity", "Transpose"):
        producer = index.producer(producer.input[0])
    data_dequantised = producer is not None and is_op(producer, "DequantizeLinear")
    if data_dequantised and any(is_op(index.nodes[i], "DequantizeLinear") for i in weight.path):
        raise NotAReaderError(
            "it is quantised (its input and weight come from DequantizeLinear); "
            "growing in front of it needs mode block"
        )


# ---------------------------------------------------------------- the readers


def _conv(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    _check_data(index, node.input[0])
    transposed = node.op_type == "ConvTranspose"
    groups = int_attribute(node, "group", 1)
    source, dtype = _weight(index, node.input[1])
    if len(source.dims) not in (3, 4, 5):
        raise NotAReaderError(
            f"its weight has the shape {source.dims}; {node.op_type} of one to three spatial axes can be read"
        )
    features, channels, *kernel = source.dims
    if transposed:
        features, channels = channels * groups, features // max(groups, 1)
    if groups < 1 or features % groups or source.dims[0] % groups:
        raise NotAReaderError(f"its weight of shape {source.dims} can't be shared out among {groups} groups")
    _check_bias(index, node, features)
    axes = len(kernel)
    geometry = ConvGeometry(
        kernel=tuple(kernel),
        strides=ints_attribute(node, "strides") or (1,) * axes,
        dilations=ints_attribute(node, "dilations") or (1,) * axes,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=text_attribute(node, "auto_pad", "NOTSET") or "NOTSET",
        groups=groups,
        transposed=transposed,
        output_padding=(ints_attribute(node, "output_padding") or ()) if transposed else (),
        output_shape=(ints_attribute(node, "output_shape") or ())[-axes:] if transposed else (),
    )
    reader = Reader(label(node), node.op_type, position, node.input[0], node.output[0], features, geometry)
    return Candidate(node.input[0], reader, channels * groups, 1, dtype, spatial=True)


def _matrix(index: GraphIndex, node: NodeProto) -> tuple[ConstantSource, FloatName, int]:
    """The constant operand of a Gemm or MatMul, and which of the two it is."""
    first, second = node.input[:2]
    if first in index.constants:
        _check_data(index, second)
        slot = 0
    elif second in index.unfed:
        slot = 1
    elif first in index.unfed:
        slot = 0
    else:
        computed = _origin(index, second)
        raise NotAReaderError(
            f"its second operand is {computed}: a product of two tensors has no constant weight"
        )
    source, dtype = _weight(index, node.input[slot])
    what = f"its weight '{source.name}' of shape {source.dims}"
    if len(source.dims) < 2:
        raise NotAReaderError(
            f"{what} is a vector, so that its output has no axis of features; "
            "make it a matrix, with a Squeeze behind the product"
        )
    if any(size != 1 for size in source.dims[:-2]):
        raise NotAReaderError(
            f"{what} is a batch of {math.prod(source.dims[:-2])} matrices; "
            "one matrix for the whole tensor is what can be fitted"
        )
    return source, dtype, slot


def _gemm(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    source, dtype, slot = _matrix(index, node)
    left = slot == 0
    data_first = bool(int_attribute(node, "transB" if left else "transA", 0)) != left
    geometry = DenseGeometry(channel_axis=0 if data_first else -1, output_axis=0 if left else -1)
    data = node.input[1 - slot]
    reader = Reader(label(node), "Gemm", position, data, node.output[0], 0, geometry)
    features, channels = source.dims if holds_rows(node, reader) else reversed(source.dims)
    _check_bias(index, node, features, left=left)
    reader = replace(reader, features=features)
    return Candidate(data, reader, channels, geometry.channel_axis, dtype, spatial=False)


def _matmul(index: GraphIndex, position: int, node: NodeProto) -> Candidate:
    source, dtype, slot = _matrix(index, node)
    data = node.input[1 - slot]
    shape = index.shape(data)
    if shape is not None and len(shape) < 2:
        raise NotAReaderError(f"its input '{data}' is a vector without a sample axis")
    axis = -1 if slot else -2
    features, channels = source.dims[-2:] if slot == 0 else reversed(source.dims[-2:])
    add = _bias_add(index, node, features, axis)
    output = node.output[0] if add is None else index.nodes[add].output[0]
    geometry = DenseGeometry(channel_axis=axis, output_axis=axis)
    reader = Reader(label(node), "MatMul", position, data, output, features, geometry, add)
    return Candidate(data, reader, channels, axis, dtype, spatial=False)


def _bias_add(index: GraphIndex, node: NodeProto, features: int, axis: int) -> int | None:
    """The position of the Add that gives a MatMul its bias on ``axis``, if there is one."""
    product = node.output[0]
    reading = index.consumers.get(product, ())
    if len(reading) != 1 or product in index.outputs or product in index.captured:
        return None
    add = index.nodes[reading[0]]
    if not is_op(add, "Add") or len(add.input) != 2:
        return None
    source = find_constant(index, add.input[1] if add.input[0] == product else add.input[0])
    if source is None or math.prod(source.dims) != features:
        return None
    if not source.dims or (1, *source.dims)[axis] != features:
        return None
    shape = index.shape(product)
    rank = 2 if shape is None else len(shape)
    return reading[0] if len(source.dims) <= rank else None


def _flattened(index: GraphIndex, direct: Candidate) -> Iterator[Candidate]:
    if direct.spatial or direct.channel_axis != -1:
        return
    for found in unflatten(index, direct.tensor, direct.channels):
        assert isinstance(direct.reader.geometry, DenseGeometry)
        geometry = replace(direct.reader.geometry, channel_axis=1, taps=found.taps, flattened=True)
        reader = replace(direct.reader, geometry=geometry, between=found.between)
        yield Candidate(found.tensor, reader, found.channels, 1, direct.dtype, spatial=True)
