"""Where a comparison keeps its children: one file a row and seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_compnet.errors import OutputExistsError, ResourceError, UsageError
from onnx_compnet.graph import model_io


class Folder:
    """A folder of children; nothing is written where ``path`` is None.

    Raises, before any work:
        OutputExistsError: it has files already and ``force`` is not set, or a child would replace one of ``used``.
        UsageError: it is no folder, or lies in none. ResourceError: it can't be written to.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        force: bool,
        names: Iterable[str],
        seeds: Sequence[int],
        used: Sequence[Any],
    ) -> None:
        self._path, self._force, self._several = None if path is None else Path(path), force, len(seeds) > 1
        if self._path is None:
            return
        _check(self._path, force)
        for name in names:
            for seed in seeds:
                for tuned in (False, True):
                    _check_not_used(self.file(name, seed, tuned=tuned), used)

    def file(self, name: str, seed: int, *, tuned: bool) -> Path:
        """ROW.onnx, ROW-seedN.onnx where there are several seeds, with -tuned behind it after training."""
        assert self._path is not None
        seeded = f"-seed{seed}" if self._several else ""
        return self._path / f"{name}{seeded}{'-tuned' if tuned else ''}.onnx"

    def save(self, model: ModelProto, name: str, seed: int, *, tuned: bool = False) -> str | None:
        """Write a model; where it is, or None where nothing is kept."""
        if self._path is None:
            return None
        self._path.mkdir(exist_ok=True)
        file = self.file(name, seed, tuned=tuned)
        model_io.save(model, file, force=self._force)
        return str(file)


def _check(path: Path, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"-o {path} is a file; name a folder for the children")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise OutputExistsError(f"-o {path} has files in it; name another folder or add --force")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} of -o does not exist; make it first")
    if not os.access(path if path.is_dir() else path.parent, os.W_OK | os.X_OK):
        raise ResourceError(f"-o {path} can't be written to; name another folder")


def _check_not_used(file: Path, used: Sequence[Any]) -> None:
    for other in used:
        if isinstance(other, str | Path) and file.exists() and Path(other).exists() and file.samefile(other):
            raise OutputExistsError(f"-o: {file} is {other}, which is never overwritten; name another folder")
