"""Growth, Verdict and sites → JSON-ready dicts and text; computes nothing.

JSON has no infinity and no NaN: such a figure becomes null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnx_compnet.config import CONSTRUCTED
from onnx_compnet.graph.sites import Refusal, Site
from onnx_compnet.growth import CurvePoint, Growth, SiteGrowth
from onnx_compnet.numerics.ridge import BELIEVED
from onnx_compnet.verification import Comparison, Verdict
from onnx_compnet.version import __version__, library_versions

SCHEMA = 1


def dumps(report: Any) -> str:
    """Return ``report`` as indented JSON."""
    return json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def comparisons(outputs: Mapping[str, Comparison]) -> dict[str, dict[str, float | None]]:
    """{name: max_abs, rel_error, cosine, agreement} of each output."""
    return {
        name: {
            "max_abs": c.max_abs,
            "rel_error": c.rel_error,
            "cosine": c.cosine,
            "agreement": c.agreement,
        }
        for name, c in outputs.items()
    }


def verdict_report(verdict: Verdict) -> dict[str, Any]:
    """What ``verify --json`` writes."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "passed": bool(verdict),
        "failures": list(verdict.failures),
        "outputs": comparisons(verdict.outputs),
        "not_compared": list(verdict.not_compared),
        "samples": verdict.samples,
        "data": verdict.data,
        "random_data": verdict.random_data,
        "device": verdict.device,
        "providers": list(verdict.providers),
    }


def site_report(grown: SiteGrowth) -> dict[str, Any]:
    """One entry of ``sites`` in a growth's report."""
    return {
        "site": grown.site.name,
        "tensor": grown.site.tensor,
        "kind": grown.site.kind,
        "mode": grown.site.mode,
        "readers": list(grown.site.readers),
        "method": grown.method,
        "activation": str(grown.activation),
        "kernel": list(grown.kernel),
        "channels": grown.site.channels,
        "candidates": grown.candidates,
        "kept": list(grown.kept),
        "width": len(grown.kept),
        "dropped_dead": grown.dropped_dead,
        "lam": grown.lam,
        "lam_max": grown.lam_max,
        "alpha": grown.alpha,
        "max_error": grown.max_error,
        "status": grown.status,
        "kkt_violation": grown.kkt_violation,
        "convex": grown.convex,
        "rows": grown.rows,
        "columns": grown.columns,
        "site_error": grown.site_error,
        "fitted_error": grown.fitted_error,
        "predicted_error": grown.predicted_error,
        "reader_errors": dict(grown.reader_errors),
        "targets": [list(pair) for pair in grown.targets],
        "curve": [asdict(point) for point in grown.curve],
    }


def provenance(growth: Growth) -> dict[str, Any]:
    """What is written into the child: the report without times, memory and the child's own digest.

    An error that is infinite (against a target that does not vary) or unknown (in a child that can't run) is None.
    """
    sites = [site_report(grown) for grown in growth.sites]
    report = {
        "schema": SCHEMA,
        "version": __version__,
        "libraries": library_versions(),
        "parent_sha256": growth.parent_sha256,
        "seed": growth.seed,
        "device": growth.device,
        "providers": list(growth.providers),
        "data": growth.data,
        "random_data": growth.random_data,
        "samples": {"fitted": growth.samples_fitted, "held_out": growth.samples_held_out},
        "outputs": comparisons(growth.verdict.outputs),
        "not_compared": list(growth.verdict.not_compared),
        "parameters": {"before": growth.parameters_before, "after": growth.parameters_after},
        "warnings": list(growth.warnings),
        "sites": sites,
        **(sites[0] if len(sites) == 1 else {}),
    }
    return {key: _plain(value) for key, value in report.items()}


def growth_report(growth: Growth, child_sha256: str | None) -> dict[str, Any]:
    """What ``grow --json`` writes; ``child_sha256`` is None where no child was written."""
    return {
        **provenance(growth),
        "child_sha256": child_sha256,
        "passed": bool(growth.verdict),
        "failures": list(growth.verdict.failures),
        "seconds": {stage: round(seconds, 3) for stage, seconds in growth.seconds.items()},
        "peak_memory": growth.peak_memory,
        "refusals": [refusal_report(refusal) for refusal in growth.refusals],
    }


