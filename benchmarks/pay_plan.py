"""What is run to find out when growing pays: experiments, recipes, and the runs of each stage in their order.

The rates, the site and the width are searched with one seed on a validation part of the training images. The final
runs take for each competitor the recipe that was best there, and only they see the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

VALIDATION, TEST = "validation", "test"
GROWN = ("alg3", "random", "obs", "net2deeper", "alg1", "alg2", "netmorph")
"""methods of ``oc.grow``, in order of information"""
TITLES = {
    "parent": "parent",
    "trained-on": "parent trained on",
    "alg3": "grown, Algorithm 3",
    "obs": "grown, OBS",
    "random": "grown, random neurons",
    "net2deeper": "grown, Net2DeeperNet",
    "alg1": "grown, Algorithm 1",
    "alg2": "grown, Algorithm 2",
    "netmorph": "grown, NetMorph",
    "alg3-images": "grown, Algorithm 3, as many images (dearer)",
    "twice": "grown twice, Algorithm 3",
    "thrice": "grown three times, Algorithm 3",
    "trained-on-early": "parent not annealed, trained on",
    "alg3-early": "grown before annealing, Algorithm 3",
    "scratch": "child from scratch",
    "scratch-total": "child from scratch, total budget",
    "parent-total": "parent from scratch, total budget",
}
RATES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Experiment:
    """A parent, LeNet4(``channels``), and what it costs.

    ``parent_images`` and ``images`` are the two budgets: the floating point operations of the parent's training on
    so many images, before and after the moment at which it could be grown. ``parent_samples`` are the training
    images that there are before it (None: all). ``width`` is the child's width where the search of rates begins, in
    widths of the site. ``calibration`` images are given to ``grow`` in front of a convolution, ``calibration_dense``
    in front of a dense layer, which has one row an image.
    """

    name: str
    title: str
    channels: int
    parent_samples: int | None
    parent_images: int
    images: int
    width: float
    calibration: int = 250
    calibration_dense: int = 8_000


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment("longer", "The parent is too small", 5, None, 360_000, 360_000, 2.0),
        Experiment("tiny", "The parent is far too small", 2, None, 360_000, 360_000, 2.0),
        Experiment("data", "Data grows", 10, 10_000, 60_000, 90_000, 1.0),
        Experiment("small", "The parent is too small, half the budget", 5, None, 180_000, 180_000, 2.0),
        Experiment("wide", "Data grows, and the parent is large", 20, 10_000, 60_000, 90_000, 1.0),
    )
}
STEPS = (
    *((name, "search") for name in ("data", "longer", "tiny", "small")),
    *((name, "core") for name in ("data", "small", "tiny")),
    *((name, "next") for name in ("data", "small", "tiny")),
    *(("longer", part) for part in ("core", "next", "more")),
    *((name, "more") for name in ("data", "small", "tiny")),
    *(("wide", part) for part in ("search", "core", "next", "more")),
)
"""The parts of the experiments in order of information."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and grown before: ``sites`` names the readers in front of which it grows, in turn.

    ``lr`` is the peak rate of SGD, ``new`` how many times as fast the new layers and their readers learn. ``width``
    is the new layer's, in widths of the site.
    """

    lr: float
    schedule: str = "one-cycle"
    new: float = 1.0
    sites: tuple[str, ...] = ()
    width: float = 0.0

    @property
    def name(self) -> str:
        """The recipe in a file's name."""
        grown = "+".join(self.sites) + f"x{self.width:g}." if self.sites else ""
        new = f".new{self.new:g}" if self.new != 1 else ""
        return f"{grown}{self.schedule}.lr{self.lr:g}{new}"


@dataclass(frozen=True)
class Task:
    """One run. ``parent`` is the recipe of the parent that it begins with, None for those that begin with none."""

    experiment: Experiment
    split: str
    method: str
    recipe: Recipe
    parent: Recipe | None = None
    seed: int = 0

    @property
    def folder(self) -> str:
        """The folder of the result file."""
        return f"{self.experiment.name}.{self.split}"

    @property
    def name(self) -> str:
        """The stem of the result file."""
        before = f".of.{self.parent.name}" if self.parent else ""
        return f"{self.method}.{self.recipe.name}{before}.seed{self.seed}"

    @property
    def begins(self) -> Task | None:
        """The run whose network this one begins with."""
        return replace(self, method="parent", recipe=self.parent, parent=None) if self.parent else None


Best = Callable[[Sequence[Task]], Task]
Stage = Callable[["Plan"], Iterator[list[Task]]]


