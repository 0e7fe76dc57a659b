"""One pass over the samples: captured tensors → the candidate layer's activations → Moments.

The only place where runtime and numerics meet; what comes out does not grow with the samples.
"""

from __future__ import annotations

import math
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
    """What the algorithms need: Moments (u, y) of each group of each reader group, Covariance of x a fold."""

    moments: tuple[tuple[Moments, ...], ...]
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
    precise: bool = False,
    progress: str | None = None,
) -> Statistics:
    """Run the captured prefix over ``batches`` and sum up the moments of the candidate layer.

    ``session`` yields ``site.tensor`` and every reader's output. Products run in float32 (float64 for float64
    models and where ``precise``), sums in float64, on the session's device.
    """
    Dn = len(candidate.b1)
    covariances: list[CovarianceAccumulator | None] = [None] * folds
    accumulators: list[list[MomentsAccumulator]] = [[] for _ in groups]
    for batch, tensors in capture(session, batches, progress=progress):
        t = computable(tensors[site.tensor])
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            x, A = new_layer(candidate, t)
        covariance = covariances[batch.fold] or CovarianceAccumulator(Dn, t.device, t.dtype)
        covariances[batch.fold] = covariance
        covariance.update(channel_rows(x, output_channel_axis(candidate)))
        for index, group in enumerate(groups):
            y = targets(site.linear, group, tensors)
            parts = group.geometry.groups
            p, D2 = Dn // parts * group.geometry.taps, y.shape[1] // parts
            accumulators[index] = accumulators[index] or [
                MomentsAccumulator(p, D2, t.device, torch.float64 if precise else t.dtype)
                for _ in range(parts)
            ]
            first = 0
            for u in row_chunks(A, group.geometry):
                rows = y[first : first + len(u)]
                for part, accumulator in enumerate(accumulators[index]):
                    accumulator.update(u[:, part * p : (part + 1) * p], rows[:, part * D2 : (part + 1) * D2])
                first += len(u)
    return Statistics(
        moments=tuple(tuple(part.result() for part in parts) for parts in accumulators),
        covariances=tuple(c.result() for c in covariances if c is not None),
    )


def pre_activations(session: Session, batches: Batches, site: Site, layer: CandidateLayer) -> Covariance:
    """The moments of x = W1·t + b1 alone."""
    found = CovarianceAccumulator(len(layer.b1))
    for _, tensors in capture(session, batches):
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            x, _ = new_layer(layer, computable(tensors[site.tensor]))
        found.update(channel_rows(x, output_channel_axis(layer)).cpu())
    return found.result()


def scale(session: Session, batches: Batches, site: Site) -> float:
    """The root mean square of the site's tensor, or a tenth of its largest value if that is more; 1 if it is 0."""
    squares, count, largest = 0.0, 0, 0.0
    for _, tensors in capture(session, batches):
        t = computable(tensors[site.tensor]).double()
        squares, count = squares + float(t.square().sum()), count + t.numel()
        largest = max(largest, float(t.abs().max()) if t.numel() else 0.0)
    found = max((squares / max(count, 1)) ** 0.5, largest / 10)
    return found if found > 0 and math.isfinite(found) else 1.0


def targets(readers: Sequence[Reader], group: ReaderGroup, tensors: dict[str, Tensor]) -> Tensor:
    """Outputs of a group's readers as rows (n, ΣD2), side by side within each group of a grouped convolution."""
    ys = [target_rows(computable(tensors[readers[m].output]), group.geometry) for m in group.members]
    if len(ys) == 1:
        return ys[0]
    parts = group.geometry.groups
    return torch.cat([y.reshape(len(y), parts, -1) for y in ys], dim=2).reshape(len(ys[0]), -1)


def computable(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 are stored, not computed in."""
    return tensor.to(torch.float32) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
