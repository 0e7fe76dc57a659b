"""Reading .npy arrays, alone or inside .npz archives, row by row and never unpickling."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnx_compnet.errors import DataError, ResourceError

AnyArray = np.ndarray[Any, Any]

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError),
)


class NpyStream:
    """One .npy array that is read in order of its first axis.

    ``shape`` and ``dtype`` are those of its header; ``file`` is positioned after it. ``where`` names it in
    messages. Nothing but the rows asked for is held, unless the array is in Fortran order (then it is read
    whole by the first read). Raises DataError for a header or content that is damaged.
    """

    def __init__(self, file: IO[bytes], size: int, where: str) -> None:
        self._file = file
        self.where = where
        self.shape, self._fortran, self.dtype = _header(file, where)
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._whole: AnyArray | None = None
        self._next = 0
        if self.dtype.hasobject:
            raise DataError(f"{where} holds Python objects, which are never unpickled: save it as numbers")
        if size - file.tell() < math.prod(self.shape) * self.dtype.itemsize:
            raise DataError(
                f"{where} is truncated: its header says {self.shape} of {self.dtype}; write it again"
            )

    def read(self, count: int) -> AnyArray:
        """The next ``count`` rows, as an array (count, *shape[1:]) that may be read-only."""
        start, self._next = self._next, self._next + count
        if self._fortran:
            return self.whole()[start : self._next]
        return self._take(count * self.row_bytes).reshape(count, *self.shape[1:])

    def skip(self, count: int) -> None:
        """Pass over ``count`` rows."""
        self._next += count
        if not self._fortran:
            with _damage(self.where):
                self._file.seek(count * self.row_bytes, 1)

    def whole(self) -> AnyArray:
        """The whole array; only before any read, or for Fortran order."""
        if self._whole is None:
            flat = self._take(math.prod(self.shape) * self.dtype.itemsize)
            self._whole = flat.reshape(self.shape, order="F" if self._fortran else "C")
        return self._whole

    def finish(self) -> None:
        """Read to the end, where the archive's checksum is compared (rows passed over count as well)."""
        with _damage(self.where):
            self._file.read(1)

    def _take(self, size: int) -> AnyArray:
        with _damage(self.where):
            content = self._file.read(size)
        if len(content) != size:
            raise DataError(f"{self.where} is truncated: it ends too early; write it again")
        return np.frombuffer(content, dtype=self.dtype)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """What the archive's readers raise, as DataError."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"out of memory while reading {where}: lower --batch-size") from error
    except _BROKEN as error:
        raise DataError(f"{where} can't be read, it is damaged ({_line(error)}): write it again") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(file)
        else:  # 3.0 is for field names beyond latin-1, and fields are no tensors
            raise ValueError(f"format {version[0]}.{version[1]}")
    except Exception as error:  # numpy's header parser lets the tokenizer's errors through
        raise DataError(
            f"{where} is not a readable .npy array ({_line(error)}): write it with numpy.save"
        ) from error
    if any(size < 0 for size in shape):
        raise DataError(f"{where} is damaged: its header says {shape}; write it again")
    return shape, fortran, dtype


class ArrayFile:
    """One .npz or .npy file: ``keys`` are its arrays (that of a .npy is ""). Raises DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zipped = path.suffix.lower() == ".npz"
        try:
            with path.open("rb") as file:
                start = file.read(6)
        except OSError as error:
            raise DataError(f"{path} can't be opened: {error.strerror}") from error
        if self.zipped and start == b"\x93NUMPY":
            raise DataError(f"{path} is a .npy file by content: name it so")
        if not self.zipped and start[:4] == b"PK\x03\x04":
            raise DataError(f"{path} is a .npz archive by content: name it so")
        self.keys: tuple[str, ...] = self._keys() if self.zipped else ("",)

    def _keys(self) -> tuple[str, ...]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return tuple(name[:-4] for name in archive.namelist() if name.endswith(".npy"))
        except _BROKEN as error:
            raise DataError(
                f"{self.path} is no .npz archive, or is truncated ({_line(error)}): write it with numpy.savez"
            ) from error

    @contextmanager
    def streams(self, keys: Iterable[str]) -> Iterator[dict[str, NpyStream]]:
        """Open the arrays ``keys``, all at once, each at its first row."""
        with ExitStack() as stack:
            with _damage(str(self.path)):
                archive = stack.enter_context(zipfile.ZipFile(self.path)) if self.zipped else None
            result = {}
            for key in keys:
                where = f"array {key!r} of {self.path.name}" if archive else self.path.name
                with _damage(where):
                    if archive is None:
                        file: IO[bytes] = stack.enter_context(self.path.open("rb"))
                        size = self.path.stat().st_size
                    else:
                        info = archive.getinfo(f"{key}.npy")
                        file, size = stack.enter_context(archive.open(info)), info.file_size
                result[key] = NpyStream(file, size, where)
            yield result
