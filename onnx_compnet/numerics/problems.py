"""The least-squares problems of a site: one for every geometry among its readers, and what they share.

Several readers of one tensor have a W2 each and one β: K = Σ_r K_r/σ_r² and c = Σ_r c_r/σ_r², with σ_r² the
total variance of reader r, so that each counts by its relative error. A grouped convolution is one problem a
group, each over the neurons that this group sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.moments import Moments, columns_of

_BLOCK_BYTES = 64 << 20
_CONSTANT = 1e-13  # a variance below this share of the squared mean is the rounding of float32 sums


@dataclass(frozen=True, eq=False)
class Problem:
    """Readers that share a geometry: one Moments (u, y), their outputs side by side in y.

    ``fit`` holds the fitted rows, ``held_out`` others (None without); u has ``taps`` columns a candidate
    neuron. ``slices`` are the columns of y of each reader (empty: one reader), ``readers`` their places
    among all readers of the site (empty: counted on from the problem before). ``prior`` (Dn·taps, D2): a W2
    that the refit after selection starts from and is drawn to (see ``ridge.fit``). ``exact_b2`` (D2,): given where
    the prior with this b2 makes y exactly; it is then taken as it is, while its neurons stay.

    ``among``: the neurons behind the columns of u, ascending, where these are not all: those of one group. A
    reader's outputs are then spread over as many problems, which follow each other in the order of the groups.
    """

    fit: Moments
    held_out: Moments | None
    taps: int = 1
    slices: tuple[slice, ...] = ()
    readers: tuple[int, ...] = ()
    prior: Tensor | None = None
    among: Tensor | None = None
    exact_b2: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ReaderFit:
    """One reader's ``y ≈ W2ᵀu + b2``: W2 (kept·taps, D2), b2 (D2,), float64, and its relative errors.

    Of a reader with groups, W2 is (kept/groups·taps, D2), each output's column over the neurons of its group.
    ``held_out_error`` is None without held-out rows.
    """

    W2: Tensor
    b2: Tensor
    fitted_error: float
    held_out_error: float | None


def arranged(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The problems with ``slices`` and ``readers`` filled in; UsageError where they contradict each other."""
    if not problems:
        raise UsageError("a selection needs at least one reader")
    full: list[Problem] = []
    count = 0
    for problem in problems:
        slices = problem.slices or (slice(0, problem.fit.uy.shape[1]),)
        readers = problem.readers or tuple(range(count, count + len(slices)))
        count += len(slices)
        full.append(replace(problem, slices=slices, readers=readers))
    places = [place for problem in full for place in problem.readers]
    whole = [place for problem in full if problem.among is None for place in problem.readers]
    if set(places) != set(range(len(set(places)))) or len(whole) != len(set(whole)):
        raise UsageError(f"the places of readers must be 0 to {len(set(places)) - 1}, each once")
    Dn = neurons(full)
    for problem in full:
        D2 = problem.fit.uy.shape[1]
        if [i for part in problem.slices for i in range(D2)[part]] != list(range(D2)):
            raise UsageError(f"slices {problem.slices} must cover the {D2} outputs in order, each once")
        if len(problem.readers) != len(problem.slices):
            raise UsageError(f"{len(problem.slices)} slices need as many readers, not {len(problem.readers)}")
        p, own = len(problem.fit.mean_u), Dn if problem.among is None else len(problem.among)
        if p != own * problem.taps:
            raise UsageError(f"{p} columns of {problem.taps} taps are not those of {own} neurons")
    return tuple(full)


def neurons(problems: Sequence[Problem]) -> int:
    """Dn, the neurons behind the columns of all problems."""
    return max(
        len(problem.fit.mean_u) // problem.taps
        if problem.among is None
        else int(problem.among[-1]) + 1
        if len(problem.among)
        else 0
        for problem in problems
    )


