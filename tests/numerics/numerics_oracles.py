"""The slow definitions that decide what is right, and small synthetic sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.layers import Activation, CandidateLayer
from onnx_compnet.numerics.algorithms import Problem
from onnx_compnet.numerics.initialise import candidates
from onnx_compnet.numerics.moments import Covariance, Moments
from onnx_compnet.numerics.rows import new_layer

Vector = NDArray[np.float64]


def similarity_loop(r: Vector) -> Vector:
    """Eq. 7, entry by entry."""
    R = np.zeros_like(r)
    for j in range(len(r)):
        for k in range(len(r)):
            if j != k:
                R[j, k] = abs(r[j, k]) / (1 - abs(r[j, k]))
    return R


def soft(a: float, b: float) -> float:
    """Eq. 10."""
    if abs(a) <= b:
        return 0.0
    return a - b if a > 0 else a + b


def descent_loop(
    K: Vector,
    c: Vector,
    R: Vector,
    lam: float,
    alpha: float,
    start: Vector,
    order: Sequence[int],
    sweeps: int,
) -> Vector:
    """Eq. 9 (Eq. 8 for K = I), coordinate by coordinate, as printed."""
    beta = start.copy()
    for _ in range(sweeps):
        for j in order:
            a = c[j] - sum(K[j, i] * beta[i] for i in range(len(c)) if i != j)
            b = lam * (1 + alpha * sum(R[j, i] * abs(beta[i]) for i in range(len(c)) if i != j))
            beta[j] = soft(float(a), float(b)) / (K[j, j] + alpha * lam * R[j, j])
    return beta


def loss(K: Vector, c: Vector, R: Vector, lam: float, alpha: float, beta: Vector) -> float:
    """F(β), term by term."""
    total = 0.0
    for j in range(len(c)):
        total += lam * abs(beta[j]) - c[j] * beta[j]
        for i in range(len(c)):
            total += beta[i] * K[i, j] * beta[j] / 2 + lam * alpha / 2 * R[i, j] * abs(beta[i] * beta[j])
    return total


def regression(rng: np.random.Generator, n: int, D: int, rank: int | None = None) -> tuple[Vector, Vector]:
    """A standardised X (n, D), correlated through ``rank`` factors, and y that a few columns make."""
    X = rng.standard_normal((n, D))
    if rank is not None:
        X = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, D)) + 0.3 * X
    y = X @ (rng.standard_normal(D) * (rng.random(D) < 0.5)) + rng.standard_normal(n)
    return (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()


def vectorised(u: Vector, W2: Vector, taps: int) -> Vector:
    """[vec(T_1) … vec(T_Dn)] of Eq. 4, (n·D2, Dn), from centred rows u."""
    columns = []
    for i in range(u.shape[1] // taps):
        mine = slice(i * taps, (i + 1) * taps)
        columns.append((u[:, mine] @ W2[mine]).reshape(-1))
    return np.stack(columns, axis=1)


@dataclass
class Site:
    """One reader behind a matmul layer: samples t, candidates, rows and moments."""

    layer: CandidateLayer
    x: torch.Tensor
    A: torch.Tensor
    y: torch.Tensor
    problem: Problem
    folds: tuple[Covariance, ...]


def dense_site(
    Dn: int = 24,
    D1: int = 6,
    D2: int = 4,
    n: int = 900,
    seed: int = 0,
    folds: int = 5,
    activation: str = "relu",
    y_of: torch.Tensor | None = None,
) -> Site:
    """y = ReLU(t)·W behind the inserted layer; a third of the samples is held out. ``y_of``: weights on A."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(n, D1, dtype=torch.float64, generator=generator)
    layer = candidates("matmul", D1, Dn, (), Activation(activation), seed=seed, dtype=np.dtype(np.float64))
    x, A = new_layer(layer, t)
    W = torch.randn(D1, D2, dtype=torch.float64, generator=generator)
    y = t.relu() @ W + 0.3 if y_of is None else A @ y_of + 0.3
    cut = 2 * n // 3
    problem = Problem(Moments.from_rows(A[:cut], y[:cut]), Moments.from_rows(A[cut:], y[cut:]))
    parts = tuple(Covariance.from_rows(x[:cut][i::folds]) for i in range(folds))
    return Site(layer, x, A, y, problem, parts)
