"""Algorithms 1-3 of the paper and the random baseline: moments in, surviving neurons and their W2 out.

None of them sees a sample. All drop neurons whose activation does not vary on the data first, and all but
``refit=False`` end with least squares for W2 on the survivors. Algorithms 1 and 2 look at the new layer
alone, never at y: they prune neurons that resemble others, and with few candidates, which resemble each
other little, they prune none. Algorithm 3 weighs what each neuron adds to y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.numerics import problems as sites
from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.iilasso import MAX_ITR, Solution, Statistics, cap_search
from onnx_compnet.numerics.moments import Covariance, merge_covariances
from onnx_compnet.numerics.paths import greedy
from onnx_compnet.numerics.pool import FREE, Constraints, Pool, Selection
from onnx_compnet.numerics.problems import Problem, ReaderFit, hadamard_statistics
from onnx_compnet.numerics.similarity import similarity

__all__ = ["METHODS", "Problem", "ReaderFit", "Selection", "alg1", "alg2", "alg3", "random_subset", "select"]

METHODS = ("alg1", "alg2", "alg3", "obs", "forward", "random")
PATH_POINTS = 12

T = TypeVar("T")

_NOTHING_VARIES = (
    "nothing varies on this data, so that only the neurons stay which keep the function by themselves"
)


def select(
    method: str,
    problems: Sequence[Problem],
    x_folds: Sequence[Covariance] = (),
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    max_error: float | None = None,
    rho: float = ridge.RHO,
    refit: bool = True,
    seed: int = 0,
    max_itr: int = MAX_ITR,
    path_points: int = PATH_POINTS,
    constraints: Constraints = FREE,
) -> Selection:
    """Run one of METHODS by name; an option that the method does not have is ignored. Errors as the
    methods."""
    if method in ("alg1", "alg2"):
        algorithm = alg1 if method == "alg1" else alg2
        return algorithm(
            problems,
            x_folds,
            lam=lam,
            alpha=alpha,
            keep=keep,
            rho=rho,
            max_itr=max_itr,
            constraints=constraints,
        )
    if method == "alg3":
        return alg3(
            problems,
            lam=lam,
            alpha=alpha,
            keep=keep,
            rho=rho,
            refit=refit,
            max_itr=max_itr,
            path_points=path_points,
            constraints=constraints,
        )
    if method in ("obs", "forward"):
        return greedy(method, problems, keep=keep, max_error=max_error, rho=rho, constraints=constraints)
    if method == "random":
        if keep is None:
            raise UsageError("method 'random' needs keep, the number of neurons")
        return random_subset(problems, keep=keep, seed=seed, rho=rho, constraints=constraints)
    raise UsageError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")


def alg1(
    problems: Sequence[Problem],
    x_folds: Sequence[Covariance],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    rho: float = ridge.RHO,
    max_itr: int = MAX_ITR,
    constraints: Constraints = FREE,
) -> Selection:
    """Algorithm 1: drop neurons that resemble others (Eq. 1), then fit W2 (Eq. 2, Eq. 11).

    β minimises F with K = I, c = 1 and R from the correlation of the pre-activations x, all folds together;
    λ_max = 1. ``keep`` caps the survivors by raising α (raising λ kills all at once).

    Raises UsageError for options out of range, a λ >= 1, which leaves no neuron, and a cap that can't be met;
    DataError when the survivors have no fewer columns than there are rows.

    Differs from the paper: W2 is fitted with intercept and ridge; the cap, which its loop condition never
    meets.
    """
    pool = Pool.of(problems, keep, constraints)
    statistics = _resemblance(reduce(merge_covariances, pool.folds(x_folds)))
    _refuse_large_lam(lam, 1.0, lambda value: len(statistics.solve(value, alpha).support))
    first = statistics.solve(lam, alpha)

    def solve(strength: float, weaker: Solution) -> Solution:
        return statistics.solve(lam, strength, weaker.beta)

    solution = _cap(pool, solve, lambda of: of.support, first, alpha, None, max_itr)
    beta = solution.beta[solution.support]
    notes = _resemblance_notes(pool, solution, len(beta))
    return pool.finish(solution, solution.support, beta, rho, notes=notes)


@dataclass(frozen=True)
class _Alternation:
    """A run of Algorithm 2: the survivors, their β, the last solve, the rounds."""

    support: NDArray[np.intp]
    solution: Solution
    rounds: int


def alg2(
    problems: Sequence[Problem],
    x_folds: Sequence[Covariance],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    rho: float = ridge.RHO,
    max_itr: int = MAX_ITR,
    constraints: Constraints = FREE,
) -> Selection:
    """Algorithm 2: alternate between β (step 5.1) and W1 (step 5.2), then fit W2.

    Step 5.1 minimises F with the regressors w_j·x_j against x_j, that is K = diag(w²) and c = w. Step 5.2
    sets w_j = 1/β_j for β_j ≠ 0, so that the effective weight β_j·w_j·W1_j stays what it was. Left alone,
    (β, W1) → (cβ, W1/c) would drive the penalty to zero; so the regressors are standardised anew in every
    round, which makes w = 1 again, and neurons that were dropped stay dropped. On one fixed sample the
    second round then finds the first one's β optimal, and Algorithm 2 equals Algorithm 1. What sets it
    apart is the data: round k takes R from fold k mod len(``x_folds``), warm-started, until every fold in
    turn has left the support alone.

    Options and errors as ``alg1``; with ``keep`` the whole alternation is repeated at a larger α.

    Differs from the paper: its C = A(1)·diag(β) in step 5.2 has mismatched sizes (D1 against Dn); the
    folds; the end of the loop; intercept, ridge and cap as in ``alg1``.
    """
    pool = Pool.of(problems, keep, constraints)
    folds = [similarity(fold.correlation()) for fold in pool.folds(x_folds)]

    def alternate(strength: float, at: float = lam) -> _Alternation:
        left = np.arange(len(pool.alive))
        beta = np.ones(len(left))
        rounds = rested = 0
        while True:
            R = folds[rounds % len(folds)].cpu().numpy()[np.ix_(left, left)]
            w = np.ones(len(left))  # standardised anew
            statistics = Statistics.checked(np.diag(w**2), w, R)
            # a second start from 0 may find another minimum; only the first round has no warm start to keep to
            solution = statistics.solve(at, strength, beta, second_start=rounds == 0)
            rounds += 1
            # a round that drops some leaves its own fold at rest
            rested = rested + 1 if len(solution.support) == len(left) else 1
            left, beta = left[solution.support], solution.beta[solution.support]
            if rested >= len(folds):
                return _Alternation(left, solution, rounds)

    _refuse_large_lam(lam, 1.0, lambda value: len(alternate(alpha, value).support))
    found = _cap(
        pool,
        lambda strength, _: alternate(strength),
        lambda run: run.support,
        alternate(alpha),
        alpha,
        None,
        max_itr,
    )
    solution = found.solution
    beta = solution.beta[solution.support]
    notes = _resemblance_notes(pool, solution, len(found.support))
    return pool.finish(solution, found.support, beta, rho, rounds=found.rounds, notes=notes)


def alg3(
    problems: Sequence[Problem],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
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

    Raises DataError when the candidates have no fewer columns than there are rows, or no target varies;
    UsageError for options
    out of range, ``lam`` >= 1, which leaves no neuron, and a cap that can't be met.

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
    start = 1 / to_beta
    _refuse_large_lam(
        lam, lam_max, lambda value: len(statistics.solve(value * lam_max, alpha, start).support)
    )
    first = statistics.solve(lam * lam_max, alpha, start)

    def solve(strength: float, weaker: Solution) -> Solution:
        return statistics.solve(strength, alpha, weaker.beta)

    def completed(of: Solution) -> NDArray[np.intp]:
        return pool.completed(places[of.support])

    solution = _cap(pool, solve, lambda of: places[of.support], first, lam * lam_max, lam_max, max_itr)

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


def random_subset(
    problems: Sequence[Problem],
    *,
    keep: int,
    seed: int = 0,
    rho: float = ridge.RHO,
    constraints: Constraints = FREE,
) -> Selection:
    """The baseline: ``keep`` of the neurons that vary, drawn by ``seed``, with W2 fitted; β is 1 for them.

    Raises UsageError for ``keep`` < 1, DataError as ``alg1``.
    """
    pool = Pool.of(problems, keep, constraints)
    order = torch.randperm(len(pool.alive), generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    order = np.concatenate([pool.core, order[~np.isin(order, pool.core)]])
    share = keep // pool.groups
    group = pool.alive.numpy()[order] * pool.groups // pool.Dn
    chosen = np.sort(np.concatenate([order[group == number][:share] for number in range(pool.groups)]))
    notes: tuple[str, ...] = ()
    if len(chosen) < share * pool.groups:
        notes = (f"only {len(chosen)} of the {keep} neurons asked for vary on the data; all of them stay",)
    return pool.finish(None, chosen, np.ones(len(chosen)), rho, notes=notes)


def _resemblance(covariance: Covariance) -> Statistics:
    """K = I, c = 1 and R: each standardised x_j against itself (Eq. 1)."""
    ones = np.ones(len(covariance.mean))
    return Statistics.checked(np.diag(ones), ones, similarity(covariance.correlation()))


def _resemblance_notes(pool: Pool, solution: Solution, kept: int) -> tuple[str, ...]:
    if kept < len(pool.alive):
        return ()
    threshold = (1 / solution.lam - 1) / solution.alpha if solution.alpha else float("inf")
    return (
        f"none of the {kept} neurons was dropped: a neuron is only when ΣR_jc β_c reaches (1/λ − 1)/α = "
        f"{threshold:.3g}, which takes more or more similar candidates; use keep, a larger alpha or alg3",
    )


def _refuse_large_lam(lam: float, lam_max: float, count: Callable[[float], int]) -> None:
    """UsageError for a λ (as a share of ``lam_max``) that leaves no neuron; names one that keeps some."""
    if not lam >= 1:
        return
    fraction = 0.5
    while not (kept := count(fraction)):
        fraction /= 2
    raise UsageError(
        f"lam = {lam:g} leaves no neuron: from λ_max = {lam_max:.4g} (lam = 1) on β is 0; "
        f"--lam {fraction:g} keeps {kept}"
    )


def _cap(
    pool: Pool,
    solve: Callable[[float, T], T],
    support: Callable[[T], NDArray[np.intp]],
    first: T,
    weak: float,
    strong: float | None,
    max_itr: int,
) -> T:
    """``first``, or where it keeps more neurons than the pool's ``keep`` what ``cap_search`` finds.

    Where it finds nothing, a pool with a core is left with that (see ``Pool.completed``).
    """
    if pool.keep is None:
        return first
    found = cap_search(solve, lambda of: pool.size(support(of)), first, pool.keep, weak, strong, max_itr)
    if found is None and len(pool.core):
        return first
    if found is None:
        raise UsageError(
            f"no selection of 1 to {pool.keep} neurons was found in {max_itr} solves by raising "
            f"{'alpha' if strong is None else 'lam'}; allow more neurons (keep) or more solves (max_itr)"
        )
    return found
