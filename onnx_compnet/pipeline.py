"""grow(): the order of the steps.

load → resolve → Site → Batches → collect → select → NewLayers → splice → compare → Growth
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_compnet.collect import ReaderGroup, Statistics, collect, first_scale, reader_groups
from onnx_compnet.config import GrowOptions, activation_named
from onnx_compnet.errors import ResourceError, UsageError, VerificationError
from onnx_compnet.graph import model_io, names, provenance, prune
from onnx_compnet.graph.names import TENSOR_PREFIX
from onnx_compnet.graph.sites import Site, refusals
from onnx_compnet.graph.splice import splice
from onnx_compnet.growth import CurvePoint, Growth, SiteGrowth
from onnx_compnet.layers import Activation, CandidateLayer, NewLayers, ReaderWeights
from onnx_compnet.numerics import initialise
from onnx_compnet.numerics.algorithms import Problem, Selection, select
from onnx_compnet.numerics.rows import output_channel_axis
from onnx_compnet.report import provenance as provenance_of
from onnx_compnet.runtime.device import Device, available_memory, peak_memory
from onnx_compnet.runtime.device import select as select_device
from onnx_compnet.runtime.session import Session
from onnx_compnet.runtime.sources import DataOptions, Source, open_data
from onnx_compnet.runtime.split import Split, split
from onnx_compnet.verification import MAX_REL_ERROR, MIN_AGREEMENT, Gates, Target, Verdict, compare

log = logging.getLogger(__name__)

FOLDS = 5  # Algorithm 2 alternates over this many folds of the samples


def grow(
    model: onnx.ModelProto | str | Path,
    after: str | Sequence[str],
    data: Any,
    *,
    options: GrowOptions | None = None,
    **changes: Any,
) -> Growth:
    """Insert a compact new layer after ``after`` and solve for its weights so that the function stays.

    Parameters
    ----------
    model
        The parent, or its path; it is never changed.
    after
        Node, output tensor, weight prefix or scope (see :func:`onnx_compnet.find_sites`); a list grows several
        layers in graph order, each solved on the model grown so far.
    data
        Path (npz, npy, folder, ``FILE.py:function``), ``"random:N"``, a dict of arrays, a torch DataLoader, or a
        callable that returns a fresh iterator of feeds.
    options, **changes
        :class:`onnx_compnet.config.GrowOptions`, whole or by keyword.

    Raises
    ------
    VerificationError
        A gate does not hold, or the checker or onnxruntime refuse the child; ``.growth`` has the child.
    UsageError, UnsupportedError, ModelError, DataError, ResourceError
        As in :mod:`onnx_compnet.errors`.
    """
    options = (options or GrowOptions()).changed(changes)
    stopwatch = _Stopwatch()
    with stopwatch("load"):
        job = _prepare(model, after, data, options)
    current, steps = job.parent, []
    for planned in job.sites:
        site = replace(
            names.resolve(current, TENSOR_PREFIX + planned.tensor, planned.mode), name=planned.name
        )
        current, step = _grow_site(current, site, job, options, stopwatch)
        steps.append(step)
    with stopwatch("verify"):
        verdict = _verdict(current, steps, job, options)
    growth = _growth(current, steps, verdict, job, options, stopwatch)
    for warning in growth.warnings:
        log.warning(warning)
    if not verdict:
        raise VerificationError("; ".join(verdict.failures), growth)
    return growth


def plan(
    model: onnx.ModelProto | str | Path,
    after: str | Sequence[str],
    data: Any,
    *,
    options: GrowOptions | None = None,
    **changes: Any,
) -> str:
    """Say what :func:`grow` would do with these arguments, after the checks that need no forward pass."""
    options = (options or GrowOptions()).changed(changes)
    job = _prepare(model, after, data, options)
    lines = []
    for site in job.sites:
        candidate = _candidate(site, options)
        Dn = len(candidate.b1)
        _refuse_large(site, Dn, job.device)
        kernel = "×".join(map(str, candidate.W1.shape[2:]))
        lines += [
            f"site        {site.name}: tensor {site.tensor}, {site.channels} channels, "
            f"read by {', '.join(site.readers)}",
            f"new layer   {' '.join(filter(None, (site.kind, kernel)))} + {candidate.activation}, {Dn} candidates",
            f"method      {options.method}, at most {options.keep or Dn} kept",
            f"columns     {Dn * site.max_taps} ({Dn} candidates × {site.max_taps}), "
            f"about {_gram_bytes(site, Dn) / 2**20:.0f} MiB for their moments",
        ]
    counts = f"{job.split.fit.samples} to fit, {job.split.held_out.samples} held out"
    lines += [f"samples     {counts}, of {job.source.description}", f"device      {job.device.name}"]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """Everything that is fixed before the first forward pass."""

    parent: onnx.ModelProto
    parent_sha256: str
    sites: tuple[Site, ...]
    device: Device
    source: Source
    split: Split


@dataclass(frozen=True)
class _Step:
    """One site, solved; what is still missing for a SiteGrowth is measured in the finished child."""

    site: Site
    candidate: CandidateLayer
    selection: Selection
    targets: tuple[tuple[str, str], ...]
    rows: int
    columns: int


class _Stopwatch:
    """Seconds by stage, in order; a stage that comes again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _prepare(
    model: onnx.ModelProto | str | Path, after: str | Sequence[str], data: Any, options: GrowOptions
) -> _Job:
    parent = model_io.as_model(model)
    sites = _sites(parent, [after] if isinstance(after, str) else list(after), options.mode)
    device = select_device(options.device)
    data_options = DataOptions.of(
        batch_size=options.batch_size,
        max_samples=options.max_samples,
        scale=options.scale,
        mean=options.mean,
        std=options.std,
        batch_axis=options.batch_axis,
        shapes=options.shape,
        seed=options.seed,
    )
    inputs = model_io.inputs(parent)
    source = open_data(data, inputs, data_options)
    held_out = None if options.holdout_data is None else open_data(options.holdout_data, inputs, data_options)
    parts = split(
        source,
        holdout=options.holdout,
        held_out_source=held_out,
        seed=options.seed,
        max_samples=options.max_samples,
        folds=FOLDS,
        batch_size=options.batch_size,
    )
    return _Job(parent, model_io.sha256(model), sites, device, source, parts)


