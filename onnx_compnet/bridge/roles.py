"""What each floating-point constant of a graph is for: a weight, a running statistic or a constant of an op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_compnet.graph.weights import FLOATS

Role = Literal["parameter", "statistic", "constant", "frozen"]

_WEIGHTS: dict[str, tuple[int, ...]] = {  # the inputs that are weights even with one element
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "RMSNormalization": (1,), "PRelu": (1,), "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
_STATISTICS = ("BatchNormalization", (3, 4))
_SETTINGS: dict[str, tuple[int, ...]] = {  # the inputs that set how an op works
    "Clip": (1, 2), "Resize": (1, 2, 3), "Upsample": (1,), "Pad": (1, 2), "Dropout": (1,), "Pow": (1,),
    "Range": (0, 1, 2), "OneHot": (2,), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2),
    "Greater": (0, 1), "GreaterOrEqual": (0, 1), "Less": (0, 1), "LessOrEqual": (0, 1), "Equal": (0, 1),
    "NonMaxSuppression": (3, 4),
}  # fmt: skip


_STATES: dict[str, tuple[int, ...]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""the inputs that are initial states"""


_NO_GRADIENT = frozenset((
    "And", "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "Or", "Round", "Shape", "Sign", "Size", "Xor",
))  # fmt: skip


_BUILDERS = ("ScatterElements", "ScatterND", "Where")
"""of constants alone these make masks, not weights"""


def learnable(
    nodes: Sequence[NodeProto], outputs: Iterable[str], constants: Iterable[str], *, states: bool = True
) -> set[str]:
    """The tensors that a gradient of the outputs can reach and that no mask is made of.

    What a comparison reads gets no gradient; a mask gets one, but nothing was learnt in it. Without ``states`` what
    is reached through recurrent layers' initial states alone is left out.
    """
    fixed = {"", *constants}
    for node in nodes:
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
    found = set(outputs)
    for node in reversed(nodes):
        if found.isdisjoint(node.output) or node.op_type in _NO_GRADIENT or _casts_to_integers(node):
            continue
        if node.op_type in _BUILDERS and fixed.issuperset(node.input):
            continue
        settings = _SETTINGS.get(node.op_type, ()) if node.op_type != "Where" else (0,)
        settings = settings if states else (*settings, *_STATES.get(node.op_type, ()))
        found.update(name for place, name in enumerate(node.input) if name and place not in settings)
    return found


def _casts_to_integers(node: NodeProto) -> bool:
    return (
        node.op_type == "Cast" and next(item.i for item in node.attribute if item.name == "to") not in FLOATS
    )


def role_of(
    value: NDArray[np.floating], readers: Iterable[tuple[NodeProto, int]], products: set[str]
) -> Role:
    """The role of a constant by the (node, input) pairs that read it.

    One element alone is a weight where a layer holds it (a bias of one channel, PRelu's slope) or where it is added
    to one of ``products``, the outputs of MatMul; else it is a constant: √2, 0.5, an epsilon. Larger ones are
    weights unless every reader takes them for settings, or unless they hold infinities (masks).
    """
    slots = [(node.op_type, place, node) for node, place in readers]
    if not value.size or not slots or all(place in _SETTINGS.get(op, ()) for op, place, _ in slots):
        return "constant"
    statistics = [op == _STATISTICS[0] and place in _STATISTICS[1] for op, place, _ in slots]
    if any(statistics):
        return "statistic" if all(statistics) else "frozen"
    if value.size == 1:
        held = any(place in _WEIGHTS.get(op, ()) for op, place, _ in slots)
        added = value.ndim > 0 and any(op == "Add" and products & set(node.input) for op, _, node in slots)
        return "parameter" if held or added else "constant"
    return "parameter" if np.isfinite(value).all() else "frozen"


def readers_of(nodes: Iterable[NodeProto]) -> Mapping[str, list[tuple[NodeProto, int]]]:
    """tensor → the (node, input) pairs that read it."""
    found: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:
        for place, name in enumerate(node.input):
            if name:
                found.setdefault(name, []).append((node, place))
    return found


def products_of(nodes: Iterable[NodeProto]) -> set[str]:
    """The outputs of MatMul."""
    return {node.output[0] for node in nodes if node.op_type == "MatMul"}
