"""Ops that order, find and select elements: as ONNX defines them, where onnx2torch's converters say otherwise.

Its CumSum runs backwards unless told not to, its NonZero is transposed, its TopK leaves the order of equal elements
open, its NonMaxSuppression takes boxes with their corners in one order only, and a threshold that is not given for 0.
GatherElements takes no negative places there, GatherND no batch.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of x up to each place along an axis, from its end if ``reverse``, without that place if ``exclusive``."""
    along = int(axis)
    ordered = x.flip(along) if reverse else x
    total = torch.cumsum(ordered, along, dtype=x.dtype)
    if exclusive:
        total = torch.zeros_like(total).slice_scatter(
            total.narrow(along, 0, max(x.shape[along] - 1, 0)), along, 1
        )
    return total.flip(along) if reverse else total


def nonzero(x: Tensor) -> Tensor:
    """The places of what is not 0, (rank, number)."""
    return torch.nonzero(x).T.contiguous()


def top_k(
    x: Tensor, given: Tensor | None = None, *, axis: int = -1, largest: int = 1, k: int = 0
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) elements along an axis in order, and where they were; of equal ones the first."""
    count = k if given is None else int(given)
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values`` = (off, on), on at the indices along a new axis of that depth; none for an index beyond it."""
    count, at = int(depth), indices.long()
    places = torch.arange(count, device=at.device)
    hot = torch.where(at < 0, at + count, at).unsqueeze(-1) == places
    return torch.where(hot.movedim(-1, axis), values[1], values[0])


def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Of ``data`` those places along an axis."""
    return data.gather(axis, torch.where(indices < 0, indices + data.shape[axis], indices).long())


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Of ``data`` the places that the last axis of ``indices`` names, within each of the first axes."""
    rank = indices.ndim - 1
    batch = [
        torch.arange(n, device=data.device).reshape([-1 if i == axis else 1 for i in range(rank)])
        for axis, n in enumerate(data.shape[:batch_dims])
    ]
    return data[(*batch, *indices.long().unbind(-1))]


def non_max_suppression(
    boxes: Tensor, scores: Tensor, most: Tensor | None = None, overlap: Tensor | None = None,
    least: Tensor | None = None, *, center_point_box: int = 0,
) -> Tensor:  # fmt: skip
    """Rows (sample, class, box) of the boxes that are kept, at most ``most`` a class, the best scores first.

    ``boxes`` (N, B, 4): two opposite corners (y, x), or with ``center_point_box`` the centre (x, y) and the size;
    ``scores`` (N, C, B). A box goes that shares more than ``overlap`` (IoU) with a better one, or does not score more
    than ``least``.
    """
    first, second = boxes.detach()[..., :2], boxes.detach()[..., 2:]
    if center_point_box:
        first, second = first - second / 2, first + second / 2
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    area = (high - low).prod(-1)
    count, limit = 0 if most is None else int(most), 0.0 if overlap is None else float(overlap)
    found = []
    for n, group in product(range(len(boxes)), range(scores.shape[1])):
        score = scores[n, group]
        left = torch.argsort(score, descending=True, stable=True)
        if least is not None:
            left = left[score[left] > float(least)]
        for _ in range(count):
            if not len(left):
                break
            best, left = left[0], left[1:]
            found.append([n, group, int(best)])
            sides = torch.minimum(high[n, best], high[n, left]) - torch.maximum(low[n, best], low[n, left])
            shared = sides.clamp_min(0).prod(-1)
            left = left[shared <= limit * (area[n, best] + area[n, left] - shared)]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)