def _sites(parent: onnx.ModelProto, after: list[str], mode: str) -> tuple[Site, ...]:
    """Resolve the names; in graph order, whatever order they were given in."""
    if not after:
        raise UsageError("say where to grow: after=NAME (--after NAME)")
    sites = [names.resolve(parent, name, mode) for name in after]
    tensors = [site.tensor for site in sites]
    for index, tensor in enumerate(tensors):
        if tensor in tensors[:index]:
            other = after[tensors.index(tensor)]
            raise UsageError(
                f"--after {after[index]} and --after {other} name the same place, tensor {tensor}"
            )
    return tuple(sorted(sites, key=lambda site: min(reader.index for reader in site.linear)))


def _activation(site: Site, options: GrowOptions) -> Activation:
    return site.activation if options.activation == "auto" else activation_named(options.activation)


def _candidate(site: Site, options: GrowOptions, t_scale: float = 1.0) -> CandidateLayer:
    activation, kernel = _activation(site, options), _kernel(site, options.kernel)
    block = site.mode == "block"
    return initialise.candidates(
        site.kind,
        site.channels,
        options.candidates or (3 if block else 2) * site.channels,
        kernel,
        activation,
        init=options.init,
        seed=options.seed,
        dtype=np.dtype(site.dtype),
        channel_axis=site.channel_axis,
        core=initialise.exact_core(site.channels, kernel, activation, t_scale) if block else None,
    )


def _kernel(site: Site, kernel: int) -> tuple[int, ...]:
    """K in each spatial direction, but no wider than reaches from end to end: taps beyond only ever see zeros."""
    if site.kind != "conv":
        return ()
    return tuple(min(kernel, 2 * size - 1) if isinstance(size, int) else kernel for size in site.spatial)


