"""Convolutions and poolings: ops that move a window, with every padding that ONNX knows.

onnx2torch makes own parameters of a convolution's weights, refuses automatic and one-sided paddings of most, and
takes a pooling's rank from the declared shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Ints = Sequence[int] | None
_CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints = None,
    pads: Ints = None, dilations: Ints = None, group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """x (N, C, *spatial) with weight (D, C/group, *kernel), in 1 to 3 dimensions."""
    rank = weight.ndim - 2
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    begin, end = _padding(x.shape[2:], weight.shape[2:], stride, dilation, pads, auto_pad)
    if begin != end:
        x, begin = functional.pad(x, _torch_order(begin, end)), [0] * rank
    return _CONV[rank](x, weight, bias, stride, begin, dilation, group)  # type: ignore[no-any-return]


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints = None,
    pads: Ints = None, dilations: Ints = None, group: int = 1, auto_pad: str = "NOTSET",
    output_padding: Ints = None, output_shape: Ints = None,
) -> Tensor:  # fmt: skip
    """x (N, C, *spatial) with weight (C, D/group, *kernel): the whole result, then cut or extended, then the bias."""
    rank = weight.ndim - 2
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    y = _CONV_TRANSPOSE[rank](x, weight, None, stride, 0, 0, group, dilation)
    begin, end = list(pads or [0] * 2 * rank)[:rank], list(pads or [0] * 2 * rank)[rank:]
    if output_shape or auto_pad.startswith("SAME"):
        sizes = list(output_shape or [n * s for n, s in zip(x.shape[2:], stride, strict=True)])
        cut = [n + e - s for n, e, s in zip(y.shape[2:], extra, sizes[-rank:], strict=True)]
        small, large = [item // 2 for item in cut], [item - item // 2 for item in cut]
        begin, end = (large, small) if auto_pad == "SAME_LOWER" else (small, large)
        if auto_pad == "NOTSET":  # with an output shape alone
            begin, end = large, small
    y = functional.pad(
        y, _torch_order([-item for item in begin], [e - item for e, item in zip(extra, end, strict=True)])
    )
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None, dilations: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0,
) -> Tensor:  # fmt: skip
    """The largest element of each window; padding counts for nothing."""
    rank = len(kernel_shape)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    begin, end = _padding(x.shape[2:], kernel_shape, stride, dilation, pads, auto_pad)
    if ceil_mode:
        end = _up(x.shape[2:], kernel_shape, stride, dilation, begin, end)
    if any(begin + end):
        x = functional.pad(x, _torch_order(begin, end), value=float("-inf"))
    return _MAX_POOL[rank](x, list(kernel_shape), stride, 0, dilation)  # type: ignore[no-any-return]


def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None, dilations: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
) -> Tensor:  # fmt: skip
    """The mean of each window, over what lies in the input (and in its padding, where that counts)."""
    rank = len(kernel_shape)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    begin, end = _padding(x.shape[2:], kernel_shape, stride, dilation, pads, auto_pad)
    last = _up(x.shape[2:], kernel_shape, stride, dilation, begin, end) if ceil_mode else end
    if not any(begin + last) and set(dilation) == {1}:
        return _AVERAGE_POOL[rank](x, list(kernel_shape), stride)  # type: ignore[no-any-return]
    counted = x.new_ones(1, 1, *x.shape[2:])
    if count_include_pad:
        counted = functional.pad(counted, _torch_order(begin, end), value=1.0)
        rest = [a - b for a, b in zip(last, end, strict=True)]
        counted = functional.pad(counted, _torch_order([0] * rank, rest))
    else:
        counted = functional.pad(counted, _torch_order(begin, last))
    single = functional.pad(x, _torch_order(begin, last)).flatten(0, 1).unsqueeze(1)
    ones = x.new_ones(1, 1, *kernel_shape)
    total = _CONV[rank](single, ones, None, stride, 0, dilation)
    count = _CONV[rank](counted, ones, None, stride, 0, dilation)
    return (total / count).reshape(*x.shape[:2], *total.shape[2:])  # type: ignore[no-any-return]


def global_average_pool(x: Tensor) -> Tensor:
    """The mean over all positions, (N, C, 1, …)."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """The maximum over all positions, (N, C, 1, …)."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Ints,
    auto_pad: str,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """How much is added at the begin and the end of each spatial axis."""
    rank = len(kernel)
    if auto_pad in ("NOTSET", ""):
        given = list(pads or [0] * 2 * rank)
        return given[:rank], given[rank:]
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    begin, end = [], []
    for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        half = total // 2
        begin.append(total - half if auto_pad == "SAME_LOWER" else half)
        end.append(half if auto_pad == "SAME_LOWER" else total - half)
    return begin, end