@dataclass(frozen=True)
class Plan:
    """The runs of one experiment, in their order. ``best`` is the best of finished runs on the validation images."""

    experiment: Experiment
    best: Best
    seeds: Sequence[int] = (0, 1, 2)
    methods: Sequence[str] = GROWN
    chosen: dict[str, Task] = field(default_factory=dict)

    def search(self) -> Iterator[list[Task]]:
        """Lists of runs on the validation images; each list needs the ones before it. Fills ``chosen``.

        ``small`` has the full grid; the others, which cost more, what was best and second there.
        """
        yield from self._full() if self.experiment.name == "small" else self._brief()

    def _brief(self) -> Iterator[list[Task]]:
        data = self.experiment.parent_samples is not None
        parents = [self._task("parent", Recipe(lr)) for lr in (RATES[1:] if data else RATES[2:])]
        yield parents
        parent = self._choose("parent", parents)
        on = [self._task("trained-on", Recipe(lr), parent.recipe) for lr in (RATES if data else RATES[1:])]
        yield on
        self._choose("trained-on", on)
        start = self._grown(0.03)
        recipes = [replace(start, schedule="cosine"), replace(start, lr=0.1)]
        if data:
            recipes += [start, replace(start, lr=0.01), replace(start, sites=("fc1",))]
        else:
            places = [(("conv2",), 4.0), (("fc1",), 1.0), (("fc1",), 4.0), (("fc2",), 0.25)]
            if self.experiment.name == "tiny":
                places = [(("fc1",), 4.0), (("conv2", "fc1"), 2.0)]
            recipes += [replace(recipes[0], sites=sites, width=width) for sites, width in places]
            if self.experiment.name == "tiny":
                recipes.append(replace(recipes[1], width=4.0))
        grown = [self._task("alg3", recipe, parent.recipe) for recipe in recipes]
        yield grown
        self._choose("alg3", grown)
        self.chosen["scratch"] = self._task("scratch", replace(start, lr=parent.recipe.lr))

    def _full(self) -> Iterator[list[Task]]:
        parents = [self._task("parent", Recipe(lr)) for lr in RATES[1:]]
        yield parents
        parent = self._choose("parent", parents)
        for method in ("trained-on", "alg3", "scratch"):
            start = self._grown(1.0) if method != "trained-on" else Recipe(1.0)
            begins = None if method == "scratch" else parent.recipe
            rates = RATES[1:] if method == "scratch" else RATES
            tasks = [self._task(method, replace(start, lr=lr), begins) for lr in rates]
            yield tasks
            best = self._choose(method, tasks)
            if method != "scratch":
                flat = [replace(best, recipe=replace(best.recipe, schedule="cosine"))]
                yield flat
                self._choose(method, tasks + flat)
        totals = [self._task("scratch-total", self._grown(lr)) for lr in RATES[1:]]
        yield totals
        self._choose("scratch-total", totals)
        grown = self.chosen["alg3"]
        places = (("conv2", 1.0), ("conv2", 4.0), ("fc1", 2.0))
        tasks = [replace(grown, recipe=replace(grown.recipe, sites=(s,), width=w)) for s, w in places]
        yield tasks
        found = self._choose("alg3", [grown, *tasks])
        faster = [replace(found, recipe=replace(found.recipe, new=3.0))]
        yield faster
        self._choose("alg3", [found, *faster])

    def explore(self) -> Iterator[list[Task]]:
        """More runs on the validation images, that change no recipe chosen before.

        ``longer``: several growths, and a parent that is grown before its rate was annealed. ``small``: another site,
        slower new layers.
        """
        grown = self.chosen["alg3"]
        best = grown.recipe
        if self.experiment.name == "small":
            yield [replace(grown, recipe=replace(best, sites=("flat",), width=0.5))]
            yield [replace(grown, recipe=replace(best, new=1 / 3))]
        if self.experiment.name != "longer":
            return
        twice = [
            replace(grown, method="twice", recipe=replace(best, sites=sites, width=2.0))
            for sites in (("conv2", "conv2"), ("conv2", "fc1"))
        ]
        yield twice
        self._choose("twice", twice)
        early = Recipe(0.03, "constant")
        yield [self._task("parent", early)]
        for method in ("trained-on", "alg3"):
            late = self.chosen[method].recipe
            tasks = [self._task(f"{method}-early", replace(late, schedule="falling", lr=0.03), early)]
            yield tasks
            self._choose(f"{method}-early", tasks)

    def part(self, name: str) -> Iterator[list[Task]]:
        """The runs of a part: search, core, next or more."""
        if name == "search":
            yield from self.search()
        if name == "core":
            yield from self.final(CORE)
        if name == "more":
            yield from self.explore()
        for method in {"next": NEXT, "more": MORE}.get(name, ()):
            yield from self.final((method,))

    def final(self, methods: Sequence[str]) -> Iterator[list[Task]]:
        """The runs on the test images, seed by seed, of those ``methods`` that have a recipe."""
        for seed in self.seeds:
            found = [self.recipe_of(method) for method in methods]
            yield [replace(task, split=TEST, seed=seed) for task in found if task is not None]

    def recipe_of(self, method: str) -> Task | None:
        """The run of the search whose recipe ``method`` has in the final runs; None before there is one."""
        if method in GROWN and method != "alg3":
            found = self.chosen.get("alg3")
            return None if found is None or method not in self.methods else replace(found, method=method)
        if method == "alg3-images" and "alg3" in self.chosen:
            return replace(self.chosen["alg3"], method=method)
        if method == "thrice" and "twice" in self.chosen:
            twice = self.chosen["twice"]
            return replace(
                twice, method=method, recipe=replace(twice.recipe, sites=(*twice.recipe.sites, "conv2"))
            )
        if method in ("scratch", "scratch-total"):
            task = self.chosen.get(method) or self.chosen.get("scratch")
            grown = self.chosen.get("alg3")
            if task is None or grown is None:
                return None
            shape = replace(task.recipe, sites=grown.recipe.sites, width=grown.recipe.width)
            return replace(task, method=method, recipe=shape)
        if method == "parent-total" and "parent" in self.chosen:
            return replace(self.chosen["parent"], method=method)
        return self.chosen.get(method)

    def _task(self, method: str, recipe: Recipe, parent: Recipe | None = None) -> Task:
        return Task(self.experiment, VALIDATION, method, recipe, parent)

    def _grown(self, lr: float) -> Recipe:
        return Recipe(lr, sites=("conv2",), width=self.experiment.width)

    def _choose(self, name: str, tasks: Sequence[Task]) -> Task:
        self.chosen[name] = self.best(tasks)
        return self.chosen[name]


CORE = ("parent", "trained-on", "alg3", "scratch-total")
NEXT = ("random", "scratch", "obs", "alg3-images")
MORE = (
    "twice",
    "thrice",
    "net2deeper",
    "trained-on-early",
    "alg3-early",
    "alg1",
    "alg2",
    "netmorph",
    "parent-total",
)
