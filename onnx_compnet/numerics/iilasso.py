"""The independently interpretable lasso (Takada, Suzuki, Fujisawa 2017), Eqs. 6 and 8-10, on Gram statistics.

    F(β) = ½ βᵀKβ − cᵀβ + λ( ‖β‖₁ + (α/2)|β|ᵀR|β| )

K (D, D) is the Gram matrix of the regressors divided by n, c (D,) their products with the target, R (D, D)
the similarity (Eq. 7). F is meant for standardised regressors: K has a unit diagonal and the target unit
variance. β = 0 minimises F exactly when λ >= λ_max = max|c|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from torch import Tensor

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics.descent import descend, objective

MAX_SWEEPS = 10_000
MAX_ITR = 60
_BRACKET = 1 + 1e-5  # a cap's bisection ends when the strengths are this close

FloatArray = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solve found.

    ``status`` is "optimal" when ``kkt_violation`` (the largest over all coordinates) is within the
    tolerance, "budget" when the sweeps ran out first; ``advice`` then says what to do. ``convex`` certifies
    that F is convex, so that the optimum does not depend on start and order: ``convexity_bound`` = λ_min(K)
    + λα·λ_min(R) is not negative. Without the certificate F was minimised from the given start and from 0;
    ``start`` names the one that led to the lower F, and ``other_objective`` is the F of the other (None
    with one solve only).
    """

    beta: FloatArray
    objective: float
    status: Literal["optimal", "budget"]
    advice: str
    sweeps: int
    kkt_violation: float
    lam: float
    lam_max: float
    alpha: float
    convex: bool
    convexity_bound: float
    start: Literal["given", "zero"] = "given"
    other_objective: float | None = None
    solves: int = 1

    @property
    def support(self) -> NDArray[np.intp]:
        """The indices of β_j ≠ 0, ascending."""
        return np.flatnonzero(self.beta)


