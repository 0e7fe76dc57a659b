"""Width against held-out error as SVG, the same bytes for the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.frontier_results import HE, Frontiers
from benchmarks.frontier_sites import SITES
from benchmarks.paper_run import Record
from benchmarks.pay_figures import STYLE as COLOURS

STYLE: dict[str, dict[str, Any]] = {
    "obs": {"color": COLOURS["obs"]["color"], "marker": "o", "linewidth": 2.0},
    "forward": {"color": "#56b4e9", "marker": "^", "linestyle": "--"},
    "alg3": {"color": COLOURS["alg3"]["color"], "marker": "D"},
    "alg1": {"color": "#009e73", "marker": "s"},
    "alg2": {"color": "#cc79a7", "marker": "P", "linestyle": "--"},
    "random": {"color": COLOURS["random"]["color"], "marker": "X", "linestyle": ":"},
}
TITLES = {HE: "He candidates (--init auto)", "principal": "--init principal", "linear": "--init linear"}
LOWEST = 0.01
_RC = {
    "svg.hashsalt": "onnx-compnet",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def mean_curve(records: list[Record], method: str) -> tuple[np.ndarray, np.ndarray]:
    """The widths that all seeds have, and the mean error at each."""
    curves = [
        dict(zip(r["curves"][method]["widths"], r["curves"][method]["errors"], strict=True)) for r in records
    ]
    widths = sorted(set(curves[0]).intersection(*curves[1:]))
    return np.array(widths), np.array([np.mean([curve[width] for curve in curves]) for width in widths])


def draw(found: Frontiers, site: str, folder: Path) -> Path:
    """One panel an init, one line a method; below LOWEST nothing is drawn."""
    inits = found.inits(site)
    with mpl.rc_context(_RC):
        canvas = Canvas(figsize=(4.2 * len(inits) + 0.4, 4.4), layout="constrained", facecolor="white")
        panels = canvas.subplots(1, len(inits), sharey=True, squeeze=False)[0]
        for axes, init in zip(panels, inits, strict=True):
            records = found.of(site, init)
            for method, style in STYLE.items():
                widths, errors = mean_curve(records, method)
                axes.plot(
                    widths, errors, label=method, markersize=5, markevery=max(1, len(widths) // 9), **style
                )
            axes.set_yscale("log")
            axes.set_ylim(LOWEST, 1.15)
            axes.set_yticks([1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01])
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="y", which="minor", length=0)
            axes.set_xlim(0, None)
            axes.set_xlabel("neurons kept")
            axes.set_title(TITLES[init], fontsize=10)
            axes.grid(alpha=0.25, linewidth=0.6)
        panels[0].set_ylabel("error on held-out samples, worst reader")
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(
            handles, labels, loc="outside lower center", ncols=len(STYLE), frameon=False, fontsize=9
        )
        seeds = min(len(found.of(site, init)) for init in inits)
        title = f"{SITES[site].title}: mean of {seeds} seed{'s' * (seeds != 1)}"
        canvas.suptitle(title, fontsize=11)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{site}.svg"
        canvas.savefig(path, metadata={"Date": None})
    return path
