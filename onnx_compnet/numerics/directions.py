"""Directions of a tensor that its readers need most, and neurons that carry them: candidates that saw the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_compnet.layers import Activation

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


def carriers(
    rows: Tensor, low: Tensor, high: Tensor, activation: Activation, *, biased: bool
) -> tuple[Tensor, Tensor]:
    """W (n, D1) and b (n,) of neurons that carry the directions ``rows`` (r, D1) through h next to unchanged.

    ``low`` and ``high`` (r,) are the ends of each direction's range on the data. One neuron a direction where it may
    have a bias, which moves the range to where h is linear, or where h is odd: then the range is shrunk to that.
    Without a bias (behind which zero padding would no longer be a zero of t) there are two otherwise, z and −z, side
    by side: h(z) − h(−z) is odd, and for the rectifiers and their smooth kin it is κz exactly.
    """
    begin, end = linear_on(activation)
    widest = torch.maximum(low.abs(), high.abs()).clamp(min=1e-12)
    bounded = math.isfinite(begin) and math.isfinite(end)
    if not biased:
        scale = (min(-begin, end) / widest) if bounded and begin < 0 < end else torch.ones_like(low)
        W = rows * scale[:, None]
        if activation.name in _ODD or not (math.isfinite(begin) or math.isfinite(end)):
            return W, torch.zeros_like(low)
        return torch.stack([W, -W], 1).reshape(-1, rows.shape[1]), W.new_zeros(2 * len(rows))
    room = (high - low).clamp(min=1e-12) * MARGIN
    low, high = low - room, high + room
    if bounded:
        scale = (end - begin) / (high - low)
        return rows * scale[:, None], begin - low * scale
    if math.isfinite(begin):
        return rows, begin - low
    return rows, end - high if math.isfinite(end) else torch.zeros_like(low)
