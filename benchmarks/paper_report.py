"""Write docs/results.md and its figures from the result files of benchmarks/paper.py.

    python benchmarks/paper_report.py                # docs/results.md and docs/results/*.svg (needs matplotlib)
    python benchmarks/paper_report.py --no-figures   # the text alone

Every number comes from a result file. The conclusions are written by hand in benchmarks/paper_conclusions.md, which
the document includes; a number there is a place like {{lenet5.fashion-mnist.w1.nall.e3 alg3 best}} that is filled in.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.paper_plan import read_plan
from benchmarks.paper_results import (
    Figure,
    Set,
    before,
    best,
    distinct,
    final,
    gather,
    reached,
    training_seconds,
)
from benchmarks.paper_rows import METHODS, ROWS, Row, settings_of
from benchmarks.paper_run import Record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "paper"
PLAN = ROOT / "benchmarks" / "paper_plan.toml"
CONCLUSIONS = ROOT / "benchmarks" / "paper_conclusions.md"
DOCUMENT = ROOT / "docs" / "results.md"
PAPER_COLUMNS = ("alg1", "alg2", "alg3", "netmorph-oracle", "netmorph-redundant", "scratch")
OWN_COLUMNS = ("net2deeper", "random", "parent")
DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}

INTRODUCTION = """\
# The paper's experiments

