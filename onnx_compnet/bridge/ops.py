"""ONNX ops as functions of tensors, for those that onnx2torch lacks or converts with fixed weights.

Positional arguments are the node's inputs (None where one is left out), keywords its attributes by ONNX's own
names and defaults. ``training`` and ``since`` (the op's version) are given to the functions that ask for them.
Why each is here: Conv, ConvTranspose, Gemm, the normalisations and PRelu because onnx2torch makes own parameters of
their weights, which unties shared ones; Slice, Squeeze, Flatten, Expand, Reshape and Cast because of cases that
onnx2torch gets wrong (a list as index, axes of both signs, axis 0, bool, ``allowzero``, bfloat16); Pow and Range
because of the result's type, IsInf because of its attributes; the rest because it has no converter for them or for
their newer versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

Ints = Sequence[int] | None

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.INT16: torch.int16, onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip
TYPES = frozenset(_DTYPES)
"""the element types that a Cast may ask for"""


def listed(values: Tensor) -> list[int]:
    """A tensor of integers as a list."""
    return [int(item) for item in values.reshape(-1).tolist()]


# ---------------------------------------------------------------- products and normalisations


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Tensor:  # fmt: skip
    """alpha·A·B + beta·C with A (n, k) and B (k, m), either transposed where asked."""
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


def batch_normalization(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9, frozen: int = 0, training: bool = False,
) -> Tensor:  # fmt: skip
    """x (N, C, …) normalised by its channels; in training by the batch's statistics, which move the stored ones.

    ``frozen`` keeps it on the stored statistics always; so does one value a channel, which has no variance.
    """
    learns = training and not frozen and x.numel() > x.shape[1]
    return functional.batch_norm(x, mean, variance, scale, shift, learns, 1.0 - momentum, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """x (N, C, …) normalised over the positions of each channel of each sample."""
    return torch.group_norm(x, x.shape[1], scale, shift, epsilon)  # functional's refuses a single value


def layer_normalization(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x normalised over the axes from ``axis`` on; also the mean and 1/standard deviation."""
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.float() if stash_type == 1 and x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if shift is None else y + shift), mean, inverse


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where it is positive, else x times the slope, which is broadcast to x."""
    return torch.where(x >= 0, x, x * slope)


def dropout(
    x: Tensor, ratio: Tensor | None = None, _given: Tensor | None = None, *, training: bool = False,
    **old: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Dropout and its mask; in training only, whatever training mode the node was exported in."""
    rate = 0.0
    if training:  # only then is the ratio looked at: torch.export knows no values
        rate = float(ratio) if ratio is not None else old.get("ratio", 0.5)
    if rate == 0.0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand_like(x) >= rate
    return x * kept / (1.0 - rate), kept


def densify(values: Tensor, *, places: Sequence[int], dims: Sequence[int]) -> Tensor:
    """The dense tensor with ``values`` at those places, counted in row-major order, and 0 elsewhere."""
    size = 1
    for item in dims:
        size *= item
    at = torch.tensor(list(places), device=values.device, dtype=torch.int64)
    return values.new_zeros(size).index_put((at,), values).reshape(list(dims))


