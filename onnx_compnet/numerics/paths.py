"""From a path of selections to one of them: by width, by the error that is allowed, or by a cap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError, UsageError, VerificationError
from onnx_compnet.numerics import ridge, selection
from onnx_compnet.numerics.iilasso import Solution, cap_search
from onnx_compnet.numerics.pool import FREE, Constraints, Pool, Selection
from onnx_compnet.numerics.problems import Problem, variances
from onnx_compnet.numerics.selection import Order, in_rounds
from onnx_compnet.numerics.widths import WidthCurve, width_curve

T = TypeVar("T")

ROUNDING = 1e-3  # of max_error: how far the moments' figure and that of a forward pass may be apart


def greedy(
    method: str,
    problems: Sequence[Problem],
    *,
    keep: int | None,
    max_error: float | None,
    rho: float = ridge.RHO,
    constraints: Constraints = FREE,
) -> Selection:
    """Methods ``obs`` and ``forward`` (see ``selection``): of width ``keep``, or as narrow as ``max_error`` allows.

    β is 1 for the neurons that stay. Raises as ``along``, DataError as ``selection.obs`` and where no target varies.
    """
    if keep is None and max_error is None:
        raise UsageError(f"method {method!r} has no width of its own: give keep or max_error")
    pool = Pool.of(problems, keep, constraints if max_error is None else free_of_core(constraints))
    if not any(variances(pool.problems).values()) and not len(pool.core):
        raise DataError(
            "no reader's output varies on this data, so there is nothing to fit; give other samples"
        )
    if method == "obs":
        order = selection.obs(pool.problems, core=pool.core, groups=pool.groups, rho=rho)
    else:
        order = selection.forward(pool.problems, core=pool.core, groups=pool.groups, rho=rho, most=keep)
    return along(pool, order, max_error=max_error, rho=rho)


def free_of_core(constraints: Constraints) -> Constraints:
    """Where the error says how wide, a core is no more than other candidates."""
    return replace(constraints, core=())


def along(
    pool: Pool,
    order: Order,
    *,
    max_error: float | None,
    rho: float,
    notes: Sequence[str] = (),
    finish: Callable[[NDArray[np.intp]], Selection] | None = None,
) -> Selection:
    """The Selection of one width on a path, with the errors of all widths as its ``curve``.

    The widest that the pool's ``keep`` allows; with ``max_error`` the narrowest whose error on held-out rows, of the
    worst reader, is at most that. These are the rows that the error is reported on, so that it is a little too
    good, by about as much as neighbouring widths differ. ``finish`` makes the Selection of the neurons chosen.

    Raises VerificationError where no width has so small an error, UsageError where ``max_error`` is asked for
    without held-out rows.
    """
    curve = width_curve(pool.problems, order, rho)
    allowed = curve.widths <= (pool.Dn if pool.keep is None else pool.keep)
    allowed[0] |= not allowed.any()
    if max_error is None:
        width = int(curve.widths[allowed][-1])
        if pool.keep is not None and width <= pool.keep - pool.groups:
            note = f"only {width} of the {pool.keep} neurons asked for vary on the data; all of them stay"
            notes = (*notes, note)
    else:
        width = _narrowest(curve, allowed, max_error, pool)
    chosen = np.sort(order.places[:width])
    notes = (*notes, *order.warnings)
    found = finish(chosen) if finish else pool.finish(None, chosen, np.ones(len(chosen)), rho)
    return replace(found, curve=points(curve), warnings=(*notes, *found.warnings))


@dataclass(frozen=True, eq=False)
class Run:
    """One solve on a path of penalties: the places that it leaves, their β, the Solution, Algorithm 2's rounds."""

    support: NDArray[np.intp]
    beta: NDArray[np.float64]
    solution: Solution
    rounds: int = 0


def along_runs(
    pool: Pool,
    runs: Sequence[Run],
    *,
    max_error: float,
    rho: float,
    rest: Sequence[int] | NDArray[np.intp] = (),
    notes: Sequence[str] = (),
) -> Selection:
    """``along`` the neurons in the order in which ``runs``, the strongest penalty first, let them in.

    Of those that enter together the ones with the largest |β| come first; behind all of them ``rest``, and what is
    still missing. β is that of the strongest penalty by which all the neurons chosen have been in, and 0 for those
    that are out again there.
    """
    entered = np.full(len(pool.alive), len(runs))
    size = np.zeros(len(pool.alive))
    for number in reversed(range(len(runs))):
        entered[runs[number].support] = number
        size[runs[number].support] = np.abs(runs[number].beta)
    late = np.full(len(pool.alive), len(pool.alive))
    late[np.asarray(rest, np.intp)] = np.arange(len(rest))
    places = np.lexsort((late, -size, entered))

    def finish(chosen: NDArray[np.intp]) -> Selection:
        run = runs[min(entered[chosen].max(), len(runs) - 1)]
        beta = np.zeros(len(pool.alive))
        beta[run.support] = run.beta
        return pool.finish(run.solution, chosen, beta[chosen], rho, rounds=run.rounds)

    order = in_rounds(places, len(places), pool.groups)
    return along(pool, order, max_error=max_error, rho=rho, notes=notes, finish=finish)


def points(curve: WidthCurve) -> tuple[tuple[None, int, float | None, float], ...]:
    """(None for λ, width, held-out error, fitted error) of each width that could be fitted, worst reader."""
    held_out = [None] * len(curve.widths) if curve.held_out is None else curve.held_out.max(0).tolist()
    fitted = curve.fitted.max(0).tolist()
    return tuple(
        (None, int(width), error, own)
        for width, error, own in zip(curve.widths, held_out, fitted, strict=True)
        if not math.isnan(own)
    )


def _narrowest(curve: WidthCurve, allowed: NDArray[np.bool_], max_error: float, pool: Pool) -> int:
    if curve.held_out is None:
        raise UsageError("max_error is measured on held-out rows, and there are none")
    errors = np.where(allowed & ~np.isnan(curve.worst), curve.worst, np.inf)
    fits = np.flatnonzero(errors <= max_error * (1 - ROUNDING))
    if len(fits):
        return int(curve.widths[fits[0]])
    best = int(errors.argmin())
    if not np.isfinite(errors[best]):
        rows, columns = min((p.fit.n, p.taps) for p in pool.problems)
        raise DataError(f"{rows} rows can't fit one neuron of {columns} columns; give more samples")
    within = "" if pool.keep is None else f" (keep = {pool.keep})"
    raise VerificationError(
        f"a held-out error of {max_error:g} is out of reach: the best on the path is {errors[best]:.4g} with "
        f"{curve.widths[best]} of {pool.Dn} candidates{within}; more candidates, more samples, another init or a "
        "larger max_error may help"
    )


def refuse_large_lam(lam: float, lam_max: float, count: Callable[[float], int]) -> None:
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


def cap(
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
