"""Every error that onnx-compnet raises on purpose, in one tree.

A message says what is wrong, where, and what to do next. The command line maps each class to an exit code::

    CompnetError
    ├── VerificationError      1  a check failed: a gate, the checker, onnxruntime; carries ``.growth``
    │   └── DivergedError         training came to a loss that is no number; carries ``.tuned``
    ├── UsageError             2  a bad argument (also a ValueError)
    │   ├── NameNotFoundError     no node, tensor, weight or scope of that name; carries ``.candidates``
    │   ├── AmbiguousNameError    several places answer to that name; carries ``.candidates``
    │   └── OutputExistsError     the file to write exists, or is the model itself
    ├── UnsupportedError       3  the model or the site can't be handled; the message gives the reason
    ├── InputError             4  something that was read is unfit
    │   ├── ModelError            missing, unreadable, truncated, or refused by the checker
    │   └── DataError             missing, wrong names, shapes, dtypes, NaN, too few samples
    └── ResourceError          5  the environment: no CUDA, out of memory, disk full
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CompnetError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line returns."""

    exit_code = 1


class VerificationError(CompnetError):
    """A check failed. ``growth`` is the Growth that was rejected (None when there is none)."""

    exit_code = 1

    def __init__(self, message: str, growth: Any = None) -> None:
        super().__init__(message)
        self.growth = growth


class DivergedError(VerificationError):
    """Training came to a loss that is not finite. ``tuned`` is the Tuned with the last good weights."""

    def __init__(self, message: str, tuned: Any = None) -> None:
        super().__init__(message)
        self.tuned = tuned


class UsageError(CompnetError, ValueError):
    """An argument has a bad value."""

    exit_code = 2


class NameNotFoundError(UsageError):
    """Nothing in the model answers to a name; ``candidates`` holds the nearest names first."""

    def __init__(self, message: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class AmbiguousNameError(UsageError):
    """Several places answer to a name; ``candidates`` holds names that are not ambiguous."""

    def __init__(self, message: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class OutputExistsError(UsageError):
    """The output path exists and overwriting was not asked for, or it is the input model."""


class UnsupportedError(CompnetError):
    """The model, or the place in it, can't be handled; the message gives the reason."""

    exit_code = 3


class InputError(CompnetError):
    """Something that was read can't be used."""

    exit_code = 4


class ModelError(InputError):
    """A model file is missing, unreadable, truncated or refused by the ONNX checker."""


class DataError(InputError):
    """Data is missing, misnamed, of the wrong shape or dtype, not finite, or too little."""


class ResourceError(CompnetError):
    """The environment lacks something: a CUDA device, memory, disk space."""

    exit_code = 5