def _gram_bytes(site: Site, Dn: int) -> int:
    """Bytes at the peak: fitted and held-out co-moments, a product, a factor and a work copy, in float64."""
    return 5 * 8 * (Dn * site.max_taps) ** 2


def _refuse_large(site: Site, Dn: int, device: Device) -> None:
    needed, available = _gram_bytes(site, Dn), available_memory(device)
    if needed <= available:
        return
    taps = site.max_taps
    fewer = int((available / 40) ** 0.5 / taps)
    advice = [f"lower --candidates to {fewer} or less"] if fewer >= 1 else []
    flattened = [reader for reader in site.linear if reader.between]
    if flattened:
        behind = flattened[0].input
        advice.append(f"insert behind the Flatten instead (--after {behind})")
    raise ResourceError(
        f"site {site.name}: {Dn} candidates × {taps} columns each make a Gram matrix of {Dn * taps:,} columns, "
        f"which needs {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are available; "
        + ", or ".join(advice)
    )


def _grow_site(
    model: onnx.ModelProto, site: Site, job: _Job, options: GrowOptions, stopwatch: _Stopwatch
) -> tuple[onnx.ModelProto, _Step]:
    Dn = len(_candidate(site, options).b1)
    if options.keep is not None and options.keep > Dn:
        raise UsageError(f"--keep {options.keep} is more than the {Dn} candidates at {site.name}")
    _refuse_large(site, Dn, job.device)
    groups = reader_groups(site)
    with stopwatch("capture"):
        outputs = dict.fromkeys([site.tensor, *(reader.output for reader in site.linear)])
        session = Session(prune.prefix(model, list(outputs)), job.device)
        exact = _activation(site, options).name in initialise.EXACT_PAIRS
        t_scale = first_scale(session, job.split.fit, site) if site.mode == "block" and not exact else 1.0
        candidate = _candidate(site, options, t_scale)
        bar = f"{site.name}: " if options.progress else None
        fitted = collect(
            session, job.split.fit, site, candidate, groups, folds=FOLDS, progress=bar and bar + "fit"
        )
        held_out = collect(
            session, job.split.held_out, site, candidate, groups, folds=1, progress=bar and bar + "held-out"
        )
    with stopwatch("solve"):
        selection = _select(groups, site, fitted, held_out, options)
    with stopwatch("splice"):
        spliced = splice(model, site, _survivors(candidate, selection), label=site.name)
    step = _Step(
        site=site,
        candidate=candidate,
        selection=selection,
        targets=spliced.targets,
        rows=min(moments.n for moments in fitted.moments),
        columns=len(selection.kept) * site.max_taps,
    )
    return spliced.model, step


def _select(
    groups: Sequence[ReaderGroup], site: Site, fitted: Statistics, held_out: Statistics, options: GrowOptions
) -> Selection:
    problems = []
    for group, fit, held in zip(groups, fitted.moments, held_out.moments, strict=True):
        ends = list(accumulate(site.linear[member].features for member in group.members))
        slices = tuple(slice(start, end) for start, end in pairwise([0, *ends]))
        problems.append(Problem(fit, held, group.geometry.taps, slices, group.members))
    return select(
        options.method,
        problems,
        fitted.covariances,
        lam=options.lam,
        alpha=options.alpha,
        keep=options.keep,
        rho=options.ridge,
        refit=options.refit,
        seed=options.seed,
    )


def _survivors(candidate: CandidateLayer, selection: Selection) -> NewLayers:
    kept = list(selection.kept)
    dtype = candidate.W1.dtype
    return NewLayers(
        layer=replace(candidate, W1=candidate.W1[kept], b1=candidate.b1[kept]),
        readers=tuple(
            ReaderWeights(fit.W2.cpu().numpy().astype(dtype), fit.b2.cpu().numpy().astype(dtype))
            for fit in selection.readers
        ),
    )