# ---------------------------------------------------------------- activations


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x·Φ(x), or its approximation by tanh."""
    return functional.gelu(x, approximate=approximate)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by tanh of x + bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """x·σ(alpha·x)."""
    return x * torch.sigmoid(alpha * x)


def softmax(x: Tensor, *, axis: int | None = None, since: int = 13) -> Tensor:
    """Softmax over one axis; before version 13 over all axes from ``axis`` on."""
    return torch.exp(log_softmax(x, axis=axis, since=since)) if since < 13 else torch.softmax(x, _axis(axis))


def log_softmax(x: Tensor, *, axis: int | None = None, since: int = 13) -> Tensor:
    """Its logarithm."""
    if since >= 13:
        return torch.log_softmax(x, _axis(axis))
    first = (1 if axis is None else axis) % x.ndim
    return torch.log_softmax(x.flatten(first), -1).reshape(x.shape)


def _axis(axis: int | None) -> int:
    return -1 if axis is None else axis


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **old: float) -> Tensor:
    """x limited to [low, high]; before version 11 by attributes."""
    least, most = old.get("min"), old.get("max")
    return _limited(_limited(x, low, least, torch.maximum), high, most, torch.minimum)


def _limited(x: Tensor, bound: Tensor | None, old: float | None, function: Any) -> Tensor:
    if bound is None:
        if old is None:
            return x
        bound = torch.tensor(old, dtype=x.dtype, device=x.device)
    return function(x, bound)  # type: ignore[no-any-return]


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha·x + beta limited to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


def unary(x: Tensor, *, name: str) -> Tensor:
    """torch's function of that name, element by element."""
    return getattr(torch, name)(x)  # type: ignore[no-any-return]


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x where it is larger than alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """x to that power, in the type of x."""
    return torch.pow(x, exponent).to(x.dtype)


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where x is infinite, of the signs that are asked for."""
    return (x.isposinf() & bool(detect_positive)) | (x.isneginf() & bool(detect_negative))


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from ``start`` on in steps of ``delta``, before ``limit``, in their type."""
    ends = [item.item() for item in (start, limit, delta)]
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def scaler(x: Tensor, *, offset: Sequence[float] = (), scale: Sequence[float] = ()) -> Tensor:
    """(x - offset)·scale by features, or by one number for all, as float32."""
    offsets, scales = (
        torch.tensor(list(item), device=x.device) for item in (offset or [0.0], scale or [1.0])
    )
    return (x.float() - offsets) * scales


def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


# ---------------------------------------------------------------- shapes


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """x in another shape; 0 keeps the size that the axis has, unless ``allowzero``."""
    sizes = listed(shape)
    if not allowzero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """x as a matrix: the axes before ``axis``, and those from it on."""
    rows = 1
    for size in x.shape[: axis if axis >= 0 else axis + x.ndim]:
        rows *= size
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, 0 if rows else 1)


def squeeze(x: Tensor, given: Tensor | None = None, *, axes: Ints = None) -> Tensor:
    """x without those axes of size 1, or without any."""
    wanted = listed(given) if given is not None else axes
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted))


def unsqueeze(x: Tensor, given: Tensor | None = None, *, axes: Ints = None) -> Tensor:
    """x with new axes, which are counted in the result."""
    wanted = listed(given) if given is not None else list(axes or ())
    rank = x.ndim + len(wanted)
    for axis in sorted(item % rank for item in wanted):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """x broadcast to that shape, both ways."""
    sizes = torch.broadcast_shapes(x.shape, tuple(listed(shape)))  # type: ignore[no-untyped-call]
    return x.expand(sizes)


