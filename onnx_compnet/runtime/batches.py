"""Batches: one side of a split (or everything), to be iterated as often as needed, always the same."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.runtime.base import FeedSource, Passes, SampleSource, checksum
from onnx_compnet.runtime.options import positive
from onnx_compnet.runtime.prepare import AnyArray

log = logging.getLogger(__name__)

BATCH_SIZE: Final = 64

# What a code says of a sample or feed; a fitted one of fold f has the code FIT + f.
UNUSED: Final = 0
HELD_OUT: Final = 1
FIT: Final = 2
MOST_FOLDS: Final = 250  # codes are one byte


@dataclass(frozen=True, eq=False)
class Batch:
    """``feeds``: every input's array, as the model takes it. ``size`` samples, all of one ``fold``.

    ``indices`` (int64, ``size`` of them) number the samples within their source.
    """

    feeds: dict[str, AnyArray]
    size: int
    fold: int
    indices: NDArray[np.int64]


class Batches(ABC):
    """Re-iterable batches in a fixed order.

    ``samples``: how many a pass gives (None before the first complete pass where only that tells).
    ``dropped``: samples left out because they don't fill a batch of the size that the model fixes. Each pass
    is compared with the ones before: DataError if its samples differ.
    """

    def __init__(self, name: str, is_random: bool) -> None:
        self.name = name
        self.is_random = is_random
        self.samples: int | None = None
        self.dropped = 0
        self._passes = Passes(name)

    @property
    def length_hint(self) -> int | None:
        """How many samples a pass gives, as far as known: for progress bars."""
        return self.samples

    @property
    def fingerprint(self) -> str | None:
        """A digest of the samples' bytes, after a complete pass."""
        sums = self._passes.sums
        return None if sums is None else hashlib.sha256(sums).hexdigest()[:16]

    def __iter__(self) -> Iterator[Batch]:
        count = samples = 0
        for batch, value in self._generate():
            self._passes.see(count, value)
            count += 1
            samples += batch.size
            yield batch
        self._passes.end(count)
        self.samples = samples

    @abstractmethod
    def _generate(self) -> Iterator[tuple[Batch, int]]:
        """One pass: batches and their checksums."""


class SampleBatches(Batches):
    """The samples whose code is in [first, first + folds), gathered into batches of one fold each.

    ``codes`` (uint8) has one entry a sample. Batches come in the order of their last samples, whatever the
    pieces are that the source reads; the incomplete ones come last. Raises UsageError for a ``batch_size``
    that the model does not take, DataError if a fixed batch size leaves no batch.
    """

    def __init__(
        self, source: SampleSource, codes: NDArray[np.uint8], first: int, folds: int, batch_size: int | None
    ) -> None:
        super().__init__(source.name, source.is_random)
        self._source, self._codes, self._first, self._folds = source, codes, first, folds
        self._fixed = source.fixed_batch is not None
        self._size = _batch_size(source, batch_size)
        total = int(np.count_nonzero((codes >= first) & (codes < first + folds)))
        if self._fixed:
            self.dropped = total % self._size
        self.samples = total - self.dropped
        if self.samples == 0:
            raise DataError(
                f"{source.name} leaves {total} samples here and the model fixes a batch size of {self._size}"
                ": give more samples, or export the model with a free batch axis"
            )
        if self.dropped:
            log.warning(
                "%s: %d of %d samples are dropped, the model fixes a batch size of %d",
                *(source.name, self.dropped, total, self._size),
            )

    def _generate(self) -> Iterator[tuple[Batch, int]]:
        last = self._first + self._folds
        wanted = (self._codes >= self._first) & (self._codes < last)
        pending = [_Pending(self._source.axes) for _ in range(self._folds)]
        emitted = [0] * self._folds
        for chunk in self._source.chunks(wanted):
            codes = self._codes[chunk.indices]
            for fold in np.unique(codes[(codes >= self._first) & (codes < last)]) - self._first:
                rows = np.flatnonzero(codes == self._first + fold)
                pending[fold].add(self._source.prepare(chunk, rows), chunk.indices[rows])
            while ready := [fold for fold in range(self._folds) if pending[fold].count >= self._size]:
                fold = min(ready, key=lambda each: pending[each].index(self._size - 1))
                emitted[fold] += self._size
                yield self._batch(pending[fold].take(self._size), fold)
        if not self._fixed:
            for fold, rest in enumerate(pending):
                if rest.count:
                    yield self._batch(rest.take(rest.count), fold)
            return
        pool = _Pending(self._source.axes)
        for rest in pending:
            if rest.count:
                pool.add(*rest.take(rest.count))
        while pool.count >= self._size:
            fold = min(range(self._folds), key=lambda each: emitted[each])
            emitted[fold] += self._size
            yield self._batch(pool.take(self._size), fold)

    def _batch(self, taken: tuple[dict[str, AnyArray], NDArray[np.int64]], fold: int) -> tuple[Batch, int]:
        arrays, indices = taken
        value = checksum(arrays)
        feeds = {
            spec.name: arrays[spec.name] if spec.name in arrays else self._source.constants[spec.name]
            for spec in self._source.inputs
        }
        return Batch(feeds, len(indices), fold, indices), value