def refusal_report(refusal: Refusal) -> dict[str, str]:
    """One place that can't be grown."""
    return {"name": refusal.name, "op_type": refusal.op_type, "reason": refusal.reason}


def sites_report(sites: Sequence[Site], refused: Sequence[Refusal]) -> dict[str, Any]:
    """What ``sites --json`` writes."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "sites": [
            {
                "name": site.name,
                "tensor": site.tensor,
                "kind": site.kind,
                "mode": site.mode,
                "channels": site.channels,
                "spatial": list(site.spatial),
                "dtype": site.dtype,
                "activation": str(site.activation),
                "readers": list(site.readers),
                "groups": site.groups,
                "columns_per_neuron": site.max_taps,
                "why_block": site.why_block or None,
            }
            for site in sites
        ],
        "refusals": [refusal_report(refusal) for refusal in refused],
    }


def sites_text(sites: Sequence[Site], refused: Sequence[Refusal]) -> str:
    """Two tables: what can be grown, what can't and why."""
    lines = []
    if sites:
        rows = [("NAME", "TENSOR", "MODE", "NEW LAYER", "CHANNELS", "ACTIVATION", "READ BY")]
        for site in sites:
            layer, channels, activation = site.kind, str(site.channels), str(site.activation)
            rows.append((site.name, site.tensor, site.mode, layer, channels, activation, site.read_by_text))
        lines += ["can be grown (--after NAME):", *_table(rows)]
    else:
        lines.append("nothing in this model can be grown")
    blocks = [(site.name, f"the tensor {site.why_block}") for site in sites if site.why_block]
    if blocks:
        lines += ["", "block, as the readers can't be solved anew:", *_table([("NAME", "REASON"), *blocks])]
    if refused:
        lines += ["", "can't be grown:", *_table([("NODE", "OP", "REASON"), *map(_refusal_row, refused)])]
    return "\n".join(lines)


def _refusal_row(refusal: Refusal) -> tuple[str, str, str]:
    return refusal.name, refusal.op_type, refusal.reason


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def verdict_text(verdict: Verdict) -> str:
    """One line an output, and the answer."""
    where = f"{verdict.samples} samples on {verdict.device}; data: {verdict.data}"
    lines = [f"compared on {where}" + _random_note(verdict.random_data), *comparison_lines(verdict.outputs)]
    lines += [f"not compared (not a numeric tensor): {name}" for name in verdict.not_compared]
    lines += [f"FAILED  {failure}" for failure in verdict.failures]
    lines.append("the two models differ" if verdict.failures else "the two models agree within the bounds")
    return "\n".join(lines)


def comparison_lines(outputs: Mapping[str, Comparison]) -> list[str]:
    """One line an output: name and the four measures."""
    rows = []
    for name, c in outputs.items():
        agreement = "" if c.agreement is None else f"agreement {c.agreement:.4f}"
        measures = (f"rel_error {c.rel_error:.3g}", f"max_abs {c.max_abs:.3g}", f"cosine {c.cosine:.6f}")
        rows.append((name, *measures, agreement))
    return _table(rows) if rows else []


def growth_text(growth: Growth, written: str) -> str:
    """The story of a growth in a dozen lines; ``written`` says where the child is."""
    lines: list[tuple[str, str]] = []
    for grown in growth.sites:
        lines += _site_lines(grown)
    lines.append(("parameters", f"{growth.parameters_before:,} → {growth.parameters_after:,}"))
    lines.append(
        (
            "measured on",
            f"{growth.samples_held_out} held-out samples ({growth.samples_fitted} fitted); data: {growth.data}"
            + _random_note(growth.random_data),
        )
    )
    lines += [("output", line.strip()) for line in comparison_lines(growth.verdict.outputs)]
    total = sum(growth.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in growth.seconds.items())
    lines.append(("seconds", f"{total:.1f} ({stages}) on {growth.device}"))
    lines.append(("child", written))
    return "\n".join(f"{label:<12}{text}" for label, text in lines)


