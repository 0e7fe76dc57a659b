"""A run's state in a folder, whole or not at all, from which it goes on to the same bits.

Random choices are functions of the place in the run (chance.py) and the learning rate one of the step (schedule.py),
so weights, the optimiser's state, the best weights and the history are all there is to keep.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from onnx_compnet.errors import DataError, ResourceError, UsageError

FILE = "checkpoint.pt"
_FORMAT = 1


class Checkpoints:
    """The checkpoint of one run in ``folder``; ``run`` says which run it is, option by option."""

    def __init__(self, folder: str | Path, run: dict[str, str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self._run = run
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--checkpoint {self.folder} is a file; name a folder")
        if not self.folder.parent.is_dir():
            raise UsageError(f"the folder {self.folder.parent} of --checkpoint does not exist; make it first")

    def save(self, state: dict[str, Any]) -> None:
        """Replace what is there. Raises ResourceError; the earlier checkpoint stays then."""
        self._tidy()
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "run": self._run, "state": state}, buffer)
        aside = self.folder / f".{FILE}.{os.getpid()}"
        try:
            self.folder.mkdir(exist_ok=True)
            with aside.open("wb") as stream:
                stream.write(buffer.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "no space is left on the disk" if full else error.strerror
            kept = "; the one before it is still there" if self.path.exists() else ""
            raise ResourceError(
                f"the checkpoint {self.path} could not be written: {why}{kept}; make room and run again"
            ) from error

    def _tidy(self) -> None:
        """Remove what processes left here that were killed while they wrote."""
        for left in self.folder.glob(f".{FILE}.*"):
            number = left.name.rpartition(".")[2]
            if number.isdecimal() and not Path(f"/proc/{number}").exists():
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The state, or None where none was written.

        Raises DataError for a file that is damaged, UsageError for the checkpoint of another run.
        """
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            found, state = content["run"], content["state"]
            damaged = (
                content["format"] != _FORMAT or not isinstance(found, dict) or not isinstance(state, dict)
            )
        except OSError as error:
            raise DataError(f"the checkpoint {self.path} can't be read: {error.strerror}") from error
        except (RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{self.path} is no checkpoint, or is damaged; remove it to start anew"
            ) from error
        if damaged:
            raise DataError(f"{self.path} is no checkpoint of this version; remove it to start anew")
        other = [name for name in {**self._run, **found} if found.get(name) != self._run.get(name)]
        if other:
            told = ", ".join(f"{n} {found.get(n)} there, {self._run.get(n)} here" for n in sorted(other))
            raise UsageError(
                f"{self.path} belongs to another run ({told}): give the same options, or another --checkpoint folder"
            )
        return dict(state)
