"""The candidates of a site: drawn, with a core that keeps the function or with directions of the data among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
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

REACH = 3.0
"""standard deviations: a neuron carries its direction up to there; farther out, where little lies, h may bend it.
Larger biases would make the readers' inputs nearly constant, which trains badly."""


@dataclass(frozen=True, eq=False)
class Draw:
    """All candidates; the ``core`` that must stay among them (None: there is none); and those ``known`` to make t
    again, exactly or nearly, so that the readers' weights behind them are known (None: not known of any)."""

    candidate: CandidateLayer
    core: Core | None
    known: Core | None


def draw(index: GraphIndex, session: Session, batches: Batches, site: Site, options: GrowOptions) -> Draw:
    """The candidates of a site; ``batches`` are looked at only where the data matters for them."""
    scaled = has_core(site, options) and initialise.needs_scale(activation_at(site, options), site.bounds)
    core = core_of(site, options, scale(session, batches, site) if scaled else 1.0)
    candidate = candidate_layer(site, options, core)
    if options.init != PRINCIPAL or site.groups > 1:
        return Draw(candidate, core, core)
    taken = np.zeros(0, np.intp) if core is None else core.places
    principal = _principal(index, session, batches, site, candidate, taken)
    W1, b1 = candidate.W1.copy(), candidate.b1.copy()
    W1[principal.places], b1[principal.places] = principal.W1, principal.b1
    return Draw(replace(candidate, W1=W1, b1=b1), core, core or principal.core)


@dataclass(frozen=True, eq=False)
class _Principal:
    """Neurons that carry the directions which the readers need most, and their places among the candidates."""

    W1: NDArray[np.float64]
    b1: NDArray[np.float64]
    core: Core

    @property
    def places(self) -> NDArray[np.intp]:
        return self.core.places


def _principal(
    index: GraphIndex,
    session: Session,
    batches: Batches,
    site: Site,
    candidate: CandidateLayer,
    taken: NDArray[np.intp],
) -> _Principal:
    sums = CovarianceAccumulator(site.channels)
    for part in _channel_rows(session, batches, site):
        sums.update(part)
    moments = sums.result()
    covariance = moments.xx / moments.n
    rows = directions(covariance, _weights(index, site, covariance))
    low = rows.new_full((len(rows),), torch.inf)
    high = -low
    for part in _channel_rows(session, batches, site):
        z = part.double() @ rows.T
        low, high = torch.minimum(low, z.amin(0)), torch.maximum(high, z.amax(0))
    centre = rows @ moments.mean
    low, high = torch.maximum(low, centre - REACH), torch.minimum(high, centre + REACH)
    biased, h = not _padded(site), candidate.activation
    slope = slope_on(h, *site.bounds)
    if not biased and slope is not None:
        eye = torch.eye(site.channels, dtype=torch.float64)
        W, b, P = eye, torch.zeros(site.channels, dtype=torch.float64), eye / slope
    else:
        found = carriers(rows, low, high, h, biased=biased)
        # t is about Cov(t)·Uᵀ·z for its directions z = Ut, which do not correlate
        W, b, P = found.W, found.b, (rows @ covariance)[found.of] * found.gain[:, None]
    places = np.setdiff1d(np.arange(len(candidate.b1)), taken)[: len(W)]
    kernel, n = candidate.W1.shape[2:], len(places)
    W1 = np.zeros((n, site.channels, *kernel))
    W1[(slice(None), slice(None), *((size - 1) // 2 for size in kernel))] = W[:n].numpy()
    return _Principal(W1, b[:n].numpy(), Core(W1, P[:n].numpy(), places, exact=False))


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
