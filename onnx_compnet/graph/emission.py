"""Writing an activation function in the ops that a model's opset has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import UnsupportedError
from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation

SOURCE, RESULT = "x", "y"


@dataclass(frozen=True)
class EmittedNode:
    """A node with local names: inputs are "x", a constant's or another node's output; "" is an absent one."""

    op_type: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[tuple[str, float | int | str], ...] = ()


@dataclass(frozen=True)
class Emission:
    """An activation as nodes in topological order: reads "x", the last one writes "y"."""

    nodes: tuple[EmittedNode, ...]
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)


def emit(
    activation: Activation, opset: int, channels: int = 1, spatial_rank: int = 0, dtype: str = "float32"
) -> Emission:
    """The activation as ops of the standard domain at ``opset`` (7 or newer).

    ``channels`` and ``spatial_rank`` (axes after the channels) shape a PRelu's slopes: (channels, 1, …).
    Constants have ``dtype``.

    Raises:
        UnsupportedError: the opset has no way to write it.
    """
    return _Writer(opset, np.dtype(dtype), channels, spatial_rank).write(activation)


_PLAIN = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
}
_WITH_ATTRIBUTES = {
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "selu": "Selu",
    "hardsigmoid": "HardSigmoid",
}


class _Writer:
    def __init__(self, opset: int, dtype: np.dtype[Any], channels: int, spatial_rank: int) -> None:
        self.opset, self.dtype, self.channels, self.spatial_rank = opset, dtype, channels, spatial_rank
        self.nodes: list[EmittedNode] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def write(self, activation: Activation) -> Emission:
        name, values = activation.name, activation.parameters
        attributes = dict(zip(ACTIVATION_PARAMETERS[name], values, strict=True))
        if name in _PLAIN:
            self.add(_PLAIN[name], SOURCE, result=RESULT)
        elif name in _WITH_ATTRIBUTES:
            self.add(_WITH_ATTRIBUTES[name], SOURCE, result=RESULT, **attributes)
        else:
            getattr(self, f"_{name}")(*values)
        if activation.share != 1:
            self._mix_with_identity(activation.share)
        return Emission(tuple(self.nodes), self.constants)

    def _mix_with_identity(self, share: float) -> None:
        """x + share·(h(x) − x), the share a weight of each channel."""
        self.nodes[-1] = replace(self.nodes[-1], output="h")
        self.constants["share"] = np.full(self._by_channel, share, self.dtype)
        bend = self.add("Mul", self.add("Sub", "h", SOURCE), "share")
        self.add("Add", SOURCE, bend, result=RESULT)

    @property
    def _by_channel(self) -> tuple[int, ...]:
        return (self.channels,) + (1,) * self.spatial_rank

    def add(self, op: str, *inputs: str, result: str = "", **attributes: float | str) -> str:
        output = result or f"{op}_{len(self.nodes)}"
        self.nodes.append(EmittedNode(op, inputs, output, tuple(attributes.items())))
        return output

    def constant(self, name: str, value: float) -> str:
        self.constants[name] = np.array(value, self.dtype)
        return name

    def _prelu(self, slope: float) -> None:
        self.constants["slope"] = np.full(self._by_channel, slope, self.dtype)
        self.add("PRelu", SOURCE, "slope", result=RESULT)

    def _clip(self, low: float, high: float) -> None:
        if self.opset < 11:
            bounds = {key: value for key, value in (("min", low), ("max", high)) if math.isfinite(value)}
            self.add("Clip", SOURCE, result=RESULT, **bounds)
            return
        inputs = [SOURCE]
        inputs.append(self.constant("min", low) if math.isfinite(low) else "")
        inputs.append(self.constant("max", high) if math.isfinite(high) else "")
        while not inputs[-1]:
            inputs.pop()
        self.add("Clip", *inputs, result=RESULT)

    def _celu(self, alpha: float) -> None:
        if self.opset >= 12 and self.dtype == np.float32:  # the op is defined for float32 alone
            self.add("Celu", SOURCE, result=RESULT, alpha=alpha)
            return
        scale = self.constant(
            "alpha", alpha
        )  # alpha·elu(x/alpha) is max(0, x) + min(0, alpha·(exp(x/alpha) − 1))
        inner = self.add("Elu", self.add("Div", SOURCE, scale), alpha=1.0)
        self.add("Mul", inner, scale, result=RESULT)

    def _gelu(self) -> None:
        if self.opset >= 20:
            self.add("Gelu", SOURCE, result=RESULT)
            return
        if self.opset < 9:
            raise UnsupportedError(
                f"gelu needs the op Erf, which opset {self.opset} does not have; "
                "take gelu_tanh or another activation, or convert the model to opset 9 or newer"
            )
        scaled = self.add("Div", SOURCE, self.constant("sqrt_2", math.sqrt(2)))
        bracket = self.add("Add", self.add("Erf", scaled), self.constant("one", 1.0))
        self.add("Mul", self.add("Mul", SOURCE, bracket), self.constant("half", 0.5), result=RESULT)

    def _gelu_tanh(self) -> None:
        if self.opset >= 20:
            self.add("Gelu", SOURCE, result=RESULT, approximate="tanh")
            return
        cube = self.add("Mul", self.add("Mul", SOURCE, SOURCE), SOURCE)
        cubic = self.add("Mul", cube, self.constant("cubic", 0.044715))
        inner = self.add(
            "Mul", self.add("Add", SOURCE, cubic), self.constant("scale", math.sqrt(2 / math.pi))
        )
        bracket = self.add("Add", self.add("Tanh", inner), self.constant("one", 1.0))
        self.add("Mul", self.add("Mul", SOURCE, bracket), self.constant("half", 0.5), result=RESULT)

    def _silu(self) -> None:
        self.add("Mul", SOURCE, self.add("Sigmoid", SOURCE), result=RESULT)

    def _hardswish(self) -> None:
        if self.opset >= 14:
            self.add("HardSwish", SOURCE, result=RESULT)
        else:
            self.add("Mul", SOURCE, self.add("HardSigmoid", SOURCE, alpha=1 / 6, beta=0.5), result=RESULT)

    def _mish(self) -> None:
        if self.opset >= 18:
            self.add("Mish", SOURCE, result=RESULT)
        else:
            self.add("Mul", SOURCE, self.add("Tanh", self.add("Softplus", SOURCE)), result=RESULT)

    def _thresholded_relu(self, alpha: float) -> None:
        if self.opset >= 10:
            self.add("ThresholdedRelu", SOURCE, result=RESULT, alpha=alpha)
            return
        above = self.add("Greater", SOURCE, self.constant("alpha", alpha))
        kind = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}[self.dtype.name]
        self.add("Mul", SOURCE, self.add("Cast", above, to=kind), result=RESULT)
