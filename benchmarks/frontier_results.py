"""What the result files of benchmarks/frontier.py say: widths at an error, ratios of widths, and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.frontier_run import METHODS, Cell
from benchmarks.frontier_sites import SITES
from benchmarks.paper_run import Record, read

ERRORS = (0.3, 0.2, 0.1, 0.05, 0.03)
LINEAR_ABOVE = ("relu", "gelu", "silu", "leaky_relu", "prelu", "hardswish", "elu")
"""Activations with h(z) − h(−z) = κz, or linear for large z: a neuron can carry a direction unchanged."""
HE = "auto"


def first(curve: Mapping[str, Sequence[float]], error: float) -> int | None:
    """The least width of a path with at most this error on held-out rows; None where none has."""
    pairs = zip(curve["widths"], curve["errors"], strict=True)
    return next((int(width) for width, found in pairs if found <= error), None)


@dataclass(frozen=True)
class Point:
    """Where two widths are compared: ``ours`` and ``theirs`` at an error."""

    cell: Cell
    error: float
    ours: int
    theirs: int

    @property
    def ratio(self) -> float:
        """Our width as a share of theirs."""
        return self.ours / self.theirs

    def __str__(self) -> str:
        where = f"{self.cell.site}, {self.cell.init}, seed {self.cell.seed}, ε = {self.error:g}"
        return f"{where}: {self.ours} against {self.theirs}"


@dataclass(frozen=True)
class Target:
    """What was aimed at, whether it holds, the figures, and where it does not hold."""

    name: str
    aim: str
    holds: bool | None
    figures: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Frontiers:
    """All cells that were run."""

    cells: Mapping[Cell, Record]

    @classmethod
    def read(cls, folder: Path) -> Frontiers:
        """The result files of a folder that are whole."""
        found = {}
        for path in sorted(folder.glob("*.json")):
            record = read(path)
            if record is not None and record["site"] in SITES:
                found[Cell(record["site"], record["init"], record["seed"])] = record
        return cls(found)

    @property
    def sites(self) -> list[str]:
        """Those with a result, in the order of SITES."""
        known = {cell.site for cell in self.cells}
        return [name for name in SITES if name in known]

    def inits(self, site: str) -> list[str]:
        """The inits with a result at a site."""
        return [init for init in SITES[site].inits if self.of(site, init)]

    def of(self, site: str, init: str) -> list[Record]:
        """The records of all seeds."""
        found = [(cell.seed, r) for cell, r in self.cells.items() if (cell.site, cell.init) == (site, init)]
        return [record for _, record in sorted(found, key=lambda each: each[0])]

    def width(self, cell: Cell, method: str, error: float) -> int | None:
        """The width that a method needs in one cell; None where all candidates together can't."""
        record = self.cells.get(cell)
        return None if record is None else first(record["curves"][method], error)

    def mean_width(self, site: str, init: str, method: str, error: float) -> float | None:
        """Mean over the seeds; None where one of them can't reach the error, and without seeds."""
        widths = [first(record["curves"][method], error) for record in self.of(site, init)]
        reached = [width for width in widths if width is not None]
        return statistics.mean(reached) if reached and len(reached) == len(widths) else None

    def linear_above(self, site: str) -> bool:
        """Whether a site's activation is of the ReLU, GELU or SiLU kind."""
        return any(record["activation"].split("(")[0] in LINEAR_ABOVE for record in self._records(site))

    def _records(self, site: str) -> list[Record]:
        return [record for cell, record in self.cells.items() if cell.site == site]

    def best_init(self, site: str, error: float) -> str | None:
        """The init with which obs needs fewest neurons, by the mean of the seeds; None where none reaches it."""
        means = {init: self.mean_width(site, init, "obs", error) for init in self.inits(site)}
        reached = {init: mean for init, mean in means.items() if mean is not None}
        return min(reached, key=lambda init: reached[init]) if reached else None

    # ------------------------------------------------------------ comparisons

    def against(
        self, other: str, inits: Iterable[str] = (HE,), errors: Sequence[float] = ERRORS
    ) -> Iterator[Point]:
        """obs against another method from the same candidates, wherever both reach the error."""
        for cell in self.cells:
            for error in errors if cell.init in inits else ():
                ours, theirs = self.width(cell, "obs", error), self.width(cell, other, error)
                if ours is not None and theirs is not None:
                    yield Point(cell, error, ours, theirs)

    def best_against_he(self) -> Iterator[Point]:
        """obs from the best candidates against Algorithm 3 from He candidates, seed by seed."""
        for site in self.sites:
            for error in ERRORS:
                init = self.best_init(site, error)
                for record in self.of(site, HE) if init else ():
                    cell = Cell(site, init or HE, record["seed"])
                    ours, theirs = self.width(cell, "obs", error), first(record["curves"]["alg3"], error)
                    if ours is not None and theirs is not None:
                        yield Point(cell, error, ours, theirs)

    def out_of_reach(self) -> Iterator[Point]:
        """As ``best_against_he`` where Algorithm 3 can't: against all He candidates, fewer than it would need."""
        for site in self.sites:
            for error in ERRORS:
                init = self.best_init(site, error)
                for record in self.of(site, HE) if init else ():
                    cell = Cell(site, init or HE, record["seed"])
                    ours = self.width(cell, "obs", error)
                    if ours is not None and first(record["curves"]["alg3"], error) is None:
                        yield Point(cell, error, ours, record["candidates"])

    def targets(self) -> list[Target]:
        """The targets, judged."""
        kin = [point for point in self.best_against_he() if self.linear_above(point.cell.site)]
        more = [point for point in self.out_of_reach() if self.linear_above(point.cell.site)]
        return [
            self._never_more(),
            _median(
                "Against Algorithm 3",
                "obs against Algorithm 3, He candidates: median ratio of widths ≤ 0.95",
                list(self.against("alg3")),
                0.95,
            ),
            _median(
                "Against a random subset",
                "obs against a random subset, He candidates, ReLU and GELU, ε ≥ 0.05: median ratio ≤ 0.65",
                [p for p in self.against("random") if p.error >= 0.05 and self.linear_above(p.cell.site)],
                0.65,
            ),
            _median(
                "Best candidates, ReLU and its kin",
                "obs from the best candidates against Algorithm 3 from He candidates, ReLU-, GELU- and SiLU-type "
                "sites: median ratio ≤ 0.3",
                kin,
                0.3,
                more,
            ),
            _median(
                "Best candidates, all sites",
                "obs from the best candidates against Algorithm 3 from He candidates, all sites: median ratio ≤ 0.6",
                list(self.best_against_he()),
                0.6,
                list(self.out_of_reach()),
            ),
            self._at_the_stop(),
        ]

    def _never_more(self) -> Target:
        inits = {cell.init for cell in self.cells}
        points = list(self.against("alg3", inits))
        worse = [point for point in points if point.ours > point.theirs + 1]
        unreached = sum(
            self.width(cell, "obs", error) is None and self.width(cell, "alg3", error) is not None
            for cell in self.cells
            for error in ERRORS
        )
        figures = f"{len(points) - len(worse)} of {len(points)} comparisons, all inits"
        if unreached:
            figures += f"; {unreached} errors that Algorithm 3 reaches and obs does not"
        holds = not worse and not unreached if points else None
        worse = sorted(worse, key=lambda point: point.theirs - point.ours)
        return Target(
            "Never more", "obs never needs more than Algorithm 3 plus one neuron", holds, figures,
            tuple(map(str, worse)),
        )  # fmt: skip

    def _at_the_stop(self) -> Target:
        lower, all_stay, other, he = 0, 0, [], []
        for cell, record in self.cells.items():
            width, error = record["stop"]["width"], record["stop"]["error"]
            path = record["curves"]["obs"]
            if width == max(path["widths"]):
                all_stay += 1  # there is nothing to choose
                continue
            ours = dict(zip(path["widths"], path["errors"], strict=True)).get(width)
            better = ours is not None and ours < error
            he += [better] if cell.init == HE else []
            if better:
                lower += 1
                continue
            told = "no such width" if ours is None else f"{ours:.4g} against {error:.4g}"
            other.append(
                (ours == error, f"{cell.site}, {cell.init}, seed {cell.seed}, {width} neurons: {told}")
            )
        ties = sum(same for same, _ in other)
        figures = f"lower in {lower}, equal in {ties}, higher in {len(other) - ties} cells"
        if he:
            figures += f" (He candidates: lower in {sum(he)} of {len(he)})"
        if all_stay:
            figures += f"; in {all_stay} more it drops nothing"
        return Target(
            "At Algorithm 3's own width",
            "where Algorithm 3 stops at λ = α = 0.1, obs with as many neurons has the lower error at every site",
            not other if lower or other else None,
            figures,
            tuple(text for _, text in sorted(other)),
        )


