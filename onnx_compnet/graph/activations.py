"""Activation functions in ONNX: recognising them (one op or many) and writing them.

A function that an exporter spelled out in several ops (GELU by Erf, SiLU as x·Sigmoid(x) …) is recognised by
what it computes: the scalar expression between two tensors is evaluated at a few points and compared with the
definitions in ``evaluate``. The order and grouping of its operations do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_compnet.graph.index import (
    STANDARD_DOMAINS,
    GraphIndex,
    float_attribute,
    text_attribute,
)
from onnx_compnet.graph.weights import constant_value, find_constant, scalar
from onnx_compnet.layers import Activation

Float = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _softplus(z: Float) -> Float:
    return np.logaddexp(0.0, z)


def _sigmoid(z: Float) -> Float:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


_DEFINITIONS: dict[str, Callable[..., Float]] = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z, alpha: np.where(z < 0, alpha * z, z),
    "prelu": lambda z, slope: np.where(z < 0, slope * z, z),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "elu": lambda z, alpha: np.where(z < 0, alpha * np.expm1(np.minimum(z, 0)), z),
    "selu": lambda z, alpha, gamma: gamma * np.where(z < 0, alpha * np.expm1(np.minimum(z, 0)), z),
    "celu": lambda z, alpha: np.where(z < 0, alpha * np.expm1(np.minimum(z, 0) / alpha), z),
    "gelu": lambda z: 0.5 * z * (1 + _erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z * _sigmoid(z),
    "hardswish": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda z, alpha, beta: np.clip(alpha * z + beta, 0, 1),
    "clip": lambda z, low, high: np.clip(z, low, high),
    "softplus": _softplus,
    "softsign": lambda z: z / (1 + np.abs(z)),
    "mish": lambda z: z * np.tanh(_softplus(z)),
    "thresholded_relu": lambda z, alpha: np.where(z > alpha, z, 0),
}


def evaluate(activation: Activation, z: Float) -> Float:
    """The definition: h(z), elementwise, in float64."""
    return _DEFINITIONS[activation.name](np.asarray(z, np.float64), *activation.parameters)


@dataclass(frozen=True)
class ActivationMatch:
    """``result`` = activation(``source``), computed by the nodes at these positions."""

    activation: Activation
    source: str
    result: str
    nodes: tuple[int, ...]


def match_backward(index: GraphIndex, result: str) -> ActivationMatch | None:
    """The activation that produced ``result``, or None."""
    position = index.producers.get(result)
    if position is None:
        return None
    node = index.nodes[position]
    if not node.input or node.output[0] != result:
        return None
    single = _single(index, node)
    if single is not None:
        return ActivationMatch(single, node.input[0], result, (position,))
    if node.op_type in ("Mul", "Div") and node.domain in STANDARD_DOMAINS:
        return _composite(index, result)
    return None


def match_forward(index: GraphIndex, source: str) -> ActivationMatch | None:
    """The activation that is the only reader of ``source``, or None.

    Tensors inside a function of several ops must not be read from elsewhere.
    """
    for result in _downstream(index, source):
        match = match_backward(index, result)
        if match is None or match.source != source:
            continue
        inside = set(match.nodes)
        inner = {index.nodes[i].output[0] for i in match.nodes} - {result}
        closed = all(
            set(index.consumers.get(name, ())) <= inside
            and name not in index.captured
            and (name == source or name not in index.outputs)
            for name in (source, *inner)
        )
        if closed:
            return match
    return None


# ---------------------------------------------------------------- one op


def _single(index: GraphIndex, node: NodeProto) -> Activation | None:
    op = node.op_type
    if node.domain not in STANDARD_DOMAINS:
        return Activation("gelu") if (node.domain, op) == ("com.microsoft", "Gelu") else None
    if op in _PLAIN:
        return Activation(_PLAIN[op])
    if op in _WITH_ATTRIBUTES:
        name, defaults = _WITH_ATTRIBUTES[op]
        return Activation(name, tuple(float_attribute(node, key, value) for key, value in defaults.items()))
    if op == "Gelu":
        return Activation("gelu_tanh" if text_attribute(node, "approximate", "none") == "tanh" else "gelu")
    if op == "Swish":
        return Activation("silu") if float_attribute(node, "alpha", 1.0) == 1.0 else None
    if op == "PRelu":
        slope = find_constant(index, node.input[1])
        if slope is None:
            return None
        return Activation("prelu", (float(np.mean(constant_value(index, slope), dtype=np.float64)),))
    return _clip(index, node) if op == "Clip" else None


_PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSwish": "hardswish",
    "Mish": "mish",
}
_WITH_ATTRIBUTES = {
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Celu": ("celu", {"alpha": 1.0}),
    "HardSigmoid": ("hardsigmoid", {"alpha": 0.2, "beta": 0.5}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
}
_UNBOUNDED = 3.4e38  # exporters write the largest float32 where there is no bound


def _clip(index: GraphIndex, node: NodeProto) -> Activation | None:
    bounds = [float_attribute(node, "min", -math.inf), float_attribute(node, "max", math.inf)]
    for slot, name in enumerate(node.input[1:3]):
        if name:
            value = scalar(index, name)
            if value is None:
                return None
            bounds[slot] = value
    low, high = (math.copysign(math.inf, b) if abs(b) >= _UNBOUNDED else b for b in bounds)
    return Activation("relu") if (low, high) == (0.0, math.inf) else Activation("clip", (low, high))


# ---------------------------------------------------------------- several ops

_MAX_NODES = 16
_UNARY: dict[str, Callable[[Float], Float]] = {
    "Erf": _erf,
    "Tanh": np.tanh,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Exp": np.exp,
    "Log": np.log,
    "Neg": np.negative,
    "Relu": lambda z: np.maximum(z, 0),
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Identity": np.positive,
}
_BINARY: dict[str, Callable[[Float, Float], Float]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Min": np.minimum,
    "Max": np.maximum,
}
_PROBES: Float = np.linspace(-6.0, 6.0, 49)
_TOLERANCE = 1e-4  # √2 may be written as 1.4142; the two GELUs differ by 4.7e-4
_TARGETS: Mapping[str, Float] = {
    name: evaluate(Activation(name), _PROBES) for name in ("gelu", "gelu_tanh", "silu", "hardswish", "mish")
}


def _elementwise(node: NodeProto) -> bool:
    known = node.op_type in _UNARY or node.op_type in _BINARY or node.op_type in ("Clip", "HardSigmoid")
    return known and node.domain in STANDARD_DOMAINS


def _composite(index: GraphIndex, result: str) -> ActivationMatch | None:
    for source in _upstream(index, result):
        values: dict[str, Float] = {source: _PROBES}
        nodes: set[int] = set()
        with np.errstate(all="ignore"):
            found = _value(index, result, values, nodes)
        if found is None or found.shape != _PROBES.shape:
            continue
        for name, target in _TARGETS.items():
            if np.max(np.abs(found - target)) < _TOLERANCE:
                return ActivationMatch(Activation(name), source, result, tuple(sorted(nodes)))
    return None


def _value(index: GraphIndex, name: str, values: dict[str, Float], nodes: set[int]) -> Float | None:
    """The value of a tensor where ``values`` are known; None where something else than those is read."""
    if name in values:
        return values[name]
    constant = scalar(index, name)
    if constant is not None:
        return np.array(constant, np.float64)
    position = index.producers.get(name)
    if position is None or len(nodes) >= _MAX_NODES or not _elementwise(index.nodes[position]):
        return None
    node = index.nodes[position]
    nodes.add(position)
    op = node.op_type
    read = node.input[:1] if op == "Clip" else node.input
    inputs = [_value(index, item, values, nodes) for item in read]
    if any(item is None for item in inputs):
        return None
    arguments: list[Any] = inputs
    if op in _UNARY and len(arguments) == 1:
        values[name] = _UNARY[op](arguments[0])
    elif op in _BINARY and len(arguments) == 2:
        values[name] = _BINARY[op](arguments[0], arguments[1])
    elif op in ("Clip", "HardSigmoid"):
        known = _single(index, node)
        if known is None:
            return None
        values[name] = evaluate(known, arguments[0])
    else:
        return None
    return values[name]


def _upstream(index: GraphIndex, result: str) -> list[str]:
    """The tensors that an expression may start from, nearest first."""
    found: dict[str, None] = {}
    expanded = 0
    pending = [result]
    while pending and expanded < _MAX_NODES:
        name = pending.pop(0)
        node = index.producer(name)
        if node is None or not _elementwise(node):
            continue
        expanded += 1
        for item in node.input:
            if item and item not in found and find_constant(index, item) is None:
                found[item] = None
                pending.append(item)
    return list(found)


def _downstream(index: GraphIndex, source: str) -> list[str]:
    """The tensors that an activation of ``source`` may end in, nearest first."""
    found: dict[str, None] = {}
    pending = [source]
    while pending and len(found) < 2 * _MAX_NODES:
        for position in index.readers(pending.pop(0)):
            node = index.nodes[position]
            if node.output and node.output[0] and node.output[0] not in found:
                found[node.output[0]] = None
                if _elementwise(node):
                    pending.append(node.output[0])
    return list(found)
