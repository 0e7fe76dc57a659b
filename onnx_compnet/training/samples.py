"""Samples that training takes in any order: held in memory as they are stored, prepared batch by batch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import LabelSpec, TensorSpec
from onnx_compnet.runtime.base import Chunk, FeedSource, SampleSource, checksum
from onnx_compnet.runtime.memory import DictSource
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.sources import open_data
from onnx_compnet.training.augment import Augmentation

Array = np.ndarray[Any, Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples: ``arrays`` as stored, with the labels under the name ``labels`` (None: there are none).

    ``numbers`` (int64, one a sample) are theirs in the source, for messages.
    """

    source: SampleSource
    arrays: dict[str, Array]
    labels: str | None
    numbers: Rows

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.numbers)

    @property
    def name(self) -> str:
        """How messages call the data."""
        return self.source.name

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on."""
        return self.source.fixed_batch

    def checksum(self) -> int:
        """CRC-32 of all arrays."""
        return zlib.crc32(repr(self.n).encode(), checksum(self.arrays))

    def all_labels(self) -> Array:
        """The labels of all samples, as stored. There must be some."""
        assert self.labels is not None
        return self.arrays[self.labels]

    def batch(
        self, rows: Rows, augmentation: Augmentation | None = None, drawn: Array | None = None
    ) -> tuple[dict[str, Array], Array | None]:
        """The feeds of these samples as the model takes them, and their labels. Raises DataError.

        ``drawn``: what ``augmentation`` does to each of them.
        """
        axes = self.source.axes
        taken = {name: np.take(array, rows, axis=axes[name]) for name, array in self.arrays.items()}
        if augmentation is not None and drawn is not None:
            for name in augmentation.inputs:
                taken[name] = augmentation.apply(taken[name], drawn)
        feeds: dict[str, Array] = self.source.prepare(Chunk(self.numbers[rows], taken), np.arange(len(rows)))
        labels = None if self.labels is None else _numbers(feeds.pop(self.labels))
        own = [spec.name for spec in self.source.inputs if spec.name != self.labels]
        return {name: feeds[name] if name in feeds else self.source.constants[name] for name in own}, labels

    def images(self) -> tuple[str, ...]:
        """The float inputs that are stored as (N, C, H, W)."""
        specs = {spec.name: spec for spec in self.source.inputs}
        return tuple(
            name
            for name, array in self.arrays.items()
            if name != self.labels and array.ndim == 4 and specs[name].dtype.startswith(("float", "bfloat"))
        )

    def require_like(self, other: Samples) -> None:
        """Raise DataError unless both have arrays of the same shape, sample by sample."""
        for name, array in self.arrays.items():
            axis = self.source.axes[name]
            ours, theirs = (np.delete(a.shape, axis).tolist() for a in (array, other.arrays[name]))
            if ours != theirs or axis != other.source.axes[name]:
                raise DataError(
                    f"the arrays {name!r} of {self.name} have the shape {ours} a sample, those of {other.name} "
                    f"{theirs}: validation data must look like the training data"
                )

    def part(self, rows: Rows) -> Samples:
        """Some of the samples, as samples of their own; ``rows`` are in ascending order."""
        if len(rows) == self.n:
            return self
        axes = self.source.axes
        arrays = {name: np.take(array, rows, axis=axes[name]) for name, array in self.arrays.items()}
        return Samples(self.source, arrays, self.labels, self.numbers[rows])


def read_samples(
    data: Any,
    inputs: Sequence[TensorSpec],
    options: DataOptions,
    labels: str | None,
    *,
    option: str = "--data",
) -> Samples:
    """All samples of ``data`` (whatever ``open_data`` takes), with the array ``labels`` if that is not None.

    Raises DataError for data that is missing or unfit, UsageError for arguments.
    """
    if data is None:
        raise UsageError(f"finetune needs samples: {option} FILE.npz (or a folder, FILE.py:function)")
    if labels is not None and labels in [spec.name for spec in inputs]:
        raise UsageError(f"{labels!r} is an input of the model: name the array of the labels by --labels")
    if labels is not None and isinstance(data, str) and data.partition(":")[0] == "random":
        raise UsageError(
            f"{option} {data} has no labels: give --teacher PARENT, whose outputs are learned then"
        )
    wanted = [*inputs, *([] if labels is None else [LabelSpec(labels, "", None)])]
    source = open_data(data, wanted, options)
    if isinstance(source, FeedSource):
        plain = DataOptions(batch_axis=options.batch_axis)
        source = DictSource(_joined(source), wanted, plain)
    assert isinstance(source, SampleSource)
    if labels is not None and source.axes.get(labels) != 0:
        raise DataError(
            f"the labels {labels!r} of {source.name} must have one entry a sample, on their first axis"
        )
    n = source.n_samples or 0
    chunks = list(source.chunks(np.ones(n, dtype=np.bool_)))
    if not chunks:
        raise DataError(f"{source.name} has no samples")
    arrays = {
        name: np.concatenate([chunk.arrays[name] for chunk in chunks], axis=axis)
        for name, axis in source.axes.items()
    }
    return Samples(source, arrays, labels, np.arange(n))


def _numbers(labels: Array) -> Array:
    """Labels in a type that torch computes with: int64, or the float that they are."""
    return labels.astype(np.int64) if labels.dtype.kind in "biu" else labels


def _joined(source: FeedSource) -> dict[str, Array]:
    """The feeds of a function, one after another, as arrays."""
    feeds = [feed.arrays for feed in source.feeds()]
    if not feeds:
        raise DataError(f"{source.name} yields no samples: nothing can be trained without data")
    joined = {}
    for name, first in feeds[0].items():
        axis = source.batch_axis.get(name, 0)
        if axis is None or first.ndim == 0:
            joined[name] = first
            continue
        try:
            joined[name] = np.concatenate([feed[name] for feed in feeds], axis=axis)
        except ValueError as error:
            raise DataError(
                f"the feeds of {source.name} have arrays {name!r} of different shapes: training mixes samples, "
                "so all must have one shape"
            ) from error
    return joined