def alive(problems: Sequence[Problem]) -> Tensor:
    """The indices of the neurons whose columns vary on the fitted rows of some reader (int64, CPU).

    A constant other than 0 beside zero padding does vary, and can be of use.
    """
    varies = torch.zeros(neurons(problems), dtype=torch.bool)
    for problem in problems:
        moments = problem.fit
        variance = moments.uu.diagonal() / max(moments.n, 1)
        columns = variance > _CONSTANT * moments.mean_u.square()
        seen = slice(None) if problem.among is None else problem.among
        varies[seen] |= columns.reshape(-1, problem.taps).any(1).cpu()
    return varies.nonzero().reshape(-1)


def restricted(problem: Problem, kept: Tensor) -> Problem:
    """The problem of some neurons only, in the order given (ascending where it has ``among``)."""
    among = None
    if problem.among is not None:
        among = torch.isin(kept, problem.among).nonzero().reshape(-1)
        kept = torch.searchsorted(problem.among, kept[among])
    count = len(problem.fit.mean_u) // problem.taps
    if len(kept) == count and bool((kept == torch.arange(count)).all()):
        return replace(problem, among=among)
    columns = columns_of(kept, problem.taps)
    held_out = problem.held_out.subset(columns) if problem.held_out else None
    prior, exact_b2 = problem.prior, problem.exact_b2
    if prior is not None:
        prior = prior[columns.to(prior.device)]
        complete = problem.prior is not None and prior.count_nonzero() == problem.prior.count_nonzero()
        exact_b2 = exact_b2 if complete else None
    return replace(
        problem,
        fit=problem.fit.subset(columns),
        held_out=held_out,
        prior=prior,
        among=among,
        exact_b2=exact_b2,
    )


def variances(problems: Sequence[Problem]) -> dict[int, float]:
    """σ_r² of each reader by its place: its outputs' variance; 0 where that is no more than rounding."""
    sums: dict[int, tuple[float, float]] = {}
    for problem in problems:
        v, level = problem.fit.v, problem.fit.mean_y.square()
        for place, part in zip(problem.readers, problem.slices, strict=True):
            before = sums.get(place, (0.0, 0.0))
            sums[place] = before[0] + float(v[part].sum()), before[1] + float(level[part].sum())
    return {place: v if v > ridge.CONSTANT * level else 0.0 for place, (v, level) in sums.items()}


