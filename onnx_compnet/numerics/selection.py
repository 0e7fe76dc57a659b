"""Orders of the neurons: a path of nested selections, from all candidates down or from none up.

All work on a site's problems (fitted moments), with the readers' squared errors divided by their variances and
added up, as Algorithm 3 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.elimination import Backward, Forward
from onnx_compnet.numerics.problems import Problem, hadamard_statistics, neurons, variances

Places = NDArray[np.intp]

S = TypeVar("S", Backward, Forward)

TIE, NOTHING = (
    1e-7,
    1e-13,
)  # costs this close, relative and to the variance, are equal: rounding must not decide


@dataclass(frozen=True, eq=False)
class Order:
    """Neurons in the order in which a selection takes them: its first m are the selection of width m.

    Widths are ``least``, ``least + groups``, … up to ``len(places)``; each has as many neurons of every group.
    """

    places: Places
    least: int
    groups: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def widths(self) -> Places:
        """The widths on the path, ascending."""
        return np.arange(self.least, len(self.places) + 1, self.groups)


def obs(
    problems: Sequence[Problem], *, core: Sequence[int] | Places = (), groups: int = 1, rho: float = ridge.RHO
) -> Order:
    """Backward elimination (optimal brain surgeon, in blocks): from all neurons drop the cheapest, and again.

    With H = (G + ρI)⁻¹ and W = HC, dropping neuron j and solving the least squares of the others anew raises the
    squared error (with its ridge) by exactly ``tr(W_jᵀ (H_jj)⁻¹ W_j)``. H and W are then downdated; H is
    factorised anew each time a quarter of the neurons has gone. O(p²·q) a neuron.

    ``core`` stays. With ``groups`` (neuron i is of group i·groups // Dn), one neuron of each group goes in turn.
    Of neurons that cost the same, up to rounding, the last goes first. With a prior W⁰ (see ``Problem``), C is
    C + ρW⁰.

    Raises DataError when there are no more rows than columns, unless the priors are known to be good.
    """
    states = _states(Backward, problems, rho)
    rest = _Rest(neurons(problems), core, groups)
    costs = _Sums(states, rest.Dn)
    total = float(len(variances(problems)))
    dropped: list[int] = []
    while (eligible := rest.removable()) is not None:
        value = np.where(eligible, costs.values, np.inf)
        cheapest = value.min()
        place = int(np.flatnonzero(value <= cheapest * (1 + TIE) + NOTHING * total)[-1])
        costs.take(place)
        rest.remove(place)
        dropped.append(place)
    front = np.flatnonzero(rest.present)
    notes = tuple(dict.fromkeys(note for state in states for note in state.warnings))
    return Order(np.array([*front, *reversed(dropped)], np.intp), len(front), groups, notes)


def forward(
    problems: Sequence[Problem],
    *,
    core: Sequence[int] | Places = (),
    groups: int = 1,
    rho: float = ridge.RHO,
    most: int | None = None,
) -> Order:
    """Forward selection (orthogonal least squares, in blocks): add the neuron that takes most off the error.

    A pivoted block Cholesky factorisation of G + ρI: each step adds the neuron with the largest
    ``tr(R_jᵀ (S_jj)⁻¹ R_j)``, S the Schur complement of those that are in and R the rest of C. O(m·p·q) for the
    m-th. Begins with ``core``; ends with ``most`` neurons (None: all), and then is far cheaper than ``obs``.

    ``groups`` and priors as in ``obs``. Of equal neurons the first is taken.
    """
    states = _states(Forward, problems, rho)
    rest = _Rest(neurons(problems), core, groups)
    gains = _Sums(states, rest.Dn)
    total = float(len(variances(problems)))
    taken: list[int] = []
    for place in np.flatnonzero(rest.core).tolist():
        gains.take(place)
        rest.remove(place)
        taken.append(place)
    least = max(groups * int(rest.missing().max()), groups)
    limit = rest.Dn if most is None else max(min(most // groups * groups, rest.Dn), least)
    while len(taken) < limit:
        value = np.where(rest.addable(), gains.values, -np.inf)
        largest = value.max()
        place = int(np.flatnonzero(value >= largest * (1 - TIE) - NOTHING * total)[0])
        gains.take(place)
        rest.remove(place)
        taken.append(place)
    return Order(np.array(taken, np.intp), least, groups)


def by_contribution(problems: Sequence[Problem], *, groups: int = 1, rho: float = ridge.RHO) -> Order:
    """Neurons by ‖T_i‖, T_i = u_i W2_i with the W2 of all: what each adds to y. A cheap ranking to compare with."""
    weights = [ridge.fit(problem.fit, rho, problem.prior).W2 for problem in problems]
    size = hadamard_statistics(problems, weights)[0].diagonal().cpu().numpy()
    return in_rounds(np.argsort(-size, kind="stable"), len(size), groups)


def in_rounds(places: Places, Dn: int, groups: int, core: Sequence[int] | Places = ()) -> Order:
    """An Order of all ``places``, most important first: ``core`` in front, then one neuron of each group in turn."""
    first = np.isin(places, np.asarray(core, np.intp))
    ordered = np.concatenate([places[first], places[~first]])
    group = ordered * groups // Dn
    turn = np.empty(len(ordered), np.intp)
    for number in range(groups):
        turn[group == number] = np.arange((group == number).sum())
    counts = np.bincount(group, minlength=groups)
    whole = turn < counts.min()
    in_core = np.bincount(group[: first.sum()], minlength=groups).max() if first.any() else 0
    return Order(
        ordered[whole][np.lexsort((group[whole], turn[whole]))], groups * max(int(in_core), 1), groups
    )


class _Rest:
    """The neurons that a greedy selection has not dealt with, and whose turn it is among the groups."""

    def __init__(self, Dn: int, core: Sequence[int] | Places, groups: int) -> None:
        if Dn % groups:
            raise UsageError(f"{Dn} neurons can't be shared out among {groups} groups")
        self.Dn, self.groups = Dn, groups
        self.present = np.ones(Dn, bool)
        self.core = np.zeros(Dn, bool)
        self.core[np.asarray(core, np.intp)] = True

    def remove(self, place: int) -> None:
        self.present[place] = False

    def missing(self) -> Places:
        """How many have gone of each group."""
        gone: Places = (~self.present).reshape(self.groups, -1).sum(1)
        return gone

    def addable(self) -> NDArray[np.bool_]:
        """Those of the groups of which fewest have been taken."""
        return self.present & self._of(self.missing().min())

    def removable(self) -> NDArray[np.bool_] | None:
        """Those outside the core, of the groups of which fewest have been dropped; None where a path ends."""
        missing = self.missing()
        eligible = self.present & ~self.core & self._of(missing.min())
        if missing.min() == missing.max():  # a new round, which every group must be able to finish
            left = self.present.reshape(self.groups, -1).sum(1).min()
            if left == 1 or not eligible.reshape(self.groups, -1).any(1).all():
                return None
        return eligible

    def _of(self, missing: int) -> NDArray[np.bool_]:
        return np.repeat(self.missing() == missing, self.Dn // self.groups)


class _Sums:
    """The worths of all neurons, added up over the problems, brought up to date where a neuron is taken."""

    def __init__(self, states: Sequence[Backward | Forward], Dn: int) -> None:
        self._states = states
        self._parts = [state.worths() for state in states]
        self._seeing: list[list[int]] = [[] for _ in range(Dn)]
        for number, state in enumerate(states):
            for place in state.own:
                self._seeing[place].append(number)
        self.values = np.zeros(Dn)
        for state, part in zip(states, self._parts, strict=True):
            self.values[state.own] += part

    def take(self, place: int) -> None:
        for number in self._seeing[place]:
            state = self._states[number]
            state.take(place)
            worths = state.worths()
            self.values[state.own] += worths - self._parts[number]
            self._parts[number] = worths


def _states(kind: type[S], problems: Sequence[Problem], rho: float) -> list[S]:
    """One state a problem, each output weighed by 1/σ_r² of its reader (0 where that does not vary)."""
    variance = variances(problems)
    states = []
    for problem in problems:
        weights = torch.zeros_like(problem.fit.yy)
        for place, part in zip(problem.readers, problem.slices, strict=True):
            weights[part] = 1 / variance[place] if variance[place] else 0.0
        states.append(kind(problem, weights, rho))
    return states
