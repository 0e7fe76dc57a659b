"""How data is to be read: batch size, scaling, axes, shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Self, TypeAlias

import numpy as np
import torch

from onnx_compnet.errors import UsageError

Scaling: TypeAlias = Any
"""A number or "1/255"; a list of them, one a channel (axis 1); "NAME=0.5,0.5"; a mapping NAME → either ("":
the others); or a sequence of "NAME=…" strings or (NAME or None, value) pairs. Without NAME: all floats."""


@dataclass(frozen=True)
class DataOptions:
    """How data is read; every field has a default that suits files of float arrays.

    ``batch_size`` (None: 64, or what the model fixes), ``max_samples`` (None: all), ``scale``, ``mean``,
    ``std``: x becomes (x·scale − mean) / std, see Scaling. ``batch_axis``: input → the axis of its array
    that holds the samples, or None ("none", "constant") for an input that is the same with every batch.
    ``shapes``: input → its full shape, for random data. ``seed`` draws random data.
    """

    batch_size: int | None = None
    max_samples: int | None = None
    scale: Scaling = ()
    mean: Scaling = ()
    std: Scaling = ()
    batch_axis: Mapping[str, int | str | None] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        positive("--batch-size", self.batch_size)
        positive("--max-samples", self.max_samples)
        not_negative("--seed", self.seed)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The options with these values, None meaning the default. Raises UsageError as it does."""
        return cls(**{name: value for name, value in values.items() if value is not None})

    def axes(self) -> dict[str, int | None]:
        """``batch_axis`` with None for constants. Raises UsageError for a value that is no axis."""
        return {name: _axis(name, value) for name, value in self.batch_axis.items()}


def positive(option: str, value: int | None) -> None:
    """Raise UsageError unless ``value`` is None or at least 1."""
    if value is not None and value < 1:
        raise UsageError(f"{option} is {value}: it must be at least 1")


def not_negative(option: str, value: int) -> None:
    """Raise UsageError unless ``value`` is at least 0."""
    if value < 0:
        raise UsageError(f"{option} is {value}: it must not be negative")


def _axis(name: str, value: int | str | None) -> int | None:
    if value is None or (isinstance(value, str) and value.lower() in ("none", "constant")):
        return None
    try:
        axis = int(value)
    except ValueError:
        axis = -1
    if axis < 0:
        raise UsageError(f"--batch-axis {name}={value}: say an axis, counted from 0, or none for a constant")
    return axis


def entries(value: Scaling, option: str) -> dict[str | None, tuple[float, ...]]:
    """What ``value`` says for each input (None: for all of them), as one number or one a channel.

    Raises UsageError for anything that is not a Scaling, and for two values for one input.
    """
    if value is None:
        return {}
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if not isinstance(value, (str, Real, Mapping, Sequence)):
        raise UsageError(
            f"{option} can't be {type(value).__name__}: say a number, one a channel, or {{input: …}}"
        )
    if isinstance(value, (str, Real)):
        pairs = [_entry(value, option)]
    elif isinstance(value, Mapping):
        pairs = [(name or None, _numbers(each, option)) for name, each in value.items()]
    elif all(isinstance(each, Real) for each in value):
        pairs = [(None, _numbers(value, option))] if len(value) else []
    else:
        pairs = [_entry(each, option) for each in value]
    result: dict[str | None, tuple[float, ...]] = {}
    for name, numbers in pairs:
        if name in result:
            whom = "all inputs" if name is None else f"input {name!r}"
            raise UsageError(
                f"{option} is given twice for {whom}; one value a channel is written 0.4,0.5,0.6"
            )
        result[name] = numbers
    return result


def _entry(value: Any, option: str) -> tuple[str | None, tuple[float, ...]]:
    if isinstance(value, str):
        name, equals, numbers = value.rpartition("=")
        return (name if equals else None), _numbers(numbers, option)
    if isinstance(value, Real):
        return None, _numbers(value, option)
    if isinstance(value, Sequence) and len(value) == 2 and (value[0] is None or isinstance(value[0], str)):
        return value[0], _numbers(value[1], option)
    raise UsageError(f"{option} {value!r}: say a number (1/255), one a channel (0.4,0.5,0.6), or NAME=number")


def _numbers(value: Any, option: str) -> tuple[float, ...]:
    parts = (
        value.split(",") if isinstance(value, str) else [value] if isinstance(value, Real) else list(value)
    )
    return tuple(_number(part, option) for part in parts)


def _number(value: Any, option: str) -> float:
    try:
        if isinstance(value, str):
            above, slash, below = value.partition("/")
            number = float(above) / float(below) if slash else float(above)
        else:
            number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{option} {value!r} is no number: say 0.5, or 1/255")
    return number
