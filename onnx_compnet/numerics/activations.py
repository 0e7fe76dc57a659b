"""Activation functions h on torch tensors, by the definitions of the ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from onnx_compnet.layers import Activation


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus turns linear at 20; this form is exact to rounding everywhere
    return torch.relu(x) + torch.log1p(torch.exp(-x.abs()))


def _thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda x, alpha: torch.where(x < 0, alpha * x, x),
    "prelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x.clamp(max=0)), x),
    "selu": lambda x, alpha, gamma: gamma * torch.where(x < 0, alpha * torch.expm1(x.clamp(max=0)), x),
    "celu": lambda x, alpha: x.clamp(min=0) + (alpha * torch.expm1(x / alpha)).clamp(max=0),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: x * torch.sigmoid(x),
    "hardswish": lambda x: x * (x / 6 + 0.5).clamp(0, 1),
    "hardsigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "clip": lambda x, low, high: x.clamp(low, high),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + x.abs()),
    "mish": lambda x: x * torch.tanh(_softplus(x)),
    "thresholded_relu": _thresholded_relu,
}


def apply(activation: Activation, x: Tensor, channel_axis: int = 1) -> Tensor:  # noqa: ARG001
    """``A = h(x)``, elementwise, in the dtype and on the device of ``x``.

    ``channel_axis`` says where the neurons lie; every activation of today is the same for all neurons (a
    PRelu has one slope), so it changes nothing yet.
    """
    A = _FUNCTIONS[activation.name](x, *activation.parameters)
    return A if activation.share == 1 else x + activation.share * (A - x)


def value_and_slope_at_zero(activation: Activation) -> tuple[float, float]:
    """``(h(0), h'(0))``, what Kumar's rule needs.

    At a kink the slope is the root mean square of the left and the right one, so that Kumar's rule
    ``Var = 1/(fan_in·h'(0)²·(1 + h(0)²))`` becomes He's ``2/(fan_in·(1 + slope²))`` for ReLU and its kin.
    The slope is 0 for a function that is flat around 0 (a ThresholdedRelu, a Clip to [1, 2]).
    """
    name, p = activation.name, activation.parameters
    if name in ("relu", "leaky_relu", "prelu", "elu"):
        return 0.0, _kink(p[0] if p else 0.0, 1.0)
    if name == "selu":
        alpha, gamma = p
        return 0.0, _kink(alpha * gamma, gamma)
    if name == "thresholded_relu":
        return 0.0, _kink(float(p[0] < 0), float(p[0] <= 0))
    if name == "clip":
        low, high = p
        return min(max(0.0, low), high), _kink(float(low < 0 <= high), float(low <= 0 < high))
    if name == "hardsigmoid":
        alpha, beta = p
        return min(max(0.0, beta), 1.0), _kink(alpha * (0 < beta <= 1), alpha * (0 <= beta < 1))
    return _SMOOTH[name]


_SMOOTH: dict[str, tuple[float, float]] = {
    "sigmoid": (0.5, 0.25),
    "tanh": (0.0, 1.0),
    "celu": (0.0, 1.0),
    "gelu": (0.0, 0.5),
    "gelu_tanh": (0.0, 0.5),
    "silu": (0.0, 0.5),
    "hardswish": (0.0, 0.5),
    "softplus": (math.log(2), 0.5),
    "softsign": (0.0, 1.0),
    "mish": (0.0, math.tanh(math.log(2))),
}


def _kink(left: float, right: float) -> float:
    return math.sqrt((left**2 + right**2) / 2)
