"""The new layer's forward pass, and tensors cut into rows under a reader's geometry.

A row is what the reader multiplies with W2 for one output position: ``y = W2ᵀu + b2``. The columns of u are
grouped by neuron, the taps of a kernel in row-major order within each, so that W2 of a Conv weight
(D2, Dn, *kernel) is ``weight.reshape(D2, -1).T``. Rows follow the output positions in row-major order, and
``target_rows`` lists the outputs in the same order.

A ConvTranspose with weight (Dn, D2, *kernel) is the Conv with ``weight.swapaxes(0, 1)`` flipped along the
kernel's axes, stride 1, over the tensor with stride − 1 zeros between its positions: that Conv's rows and W2
are its own.

On CUDA, torch computes float32 convolutions in TF32 unless ``torch.backends.cudnn.allow_tf32`` is False;
set it so before ``new_layer`` where an error below 1e-3 matters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import Array, CandidateLayer, ConvGeometry, DenseGeometry, Geometry
from onnx_compnet.numerics.activations import apply

MAX_ROWS = 4096  # float32 products of more rows lose accuracy, of fewer lose speed
MAX_BYTES = 64 << 20

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def new_layer(layer: CandidateLayer, t: Tensor) -> tuple[Tensor, Tensor]:
    """``(x, A)``: ``x = W1·t + b1`` and ``A = h(x)``, in the dtype and on the device of ``t``.

    kind "conv": t (N, D1, *spatial), stride 1, same padding (begin = (k − 1)//2); x keeps the spatial size.
    kinds "gemm" and "matmul": W1 contracts the axis ``layer.channel_axis`` of t, where x has Dn neurons.
    Raises DataError when t does not have the rank or the D1 channels that W1 expects.
    """
    W1, b1 = _as_tensor(layer.W1, t), _as_tensor(layer.b1, t)
    axis = output_channel_axis(layer)
    rank = W1.ndim if layer.kind == "conv" else None
    if t.ndim == 0 or (rank is not None and t.ndim != rank) or t.shape[axis] != W1.shape[1]:
        raise DataError(
            f"a {layer.kind} layer with weight {tuple(W1.shape)} can't read a tensor of shape "
            f"{tuple(t.shape)}: axis {axis} must have {W1.shape[1]} channels"
        )
    if layer.kind == "conv":
        kernel = W1.shape[2:]
        begins = [(k - 1) // 2 for k in kernel]
        ends = [k - 1 - begin for k, begin in zip(kernel, begins, strict=True)]
        if begins == ends:
            x = _CONVOLUTIONS[len(kernel)](t, W1, b1, padding=begins)
        else:
            x = _CONVOLUTIONS[len(kernel)](_pad(t, begins, ends), W1, b1)
    else:
        x = (t.movedim(axis, -1) @ W1.T + b1).movedim(-1, axis)
    return x, apply(layer.activation, x, axis)


def output_channel_axis(layer: CandidateLayer | Geometry) -> int:
    """The axis of the neurons in the output: of x for a CandidateLayer, of y for a reader's geometry."""
    if isinstance(layer, CandidateLayer):
        return 1 if layer.kind == "conv" else layer.channel_axis
    return 1 if isinstance(layer, ConvGeometry) else layer.output_axis


def channel_rows(tensor: Tensor, channel_axis: int) -> Tensor:
    """All positions of a tensor as rows (n, channels): what the statistics of x are taken over."""
    return tensor.movedim(channel_axis, -1).reshape(-1, tensor.shape[channel_axis])


def target_rows(y: Tensor, geometry: Geometry) -> Tensor:
    """The reader's output as rows (n, D2), one for each row of ``row_chunks`` and in the same order."""
    return channel_rows(y, output_channel_axis(geometry))


def row_chunks(
    A: Tensor, geometry: Geometry, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> Iterator[Tensor]:
    """The reader's input as chunks of rows (n_i, Dn·taps), in the order of ``target_rows``.

    A chunk has at most ``max_rows`` rows and ``max_bytes`` bytes (but at least one row) and is a copy; the
    whole patch matrix never exists, and a single large image is cut, too. Raises DataError where A does not
    fit the geometry, UsageError where a limit is below 1.
    """
    if max_rows < 1 or max_bytes < 1:
        raise UsageError(f"max_rows = {max_rows} and max_bytes = {max_bytes} must be positive")
    view, row_axes = (
        _conv_view(A, geometry) if isinstance(geometry, ConvGeometry) else _dense_view(A, geometry)
    )
    columns = math.prod(view.shape[row_axes:])
    rows = min(max_rows, max(1, max_bytes // max(1, columns * view.element_size())))
    for box in _boxes(view.shape[:row_axes], rows):
        yield view[box].reshape(-1, columns)


def resolved_pads(geometry: ConvGeometry, spatial: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """``(begins, ends)`` of a Conv on an input of this spatial size, ``auto_pad`` resolved as ONNX defines
    it."""
    s = len(spatial)
    if geometry.auto_pad in ("", "NOTSET"):
        return list(geometry.pads[:s]), list(geometry.pads[s:])
    if geometry.auto_pad == "VALID":
        return [0] * s, [0] * s
    if geometry.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UsageError(f"unknown auto_pad {geometry.auto_pad!r}")
    begins, ends = [], []
    for size, k, stride, d in zip(
        spatial, geometry.kernel, geometry.strides, geometry.dilations, strict=True
    ):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        upper = geometry.auto_pad == "SAME_UPPER"
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins, ends


def transposed_pads(geometry: ConvGeometry, spatial: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """``(begins, ends)`` of a ConvTranspose: what it cuts off its full output, of (size − 1)·stride + span
    positions in each direction; negative where it adds zeros.

    As ONNX defines them; where it is silent (SAME with a full output below size·stride) as onnxruntime does,
    which cuts nothing off then.
    """
    s = len(spatial)
    extra = geometry.output_padding or (0,) * s
    given = geometry.auto_pad in ("", "NOTSET")
    if not given and geometry.auto_pad not in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UsageError(f"unknown auto_pad {geometry.auto_pad!r}")
    begins, ends = [], []
    for i, (size, k, stride, d) in enumerate(
        zip(spatial, geometry.kernel, geometry.strides, geometry.dilations, strict=True)
    ):
        full = (size - 1) * stride + (k - 1) * d + 1
        begin, end = (geometry.pads[i], geometry.pads[s + i]) if given else (0, 0)
        if geometry.output_shape or geometry.auto_pad.startswith("SAME"):
            wanted = geometry.output_shape[i] if geometry.output_shape else size * stride
            total = max(0, full + extra[i] - wanted)
            begin = total // 2 if geometry.auto_pad == "SAME_UPPER" else total - total // 2
            end = total - begin
        begins.append(begin)
        ends.append(end - extra[i])
    return begins, ends


def _stuffed(A: Tensor, geometry: ConvGeometry) -> Tensor:
    """The tensor whose windows at stride 1 are a ConvTranspose's rows."""
    spatial = tuple(A.shape[2:])
    if math.prod(spatial) == 0:
        raise DataError(f"a ConvTranspose can't read a tensor of shape {tuple(A.shape)}")
    spread = A
    if any(stride != 1 for stride in geometry.strides):
        sizes = [(size - 1) * stride + 1 for size, stride in zip(spatial, geometry.strides, strict=True)]
        spread = A.new_zeros(*A.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in geometry.strides))] = A
    around = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations, strict=True)]
    begins, ends = (
        [rim - cut for rim, cut in zip(around, cuts, strict=True)]
        for cuts in transposed_pads(geometry, spatial)
    )
    return _pad(spread, begins, ends)


def _conv_view(A: Tensor, geometry: ConvGeometry) -> tuple[Tensor, int]:
    """A view (N, *positions, C, *kernel) of the padded tensor, and the number of its row axes."""
    s = len(geometry.kernel)
    if A.ndim != s + 2:
        raise DataError(f"a Conv with kernel {geometry.kernel} can't read a tensor of shape {tuple(A.shape)}")
    strides = geometry.strides
    if geometry.transposed:
        view, strides = _stuffed(A, geometry), (1,) * s
    else:
        view = _pad(A, *resolved_pads(geometry, tuple(A.shape[2:])))
    for i, (k, stride, d) in enumerate(zip(geometry.kernel, strides, geometry.dilations, strict=True)):
        span = (k - 1) * d + 1
        if view.shape[2 + i] < span:
            raise DataError(f"a kernel that spans {span} does not fit a tensor of shape {tuple(A.shape)}")
        view = view.unfold(2 + i, span, stride)[..., ::d]
    return view.movedim(1, 1 + s), 1 + s


def _dense_view(A: Tensor, geometry: DenseGeometry) -> tuple[Tensor, int]:
    """A view with the row axes first and the columns last, and the number of its row axes."""
    if geometry.flattened:
        if A.ndim < 2 or math.prod(A.shape[2:]) != geometry.taps:
            raise DataError(
                f"a tensor of shape {tuple(A.shape)} does not flatten to {geometry.taps} taps a channel"
            )
        return A, 1
    if not -A.ndim <= geometry.channel_axis < A.ndim or geometry.taps != 1:
        raise DataError(f"a tensor of shape {tuple(A.shape)} does not fit {geometry}")
    return A.movedim(geometry.channel_axis, -1), A.ndim - 1


def _boxes(sizes: tuple[int, ...], rows: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most ``rows`` positions that cover ``sizes`` in row-major order, each contiguous in it."""
    if not sizes:
        yield ()
    if not sizes or 0 in sizes:
        return
    axis = next(i for i in range(len(sizes)) if math.prod(sizes[i + 1 :]) <= rows)
    step = rows // math.prod(sizes[axis + 1 :])
    for lead in itertools.product(*map(range, sizes[:axis])):
        for start in range(0, sizes[axis], step):
            yield (*(slice(i, i + 1) for i in lead), slice(start, start + step))


def _pad(t: Tensor, begins: list[int], ends: list[int]) -> Tensor:
    if not any(begins) and not any(ends):
        return t
    pairs = zip(reversed(begins), reversed(ends), strict=True)  # torch pads the last axis first
    return F.pad(t, [size for pair in pairs for size in pair])


def _as_tensor(array: Array, like: Tensor) -> Tensor:
    if array.dtype not in (np.float16, np.float32, np.float64):
        array = array.astype(np.float32)  # torch knows no other floating types of numpy (bfloat16)
    return torch.tensor(array).to(like)
