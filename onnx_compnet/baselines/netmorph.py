"""NetMorph (Wei, Wang, Rui, Chen 2016): the readers' filters taken apart into the new layer and new filters.

It sees no data. The activation in between starts as the identity (φ_a with a = 1) and is learned later.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Reader, Site
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import (
    Activation,
    CandidateLayer,
    ConvGeometry,
    DenseGeometry,
    NewLayers,
    ReaderWeights,
)
from onnx_compnet.numerics import morph
from onnx_compnet.numerics.morph import Morph
from onnx_compnet.numerics.rows import resolved_pads


def netmorph(
    index: GraphIndex,
    site: Site,
    width: int,
    kernel: tuple[int, ...],
    activation: Activation,
    *,
    seed: int = 0,
) -> tuple[NewLayers, Morph]:
    """A layer of ``width`` neurons, and the readers' new filters behind it, of the size that they had.

    All padding goes on the new layer (p + what K̃ has more than K on each side), none on the readers: padding both
    would be wrong at the borders, where the new layer's output is not 0. Stride and bias stay the readers'.
    ``activation`` has to be the identity (:attr:`Activation.as_identity`). Several readers are one problem where
    their windows are the same.

    Raises UnsupportedError behind a Flatten, for grouped and transposed convolutions, for readers whose windows
    differ, and for padding that depends on an input's unknown size.
    """
    geometry = _common_window(site)
    weights = _present(index, site)
    G = torch.cat([_filters(W2, geometry) for W2, _ in weights])
    taps = geometry.kernel if isinstance(geometry, ConvGeometry) else ()
    if site.mode == "block" and site.kind == "conv":
        taps = (1,) * len(kernel)
    found = morph.netmorph(G, width, kernel, taps, seed=seed)
    pads = dilations = None
    if site.kind == "conv":
        window = geometry if isinstance(geometry, ConvGeometry) and site.mode == "replace" else None
        pads, dilations = _padding(site, window, found, kernel)
    dtype = np.dtype(site.dtype)
    layer = CandidateLayer(
        kind=site.kind,
        activation=activation,
        W1=found.F1.numpy().astype(dtype),
        b1=np.zeros(width, dtype),
        channel_axis=1 if site.kind == "conv" else site.channel_axis,
        pads=pads,
        dilations=dilations,
    )
    readers, first = [], 0
    for W2, b2 in weights:
        own = found.F2[first : first + W2.shape[1]]
        first += W2.shape[1]
        unpadded = isinstance(geometry, ConvGeometry) and site.mode == "replace"
        readers.append(ReaderWeights(own.reshape(len(own), -1).T.numpy(), b2, unpadded))
    return NewLayers(layer, tuple(readers)), found


def enough(site: Site, kernel: tuple[int, ...]) -> int:
    """The fewest neurons that always make an exact morph: D1, or the readers' D2 if the kernel is as large as theirs.

    Then one of the two needs no taps but one, and the other is all of G.
    """
    geometry = site.linear[0].geometry
    taps = geometry.kernel if isinstance(geometry, ConvGeometry) else (1,) * len(kernel)
    holds = all(a >= b for a, b in zip(kernel, taps, strict=True))
    features = sum(reader.features for reader in site.linear)
    return min(site.channels, features) if holds else site.channels


def memory_needed(site: Site, width: int, kernel: tuple[int, ...]) -> int:
    """Bytes at the peak: the matrix of one least squares, its Gram matrix and a factor, in float64."""
    taps = site.max_taps
    composed = math.prod(kernel) * taps if kernel else taps  # no more than that
    rows, columns = site.channels * composed, width * taps
    return 8 * (rows * columns + 3 * min(rows, columns) ** 2)


def _common_window(site: Site) -> ConvGeometry | DenseGeometry:
    geometries = [reader.geometry for reader in site.linear]
    for reader in site.linear:
        geometry = reader.geometry
        if isinstance(geometry, DenseGeometry) and geometry.flattened:
            raise UnsupportedError(
                f"NetMorph can't take {reader.node} apart behind a Flatten: it has different weights at each "
                f"position; grow behind the Flatten instead (--after {reader.input}), or take method alg3"
            )
        if geometry.groups > 1 or (isinstance(geometry, ConvGeometry) and geometry.transposed):
            kind = "grouped" if geometry.groups > 1 else "transposed"
            raise UnsupportedError(
                f"NetMorph is not defined for {reader.node}, a {kind} convolution; take method alg3"
            )
    windows = {_window(geometry) for geometry in geometries}
    if len(windows) > 1:
        names = ", ".join(reader.node for reader in site.linear)
        raise UnsupportedError(
            f"NetMorph needs readers with one kernel, padding and dilation, and those of {site.tensor} ({names}) "
            "differ; take method alg3, or mode block"
        )
    return geometries[0]


def _window(geometry: ConvGeometry | DenseGeometry) -> tuple[object, ...]:
    if isinstance(geometry, DenseGeometry):
        return ("dense",)
    strides = geometry.strides if geometry.auto_pad.startswith("SAME") else ()
    return geometry.kernel, geometry.dilations, geometry.pads, geometry.auto_pad, strides


def _present(index: GraphIndex, site: Site) -> list[tuple[np.ndarray, np.ndarray]]:
    """W2 (D1·taps, D2) and b2 of each reader; of a block's, which does not exist yet, the identity."""
    if site.mode == "block":
        return [(np.eye(site.channels), np.zeros(site.channels))]
    present = [reader_weights(index, reader) for reader in site.linear]
    return [(each.W2.astype(np.float64), each.b2) for each in present]


def _filters(W2: np.ndarray, geometry: ConvGeometry | DenseGeometry) -> torch.Tensor:
    """(Co, Ci, *K) of W2 (Ci·taps, Co)."""
    kernel = geometry.kernel if isinstance(geometry, ConvGeometry) else ()
    return torch.from_numpy(np.ascontiguousarray(W2.T)).reshape(W2.shape[1], -1, *kernel)


def _padding(
    site: Site, geometry: ConvGeometry | None, found: Morph, K1: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pads and dilations of the new layer (of a block's: those that keep the size)."""
    rank = len(K1)
    dilations = geometry.dilations if geometry is not None else (1,) * rank
    begins, ends = [0] * rank, [0] * rank
    if geometry is not None:
        begins, ends = _reader_pads(site, geometry, site.linear[0])
    more = [a - 1 for a in K1]  # taps of K̃ beyond those of K = K2
    pads = [b + d * e for b, d, e in zip(begins, dilations, found.offset, strict=True)]
    pads += [b + d * (m - e) for b, d, m, e in zip(ends, dilations, more, found.offset, strict=True)]
    return tuple(pads), tuple(dilations)


def _reader_pads(site: Site, geometry: ConvGeometry, reader: Reader) -> tuple[list[int], list[int]]:
    sizes = tuple(size for size in site.spatial if isinstance(size, int))
    if geometry.auto_pad.startswith("SAME"):
        if all(stride == 1 for stride in geometry.strides):
            sizes = tuple(8 * max(k, d) for k, d in zip(geometry.kernel, geometry.dilations, strict=True))
        elif len(sizes) < len(site.spatial):
            raise UnsupportedError(
                f"{reader.node} pads by the size of its input (auto_pad), which the model does not fix; "
                "take method alg3"
            )
    return resolved_pads(geometry, sizes if len(sizes) == len(site.spatial) else (1,) * len(site.spatial))
