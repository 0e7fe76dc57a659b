"""docs/frontier.md from the result files: every number in it comes from one. Run by benchmarks/frontier.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.frontier_results import ERRORS, HE, METHODS, Frontiers, Target, medians
from benchmarks.frontier_run import STOP
from benchmarks.frontier_sites import SITES
from benchmarks.frontier_training import CHILDREN, HOW, IMAGES, RATES, WIDTH
from benchmarks.paper_run import Record, read

INTRODUCTION = """\
# Width against error

How many neurons does each method need for an error, and how much is in the choice of the candidates? Written by
`python benchmarks/frontier.py` from the files in [benchmarks/results/frontier](../benchmarks/results/frontier), one a
site, init and seed; it runs those that are missing.

All methods of a seed choose from the same candidates, by the same moments of the same samples. The error is the
root of the squared error at the readers' outputs over their variance, of the worst reader, on samples that were not
fitted (a fifth of them). A method's width at an error ε is the first on its path that is small enough there, as
`--max-error` takes it. The seed draws candidates, split and the random order. Three kinds of candidates:

- `--init auto`: drawn as He's rule says (for tanh Glorot's, for GELU Kumar's);
- `--init principal`: the first neurons carry the directions of the data that the readers need most, the others are
  drawn as by `auto`;
- `--init linear`: the first neurons hand every channel on, the others are drawn as by `auto`. They are no more than
  other candidates here: where the error says how wide, a core does not have to stay.
"""
BEST = "The best candidates are those with which obs needs fewest neurons, by the mean of the seeds."
BEYOND = (
    "Errors that Algorithm 3 can't reach with all He candidates together, at least in one seed, but obs can from the "
    "best ones (the bound counts all He candidates as Algorithm 3's width, too few):"
)
GUESSES = {
    "Never more": "Both are greedy along one path, and a width is read off on samples that neither has seen: where "
    "two paths run close together, a few neurons either way are luck.",
    "Against Algorithm 3": "Algorithm 3 weighs each neuron by its part in the fit of all candidates, which is not "
    "far from what backward elimination finds as long as the candidates are random and resemble each other little.",
    "Against a random subset": "Where an error is so small that nearly all candidates are needed for it, or so "
    "large that a handful will do, there is not much to choose; the gain is largest between.",
    "Best candidates, ReLU and its kin": "How many directions the readers need is a property of the data and of the "
    "readers' weights, and a few neurons are a large share where a few are all that Algorithm 3 needs: at the "
    "larger errors. At the smaller ones the ratio falls, until He candidates no longer reach them.",
    "Best candidates, all sites": "As above; and tanh is linear only near 0, so that principal neurons are scaled "
    "down, which the readers' ridge makes up for in part.",
    "At Algorithm 3's own width": "Principal neurons are uncorrelated, so that both methods rank them alike and keep "
    "the same ones, and the errors are the same; elimination is exact for fitted samples alone.",
}
HONEST = """\
## What principal neurons are

A neuron of `--init principal` carries one direction of the tensor to the readers nearly unchanged: its bias moves
the range of that direction on the data to where the activation is linear. Behind zero padding, where a bias would
turn zeros into something else, two neurons, z and −z, do so together; where the activation passes the tensor on as it
is (ReLU behind ReLU) they are there simply the channels, as with `--init linear`.

So a layer of nothing but principal neurons starts as a **linear** layer, a projection to the
directions that the readers need: few are enough to keep the function, which is what the tables above count, and they
add nothing that the parent could not compute. Whatever training makes of them it has to bend first: a rectifier that
is on for all samples has a gradient, but no kink near the data. Random neurons are worse at keeping the function and
begin with their kinks among the samples.

