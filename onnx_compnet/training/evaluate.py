"""Loss and accuracy of whatever computes outputs from feeds: the torch module, or an ONNX model in onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from onnx_compnet.training.losses import Objective, Outputs
from onnx_compnet.training.parallel import Group
from onnx_compnet.training.samples import Rows, Samples

Model: TypeAlias = Callable[[Mapping[str, np.ndarray[Any, Any]]], Outputs]


@dataclass(frozen=True)
class Score:
    """How well a model does on ``samples`` samples.

    ``accuracy``: share of labels met, None without labels (and for mse). ``agreement``: share of rows with the
    teacher's largest score, None without a teacher (or scores).
    """

    loss: float
    accuracy: float | None
    agreement: float | None
    samples: int

    @property
    def finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss)


def batches(rows: Rows, size: int, *, whole: bool) -> Iterator[Rows]:
    """``rows`` in pieces of ``size``; the last one may be smaller unless all must be ``whole``."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        if len(piece) == size or not whole:
            yield piece


def evaluate(
    model: Model, samples: Samples, size: int, objective: Objective, teacher: Model | None, group: Group
) -> Score:
    """Run ``model`` over all samples, ``size`` at a time; each process of the group takes its part of each batch."""
    # loss and its terms, hits and labels, equal rows and rows, samples
    sums = [0.0] * 7
    for rows in batches(np.arange(samples.n), size, whole=samples.fixed_batch is not None):
        mine = group.rows(rows)
        if not len(mine):
            continue
        feeds, stored = samples.batch(mine)
        with torch.no_grad():
            outputs = model(feeds)
            goal = None if teacher is None else teacher(feeds)
            device = outputs[objective.outputs[0]].device
            labels = None if stored is None else torch.from_numpy(np.array(stored)).to(device)
            total, terms = objective(outputs, labels, goal)
            hits = (
                (0, 0) if labels is None or not objective.classifies else objective.correct(outputs, labels)
            )
            rows_met = (0, 0) if goal is None else objective.agreeing(outputs, goal)
        found = (float(total), terms, *hits, *rows_met, len(mine))
        sums = [a + b for a, b in zip(sums, found, strict=True)]
    loss, terms_all, hit, labelled, equal, compared, n = group.total(sums)
    return Score(
        loss=loss / terms_all if terms_all else math.nan,
        accuracy=hit / labelled if labelled else None,
        agreement=equal / compared if compared else None,
        samples=int(n),
    )
