"""Write docs/when-growing-pays.md and its figures from the result files of benchmarks/pay.py.

    python benchmarks/pay_report.py                # docs/when-growing-pays.md and docs/pay/*.svg (needs matplotlib)
    python benchmarks/pay_report.py --no-figures   # the text alone

Every number comes from a result file. The conclusions are written by hand in benchmarks/pay_conclusions.md, which the
document includes. {{small alg3 accuracy}} there is a place for a figure, {{small alg3 over trained-on}} one for a
difference, and {{small alg3 wins trained-on}} vanishes if the figures say so and stops the report if they do not.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.paper_run import Record
from benchmarks.pay_plan import EXPERIMENTS, GROWN, TITLES, Experiment, Recipe, Task
from benchmarks.pay_results import (
    CONFIDENCE,
    LOSES,
    TIES,
    WINS,
    Figure,
    Outcome,
    before,
    final,
    gather,
    share_of_growth,
)
from benchmarks.pay_run import BATCH, HELD_OUT, TRAINING, Bench, Setting

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pay"
CONCLUSIONS = ROOT / "benchmarks" / "pay_conclusions.md"
DOCUMENT = ROOT / "docs" / "when-growing-pays.md"

INTRODUCTION = f"""\
# When does growing pay?

A trained network, and more to be spent on training: is it better to train it on, to grow it and train the child, or
to begin anew? Rendered by `python benchmarks/pay_report.py` from the files in
[benchmarks/results/pay](../benchmarks/results/pay), one a run; `python benchmarks/pay.py --threads 1` makes those
that are missing.

All have the same cost, counted in floating point operations and not in epochs: a larger network sees fewer images,
and what growing costs is taken from the child's part. All networks were grown and trained by the tool itself (`grow`,
`finetune`). Data: Fashion-MNIST. The recipes were searched with seed 0 on {HELD_OUT:,} of the training images, peak
rates for all from 0.01, 0.03 and 0.1 (the tables at the end list each run); the runs below had the recipes that were
best there, all 60,000 training images, and the 10,000 test images, which chose nothing: every accuracy is that after
the last step. "Total budget" is the cost of the parent and of what follows together, spent on all images.

