"""The corpus's data sets as arrays: images, digits, series and patches of photographs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import CorpusError, data_paths, data_sets

Array = NDArray[Any]
BLOCK = 128  # photographs are split into fitted and held-out parts by blocks of so many pixels


def load(name: str) -> tuple[Array, Array]:
    """A data set of images, digits or series: samples and labels. Raises CorpusError.

    Images are uint8 (N, 28, 28); series float32 (N, channels, steps), with zeros behind the shorter ones.
    """
    paths = data_paths(name)
    kind = data_sets()[name].format
    if kind not in READERS:
        raise CorpusError(f"{name} has no samples of its own: cut patches from it")
    return READERS[kind](paths)


def read_idx_pairs(paths: Sequence[Path]) -> tuple[Array, Array]:
    """IDX files, images and labels in turn."""
    arrays = [read_idx(path) for path in paths]
    return np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])


def read_idx(path: Path) -> Array:
    """One gzipped IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise CorpusError(f"{path} is no IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != shape.prod():
        raise CorpusError(f"{path} is truncated: {values.size} of {shape.prod()} bytes are there")
    return values.reshape(shape)


def read_csv(paths: Sequence[Path]) -> tuple[Array, Array]:
    """Gzipped CSV: 784 pixels and a label a line."""
    rows = [np.loadtxt(gzip.decompress(path.read_bytes()).decode().splitlines(), np.float64, delimiter=",", ndmin=2)
            for path in paths]  # fmt: skip
    table = np.concatenate(rows)
    if table.shape[1] != 785:
        raise CorpusError(f"{paths[0]} has {table.shape[1]} columns, 785 were expected")
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def read_digits(paths: Sequence[Path]) -> tuple[Array, Array]:
    """A JSON file a digit: {"data": [v, …]}, 784 values from 0 to 1 an image; the label is the file's name."""
    images, labels = [], []
    for path in paths:
        values = np.array(json.loads(path.read_text())["data"], np.float64)
        if values.size % 784:
            raise CorpusError(f"{path} holds {values.size} values, no multiple of 784")
        images.append(np.round(values * 255).astype(np.uint8).reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), int(path.stem)))
    return np.concatenate(images), np.concatenate(labels)


def read_series(paths: Sequence[Path]) -> tuple[Array, Array]:
    """.ts files: a line is "channel:channel:…:label", a channel "value,value,…"; lengths differ."""
    series, labels = [], []
    for path in paths:
        lines = [line for line in path.read_text("utf-8").splitlines() if line and line[0] not in "#@"]
        for line in lines:
            *channels, label = line.split(":")
            series.append([np.array(channel.split(","), np.float32) for channel in channels])
            labels.append(int(label))
    if not series:
        raise CorpusError(f"{paths[0]} holds no series")
    steps = max(len(channel) for channels in series for channel in channels)
    samples = np.zeros((len(series), len(series[0]), steps), np.float32)
    for sample, channels in zip(samples, series, strict=True):
        for row, channel in zip(sample, channels, strict=True):
            row[: len(channel)] = channel
    return samples, np.array(labels)


READERS: dict[str, Callable[[Sequence[Path]], tuple[Array, Array]]] = {
    "idx": read_idx_pairs,
    "csv": read_csv,
    "digits": read_digits,
    "ts": read_series,
}


def patches(size: tuple[int, int], n: int, rng: np.random.Generator, *, held_out: bool) -> Array:
    """``n`` patches of the colour photographs, uint8 (N, height, width, 3).

    Blocks of 128 pixels are fitted or held out like the fields of a chessboard; a patch lies within one block
    and is resized where that is too small.
    """
    photographs = [photograph(path) for path in data_paths("colour-patches")]
    height, width = size
    cut = (min(height, BLOCK), min(width, BLOCK))
    found = np.empty((n, height, width, 3), np.uint8)
    for patch in found:
        image = photographs[rng.integers(len(photographs))]
        rows, columns = image.shape[0] // BLOCK, image.shape[1] // BLOCK
        block = [(r, c) for r in range(rows) for c in range(columns) if (r + c) % 2 == int(held_out)]
        r, c = block[rng.integers(len(block))]
        top = r * BLOCK + rng.integers(BLOCK - cut[0] + 1)
        left = c * BLOCK + rng.integers(BLOCK - cut[1] + 1)
        patch[:] = _resize(image[top : top + cut[0], left : left + cut[1]], size)
    return found


def photograph(path: Path) -> Array:
    """A picture file as uint8 (height, width, 3)."""
    try:
        from PIL import Image
    except ImportError:
        raise CorpusError("photographs are read with Pillow, which is not installed") from None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _resize(image: Array, size: tuple[int, int]) -> Array:
    """Nearest neighbour."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, image.shape[:2], strict=True))
    return image[rows][:, columns]
