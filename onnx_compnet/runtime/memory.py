"""Samples that need no file: arrays in memory, random draws, a torch DataLoader's data set."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler, Subset
from torch.utils.data import SubsetRandomSampler as SubsetSampler

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.base import Chunk, SampleSource, rows_per_chunk
from onnx_compnet.runtime.feeds import as_arrays, as_numpy
from onnx_compnet.runtime.layout import Layout, arrange, fits, known_names, match_names, require_fit, shown
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.prepare import AnyArray, check_dtype, is_float

log = logging.getLogger(__name__)

RANDOM_SAMPLES = 256
_BLOCK = 8  # samples a random draw makes at once: a sample's values depend on nothing but its number


class DictSource(SampleSource):
    """Arrays by input name, as they are: nothing is copied but what a batch takes."""

    def __init__(self, data: Mapping[str, Any], inputs: Sequence[TensorSpec], options: DataOptions) -> None:
        super().__init__(inputs, options, "the dict of arrays", "arrays")
        keys = match_names(data, inputs, self.name)
        self._arrays = {name: as_numpy(data[key], name, self.name) for name, key in keys.items()}
        for spec in self.inputs:
            check_dtype(self._arrays[spec.name].dtype, spec, self.transforms.get(spec.name), self.name)
        shapes = {name: array.shape for name, array in self._arrays.items()}
        layout = arrange(shapes, self.inputs, self.batch_axis, self.name)
        self.set_layout(layout, layout.n, self._arrays)

    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """Views of the arrays."""
        n = len(wanted)
        step = rows_per_chunk({name: (self._arrays[name].nbytes, n) for name in self.axes})
        for start in range(0, n, step):
            stop = min(start + step, n)
            if wanted[start:stop].any():
                cuts = {
                    name: (slice(None),) * axis + (slice(start, stop),) for name, axis in self.axes.items()
                }
                yield Chunk(
                    np.arange(start, stop), {name: self._arrays[name][cut] for name, cut in cuts.items()}
                )


class RandomSource(SampleSource):
    """Seeded draws in the declared shapes: normal floats, small integers.

    The samples' axis is the first input's first one; other inputs have it where they declare the same
    symbol, or a free (for a fixed batch: the same) first axis; the rest are constants. Raises UsageError for
    a free dimension that ``options.shapes`` does not give, DataError for inputs that take no numbers.
    """

    def __init__(self, inputs: Sequence[TensorSpec], options: DataOptions, n: int | None) -> None:
        super().__init__(inputs, options, "random data", "random data", is_random=True)
        known_names(options.shapes, inputs, "--shape")
        for spec in self.inputs:
            if spec.dtype == "" or (not is_float(spec.dtype) and np.dtype(spec.dtype).kind not in "biu"):
                raise DataError(
                    f"input {spec.name!r} takes no numbers, so no random data can be made: pass data"
                )
        axes = self._axes()
        self._shapes = {spec.name: self._shape(spec, axes.get(spec.name)) for spec in self.inputs}
        constants = {
            s.name: self._draw(s, 0, self._shapes[s.name]) for s in self.inputs if s.name not in axes
        }
        count = RANDOM_SAMPLES if n is None else n
        self.set_layout(Layout(axes, tuple(constants), count), count, constants)
        if n is None and self.fixed_batch is not None and count < 8 * self.fixed_batch:
            self.n_samples = 8 * self.fixed_batch  # enough for both sides of a split

    def _axes(self) -> dict[str, int]:
        lead = next(
            (spec for spec in self.inputs if spec.shape != () and self._says(spec) != "constant"), None
        )
        if lead is None:
            raise DataError("the model's inputs have no axis for samples: random data can't vary, pass data")
        for spec in self.inputs:
            axis, rank = self.batch_axis.get(spec.name), None if spec.shape is None else len(spec.shape)
            if axis is not None and rank is not None and axis >= rank:
                raise UsageError(
                    f"--batch-axis {spec.name}={axis}: the model declares {shown(spec.shape or ())}"
                )
        axes: dict[str, int] = {}
        declared = (
            lead.shape if lead.shape is not None else (None,) * (1 + (self.batch_axis.get(lead.name) or 0))
        )
        batch = declared[self.batch_axis.get(lead.name) or 0]
        for spec in self.inputs:
            shape = spec.shape if spec.shape is not None else (None,)
            says = self._says(spec)
            if says == "axis":
                axes[spec.name] = self.batch_axis[spec.name] or 0
            elif says == "nothing" and shape:
                if isinstance(batch, str) and batch in shape:
                    axes[spec.name] = shape.index(batch)
                elif shape[0] == batch or not isinstance(shape[0], int):
                    axes[spec.name] = 0
        return axes

    def _says(self, spec: TensorSpec) -> str:
        if spec.name not in self.batch_axis:
            return "nothing"
        return "constant" if self.batch_axis[spec.name] is None else "axis"

    def _shape(self, spec: TensorSpec, axis: int | None) -> tuple[int, ...]:
        """The whole shape; what it says on the samples' axis is not used."""
        given = self.options.shapes.get(spec.name)
        if given is not None:
            shape = tuple(int(size) for size in given)
            if min(shape, default=1) < 1 or not fits(shape, spec.shape, axis):
                raise UsageError(
                    f"--shape {spec.name}={','.join(map(str, shape))} does not fit: the model declares "
                    f"{shown(spec.shape or ())}"
                )
            return shape
        free = spec.shape is None or any(
            not isinstance(dim, int) for k, dim in enumerate(spec.shape) if k != axis
        )
        if spec.shape is None or free:
            declared = "no shape" if spec.shape is None else shown(spec.shape)
            raise UsageError(
                f"random data needs the shape of input {spec.name!r}, which declares {declared}: say "
                f"--shape {spec.name}=1,3,224,224 with its own sizes (Python: shape={{{spec.name!r}: (…)}})"
            )
        return tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)

    def _draw(self, spec: TensorSpec, block: int, shape: tuple[int, ...]) -> AnyArray:
        rng = np.random.default_rng([self.options.seed, zlib.crc32(spec.name.encode()), block])
        if is_float(spec.dtype):
            return rng.standard_normal(shape, dtype=np.float32)
        dtype = np.dtype(spec.dtype)
        name = spec.name.lower()
        if dtype.kind == "b" or "mask" in name or "type" in name:
            return rng.integers(0, 2, shape).astype(dtype)
        return rng.integers(0, 256 if dtype == np.uint8 else 10, shape).astype(dtype)

    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """Blocks of draws."""
        n = len(wanted)
        for block, start in enumerate(range(0, n, _BLOCK)):
            stop = min(start + _BLOCK, n)
            if not wanted[start:stop].any():
                continue
            arrays = {}
            for spec in self.inputs:
                if spec.name in self.axes:
                    axis, shape = self.axes[spec.name], self._shapes[spec.name]
                    drawn = self._draw(spec, block, (_BLOCK, *shape[:axis], *shape[axis + 1 :]))
                    arrays[spec.name] = np.moveaxis(drawn[: stop - start], 0, axis)
            yield Chunk(np.arange(start, stop), arrays)


