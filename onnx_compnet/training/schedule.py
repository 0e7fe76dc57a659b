"""The learning rate as a function of the step: closed forms, so that nothing needs to be saved.

With t the share of the run that is over, after the warm-up::

    constant   1
    cosine     (1 + cos πt) / 2
    step       γ^⌊epoch / step_epochs⌋
    one-cycle  cos-shaped from 1/25 up to 1 in the first 30 % of the steps, and down to 1/250,000 (Smith & Topin 2017,
               the defaults of torch's OneCycleLR; it takes no other warm-up)

In the warm-up of w steps, step i (from 0) has the share (i + 1) / (w + 1) of the first rate after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_RISE, _START, _END = 0.3, 1 / 25, 1 / 25e4


@dataclass(frozen=True)
class Schedule:
    """``kind`` over ``epochs`` of ``steps`` (optimiser steps an epoch), ``max_steps`` in all at most.

    ``epochs`` or ``max_steps`` may be None, not both. ``warmup`` is a share of all steps.
    """

    kind: str
    epochs: int | None
    steps: int
    warmup: float = 0.0
    step_epochs: int | None = None
    gamma: float = 0.1
    max_steps: int | None = None

    @property
    def total(self) -> int:
        """Optimiser steps in all."""
        ends = (None if self.epochs is None else self.epochs * self.steps, self.max_steps)
        return min(end for end in ends if end is not None)

    @property
    def passes(self) -> int:
        """Epochs that are begun."""
        return math.ceil(self.total / self.steps)

    def steps_of(self, epoch: int) -> int:
        """Optimiser steps of ``epoch``, which counts from 1; the last one may be cut short."""
        return min(self.steps, self.total - (epoch - 1) * self.steps)

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied by at optimiser step ``step``, 0 ≤ step < total."""
        total = self.total
        if self.kind == "one-cycle":
            return _one_cycle(step, total)
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / (warm + 1) * self._after(warm, warm, total)
        return self._after(step, warm, total)

    def _after(self, step: int, warm: int, total: int) -> float:
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        if self.kind == "step":
            every = self.step_epochs or max(1, math.ceil(self.passes / 3))
            return float(self.gamma ** (step // self.steps // every))
        return 1.0


def _one_cycle(step: int, total: int) -> float:
    top = _RISE * total - 1
    if step <= top:
        return _between(_START, 1.0, step / top if top > 0 else 1.0)
    return _between(1.0, _END, (step - top) / (total - 1 - top))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))
