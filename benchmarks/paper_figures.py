"""Curves of accuracy over epochs as SVG, the same bytes for the same results. The only matplotlib import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from benchmarks.paper_results import Set
from benchmarks.paper_rows import METHODS

STYLE: dict[str, dict[str, Any]] = {
    # Okabe and Ito's colours, which can be told apart with any colour vision; a marker each for print
    "alg1": {"color": "#0072b2", "marker": "o"},
    "alg2": {"color": "#56b4e9", "marker": "s", "linestyle": "--"},
    "alg3": {"color": "#d55e00", "marker": "D", "linewidth": 2.4},
    "netmorph-oracle": {"color": "#009e73", "marker": "^"},
    "netmorph-redundant": {"color": "#009e73", "marker": "v", "linestyle": "--"},
    "net2deeper": {"color": "#cc79a7", "marker": "P"},
    "random": {"color": "#e69f00", "marker": "X"},
    "scratch": {"color": "#777777", "marker": "*", "linestyle": ":"},
    "parent": {"color": "#000000", "marker": "", "linewidth": 2.0},
    "alg1-capped": {"color": "#0072b2", "marker": "o", "linestyle": ":"},
    "alg2-capped": {"color": "#56b4e9", "marker": "s", "linestyle": ":"},
    "alg3-capped": {"color": "#d55e00", "marker": "D", "linestyle": ":"},
    "random-capped": {"color": "#e69f00", "marker": "X", "linestyle": ":"},
}
_RC = {
    "svg.hashsalt": "onnx-compnet",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_all(sets: Sequence[Set], folder: Path) -> list[Path]:
    """One SVG a set that has curves; others in the folder are removed."""
    drawn = [path for each in sets if (path := draw(each, folder)) is not None]
    for path in folder.glob("*.svg"):
        if path not in drawn:
            path.unlink()
    return drawn


def draw(each: Set, folder: Path) -> Path | None:
    """Accuracy over epochs, all methods, and again without Scratch; mean over the seeds, range as a shade."""
    curves = {method: _curve(each, method) for method in each.methods if method in STYLE}
    curves = {method: values for method, values in curves.items() if values is not None}
    labels: dict[str, list[str]] = {}
    for method, values in curves.items():  # the same network has the same curve, and is drawn once
        twin = next((name for name in labels if np.array_equal(curves[name], values)), method)
        labels.setdefault(twin, []).append(METHODS[method])
    if not curves:
        return None
    with mpl.rc_context(_RC):
        canvas = Canvas(figsize=(9.6, 4.2), layout="constrained", facecolor="white")
        left, right = canvas.subplots(1, 2)
        for axes, chosen, title in (
            (left, list(labels), "all"),
            (right, [method for method in labels if method != "scratch"], "without Scratch"),
        ):
            for method in chosen:
                values = curves[method]
                epochs = np.arange(values.shape[1])
                axes.plot(
                    epochs, values.mean(0), label=" = ".join(labels[method]), markersize=5, **STYLE[method]
                )
                if len(values) > 1 and axes is right:
                    low, high = values.min(0), values.max(0)
                    axes.fill_between(
                        epochs, low, high, color=STYLE[method]["color"], alpha=0.07, linewidth=0
                    )
            axes.set_xlabel("epochs of training after growing")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.set_title(title, fontsize=10)
        left.set_ylabel("accuracy on the test images")
        handles, told = left.get_legend_handles_labels()
        canvas.legend(handles, told, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        counts = sorted({len(values) for values in curves.values()})
        seeds = " to ".join(map(str, counts)) + f" seed{'s' * (counts != [1])}"
        width = each.settings.width_multiplier
        place = each.settings.dataset + (f", width × {width:g}" if width != 1 else "")
        canvas.suptitle(f"{each.row.title}, {place}, {seeds}", fontsize=11)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{each.name}.svg"
        canvas.savefig(path, metadata={"Date": None})
    return path


def _curve(each: Set, method: str) -> np.ndarray[Any, Any] | None:
    """Accuracies (seeds, epochs + 1)."""
    rows = [[epoch["accuracy"] for epoch in r["history"]] for r in each.of(method) if "history" in r]
    return np.array(rows) if rows and len({len(row) for row in rows}) == 1 else None
