"""Which array belongs to which input, and which of its axes holds the samples."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import Dimension, LabelSpec, TensorSpec

log = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """``axes``: input → axis of its samples; ``constants``: inputs without one; ``n`` samples."""

    axes: dict[str, int]
    constants: tuple[str, ...]
    n: int


def known_names(names: Iterable[str | None], inputs: Sequence[TensorSpec], option: str) -> None:
    """Raise UsageError if an option names an input that the model lacks (None stands for all)."""
    have = [spec.name for spec in inputs]
    for name in names:
        if name is not None and name not in have:
            raise UsageError(f"{option} names the input {name!r}; the model's inputs are {have}")


def match_names(keys: Iterable[str], inputs: Sequence[TensorSpec], where: str) -> dict[str, str]:
    """Input → the key of its array: its own name or, for a model's single input, ``x``.

    Raises DataError that lists the keys found and expected.
    """
    found = list(keys)
    own = [spec for spec in inputs if not isinstance(spec, LabelSpec)]
    result = {spec.name: spec.name for spec in inputs}
    if len(own) == 1 and own[0].name not in found and "x" in found:
        result[own[0].name] = "x"
    missing = [spec for spec in inputs if result[spec.name] not in found]
    if missing:
        expected = ", ".join(repr(spec.name) for spec in inputs)
        also = " (or 'x')" if len(own) == 1 and own[0].name != "x" else ""
        have = ", ".join(map(repr, found)) if found else "none"
        lacks = "labels" if isinstance(missing[0], LabelSpec) else "array for the model's input"
        raise DataError(
            f"{where} has no {lacks} {missing[0].name!r}: found {have}; expected {expected}{also}"
        )
    extra = [key for key in found if key not in result.values()]
    if extra:
        log.debug("%s: not used: %s", where, ", ".join(extra))
    return result


def shown(shape: Iterable[Dimension]) -> str:
    """A shape as a message shows it: (N, 3, ?, 224)."""
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


def fits(shape: Shape, declared: Sequence[Dimension] | None, skip: int | None = None) -> bool:
    """Whether ``shape`` has the declared rank and static dimensions (but for the axis ``skip``)."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        axis == skip or not isinstance(dim, int) or dim == size
        for axis, (size, dim) in enumerate(zip(shape, declared, strict=True))
    )


def require_fit(shape: Shape, spec: TensorSpec, axis: int | None, where: str) -> None:
    """Raise DataError unless ``shape`` fits the declared one, the axis of the samples (if any) left out."""
    if fits(shape, spec.shape, axis):
        return
    declared = spec.shape or ()
    message = (
        f"input {spec.name!r} of {where} has the shape {shown(shape)}, the model declares {shown(declared)}"
    )
    if len(shape) == len(declared) - 1:
        hint = "an axis is missing (the first one is the samples)"
    elif len(shape) != len(declared):
        hint = f"it must have {len(declared)} axes"
    elif axis == 0 and shape[-1] == declared[1] and len(shape) > 2:
        hint = "the channels seem to be last: transpose them to axis 1"
    else:
        hint = "reshape the array, or check that it belongs to this model"
    raise DataError(f"{message}: {hint}")


def arrange(
    shapes: Mapping[str, Shape],
    inputs: Sequence[TensorSpec],
    batch_axis: Mapping[str, int | None],
    where: str,
) -> Layout:
    """Tell samples from constants; ``shapes`` holds each input's array.

    The first axis is the samples. Inputs without it are constants: scalars, and arrays of exactly the
    declared static shape whose first axis is not n. An input that declares the samples' symbol on another
    axis (h: [2, N, 64]) has them there. ``batch_axis`` overrides all of this.

    Raises DataError for shapes that don't fit, counts that differ, or no samples at all.
    """
    axes: dict[str, int] = {}
    constants: set[str] = set()
    unsure: list[str] = []
    for spec in inputs:
        shape = shapes[spec.name]
        if spec.name in batch_axis:
            axis = batch_axis[spec.name]
            if axis is None:
                constants.add(spec.name)
            elif axis >= len(shape):
                raise DataError(
                    f"input {spec.name!r} of {where} has the shape {shown(shape)}: no axis {axis}"
                )
            else:
                axes[spec.name] = axis
        elif not shape:
            constants.add(spec.name)
        elif spec.shape and isinstance(spec.shape[0], int) and fits(shape, spec.shape):
            unsure.append(spec.name)
        else:
            axes[spec.name] = 0
    if not axes and unsure:
        axes[unsure[0]] = 0
    symbols = {_symbol(spec, axes) for spec in inputs} - {None}
    n = next((shapes[name][axis] for name, axis in axes.items()), 0)
    for spec in inputs:
        if spec.name in unsure and spec.name not in axes:
            shape = shapes[spec.name]
            shared = [k for k, dim in enumerate(spec.shape or ()) if dim in symbols and shape[k] == n]
            if shape[0] == n and not shared:
                axes[spec.name] = 0
            elif shared:
                axes[spec.name] = shared[0]
                log.info("input %s: the samples are on axis %d, as the model declares", spec.name, shared[0])
            else:
                constants.add(spec.name)
    for spec in inputs:
        require_fit(shapes[spec.name], spec, axes.get(spec.name), where)
    _require_counts({name: shapes[name][axis] for name, axis in axes.items()}, where)
    ordered = tuple(spec.name for spec in inputs if spec.name in constants)
    return Layout({spec.name: axes[spec.name] for spec in inputs if spec.name in axes}, ordered, n)


def _symbol(spec: TensorSpec, axes: Mapping[str, int]) -> Any:
    axis = axes.get(spec.name)
    if axis is None or spec.shape is None or axis >= len(spec.shape):
        return None
    return spec.shape[axis] if isinstance(spec.shape[axis], str) else None


def _require_counts(counts: dict[str, int], where: str) -> None:
    if not counts:
        raise DataError(f"{where} has no samples: every input is a constant")
    if min(counts.values()) == 0:
        name = min(counts, key=lambda key: counts[key])
        raise DataError(f"{where} has zero samples of input {name!r}: nothing can be measured without data")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(
            f"{where} has different numbers of samples for its inputs ({told}): the first axis is the "
            "samples; say --batch-axis NAME=K for another one, NAME=none for an input that is constant"
        )


def fixed_batch(inputs: Sequence[TensorSpec], axes: Mapping[str, int], where: str) -> int | None:
    """The batch size that the model fixes: the static dimension on the samples' axes; None if it is free.

    Raises DataError when two inputs fix different sizes.
    """
    sizes: dict[int, str] = {}
    for spec in inputs:
        axis = axes.get(spec.name)
        if axis is None or spec.shape is None or axis >= len(spec.shape):
            continue
        size = spec.shape[axis]
        if isinstance(size, int):
            sizes.setdefault(size, spec.name)
    if len(sizes) > 1:
        told = ", ".join(f"{name!r} {size}" for size, name in sizes.items())
        raise DataError(
            f"the model's inputs fix different batch sizes ({told}) while {where} has samples for all of "
            "them: say --batch-axis NAME=none for those that are constants"
        )
    return next(iter(sizes), None)
