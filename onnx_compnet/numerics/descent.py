"""Coordinate descent for the iiLasso objective F of ``iilasso``: the loop itself, on checked float64 arrays.

A compact working set (the coordinates that are not 0 or violate their KKT condition) is swept in index
order, its gradient kept up to date; when it is optimal, the conditions of all coordinates are computed
afresh. Within a working set a Newton step on the support solves the linear system that a settled support
and settled signs leave, which replaces thousands of sweeps where regressors are correlated. On a support
where F has no minimum, as R can cause, such a step goes down to the support's edge instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

FloatArray = NDArray[np.float64]

_FIRST_SWEEPS = 3  # before the working set is chosen anew: from β = 1 most coordinates die at once
_SWEEPS = 100
_NEWTON_EVERY = 10
_ESCAPE_AFTER = 50  # sweeps of a solve; before, they leave supports without a minimum by themselves, and well


def objective(
    K: FloatArray, c: FloatArray, R: FloatArray, lam: float, alpha: float, beta: FloatArray
) -> float:
    """F(β), Eq. 6 on Gram statistics (without the constant ½·Var(target))."""
    size = np.abs(beta)
    penalty = size.sum() + alpha / 2 * (size @ R @ size)
    return float(beta @ K @ beta / 2 - c @ beta + lam * penalty)


def kkt_violations(
    c: FloatArray, Kbeta: FloatArray, Rsize: FloatArray, lam: float, alpha: float, beta: FloatArray
) -> FloatArray:
    """How far each coordinate is from optimal, from Kβ and R|β|; all 0 at a stationary point."""
    gradient, bound = c - Kbeta, lam * (1 + alpha * Rsize)
    return np.where(
        beta != 0, np.abs(gradient - np.sign(beta) * bound), np.maximum(np.abs(gradient) - bound, 0)
    )


def descend(
    K: FloatArray,
    c: FloatArray,
    R: FloatArray,
    lam: float,
    alpha: float,
    start: FloatArray,
    tol: float,
    max_sweeps: int,
) -> tuple[FloatArray, int, float]:
    """``(β, sweeps, largest KKT violation)``; F never rises. Stops at ``tol`` or after ``max_sweeps``
    sweeps."""
    beta = start.copy()
    sweeps = 0
    while True:
        violations = kkt_violations(c, K @ beta, R @ np.abs(beta), lam, alpha, beta)
        worst = float(violations.max())
        if worst <= tol or sweeps >= max_sweeps:
            return beta, sweeps, worst
        work = np.flatnonzero((beta != 0) | (violations > tol))
        budget = min(max_sweeps - sweeps, _SWEEPS if sweeps else _FIRST_SWEEPS)
        square = np.ix_(work, work)
        inner = _WorkingSet(K[square], c[work], R[square], lam, alpha, beta[work])
        sweeps += inner.descend(tol, budget, max(_ESCAPE_AFTER - sweeps, 0))
        beta[work] = inner.beta


class _WorkingSet:
    """β, Kβ and R|β| of the working set, changed together."""

    def __init__(
        self, K: FloatArray, c: FloatArray, R: FloatArray, lam: float, alpha: float, beta: FloatArray
    ) -> None:
        self.K, self.c, self.R, self.lam, self.alpha, self.beta = K, c, R, lam, alpha, beta
        self.refresh()

    def refresh(self) -> None:
        self.Kbeta, self.Rsize = self.K @ self.beta, self.R @ np.abs(self.beta)

    def descend(self, tol: float, budget: int, escape_after: int) -> int:
        newton_at = 2
        signs = np.sign(self.beta)
        for sweep in range(1, budget + 1):
            self.sweep()
            violations = kkt_violations(self.c, self.Kbeta, self.Rsize, self.lam, self.alpha, self.beta)
            if violations.max() <= tol:
                return sweep
            settled = np.array_equal(signs, signs := np.sign(self.beta))
            if sweep >= newton_at and (settled or sweep % _NEWTON_EVERY == 0):
                # where F has no minimum on this support the sweeps go on at first, and Newton waits longer
                newton_at = sweep + 1 if self.newton(escape=sweep >= escape_after) else 2 * sweep
                signs = np.sign(self.beta)
        return budget

    def sweep(self) -> None:
        """One pass of Eqs. 8-10 in index order."""
        lam, alpha = self.lam, self.alpha
        K, R, Kbeta, Rsize = self.K, self.R, self.Kbeta, self.Rsize
        K_jj, R_jj = K.diagonal().tolist(), R.diagonal().tolist()
        c, beta = self.c.tolist(), self.beta.tolist()
        for j, old in enumerate(beta):
            a = c[j] - Kbeta.item(j) + K_jj[j] * old
            b = lam * (1 + alpha * (Rsize.item(j) - R_jj[j] * abs(old)))
            if a > b:
                new = (a - b) / (K_jj[j] + lam * alpha * R_jj[j])
            elif a < -b:
                new = (a + b) / (K_jj[j] + lam * alpha * R_jj[j])
            else:
                new = 0.0
            if new != old:
                beta[j] = new
                Kbeta += (new - old) * K[j]
                Rsize += (abs(new) - abs(old)) * R[j]
        self.beta[:] = beta

    def newton(self, escape: bool) -> bool:
        """Minimise F on β's support within the orthant of its signs, coordinates that reach 0 leaving the
        support.

        There F is, up to a constant, ½βᵀHβ − bᵀβ with H = K + λα·ssᵀ∘R, b = c − λs and s = sgn β. Where H is
        not positive definite F has no minimum there: with ``escape`` β goes down a direction along which F
        is not convex until a coordinate reaches 0, and on from there; without, it is left where it is. False
        if β did not move.
        """
        moved = False
        support = np.flatnonzero(self.beta)
        while len(support):
            here = self.beta[support]
            signs = np.sign(here)
            square = np.ix_(support, support)
            H = self.K[square] + self.lam * self.alpha * np.outer(signs, signs) * self.R[square]
            b = self.c[support] - self.lam * signs
            residual = b - H @ here
            try:
                factor = linalg.cho_factor(H, check_finite=False)
            except linalg.LinAlgError:
                there = _descent_to_the_edge(H, residual, here) if escape else None
                if there is None:
                    break
                self.beta[support] = there
                moved = True
                support = support[there != 0]
                continue
            step = linalg.cho_solve(factor, residual, check_finite=False)
            step += linalg.cho_solve(factor, residual - H @ step, check_finite=False)
            if not np.isfinite(step).all() or step @ residual <= 0:
                break
            there = _longest_descent(H, b, here, signs, step)
            self.beta[support] = there
            moved = True
            if there.all():
                break
            support = support[there != 0]
        self.refresh()
        return moved


def _descent_to_the_edge(H: FloatArray, residual: FloatArray, here: FloatArray) -> FloatArray | None:
    """``here`` moved down a direction v with vᵀHv <= 0, to the first coordinate that reaches 0.

    H is not positive definite; v eliminates the first pivot that is not positive. On the way F only falls, and
    it ends: were no coordinate to come closer to 0, vᵀHv would be vᵀKv + λα|v|ᵀR|v| >= 0. None where rounding
    denies it.
    """
    factor, order = linalg.lapack.dpotrf(H)
    if order < 1:
        return None
    v = np.zeros(len(H))
    v[order - 1] = 1.0
    v[: order - 1] = -linalg.cho_solve((factor[: order - 1, : order - 1], False), H[: order - 1, order - 1])
    v *= 1.0 if v @ residual >= 0 else -1.0
    nearing = v * here < 0
    if not np.isfinite(v).all() or not nearing.any():
        return None
    reach = np.full(len(H), np.inf)
    reach[nearing] = -here[nearing] / v[nearing]
    first = float(reach.min())
    if first * (v @ H @ v / 2) > v @ residual:
        return None
    there: FloatArray = here + first * v
    there[(reach <= first) | (there * here < 0)] = 0.0
    return there


def _longest_descent(
    H: FloatArray, b: FloatArray, here: FloatArray, signs: FloatArray, step: FloatArray
) -> FloatArray:
    """``here`` + t·``step``, coordinates beyond 0 put to 0, for the first t of 1, ½, ¼, … that lowers F.

    Up to the first coordinate that reaches 0 every t does, so the halving ends there.
    """
    crossing = (here + step) * signs <= 0
    if not crossing.any():
        return here + step
    first = float((here[crossing] / -step[crossing]).min())
    level = (H @ here / 2 - b) @ here
    t = 1.0
    while t > first:
        there = here + t * step
        there[there * signs <= 0] = 0.0
        if (H @ there / 2 - b) @ there < level:
            return there
        t /= 2
    there = here + first * step
    there[(there * signs <= 0) | (crossing & (here / np.where(step == 0, 1.0, -step) <= first))] = 0.0
    return there