def _verdict(child: onnx.ModelProto, steps: Sequence[_Step], job: _Job, options: GrowOptions) -> Verdict:
    """Check the finished child and measure it; a child that can't run is a failed verdict, not a lost one."""
    device, held_out = job.device, job.split.held_out
    data = job.source.description
    gates = Gates(options.max_rel_error, options.min_agreement)
    targets = [
        Target(parent, child_name, output_channel_axis(reader.geometry))
        for step in steps
        for reader, (parent, child_name) in zip(step.site.linear, step.targets, strict=True)
    ]
    try:
        model_io.check(child, job.parent)
        return compare(
            job.parent, child, held_out, device,
            gates=gates, targets=targets, data=data, random_data=job.source.is_random,
            progress="verify" if options.progress else None,
        )  # fmt: skip
    except VerificationError as error:
        return Verdict({}, (str(error),), 0, data, job.source.is_random, device.name, ())


def _growth(
    child: onnx.ModelProto,
    steps: Sequence[_Step],
    verdict: Verdict,
    job: _Job,
    options: GrowOptions,
    stopwatch: _Stopwatch,
) -> Growth:
    sites = tuple(_site_growth(step, verdict, options) for step in steps)
    growth = Growth(
        model=child,
        sites=sites,
        verdict=verdict,
        seed=options.seed,
        samples_fitted=job.split.fit.samples or 0,
        samples_held_out=verdict.samples,
        data=job.source.description,
        random_data=job.source.is_random,
        device=job.device.name,
        providers=verdict.providers,
        parent_sha256=job.parent_sha256,
        parameters_before=model_io.parameter_count(job.parent),
        parameters_after=model_io.parameter_count(child),
        seconds=dict(stopwatch.seconds),
        peak_memory=peak_memory(),
        warnings=_warnings(steps, verdict, job),
        refusals=tuple(refusals(job.parent)),
    )
    provenance.write(child, [provenance_of(growth)])
    return growth


def _site_growth(step: _Step, verdict: Verdict, options: GrowOptions) -> SiteGrowth:
    selection, candidate = step.selection, step.candidate
    solution = selection.solution
    errors: dict[str, float] = {}
    for reader, (_, child) in zip(step.site.linear, step.targets, strict=True):
        if child in verdict.targets:  # readers may have the same name: the worst of them counts
            errors[reader.node] = max(verdict.targets[child].rel_error, errors.get(reader.node, 0.0))
    return SiteGrowth(
        site=step.site,
        method=options.method,
        activation=candidate.activation,
        kernel=candidate.W1.shape[2:],
        candidates=len(candidate.b1),
        kept=selection.kept,
        beta=selection.beta.cpu().numpy(),
        lam=None if selection.lam is None or selection.lam_max is None else selection.lam * selection.lam_max,
        lam_max=selection.lam_max,
        alpha=selection.alpha,
        status=None if solution is None else solution.status,
        kkt_violation=None if solution is None else solution.kkt_violation,
        convex=None if solution is None else solution.convex,
        dropped_dead=selection.dropped_dead,
        rows=step.rows,
        columns=step.columns,
        site_error=max(errors.values(), default=math.nan),
        fitted_error=selection.fitted_error,
        predicted_error=selection.held_out_error,
        reader_errors=errors,
        targets=step.targets,
        curve=tuple(CurvePoint(*point) for point in selection.curve),
    )


def _warnings(steps: Sequence[_Step], verdict: Verdict, job: _Job) -> tuple[str, ...]:
    found = [f"{step.site.name}: {warning}" for step in steps for warning in step.selection.warnings]
    for name, c in verdict.outputs.items():
        if c.agreement is not None and c.agreement < MIN_AGREEMENT:
            found.append(f"{name}: agreement on held-out samples is {c.agreement:.4f}, below {MIN_AGREEMENT}")
        if not c.rel_error <= MAX_REL_ERROR:
            found.append(
                f"{name}: relative error on held-out samples is {c.rel_error:.3g}, above {MAX_REL_ERROR}"
            )
    if job.source.is_random:
        found.append("fitted and measured on random data: no figure here says anything about real inputs")
    return tuple(found)