def hadamard_statistics(
    problems: Sequence[Problem], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, float]:
    """``(K, c, σ_y²)`` of Algorithm 3 from moments, without its matrix [vec(T_1) … vec(T_Dn)] (Eq. 4).

    With T_i = u_i W2_i (centred) and ``weights`` the W2 (Dn·taps, D2) of each problem, exactly

        K_ij = ⟨vec T_i, vec T_j⟩/n = Σ over the taps×taps block (i, j) of G ∘ (W2 W2ᵀ)
        c_i  = ⟨vec T_i, vec y⟩/n  = Σ over the rows of neuron i and all outputs of C ∘ W2

    summed over the readers, each divided by its σ_r²: K (Dn, Dn), c (Dn,), float64 on the device of the first
    problem. σ_y² is the sum of the readers' variances after that division: the number of readers that vary.

    Differs from the paper: Eq. 9 divides by N·D2, here N; standardising K and c cancels either.
    """
    device = problems[0].fit.uu.device
    Dn, variance = neurons(problems), variances(problems)
    K = torch.zeros(Dn, Dn, dtype=torch.float64, device=device)
    c = torch.zeros(Dn, dtype=torch.float64, device=device)
    for problem, W2 in zip(problems, weights, strict=True):
        moments, q = problem.fit, problem.taps
        inverse = torch.zeros_like(moments.yy)
        for place, part in zip(problem.readers, problem.slices, strict=True):
            inverse[part] = 1 / variance[place] if variance[place] else 0.0
        W2_scaled = W2 * inverse
        own = torch.arange(Dn) if problem.among is None else problem.among
        own = own.to(device)
        step = max(1, _BLOCK_BYTES // (8 * q * max(1, len(W2))))
        for first in range(0, len(own), step):
            rows = slice(first * q, (first + step) * q)
            block = (moments.uu[rows] * (W2_scaled[rows] @ W2.T)).reshape(-1, q, len(own), q).sum((1, 3))
            K[own[first : first + step, None], own] += block.to(device) / moments.n
        c[own] += (moments.uy * W2_scaled).sum(1).reshape(len(own), q).sum(1).to(device) / moments.n
    return (K + K.T) / 2, c, float(sum(v > 0 for v in variance.values()))


def fit_readers(problems: Sequence[Problem], rho: float) -> tuple[tuple[ReaderFit, ...], tuple[str, ...]]:
    """W2 and b2 of every reader by least squares (Eq. 11), in the order of the readers, and warnings."""
    W2s: list[Tensor] = []
    b2s: list[Tensor] = []
    notes: list[str] = []
    for problem in problems:
        if problem.prior is not None and problem.exact_b2 is not None:
            W2, b2 = problem.prior.to(problem.fit.uy), problem.exact_b2.to(problem.fit.uy)
        else:
            fit = ridge.fit(problem.fit, rho, problem.prior)
            W2, b2 = _better(problem, fit)
            notes += fit.warnings
        W2s.append(W2)
        b2s.append(b2)
    return measured(problems, W2s, b2s), tuple(dict.fromkeys(notes))


def _better(problem: Problem, fit: ridge.RidgeFit) -> tuple[Tensor, Tensor]:
    """The fit's W2 and b2, or the prior's where these are closer on rows that were not fitted."""
    if problem.prior is not None and problem.held_out is not None and problem.held_out.n:
        prior = problem.prior.to(fit.W2)
        known = prior, ridge.intercept(problem.fit, prior)
        error = ridge.relative_error(problem.held_out, fit.W2, fit.b2)
        if ridge.relative_error(problem.held_out, *known) < error:
            return known
    return fit.W2, fit.b2


def measured(
    problems: Sequence[Problem], W2s: Sequence[Tensor], b2s: Sequence[Tensor]
) -> tuple[ReaderFit, ...]:
    """The readers of all problems in their order, with the errors of the given W2 and b2."""
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for problem, W2, b2 in zip(problems, W2s, b2s, strict=True):
        for place, part in zip(problem.readers, problem.slices, strict=True):
            parts.setdefault(place, []).append((W2[:, part], b2[part]))
    fitted = _errors(problems, W2s, b2s, [problem.fit for problem in problems])
    held_out = _errors(problems, W2s, b2s, [problem.held_out for problem in problems])
    return tuple(
        ReaderFit(
            torch.cat([W2 for W2, _ in found], 1),
            torch.cat([b2 for _, b2 in found]),
            fitted[place],
            held_out.get(place),
        )
        for place, found in sorted(parts.items())
    )


def _errors(
    problems: Sequence[Problem],
    W2s: Sequence[Tensor],
    b2s: Sequence[Tensor],
    moments: Sequence[Moments | None],
) -> dict[int, float]:
    """The relative error of each reader on ``moments``, all its outputs together; none where there are no rows."""
    sums: dict[int, Tensor] = {}
    for problem, W2, b2, each in zip(problems, W2s, b2s, moments, strict=True):
        if each is None or not each.n:
            continue
        rows = torch.stack([ridge.squared_errors(each, W2, b2), each.v, each.mean_y.square()])
        for place, part in zip(problem.readers, problem.slices, strict=True):
            sums[place] = sums.get(place, torch.zeros(3, dtype=torch.float64)) + rows[:, part].sum(1).cpu()
    return {place: ridge.ratio(*found.tolist()) for place, found in sums.items()}


def worst(readers: Sequence[ReaderFit]) -> tuple[float, float | None]:
    """The largest fitted and the largest held-out error (None without held-out rows)."""
    held_out = [reader.held_out_error for reader in readers if reader.held_out_error is not None]
    return max(reader.fitted_error for reader in readers), max(held_out, default=None)
