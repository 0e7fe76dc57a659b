"""Algorithm 3 of the paper: a lasso on what each neuron adds to the readers' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import DataError
from onnx_compnet.numerics import problems as sites
from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.iilasso import MAX_ITR, Solution, Statistics
from onnx_compnet.numerics.paths import Run, along_runs, cap, refuse_large_lam
from onnx_compnet.numerics.pool import FREE, Constraints, Pool, Selection
from onnx_compnet.numerics.problems import Problem, ReaderFit, hadamard_statistics
from onnx_compnet.numerics.similarity import similarity

PATH_POINTS = 12
FINE_POINTS, SMALLEST = (
    60,
    1e-3,
)  # of the path of λ that orders the neurons for ``max_error``, from λ_max down

_NOTHING_VARIES = (
    "nothing varies on this data, so that only the neurons stay which keep the function by themselves"
)


def alg3(
    problems: Sequence[Problem],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    max_error: float | None = None,
    rho: float = ridge.RHO,
    refit: bool = True,
    max_itr: int = MAX_ITR,
    path_points: int = PATH_POINTS,
    constraints: Constraints = FREE,
) -> Selection:
    """Algorithm 3: keep the neurons that y needs (Eq. 3).

    W2 is fitted over all candidates; with T_i = u_i W2_i, β minimises F for the regressors vec(T_i) against
    vec(y), standardised (``hadamard_statistics``); neurons with β_i = 0 are dropped. ``lam`` is a fraction
    of λ_max = max|c|. ``keep`` caps the survivors by raising λ. ``path_points`` values of λ, from .8 to .01
    of λ_max, make the ``curve`` (0: none).

    With ``max_error`` the neurons are taken in the order in which a falling λ lets them in, until the error allows
    it; ``lam`` and ``path_points`` then say nothing.

    Raises DataError when the candidates have no fewer columns than there are rows, or no target varies; UsageError
    for options out of range, ``lam`` >= 1, which leaves no neuron, and a cap that can't be met; VerificationError
    where ``max_error`` is out of reach.

    Differs from the paper: λ is relative, as λ_max may be .12 and λ = .1 would leave next to nothing; W2 is
    refitted on the survivors (``refit=False``: the rows of W2 scaled by β, with β = 1 the paper's); step 3
    comes before step 2, which uses it; intercept, ridge and cap.
    """
    pool = Pool.of(problems, keep, constraints)
    fits = [ridge.fit(p.fit, rho, p.prior if p.fit.n <= len(p.fit.mean_u) else None) for p in pool.problems]
    notes = [f"all candidates: {note}" for fit in fits for note in fit.warnings]
    W2s = [fit.W2 for fit in fits]
    K, c, variance = hadamard_statistics(pool.problems, W2s)
    if not variance and len(pool.core):
        none = np.zeros(0, np.intp)
        return pool.finish(None, none, none.astype(float), rho, notes=[*notes, _NOTHING_VARIES])
    if not variance:
        raise DataError(
            "no reader's output varies on this data, so there is nothing to fit; give other samples"
        )
    d = K.diagonal().clamp(min=0).sqrt()
    used = (d > 1e-12 * d.max()).nonzero().reshape(-1)  # W2_i = 0: nothing reads this neuron
    K, c, d = K[used][:, used], c[used], d[used]
    K = (K / d / d[:, None]).fill_diagonal_(1.0)
    statistics = Statistics.checked(K, c / d / variance**0.5, similarity(K))
    to_beta = (variance**0.5 / d).cpu().numpy()
    places, lam_max = used.cpu().numpy(), statistics.lam_max
    if max_error is not None:
        runs, residual = _path(statistics, alpha, places, to_beta)
        behind = np.setdiff1d(np.arange(len(pool.alive)), places)  # nothing reads these
        rest = np.concatenate([places[np.argsort(-np.abs(residual), kind="stable")], behind])
        chosen = along_runs(pool, runs, max_error=max_error, rho=rho, rest=rest, notes=notes)
        return replace(chosen, lam=None if chosen.lam is None else chosen.lam / lam_max)
    start = 1 / to_beta
    refuse_large_lam(lam, lam_max, lambda value: len(statistics.solve(value * lam_max, alpha, start).support))
    first = statistics.solve(lam * lam_max, alpha, start)

    def solve(strength: float, weaker: Solution) -> Solution:
        return statistics.solve(strength, alpha, weaker.beta)

    def completed(of: Solution) -> NDArray[np.intp]:
        return pool.completed(places[of.support])

    solution = cap(pool, solve, lambda of: places[of.support], first, lam * lam_max, lam_max, max_itr)

    def readers(of: Solution) -> tuple[tuple[ReaderFit, ...], tuple[str, ...]]:
        support = completed(of)
        left = pool.left(support)
        if refit or all(problem.exact_b2 is not None for problem in left):
            return sites.fit_readers(left, rho)
        scale = torch.ones(len(pool.alive), dtype=torch.float64)
        scale[places[of.support]] = torch.from_numpy((of.beta * to_beta)[of.support])
        scaled = []
        for problem, W2 in zip(pool.problems, W2s, strict=True):
            own = scale if problem.among is None else scale[problem.among]
            weights = W2 * own.repeat_interleave(problem.taps).to(W2)[:, None]
            scaled.append(sites.restricted(replace(problem, prior=weights), torch.from_numpy(support)))
        rows = [problem.prior for problem in scaled if problem.prior is not None]
        offsets = [ridge.intercept(problem.fit, W2) for problem, W2 in zip(scaled, rows, strict=True)]
        return sites.measured(scaled, rows, offsets), ()

    curve: list[tuple[float, int, float | None, float]] = []
    errors: dict[bytes, tuple[float, float | None]] = {}
    beta = np.zeros(len(places))
    for fraction in np.geomspace(0.8, 0.01, path_points).tolist() if path_points else []:
        point = statistics.solve(fraction * lam_max, alpha, beta)
        beta = point.beta
        support = completed(point)
        key = support.tobytes() if refit else point.beta.tobytes()
        if key not in errors:
            errors[key] = sites.worst(readers(point)[0])
        curve.append((fraction, len(support), *errors[key][::-1]))
    found, more = readers(solution)
    unstandardised = solution.beta[solution.support] * to_beta[solution.support]
    return replace(
        pool.finish(solution, places[solution.support], unstandardised, rho, found=(found, (*notes, *more))),
        lam=solution.lam / lam_max,
        curve=tuple(curve),
    )


def _path(
    statistics: Statistics, alpha: float, places: NDArray[np.intp], to_beta: NDArray[np.float64]
) -> tuple[list[Run], NDArray[np.float64]]:
    """Solves at falling λ, and what the last one leaves unexplained: how soon the neurons still out would enter."""
    runs: list[Run] = []
    beta = np.zeros(len(places))
    for fraction in np.geomspace(0.98, SMALLEST, FINE_POINTS).tolist():
        solution = statistics.solve(fraction * statistics.lam_max, alpha, beta)
        beta, support = solution.beta, solution.support
        if len(support):
            runs.append(Run(places[support], beta[support] * to_beta[support], solution))
    return runs, statistics.c - statistics.K @ beta
