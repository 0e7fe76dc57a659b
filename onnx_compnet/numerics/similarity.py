"""The similarity of neurons, Eq. 7."""

from __future__ import annotations

from torch import Tensor

from onnx_compnet.errors import UsageError

MAX_CORRELATION = 1 - 1e-6


def similarity(r: Tensor) -> Tensor:
    """``R_jk = |r_jk| / (1 − |r_jk|)`` for j ≠ k and ``R_jj = 0`` (Eq. 7), float64.

    ``r`` (Dn, Dn) holds the correlations of the regressors. Raises UsageError when it is not square.

    Differs from the paper: |r| is capped at 1 − 1e-6, which lies above the noise of float32 sums, so that R
    is finite, and of two equal neurons one survives.
    """
    if r.ndim != 2 or r.shape[0] != r.shape[1]:
        raise UsageError(f"correlations form a square matrix, not one of shape {tuple(r.shape)}")
    magnitude = r.double().abs().clamp(max=MAX_CORRELATION)
    return (magnitude / (1 - magnitude)).fill_diagonal_(0.0)