def _up(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    begin: Sequence[int], end: Sequence[int],
) -> list[int]:  # fmt: skip
    """``end``, enlarged so that a last window that begins inside the input or its front padding is whole."""
    enlarged = []
    for n, k, s, d, b, e in zip(sizes, kernel, strides, dilations, begin, end, strict=True):
        reach = (k - 1) * d + 1
        windows = -(-(n + b + e - reach) // s) + 1
        if (windows - 1) * s >= n + b:
            windows -= 1
        enlarged.append(max(e, (windows - 1) * s + reach - n - b))
    return enlarged


def _torch_order(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """As torch.nn.functional.pad wants them: from the last axis to the first."""
    return [item for pair in zip(reversed(begin), reversed(end), strict=True) for item in pair]


def resize(
    x: Tensor, _roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *,
    mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor", cubic_coeff_a: float = -0.75, exclude_outside: int = 0,
    axes: Ints = None,
) -> Tensor:  # fmt: skip
    """x resampled on each axis by itself, with a weight matrix (output positions, input positions).

    onnx2torch takes torch's interpolation, which knows only some of the coordinate and rounding modes.
    """
    which = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    if sizes is not None and sizes.numel():
        wanted = [int(item) for item in sizes.tolist()]
        ratios = [size / x.shape[axis] for size, axis in zip(wanted, which, strict=True)]
    else:
        assert scales is not None
        ratios = [float(item) for item in scales.tolist()]
        wanted = [int(ratio * x.shape[axis]) for ratio, axis in zip(ratios, which, strict=True)]
    for axis, size, ratio in zip(which, wanted, ratios, strict=True):
        n = x.shape[axis]
        if size == n and ratio == 1.0:
            continue
        at = _coordinates(n, size, ratio, coordinate_transformation_mode)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(at, nearest_mode).clamp(0, n - 1).long().to(x.device))
        else:
            weights = _taps(at, n, mode, cubic_coeff_a, bool(exclude_outside)).to(x.device, x.dtype)
            x = torch.tensordot(x, weights, dims=([axis], [1])).movedim(-1, axis)
    return x


def upsample(
    x: Tensor, given: Tensor | None = None, *, mode: str = "nearest", scales: Sequence[float] = ()
) -> Tensor:
    """What came before Resize: x[floor(i/scale)], or linear between those."""
    factors = given if given is not None else torch.tensor(list(scales))
    return resize(
        x, None, factors, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resize of version 10, which is Upsample."""
    return upsample(x, scales, mode=mode)


def _coordinates(n: int, size: int, ratio: float, mode: str) -> Tensor:
    """Where each output position lies in the input."""
    i = torch.arange(size, dtype=torch.float64)
    if mode == "asymmetric":
        return i / ratio
    if mode == "align_corners":
        return i * (n - 1) / (size - 1) if size > 1 else torch.zeros(1, dtype=torch.float64)
    if mode == "pytorch_half_pixel" and size == 1:
        return torch.zeros(1, dtype=torch.float64)
    if mode == "half_pixel_symmetric":
        adjustment = size / (ratio * n)
        return n / 2 * (1 - adjustment) + (i + 0.5) / ratio - 0.5
    return (i + 0.5) / ratio - 0.5


def _nearest(at: Tensor, mode: str) -> Tensor:
    if mode == "round_prefer_floor":
        return torch.ceil(at - 0.5)
    if mode == "round_prefer_ceil":
        return torch.floor(at + 0.5)
    return torch.floor(at) if mode == "floor" else torch.ceil(at)


def _taps(at: Tensor, n: int, mode: str, a: float, exclude_outside: bool) -> Tensor:
    """Weights (output positions, n) of linear or cubic interpolation; the border is repeated."""
    low = torch.floor(at)
    t = at - low
    if mode == "linear":
        offsets, columns = [0, 1], [1 - t, t]
    else:
        offsets = [-1, 0, 1, 2]
        near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
        far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
        columns = [far[0], near[0], near[1], far[1]]
    weights = torch.zeros(len(at), n, dtype=torch.float64)
    for offset, column in zip(offsets, columns, strict=True):
        place = low + offset
        if exclude_outside:
            column = torch.where((place < 0) | (place > n - 1), 0.0, column)
        weights.scatter_add_(1, place.clamp(0, n - 1).long()[:, None], column[:, None])
    return weights / weights.sum(1, keepdim=True) if exclude_outside else weights
