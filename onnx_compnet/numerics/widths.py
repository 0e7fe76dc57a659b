"""What every width on a path costs: all nested selections priced from one factorisation (fitted and held-out).

With the neurons in the order of the path, LLᵀ = G + ρI, Z = L⁻¹C, and of the rows behind another set of moments
(index h; the fitted ones are as good) G̃ = L⁻¹ G_h L⁻ᵀ, C̃ = L⁻¹ C_h, m̃ = L⁻¹(ū_h − ū), the first m columns
have the squared error

    E_h(m) = Σv_h − 2 Σ_{i≤m} Z_i·C̃_i + Σ_{i,j≤m} (G̃ ∘ ZZᵀ)_ij + ‖(ȳ_h − ȳ) − Σ_{i≤m} m̃_i Z_i‖²

as the least squares on these columns has W2 = L_m⁻ᵀ Z_m. All widths together take O(p³ + p²·D2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.moments import Moments, columns_of
from onnx_compnet.numerics.problems import Problem
from onnx_compnet.numerics.selection import Order

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class WidthCurve:
    """The relative error of each reader (rows, in their order) at each of ``widths``: ``fitted``, ``held_out``.

    ``held_out`` is None without held-out rows. NaN where a width has no fewer columns than there are rows.
    """

    widths: NDArray[np.intp]
    fitted: NDArray[np.float64]
    held_out: NDArray[np.float64] | None

    @property
    def worst(self) -> NDArray[np.float64]:
        """The worst reader's error at each width: on held-out rows, on fitted ones where there are none."""
        errors: NDArray[np.float64] = (self.fitted if self.held_out is None else self.held_out).max(0)
        return errors


def width_curve(problems: Sequence[Problem], order: Order, rho: float = ridge.RHO) -> WidthCurve:
    """Price all widths of ``order`` (see the module). A prior W⁰ (see ``Problem``) makes C to C + ρW⁰.

    Where a prior alone does better on held-out rows than the fit, it is what counts, as in ``fit_readers``.
    """
    fitted: dict[int, Tensor] = {}
    held_out: dict[int, Tensor] = {}
    for problem in problems:
        inside, among = _inside(problem, order)
        counts = torch.from_numpy(np.cumsum(inside)[order.widths - 1])
        mine, others = _priced(problem, torch.from_numpy(among), rho)
        for sums, errors, moments in ((fitted, mine, problem.fit), (held_out, others, problem.held_out)):
            if errors is None or moments is None:
                continue
            scales = torch.stack([moments.v, moments.mean_y.square()])
            for column, (place, part) in enumerate(zip(problem.readers, problem.slices, strict=True)):
                v, level = scales[:, part].sum(1).cpu()[:, None].expand(2, len(counts))
                found = torch.stack([errors[counts, column], v, level])
                sums[place] = sums[place] + found if place in sums else found
    return WidthCurve(order.widths, _relative(fitted), _relative(held_out) if held_out else None)


def nested_errors(
    moments: Moments,
    mean_u: Tensor,
    mean_y: Tensor,
    Z: Tensor,
    L: Tensor | None,
    taps: int,
    slices: Sequence[slice],
) -> Tensor:
    """E_h of the first 0, 1, … neurons (one more row than neurons) for the outputs of each slice, at least 0.

    ``moments`` are those to measure on, the means (of the fitted rows) those that b2 follows from. Without L (as if
    it were the identity) Z holds weights that do not depend on the width.
    """
    G, C, slip = moments.uu, moments.C, (moments.mean_u - mean_u)[:, None]
    if L is not None:
        G = torch.linalg.solve_triangular(L, G, upper=False)
        G = torch.linalg.solve_triangular(L, G.T, upper=False)
        C = torch.linalg.solve_triangular(L, C, upper=False)
        slip = torch.linalg.solve_triangular(L, slip, upper=False)
    ends = torch.arange(taps - 1, len(Z), taps, device=Z.device)
    apart = moments.mean_y - mean_y
    offsets = torch.cat([apart[None], apart - (slip * Z).cumsum(0)[ends]]).square()
    errors = []
    for part in slices:
        steps = _growing_sums(G, Z[:, part]) / max(moments.n, 1) - 2 * (Z[:, part] * C[:, part]).sum(1)
        of_width = torch.cat([steps.new_zeros(1), steps.cumsum(0)[ends]])
        errors.append(moments.v[part].sum() + of_width + offsets[:, part].sum(1))
    return torch.stack(errors, 1).clamp(min=0)


