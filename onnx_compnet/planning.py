"""What a growth will do: the places, the candidates, the samples and the memory, before any forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_compnet.baselines.construct import construct
from onnx_compnet.config import CONSTRUCTED, LINEAR, PRINCIPAL, GrowOptions, activation_named
from onnx_compnet.errors import ResourceError, UsageError
from onnx_compnet.graph import model_io, names, provenance
from onnx_compnet.graph.emission import emit
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.names import ALL_CONVS, TENSOR_PREFIX
from onnx_compnet.graph.sites import Site, find_sites
from onnx_compnet.graph.trial import layer_alone
from onnx_compnet.layers import Activation, CandidateLayer, NewLayers
from onnx_compnet.numerics import initialise
from onnx_compnet.numerics.initialise import Core
from onnx_compnet.runtime.device import Device, available_memory
from onnx_compnet.runtime.device import select as select_device
from onnx_compnet.runtime.session import require_runnable
from onnx_compnet.runtime.sources import DataOptions, Source, open_data
from onnx_compnet.runtime.split import Split, split

Place = str | Site

FOLDS = 5  # Algorithm 2 alternates over this many folds of the samples


@dataclass(frozen=True)
class Job:
    """Everything that is fixed before the first forward pass."""

    parent: onnx.ModelProto
    parent_sha256: str
    sites: tuple[Site, ...]
    device: Device
    source: Source
    held_out_source: Source
    split: Split
    skipped: tuple[str, ...] = ()
    """why nothing is grown at some of the places that were asked for together"""

    @property
    def random_data(self) -> bool:
        """Whether anything was fitted or measured on random numbers."""
        return self.source.is_random or self.held_out_source.is_random

    @property
    def data(self) -> str:
        """What was fitted, and what was measured on where that is something else."""
        if self.held_out_source is self.source:
            return self.source.description
        return f"{self.source.description}, held out: {self.held_out_source.description}"


def prepare(
    model: onnx.ModelProto | str | Path, after: Place | Sequence[Place], data: Any, options: GrowOptions
) -> Job:
    """Resolve, check and open everything that a growth needs. Errors as :func:`onnx_compnet.grow`."""
    parent = model_io.as_model(model)
    provenance.read(parent)  # what is unreadable there should not turn up after the work
    sites, skipped = _sites(parent, after, options.mode)
    for site in sites:  # refuses an activation that the model's opset can't express
        emit(activation_at(site, options), model_io.opset(parent), dtype=site.dtype)
    device = select_device(options.device)
    for site in sites:
        alone = layer_alone(parent, site, activation_at(site, options), kernel_at(site, options.kernel))
        require_runnable(alone, site.dtype, device)
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
    return Job(parent, model_io.sha256(model), sites, device, source, held_out or source, parts, skipped)


def _sites(
    parent: onnx.ModelProto, after: Place | Sequence[Place], mode: str
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Resolve the names; in graph order, whatever order they were given in. And what "all-convs" had to skip."""
    places = [after] if isinstance(after, str | Site) else after
    if not isinstance(places, Sequence) or not places or not all(isinstance(p, str | Site) for p in places):
        raise UsageError(f"say where to grow: after=NAME, or a list of names (--after NAME), not {after!r}")
    sites: dict[str, Site] = {}
    called: dict[str, str] = {}
    skipped: list[str] = []
    for place in places:
        together = names.behind_convs(parent, mode) if place == ALL_CONVS else None
        if together is not None:
            found, reasons = together
            skipped += reasons
            sites |= {site.tensor: site for site in found if site.tensor not in sites}
            continue
        name = place if isinstance(place, str) else TENSOR_PREFIX + place.tensor
        own = place.mode if isinstance(place, Site) and mode == "auto" else mode
        site = names.resolve(parent, name, own)
        if site.tensor in called:
            raise UsageError(
                f"--after {name} and --after {called[site.tensor]} name the same place, tensor {site.tensor}"
            )
        called[site.tensor] = name
        sites[site.tensor] = site
    order = {site.tensor: place for place, site in enumerate(find_sites(parent))}

    def position(site: Site) -> tuple[int, int]:
        # In front of a Flatten before behind it: the other way round, the readers would be new layers.
        return min(reader.index for reader in site.linear), order.get(site.tensor, -1)

    return tuple(sorted(sites.values(), key=position)), tuple(skipped)


def activation_at(site: Site, options: GrowOptions) -> Activation:
    """The new layer's activation: relu where a core is needed, and of the one in front of the site there is none.

    NetMorph's begins as the identity.
    """
    if options.activation != "auto":
        found = activation_named(options.activation)
    else:
        flat = has_core(site, options) and initialise.is_flat(site.activation, site.bounds)
        found = Activation("relu") if flat else site.activation
    return found.as_identity if options.method == "netmorph" else found


def has_core(site: Site, options: GrowOptions) -> bool:
    """Whether exact candidates begin the pool: asked for, or as random ones alone would be useless there."""
    return site.mode == "block" or site.groups > 1 or options.init == LINEAR


