"""What the result files of the paper's experiments say, gathered by set, method and seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paper_rows import METHODS, ROWS, Row, Settings, natural, settings_from, settings_of
from benchmarks.paper_run import Record, read


@dataclass(frozen=True)
class Figure:
    """The values of one quantity, one a seed, out of ``asked`` seeds."""

    values: tuple[float, ...]
    asked: int

    @property
    def mean(self) -> float | None:
        """Their mean, None where there are none."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation, None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, form: str = ".4f", *, sign: bool = False, counted: bool = True) -> str:
        """``mean ± deviation``, ``counted``: with how many seeds where some are missing; "not run" if all are."""
        if self.mean is None:
            return "not run" if self.asked else "–"
        plus = "+" if sign else ""
        told = f"{self.mean:{plus}{form}}"
        if self.deviation is not None:
            told += f" ± {self.deviation:{form}}"
        missing = counted and len(self.values) < self.asked
        return f"{told} ({len(self.values)} of {self.asked})" if missing else told


@dataclass(frozen=True)
class Set:
    """The runs of one row with the same settings: ``records`` by (method, seed), ``parents`` by seed."""

    row: Row
    settings: Settings
    seeds: int
    methods: tuple[str, ...]
    records: Mapping[tuple[str, int], Record] = field(default_factory=dict)
    parents: Mapping[int, Record] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.row.name}.{self.settings.tag}"

    def of(self, method: str) -> list[Record]:
        """A method's records in the order of the seeds."""
        return [self.records[method, seed] for seed in range(self.seeds) if (method, seed) in self.records]

    def figure(self, method: str, value: Callable[[Record], Any]) -> Figure:
        """A quantity of a method's runs; records where ``value`` is None are left out."""
        found = [value(record) for record in self.of(method)]
        values = tuple(float(each) for each in found if each is not None)
        asked = 0 if found and not values else self.seeds - (len(found) - len(values))
        return Figure(values, asked if method in self.methods else 0)

    def ran(self, method: str) -> str:
        """How many of the seeds were run: "2", or "1 of 3"."""
        n = len(self.of(method))
        return str(n) if n == self.seeds else f"{n} of {self.seeds}"

    def over(self, method: str, other: str) -> Figure:
        """Best accuracy less that of ``other`` with the same seed, and so the same parent."""
        pairs = [
            (best(self.records[method, seed]), best(self.records[other, seed]))
            for seed in range(self.seeds)
            if (method, seed) in self.records and (other, seed) in self.records
        ]
        return Figure(tuple(a - b for a, b in pairs if a is not None and b is not None), self.seeds)

    def missing(self) -> list[tuple[str, int]]:
        """(method, seed) that were asked for and have no file."""
        return [
            (method, seed)
            for method in self.methods
            for seed in range(self.seeds)
            if (method, seed) not in self.records
        ]

    def refusal(self, method: str) -> str | None:
        """Why the tool refuses this method here, or that training diverged."""
        records = self.of(method)
        if any("refused" in record for record in records):
            return "refused"
        return "diverged" if records and all("diverged" in record for record in records) else None


# ---------------------------------------------------------------- quantities of a record


def best(record: Record) -> float | None:
    """Best accuracy of any epoch, the network before training included: the written ONNX model's."""
    found = record.get("accuracy")
    return None if found is None else float(found)


def final(record: Record) -> float | None:
    """Accuracy after the last epoch."""
    history = record.get("history")
    return float(history[-1]["accuracy"]) if history else None


def before(record: Record) -> float | None:
    """Accuracy before training."""
    history = record.get("history")
    return float(history[0]["accuracy"]) if history else None


def training_seconds(record: Record) -> float | None:
    """Seconds of the epochs with their validation, those before an interruption included."""
    history = record.get("history")
    return sum(epoch["seconds"] for epoch in history) if history else None


def epochs_to(record: Record, goal: float) -> int | None:
    """The first epoch with at least ``goal``, None where none has."""
    for epoch in record.get("history", ()):
        if epoch["accuracy"] >= goal:
            return int(epoch["epoch"])
    return None


def reached(chosen: Set, method: str) -> str:
    """After how many epochs of training the accuracy of the parent as it was grown is reached, seed by seed."""
    told = []
    for seed in range(chosen.seeds):
        record, parent = chosen.records.get((method, seed)), chosen.records.get(("parent", seed))
        if record is None or parent is None or "history" not in record or "history" not in parent:
            continue
        goal = before(parent)
        assert goal is not None
        epoch = epochs_to(record, goal)
        told.append("never" if epoch is None else str(epoch))
    if not told:
        return "not run" if method in chosen.methods and not chosen.refusal(method) else "–"
    return told[0] if len(set(told)) == 1 and len(told) == chosen.seeds else ", ".join(told)


# ---------------------------------------------------------------- reading


def gather(results: Path, plan: Iterable[Mapping[str, Any]] = ()) -> list[Set]:
    """The sets of ``plan`` (as the plan's file says them) and all others that ``results`` has, in the rows' order."""
    asked: dict[tuple[str, str], tuple[Settings, int, list[str]]] = {}
    for each in plan:
        for name in each.get("rows", ROWS):
            changes = {k: v for k, v in each.items() if k not in ("rows", "methods", "seeds", "dataset")}
            settings = settings_of(ROWS[name].family, each.get("dataset"), **changes)
            _, seeds, methods = asked.get((name, settings.tag), (settings, 0, []))
            methods += [method for method in each.get("methods", METHODS) if method not in methods]
            asked[name, settings.tag] = settings, max(seeds, each.get("seeds", 3)), methods
    found: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
    for path in sorted(results.glob("*/*.json"), key=lambda path: natural(str(path))):
        record = read(path)
        if record is None:
            continue
        tag = path.parent.name.partition(".")[2]
        found.setdefault((record["row"], tag), {})[record["method"], record["seed"]] = record
    sets = []
    for name, tag in dict.fromkeys([*asked, *found]):
        if name not in ROWS:
            continue
        records = found.get((name, tag), {})
        parents = {seed: record for (_, seed), record in found.get((ROWS[name].parent, tag), {}).items()}
        if (name, tag) in asked:
            settings, seeds, methods = asked[name, tag]
        else:
            settings, seeds, methods = settings_from(next(iter(records.values()))["settings"]), 0, []
        seeds = max([seeds, *(seed + 1 for _, seed in records)])
        present = [method for method, _ in records]
        wanted = tuple(method for method in METHODS if method in methods or method in present)
        sets.append(Set(ROWS[name], settings, seeds, wanted, records, parents))
    order = list(ROWS)
    return sorted(sets, key=lambda each: (order.index(each.row.name), natural(each.settings.tag)))


def distinct(sets: Sequence[Set], part: Callable[[Record], Any]) -> list[Any]:
    """The different values that ``part`` has over all records, in their order."""
    values = []
    for each in sets:
        for record in (*each.parents.values(), *each.records.values()):
            value = part(record)
            if value is not None and value not in values:
                values.append(value)
    return values
