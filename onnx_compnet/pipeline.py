"""grow(): the order of the steps.

load → resolve → Site → Batches → pose → select → NewLayers → splice → compare → Growth
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from onnx_compnet.baselines.net2net import normalised
from onnx_compnet.collect import pre_activations, scale
from onnx_compnet.config import CONSTRUCTED, GrowOptions
from onnx_compnet.errors import DataError, VerificationError
from onnx_compnet.graph import model_io, names, provenance, prune
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.names import TENSOR_PREFIX
from onnx_compnet.graph.sites import Site, refusals
from onnx_compnet.graph.splice import splice
from onnx_compnet.growth import CurvePoint, Growth, SiteGrowth
from onnx_compnet.layers import CandidateLayer, NewLayers, ReaderWeights
from onnx_compnet.numerics import initialise
from onnx_compnet.numerics.algorithms import Selection
from onnx_compnet.numerics.rows import output_channel_axis
from onnx_compnet.planning import (
    Job,
    Place,
    activation_at,
    constructed,
    prepare,
)
from onnx_compnet.posed import pose
from onnx_compnet.report import provenance as provenance_of
from onnx_compnet.runtime.device import peak_memory
from onnx_compnet.runtime.session import Session
from onnx_compnet.runtime.stages import Stopwatch, out_of_memory_said
from onnx_compnet.steps import Step, above_bound, reader_errors, warnings
from onnx_compnet.verification import Gates, Target, Verdict, compare

log = logging.getLogger(__name__)


def grow(
    model: onnx.ModelProto | str | Path,
    after: Place | Sequence[Place],
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
        Node, output tensor, weight prefix or scope, or a Site (see :func:`onnx_compnet.find_sites`); a list (or
        "all-convs") grows several layers in graph order, each solved on the model grown so far.
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
    stopwatch = Stopwatch()
    with stopwatch("load"):
        job = prepare(model, after, data, options)
    current, steps = job.parent, []
    with out_of_memory_said("lower --candidates, --batch-size or --kernel"):
        for planned in job.sites:
            site = names.resolve(current, TENSOR_PREFIX + planned.tensor, planned.mode)
            site = replace(site, name=planned.name, activation=planned.activation)
            try:
                current, step = _grow_site(current, site, job, options, stopwatch)
            except (DataError, VerificationError) as error:
                raise type(error)(f"site {planned.name}: {error}") from error
            steps.append(step)
        with stopwatch("verify"):
            verdict = _verdict(current, steps, job, options)
    growth = _growth(current, steps, verdict, job, options, stopwatch)
    for warning in growth.warnings:
        log.warning(warning)
    if not verdict:
        raise VerificationError("; ".join(verdict.failures), growth)
    return growth


def _grow_site(
    model: onnx.ModelProto, site: Site, job: Job, options: GrowOptions, stopwatch: Stopwatch
) -> tuple[onnx.ModelProto, Step]:
    if options.method in CONSTRUCTED:
        return _construct_site(model, site, job, options, stopwatch)
    with stopwatch("capture"):
        posed = pose(model, site, job, options)
    with stopwatch("solve"):
        selection = posed.select(options)
    with stopwatch("splice"):
        spliced = splice(model, site, _survivors(posed.candidate, selection), label=site.name)
    step = Step(
        site=site,
        candidate=posed.candidate,
        selection=selection,
        targets=spliced.targets,
        rows=posed.rows,
        columns=max(fit.W2.shape[0] for fit in selection.readers),
    )
    return spliced.model, step


def _construct_site(
    model: onnx.ModelProto, site: Site, job: Job, options: GrowOptions, stopwatch: Stopwatch
) -> tuple[onnx.ModelProto, Step]:
    """A site at which nothing is fitted: the layer is made of the weights that are there."""
    t_scale = 1.0
    if options.method == "exact" and initialise.needs_scale(activation_at(site, options), site.bounds):
        with stopwatch("capture"):
            t_scale = scale(Session(prune.prefix(model, [site.tensor]), job.device), job.split.fit, site)
    with stopwatch("solve"):
        layers, notes = constructed(GraphIndex.of(model), site, options, t_scale)
    if options.batch_norm:
        with stopwatch("capture"):
            session = Session(prune.prefix(model, [site.tensor]), job.device)
            layers = normalised(layers, pre_activations(session, job.split.fit, site, layers.layer))
    with stopwatch("splice"):
        spliced = splice(model, site, layers, label=site.name)
    width = len(layers.layer.b1)
    selection = Selection(
        kept=tuple(range(width)),
        beta=torch.ones(width, dtype=torch.float64),
        readers=(),
        fitted_error=math.nan,
        held_out_error=None,
        dropped_dead=0,
        warnings=notes,
    )
    return spliced.model, Step(site, layers.layer, selection, spliced.targets, rows=0, columns=0)


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


def _verdict(child: onnx.ModelProto, steps: Sequence[Step], job: Job, options: GrowOptions) -> Verdict:
    """Check the finished child and measure it; a child that can't run is a failed verdict, not a lost one."""
    device, held_out = job.device, job.split.held_out
    gates = Gates(options.max_rel_error, options.min_agreement)
    targets = [
        Target(parent, child_name, output_channel_axis(reader.geometry))
        for step in steps
        for reader, (parent, child_name) in zip(step.site.linear, step.targets, strict=True)
    ]
    try:
        model_io.check(child, job.parent)
        verdict = compare(
            job.parent,
            child,
            held_out,
            device,
            gates=gates,
            targets=targets,
            data=job.data,
            random_data=job.random_data,
            progress="verify" if options.progress else None,
        )
    except VerificationError as error:
        return Verdict({}, (str(error),), 0, job.data, job.random_data, device.name, ())
    if options.min_agreement is not None and all(c.agreement is None for c in verdict.outputs.values()):
        missing = "--min-agreement is set, but no output of the model looks like class scores"
        verdict = replace(verdict, failures=(*verdict.failures, missing))
    return replace(verdict, failures=(*verdict.failures, *above_bound(steps, verdict, options)))


def _growth(
    child: onnx.ModelProto,
    steps: Sequence[Step],
    verdict: Verdict,
    job: Job,
    options: GrowOptions,
    stopwatch: Stopwatch,
) -> Growth:
    sites = tuple(_site_growth(step, verdict, options) for step in steps)
    growth = Growth(
        model=child,
        sites=sites,
        verdict=verdict,
        seed=options.seed,
        samples_fitted=job.split.fit.samples or 0,
        samples_held_out=verdict.samples,
        data=job.data,
        random_data=job.random_data,
        device=job.device.name,
        providers=verdict.providers,
        parent_sha256=job.parent_sha256,
        parameters_before=model_io.parameter_count(job.parent),
        parameters_after=model_io.parameter_count(child),
        seconds=dict(stopwatch.seconds),
        peak_memory=peak_memory(),
        warnings=warnings(steps, verdict, job, options),
        refusals=tuple(refusals(job.parent)),
    )
    provenance.write(child, [provenance_of(growth)])
    return growth


def _site_growth(step: Step, verdict: Verdict, options: GrowOptions) -> SiteGrowth:
    selection, candidate = step.selection, step.candidate
    solution = selection.solution
    errors = reader_errors(step, verdict)
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
        max_error=options.max_error,
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
