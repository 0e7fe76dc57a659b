"""One pass over the samples: captured tensors → the candidate layer's activations → Moments.

The only place where runtime and numerics meet; what comes out does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_compnet.graph.sites import Reader, Site
from onnx_compnet.layers import CandidateLayer, Geometry
from onnx_compnet.numerics.moments import Covariance, CovarianceAccumulator, Moments, MomentsAccumulator
from onnx_compnet.numerics.rows import channel_rows, new_layer, output_channel_axis, row_chunks, target_rows
from onnx_compnet.runtime.batches import Batches
from onnx_compnet.runtime.capture import capture
from onnx_compnet.runtime.session import Session


@dataclass(frozen=True)
class ReaderGroup:
    """Readers that see the same rows: one G, their outputs side by side. ``members`` index ``site.linear``."""

    geometry: Geometry
    members: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """Everything that the algorithms need: Moments (u, y) a reader group, Covariance of x a fold."""

    moments: tuple[Moments, ...]
    covariances: tuple[Covariance, ...]


def reader_groups(site: Site) -> tuple[ReaderGroup, ...]:
    """Group a site's readers by geometry, in order of first appearance."""
    groups: dict[Geometry, list[int]] = {}
    for index, reader in enumerate(site.linear):
        groups.setdefault(reader.geometry, []).append(index)
    return tuple(ReaderGroup(geometry, tuple(members)) for geometry, members in groups.items())


def collect(
    session: Session,
    batches: Batches,
    site: Site,
    candidate: CandidateLayer,
    groups: Sequence[ReaderGroup],
    *,
    folds: int,
    progress: str | None = None,
) -> Statistics:
    """Run the captured prefix over ``batches`` and sum up the moments of the candidate layer.

    ``session`` yields ``site.tensor`` and every reader's output. Products run in float32 (float64 for float64
    models), sums in float64, on the session's device.
    """
    Dn = len(candidate.b1)
    covariances: list[CovarianceAccumulator | None] = [None] * folds
    accumulators: list[MomentsAccumulator | None] = [None] * len(groups)
    for batch, tensors in capture(session, batches, progress=progress):
        t = _computable(tensors[site.tensor])
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            x, A = new_layer(candidate, t)
        covariance = covariances[batch.fold] or CovarianceAccumulator(Dn, t.device, t.dtype)
        covariances[batch.fold] = covariance
        covariance.update(channel_rows(x, output_channel_axis(candidate)))
        for index, group in enumerate(groups):
            y = _targets(site.linear, group, tensors)
            p = Dn * group.geometry.taps
            accumulator = accumulators[index] or MomentsAccumulator(p, y.shape[1], t.device, t.dtype)
            accumulators[index] = accumulator
            first = 0
            for u in row_chunks(A, group.geometry):
                accumulator.update(u, y[first : first + len(u)])
                first += len(u)
    return Statistics(
        moments=tuple(a.result() for a in accumulators if a is not None),
        covariances=tuple(c.result() for c in covariances if c is not None),
    )


def first_scale(session: Session, batches: Batches, site: Site) -> float:
    """The root mean square of the site's tensor over the first batch; 1 where that is 0."""
    _, tensors = next(iter(capture(session, batches)))
    scale = float(_computable(tensors[site.tensor]).double().square().mean().sqrt())
    return scale if scale > 0 else 1.0


def _targets(readers: Sequence[Reader], group: ReaderGroup, tensors: dict[str, Tensor]) -> Tensor:
    """Outputs of a group's readers as rows, side by side: (n, ΣD2)."""
    ys = [target_rows(_computable(tensors[readers[m].output]), group.geometry) for m in group.members]
    return ys[0] if len(ys) == 1 else torch.cat(ys, dim=1)


def _computable(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 are stored, not computed in."""
    return tensor.to(torch.float32) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
