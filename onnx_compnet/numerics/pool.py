"""The candidates that a selection is made from, what must stay among them, and the Selection that comes of it."""

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


@dataclass(frozen=True)
class Constraints:
    """What a selection must respect, whatever the method would drop.

    ``core``: candidates that keep the function by themselves. They stay, also where the data does not move
    them, unless ``keep`` asks for fewer neurons. ``groups``: candidate i belongs to group i·groups // Dn, and each
    group keeps the same number, as a grouped convolution needs it.
    """

    core: tuple[int, ...] = ()
    groups: int = 1


FREE = Constraints()


@dataclass(frozen=True, eq=False)
class Selection:
    """The neurons that stay, and what the readers make of them.

    ``kept``: indices among all Dn candidates, ascending. ``beta`` (Dn,): unstandardised, float64 on the
    CPU, 0 where dropped, and for neurons that stay by the constraints alone. ``lam`` is the option's value
    (for Algorithm 3 a fraction of ``lam_max``), after a cap the strengthened one, as is ``alpha``; both are
    None for the random baseline, ``lam_max`` and ``solution``, too. ``solution`` is the last solve, over the
    candidates that may be kept (Algorithm 2: over those it was left with). ``rounds``: of Algorithm 2, else 0.
    ``dropped_dead``: candidates without variance. ``readers``: W2, b2 and errors in the order of the readers;
    ``fitted_error`` and ``held_out_error`` are those of the worst reader. ``curve``: (λ/λ_max, neurons kept,
    held-out and fitted error of the worst reader) along Algorithm 3's path; where all widths of a path were
    priced, one point each, without a λ.
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
    curve: tuple[tuple[float | None, int, float | None, float], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Pool:
    """The candidates that may be kept (``alive``, indices among all Dn), and the problems of these.

    These are the ones that vary on the data and, where the constraints may need them, the others.
    ``core``: the places among the living of those that must stay.
    """

    Dn: int
    alive: Tensor
    problems: tuple[Problem, ...]
    core: NDArray[np.intp]
    groups: int
    keep: int | None
    dead: int

    @classmethod
    def of(cls, problems: Sequence[Problem], keep: int | None, constraints: Constraints = FREE) -> Pool:
        """Check the problems and ``keep``, and drop the neurons without variance."""
        if keep is not None and keep < constraints.groups:
            least = f"{constraints.groups}, one for each group" if constraints.groups > 1 else "1"
            raise UsageError(f"keep = {keep} must be at least {least}")
        full = sites.arranged(problems)
        Dn, varying = sites.neurons(full), sites.alive(full)
        stays = torch.zeros(Dn, dtype=torch.bool)
        stays[list(constraints.core)] = keep is None or keep >= len(constraints.core)
        if not len(varying) and not bool(stays.any()):
            raise DataError("no candidate's activation varies on this data; give other samples, init or seed")
        if Dn % constraints.groups:
            raise UsageError(f"{Dn} candidates can't be shared out among {constraints.groups} groups")
        possible = stays.clone()
        possible[varying] = True
        alive = (possible | (constraints.groups > 1)).nonzero().reshape(-1)
        return cls(
            Dn=Dn,
            alive=alive,
            problems=tuple(sites.restricted(p, alive) for p in full),
            core=stays[alive].nonzero().reshape(-1).numpy(),
            groups=constraints.groups,
            keep=keep,
            dead=Dn - int(possible.sum()),
        )

    def completed(self, support: NDArray[np.intp]) -> NDArray[np.intp]:
        """``support`` and what must stay beside it (places among the living, ascending).

        The core; and where there are groups, as many neurons in each as in the largest: the first ones of those
        that were dropped. The core alone where ``keep`` leaves no room for ``support``.
        """
        chosen = self._united(support)
        return (
            chosen
            if self.keep is None or len(chosen) <= self.keep or not len(self.core)
            else self._united(())
        )

    def size(self, support: NDArray[np.intp]) -> int:
        """How many neurons stay with this support, were it not for ``keep``."""
        return len(self._united(support))

    def _united(self, support: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
        chosen = np.union1d(np.asarray(support, np.intp), self.core)
        if self.groups == 1:
            return chosen
        each = self.Dn // self.groups  # every candidate is alive where there are groups
        taken = np.zeros((self.groups, each), bool)
        taken.reshape(-1)[chosen] = True
        most = max(1, taken.sum(1).max())
        for group in taken:
            group[np.flatnonzero(~group)[: most - group.sum()]] = True
        return np.flatnonzero(taken.reshape(-1))

    def left(self, support: NDArray[np.intp]) -> list[Problem]:
        """The problems of some of the living."""
        return [sites.restricted(problem, torch.from_numpy(support)) for problem in self.problems]

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
        """The Selection of ``support`` (places among the living, with their ``beta``) and what stays beside it.

        W2 is fitted, unless ``found`` holds it.
        """
        own = np.zeros(len(self.alive))
        own[support] = beta
        support = self.completed(support)
        kept = self.alive[torch.from_numpy(support)]
        full = torch.zeros(self.Dn, dtype=torch.float64)
        full[kept] = torch.from_numpy(own[support])
        if found is None:
            found = sites.fit_readers(self.left(support), rho)
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
            dropped_dead=self.dead,
            lam=solution.lam if solution else None,
            lam_max=solution.lam_max if solution else None,
            alpha=solution.alpha if solution else None,
            solution=solution,
            rounds=rounds,
            warnings=(*notes, *more),
        )
