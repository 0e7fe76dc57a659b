"""MethodComparison → JSON-ready dict and text; computes nothing but means."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from onnx_compnet.comparison.entries import PARENT
from onnx_compnet.comparison.result import MethodComparison, MethodRow, MethodRun
from onnx_compnet.report import SCHEMA
from onnx_compnet.version import __version__, library_versions

WIDTH = 80
Figure = Callable[[MethodRun], float | None]


def comparison_text(found: MethodComparison) -> str:
    """The table, at most 80 columns wide, a second one after training, and the reasons of what failed."""
    site = found.site
    about = (
        f"site {site.name}: tensor {site.tensor}, {site.channels} channels, read by {site.read_by_text}, "
        f"mode {site.mode}; {found.samples_fitted} samples fitted, {found.samples_held_out} held out, "
        f"{_seeds(found)}; data: {found.data}" + (" — RANDOM data, not the model's own" * found.random_data)
    )
    lines = [*_wrapped(about), "", *_table(_growth_rows(found))]
    if any(run.training for row in found.rows for run in row.runs):
        lines += ["", *_wrapped(_training_text(found)), "", *_table(_training_rows(found))]
    failed = [
        f"{row.name}: {_of_seed(found, seed)}{reason}"
        for row in found.rows
        for seed, reason in _distinct(row).items()
    ]
    if failed:
        lines += ["", *(line for text in failed for line in _wrapped(text))]
    return "\n".join(lines)


def comparison_report(found: MethodComparison) -> dict[str, Any]:
    """What ``compare --json`` writes."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "libraries": library_versions(),
        "parent_sha256": found.parent_sha256,
        "site": found.site.name,
        "tensor": found.site.tensor,
        "mode": found.site.mode,
        "channels": found.site.channels,
        "readers": list(found.site.readers),
        "data": found.data,
        "random_data": found.random_data,
        "samples": {"fitted": found.samples_fitted, "held_out": found.samples_held_out},
        "seeds": list(found.seeds),
        "epochs": found.epochs,
        "device": found.device,
        "options": {name: _named(value) for name, value in found.options.items()},
        "rows": [_row_report(row, _parent(found)) for row in found.rows],
    }


def _row_report(row: MethodRow, parent: MethodRow) -> dict[str, Any]:
    before = parent.mean(lambda run: run.parameters) or 0
    figures = {
        name: {"mean": row.mean(figure), "spread": row.spread(figure)} for name, figure in _FIGURES.items()
    }
    runs = [{**asdict(run), "added": run.parameters - round(before)} for run in row.runs]
    failures = [{"seed": seed, "reason": reason} for seed, reason in row.failures.items()]
    return {"row": row.name, "method": row.method, **figures, "runs": runs, "failures": failures}


