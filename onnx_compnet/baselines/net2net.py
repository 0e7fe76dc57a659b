"""Net2DeeperNet (Chen, Goodfellow, Shlens 2015): a layer of Dirac kernels, which repeats its input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_compnet.core import known_weights
from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.layers import Activation, BatchNorm, CandidateLayer, NewLayers, ReaderWeights
from onnx_compnet.numerics.initialise import exact_core, slope_on
from onnx_compnet.numerics.moments import Covariance

EPSILON = 1e-5  # of BatchNormalization, the ONNX default


def net2deeper(index: GraphIndex, site: Site, kernel: tuple[int, ...], activation: Activation) -> NewLayers:
    """D1 neurons that hand their channel on, and the readers as they are; the function stays exactly.

    That holds where h is the identity (or a multiple of it) on all values that the site's tensor can have: relu
    behind relu, clip behind the same clip, not tanh or sigmoid.

    Raises UnsupportedError where it is not.
    """
    slope = slope_on(activation, *site.bounds)
    if slope is None:
        low, high = site.bounds
        where = f"from {low:g} to {high:g}" if np.isfinite([low, high]).any() else "of any size"
        raise UnsupportedError(
            f"Net2DeeperNet hands the values of {site.tensor} on through {activation}, which is not linear on "
            f"values {where}; take method netmorph or alg3, or another --activation"
        )
    core = exact_core(
        site.channels, site.channels, kernel, activation, bounds=site.bounds, groups=site.groups
    )
    known = known_weights(index, site, site.channels, core)
    assert known is not None
    dtype = np.dtype(site.dtype)
    layer = CandidateLayer(
        kind=site.kind,
        activation=activation,
        W1=core.W1.astype(dtype),
        b1=np.zeros(site.channels, dtype),
        channel_axis=1 if site.kind == "conv" else site.channel_axis,
    )
    return NewLayers(layer, tuple(ReaderWeights(each.W2.numpy(), each.b2.numpy()) for each in known))


def require_normalisable(site: Site) -> None:
    """Raise UnsupportedError where a BatchNormalization can't stand: its channels are on axis 1."""
    if not (site.kind == "conv" or (site.kind == "gemm" and site.channel_axis in (-1, 1))):
        raise UnsupportedError(
            f"--batch-norm needs the channels on axis 1, and {site.tensor} has them on axis {site.channel_axis}"
        )


def normalised(layers: NewLayers, x: Covariance) -> NewLayers:
    """A BatchNormalization between W1 and h that is the identity at the moments of ``x``: γ = √(σ²+ε), β = μ."""
    mean = x.mean.cpu().numpy()
    variance = np.maximum((x.xx.diagonal() / x.n).cpu().numpy(), 0)
    norm = BatchNorm(np.sqrt(variance + EPSILON), mean, mean, variance, EPSILON)
    return replace(layers, layer=replace(layers.layer, norm=norm))
