"""One model: list its places, grow at some of them, and measure each child with code of its own."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from onnx import ModelProto

import onnx_compnet as oc
import onnx_compnet.pipeline  # heavy: once, before the models' processes are forked
from benchmarks import coverage_measure as measure
from benchmarks.coverage_cases import Case

Record = dict[str, Any]
MOST_CANDIDATES = 24
MOST_SAMPLES = 1024
ROWS_A_COLUMN = 10
SECONDS_OF_FORWARD = 8.0  # for the samples of one growth, which decides how many there are
SITE_SECONDS = 600  # a growth that takes longer has failed
BLOCK_SECONDS = 20.0  # the same for a block, whose exact set needs more rows
BLOCK_CHANNELS = 512  # the widest block that is tried, where there are narrower ones
EXACT = ("relu", "leaky_relu", "prelu", "gelu", "gelu_tanh", "silu", "hardswish", "softplus", "clip")
EXACT_ERROR = {"float16": 5e-3}  # of a block that keeps its exact set; 1e-4 for the other types
AGREE = 0.02  # the tool's site error against the one measured here, relative


class OverTimeError(Exception):
    """A growth took longer than SITE_SECONDS."""


@dataclass(frozen=True)
class Plan:
    """How one site is grown: candidates, and the feeds to fit and to hold out."""

    candidates: int
    fit: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    rows: int
    columns: int


# ---------------------------------------------------------------- the model


def survey(case: Case, most_sites: int) -> tuple[Record, ModelProto, list[Any]]:
    """What the tool says of a model, how long that takes, and the sites to try."""
    path = case.path()
    start = time.perf_counter()
    model = oc.load(path)
    loaded = time.perf_counter()
    sites = oc.find_sites(model)
    listed = time.perf_counter()
    refused = oc.refusals(model)
    done = time.perf_counter()
    linear = measure.linear_nodes(model.graph)
    names = [node.name or node.output[0] for node in linear]
    no = {item.name: item.reason for item in refused}
    replaced = {name for site in sites if site.mode == "replace" for name in site.readers}
    in_front = {name for site in sites if site.mode == "block" for name in site.readers}
    wrong = [name for name in names if (name in replaced | in_front) == (name in no)]
    blocks = [site for site in sites if site.mode == "block"]
    narrow = [site for site in blocks if site.channels <= BLOCK_CHANNELS]
    record = {
        "kind": "model",
        "model": case.name,
        "group": case.group,
        "data": case.data,
        "note": case.note,
        "versions": _versions(),
        "nodes": len(model.graph.node),
        "opset": max(
            (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0
        ),
        "ir": model.ir_version,
        "seconds": {"load": _r(loaded - start), "sites": _r(listed - loaded), "refusals": _r(done - listed)},
        "sites": len(sites),
        "modes": {mode: sum(site.mode == mode for site in sites) for mode in sorted({s.mode for s in sites})},
        "linear": len(names),
        "integer": sum(node.op_type in measure.INTEGER for node in linear),
        "read": sum(name in replaced for name in names),
        "block": sum(name in in_front - replaced for name in names),
        "refused": sum(name in no for name in names),
        "neither_or_both": wrong,
        "why_block": [site.why_block for site in blocks if set(site.readers) & set(names)],
        "inside": measure.linear_inside(model.graph),
        "reasons": [[item.op_type, item.name, item.reason] for item in refused],
        "parent_check": measure.invalid(model),
        "parent_run": _runs(case, model),
        "most_sites": most_sites,
    }
    chosen = []
    if record["parent_run"] is None:
        chosen = _spread([site for site in sites if site.mode == "replace"], most_sites)
        chosen += _spread(narrow or blocks, (most_sites + 1) // 2)
    record["tried"] = [key(site) for site in chosen]
    return record, model, chosen


def key(site: Any) -> str:
    """What the results call a site."""
    return f"{site.name} (block)" if site.mode == "block" else str(site.name)


def _versions() -> dict[str, str]:
    found = {"onnx-compnet": oc.__version__}
    for name in ("onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _runs(case: Case, model: ModelProto) -> str | None:
    """Why the parent itself does not run in onnxruntime, or None."""
    if case.listing_only:
        return "not run: as shipped, for the listing"
    try:
        measure.Runner(model)(case.feed(1 if case.fixed else 2, np.random.default_rng(0), held_out=False))
    except Exception as error:
        return measure.short(error)
    return None


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, most).round()]


# ---------------------------------------------------------------- one site


def grow(case: Case, model: ModelProto, site: Any, *, again: bool) -> Record:
    """Grow at one site and measure; ``again`` grows twice and compares the bytes."""
    record: Record = {"kind": "site", "model": case.name, "site": key(site), "mode": site.mode,
                      "layer": site.kind, "channels": site.channels, "activation": site.activation.name}  # fmt: skip
    start = time.perf_counter()
    try:
        with _limit(SITE_SECONDS):
            record |= _grown(case, model, site, again)
    except oc.VerificationError as error:
        record |= {"status": "failed", "reason": measure.short(error)}
    except oc.CompnetError as error:
        record |= {"status": "refused", "reason": measure.short(error)}
    except Exception as error:
        record |= {"status": "failed", "reason": measure.short(error)}
    record["seconds"] = _r(time.perf_counter() - start)
    return record


def _grown(case: Case, model: ModelProto, site: Any, again: bool) -> Record:
    plan = _plan(case, model, site)
    options = {
        "data": lambda: iter(plan.fit),
        "holdout_data": lambda: iter(plan.held_out),
        "candidates": plan.candidates,
        "method": "alg3",
        "seed": 0,
        "device": "cpu",
    }
    start = time.perf_counter()
    growth = oc.grow(model, after=site.name, **options)
    seconds = time.perf_counter() - start
    child, parent = growth.model, model
    targets = measure.with_axes(parent, site, growth.targets)
    errors, outputs, finite = measure.compare(parent, child, plan.held_out, targets)
    wrong = _violations(parent, child, site, growth, errors, finite)
    record = {
        "groups": site.groups,
        "candidates": growth.candidates,
        "kept": len(growth.kept),
        "rows": plan.rows,
        "columns": plan.columns,
        "site_error": _r(max(errors)),
        "outputs": {name: {key: _r(value) for key, value in each.items()} for name, each in outputs.items()},
        "grow_seconds": _r(seconds),
    }
    if again:
        second = oc.grow(model, after=site.name, **options).model
        same = child.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
        record["same_bytes"] = same
        wrong += [] if same else ["a second run with the same seed gave other bytes"]
    status = {"status": "failed", "reason": "; ".join(wrong)[:600]} if wrong else {"status": "ok"}
    return record | status


def _violations(
    parent: ModelProto, child: ModelProto, site: Any, growth: Any, errors: Sequence[float], finite: bool
) -> list[str]:
    found = []
    if growth.site.tensor != site.tensor:
        found.append(f"the name led to {growth.site.tensor}, not to {site.tensor}")
    invalid = measure.invalid(child)
    if invalid is not None and measure.invalid(parent) is None:
        found.append(f"the full checker refuses the child: {invalid}")
    unsound = measure.unsound(child)
    if unsound is not None:
        found.append(f"the checker refuses the child: {unsound}")
    if not finite:
        found.append("the child's outputs are not finite")
    theirs, ours = growth.site_error, max(errors)
    if not math.isclose(theirs, ours, rel_tol=AGREE, abs_tol=1e-5):
        found.append(f"the tool measured a site error of {theirs:.4g}, this script {ours:.4g}")
    limit = EXACT_ERROR.get(site.dtype, 1e-4)
    core = site.mode == "block" or site.groups > 1
    if core and site.activation.name in EXACT and not ours <= limit:
        found.append(f"a site that keeps its exact core is off by {ours:.3g}")
    names = [name for name, _ in growth.targets]
    return found + measure.differences(parent, child, site.tensor, names)


def _plan(case: Case, model: ModelProto, site: Any) -> Plan:
    """As many samples as ten rows a column need, within the time; as many candidates as those rows allow."""
    rng = np.random.default_rng([0, len(site.name)])
    features = {reader.output: reader.features for reader in site.linear} or {site.tensor: site.channels}
    runner = measure.Runner(model, features)
    size = 1 if case.fixed else 4
    probe = case.feed(size, rng, held_out=False)
    runner(probe)
    start = time.perf_counter()
    found = runner(probe)
    a_sample = (time.perf_counter() - start) / size
    rows = max(1, min(found[name].size // width for name, width in features.items()) // size)
    taps = site.max_taps
    core = site.mode == "block" or site.groups > 1  # begins with neurons that keep the function
    wanted = 2 * site.channels if core else min(2 * site.channels, MOST_CANDIDATES)
    seconds = BLOCK_SECONDS if core else SECONDS_OF_FORWARD
    affordable = int(seconds / max(a_sample, 1e-6))
    columns = wanted // site.groups * taps
    samples = min(max(math.ceil(ROWS_A_COLUMN * columns / rows), 16), MOST_SAMPLES, max(affordable, 8))
    candidates = wanted
    if not core:
        candidates = max(min(wanted, samples * rows // (ROWS_A_COLUMN * taps)), min(wanted, 4))
        if candidates * taps >= samples * rows:
            candidates = max(1, samples * rows // (2 * taps))
    held = min(max(samples // 4, 4), 128)
    batch = 1 if case.fixed else min(32, samples)
    feed: Callable[[int, bool], list[Any]] = lambda n, out: [  # noqa: E731
        case.feed(batch, rng, held_out=out) for _ in range(math.ceil(n / batch))
    ]
    fit = feed(samples, False)
    return Plan(candidates, fit, feed(held, True), rows * batch * len(fit), candidates // site.groups * taps)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OverTimeError(f"no end after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _r(value: float | None) -> float | None:
    """Four significant digits; None for what JSON can't hold."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def kind_of(reason: str) -> str:
    """A reason without its names and numbers, so that equal ones can be counted."""
    text = re.sub(r"'[^']*'", "'…'", reason)
    text = re.sub(r"\([^()]*\bgrowing there needs[^()]*\)", "", text)
    text = re.sub(r"\([0-9, ]+\)|\b\d+\b", "…", text)
    return " ".join(text.split())
