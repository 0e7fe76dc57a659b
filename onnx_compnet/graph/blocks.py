"""Block sites: a tensor that gets a layer of its own and a linear layer behind it, whatever reads it.

Mode block stands in where a tensor's readers can't be solved anew. Nothing that reads the tensor changes: the
new linear layer's output takes over the tensor's name, and what fed the tensor gets a new one.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from onnx import NodeProto, TensorProto

from onnx_compnet.graph.bounds import bounds
from onnx_compnet.graph.index import STANDARD_DOMAINS, GraphIndex, int_attribute, label
from onnx_compnet.graph.readers import OLDEST_OPSET
from onnx_compnet.graph.structures import Reader, Site
from onnx_compnet.graph.weights import FLOATS, find_constant
from onnx_compnet.layers import Activation, ConvGeometry, DenseGeometry, Dimension

# Ops that say where the channels of their first input and output lie.
_FIRST = frozenset(
    (
        *("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
        *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool", "LRN"),
        *("Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "GridSample", "MaxUnpool", "PRelu"),
    )
)
_LAST = frozenset(
    (
        *("MatMul", "Gemm", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "EmbedLayerNormalization", "Attention", "FusedMatMul"),
        *("Softmax", "LogSoftmax"),
    )
)
_SAME_LAYOUT = frozenset(
    (
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Max",
            "Min",
            "Sum",
            "Mean",
            "Where",
            "Concat",
            "Split",
            "Slice",
        ),
        *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "HardSigmoid"),
        *("Clip", "Softplus", "Softsign", "Mish", "Swish", "Erf", "Sqrt", "Exp", "Abs", "Neg", "Identity"),
        *("Dropout", "Pad", "Cast", "QuantizeLinear", "DequantizeLinear", "ThresholdedRelu", "Reciprocal"),
    )
)
_LOOK = 64  # tensors looked at before the rank decides

ChannelAxis = Literal[1, -1]


class NotABlockError(Exception):
    """Why a tensor can't be a block site; never leaves the graph room."""


def block_site(index: GraphIndex, tensor: str, activation: Activation) -> Site:
    """The block site at ``tensor``, without a name.

    Raises:
        NotABlockError: with the reason, as the rest of a sentence that starts with the tensor.
    """
    if find_constant(index, tensor) is not None:
        raise NotABlockError("is a constant")
    if tensor in index.constants:
        raise NotABlockError("is computed from constants alone")
    if index.opset < OLDEST_OPSET:
        raise NotABlockError(f"belongs to a model of opset {index.opset}, older than {OLDEST_OPSET}")
    if tensor in index.inputs and (tensor in index.captured or tensor in index.outputs):
        raise NotABlockError("is an input of the model that a body or the caller reads as well")
    read_by = list(dict.fromkeys(label(index.nodes[i]) for i in index.readers(tensor)))
    if tensor in index.captured:
        read_by.append(label(index.nodes[index.captured[tensor]]))
    if not read_by and tensor not in index.outputs:
        raise NotABlockError("is read by nothing")
    elem_type = index.types[tensor].tensor_type.elem_type if tensor in index.types else 0
    dtype = FLOATS.get(elem_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(elem_type).lower() if elem_type else "of a type that is not known"
        raise NotABlockError(f"is {kind}, not {', '.join(FLOATS.values())}")
    shape = index.shape(tensor)
    if shape is None:
        raise NotABlockError("has no known rank")
    if len(shape) < 2:
        raise NotABlockError(f"has {len(shape)} axes; samples and channels make two")
    if 0 in shape:
        raise NotABlockError("has no elements")
    axis = _channel_axis(index, tensor, shape)
    channels = shape[axis]
    if not isinstance(channels, int) or channels < 1:
        raise NotABlockError(f"has no fixed number of channels on axis {axis} of {_shown(shape)}")
    spatial = shape[2:] if axis == 1 else ()
    geometry = _identity(len(spatial)) if spatial else DenseGeometry()
    producer = index.producers.get(tensor, -1)
    reader = Reader(f"a linear layer to '{tensor}'", "Block", producer, tensor, tensor, channels, geometry)
    return Site(
        name="",
        tensor=tensor,
        kind="conv" if spatial else "gemm" if len(shape) == 2 else "matmul",
        channels=channels,
        linear=(reader,),
        activation=activation,
        spatial=spatial,
        rank=len(shape),
        dtype=dtype,
        channel_axis=axis if spatial else -1,
        mode="block",
        read_by=tuple(read_by),
        bounds=bounds(index, tensor),
    )


def _identity(axes: int) -> ConvGeometry:
    """A Conv of kernel 1: the linear layer of a block."""
    ones = (1,) * axes
    return ConvGeometry(kernel=ones, strides=ones, dilations=ones, pads=(0,) * (2 * axes))


def _shown(shape: tuple[Dimension, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def _channel_axis(index: GraphIndex, tensor: str, shape: tuple[Dimension, ...]) -> ChannelAxis:
    """Axis 1 or the last one, as the nearest op says that knows; by the rank where none does."""
    rank = len(shape)
    if rank == 2:
        return -1
    if rank <= 5:
        seen, pending = {tensor}, deque([tensor])
        while pending and len(seen) < _LOOK:
            current = pending.popleft()
            for node, name in _neighbours(index, current):
                axis = _says(node, current)
                if axis is not None:
                    return axis
                if name not in seen and node.op_type in _SAME_LAYOUT:
                    known = index.shape(name)
                    if known is not None and len(known) == rank:
                        seen.add(name)
                        pending.append(name)
        if rank in (4, 5):
            return 1
    return -1


def _neighbours(index: GraphIndex, tensor: str) -> list[tuple[NodeProto, str]]:
    """(node, the tensor on its other side) for each node that reads or produces ``tensor``."""
    found: list[tuple[NodeProto, str]] = []
    producer = index.producer(tensor)
    for node in [index.nodes[i] for i in index.readers(tensor)]:
        found += [(node, name) for name in node.output if name]
    if producer is not None:
        found += [(producer, name) for name in producer.input if name]
        if not any(producer.input):
            found.append((producer, tensor))
    return found


def _says(node: NodeProto, tensor: str) -> ChannelAxis | None:
    """The channel axis of ``tensor`` as the node sees it, or None where it does not say."""
    if node.domain not in (*STANDARD_DOMAINS, "com.microsoft"):
        return None
    if node.op_type in ("Softmax", "LogSoftmax"):
        return -1 if int_attribute(node, "axis", -1) == -1 else None
    if node.op_type in _FIRST and tensor in (node.input[0], *node.output):
        return 1
    if node.op_type in _LAST and tensor in (*node.input[:2], *node.output):
        return -1
    return None