def _site_lines(grown: SiteGrowth) -> Iterable[tuple[str, str]]:
    site = grown.site
    op = {"conv": "Conv", "gemm": "Gemm", "matmul": "MatMul"}[site.kind]
    kernel = " " + "×".join(map(str, grown.kernel)) if grown.kernel else ""
    yield (
        "site",
        f"{site.name}: tensor {site.tensor}, {site.channels} channels, read by {site.read_by_text}",
    )
    yield (
        "new layer",
        f"{op}{kernel} + {grown.activation}" + (f" + {op} back to {site.channels}" * (site.mode == "block")),
    )
    yield "method", _method_line(grown)
    dead = f" ({grown.dropped_dead} had no variance)" if grown.dropped_dead else ""
    chosen = f"{grown.candidates} candidates → {len(grown.kept)} kept{dead}"
    yield "neurons", f"{len(grown.kept)}" if grown.method in CONSTRUCTED else chosen
    if widths := _widths(grown.curve, len(grown.kept)):
        yield "widths", f"{widths} (site error by width, held-out)"
    if math.isnan(grown.fitted_error):
        fitted = "nothing was fitted"
    else:
        fitted = f"{grown.fitted_error:.3g}" if grown.fitted_error >= BELIEVED else f"below {BELIEVED}"
        fitted += " fitted"
    yield "site error", f"{grown.site_error:.3g} on held-out samples ({fitted})"


def _widths(curve: Sequence[CurvePoint], kept: int) -> str:
    """Some widths of a path with their errors: the one that was taken, and from the widest down half as many each."""
    shown, width = {kept}, max((point.kept for point in curve), default=0)
    while width:
        shown.add(width)
        width //= 2
    points = [point for point in curve if point.lam is None and point.kept in shown]
    return ", ".join(
        f"{point.kept}: " + (f"{point.error:.3g}" if point.error >= BELIEVED else f"below {BELIEVED}")
        for point in points
        if point.error is not None
    )


def _method_line(grown: SiteGrowth) -> str:
    allowed = f", site error at most {grown.max_error:g}" if grown.max_error is not None else ""
    if grown.lam is None or grown.lam_max is None:
        return grown.method + allowed
    parts = [f"λ = {grown.lam / grown.lam_max:.3g}·λ_max = {grown.lam:.3g}", f"α = {grown.alpha:.3g}"]
    if grown.status is not None and grown.kkt_violation is not None:
        parts += [grown.status, f"KKT violation {grown.kkt_violation:.1g}"]
    parts.append("certified convex" if grown.convex else "not certified convex")
    return f"{grown.method}{allowed}, " + ", ".join(parts)


def _random_note(random: bool) -> str:
    return " — RANDOM data, not the model's own" if random else ""


def provenance_text(growths: Sequence[Mapping[str, Any]]) -> str:
    """What ``info`` prints of each growth, oldest first."""
    blocks = []
    for number, growth in enumerate(growths, 1):
        lines = [f"growth {number}, by onnx-compnet {growth.get('version', '?')}"]
        for entry in growth.get("sites", []):
            lines.append(
                f"  after {entry.get('site')}: {entry.get('method')}, {entry.get('candidates')} candidates → "
                f"{entry.get('width')} kept, site error {_figure(entry.get('site_error'))}"
            )
        samples = growth.get("samples", {})
        lines.append(
            f"  fitted on {samples.get('fitted')}, measured on {samples.get('held_out')} samples; "
            f"data: {growth.get('data')}" + _random_note(bool(growth.get("random_data")))
        )
        for name, measures in growth.get("outputs", {}).items():
            figures = ", ".join(
                f"{key} {_figure(value)}" for key, value in measures.items() if value is not None
            )
            lines.append(f"  output {name}: {figures}")
        lines += [
            f"  seed {growth.get('seed')}, device {growth.get('device')}",
            f"  parent {growth.get('parent_sha256')}",
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def finetunes_text(finetunes: Sequence[Mapping[str, Any]]) -> str:
    """What ``info`` prints of each training, oldest first."""
    lines = []
    for number, entry in enumerate(finetunes, 1):
        lines.append(
            f"training {number}, by onnx-compnet {entry.get('version', '?')}: {entry.get('loss')}, "
            f"{entry.get('optimizer')}, lr {entry.get('lr')}, epoch {entry.get('best_epoch')} of "
            f"{entry.get('epochs_run')} kept; data: {entry.get('data')}"
        )
        for name, score in entry.get("scores", {}).items():
            figures = ", ".join(
                f"{key} {_figure(value)}" for key, value in score.items() if value is not None
            )
            lines.append(f"  {name}: {figures}")
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