Tables 1 and 2 of [the CompNet paper](https://arxiv.org/abs/1804.10316) beside what this tool reaches. Rendered by
`python benchmarks/paper_report.py` from the files in [benchmarks/results/paper](../benchmarks/results/paper), one
a run; `python benchmarks/paper.py --plan benchmarks/paper_plan.toml --threads 1` makes those that are missing.

All networks were trained, grown and tuned by the tool itself (`finetune`, `grow`, `finetune`). Every accuracy is
measured on the test images, which are also the paper's validation set: the best epoch is chosen on them, for every
column alike, and so the best accuracy is a little too good. ± is the sample standard deviation over the seeds. Each
seed has a parent, candidates and a course of training of its own.
"""
HOW = """\
SGD with momentum 0.9, cross-entropy, no batch normalisation. Pixels are brought to a mean of 0 and a standard
deviation of 1; images of 28 × 28 get a black frame up to 32 × 32 for VGG. `grow` fits on four fifths of its images
and measures site error and agreement on the rest; both are those of the child before training. MFLOP: of one image's
forward pass, two a multiply-add. Seconds: growing + training, by the clock, on a machine that does other work, too.

Scratch is the deeper network with all candidates and freshly drawn weights, trained by the parents' recipe for as
many epochs as the children; "Scratch long" has as many as parent and child together. NetMorph-Oracle has the width
that Algorithm 2 kept, random that of Algorithm 3. What is called capped may keep no more than the paper's Table 1 has
for it ("random capped": as Algorithm 3), in proportion to the width.
"""


def document(sets: Sequence[Set], conclusions: str) -> str:
    """The whole of docs/results.md."""
    parts = [INTRODUCTION, filled(conclusions, sets).strip(), "", *_table_1(sets), *_table_2(sets)]
    for each in sets:
        parts += _details(each)
    return "\n".join([*parts, *_how(sets), *_missing(sets)]).rstrip() + "\n"


def filled(text: str, sets: Sequence[Set]) -> str:
    """``text`` with numbers in the places {{set method quantity}}. Raises ValueError for one that means nothing."""
    known = {each.name: each for each in sets}

    def number(found: re.Match[str]) -> str:
        name, method, quantity = found.groups()
        each = known.get(name)
        if each is None or method not in METHODS or quantity not in QUANTITIES:
            raise ValueError(
                f"{found.group()} names no set of runs, no method, or none of {list(QUANTITIES)}"
            )
        return each.refusal(method) or QUANTITIES[quantity](each, method)

    return re.sub(r"\{\{(\S+) (\S+) (\S+)\}\}", number, text)


QUANTITIES: dict[str, Callable[..., str]] = {
    "before": lambda each, method, **how: each.figure(method, before).text(**how),
    "best": lambda each, method, **how: each.figure(method, best).text(**how),
    "final": lambda each, method, **how: each.figure(method, final).text(**how),
    "over": lambda each, method, **how: each.over(method, "parent").text(sign=True, **how),
    "kept": lambda each, method, **how: _width(_kept(each, method), **how),
    "site_error": lambda each, method, **how: each.figure(method, _part("site_error")).text(".3f", **how),
    "agreement": lambda each, method, **how: each.figure(method, _part("agreement")).text(".3f", **how),
}


def _part(key: str) -> Callable[[Record], Any]:
    return lambda record: record.get(key)


# ---------------------------------------------------------------- the paper's tables


def _table_1(sets: Sequence[Set]) -> list[str]:
    lines = [
        "## Table 1: neurons before and after",
        "",
        "λ = α = 0.1 as in the paper; for Algorithm 3 λ is a fraction of λ_max ([methods](methods.md)).",
        "",
        "| | | N_redundant | Alg1 | Alg2 | Alg3 | kept on average |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in ROWS.values():
        own = [each for each in sets if each.row is row]
        paper = (
            DATASETS[_paper_data(row)],
            *(str(n) for n in (row.redundant, *row.sparse)),
            f"{row.compression} %",
        )
        lines.append(f"| **{row.title}** | paper, " + " | ".join(paper) + " |")
        for each in own:
            candidates = row.candidates(each.settings)
            widths = [_kept(each, method) for method in PAPER_COLUMNS[:3]]
            means = [width.mean for width in widths if width.mean is not None]
            kept = f"{100 * sum(means) / 3 / candidates:.1f} %" if len(means) == 3 else "not run"
            cells = (str(candidates), *(_width(width) for width in widths), kept)
            lines.append(f"| | {_set_name(each)} | " + " | ".join(cells) + " |")
        if not any(each.settings.dataset == _paper_data(row) for each in own):
            lines.append(f"| | here, {DATASETS[_paper_data(row)]} | " + " | ".join(["not run"] * 5) + " |")
    return [*lines, ""]


def _table_2(sets: Sequence[Set]) -> list[str]:
    columns = (*PAPER_COLUMNS, *OWN_COLUMNS)
    lines = [
        "## Table 2: best validation accuracy, in percent",
        "",
        "| | | " + " | ".join(METHODS[method] for method in columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for row in ROWS.values():
        paper = [f"{value:.2f}" for value in row.best] + ["–"] * len(OWN_COLUMNS)
        lines.append(f"| **{row.title}** | paper, {DATASETS[_paper_data(row)]} | " + " | ".join(paper) + " |")
        own = [each for each in sets if each.row is row]
        for each in own:
            cells = [each.refusal(method) or _percent(each.figure(method, best)) for method in columns]
            lines.append(f"| | {_set_name(each)} | " + " | ".join(cells) + " |")
        if not any(each.settings.dataset == _paper_data(row) for each in own):
            cells = ["not run"] * len(columns)
            lines.append(f"| | here, {DATASETS[_paper_data(row)]} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _paper_data(row: Row) -> str:
    return settings_of(row.family).dataset


def _kept(each: Set, method: str) -> Figure:
    return each.figure(method, _part("kept"))


def _width(figure: Figure, *, counted: bool = True) -> str:
    if figure.deviation == 0 and len(figure.values) >= figure.asked:
        return f"{figure.values[0]:.0f}"
    return figure.text(".0f", counted=counted)


def _percent(figure: Figure) -> str:
    return Figure(tuple(100 * value for value in figure.values), figure.asked).text(".2f")


def _set_name(each: Set) -> str:
    s = each.settings
    width = "" if s.width_multiplier == 1 else f", width × {s.width_multiplier:g}"
    images = "" if s.samples is None else f", {s.samples:,} images"
    return f"here, {DATASETS[s.dataset]}{width}{images}"


# ---------------------------------------------------------------- one set


def _details(each: Set) -> list[str]:
    row, s = each.row, each.settings
    lines = [f"## {row.title}: {_set_name(each).removeprefix('here, ')}", ""]
    if not each.records:
        return [*lines, "Not run.", ""]
    parent = ROWS[row.parent].title.split(" to ")[1] if row.parent in ROWS else row.parent.upper()
    origin = (
        f"The parent is the child by Algorithm 3 of the row {ROWS[row.parent].title}, tuned."
        if row.parent in ROWS
        else f"The parent, {parent.replace('LENET', 'LeNet')}, was trained for {_count(s.parent_epochs, 'epoch')}."
    )
    lines += [
        f"{origin} {row.candidates(s)} candidates; {_count(s.epochs, 'epoch')} of each child.",
        "",
        *_curves(each),
        "| | seeds | neurons | parameters | MFLOP | site error | agreement | accuracy before | best | last epoch "
        "| best, over the parent trained on | epochs to the parent's accuracy | seconds |",
        "|---|" + "---:|" * 12,
    ]
    if each.parents and row.parent not in ROWS:
        lines.append(_parent_line(each))
    lines += [_line(each, method) for method in each.methods]
    notes = sorted({record["refused"] for record in each.records.values() if "refused" in record})
    same: dict[str, list[str]] = {}
    for (method, seed), record in each.records.items():
        if "same_as" in record:
            source, other = METHODS[record["same_as"]], record.get("same_row", row.name)
            place = "" if other == row.name else f" in {ROWS[other].title}"
            same.setdefault(f"{METHODS[method]} began with the very network of {source}{place}", []).append(
                str(seed)
            )
    return [
        *lines,
        "",
        *(f"Refused: {note}." for note in notes),
        *_sentence([f"{fact} (seed {', '.join(seeds)})" for fact, seeds in same.items()]),
    ]


def _parent_line(each: Set) -> str:
    parents = [each.parents[seed] for seed in sorted(each.parents)]
    figure = lambda value: Figure(tuple(value(record) for record in parents), len(parents))  # noqa: E731
    size = f"{parents[0]['parameters']['after']:,} | {parents[0]['flops']['after'] / 1e6:.2f}"
    seconds = figure(training_seconds).mean
    return (
        f"| *the parent* | {len(parents)} | – | {size} | – | – | {figure(before).text()} | {figure(best).text()} | "
        f"{figure(final).text()} | – | – | {seconds:.0f} |"
    )


def _line(each: Set, method: str) -> str:
    refused = each.refusal(method)
    if refused is not None:
        return f"| {METHODS[method]} | {each.ran(method)} | {refused} |" + " – |" * 10
    if not each.of(method):
        return f"| {METHODS[method]} | {each.ran(method)} |" + " not run |" * 11
    size = [
        each.figure(method, lambda record, key=key: record[key]["after"] if key in record else None).mean
        for key in ("parameters", "flops")
    ]
    told = {name: quantity(each, method, counted=False) for name, quantity in QUANTITIES.items()}
    cells = [
        each.ran(method),
        told["kept"],
        f"{size[0] or 0:,.0f}",
        f"{(size[1] or 0) / 1e6:.2f}",
        *(told[name] for name in ("site_error", "agreement", "before", "best", "final")),
        "–" if method == "parent" else told["over"],
        "–" if method == "parent" else reached(each, method),
        _seconds(each, method),
    ]
    return f"| {METHODS[method]} | " + " | ".join(cells) + " |"


def _seconds(each: Set, method: str) -> str:
    """Growing + training, without runs that took another's training."""
    own = [r for r in each.of(method) if "history" in r and "same_as" not in r]
    if not own:
        return "–"
    grow = Figure(tuple(r["seconds"].get("grow", 0.0) for r in own), len(own)).mean or 0.0
    train = Figure(tuple(training_seconds(r) or 0.0 for r in own), len(own)).mean or 0.0
    return f"{grow:.0f} + {train:.0f}"


def _curves(each: Set) -> list[str]:
    drawn = [m for m in each.methods if any("history" in record for record in each.of(m))]
    if not drawn:
        return []
    told = ", ".join(f"{METHODS[m]} {each.figure(m, final).mean:.4f}" for m in drawn)
    what = f"Accuracy on the test images over {_count(each.settings.epochs, 'epoch')}, mean of the seeds"
    text = f"{what}. After the last epoch: {told}."
    return [f"![{text}](results/{each.name}.svg)", ""]


def _sentence(facts: Sequence[str]) -> list[str]:
    return (
        [f"{'; '.join(facts)}: training the same network with the same seed was not repeated.", ""]
        if facts
        else [""]
    )


# ---------------------------------------------------------------- how, and what is missing


def _how(sets: Sequence[Set]) -> list[str]:
    if not any(each.records for each in sets):
        return []
    machines = distinct(sets, lambda record: _machine(record["machine"]))
    versions = distinct(
        sets, lambda record: ", ".join(f"{name} {v}" for name, v in sorted(record["versions"].items()))
    )
    lines = [
        "## How",
        "",
        "| | images | width | parents | children | learning rate (parents) | batch | weight decay (parents) "
        "| augmentation | dropout | images for `grow` |",
        "|---|---|---:|---:|---:|---|---:|---|---|---:|---:|",
    ]
    for each in sets:
        s = each.settings
        images = distinct([each], lambda record: record.get("images"))
        count = f"{images[0]['train']:,} / {images[0]['test']:,}" if images else "not run"
        cells = [
            each.row.title, f"{DATASETS[s.dataset]}, {count}", f"× {s.width_multiplier:g}",
            _count(s.parent_epochs, "epoch"), _count(s.epochs, "epoch"),
            f"{s.lr:g} {s.schedule} ({s.parent_lr:g} one-cycle)", str(s.batch_size),
            f"{s.weight_decay:g} ({s.parent_weight_decay:g})", ", ".join(s.augment) or "none",
            f"{s.dropout:g}" if each.row.family == "vgg" else "none", f"{s.calibration:,}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        HOW,
        "Machine: " + "; ".join(machines) + ".",
        "",
        "Versions: " + "; ".join(versions) + ".",
        "",
    ]


def _machine(found: dict[str, Any]) -> str:
    threads = found["threads"]
    place = found["gpu"] or f"{found['cpu']}, {_count(threads, 'thread')}"
    return f"{place}, Python {found['python']}"


def _missing(sets: Sequence[Set]) -> list[str]:
    lines = []
    for each in sets:
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for method in each.methods:
            seeds = tuple(seed for name, seed in each.missing() if name == method)
            by_seeds.setdefault(seeds, []).append(METHODS[method])
        told = [
            f"{', '.join(methods)} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
            for seeds, methods in by_seeds.items()
            if seeds
        ]
        if told:
            name = f"{each.row.title}, {_set_name(each).removeprefix('here, ')}"
            lines.append(f"- {name}: {'; '.join(told)}.")
    absent = [
        f"{row.title} on {DATASETS[_paper_data(row)]}"
        for row in ROWS.values()
        if not any(e.row is row and e.settings.dataset == _paper_data(row) and e.records for e in sets)
    ]
    if absent:
        lines.append(
            f"- In the paper's own setting: {'; '.join(absent)}. `python benchmarks/paper.py` runs them all."
        )
    return ["## Not run", "", *lines, ""] if lines else []


def main(argv: Sequence[str] | None = None) -> int:
    """Write the document and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files (%(default)s)")
    parser.add_argument("--plan", type=Path, default=PLAN, help="what was to be run (%(default)s)")
    parser.add_argument("--write", type=Path, default=DOCUMENT, help="the document (%(default)s)")
    parser.add_argument("--no-figures", action="store_true", help="the text alone")
    options = parser.parse_args(argv)
    sets = planned(options.results, options.plan)
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(document(sets, CONCLUSIONS.read_text("utf-8")), "utf-8")
    if not options.no_figures:
        from benchmarks import paper_figures

        paper_figures.draw_all(sets, options.write.parent / "results")
    return 0


def planned(results: Path, plan: Path) -> list[Set]:
    """The sets of the plan's file and of the results."""
    return gather(results, read_plan(plan))


if __name__ == "__main__":
    raise SystemExit(main())