def neurons(site: Site, options: GrowOptions) -> int:
    """N_redundant: as asked for; with a core no fewer than that has, and a multiple of the groups.

    Of a method that constructs the layer its width.
    """
    if options.method in ("exact", "net2deeper"):
        return site.channels
    if options.method == "netmorph":
        return options.keep or options.candidates or 2 * site.channels
    if not has_core(site, options):
        return options.candidates or 2 * site.channels
    core = initialise.core_size(site.channels, activation_at(site, options), site.bounds)
    wanted = max(options.candidates or core + site.channels, core)
    return math.ceil(wanted / site.groups) * site.groups


def core_of(site: Site, options: GrowOptions, t_scale: float = 1.0) -> Core | None:
    """The neurons that keep the site's function; ``t_scale`` is its root mean square, where they are not exact."""
    if not has_core(site, options):
        return None
    h = activation_at(site, options)
    return initialise.exact_core(
        site.channels,
        neurons(site, options),
        kernel_at(site, options.kernel),
        h,
        bounds=site.bounds,
        groups=site.groups,
        t_scale=t_scale,
        linear_range=initialise.fine_range(h) if options.init == LINEAR else initialise.LINEAR_RANGE,
    )


def candidate_layer(site: Site, options: GrowOptions, core: Core | None) -> CandidateLayer:
    """The candidates, drawn, with the core among them."""
    return initialise.candidates(
        site.kind,
        site.channels,
        neurons(site, options),
        kernel_at(site, options.kernel),
        activation_at(site, options),
        init="auto" if options.init in (LINEAR, PRINCIPAL) else options.init,
        seed=options.seed,
        dtype=np.dtype(site.dtype),
        channel_axis=site.channel_axis,
        core=core,
    )


def constructed(
    index: GraphIndex, site: Site, options: GrowOptions, t_scale: float = 1.0
) -> tuple[NewLayers, tuple[str, ...]]:
    """The layer that a method in CONSTRUCTED makes of the model's weights, and warnings."""
    kernel = kernel_at(site, options.kernel)
    return construct(
        index, site, neurons(site, options), kernel, activation_at(site, options), options, t_scale
    )


def kernel_at(site: Site, kernel: int) -> tuple[int, ...]:
    """K in each spatial direction, but no wider than reaches from end to end: taps beyond only ever see zeros."""
    if site.kind != "conv":
        return ()
    return tuple(min(kernel, 2 * size - 1) if isinstance(size, int) else kernel for size in site.spatial)


def memory_needed(site: Site, Dn: int, kernel: int) -> int:
    """Bytes at the peak: fitted and held-out co-moments, a factor, and three copies to work on, in float64.

    And the candidates' weights, which a wide layer on many channels makes large, while they are drawn.
    """
    weights = Dn * site.channels * math.prod(kernel_at(site, kernel))
    geometries = [reader.geometry for reader in site.linear]
    moments = max(each.groups * (Dn // each.groups * each.taps) ** 2 for each in geometries)
    return 6 * 8 * moments + 3 * 8 * weights


def refuse_large(site: Site, Dn: int, kernel: int, device: Device) -> None:
    """Raise ResourceError, with the numbers and what to do, where ``memory_needed`` is not to be had."""
    needed, available = memory_needed(site, Dn, kernel), available_memory(device)
    if needed <= available:
        return
    taps = site.max_taps
    fewer = int((available / 48) ** 0.5 / taps)
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


def _place_lines(site: Site, layer: CandidateLayer, width: str) -> list[str]:
    kernel = "×".join(map(str, layer.W1.shape[2:]))
    return [
        f"site        {site.name}: tensor {site.tensor}, {site.channels} channels, "
        f"read by {site.read_by_text}, mode {site.mode}",
        f"new layer   {' '.join(filter(None, (site.kind, kernel)))} + {layer.activation}, {width}",
    ]


def plan(
    model: onnx.ModelProto | str | Path,
    after: Place | Sequence[Place],
    data: Any,
    *,
    options: GrowOptions | None = None,
    **changes: Any,
) -> str:
    """Say what :func:`grow` would do with these arguments, after the checks that need no forward pass."""
    options = (options or GrowOptions()).changed(changes)
    job = prepare(model, after, data, options)
    lines = []
    for site in job.sites:
        Dn = neurons(site, options)
        if options.method in CONSTRUCTED:
            layers, _ = constructed(GraphIndex.of(job.parent), site, options)
            lines += _place_lines(site, layers.layer, f"{len(layers.layer.b1)} neurons")
            lines.append(f"method      {options.method}: made of the model's own weights, nothing is fitted")
            continue
        refuse_large(site, Dn, options.kernel, job.device)
        candidate = candidate_layer(site, options, core_of(site, options))
        lines += [
            *_place_lines(site, candidate, f"{Dn} candidates"),
            f"method      {options.method}, at most {options.keep or Dn} kept"
            + (f", site error at most {options.max_error:g}" if options.max_error is not None else ""),
            f"columns     {Dn * site.max_taps} ({Dn} candidates × {site.max_taps}), "
            f"about {memory_needed(site, Dn, options.kernel) / 2**20:.0f} MiB for their moments",
        ]
    counts = f"{job.split.fit.samples} to fit, {job.split.held_out.samples} held out"
    lines += [f"samples     {counts}, of {job.data}", f"device      {job.device.name}"]
    return "\n".join(lines)
