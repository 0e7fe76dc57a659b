"""Directions of a tensor that its readers need most, and neurons that carry them: candidates that saw the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_compnet.layers import Activation
from onnx_compnet.numerics.activations import apply

_RANK = 1e-10  # of the largest eigenvalue: below it a direction does not vary
MARGIN = 0.05
"""of a direction's range on the data, at each end"""

LINEAR_ON: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "elu", "celu", "selu"), (0.0, math.inf)),
    **dict.fromkeys(("gelu", "gelu_tanh"), (4.0, math.inf)),  # off by less than 2e-4 from there on
    "hardswish": (3.0, math.inf),
    "mish": (5.0, math.inf),
    "softplus": (8.0, math.inf),
    "silu": (10.0, math.inf),
    "tanh": (-0.3, 0.3),
    "sigmoid": (-0.5, 0.5),
    "softsign": (-0.05, 0.05),
}
"""Where each activation is linear, to about 1e-3 of what it carries."""
_ODD = ("tanh", "softsign")


def directions(covariance: Tensor, weights: Tensor) -> Tensor:
    """Rows (r, D1), unit variance each, uncorrelated, the most needed first; r is the rank, at most D1.

    ``covariance`` (D1, D1) is that of the tensor t, ``weights`` (D1, m) what its readers multiply it with. Of all
    projections to k directions, the first k rows leave the least of Var‖Wᵀt‖: with S = Cov(t)^½ and S·W = PΣQᵀ, row i
    is (S⁺P_i)ᵀ (data-weighted truncation; Eckart and Young 1936). All rows together lose nothing.
    """
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    varying = values > _RANK * values.max().clamp(min=0)
    if not bool(varying.any()):
        return torch.zeros(0, len(covariance), dtype=torch.float64)
    values, vectors = values[varying], vectors[:, varying]
    weighted = (vectors * values.sqrt()).T @ weights.to(torch.float64)
    P, singular, _ = torch.linalg.svd(weighted, full_matrices=False)
    needed = singular > _RANK * singular.max()
    rows: Tensor = ((vectors / values.sqrt()) @ P[:, needed]).T
    return rows


def linear_on(activation: Activation) -> tuple[float, float]:
    """From where to where h is linear, to about 1e-3; both ends may be infinite."""
    name, parameters = activation.name, activation.parameters
    if name == "clip":
        return parameters[0], parameters[1]
    if name == "hardsigmoid":
        alpha, beta = parameters
        ends = sorted((-beta / alpha, (1 - beta) / alpha)) if alpha else (-1.0, 1.0)
        return ends[0], ends[1]
    if name == "thresholded_relu":
        return parameters[0], math.inf
    return LINEAR_ON[name]


@dataclass(frozen=True, eq=False)
class Carriers:
    """Neurons W (n, D1), b (n,) that carry directions: direction ``of``[i] (n,) is about Σ ``gain``[i]·h(W_i t + b_i)
    over its neurons, plus a constant."""

    W: Tensor
    b: Tensor
    of: Tensor
    gain: Tensor


def carriers(rows: Tensor, low: Tensor, high: Tensor, activation: Activation, *, biased: bool) -> Carriers:
    """Neurons that carry the directions ``rows`` (r, D1) through h next to unchanged.

    ``low`` and ``high`` (r,) are the ends of each direction's range on the data. One neuron a direction where it may
    have a bias, which moves the range to where h is linear, or where h is odd: then the range is shrunk to that.
    Without a bias (behind which zero padding would no longer be a zero of t) there are two otherwise, z and −z, side
    by side: h(z) − h(−z) is odd, and for the rectifiers and their smooth kin it is κz exactly.
    """
    begin, end = linear_on(activation)
    bounded = math.isfinite(begin) and math.isfinite(end)
    everywhere = not (math.isfinite(begin) or math.isfinite(end))
    ones, of = torch.ones_like(low), torch.arange(len(rows), device=rows.device)
    if not biased:
        widest = torch.maximum(low.abs(), high.abs()).clamp(min=1e-12)
        scale = min(-begin, end) / widest if bounded and begin < 0 < end else ones
        W = rows * scale[:, None]
        above = apply(activation, scale)
        if activation.name in _ODD or everywhere:
            return Carriers(W, torch.zeros_like(low), of, 1 / above)
        rise = above - apply(activation, -scale)
        gain = torch.where(rise.abs() > 1e-3 * scale, 1 / rise, torch.zeros_like(rise))
        pairs = torch.stack([W, -W], 1).reshape(-1, rows.shape[1])
        return Carriers(
            pairs, W.new_zeros(len(pairs)), of.repeat_interleave(2), torch.stack([gain, -gain], 1).reshape(-1)
        )
    room = (high - low).clamp(min=1e-12) * MARGIN
    low, high = low - room, high + room
    scale = (end - begin) / (high - low) if bounded else ones
    shift = begin - low * scale if math.isfinite(begin) else end - high if math.isfinite(end) else 0 * low
    inside = torch.stack([low, high]) * scale + shift
    first, last = apply(activation, inside)
    return Carriers(rows * scale[:, None], shift, of, (high - low) / (last - first))