They also begin larger than drawn ones (the column "size" below): each varies by 1, around the mean that the shift
gives it. A rate that suits drawn neurons can be far too high for them; the row "scaled", the same function with
smaller neurons, tells that apart from the rest. The small check asks how the first epochs go.
"""


def document(found: Frontiers, training: Sequence[Record]) -> str:
    """The whole of docs/frontier.md."""
    parts = [INTRODUCTION, *_answers(found), *_ratios(found)]
    for site in found.sites:
        parts += _site(found, site)
    parts += [HONEST, *_training(training), *_how(found, training)]
    return "\n".join(parts).rstrip() + "\n"


# ---------------------------------------------------------------- the answers


def _answers(found: Frontiers) -> list[str]:
    targets = found.targets()
    lines = ["## What holds", "", "| aim | holds | figures |", "|---|---|---|"]
    lines += [f"| {target.aim} | {_verdict(target)} | {target.figures} |" for target in targets]
    lines += [""]
    for target in targets:
        if target.holds is False:
            lines += [sentence(target), ""]
    beyond: dict[str, set[str]] = {}
    for point in found.out_of_reach():
        beyond.setdefault(SITES[point.cell.site].title, set()).add(f"{point.error:g}")
    if beyond:
        told = "; ".join(
            f"{site} ({', '.join(sorted(errors, reverse=True))})" for site, errors in beyond.items()
        )
        lines += [f"{BEYOND} {told}.", ""]
    return [*lines, BEST, ""]


def _verdict(target: Target) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[target.holds]


def sentence(target: Target) -> str:
    """Where a target does not hold, and a guess why."""
    shown = "; ".join(target.where[:6]) + (
        f"; and {len(target.where) - 6} more" if len(target.where) > 6 else ""
    )
    where = f" Where: {shown}." if target.where else ""
    return f"**{target.name}** does not hold ({target.figures}).{where} A guess why: {GUESSES[target.name]}"


def _ratios(found: Frontiers) -> list[str]:
    lines = [
        "## Ratios of widths",
        "",
        "Medians over seeds and over the errors that both reach. He candidates in the first two columns; in the "
        "last, obs from the best candidates against Algorithm 3 from He candidates.",
        "",
        "| site | obs / alg3 | obs / random | best obs / He alg3 |",
        "|---|---:|---:|---:|",
    ]
    columns = [
        list(found.against("alg3")), list(found.against("random")), list(found.best_against_he()),
    ]  # fmt: skip
    by_site = [medians(points, lambda point: point.cell.site) for points in columns]
    for site in found.sites:
        cells = [f"{column[site]:.2f}" if site in column else "–" for column in by_site]
        lines.append(f"| {SITES[site].title} | " + " | ".join(cells) + " |")
    all_of = [
        f"**{statistics.median(p.ratio for p in points):.2f}**" if points else "–" for points in columns
    ]
    return [*lines, "| **all** | " + " | ".join(all_of) + " |", ""]


# ---------------------------------------------------------------- one site


def _site(found: Frontiers, name: str) -> list[str]:
    site, inits = SITES[name], found.inits(name)
    record = found.of(name, inits[0])[0]
    readers = ", ".join(f"{r['outputs']} outputs of {r['taps']} taps" for r in record["readers"])
    counts = {init: found.of(name, init)[0]["candidates"] for init in inits}
    told = ", ".join(f"{count} ({init})" for init, count in counts.items())
    candidates = str(record["candidates"]) if len(set(counts.values())) == 1 else told
    lines = [
        f"## {site.title}",
        "",
        f"Behind `{site.after}`: {record['channels']} channels, read by {readers}; new activation "
        f"{record['activation']}, {candidates} candidates. {record['samples']['fitted']} samples fitted "
        f"({record['rows']:,} rows), {record['samples']['held_out']} held out: {site.said}. "
        f"{_seeds(found, name)}",
        "",
        f"![{alternative(found, name)}](frontier/{name}.svg)",
        "",
        "| candidates | method | " + " | ".join(f"ε = {error:g}" for error in ERRORS) + " | all candidates |",
        "|---|---|" + "---:|" * (len(ERRORS) + 1),
    ]
    for init in inits:
        for method in METHODS:
            widths = [_width(found.mean_width(name, init, method, error)) for error in ERRORS]
            last = statistics.mean(r["curves"][method]["errors"][-1] for r in found.of(name, init))
            lines.append(f"| `{init}` | `{method}` | " + " | ".join(widths) + f" | {_error(last)} |")
    stops = [
        f"{statistics.mean(r['stop']['width'] for r in found.of(name, init)):.1f} neurons, error "
        f"{_error(statistics.mean(r['stop']['error'] for r in found.of(name, init)))} (`{init}`)"
        for init in inits
    ]
    lines += ["", f"Algorithm 3 at λ = α = {STOP['lam']:g} stops at {'; '.join(stops)}.", ""]
    lines += _turns(found, name)
    if "linear" not in SITES[name].inits:
        lines += [
            f"`--init linear` begins with a core of 2·{record['channels']} neurons, more than the "
            f"{site.candidates} candidates that the site is kept to.",
            "",
        ]
    return lines


def _turns(found: Frontiers, name: str) -> list[str]:
    """Where the first principal neuron nearly does it alone, and where more neurons make the error larger."""
    records, lines = found.of(name, "principal"), []
    if not records:
        return lines
    errors = [r["curves"]["obs"]["errors"] for r in records]
    one, last = statistics.mean(e[0] for e in errors), statistics.mean(e[-1] for e in errors)
    if one <= ERRORS[1]:
        lines = [
            f"One principal neuron leaves an error of {_error(one)}: a single direction makes up {1 - one**2:.0%} of "
            "the variance of what the reader puts out, and the error says little of the rest.",
            "",
        ]
    least = [
        min(zip(e, r["curves"]["obs"]["widths"], strict=True)) for e, r in zip(errors, records, strict=True)
    ]
    best = statistics.mean(error for error, _ in least)
    if best >= 0.0005 and best < 0.9 * last:
        lines += [
            f"From `principal` candidates obs has its least error, {_error(best)}, with "
            f"{statistics.mean(width for _, width in least):.1f} neurons; with all of them it is {_error(last)}: "
            "more columns than these samples bear.",
            "",
        ]
    return lines


def _seeds(found: Frontiers, name: str) -> str:
    counts = {init: len(found.of(name, init)) for init in SITES[name].inits}
    most = max(counts.values())
    fewer = [f"{init} {count}" for init, count in counts.items() if count < most]
    return f"Seeds: {most}" + (f" ({', '.join(fewer)})." if fewer else ".")


def alternative(found: Frontiers, name: str) -> str:
    """What the figure shows, for those who don't see it."""
    parts = []
    for init in found.inits(name):
        reached = [
            error for error in ERRORS if found.mean_width(name, init, "obs", error) is not None
        ]  # fmt: skip
        if not reached:
            parts.append(f"{init}: none reaches {ERRORS[0]:g}")
            continue
        error = min(reached, key=lambda each: abs(each - 0.1))
        widths = [
            f"{method} {_width(found.mean_width(name, init, method, error))}"
            for method in ("obs", "alg3", "alg1", "random")
        ]
        parts.append(f"{init}, neurons for ε = {error:g}: {', '.join(widths)}")
    shown = "Error on held-out samples over the neurons kept, one panel an init, one line a method."
    return f"{shown} {'; '.join(parts)}."


