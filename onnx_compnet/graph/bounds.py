"""Between which values a tensor lies by the ops that make it, whatever the model's inputs are."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import NodeProto

from onnx_compnet.graph.activations import match_backward
from onnx_compnet.graph.index import GraphIndex, float_attribute, is_op, text_attribute
from onnx_compnet.graph.weights import scalar
from onnx_compnet.layers import Activation

Bounds = tuple[float, float]

ANYTHING: Bounds = (-math.inf, math.inf)
_FAR = 32  # nodes looked through before the answer is "anything"

# What these give out are values of their first input, or means or maxima of such.
_SAME_VALUES = (
    *("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMax", "ReduceMin", "ReduceMean"),
    *("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"),
    *("Slice", "Split", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth"),
)
_NOT_NEGATIVE = ("Exp", "Abs", "Sqrt", "ReduceL1", "ReduceL2", "ReduceSumSquare", "LpPool", "GlobalLpPool")
_UNIT = ("Softmax", "Hardmax")
_SIGMOIDS = ("sigmoid", "hardsigmoid")


def bounds(index: GraphIndex, tensor: str) -> Bounds:
    """(low, high) of a tensor; infinite where nothing is known."""
    budget = [_FAR]

    def of(name: str) -> Bounds:
        budget[0] -= 1
        node = index.producer(name)
        if node is None or budget[0] < 0:
            return ANYTHING
        if not index.overridable.isdisjoint(node.input):  # what the caller may replace says nothing
            return ANYTHING
        match = match_backward(index, name)
        return _range(match.activation) if match is not None else _through(index, node, of)

    return of(tensor)


def _range(activation: Activation) -> Bounds:
    """All values that an activation can have."""
    name, parameters = activation.name, activation.parameters
    if name == "clip":
        return min(parameters), parameters[1]
    if name in _SIGMOIDS:
        return 0.0, 1.0
    if name in ("tanh", "softsign"):
        return -1.0, 1.0
    if name in ("relu", "softplus") or (name == "thresholded_relu" and parameters[0] >= 0):
        return 0.0, math.inf
    return ANYTHING


def _through(index: GraphIndex, node: NodeProto, of: Callable[[str], Bounds]) -> Bounds:
    """What a node makes of its inputs' bounds."""
    if not node.input or not is_op(node, node.op_type):
        return ANYTHING
    if is_op(node, "Dropout") and len(node.input) > 2:  # in training mode it scales what it leaves
        return ANYTHING
    if is_op(node, *_SAME_VALUES):
        return of(node.input[0])
    if is_op(node, "AveragePool"):  # zeros of the padding may be counted in
        low, high = of(node.input[0])
        return min(low, 0.0), max(high, 0.0)
    if is_op(node, *_NOT_NEGATIVE):
        return 0.0, math.inf
    if is_op(node, *_UNIT):
        return 0.0, 1.0
    if is_op(node, "Resize", "Upsample") and text_attribute(node, "mode", "nearest") != "cubic":
        low, high = of(node.input[0])
        beyond = float_attribute(node, "extrapolation_value", 0.0)
        return min(low, beyond), max(high, beyond)
    if not is_op(node, "Concat", "Max", "Min", "Add", "Sum", "Mul"):
        return ANYTHING
    each = [
        (value, value) if (value := scalar(index, name)) is not None else of(name)
        for name in node.input
        if name
    ]
    lows, highs = zip(*each, strict=True)
    if node.op_type == "Concat":
        return min(lows), max(highs)
    if node.op_type == "Max":
        return max(lows), max(highs)
    if node.op_type == "Min":
        return min(lows), min(highs)
    if node.op_type == "Mul":
        return (0.0, math.inf) if min(lows) >= 0 else ANYTHING
    return sum(lows), sum(highs)