class _Order(Sampler[int]):
    """The wanted samples of a data set, in order."""

    def __init__(self, wanted: NDArray[np.bool_]) -> None:
        self._wanted = wanted

    def __iter__(self) -> Iterator[int]:
        return (index for index, taken in enumerate(self._wanted) if taken)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._wanted))


class LoaderSource(SampleSource):
    """A DataLoader's data set, read in its own order, so that one that shuffles gives the same each pass."""

    def __init__(
        self, loader: DataLoader[Any], dataset: Any, inputs: Sequence[TensorSpec], options: DataOptions
    ):
        super().__init__(inputs, options, "the DataLoader", "torch DataLoader")
        self._loader, self._dataset = loader, dataset
        n = len(dataset)
        if n == 0:
            raise DataError("the DataLoader's data set is empty: nothing can be measured without data")
        first = np.arange(n) < (loader.batch_size or 1)
        arrays = next(iter(self._batches(first)))
        size = int(np.count_nonzero(first))
        axes, constants = {}, []
        for spec in self.inputs:
            axis = self.batch_axis.get(spec.name, 0)
            check_dtype(arrays[spec.name].dtype, spec, self.transforms.get(spec.name), self.name)
            if axis is None:
                constants.append(spec.name)
                continue
            axes[spec.name] = axis
            self._require_size(arrays[spec.name], spec, axis, size)
        self.set_layout(Layout(axes, tuple(constants), n), n, arrays)

    def _require_size(self, array: AnyArray, spec: TensorSpec, axis: int, size: int) -> None:
        require_fit(array.shape, spec, axis, self.name)
        if axis >= array.ndim or array.shape[axis] != size:
            raise DataError(
                f"input {spec.name!r} of the DataLoader has the shape {shown(array.shape)} in a batch of "
                f"{size} samples: say its batch axis (--batch-axis NAME=K), or pass a function "
                "that yields feeds"
            )

    def _batches(self, wanted: NDArray[np.bool_]) -> Iterable[dict[str, AnyArray]]:
        old = self._loader
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=old.batch_size,
            sampler=_Order(wanted),
            collate_fn=old.collate_fn,
            num_workers=old.num_workers,
            worker_init_fn=old.worker_init_fn,
            timeout=old.timeout,
            multiprocessing_context=old.multiprocessing_context,
            prefetch_factor=old.prefetch_factor,
            generator=torch.Generator().manual_seed(0),  # leaves the global one alone
        )
        return (as_arrays(item, self.inputs, self.name) for item in loader)

    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """The wanted samples alone, in batches of the loader's size."""
        order = iter(_Order(wanted))
        left = int(np.count_nonzero(wanted))
        for arrays in self._batches(wanted):
            size = min(self._loader.batch_size or 1, left)
            left -= size
            for spec in self.inputs:
                if spec.name in self.axes:
                    self._require_size(arrays[spec.name], spec, self.axes[spec.name], size)
            yield Chunk(np.fromiter((next(order) for _ in range(size)), np.int64, size), arrays)


def sequential(loader: DataLoader[Any]) -> Any | None:
    """The data set that ``loader`` goes over, all of it and in some order; None if it can't be reordered."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return None
    sampler = loader.sampler
    if isinstance(sampler, (SequentialSampler, RandomSampler)):
        return loader.dataset
    if isinstance(sampler, SubsetSampler):
        return Subset(loader.dataset, sorted(sampler.indices))
    return None
