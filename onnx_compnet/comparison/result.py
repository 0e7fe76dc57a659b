"""What a comparison hands back: plain figures, by row and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx_compnet.graph.sites import Site


@dataclass(frozen=True)
class Training:
    """What fine-tuning made of a model: figures of the written ONNX models in onnxruntime, on the validation data.

    ``before`` and ``accuracy`` are None for labels that are no classes. ``path`` is the tuned model's, if it was
    kept.
    """

    before: float | None
    accuracy: float | None
    loss: float
    best_epoch: int
    samples: int
    val_samples: int
    data: str
    val: str
    loss_kind: str
    seconds: float
    warnings: tuple[str, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class MethodRun:
    """One row with one seed.

    ``flops`` are those of one sample's forward pass. ``site_error``, ``rel_error`` and ``agreement`` are measured on
    held-out samples, the worst reader and the worst output; None for the parent. ``path`` is the child's, if it was
    kept.
    """

    seed: int
    width: int | None
    candidates: int | None
    parameters: int
    flops: int
    site_error: float | None = None
    rel_error: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    path: str | None = None
    training: Training | None = None


@dataclass(frozen=True)
class MethodRow:
    """A method with all seeds; ``failures`` maps those that came to nothing, or to no training, to the reason."""

    name: str
    method: str | None
    runs: tuple[MethodRun, ...]
    failures: Mapping[int, str]

    def values(self, figure: Callable[[MethodRun], float | None]) -> list[float]:
        """A figure of each run that has it."""
        return [value for run in self.runs if (value := figure(run)) is not None]

    def mean(self, figure: Callable[[MethodRun], float | None]) -> float | None:
        """The mean over the runs that have the figure."""
        values = self.values(figure)
        return math.fsum(values) / len(values) if values else None

    def spread(self, figure: Callable[[MethodRun], float | None]) -> float | None:
        """The sample standard deviation; None for fewer than two."""
        values = self.values(figure)
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class MethodComparison:
    """All rows at one site, the parent first, and what they were measured on."""

    rows: tuple[MethodRow, ...]
    site: Site
    seeds: tuple[int, ...]
    epochs: int | None
    data: str
    random_data: bool
    samples_fitted: int
    samples_held_out: int
    device: str
    parent_sha256: str
    options: Mapping[str, Any]
    """what was set for growing and training, by name"""

    def __getitem__(self, name: str) -> MethodRow:
        """The row of that name; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(row.name == name for row in self.rows)