def _batch_size(source: SampleSource, asked: int | None) -> int:
    size = source.options.batch_size if asked is None else asked
    positive("--batch-size", size)
    fixed = source.fixed_batch
    if fixed is None:
        return size or BATCH_SIZE
    if size is not None and size != fixed:
        raise UsageError(
            f"--batch-size {size}: the model fixes a batch size of {fixed}; leave the option out"
        )
    return fixed


class _Pending:
    """Samples of one fold that wait for their batch: pieces of arrays, first come first served."""

    def __init__(self, axes: dict[str, int]) -> None:
        self._axes = axes
        self._pieces: deque[tuple[dict[str, AnyArray], NDArray[np.int64]]] = deque()
        self.count = 0

    def add(self, arrays: dict[str, AnyArray], indices: NDArray[np.int64]) -> None:
        """Put samples at the end."""
        self._pieces.append((arrays, indices))
        self.count += len(indices)

    def index(self, place: int) -> int:
        """The number of the sample in this place of the queue."""
        for _, indices in self._pieces:
            if place < len(indices):
                return int(indices[place])
            place -= len(indices)
        raise IndexError(place)

    def take(self, size: int) -> tuple[dict[str, AnyArray], NDArray[np.int64]]:
        """Remove the first ``size`` samples (at most ``count``)."""
        taken: list[tuple[dict[str, AnyArray], NDArray[np.int64]]] = []
        left = size
        while left:
            arrays, indices = self._pieces.popleft()
            if len(indices) > left:
                self._pieces.appendleft((self._cut(arrays, slice(left, None)), indices[left:]))
                arrays, indices = self._cut(arrays, slice(left)), indices[:left]
            taken.append((arrays, indices))
            left -= len(indices)
        self.count -= size
        result: dict[str, Any] = {}
        for name, axis in self._axes.items():
            pieces = [arrays[name] for arrays, _ in taken]
            joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)
            result[name] = np.asarray(joined, order="C")
        return result, np.concatenate([indices for _, indices in taken])

    def _cut(self, arrays: dict[str, AnyArray], rows: slice) -> dict[str, AnyArray]:
        return {name: arrays[name][(slice(None),) * axis + (rows,)] for name, axis in self._axes.items()}


class FeedBatches(Batches):
    """The feeds whose code is in [first, first + folds), each one batch, unchanged.

    ``code`` maps a feed's number to its code. The pass ends before the feed that would exceed
    ``max_samples`` (over all codes).
    """

    def __init__(
        self, source: FeedSource, code: Callable[[int], int], first: int, folds: int, max_samples: int | None
    ) -> None:
        super().__init__(source.name, source.is_random)
        self._source, self._code, self._first, self._folds, self._max = (
            source,
            code,
            first,
            folds,
            max_samples,
        )

    @property
    def length_hint(self) -> int | None:
        """Nothing before the first complete pass."""
        return self.samples

    def _generate(self) -> Iterator[tuple[Batch, int]]:
        start = 0
        for number, feed in enumerate(self._source.feeds()):
            if self._max is not None and start + feed.size > self._max:
                break
            fold = self._code(number) - self._first
            if 0 <= fold < self._folds:
                yield Batch(feed.arrays, feed.size, fold, np.arange(start, start + feed.size)), feed.checksum
            start += feed.size
        if start == 0:
            limit = "" if self._max is None else f" within --max-samples {self._max}"
            raise DataError(f"{self.name} yields no samples{limit}: nothing can be measured without data")
