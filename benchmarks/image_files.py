"""Readers of image data sets' own files: IDX (MNIST, Fashion-MNIST) and CIFAR-10's pickled and binary batches.

Sources: http://yann.lecun.com/exdb/mnist/ for IDX, https://www.cs.toronto.edu/~kriz/cifar.html for CIFAR-10.
Nothing in a file is believed: magic number, axes, sizes and labels are checked, and a pickle may build numpy arrays
and plain values only.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
CLASSES = 10
MAGIC_LABELS = 0x0801  # unsigned bytes, one axis
MAGIC_IMAGES = 0x0803  # unsigned bytes, three axes
_MOST_BYTES = 1 << 30
_RECORD = 1 + 3 * 32 * 32  # a label and three planes


class DatasetError(Exception):
    """A data set is missing, or one of its files is not what it should be; the message says which and why."""


def read_idx(path: Path, magic: int) -> UInt8Array:
    """The unsigned bytes of one IDX file, gzipped or not, in the shape that its header gives. Raises DatasetError.

    Big-endian: the magic number 0x0000TTAA (type, axes), one 32-bit size an axis, the values.
    """
    axes = magic & 0xFF
    header = 4 * (1 + axes)
    try:
        with path.open("rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            head = stream.read(header)
            if len(head) < header:
                raise DatasetError(
                    f"{path} has {len(head)} bytes; an IDX header with {axes} axes has {header}"
                )
            found, *shape = (int(value) for value in np.frombuffer(head, ">u4"))
            if found != magic:
                raise DatasetError(f"{path} has the magic number {found:#06x}; {magic:#06x} is expected")
            expected = int(np.prod([float(size) for size in shape]))
            if not 0 < expected <= _MOST_BYTES:
                raise DatasetError(f"{path} says that it holds {shape} values, which can't be")
            body = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} can't be read: {error}") from error
    if len(body) != expected:
        more = "more" if len(body) > expected else f"{len(body)}"
        raise DatasetError(f"{path} holds {more} values; its header gives {shape}, so {expected}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_cifar_binary(path: Path) -> tuple[UInt8Array, UInt8Array]:
    """Images (n, 3, 32, 32) and labels (n,) of one binary batch: records of a label and 3,072 values."""
    raw = _content(path)
    if not raw or len(raw) % _RECORD:
        raise DatasetError(
            f"{path} has {len(raw)} bytes, no whole number of records of {_RECORD}: it is cut off, or no CIFAR-10"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_cifar_pickle(path: Path) -> tuple[UInt8Array, UInt8Array]:
    """Images (n, 3, 32, 32) and labels (n,) of one batch of the Python version. No other object is ever built."""
    try:
        content = _Unpickler(io.BytesIO(_content(path)), encoding="bytes").load()
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle may end in any of them
        raise DatasetError(f"{path} is no pickled batch of CIFAR-10, or is cut off: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} holds a {type(content).__name__}; a dict with data and labels is expected"
        )
    entries = {key.decode("latin-1") if isinstance(key, bytes) else key: v for key, v in content.items()}
    images, labels = entries.get("data"), entries.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DatasetError(f"{path} has no uint8 array 'data' of 3,072 values an image")
    if not isinstance(labels, list) or not all(isinstance(y, int) and 0 <= y < CLASSES for y in labels):
        raise DatasetError(f"{path} has no list 'labels' of whole numbers from 0 to {CLASSES - 1}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def paired(images: UInt8Array, labels: UInt8Array, where: str) -> tuple[UInt8Array, npt.NDArray[np.int64]]:
    """Images and their labels as int64, after a look at both. Raises DatasetError."""
    if len(images) != len(labels):
        raise DatasetError(f"{where} has {len(images)} images and {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise DatasetError(f"{where} has the label {labels.max()}; 0 to {CLASSES - 1} are expected")
    return images, labels.astype(np.int64)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DatasetError(f"{path} is larger than any batch of CIFAR-10")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error}") from error


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle for Python 2."""
    if encoding != "latin1":
        raise DatasetError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin-1")


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    rebuild = np.empty(0).__reduce__()[0]
    assert callable(rebuild)
    known: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encode}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "_reconstruct"] = rebuild
    known["numpy", "ndarray"] = np.ndarray
    known["numpy", "dtype"] = np.dtype
    return known


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values; refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call."""
        found = _allowed().get((module, name))
        if found is None:
            raise DatasetError(f"it asks for {module}.{name}, which no batch of CIFAR-10 needs; not loaded")
        return found
