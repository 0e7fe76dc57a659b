"""What a source of data is: samples in order, or feeds in order. Splitting and batching happen elsewhere."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.layout import Layout, fixed_batch, known_names
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.prepare import AnyArray, prepare, transforms

CHUNK_BYTES = 2**22  # what is read at once: large enough for speed, small beside any model

UNSTABLE = "it yields different samples at each pass, which would mix fitted and held-out ones: fix its seed"


class Source(ABC):
    """Data for a model's inputs, before it is split and batched; it can be passed over again and again.

    ``n_samples`` is None where only a pass tells; ``description`` is for reports; ``is_random`` marks data
    that means nothing; ``inputs`` are the model's, ``options`` how the data is read.
    """

    def __init__(self, inputs: Sequence[TensorSpec], options: DataOptions, name: str) -> None:
        self.inputs = tuple(inputs)
        self.options = options
        self.name = name  # how messages call it
        self.is_random = False
        self.n_samples: int | None = None
        self.batch_axis = options.axes()
        self.transforms = transforms(inputs, options)
        known_names(self.batch_axis, inputs, "--batch-axis")

    @property
    @abstractmethod
    def description(self) -> str:
        """One line: the kind, the name, how many samples."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive samples as they are stored: ``arrays`` by input, ``indices`` (int64) their numbers."""

    indices: NDArray[np.int64]
    arrays: Mapping[str, AnyArray]


class SampleSource(Source):
    """Data whose n samples are known and lie along one axis of each array (``axes``).

    ``constants`` (as the model takes them) go with every batch; ``fixed_batch`` is the batch size that the
    model insists on, or None.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        options: DataOptions,
        name: str,
        kind: str,
        is_random: bool = False,
    ) -> None:
        super().__init__(inputs, options, name)
        self._kind = kind
        self.is_random = is_random
        self.axes: dict[str, int] = {}
        self.constants: dict[str, AnyArray] = {}
        self.n_samples = 0
        self.fixed_batch: int | None = None

    def set_layout(self, layout: Layout, n: int, constants: Mapping[str, AnyArray]) -> None:
        """Say what was found; ``constants`` as they are stored. To be called once, before any pass."""
        self.axes, self.n_samples = layout.axes, n
        self.constants = {
            spec.name: prepare(
                constants[spec.name], spec, self.transforms.get(spec.name), None, None, self.name
            ).copy()
            for spec in self.inputs
            if spec.name in layout.constants
        }
        self.fixed_batch = fixed_batch(self.inputs, layout.axes, self.name)

    @property
    def description(self) -> str:
        """One line: the kind, the name, how many samples."""
        return f"{self._kind}, {self.n_samples} samples"

    @abstractmethod
    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """All wanted samples in ascending order, perhaps among others; ``wanted`` has one entry a sample."""

    def prepare(self, chunk: Chunk, rows: NDArray[np.intp]) -> dict[str, AnyArray]:
        """The given rows of a chunk as the model takes them. Raises DataError."""
        indices = chunk.indices[rows]
        return {
            spec.name: prepare(
                np.take(chunk.arrays[spec.name], rows, axis=self.axes[spec.name]),
                spec,
                self.transforms.get(spec.name),
                self.axes[spec.name],
                indices,
                self.name,
            )
            for spec in self.inputs
            if spec.name in self.axes
        }


def rows_per_chunk(arrays: Mapping[str, tuple[int, int]]) -> int:
    """How many samples to read at once; ``arrays`` maps to (bytes in all, samples)."""
    a_sample = sum(total // max(1, n) for total, n in arrays.values())
    return int(np.clip(CHUNK_BYTES // max(1, a_sample), 1, 4096))


@dataclass(frozen=True, eq=False)
class Feed:
    """One complete feed: arrays by input, how many samples it has, and the checksum of its bytes."""

    arrays: dict[str, AnyArray]
    size: int
    checksum: int


class FeedSource(Source):
    """Data that comes as complete feeds, whose number is not known before a pass.

    Every pass is compared with the passes before it, feed by feed.
    """

    def __init__(self, inputs: Sequence[TensorSpec], options: DataOptions, name: str) -> None:
        super().__init__(inputs, options, name)
        self._seen = Passes(name)

    @abstractmethod
    def raw_feeds(self) -> Iterator[dict[str, AnyArray]]:
        """The feeds of one pass, from the first one: arrays by input, as they come."""

    def feeds(self) -> Iterator[Feed]:
        """The feeds of one pass, ready for the model. Raises DataError for unfit or unstable data."""
        number, total = -1, 0
        for number, raw in enumerate(self.raw_feeds()):
            where = f"feed {number} of {self.name}"
            arrays = {
                spec.name: prepare(raw[spec.name], spec, self.transforms.get(spec.name), None, None, where)
                for spec in self.inputs
            }
            feed = Feed(arrays, self._size(arrays), checksum(arrays))
            self._seen.see(number, feed.checksum)
            total += feed.size
            yield feed
        self._seen.end(number + 1)
        self.n_samples = total

    def _size(self, arrays: Mapping[str, AnyArray]) -> int:
        """How many samples a feed has: along the batch axis of the first input that has one."""
        free: list[int] = []
        fixed: list[int] = []
        for spec in self.inputs:
            shape = arrays[spec.name].shape
            if spec.name in self.batch_axis:
                axis = self.batch_axis[spec.name]
                if axis is not None and axis < len(shape):
                    return int(shape[axis])
            elif shape:
                static = spec.shape is not None and isinstance(spec.shape[0], int)
                (fixed if static else free).append(shape[0])
        return (free or fixed or [1])[0]


class Passes:
    """The checksums of what a pass gave, 4 bytes a batch, to be compared with the next pass."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sums = array("I")
        self._complete = False

    def see(self, place: int, value: int) -> None:
        """``value`` is in this place of a pass. Raises DataError if an earlier pass had another one."""
        if place < len(self._sums):
            if self._sums[place] != value:
                raise DataError(f"{self._name}: {UNSTABLE}")
        elif self._complete:
            raise DataError(f"{self._name}: {UNSTABLE}")
        else:
            self._sums.append(value)

    def end(self, count: int) -> None:
        """A pass came to its end. Raises DataError if it is shorter than an earlier one."""
        if count < len(self._sums):
            raise DataError(f"{self._name}: {UNSTABLE}")
        self._complete = True

    @property
    def sums(self) -> bytes | None:
        """All checksums, after a complete pass."""
        return self._sums.tobytes() if self._complete else None


def checksum(arrays: Mapping[str, AnyArray]) -> int:
    """CRC-32 of the arrays' bytes, by name; whatever has no bytes (strings as objects) counts as text."""
    value = 0
    for name in sorted(arrays):
        each = arrays[name]
        if each.dtype.hasobject:
            value = zlib.crc32(repr(each.tolist()).encode(), value)
        else:
            value = zlib.crc32(np.ascontiguousarray(each).reshape(-1).view(np.uint8).data, value)
        value = zlib.crc32(repr(each.shape).encode(), value)
    return value
