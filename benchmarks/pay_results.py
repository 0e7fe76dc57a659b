"""What the result files say on when growing pays: the chosen runs, their figures, and who wins by them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.pay_plan import CORE, GROWN, MORE, NEXT, TITLES, Experiment, Plan, Task
from benchmarks.pay_run import Bench, NoRunError, Record

CONFIDENCE = 0.90
WINS, TIES, LOSES = "wins", "ties", "loses"
Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Figure:
    """The values of one quantity, one a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Their mean, None where there are none."""
        return statistics.mean(self.values) if self.values else None

    @property
    def half_width(self) -> float | None:
        """Half of the mean's confidence interval by Student's t; None for fewer than three values."""
        n = len(self.values)
        if n < 3:
            return None
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
        return quantile * statistics.stdev(self.values) / math.sqrt(n)

    @property
    def verdict(self) -> str | None:
        """Of differences: whether the interval lies above 0, holds it, or lies below; None for too few seeds."""
        if self.mean is None or self.half_width is None:
            return None
        if abs(self.mean) <= self.half_width:
            return TIES
        return WINS if self.mean > 0 else LOSES

    def text(self, form: str = ".4f", *, sign: bool = False) -> str:
        """``mean ± sample standard deviation``; "not run" without any value."""
        if self.mean is None:
            return "not run"
        told = f"{self.mean:{'+' if sign else ''}z{form}}"
        return told + (f" ± {statistics.stdev(self.values):{form}}" if len(self.values) > 1 else "")


@dataclass(frozen=True, eq=False)
class Outcome:
    """One experiment: ``searched`` are the runs on validation images, ``finals`` those on the test images, by method.

    ``missing`` were planned and have no file; ``complete`` says whether the search came to its end, without which the
    recipes are not settled.
    """

    experiment: Experiment
    searched: dict[Task, Record]
    chosen: dict[str, Task]
    finals: dict[str, dict[int, Record]]
    missing: list[Task] = field(default_factory=list)
    complete: bool = True

    @property
    def methods(self) -> list[str]:
        """Those with a result on the test images, in the order of TITLES."""
        return [method for method in TITLES if self.of(method)]

    def of(self, method: str) -> dict[int, Record]:
        """The records of a method that came to their end, by seed."""
        return {seed: r for seed, r in sorted(self.finals.get(method, {}).items()) if "final" in r}

    def figure(self, method: str, value: Value) -> Figure:
        """A quantity of a method's runs; records where ``value`` is None are left out."""
        found = (value(record) for record in self.of(method).values())
        return Figure(tuple(each for each in found if each is not None))

    def over(self, method: str, other: str, value: Value | None = None) -> Figure:
        """The accuracy less that of ``other`` with the same seed, and so the same parent."""
        ours, theirs, taken = self.of(method), self.of(other), value or final
        pairs = ((taken(ours[seed]), taken(theirs[seed])) for seed in ours if seed in theirs)
        return Figure(tuple(a - b for a, b in pairs if a is not None and b is not None))

    def curve(self, method: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Floating point operations, the parent's included, and accuracies (seeds, points); None without runs."""
        records = list(self.of(method).values())
        if not records:
            return None
        points = min(len(record["curve"]) for record in records)
        own = [record for record in records if len(record["curve"]) == points]
        before = self.figure("parent", lambda record: record["flops"]["spent"]).mean or 0.0
        start = 0.0 if own[0]["parent"] is None else before
        flops = np.array([[start + point["flops"] for point in record["curve"]] for record in own])
        return flops.mean(0), np.array([[point["accuracy"] for point in record["curve"]] for record in own])


def final(record: Record) -> float | None:
    """The accuracy after the last step."""
    return float(record["final"]["accuracy"])


def before(record: Record) -> float | None:
    """The accuracy before training: of a grown network, directly after its last growth."""
    starts = [point["accuracy"] for point in record["curve"] if point["epoch"] == 0]
    return float(starts[-1])


def share_of_growth(record: Record) -> float | None:
    """What growing cost, as a share of the budget; None for what did not grow."""
    return record["flops"]["growth"] / record["flops"]["budget"] if record["growths"] else None


def gather(
    bench: Bench, experiment: Experiment, seeds: Sequence[int], methods: Sequence[str] = GROWN
) -> Outcome:
    """All there is of one experiment."""
    plan = Plan(experiment, bench.best, seeds, methods)
    outcome = Outcome(experiment, {}, plan.chosen, {})
    try:
        for task in _tasks(plan.search()):
            _note(bench, task, outcome, outcome.searched)
    except NoRunError:
        return Outcome(experiment, outcome.searched, {}, {}, outcome.missing, complete=False)
    for task in _tasks(plan.final(CORE + NEXT)):
        _note(bench, task, outcome, None)
    try:
        for task in _tasks(plan.explore()):
            _note(bench, task, outcome, outcome.searched)
    except NoRunError:
        pass
    for task in _tasks(plan.final(MORE)):
        _note(bench, task, outcome, None)
    return outcome


def _tasks(groups: Iterator[list[Task]]) -> Iterator[Task]:
    for group in groups:
        yield from group


def _note(bench: Bench, task: Task, outcome: Outcome, where: dict[Task, Record] | None) -> None:
    record = bench.done(task)
    if record is None:
        outcome.missing.append(task)
    elif where is not None:
        where[task] = record
    else:
        outcome.finals.setdefault(task.method, {})[task.seed] = record
