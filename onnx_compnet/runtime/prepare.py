"""From arrays as they are stored to arrays as the model takes them: scaling, dtype, range, finiteness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.layout import known_names
from onnx_compnet.runtime.options import DataOptions, entries

AnyArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Transform:
    """(x·scale − mean) / std; each is None, one number, or one a channel of axis 1."""

    scale: tuple[float, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def apply(self, array: AnyArray, name: str, dtype: np.dtype[Any]) -> AnyArray:
        """A new array in ``dtype`` (float32 or float64). Raises UsageError where channels don't match."""
        result = array.astype(dtype)
        for values, option, step in (
            (self.scale, "--scale", np.multiply),
            (self.mean, "--mean", np.subtract),
            (self.std, "--std", np.divide),
        ):
            if values is not None:
                step(result, _spread(values, result, name, option), out=result)
        return result


def _spread(values: tuple[float, ...], array: AnyArray, name: str, option: str) -> AnyArray:
    if len(values) == 1:
        return np.asarray(values[0], dtype=array.dtype)
    if array.ndim < 2 or array.shape[1] != len(values):
        raise UsageError(
            f"{option} has {len(values)} values, one a channel, and axis 1 of input {name!r} has the size "
            f"{array.shape[1] if array.ndim > 1 else 0}: its arrays are {array.shape}"
        )
    return np.asarray(values, dtype=array.dtype).reshape(-1, *[1] * (array.ndim - 2))


def transforms(inputs: Sequence[TensorSpec], options: DataOptions) -> dict[str, Transform]:
    """Each float input's Transform, where ``options`` ask for one.

    Raises UsageError for unknown names, inputs that are not float, and a zero in std.
    """
    said = {
        option: entries(value, option)
        for option, value in (("--scale", options.scale), ("--mean", options.mean), ("--std", options.std))
    }
    floats = [spec.name for spec in inputs if is_float(spec.dtype)]
    for option, by_name in said.items():
        known_names(by_name, inputs, option)
        for name, values in by_name.items():
            if name is not None and name not in floats:
                raise UsageError(f"{option} names the input {name!r}, which does not take floats")
            if option == "--std" and 0.0 in values:
                raise UsageError("--std has a zero: it divides the data")
    result = {}
    for name in floats:
        values_of = [
            said[option].get(name, said[option].get(None)) for option in ("--scale", "--mean", "--std")
        ]
        if any(values is not None for values in values_of):
            result[name] = Transform(*values_of)
    return result


def is_float(dtype: str) -> bool:
    """Whether a TensorSpec's dtype is a floating one."""
    return dtype.startswith(("float", "bfloat"))


def check_dtype(dtype: np.dtype[Any], spec: TensorSpec, transform: Transform | None, where: str) -> None:
    """Raise DataError if arrays of ``dtype`` can't become what ``spec`` takes; no data is looked at."""
    what = f"input {spec.name!r} of {where} has the dtype {dtype}"
    if dtype.hasobject:
        raise DataError(f"{what}: arrays of Python objects are never read; save it as numbers")
    if spec.dtype == "":
        return
    if dtype.kind not in "biuf":
        raise DataError(f"{what}, and the model takes {spec.dtype}: save it as {spec.dtype}")
    if is_float(spec.dtype):
        if dtype.kind != "f" and (transform is None or transform.scale is None):
            raise DataError(
                f"{what}, and the model takes {spec.dtype}: say how to scale it, e.g. --scale 1/255 "
                "(Python: scale=1/255), or --scale 1 to pass the values as they are"
            )
    elif dtype.kind == "f":
        raise DataError(f"{what}, and the model takes {spec.dtype}: save it as integers")


def prepare(
    array: AnyArray,
    spec: TensorSpec,
    transform: Transform | None,
    axis: int | None,
    indices: NDArray[np.int64] | None,
    where: str,
) -> AnyArray:
    """``array`` as the model takes it: scaled, of its dtype, C-contiguous, finite.

    ``axis`` holds the samples (None: a constant), ``indices`` their numbers, for messages (None: one feed,
    which ``where`` names). The result may share memory with ``array``. Raises DataError.
    """
    check_dtype(array.dtype, spec, transform, where)
    target = _target(spec)
    if target is None:
        return np.asarray(array, order="C")
    if transform is not None:
        array = transform.apply(array, spec.name, np.promote_types(target, np.float32))
    if target.kind in "iub" and array.dtype != target:
        _require_range(array, target, spec, axis, indices, where)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and found below
        array = np.asarray(array, dtype=target, order="C")
    if target.kind == "f" and not np.isfinite(array).all():
        at = _place(~np.isfinite(array), axis, indices)
        raise DataError(
            f"input {spec.name!r} has NaN or infinite values{at} of {where}: remove or repair them"
        )
    return array


def _target(spec: TensorSpec) -> np.dtype[Any] | None:
    try:
        target = np.dtype(spec.dtype) if spec.dtype else None
    except TypeError:  # bfloat16 and the like, which numpy does not know: passed on as it is
        return None
    return target if target is not None and target.kind in "biuf" else None


def _require_range(
    array: AnyArray,
    target: np.dtype[Any],
    spec: TensorSpec,
    axis: int | None,
    indices: NDArray[np.int64] | None,
    where: str,
) -> None:
    low, high = (0, 1) if target.kind == "b" else (int(np.iinfo(target).min), int(np.iinfo(target).max))
    if array.size == 0 or array.dtype.kind == "b" or (low <= int(array.min()) and int(array.max()) <= high):
        return
    # Python integers: a comparison of int64 with uint64's maximum would pass through float64
    least, most = int(array.min()), int(array.max())
    value = least if least < low else most
    raise DataError(
        f"input {spec.name!r} has the value {value}{_place(array == value, axis, indices)} of {where}, "
        f"and the model takes {spec.dtype} ({low} to {high})"
    )


def _place(wrong: NDArray[np.bool_], axis: int | None, indices: NDArray[np.int64] | None) -> str:
    """Where the first wrong value is: " in sample 17", or nothing for constants and whole feeds."""
    if axis is None or indices is None:
        return ""
    rows = np.flatnonzero(np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1).any(axis=1))
    return f" in sample {int(indices[rows[0]])}"
