"""Curves of accuracy over training cost as SVG, the same bytes for the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.pay_plan import TITLES
from benchmarks.pay_results import Outcome

STYLE: dict[str, dict[str, Any]] = {
    # Okabe and Ito's colours, which can be told apart with any colour vision; a marker each for print
    "parent": {"color": "#000000", "marker": "."},
    "trained-on": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "alg3": {"color": "#d55e00", "marker": "D", "linewidth": 2.2},
    "obs": {"color": "#0072b2", "marker": "o"},
    "random": {"color": "#e69f00", "marker": "X"},
    "net2deeper": {"color": "#cc79a7", "marker": "P"},
    "twice": {"color": "#009e73", "marker": "^"},
    "thrice": {"color": "#009e73", "marker": "v", "linestyle": "--"},
    "scratch": {"color": "#777777", "marker": "*", "linestyle": ":"},
    "scratch-total": {"color": "#777777", "marker": "*"},
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


def draw(outcome: Outcome, folder: Path) -> Path | None:
    """Accuracy on the test images over floating point operations, and its last part enlarged; None without runs."""
    curves = {m: curve for m in outcome.methods if m in STYLE and (curve := outcome.curve(m)) is not None}
    if not curves:
        return None
    with mpl.rc_context(_RC):
        canvas = Canvas(figsize=(9.6, 4.4), layout="constrained", facecolor="white")
        whole, close = canvas.subplots(1, 2)
        for axes in (whole, close):
            for method, (flops, accuracies) in curves.items():
                mean = accuracies.mean(0)
                axes.plot(flops / 1e9, mean, label=TITLES[method], markersize=5, **STYLE[method])
                if axes is close and len(accuracies) > 1:
                    deviation = accuracies[:, -1].std(ddof=1)
                    end = (flops[-1] / 1e9, mean[-1])
                    axes.errorbar(*end, deviation, color=STYLE[method]["color"], capsize=3, linewidth=1)
            axes.set_xlabel("GFLOP of training, the parent's included")
            axes.grid(alpha=0.25, linewidth=0.6)
        ends = {method: float(a[:, -1].mean()) for method, (_, a) in curves.items()}
        start = curves["parent"][0][-1] / 1e9 if "parent" in curves else 0.0
        last = max(float(flops[-1]) / 1e9 for flops, _ in curves.values())
        low, high = min(ends.values()), max(ends.values())
        whole.set_ylim(max(low - 8 * (high - low), 0.0), high + (high - low) / 2)
        close.set_ylim(low - (high - low), high + (high - low) / 2)
        close.set_xlim(start - 0.02 * (last - start), last + 0.05 * (last - start))
        whole.set_ylabel("accuracy on the test images")
        whole.set_title("from the start", fontsize=10)
        close.set_title("after the parent's training; bars: ± standard deviation", fontsize=10)
        handles, labels = whole.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        seeds = max(len(outcome.of(method)) for method in curves)
        title = f"{outcome.experiment.title}: LeNet4 with {outcome.experiment.channels} channels"
        canvas.suptitle(f"{title}, mean of {seeds} seed{'s' * (seeds != 1)}", fontsize=11)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{outcome.experiment.name}.svg"
        canvas.savefig(path, metadata={"Date": None})
    return path
