"""All methods by name; Algorithms 1 and 2 of the paper and the random baseline: moments in, neurons and W2 out.

None of them sees a sample. All drop neurons whose activation does not vary on the data first, and all but
``refit=False`` end with least squares for W2 on the survivors. Algorithms 1 and 2 look at the new layer
alone, never at y: they prune neurons that resemble others, and with few candidates, which resemble each
other little, they prune none. Algorithm 3 (``algorithm3``) weighs what each neuron adds to y.

With ``max_error`` the width is chosen on a path of nested selections (``paths.along``): Algorithms 1 and 2 raise α
and the neurons that stay longest come first; for ``random`` it is the order that ``seed`` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.algorithm3 import PATH_POINTS, alg3
from onnx_compnet.numerics.iilasso import MAX_ITR, Solution, Statistics
from onnx_compnet.numerics.moments import Covariance, merge_covariances
from onnx_compnet.numerics.paths import (
    Run,
    along,
    along_runs,
    cap,
    free_of_core,
    greedy,
    refuse_large_lam,
)
from onnx_compnet.numerics.pool import FREE, Constraints, Pool, Selection
from onnx_compnet.numerics.problems import Problem, ReaderFit
from onnx_compnet.numerics.selection import in_rounds
from onnx_compnet.numerics.similarity import similarity

__all__ = ["METHODS", "Problem", "ReaderFit", "Selection", "alg1", "alg2", "alg3", "random_subset", "select"]

METHODS = ("alg1", "alg2", "alg3", "obs", "forward", "random")
_STEP, _STRONGEST = 10**0.125, 1e12  # of the path on which Algorithms 1 and 2 raise α


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
    """Run one of METHODS by name; an option that the method does not have is ignored. Errors as the methods.

    ``max_error``: the error on held-out rows that is allowed to the worst reader; the narrowest selection on the
    method's path that keeps to it is taken, of at most ``keep`` neurons. A core then has to compete.
    """
    if max_error is not None:
        constraints = free_of_core(constraints)
    if method in ("alg1", "alg2"):
        algorithm = alg1 if method == "alg1" else alg2
        return algorithm(
            problems,
            x_folds,
            lam=lam,
            alpha=alpha,
            keep=keep,
            max_error=max_error,
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
            max_error=max_error,
            rho=rho,
            refit=refit,
            max_itr=max_itr,
            path_points=path_points,
            constraints=constraints,
        )
    if method in ("obs", "forward"):
        return greedy(method, problems, keep=keep, max_error=max_error, rho=rho, constraints=constraints)
    if method == "random":
        return random_subset(
            problems, keep=keep, max_error=max_error, seed=seed, rho=rho, constraints=constraints
        )
    raise UsageError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")


def alg1(
    problems: Sequence[Problem],
    x_folds: Sequence[Covariance],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    max_error: float | None = None,
    rho: float = ridge.RHO,
    max_itr: int = MAX_ITR,
    constraints: Constraints = FREE,
) -> Selection:
    """Algorithm 1: drop neurons that resemble others (Eq. 1), then fit W2 (Eq. 2, Eq. 11).

    β minimises F with K = I, c = 1 and R from the correlation of the pre-activations x, all folds together;
    λ_max = 1. ``keep`` caps the survivors by raising α (raising λ kills all at once). With ``max_error`` the neurons
    are taken in the order in which a rising α drops them, the last first, until the error allows it.

    Raises UsageError for options out of range, a λ >= 1, which leaves no neuron, and a cap that can't be met;
    DataError when the survivors have no fewer columns than there are rows.

    Differs from the paper: W2 is fitted with intercept and ridge; the cap, which its loop condition never
    meets.
    """
    pool = Pool.of(problems, keep, constraints)
    statistics = _resemblance(reduce(merge_covariances, pool.folds(x_folds)))
    refuse_large_lam(lam, 1.0, lambda value: len(statistics.solve(value, alpha).support))
    first = statistics.solve(lam, alpha)
    if max_error is not None:
        solutions, strength = [first], alpha
        while len(solutions[-1].support) > 1 and strength < _STRONGEST:
            strength = max(strength, 1e-3) * _STEP
            solutions.append(statistics.solve(lam, strength, solutions[-1].beta))
        runs = [Run(each.support, each.beta[each.support], each) for each in reversed(solutions)]
        return along_runs(pool, [run for run in runs if len(run.support)], max_error=max_error, rho=rho)

    def solve(strength: float, weaker: Solution) -> Solution:
        return statistics.solve(lam, strength, weaker.beta)

    solution = cap(pool, solve, lambda of: of.support, first, alpha, None, max_itr)
    beta = solution.beta[solution.support]
    notes = _resemblance_notes(pool, solution, len(beta))
    return pool.finish(solution, solution.support, beta, rho, notes=notes)


@dataclass(frozen=True)
class _Alternation:
    """A run of Algorithm 2: the survivors, their β, the last solve, the rounds."""

    support: NDArray[np.intp]
    solution: Solution
    rounds: int

    def as_run(self) -> Run:
        """The same as a point of a path."""
        return Run(self.support, self.solution.beta[self.solution.support], self.solution, self.rounds)


def alg2(
    problems: Sequence[Problem],
    x_folds: Sequence[Covariance],
    *,
    lam: float = 0.1,
    alpha: float = 0.1,
    keep: int | None = None,
    max_error: float | None = None,
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

    Options and errors as ``alg1``; with ``keep`` or ``max_error`` the whole alternation is repeated at a larger α.

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

    refuse_large_lam(lam, 1.0, lambda value: len(alternate(alpha, value).support))
    if max_error is not None:
        alternations, strength = [alternate(alpha)], alpha
        while len(alternations[-1].support) > 1 and strength < _STRONGEST:
            strength = max(strength, 1e-3) * _STEP
            alternations.append(alternate(strength))
        runs = [run.as_run() for run in reversed(alternations) if len(run.support)]
        return along_runs(pool, runs, max_error=max_error, rho=rho)
    found = cap(
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


def random_subset(
    problems: Sequence[Problem],
    *,
    keep: int | None = None,
    max_error: float | None = None,
    seed: int = 0,
    rho: float = ridge.RHO,
    constraints: Constraints = FREE,
) -> Selection:
    """The baseline: ``keep`` of the neurons that vary, drawn by ``seed``, with W2 fitted; β is 1 for them.

    With ``max_error`` as many as are needed. Raises UsageError for ``keep`` < 1 and without either, DataError as
    ``alg1``, VerificationError as ``paths.along``.
    """
    if keep is None and max_error is None:
        raise UsageError("method 'random' needs keep, the number of neurons, or max_error")
    pool = Pool.of(problems, keep, constraints)
    order = torch.randperm(len(pool.alive), generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    if max_error is not None:
        path = in_rounds(order, len(pool.alive), pool.groups)
        return along(pool, path, max_error=max_error, rho=rho)
    assert keep is not None
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
