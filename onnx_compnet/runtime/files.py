"""Samples in files (.npz, .npy, a folder of shards), read anew at each pass, a few megabytes at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.base import Chunk, SampleSource, rows_per_chunk
from onnx_compnet.runtime.layout import Layout, arrange, match_names, require_fit, shown
from onnx_compnet.runtime.npz import ArrayFile, NpyStream
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.prepare import AnyArray, check_dtype

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Shard:
    """A file, input → key, and how many samples it has."""

    file: ArrayFile
    keys: dict[str, str]
    n: int


class FileSource(SampleSource):
    """One or more files with the same arrays; their samples one after another."""

    def __init__(
        self, paths: Sequence[Path], inputs: Sequence[TensorSpec], options: DataOptions, name: str, kind: str
    ) -> None:
        super().__init__(inputs, options, name, kind)
        self._shards: list[_Shard] = []
        layout: Layout | None = None
        constants: dict[str, AnyArray] = {}
        for path in paths:
            file = ArrayFile(path)
            keys = self._keys(file)
            with file.streams(keys.values()) as opened:
                streams = {input_: opened[key] for input_, key in keys.items()}
                for spec in self.inputs:
                    stream = streams[spec.name]
                    check_dtype(stream.dtype, spec, self.transforms.get(spec.name), path.name)
                shapes = {input_: stream.shape for input_, stream in streams.items()}
                if layout is None:
                    layout = arrange(shapes, self.inputs, self.batch_axis, path.name)
                    constants = {key: streams[key].whole().copy() for key in layout.constants}
                    n = layout.n
                else:
                    n = self._count(shapes, layout, path.name)
                    _require_same(streams, constants, path.name)
            self._shards.append(_Shard(file, keys, n))
        if layout is None:
            raise DataError(f"{name} has no .npz or .npy files: nothing can be read from it")
        self.set_layout(layout, sum(shard.n for shard in self._shards), constants)

    def _keys(self, file: ArrayFile) -> dict[str, str]:
        if file.zipped:
            return match_names(file.keys, self.inputs, file.path.name)
        if len(self.inputs) != 1:
            expected = ", ".join(repr(spec.name) for spec in self.inputs)
            raise DataError(
                f"{file.path.name} is one array and {len(self.inputs)} are needed: save "
                f"an .npz with {expected}"
            )
        return {self.inputs[0].name: ""}

    def _count(self, shapes: Mapping[str, tuple[int, ...]], layout: Layout, where: str) -> int:
        """The samples of a further shard, laid out as the first one is."""
        for spec in self.inputs:
            require_fit(shapes[spec.name], spec, layout.axes.get(spec.name), where)
        counts = {
            name: shapes[name][axis] if axis < len(shapes[name]) else -1 for name, axis in layout.axes.items()
        }
        if len(set(counts.values())) > 1 or -1 in counts.values():
            raise DataError(f"{where} has different numbers of samples for its inputs: {counts}")
        return next(iter(counts.values()))

    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """The samples of one shard after the other."""
        offset = 0
        for shard in self._shards:
            part = wanted[offset : offset + shard.n]
            if part.any():
                yield from self._shard_chunks(shard, part, offset)
            offset += shard.n

    def _shard_chunks(self, shard: _Shard, wanted: NDArray[np.bool_], offset: int) -> Iterator[Chunk]:
        with shard.file.streams([shard.keys[name] for name in self.axes]) as opened:
            streams = {name: opened[shard.keys[name]] for name in self.axes}
            self._require_unchanged(shard, streams)
            whole = {name: streams[name].whole() for name, axis in self.axes.items() if axis != 0}
            step = rows_per_chunk({name: (_bytes(stream), shard.n) for name, stream in streams.items()})
            for start in range(0, shard.n, step):
                stop = min(start + step, shard.n)
                rows = {name: stream for name, stream in streams.items() if name not in whole}
                if not wanted[start:stop].any():
                    for stream in rows.values():
                        stream.skip(stop - start)
                    continue
                arrays = {name: stream.read(stop - start) for name, stream in rows.items()}
                for name, array in whole.items():
                    arrays[name] = np.moveaxis(
                        np.moveaxis(array, self.axes[name], 0)[start:stop], 0, self.axes[name]
                    )
                yield Chunk(np.arange(offset + start, offset + stop), arrays)
            for name, stream in streams.items():
                if name not in whole:
                    stream.finish()

    def _require_unchanged(self, shard: _Shard, streams: Mapping[str, NpyStream]) -> None:
        for name, axis in self.axes.items():
            shape = streams[name].shape
            if axis >= len(shape) or shape[axis] != shard.n:
                raise DataError(f"{shard.file.path} changed while it was in use: run again")


def _bytes(stream: NpyStream) -> int:
    return int(stream.row_bytes * (stream.shape[0] if stream.shape else 1))


def _require_same(streams: Mapping[str, NpyStream], constants: Mapping[str, AnyArray], where: str) -> None:
    for name, constant in constants.items():
        if not np.array_equal(streams[name].whole(), constant):
            raise DataError(
                f"input {name!r} of {where} differs from that of the first shard, and it has no axis of "
                f"samples (shape {shown(constant.shape)}): constants must be the same in all shards"
            )


def shard_paths(folder: Path) -> list[Path]:
    """The .npz and .npy files of ``folder`` in name order; hidden ones are left out."""
    entries = sorted(path for path in folder.iterdir() if path.is_file())
    shards = [p for p in entries if p.suffix.lower() in (".npz", ".npy") and not p.name.startswith(".")]
    others = [path.name for path in entries if path not in shards]
    if others:
        log.debug("%s: not used: %s", folder, ", ".join(others))
    return shards
