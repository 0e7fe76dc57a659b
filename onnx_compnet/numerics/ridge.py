"""Least squares for W2 and b2 (Eq. 11) and the error of such a fit, all from moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.numerics.moments import Moments

RHO = 1e-6
MAX_RHO = 1e-2
ENOUGH_ROWS_PER_COLUMN = 5
BELIEVED = 1e-3  # relative errors below this are lost in the rounding of float32 products
ROUNDINGS = (
    32 * torch.finfo(torch.float32).eps
)  # of squared errors, relative to the terms that cancel in them
CONSTANT = 1e-24  # a variance below this share of the squared mean is rounding


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """``y ≈ W2ᵀu + b2``: W2 (p, D2), b2 (D2,), float64; ``rho`` is the ridge that was used, relative to tr
    G/p.

    ``rows_per_column`` is n/p; ``warnings`` tells of a ridge that had to be raised and of n/p below 5.
    """

    W2: Tensor
    b2: Tensor
    rho: float
    jitter_raised: bool
    rows_per_column: float
    warnings: tuple[str, ...] = ()


def fit(moments: Moments, rho: float = RHO, prior: Tensor | None = None) -> RidgeFit:
    """``W2 = (G + ρ·(tr G/p)·I)⁻¹ C`` and ``b2 = ȳ − W2ᵀū``, by Cholesky.

    With ``prior`` W⁰ (p, D2), weights that are known to be good, the ridge pulls towards these and not towards 0:
    W2 = W⁰ + (G + ρ·(tr G/p)·I)⁻¹ (C − G W⁰). Where W⁰ is as good as float32 moments can tell, it is
    taken as it is, however few the rows: what they would change is rounding.

    Raises DataError when n <= p (the fit would be exact on its own rows and worthless on others), UsageError
    for a negative ``rho``.

    Differs from the paper: Eq. 11 has neither intercept nor ridge. Where the factorisation fails, ρ is raised
    tenfold, up to 1e-2, and a warning says so.
    """
    n, (p, D2) = moments.n, moments.uy.shape
    if rho < 0:
        raise UsageError(f"rho = {rho} must not be negative")
    if prior is not None:
        prior = prior.to(moments.uy)
        if n and no_better_is_known(moments, prior):
            return RidgeFit(prior, intercept(moments, prior), rho, False, n / max(p, 1))
    notes = row_notes(n, p)
    factor = factorise(moments, rho)
    if factor is None:  # no column varies
        return RidgeFit(
            torch.zeros_like(moments.uy), moments.mean_y.clone(), rho, False, n / max(p, 1), notes
        )
    notes += factor.warnings
    W2 = torch.zeros_like(moments.uy) if prior is None else prior
    if D2:
        residual = moments.C - moments.G @ W2 if prior is not None else moments.C
        W2 = W2 + torch.cholesky_solve(residual, factor.L)
    return RidgeFit(W2, intercept(moments, W2), factor.rho, factor.rho != rho, n / p, notes)


def row_notes(n: int, p: int) -> tuple[str, ...]:
    """A warning where n rows are few for p columns; DataError where they are no more than the columns."""
    if n <= p:
        raise DataError(
            f"{n} rows can't fit {p} columns: more rows than columns are needed, and ten times as many are "
            f"good; give more samples (at least {5 * p} rows), fewer candidate neurons or a smaller kernel"
        )
    if n >= ENOUGH_ROWS_PER_COLUMN * p:
        return ()
    return (
        f"{n} rows fit {p} columns, n/p = {n / p:.1f}: below {ENOUGH_ROWS_PER_COLUMN} the fit follows "
        f"noise; give more samples ({10 * p} rows are good) or fewer neurons",
    )


@dataclass(frozen=True, eq=False)
class Factor:
    """``L Lᵀ = G + shift·I`` with shift = ρ·tr G/p; ``rho`` is the ρ that was used."""

    L: Tensor
    shift: float
    rho: float
    warnings: tuple[str, ...] = ()


def factorise(moments: Moments, rho: float) -> Factor | None:
    """The Cholesky factor of G with its ridge, which is raised where it fails; None where no column varies."""
    p = len(moments.mean_u)
    scale = float(moments.uu.diagonal().mean()) / max(moments.n, 1) if p else 0.0
    if scale <= 0:
        return None
    used = rho
    L = cholesky(moments.G, used * scale)
    while L is None:
        used = 10 * used if used else 1e-12
        if used > MAX_RHO * (1 + 1e-9):
            raise DataError(
                f"the {p}x{p} covariance of the activations can't be factorised even with a ridge of "
                f"{MAX_RHO:g} of its mean diagonal; look for extreme values in the data"
            )
        L = cholesky(moments.G, used * scale)
    notes: tuple[str, ...] = ()
    if used != rho:
        notes = (
            f"the {p} columns are nearly dependent: the ridge was raised from {rho:g} to {used:g}; "
            "more samples or fewer neurons avoid this",
        )
    return Factor(L, used * scale, used, notes)


def no_better_is_known(moments: Moments, W2: Tensor) -> bool:
    """Whether the errors that the moments show for these weights may be nothing but float32 rounding."""
    b2 = intercept(moments, W2)
    if relative_error(moments, W2, b2) < BELIEVED:
        return True
    size = W2.abs()
    terms = moments.yy + (size * (moments.uu.abs() @ size + 2 * moments.uy.abs())).sum(0)
    return float(squared_errors(moments, W2, b2).sum()) * moments.n < ROUNDINGS * float(terms.sum())


def intercept(moments: Moments, W2: Tensor) -> Tensor:
    """``b2 = ȳ − W2ᵀū``, the best for any W2."""
    return moments.mean_y - moments.mean_u @ W2


def squared_errors(moments: Moments, W2: Tensor, b2: Tensor) -> Tensor:
    """The mean squared error of each output (D2,) on the rows behind ``moments``, fitted or not, at least 0.

    ``v − 2·diag(W2ᵀC) + diag(W2ᵀ G W2) + (ȳ − W2ᵀū − b2)²``. The subtraction cancels: with float32 products a
    relative error below about 1e-3 is not to be believed, measure it by a forward pass there.
    """
    offset = intercept(moments, W2) - b2
    quadratic = (W2 * (moments.uu @ W2 - 2 * moments.uy)).sum(0)
    return ((moments.yy + quadratic) / max(moments.n, 1) + offset**2).clamp(min=0)


def relative_error(moments: Moments, W2: Tensor, b2: Tensor, weights: Tensor | None = None) -> float:
    """ε = (Σ w·squared error / Σ w·variance)^½ over the outputs, w = 1 or ``weights`` (D2,).

    On held-out moments this is the error on rows that were not fitted, without another pass. A target that
    does not vary has error 0 where it is met, infinity where it is not.
    """
    error, v, level = squared_errors(moments, W2, b2), moments.v, moments.mean_y.square()
    if weights is not None:
        error, v, level = error * weights, v * weights, level * weights
    return ratio(float(error.sum()), float(v.sum()), float(level.sum()))


def ratio(error: float, variance: float, level: float) -> float:
    """(error/variance)^½ of sums over outputs; for a target that does not vary 0 where it is met, else infinity.

    ``level`` is the sum of the squared means, which says what is rounding.
    """
    if variance > CONSTANT * level:
        return float((error / variance) ** 0.5)
    return 0.0 if error <= 1e-12 * level else float("inf")


def cholesky(G: Tensor, shift: float) -> Tensor | None:
    """The lower factor of G + shift·I (made in G), or None where that is singular to working precision."""
    G.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(G)
    pivots = factor.diagonal().square()
    floor = len(G) * torch.finfo(G.dtype).eps * G.diagonal().max()
    return None if int(info) or not bool((pivots > floor).all()) else factor