def _named(value: Any) -> Any:
    """Options are numbers, names and lists of them; anything else is said as Python says it."""
    if isinstance(value, dict):
        return {str(key): _named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else repr(value)


def _accuracy(run: MethodRun) -> float | None:
    return None if run.training is None else run.training.accuracy


def _before(run: MethodRun) -> float | None:
    return None if run.training is None else run.training.before


def _loss(run: MethodRun) -> float | None:
    return None if run.training is None else run.training.loss


def _training_seconds(run: MethodRun) -> float | None:
    return None if run.training is None else run.training.seconds


_FIGURES: dict[str, Figure] = {
    "width": lambda run: run.width, "parameters": lambda run: run.parameters, "flops": lambda run: run.flops,
    "site_error": lambda run: run.site_error, "rel_error": lambda run: run.rel_error,
    "agreement": lambda run: run.agreement, "seconds": lambda run: run.seconds,
    "accuracy_before": _before, "accuracy": _accuracy, "loss": _loss, "training_seconds": _training_seconds,
}  # fmt: skip


def _parent(found: MethodComparison) -> MethodRow:
    return next(row for row in found.rows if row.name == PARENT)


def _growth_rows(found: MethodComparison) -> list[tuple[str, ...]]:
    before = _parent(found).mean(_FIGURES["parameters"]) or 0
    rows: list[tuple[str, ...]] = [
        ("method", "width", "parameters", "added", "FLOPs", "error", "agree", "seconds")
    ]
    for row in found.rows:
        if not row.runs:
            rows.append((row.name, *["–"] * 6, "failed"))
            continue
        parameters = row.mean(_FIGURES["parameters"]) or 0
        added = "" if row.name == PARENT else _count(parameters - before, "+")
        error, agreement = row.mean(_FIGURES["site_error"]), row.mean(_FIGURES["agreement"])
        rows.append((
            row.name, _width(row), _count(parameters), added, _short(row.mean(_FIGURES["flops"]) or 0),
            "" if error is None else _error(error), "" if agreement is None else f"{agreement:.4f}",
            _seconds(row.mean(_FIGURES["seconds"])),
        ))  # fmt: skip
    return rows


def _training_text(found: MethodComparison) -> str:
    training = next(run.training for row in found.rows for run in row.runs if run.training)
    many = f", mean ± standard deviation of {len(found.seeds)} seeds" if len(found.seeds) > 1 else ""
    chose = "" if found.options.get("best_by") == "last" else ", which also chose the epoch"
    what = "accuracy" if training.accuracy is not None else "loss"
    return (
        f"{what} after {_epochs(found.epochs)} on {training.samples} samples of {training.data}, on "
        f"{training.val_samples} validation samples of {training.val}{chose}{many}"
    )


def _epochs(count: int | None) -> str:
    return f"{count} epoch" + ("" if count == 1 else "s")


def _training_rows(found: MethodComparison) -> list[tuple[str, ...]]:
    classes = any(_accuracy(run) is not None for row in found.rows for run in row.runs)
    figure = _accuracy if classes else _loss
    rows: list[tuple[str, ...]] = [
        ("method", "before" if classes else "", "after", "against the parent", "seconds")
    ]
    parents = {run.seed: value for run in _parent(found).runs if (value := figure(run)) is not None}
    for row in found.rows:
        if row.mean(figure) is None:
            continue
        name = "parent, trained on" if row.name == PARENT else row.name
        start = row.mean(_before)
        gains = MethodRow(row.name, None, tuple(run for run in row.runs if run.seed in parents), {})
        difference = "" if row.name == PARENT else _with_spread(gains, _less(figure, parents), "+")
        seconds = _seconds(row.mean(_training_seconds))
        rows.append(
            (name, "" if start is None else f"{start:.4f}", _with_spread(row, figure), difference, seconds)
        )
    return rows


def _less(figure: Figure, parents: dict[int, float]) -> Figure:
    """The figure less that of the parent with the same seed."""

    def difference(run: MethodRun) -> float | None:
        value = figure(run)
        return None if value is None else value - parents[run.seed]

    return difference


def _with_spread(row: MethodRow, figure: Figure, sign: str = "") -> str:
    mean, spread = row.mean(figure), row.spread(figure)
    if mean is None:
        return ""
    return f"{mean:{sign}.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _width(row: MethodRow) -> str:
    widths = [run.width for run in row.runs if run.width is not None]
    if not widths:
        return ""
    return str(widths[0]) if min(widths) == max(widths) else f"{min(widths)}–{max(widths)}"


def _count(value: float, sign: str = "") -> str:
    """A number of parameters, in at most ten characters."""
    return f"{round(value):{sign},}" if abs(value) < 1e7 else _short(value, sign)


def _short(value: float, sign: str = "") -> str:
    """Three digits and k, M, G or T."""
    rounded = float(f"{value:.3g}")
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= limit:
            digits = max(2 - math.floor(math.log10(abs(rounded) / limit) + 1e-9), 0)
            return f"{rounded / limit:{sign}.{digits}f}{unit}"
    return f"{value:{sign}.0f}"


def _error(value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return "0" if value == 0 else f"{value:.3f}" if 0.001 <= value < 1000 else f"{value:.0e}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _seeds(found: MethodComparison) -> str:
    listed = ", ".join(map(str, found.seeds))
    return f"seed {listed}" if len(found.seeds) == 1 else f"means over the seeds {listed}"


def _of_seed(found: MethodComparison, seed: int) -> str:
    return f"seed {seed}: " if seed >= 0 and len(found.seeds) > 1 else ""


def _distinct(row: MethodRow) -> dict[int, str]:
    """The reasons by seed; under -1 where all seeds had the same one."""
    reasons = dict(row.failures)
    if not row.runs and len(set(reasons.values())) == 1:
        return {-1: next(iter(reasons.values()))}
    return reasons


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, figures to the right; columns without anything in them are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