def _median(
    name: str, aim: str, points: Sequence[Point], limit: float, beyond: Sequence[Point] = ()
) -> Target:
    """A target for the median of ratios; where it does not hold the sites and errors with a median above it.

    ``beyond``: points whose ratio is an upper bound, as the other method reaches the error by no width.
    """
    if not points:
        return Target(name, aim, None, "nothing to compare: no error is reached by both")
    ratios = [point.ratio for point in points]
    figures = (
        f"median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of {len(ratios)}"
    )
    if beyond:
        bound = statistics.median([*ratios, *(point.ratio for point in beyond)])
        figures += f"; at most {bound:.3f} with the {len(beyond)} where all He candidates are too few for Algorithm 3"
    groups = medians(points, lambda p: f"{p.cell.site}, ε = {p.error:g}")
    where = tuple(f"{group}: {median:.3f}" for group, median in groups.items() if median > limit)
    return Target(name, aim, statistics.median(ratios) <= limit, figures, where)


def medians(points: Iterable[Point], key: Callable[[Point], str]) -> dict[str, float]:
    """The median ratio of each group of points."""
    groups: dict[str, list[float]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point.ratio)
    return {name: statistics.median(ratios) for name, ratios in groups.items()}


__all__ = ["ERRORS", "HE", "METHODS", "Frontiers", "Point", "Target", "first", "medians"]
