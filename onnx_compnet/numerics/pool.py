"""The candidates of a selection that vary on the data, and the Selection that comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.numerics import problems as sites
from onnx_compnet.numerics.iilasso import Solution
from onnx_compnet.numerics.moments import Covariance
from onnx_compnet.numerics.problems import Problem, ReaderFit


@dataclass(frozen=True, eq=False)
class Selection:
    """The neurons that stay, and what the readers make of them.

    ``kept``: indices among all Dn candidates, ascending. ``beta`` (Dn,): unstandardised, float64 on the
    CPU, 0 where dropped. ``lam`` is the option's value (for Algorithm 3 a fraction of ``lam_max``), after a
    cap the strengthened one, as is ``alpha``; both are None for the random baseline, ``lam_max`` and
    ``solution``, too. ``solution`` is the last solve, over the candidates that vary (Algorithm 2: over
    those it was left with). ``rounds``: of Algorithm 2, else 0. ``dropped_dead``: candidates without
    variance. ``readers``: W2, b2 and errors in the order of the readers; ``fitted_error`` and
    ``held_out_error`` are those of the worst reader. ``curve``: (λ/λ_max, neurons kept, held-out error of
    the worst reader) along Algorithm 3's path.
    """

    kept: tuple[int, ...]
    beta: Tensor
    readers: tuple[ReaderFit, ...]
    fitted_error: float
    held_out_error: float | None
    dropped_dead: int
    lam: float | None = None
    lam_max: float | None = None
    alpha: float | None = None
    solution: Solution | None = None
    rounds: int = 0
    curve: tuple[tuple[float, int, float | None], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Pool:
    """The candidates that vary on the data (``alive``, indices among all Dn), and the problems of these."""

    Dn: int
    alive: Tensor
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, problems: Sequence[Problem], keep: int | None) -> Pool:
        """Check the problems and ``keep``, and drop the neurons without variance."""
        if keep is not None and keep < 1:
            raise UsageError(f"keep = {keep} must be at least 1")
        full = sites.arranged(problems)
        alive = sites.alive(full)
        if not len(alive):
            raise DataError("no candidate's activation varies on this data; give other samples, init or seed")
        return cls(sites.neurons(full[0]), alive, tuple(sites.restricted(p, alive) for p in full))

    def folds(self, x_folds: Sequence[Covariance]) -> list[Covariance]:
        """The covariances of the neurons that vary, without folds that got no rows."""
        folds = [fold for fold in x_folds if fold.n]
        if not folds or any(len(fold.mean) != self.Dn for fold in folds):
            raise UsageError(f"Algorithms 1 and 2 need covariances of the {self.Dn} pre-activations")
        return [fold.subset(self.alive) for fold in folds]

    def finish(
        self,
        solution: Solution | None,
        support: NDArray[np.intp],
        beta: NDArray[np.float64],
        rho: float,
        *,
        rounds: int = 0,
        notes: Sequence[str] = (),
        found: tuple[tuple[ReaderFit, ...], tuple[str, ...]] | None = None,
    ) -> Selection:
        """The Selection of ``support`` (indices among the living), W2 fitted unless ``found`` holds it."""
        kept = self.alive[torch.from_numpy(support)]
        full = torch.zeros(self.Dn, dtype=torch.float64)
        full[kept] = torch.from_numpy(beta)
        if found is None:
            left = [sites.restricted(problem, torch.from_numpy(support)) for problem in self.problems]
            found = sites.fit_readers(left, rho)
        readers, more = found
        fitted, held_out = sites.worst(readers)
        if solution is not None and solution.status != "optimal":
            notes = (*notes, solution.advice)
        return Selection(
            kept=tuple(kept.tolist()),
            beta=full,
            readers=readers,
            fitted_error=fitted,
            held_out_error=held_out,
            dropped_dead=self.Dn - len(self.alive),
            lam=solution.lam if solution else None,
            lam_max=solution.lam_max if solution else None,
            alpha=solution.alpha if solution else None,
            solution=solution,
            rounds=rounds,
            warnings=(*notes, *more),
        )