def _growing_sums(G: Tensor, Z: Tensor) -> Tensor:
    """What row and column i add to the sum of G ∘ ZZᵀ over the first i of both: (p,)."""
    p = len(Z)
    added = Z.new_empty(p)
    step = max(1, _CHUNK_BYTES // (8 * max(1, p)))
    for first in range(0, p, step):
        last = min(first + step, p)
        block = (Z[first:last] @ Z[:last].T) * G[first:last, :last]
        corner = block.diagonal(first)
        added[first:last] = 2 * block.tril(first).sum(1) - corner
    return added


def _inside(problem: Problem, order: Order) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which neurons of the order the problem sees, and these as positions among its own."""
    if problem.among is None:
        return np.ones(len(order.places), bool), order.places
    own = problem.among.cpu().numpy()
    inside = np.isin(order.places, own)
    return inside, np.searchsorted(own, order.places[inside])


def _priced(problem: Problem, own: Tensor, rho: float) -> tuple[Tensor, Tensor | None]:
    """The squared errors (neurons + 1, readers) on fitted and held-out rows; NaN where rows are too few."""
    q, fitted, held_out = problem.taps, problem.fit, problem.held_out
    device = fitted.uu.device
    columns = columns_of(own, q).to(device)
    prior = None if problem.prior is None else problem.prior.to(fitted.uu)[columns]
    fitting = min(len(own), max(0, fitted.n - 1) // q)
    narrow = columns[: fitting * q]
    near, mean_u = fitted.subset(narrow), fitted.mean_u[narrow]
    factor = ridge.factorise(near, rho)
    target = near.C
    if factor is not None and prior is not None:
        target = target + factor.shift * prior[: len(narrow)]
    L = None if factor is None else factor.L
    Z = torch.zeros_like(target) if L is None else torch.linalg.solve_triangular(L, target, upper=False)

    def errors(moments: Moments) -> Tensor:
        found = torch.full((len(own) + 1, len(problem.slices)), torch.nan, dtype=torch.float64, device=device)
        found[: fitting + 1] = nested_errors(moments, mean_u, fitted.mean_y, Z, L, q, problem.slices)
        return found

    def known(moments: Moments, weights: Tensor) -> Tensor:
        some = moments.subset(columns)
        return nested_errors(some, fitted.mean_u[columns], fitted.mean_y, weights, None, q, problem.slices)

    mine = errors(near)
    del near  # p² numbers
    if held_out is None or not held_out.n:
        return mine.cpu(), None
    others = errors(held_out.subset(narrow))
    if prior is not None:
        other = known(held_out, prior)
        better = ~(others.sum(1) <= other.sum(1))
        complete = len(own) + 1  # of more columns than rows, only weights that need no fit will do
        if problem.exact_b2 is not None:
            used = prior.reshape(len(own), -1).count_nonzero(1).nonzero().reshape(-1)
            complete = int(used[-1]) + 1 if len(used) else 0
        better[fitting + 1 : max(complete, fitting + 1)] = False
        others = torch.where(better[:, None], other, others)
        mine = torch.where(better[:, None], known(fitted, prior), mine)
    return mine.cpu(), others.cpu()


def _relative(sums: dict[int, Tensor]) -> NDArray[np.float64]:
    """(E/v)^½ as ``ridge.ratio`` has it, one row a reader."""
    rows = []
    for _, (error, v, level) in sorted(sums.items()):
        constant = torch.where(error <= 1e-12 * level, 0.0, torch.inf).double()
        rows.append(torch.where(v > ridge.CONSTANT * level, (error / v).sqrt(), constant))
    found: NDArray[np.float64] = torch.stack(rows).numpy()
    return found