± is the sample standard deviation over the seeds. Differences are taken seed by seed, as all competitors of a seed
have the same parent. "Wins" and "loses" mean that the {CONFIDENCE:.0%} confidence interval of the mean difference
(Student's t) does not hold 0; else it is a tie. With three seeds that is a coarse test, and a tie is no proof of
equality.
"""
HOW = f"""\
SGD with momentum 0.9, weight decay 5e-4, batches of {BATCH}, cross-entropy, no augmentation, no normalisation
layers. The parent is LeNet4 (two convolutions with C and 2.5·C channels, two dense layers); its child by one
growth in front of conv2 is LeNet5. An image trained on costs {TRAINING} forward passes, as
`onnx_compnet.cost.forward_flops` counts one. Growing costs: the forward passes of its samples through parent
and candidates, the candidates' Gram matrix, and the check on held-out samples. Candidates: twice the width that
is kept (OBS and Algorithms 1 to 3, λ = 0.01), as many as are kept (random); Net2DeeperNet has as many as the
site has channels, and its child is smaller where the others are wider than that. The grown networks share a
recipe that was searched with Algorithm 3. Where no rate was searched for a network from scratch it has the
parent's, which begins with drawn weights as well. "one-cycle" rises for 30 % of the steps to the peak rate and
falls to nearly 0; "cosine" rises for 5 %; "falling" does not rise.
"""


def document(outcomes: Sequence[Outcome], conclusions: str) -> str:
    """The whole of docs/when-growing-pays.md."""
    parts = [INTRODUCTION, filled(conclusions, outcomes).strip(), ""]
    for outcome in outcomes:
        parts += _experiment(outcome)
    for outcome in outcomes:
        parts += _search(outcome)
    return "\n".join([*parts, "## How", "", HOW, *_machine(outcomes), *_missing(outcomes)]).rstrip() + "\n"


def filled(text: str, outcomes: Sequence[Outcome]) -> str:
    """``text`` with its places filled in. Raises ValueError for a place that means nothing or does not hold."""
    known = {outcome.experiment.name: outcome for outcome in outcomes}

    def place(found: re.Match[str]) -> str:
        space, name, method, what, other = found.groups()
        asked = found.group().strip()
        outcome = known.get(name)
        if outcome is None or method not in TITLES or (other is not None and other not in TITLES):
            raise ValueError(f"{asked} names no experiment of {list(known)}, or no method of {list(TITLES)}")
        if what in (WINS, TIES, LOSES) and other is not None:
            verdict = outcome.over(method, other).verdict
            if verdict != what:
                raise ValueError(f"{asked} does not hold: it {verdict or 'was not run often enough'}")
            return ""
        if what == "over" and other is not None:
            return space + _points(outcome.over(method, other))
        if what in ("accuracy", "before") and other is None:
            return space + outcome.figure(method, final if what == "accuracy" else before).text()
        raise ValueError(
            f"{asked} asks for nothing that is known: accuracy, before, over, wins, ties or loses"
        )

    return re.sub(r"(\s?)\{\{(\S+) (\S+) (\S+?)(?: (\S+?))?\}\}", place, text)


def _points(difference: Figure) -> str:
    """A difference of accuracies in percentage points."""
    return Figure(tuple(100 * value for value in difference.values)).text(".2f", sign=True)


# ---------------------------------------------------------------- the final runs


def _experiment(outcome: Outcome) -> list[str]:
    e = outcome.experiment
    images = "all images" if e.parent_samples is None else f"{e.parent_samples:,} images"
    lines = [
        f"## {e.title}",
        "",
        f"LeNet4 with {e.channels} and {e.channels * 5 // 2} channels, trained on {images} at the cost of "
        f"{e.parent_images:,} images seen; then all 60,000 images, and a budget of {e.images:,} more images seen by "
        f"the parent. {_seeds(outcome)}",
        "",
    ]
    if not outcome.methods:
        return [*lines, "Not run.", ""]
    told = ", ".join(f"{TITLES[m]} {outcome.figure(m, final).mean:.4f}" for m in outcome.methods)
    lines += [
        f"![Accuracy on the test images over the cost of training, mean of the seeds. At the end: {told}."
        f"](pay/{e.name}.svg)",
        "",
        "| | parameters | MFLOP an image | images seen | growing | accuracy before | accuracy | over the parent "
        "trained on, points | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *(_row(outcome, method) for method in outcome.methods),
        "",
        "Growing: its share of the budget. Accuracy before: directly after growing (the last growth), or of what the "
        "run begins with. The last column says whether the difference is one.",
        "",
    ]
    return [*lines, *_choice(outcome)]


def _seeds(outcome: Outcome) -> str:
    counts = {method: len(outcome.of(method)) for method in outcome.methods}
    most = max(counts.values(), default=0)
    fewer = [f"{TITLES[m]} {count}" for m, count in counts.items() if count < most]
    return f"Seeds: {most}" + (f" ({', '.join(fewer)})." if fewer else ".")


def _row(outcome: Outcome, method: str) -> str:
    figure = lambda value: outcome.figure(method, value).mean or 0.0  # noqa: E731
    growing = outcome.figure(method, share_of_growth).mean
    over = outcome.over(method, "trained-on") if method not in ("parent", "trained-on") else None
    cells = [
        f"{figure(lambda r: r['parameters']):,.0f}",
        f"{figure(lambda r: r['forward_flops']) / 1e6:.2f}",
        f"{figure(lambda r: r['curve'][-1]['images']):,.0f}",
        "–" if growing is None else f"{growing:.1%}",
        outcome.figure(method, before).text(),
        outcome.figure(method, final).text(),
        "–" if over is None else _points(over),
        "" if over is None or over.verdict is None else over.verdict,
    ]
    return f"| {TITLES[method]} | " + " | ".join(cells) + " |"


def _choice(outcome: Outcome) -> list[str]:
    """What the choice of neurons does: methods of the same width against random neurons."""
    others = [m for m in GROWN if m not in ("random", "net2deeper") and outcome.of(m)]
    if not others or not outcome.of("random"):
        return []
    error = lambda record: record["growths"][-1]["site_error"]  # noqa: E731
    return [
        "Does the choice of neurons matter? The same width, seed by seed against random neurons:",
        "",
        "| | site error | accuracy before, points over random | accuracy after training, points over random | |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {TITLES[m]} | {outcome.figure(m, error).text('.3f')} | {_points(outcome.over(m, 'random', before))} "
            f"| {_points(outcome.over(m, 'random'))} | {outcome.over(m, 'random').verdict or ''} |"
            for m in others
        ),
        f"| {TITLES['random']} | {outcome.figure('random', error).text('.3f')} | | | |",
        "",
    ]


# ---------------------------------------------------------------- the search


def _search(outcome: Outcome) -> list[str]:
    if not outcome.searched:
        return []
    lines = [
        f"## Search: {outcome.experiment.title.lower()}",
        "",
        "On validation images, seed 0; **bold** is what the final runs have.",
        "",
        "| | recipe | parent | accuracy before | after |",
        "|---|---|---|---:|---:|",
    ]
    settled = set(outcome.chosen.values())
    for task, record in sorted(outcome.searched.items(), key=lambda each: list(TITLES).index(each[0].method)):
        after = f"{final(record):.4f}" if "final" in record else record.get("diverged", record.get("refused"))
        if task in settled:
            after = f"**{after}**"
        start = f"{before(record):.4f}" if "final" in record else "–"
        parent = _told(task.parent) if task.parent else "–"
        lines.append(f"| {TITLES[task.method]} | {_told(task.recipe)} | {parent} | {start} | {after} |")
    return [*lines, ""]


def _told(recipe: Recipe) -> str:
    """A recipe in words."""
    names = {"flat": "fc1, flattened"}
    parts = [f"{recipe.schedule} {recipe.lr:g}"]
    if recipe.new != 1:
        parts.append(f"new layers × {recipe.new:.2g}")
    if recipe.sites:
        parts.append(f"width × {recipe.width:g} at {', '.join(names.get(s, s) for s in recipe.sites)}")
    return "; ".join(parts)


# ---------------------------------------------------------------- how, and what is missing


def _records(outcomes: Sequence[Outcome]) -> list[Record]:
    finals = [record for o in outcomes for runs in o.finals.values() for record in runs.values()]
    return finals + [record for o in outcomes for record in o.searched.values()]


def _machine(outcomes: Sequence[Outcome]) -> list[str]:
    records = _records(outcomes)
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['threads']} thread" for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(r["versions"].items())) for r in records})
    if not records:
        return []
    return [f"Machine: {'; '.join(machines)}.", "", f"Versions: {'; '.join(versions)}.", ""]


def _missing(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for outcome in outcomes:
        title = outcome.experiment.title.lower()
        if not outcome.complete:
            lines.append(f"- {title}: the search, and all that depends on it.")
            continue
        by_method: dict[str, list[Task]] = {}
        for task in outcome.missing:
            by_method.setdefault(task.method, []).append(task)
        for method, tasks in by_method.items():
            seeds = ", ".join(str(task.seed) for task in tasks if task.split == "test")
            searched = [_told(task.recipe) for task in tasks if task.split != "test"]
            told = [f"seed {seeds}"] * bool(seeds) + [f"search ({'; '.join(searched)})"] * bool(searched)
            lines.append(f"- {title}, {TITLES[method]}: {'; '.join(told)}.")
        failed = [
            f"- {title}, {TITLES[m]}, seed {seed}: {r.get('diverged') or r.get('refused')}."
            for m, runs in outcome.finals.items()
            for seed, r in runs.items()
            if "final" not in r
        ]
        lines += failed
    return ["## Not run", "", *lines, ""] if lines else []


def gathered(results: Path, experiments: Sequence[Experiment], seeds: int) -> list[Outcome]:
    """What the result files hold."""
    bench = Bench(Setting(), results, results)
    return [gather(bench, experiment, range(seeds)) for experiment in experiments]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the document and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files (%(default)s)")
    parser.add_argument(
        "--conclusions", type=Path, default=CONCLUSIONS, help="what is included (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds that were to be run (%(default)s)")
    parser.add_argument("--write", type=Path, default=DOCUMENT, help="the document (%(default)s)")
    parser.add_argument("--no-figures", action="store_true", help="the text alone")
    options = parser.parse_args(argv)
    outcomes = gathered(options.results, list(EXPERIMENTS.values()), options.seeds)
    try:
        text = document(outcomes, options.conclusions.read_text("utf-8"))
    except ValueError as error:
        print(f"error: {options.conclusions}: {error}", file=sys.stderr)
        return 1
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(text, "utf-8")
    if not options.no_figures:
        from benchmarks import pay_figures

        for outcome in outcomes:
            pay_figures.draw(outcome, options.write.parent / "pay")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