def slice_(
    x: Tensor, first: Tensor | None = None, last: Tensor | None = None, along: Tensor | None = None,
    by: Tensor | None = None, *, starts: Ints = None, ends: Ints = None, axes: Ints = None,
) -> Tensor:  # fmt: skip
    """x[start:end:step] on each of those axes; steps may be negative."""
    begin = listed(first) if first is not None else list(starts or ())
    end = listed(last) if last is not None else list(ends or ())
    which = listed(along) if along is not None else list(axes if axes is not None else range(len(begin)))
    steps = listed(by) if by is not None else [1] * len(begin)
    for start, stop, axis, step in zip(begin, end, which, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            places: list[slice] = [slice(None)] * x.ndim
            places[axis] = slice(*slice(start, stop, step).indices(size))
            x = x[tuple(places)]
        else:  # ONNX: an end below -size means past the first element; so does Python's
            chosen = range(*slice(start, stop, step).indices(size))
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None, parts: int = 1,
    **old: Sequence[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    """x cut along an axis into given sizes or into equal parts, of which the last may be smaller."""
    given = listed(sizes) if sizes is not None else old.get("split")
    if given is not None:
        return torch.split(x, list(given), axis)
    return torch.split(x, -(-x.shape[axis] // (num_outputs or parts)), axis)


def cast(x: Tensor, *, to: int) -> Tensor:
    """x in another type."""
    return x.to(_DTYPES[to])


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of x's axes from ``start`` to ``end``."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    """The number of x's elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def constant_of_shape(sizes: Tensor, *, value: Tensor | None = None) -> Tensor:
    """A tensor of that shape, filled with one value (0 of float32)."""
    filled = torch.zeros(1) if value is None else value
    return filled.to(sizes.device).reshape(()).expand(listed(sizes)).clone()


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """``data`` with updates at the places that the last axis of ``indices`` names."""
    places = tuple(indices.long().unbind(-1))
    return data.index_put(places, updates, accumulate=reduction == "add")


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """``data`` with updates at those places along an axis."""
    at = torch.where(indices < 0, indices + data.shape[axis], indices).long()
    if reduction == "add":
        return data.scatter_add(axis, at, updates)
    return data.scatter(axis, at, updates)


def pad(
    x: Tensor, given: Tensor | None = None, fill: Tensor | None = None, along: Tensor | None = None, *,
    mode: str = "constant", pads: Ints = None, value: float = 0.0,
) -> Tensor:  # fmt: skip
    """x with more (or, where negative, fewer) elements at the begin and the end of axes."""
    amounts = listed(given) if given is not None else list(pads or ())
    axes = [a % x.ndim for a in listed(along)] if along is not None else list(range(x.ndim))
    begins, ends = amounts[: len(axes)], amounts[len(axes) :]
    if mode == "constant":
        flat = [0] * (2 * x.ndim)
        for axis, begin, end in zip(axes, begins, ends, strict=True):
            flat[2 * (x.ndim - 1 - axis)], flat[2 * (x.ndim - 1 - axis) + 1] = begin, end
        return functional.pad(x, flat, value=value if fill is None else fill.item())
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        n = x.shape[axis]
        at = torch.arange(-begin, n + end, device=x.device)
        if mode == "edge":
            at = at.clamp(0, n - 1)
        elif mode == "wrap":
            at = at % n
        else:  # reflect: the border itself is not repeated
            period = max(2 * (n - 1), 1)
            at = (n - 1) - ((at % period) - (n - 1)).abs()
        x = x.index_select(axis, at)
    return x


# ---------------------------------------------------------------- reductions


def reduce(
    x: Tensor, given: Tensor | None = None, *, how: str, axes: Ints = None, keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:  # fmt: skip
    """x reduced over some axes, or over all."""
    wanted = listed(given) if given is not None else list(axes or ())
    if not wanted and noop_with_empty_axes:
        return _pointwise(x, how)
    over = wanted or list(range(x.ndim))
    keep = bool(keepdims)
    if not over:
        return _pointwise(x, how)
    if how == "Prod":
        for axis in sorted((a % x.ndim for a in over), reverse=True):
            x = x.prod(axis, keepdim=keep)
        return x
    return _REDUCTIONS[how](x, over, keep)  # type: ignore[no-any-return]


def _pointwise(x: Tensor, how: str) -> Tensor:
    """What a reduction over one element makes of it."""
    return {"L1": torch.abs, "L2": torch.abs, "LogSum": torch.log, "SumSquare": torch.square}.get(how, _same)(
        x
    )


def _same(x: Tensor) -> Tensor:
    return x


_REDUCTIONS: dict[str, Any] = {
    "Mean": lambda x, over, keep: x.mean(over, keep),
    "Sum": lambda x, over, keep: x.sum(over, keep, dtype=x.dtype),
    "Max": lambda x, over, keep: x.amax(over, keep),
    "Min": lambda x, over, keep: x.amin(over, keep),
    "L1": lambda x, over, keep: x.abs().sum(over, keep),
    "L2": lambda x, over, keep: x.square().sum(over, keep).sqrt(),
    "SumSquare": lambda x, over, keep: x.square().sum(over, keep),
    "LogSum": lambda x, over, keep: x.sum(over, keep).log(),
    "LogSumExp": lambda x, over, keep: torch.logsumexp(x, over, keep),
}
REDUCTIONS = (*_REDUCTIONS, "Prod")