def _width(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.1f}"


def _error(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "< 0.0005"


# ---------------------------------------------------------------- training


def _training(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["Not run.", ""]
    rows = []
    for child in CHILDREN:
        mine = [record for record in records if record["child"] == child]
        if not mine:
            continue
        rates = [
            [r["accuracies"][-1] for r in mine if r["rate"] == rate and r["accuracies"]] for rate in RATES
        ]
        before = spread([r["accuracies"][0] for r in mine if r["rate"] == RATES[0] and r["accuracies"]], 4)
        known = child != "parent"
        error = spread([r["site_error"] for r in mine if r["rate"] == RATES[0]], 3) if known else "–"
        principal = f"{statistics.mean(r['principal'] for r in mine):.1f}" if known else "–"
        size = f"{statistics.mean(r['activation'] for r in mine):.2f}" if known else "–"
        cells = [TITLES[child], principal, size, error, before, *(spread(each, 4) for each in rates)]
        rows.append("| " + " | ".join(cells) + " |")
    return [
        f"LeNet4 of this repository and children with {WIDTH} new neurons behind conv1, trained on "
        f"{IMAGES['train']:,} images of Fashion-MNIST for {HOW['epochs']} epochs (SGD, momentum {HOW['momentum']:g}, "
        f"batches of {HOW['batch_size']}); accuracy on {IMAGES['test']:,} test images after the last epoch. "
        "Half principal is a random subset of 20 principal and 20 random candidates; scaled is the same child as the "
        "one above it, each new neuron scaled to the size of the tensor it reads and the reader's weights by the "
        "inverse, which is the same function. Size: root mean square of what the new layer puts out. ± is the sample "
        f"standard deviation over the seeds ({len({r['seed'] for r in records})}); the parent's is that of the order "
        "of the images.",
        "",
        "| | principal neurons | size | site error | accuracy before | "
        + " | ".join(f"rate {rate:g}" for rate in RATES)
        + " |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(RATES),
        *rows,
        "",
        *[
            f"{TITLES[r['child']]}, rate {r['rate']:g}, seed {r['seed']} diverged: {r['diverged']}.\n"
            for r in records
            if "diverged" in r
        ],
        *_learned(records),
    ]


TITLES = {
    "parent": "the parent, trained on",
    "obs-auto": "obs, `auto`",
    "obs-principal": "obs, `principal`",
    "scaled-principal": "obs, `principal`, scaled",
    "half-principal": "half principal",
    "alg3-auto": "alg3, `auto`",
}


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def _last(records: Sequence[Record], child: str, rate: float) -> dict[int, float]:
    """Seed → accuracy after the last epoch."""
    found = [r for r in records if (r["child"], r["rate"]) == (child, rate) and r["accuracies"]]
    return {record["seed"]: record["accuracies"][-1] for record in found}


def _learned(records: Sequence[Record]) -> list[str]:
    """The children's differences in percentage points, seed by seed."""
    lines = []
    for child, other in (
        ("obs-principal", "obs-auto"),
        ("scaled-principal", "obs-auto"),
        ("half-principal", "obs-auto"),
        ("obs-auto", "parent"),
        ("scaled-principal", "parent"),
    ):
        for rate in RATES:
            mine, theirs = (_last(records, name, rate) for name in (child, other))
            both = sorted(mine.keys() & theirs.keys())
            if both:
                points = [100 * (mine[seed] - theirs[seed]) for seed in both]
                signs = "all seeds" if len({point > 0 for point in points}) == 1 else "not all seeds"
                mean = statistics.mean(points)
                lines.append(
                    f"- {TITLES[child]} over {TITLES[other]}, rate {rate:g}: {mean:+.2f} points, of the same sign in "
                    f"{signs}"
                )
    tail = (
        "Three seeds and two epochs are a check, not a study: see [when growing pays](when-growing-pays.md)."
    )
    return ["Differences, seed by seed:", "", *lines, "", tail, ""] if lines else []


# ---------------------------------------------------------------- how, and what is missing


def _how(found: Frontiers, training: Sequence[Record]) -> list[str]:
    records = [*found.cells.values(), *training]
    if not records:
        return []
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['threads']} thread" for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(r["versions"].items())) for r in records})
    missing = [title.title for name, title in SITES.items() if name not in found.sites]
    minutes = sum(sum(r["seconds"].values()) for r in found.cells.values()) / 60
    return [
        "## How",
        "",
        "The digits' LeNet4 was trained on 4,500 of them, VGG15 for five epochs on 10,000 images. "
        "MiniLM's tokens are those of BERT's uncased vocabulary, without padding. AttaCut's syllables are the "
        "longest that it knows, from the left, where its package asks a model of its own. A width is read off on the "
        "samples that its error is measured on, so that widths are a little too small, for all methods alike. "
        "Drawn candidates can't reach the smaller errors at most sites; more of them would, at a price that grows "
        "with the cube of their number. "
        f"The {len(found.cells)} cells took {minutes:.1f} minutes of one core.",
        "",
        *([f"Not run: {'; '.join(missing)}.", ""] if missing else []),
        f"Machine: {'; '.join(machines)}.",
        "",
        f"Versions: {'; '.join(versions)}.",
    ]


def trained(folder: Path) -> list[Record]:
    """The records of the check by training."""
    return [record for path in sorted(folder.glob("*.json")) if (record := read(path)) is not None]


def write_document(results: Path, path: Path, *, figures: bool = True) -> None:
    """Write the document and its figures."""
    found = Frontiers.read(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(found, trained(results / "training")), "utf-8")
    if figures:
        from benchmarks import frontier_figures

        for site in found.sites:
            frontier_figures.draw(found, site, path.parent / "frontier")


__all__ = ["HE", "document", "sentence", "write_document"]
