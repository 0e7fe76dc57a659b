"""What a forward pass costs: floating point operations of a model's linear layers, from the shapes it ran with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from onnx import ModelProto, NodeProto

from onnx_compnet.graph.index import GraphIndex, int_attribute
from onnx_compnet.graph.prune import prefix
from onnx_compnet.runtime.device import Device, select
from onnx_compnet.runtime.session import Feeds, Session

Shape: TypeAlias = tuple[int, ...]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def forward_flops(model: ModelProto, feeds: Feeds, device: Device | None = None) -> int:
    """Floating point operations of one run of ``model`` on ``feeds``, two a multiply-add.

    Convolutions, products of matrices (with weights or without) and recurrent layers count; elementwise ops,
    normalisation and pooling do not, nor do nodes inside If, Loop, Scan and functions. The model runs once, and the
    shapes are those that its tensors had. Raises as :class:`onnx_compnet.runtime.session.Session`.
    """
    index = GraphIndex.of(model)
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    shapes |= {name: tuple(item.dims) for name, item in index.sparse.items()}
    shapes |= {name: feed.shape for name, feed in feeds.items()}
    linear = [node for node in model.graph.node if node.op_type in _COUNTS]
    needed = [(node, [*node.input[:2], _result(node)]) for node in linear]
    asked = dict.fromkeys(name for _, names in needed for name in names if name not in shapes)
    measurable = [name for name in asked if name in index.producers]
    if measurable:
        values = Session(prefix(model, measurable), device or select("cpu")).run(feeds)
        shapes |= {name: tuple(value.shape) for name, value in values.items()}
    total = 0
    for node, names in needed:
        first, second, out = (shapes[name] for name in names)
        total += 2 * _COUNTS[node.op_type](node, (first, second), out)
    return total


def _result(node: NodeProto) -> str:
    """A recurrent layer may leave its first output out."""
    return next((name for name in node.output if name), "")


def _conv(_: NodeProto, ins: Sequence[Shape], out: Shape) -> int:
    return math.prod(out) * math.prod(ins[1][1:])


def _conv_transpose(_: NodeProto, ins: Sequence[Shape], __: Shape) -> int:
    return math.prod(ins[0]) * math.prod(ins[1][1:])


def _product(node: NodeProto, ins: Sequence[Shape], out: Shape) -> int:
    transposed = int_attribute(node, "transA", 0) and len(ins[0]) > 1
    return math.prod(out) * ins[0][-2 if transposed else -1]


def _recurrent(node: NodeProto, ins: Sequence[Shape], __: Shape) -> int:
    steps, batch, features = ins[0]
    directions, rows = ins[1][:2]
    hidden = rows // _GATES[node.op_type]
    return steps * batch * directions * rows * (features + hidden)


_COUNTS: dict[str, Callable[[NodeProto, Sequence[Shape], Shape], int]] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), _product),
    **dict.fromkeys(_GATES, _recurrent),
}