def iilasso(
    gram: ArrayLike | Tensor,
    corr: ArrayLike | Tensor,
    similarity: ArrayLike | Tensor,
    lam: float = 0.1,
    alpha: float = 0.1,
    *,
    start: ArrayLike | Tensor | None = None,
    tol: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> Solution:
    """Minimise F by cyclic coordinate descent in index order (Eqs. 8-10), and prove it by the KKT conditions.

    ``gram`` is K (D, D), ``corr`` c (D,), ``similarity`` R (D, D, not negative); numpy arrays or torch
    tensors of any dtype, computed in float64. ``lam`` > 0 is absolute, ``alpha`` >= 0; α = 0 is the lasso.
    ``start``: β to start from, 1 (as the paper's) by default. ``tol`` bounds the KKT violation, by default
    1e-8·max|c|:

        β_j ≠ 0:  |c_j − (Kβ)_j − λ sgn(β_j)(1 + α(R|β|)_j)| <= tol
        β_j = 0:  |c_j − (Kβ)_j| <= λ(1 + α(R|β|)_j) + tol

    At most ``max_sweeps`` sweeps over the working set are made from each start; then the status is "budget".
    Raises UsageError for sizes, values or symmetry that are wrong.

    Differs from the paper: it stops on optimality, not after a number of iterations; a direct solve on the
    settled support and signs ends the descent; |a| = b gives 0 in Eq. 10; and where F is not certified to be
    convex, which R can cause, 0 is tried as a second start and the lower F kept.
    """
    return Statistics.checked(gram, corr, similarity).solve(lam, alpha, start, tol, max_sweeps)


def lambda_path(
    gram: ArrayLike | Tensor,
    corr: ArrayLike | Tensor,
    similarity: ArrayLike | Tensor,
    lams: Sequence[float] | None = None,
    *,
    alpha: float = 0.1,
    points: int = 20,
    smallest: float = 1e-2,
    tol: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> tuple[Solution, ...]:
    """``iilasso`` for descending λ, each solve started from the one before, the first from 0.

    ``lams`` are absolute; without them ``points`` values from λ_max to ``smallest``·λ_max, evenly spaced in
    the logarithm. Returns one Solution a λ, largest λ first. Errors as ``iilasso``.
    """
    statistics = Statistics.checked(gram, corr, similarity)
    if lams is None:
        if points < 1 or not 0 < smallest <= 1:
            raise UsageError(f"a path needs points >= 1 and 0 < smallest <= 1, not {points} and {smallest}")
        lams = (statistics.lam_max * np.geomspace(1.0, smallest, points)).tolist()
    path: list[Solution] = []
    beta = np.zeros(len(statistics.c))
    for lam in sorted(lams, reverse=True):
        path.append(statistics.solve(lam, alpha, beta, tol, max_sweeps))
        beta = path[-1].beta
    return tuple(path)


def capped(
    gram: ArrayLike | Tensor,
    corr: ArrayLike | Tensor,
    similarity: ArrayLike | Tensor,
    keep: int,
    lam: float = 0.1,
    alpha: float = 0.1,
    *,
    strengthen: Literal["lam", "alpha"] = "lam",
    start: ArrayLike | Tensor | None = None,
    max_itr: int = MAX_ITR,
    tol: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
) -> Solution:
    """``iilasso`` with at most ``keep`` coordinates that are not 0 (the paper's c).

    Solves at (λ, α); while more than ``keep`` remain, λ or α is raised, then bisected, each solve started
    from the last one that had too many, at most ``max_itr`` solves in all. Returns the Solution with the
    largest support found that is at most ``keep``; its ``lam`` and ``alpha`` are those it was solved at.
    Raises UsageError when no such support but the empty one turned up (equal regressors leave together),
    and as ``iilasso``.

    Differs from the paper: its loop "while i < max_itr or ‖β‖₀ < c" never ends early as printed. With K = I
    (Algorithms 1 and 2) only α works: the support depends on the product λα until all die at λ = 1.
    """
    statistics = Statistics.checked(gram, corr, similarity)
    if keep < 1 or max_itr < 1:
        raise UsageError(f"keep = {keep} and max_itr = {max_itr} must be at least 1")
    first = statistics.solve(lam, alpha, start, tol, max_sweeps)

    def solve(strength: float, weaker: Solution) -> Solution:
        at = (strength, alpha) if strengthen == "lam" else (lam, strength)
        return statistics.solve(*at, weaker.beta, tol, max_sweeps)

    weak, strong = (lam, statistics.lam_max) if strengthen == "lam" else (alpha, None)
    found = cap_search(solve, lambda solution: len(solution.support), first, keep, weak, strong, max_itr)
    if found is None:
        raise UsageError(
            f"no support of 1 to {keep} coordinates was found in {max_itr} solves by raising {strengthen}: "
            "coordinates leave together; allow more of them, start from a weaker penalty or raise max_itr"
        )
    return found


def cap_search(
    solve: Callable[[float, T], T],
    size: Callable[[T], int],
    first: T,
    keep: int,
    weak: float,
    strong: float | None,
    max_itr: int,
) -> T | None:
    """The result with the largest size in 1..keep among ``first`` and those of at most ``max_itr`` − 1
    solves.

    ``first`` is the result at the strength ``weak``. ``solve(strength, weaker)`` gets the strongest result so
    far that is too large. ``strong`` is a strength that leaves nothing; without one the strength is raised
    tenfold until few enough are left. Then the bracket is bisected in the logarithm.
    """
    if 0 < size(first) <= keep:
        return first
    best: T | None = None
    weaker = first
    for _ in range(max_itr - 1):
        if strong is None:
            strength = max(10 * weak, 1e-2)
        else:
            strength = math.sqrt(weak * strong) if weak > 0 else strong / 10
            if not weak * _BRACKET < strong:
                break
        if not math.isfinite(strength) or strength > 1e15:
            break
        result = solve(strength, weaker)
        count = size(result)
        if count > keep:
            weak, weaker = strength, result
            continue
        strong = strength
        if count and (best is None or count >= size(best)):
            best = result
        if count == keep:
            break
    return best


@dataclass(frozen=True, eq=False)
class Statistics:
    """Checked K, c and R, and what is computed from them once for all solves."""

    K: FloatArray
    c: FloatArray
    R: FloatArray

    @classmethod
    def checked(
        cls, gram: ArrayLike | Tensor, corr: ArrayLike | Tensor, similarity: ArrayLike | Tensor
    ) -> Statistics:
        """K, c and R as float64 arrays; UsageError for sizes, values or symmetry that are wrong."""
        K, c, R = _array("gram", gram, 2), _array("corr", corr, 1), _array("similarity", similarity, 2)
        if not K.shape == R.shape == (len(c), len(c)) or not len(c):
            raise UsageError(
                f"gram {K.shape}, corr {c.shape} and similarity {R.shape} must be (D, D), (D,) and (D, D)"
            )
        for name, matrix in (("gram", K), ("similarity", R)):
            if np.abs(matrix - matrix.T).max() > 1e-6 * np.abs(matrix).max():
                raise UsageError(f"{name} must be symmetric")
        if (R < 0).any():
            raise UsageError("similarity must not be negative (Eq. 7)")
        if (K.diagonal() <= 0).any():
            where = int(np.flatnonzero(K.diagonal() <= 0)[0])
            raise UsageError(
                f"gram[{where}, {where}] is not positive: drop regressors without variance first"
            )
        statistics = cls((K + K.T) / 2, c, (R + R.T) / 2)
        if statistics.smallest_of_K < -1e-5 * K.diagonal().max():
            raise UsageError(
                f"gram is not positive semidefinite (smallest eigenvalue {statistics.smallest_of_K:.3g}), "
                "so it is no Gram matrix"
            )
        return statistics

    @cached_property
    def lam_max(self) -> float:
        """The smallest λ at which β = 0 minimises F: max|c|."""
        return float(np.abs(self.c).max())

    @cached_property
    def smallest_of_K(self) -> float:  # noqa: N802
        """λ_min(K)."""
        if not np.any(self.K - np.diag(self.K.diagonal())):
            return float(self.K.diagonal().min())
        return float(linalg.eigvalsh(self.K, subset_by_index=[0, 0])[0])

    @cached_property
    def smallest_of_R(self) -> float:  # noqa: N802
        """λ_min(R)."""
        return float(linalg.eigvalsh(self.R, subset_by_index=[0, 0])[0])

    def convexity(self, lam: float, alpha: float) -> tuple[bool, float]:
        """Whether F is certified to be convex, and the bound λ_min(K) + λα·λ_min(R) that says so."""
        bound = self.smallest_of_K + (lam * alpha * self.smallest_of_R if alpha else 0.0)
        rounding = np.abs(self.K).sum(1).max() + lam * alpha * np.abs(self.R).sum(1).max()
        return bool(bound >= -1e-14 * rounding), float(bound)

    def solve(
        self,
        lam: float,
        alpha: float,
        start: ArrayLike | Tensor | None = None,
        tol: float | None = None,
        max_sweeps: int = MAX_SWEEPS,
        second_start: bool = True,
    ) -> Solution:
        """``iilasso``; without ``second_start`` a problem not certified convex is solved from ``start``
        only."""
        if not (math.isfinite(lam) and lam > 0):
            raise UsageError(f"lam = {lam} must be positive (without a penalty use least squares)")
        if not (math.isfinite(alpha) and alpha >= 0):
            raise UsageError(f"alpha = {alpha} must not be negative")
        if max_sweeps < 1 or (tol is not None and not tol >= 0):
            raise UsageError(f"max_sweeps = {max_sweeps} must be at least 1, and tol = {tol} not negative")
        beta = np.ones(len(self.c)) if start is None else _array("start", start, 1).copy()
        if beta.shape != self.c.shape:
            raise UsageError(f"start {beta.shape} and corr {self.c.shape} must have the same length")
        tol = 1e-8 * self.lam_max if tol is None else tol
        convex, bound = self.convexity(lam, alpha)

        def run(beta: FloatArray) -> Solution:
            beta, sweeps, violation = descend(self.K, self.c, self.R, lam, alpha, beta, tol, max_sweeps)
            optimal = violation <= tol
            return Solution(
                beta=beta,
                objective=objective(self.K, self.c, self.R, lam, alpha, beta),
                status="optimal" if optimal else "budget",
                advice="" if optimal else _budget_advice(sweeps, violation, tol),
                sweeps=sweeps,
                kkt_violation=violation,
                lam=lam,
                lam_max=self.lam_max,
                alpha=alpha,
                convex=convex,
                convexity_bound=bound,
            )

        given = run(beta)
        if convex or not second_start or not beta.any():
            return given
        zero = run(np.zeros(len(self.c)))
        if zero.objective < given.objective - 1e-12 * abs(given.objective):
            return replace(zero, start="zero", other_objective=given.objective, solves=2)
        return replace(given, other_objective=zero.objective, solves=2)


def _budget_advice(sweeps: int, violation: float, tol: float) -> str:
    return (
        f"after {sweeps} sweeps the KKT violation is {violation:.2g}, above the tolerance {tol:.2g}; "
        "allow more sweeps (max_sweeps), a larger tol, or use a larger lam"
    )


def _array(name: str, values: ArrayLike | Tensor, rank: int) -> FloatArray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != rank:
        raise UsageError(f"{name} must have {rank} axes, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{name} must be finite")
    return array
