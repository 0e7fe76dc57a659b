"""The candidates of a site: drawn, with a core that keeps the function or with directions of the data among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from onnx_compnet.collect import computable, scale
from onnx_compnet.config import PRINCIPAL, GrowOptions
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import CandidateLayer, ConvGeometry
from onnx_compnet.numerics import initialise
from onnx_compnet.numerics.directions import carriers, directions
from onnx_compnet.numerics.initialise import Core, slope_on
from onnx_compnet.numerics.moments import CovarianceAccumulator
from onnx_compnet.numerics.rows import channel_rows
from onnx_compnet.planning import activation_at, candidate_layer, core_of, has_core
from onnx_compnet.runtime.batches import Batches
from onnx_compnet.runtime.capture import capture
from onnx_compnet.runtime.session import Session


def draw(
    index: GraphIndex, session: Session, batches: Batches, site: Site, options: GrowOptions
) -> tuple[Core | None, CandidateLayer]:
    """The core (None where none is needed) and all candidates; ``batches`` are looked at only where it matters."""
    scaled = has_core(site, options) and initialise.needs_scale(activation_at(site, options), site.bounds)
    core = core_of(site, options, scale(session, batches, site) if scaled else 1.0)
    candidate = candidate_layer(site, options, core)
    if options.init == PRINCIPAL and site.groups == 1:
        candidate = _with_directions(candidate, core, index, session, batches, site)
    return core, candidate


def _with_directions(
    candidate: CandidateLayer,
    core: Core | None,
    index: GraphIndex,
    session: Session,
    batches: Batches,
    site: Site,
) -> CandidateLayer:
    """The first random neurons give way to neurons that carry the directions which the readers need most."""
    covariance = CovarianceAccumulator(site.channels)
    for rows in _channel_rows(session, batches, site):
        covariance.update(rows)
    moments = covariance.result()
    spread = moments.xx / max(moments.n, 1)
    rows = directions(spread, _weights(index, site, spread))
    low = rows.new_full((len(rows),), torch.inf)
    high = -low
    for part in _channel_rows(session, batches, site):
        z = part.double() @ rows.T
        low, high = torch.minimum(low, z.amin(0)), torch.maximum(high, z.amax(0))
    activation = candidate.activation
    biased = not _padded(site)
    if not biased and slope_on(activation, *site.bounds) is not None:
        W, b = torch.eye(site.channels, dtype=torch.float64), torch.zeros(site.channels, dtype=torch.float64)
    else:
        W, b = carriers(rows, low, high, activation, biased=biased)
    free = np.setdiff1d(np.arange(len(candidate.b1)), [] if core is None else core.places)[: len(W)]
    W1, b1 = candidate.W1.copy(), candidate.b1.copy()
    kernel = W1.shape[2:]
    centre = tuple((size - 1) // 2 for size in kernel)
    W1[free] = 0
    W1[(free, slice(None), *centre)] = W[: len(free)].numpy()
    b1[free] = b[: len(free)].numpy()
    return replace(candidate, W1=W1, b1=b1)


def _channel_rows(session: Session, batches: Batches, site: Site) -> Iterator[Tensor]:
    for _, tensors in capture(session, batches):
        yield channel_rows(computable(tensors[site.tensor]), site.channel_axis).cpu()


def _weights(index: GraphIndex, site: Site, covariance: Tensor) -> Tensor:
    """What the readers multiply t with (D1, Σ taps·D2), each reader divided by the deviation of what comes out."""
    if site.mode == "block":
        return torch.eye(site.channels, dtype=torch.float64)
    found = []
    for reader in site.linear:
        W2 = torch.from_numpy(reader_weights(index, reader).W2.astype(np.float64)).reshape(site.channels, -1)
        strength = float((W2 * (covariance @ W2)).sum())
        found.append(W2 / strength**0.5 if strength > 0 else W2)
    return torch.cat(found, 1)


def _padded(site: Site) -> bool:
    """Whether a reader sees zeros beside the tensor, which a bias would turn into something else."""
    windows = [reader.geometry for reader in site.linear if isinstance(reader.geometry, ConvGeometry)]
    return any(
        window.transposed or window.auto_pad.startswith("SAME") or any(window.pads) for window in windows
    )
