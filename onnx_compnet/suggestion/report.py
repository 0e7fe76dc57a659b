"""Suggestion → JSON-ready dict and text; computes nothing."""

from __future__ import annotations

from typing import Any

from onnx_compnet.report import SCHEMA
from onnx_compnet.suggestion.result import Suggestion
from onnx_compnet.version import __version__, library_versions

BAR = 12


def suggestion_report(suggestion: Suggestion) -> dict[str, Any]:
    """What ``suggest --json`` writes."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "libraries": library_versions(),
        "loss": suggestion.loss,
        "samples": suggestion.samples,
        "data": suggestion.data,
        "random_data": suggestion.random_data,
        "device": suggestion.device,
        "sites": [
            {
                "site": score.site.name,
                "tensor": score.site.tensor,
                "mode": score.site.mode,
                "channels": score.site.channels,
                "effective_rank": score.effective_rank,
                "used": score.used,
                "bottleneck": score.bottleneck,
                "unexpressed": score.unexpressed,
                "neurons": score.neurons,
                "parameters": score.parameters,
                "flops": score.flops,
                "unscored": score.unscored or None,
            }
            for score in suggestion.sites
        ],
        "warnings": list(suggestion.warnings),
    }


def suggestion_text(suggestion: Suggestion) -> str:
    """A table with a bar for the score that ranks, and what its columns mean."""
    labelled = suggestion.loss is not None
    scores = [(each.bottleneck or 0.0) if labelled else each.used for each in suggestion.sites]
    most = max(scores) or 1.0
    header = [
        "SITE",
        "CHANNELS",
        "USED",
        *(["BOTTLENECK", "SHARE"] if labelled else []),
        "+PARAMS",
        "+MFLOPS",
        "",
    ]
    rows = [header]
    for each, score in zip(suggestion.sites, scores, strict=True):
        row = [each.site.name, str(each.site.channels), f"{each.used:.2f}"]
        if labelled:
            row += [_figure(each.bottleneck), "-" if each.unexpressed is None else f"{each.unexpressed:.2f}"]
        rows.append([*row, f"{each.parameters:,}", f"{each.flops / 1e6:.3g}", _bar(score / most)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{c:>{w}}" for c, w in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    lines += [f"  {each.site.name}: {each.unscored}" for each in suggestion.sites if each.unscored]
    random = " — RANDOM data, not the model's own" if suggestion.random_data else ""
    lines += ["", f"USED        effective rank of the channels / channels, on {suggestion.samples} samples of "
              f"{suggestion.data}{random}"]  # fmt: skip
    if labelled:
        lines += [
            f"BOTTLENECK  part of |dL/dy|² a sample that the reader's own input can't express ({suggestion.loss});",
            "            the rows are ranked by it; SHARE is its share of all of |dL/dy|²",
        ]
    lines.append("+PARAMS, +MFLOPS  of a layer of default width, before selection, and its readers")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _bar(share: float) -> str:
    return "█" * round(BAR * share)
