"""Which samples are fitted and which are held out: by sample (or by feed), never by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.runtime.base import FeedSource, SampleSource, Source
from onnx_compnet.runtime.batches import (
    FIT,
    HELD_OUT,
    MOST_FOLDS,
    UNUSED,
    Batches,
    FeedBatches,
    SampleBatches,
)
from onnx_compnet.runtime.options import not_negative, positive

BLOCK = 20  # feeds that are permuted together


@dataclass(frozen=True)
class Split:
    """``fit``: what the layers are fitted to, in folds. ``held_out``: what errors are measured on."""

    fit: Batches
    held_out: Batches


def split(
    source: Source,
    *,
    holdout: float = 0.2,
    held_out_source: Source | None = None,
    seed: int = 0,
    max_samples: int | None = None,
    folds: int = 5,
    batch_size: int | None = None,
) -> Split:
    """Split ``source`` at random (seeded): of at most ``max_samples``, the share ``holdout`` is held out.

    Where n is known, samples are permuted and exactly round(holdout · n) of them held out, at least one on
    either side (a fixed batch size: at least one batch). Feeds are held out whole: within each block of 20
    in a random order, so that the share is exact after each block; fewer than 20 are counted first.

    With ``held_out_source`` all of ``source`` is fitted and all of the other held out, each up to
    ``max_samples``. ``max_samples`` and ``batch_size`` default to the source's options.

    Raises UsageError for bad numbers, DataError if there is too little data.
    """
    if not 0.0 < holdout < 1.0:
        raise UsageError(f"--holdout {holdout}: say a share above 0 and below 1")
    if not 1 <= folds <= MOST_FOLDS:
        raise UsageError(f"folds is {folds}: it must be between 1 and {MOST_FOLDS}")
    if held_out_source is not None:
        fit = _whole(source, folds, batch_size, max_samples, seed)
        return Split(fit, everything(held_out_source, batch_size, max_samples=max_samples, seed=seed))
    limit = _limit(source, max_samples)
    not_negative("--seed", seed)
    if isinstance(source, FeedSource):
        plan = _FeedPlan(source, holdout, folds, seed, limit)
        return Split(
            FeedBatches(source, plan.code, FIT, folds, limit),
            FeedBatches(source, plan.code, HELD_OUT, 1, limit),
        )
    assert isinstance(source, SampleSource)
    n = source.n_samples or 0
    total = n if limit is None else min(n, limit)
    if total < 2:
        raise DataError(
            f"{source.name} gives {total} sample{'' if total == 1 else 's'}: at least two are needed, one "
            "to fit and one to hold out (or pass held-out data of its own, --holdout-data)"
        )
    least = source.fixed_batch or 1
    held = round(holdout * total)
    if total >= 2 * least:
        held = min(max(held, least), total - least)
    held = min(max(held, 1), total - 1)
    codes = _codes(n, held, total - held, folds, seed)
    return Split(
        SampleBatches(source, codes, FIT, folds, batch_size),
        SampleBatches(source, codes, HELD_OUT, 1, batch_size),
    )


def everything(
    source: Source, batch_size: int | None = None, *, max_samples: int | None = None, seed: int = 0
) -> Batches:
    """All of ``source`` in one fold; with ``max_samples`` that many of them at random (feeds: the first)."""
    return _whole(source, 1, batch_size, max_samples, seed)


def _whole(source: Source, folds: int, batch_size: int | None, max_samples: int | None, seed: int) -> Batches:
    limit = _limit(source, max_samples)
    if isinstance(source, FeedSource):
        return FeedBatches(source, lambda number: FIT + number % folds, FIT, folds, limit)
    assert isinstance(source, SampleSource)
    n = source.n_samples or 0
    codes = _codes(n, 0, n if limit is None else min(n, limit), folds, seed)
    return SampleBatches(source, codes, FIT, folds, batch_size)


def _limit(source: Source, max_samples: int | None) -> int | None:
    positive("--max-samples", max_samples)
    return source.options.max_samples if max_samples is None else max_samples


def _codes(
    n: int, held: int, fitted: int, folds: int, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """n codes in random order: one byte a sample is all that is ever kept (no permutation of int64)."""
    codes = np.full(n, UNUSED, dtype=np.uint8)
    codes[:held] = HELD_OUT
    codes[held : held + fitted] = FIT
    codes[held : held + fitted] += np.resize(np.arange(folds, dtype=np.uint8), fitted)
    np.random.default_rng([seed, n]).shuffle(codes)
    return codes


class _FeedPlan:
    """Each feed's code. Looks at the first feeds once, to count them where they are fewer than a block."""

    def __init__(self, source: FeedSource, holdout: float, folds: int, seed: int, limit: int | None) -> None:
        self._holdout, self._folds, self._seed = holdout, folds, seed
        count = samples = 0
        for feed in source.feeds():
            samples += feed.size
            if limit is not None and samples > limit:
                break
            count += 1
            if count == BLOCK:
                break
        if count < 2:
            within = "" if limit is None else f" within --max-samples {limit}"
            raise DataError(
                f"{source.name} yields {count} feed{'' if count == 1 else 's'}{within}: feeds are fitted or "
                "held out whole, so at least two are needed; yield smaller ones, or pass held-out data"
            )
        self._first = count  # the feeds in block 0

    def code(self, number: int) -> int:
        """What becomes of the feed with this number."""
        block, place = divmod(number, BLOCK)
        size = self._first if block == 0 else BLOCK
        if place >= size:
            return UNUSED
        before = self._held(block * BLOCK) if block else 0
        held = self._held(block * BLOCK + size) - before
        rank = int(np.random.default_rng([self._seed, block]).permutation(size)[place])
        return HELD_OUT if rank < held else FIT + (rank - held + block) % self._folds

    def _held(self, count: int) -> int:
        """How many of the first ``count`` feeds are held out."""
        return min(max(round(self._holdout * count), 1), count - 1)
