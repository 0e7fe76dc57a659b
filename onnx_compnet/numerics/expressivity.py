"""How much a layer's width is used, and how much of a wanted change its input can't express."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_compnet.numerics.moments import Covariance, Moments

RHO = 1e-6
LEAST_ROWS_PER_COLUMN = 2


def effective_rank(covariance: Covariance) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007), 0 where nothing varies.

    1 where all channels move together, the number of channels where they are independent and equally strong. NORTH*
    (Maile, Rachelson, Luga, Wilson 2022) grows where the activations' rank comes close to their width.
    """
    values = torch.linalg.eigvalsh(covariance.xx).clamp(min=0)
    total = float(values.sum())
    if not total > 0:
        return 0.0
    shares = values[values > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


@dataclass(frozen=True)
class Bottleneck:
    """Sums over all rows: ``wanted`` = Σ‖v‖², and ``unexpressed``, what no linear map of u makes of it."""

    wanted: float
    unexpressed: float


def bottleneck(parts: list[Moments]) -> Bottleneck | None:
    """The expressivity bottleneck of TINY (Verbockhaven, Rudkiewicz, Chevallier, Charpiat 2024, eq. 5).

    Each Moments has rows u of a layer's input and v = −∂L/∂y of its output (one for each group of a grouped
    convolution). unexpressed = min over ΔW, Δb of Σ‖v − ΔWᵀu − Δb‖², divided by 1 − p/n, as p of n directions are
    fitted by chance alone. None where n < 2p, which says too little.

    Differs from the paper: a bias, the ridge of 1e-6 and the correction for chance.
    """
    wanted = unexpressed = 0.0
    for moments in parts:
        n, p = moments.n, len(moments.mean_u)
        if n < LEAST_ROWS_PER_COLUMN * p:
            return None
        varying = float(moments.yy.sum())
        wanted += varying + n * float(moments.mean_y.square().sum())
        left = max(varying - _explained(moments), 0.0)
        unexpressed += min(left / (1 - p / n), varying)
    return Bottleneck(wanted, unexpressed)


def _explained(moments: Moments) -> float:
    """tr(CᵀG⁻¹C), as a sum over rows."""
    G = moments.uu.clone()
    scale = float(G.diagonal().mean()) if len(G) else 0.0
    if not scale > 0:
        return 0.0
    rho = RHO
    while True:
        shifted = G + rho * scale * torch.eye(len(G), dtype=G.dtype, device=G.device)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            break
        rho *= 10
    half: Tensor = torch.linalg.solve_triangular(factor, moments.uy, upper=False)
    return float(half.square().sum())
