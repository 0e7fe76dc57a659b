"""The layer that keeps the function exactly, as narrow as the readers' weights allow.

What the readers see of t (D1 channels) is M ᵀt for M (D1, all taps and outputs), and with the rows of U (r, D1) an
orthonormal basis of M's column space, M ᵀt = (U M)ᵀ(U t). So r channels U t are enough, and

- where h is linear on all values that t can have (ReLU behind ReLU), the channels that are read, by Dirac kernels;
- where h(z) − h(−z) = κz (ReLU, GELU, SiLU, HardSwish, Softplus, LeakyReLU, PReLU), U t and −U t, 2·r neurons;

whichever is narrower. No data is looked at; the child's error is checked on held-out samples (``TOLERANCE``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnx_compnet.core import known_weights
from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import Activation, CandidateLayer, NewLayers, ReaderWeights
from onnx_compnet.numerics.initialise import exact_core, is_exact, slope_on

TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""the relative error at the readers' outputs that rounding may leave, by the model's dtype"""
_ROUNDING = {"float64": 1e-13, "float32": 5e-7}
"""singular values of M below this share of the largest are rounding of the weights"""


def exact(
    index: GraphIndex, site: Site, kernel: tuple[int, ...], activation: Activation, t_scale: float = 1.0
) -> NewLayers:
    """The layer and the readers' weights behind it; ``t_scale`` as for ``initialise.exact_core``.

    With groups, each has its own basis, all of the largest one's size. In a block t itself is wanted: r = D1.

    Raises UnsupportedError where the activation has no exact layer.
    """
    if not is_exact(activation, site.bounds):
        raise UnsupportedError(
            f"{activation} has no exact layer at {site.tensor}: h(z) − h(−z) is not linear in z. Take --activation "
            "relu, or come near: --method alg3 --mode block to about 1e-3, --method obs --max-error E"
        )
    matrices = _read(index, site)
    basis = _basis(matrices, site.dtype)
    linear = slope_on(activation, *site.bounds) is not None
    if linear:
        units = _units(matrices)
        pairs = 2 * basis.shape[1] < units.shape[1]
        basis, linear = (basis, False) if pairs and is_exact(activation, _ANYWHERE) else (units, True)
    bounds = site.bounds if linear else _ANYWHERE
    Dn = basis.shape[0] * basis.shape[1] * (1 if linear else 2)
    core = exact_core(
        site.channels, Dn, kernel, activation, bounds=bounds, groups=site.groups, t_scale=t_scale, basis=basis
    )
    known = known_weights(index, site, Dn, core)
    assert known is not None
    dtype = np.dtype(site.dtype)
    layer = CandidateLayer(
        kind=site.kind,
        activation=activation,
        W1=core.W1.astype(dtype),
        b1=np.zeros(Dn, dtype),
        channel_axis=1 if site.kind == "conv" else site.channel_axis,
    )
    return NewLayers(layer, tuple(ReaderWeights(each.W2.numpy(), each.b2.numpy()) for each in known))


_ANYWHERE = (-math.inf, math.inf)


def _read(index: GraphIndex, site: Site) -> list[NDArray[np.float64]]:
    """M of each group of channels: (D1/groups, taps and outputs of all readers)."""
    if site.mode == "block":
        return [np.eye(site.channels)]
    groups, each = site.groups, site.channels // site.groups
    parts: list[list[NDArray[np.float64]]] = [[] for _ in range(groups)]
    for reader in site.linear:
        g = reader.geometry
        W2 = reader_weights(index, reader).W2.astype(np.float64)
        own = W2.reshape(site.channels // g.groups, g.taps, g.groups, -1)
        of_channel = own.transpose(2, 0, 1, 3).reshape(site.channels, -1)
        for number, part in enumerate(parts):
            part.append(of_channel[number * each : (number + 1) * each])
    return [np.concatenate(part, 1) for part in parts]


def _units(matrices: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The channels that are read, as rows of the identity (groups, as many in each, D1/groups)."""
    read = [np.abs(M).max(1) > 0 for M in matrices]
    most = max(1, *(int(used.sum()) for used in read))
    rows = [np.argsort(~used, kind="stable")[:most] for used in read]
    return np.stack([np.eye(len(used))[np.sort(chosen)] for used, chosen in zip(read, rows, strict=True)])


def _basis(matrices: list[NDArray[np.float64]], dtype: str) -> NDArray[np.float64]:
    """Rows that span what is read (groups, r, D1/groups): channels, unless fewer combinations of them will do."""
    units = _units(matrices)
    if dtype not in _ROUNDING:
        return units  # combinations of channels would be rounded
    found = [np.linalg.svd(M, full_matrices=True)[:2] for M in matrices]
    largest = max(float(s[0]) for _, s in found)
    ranks = [int((s > _ROUNDING[dtype] * largest).sum()) for _, s in found]
    rank = max(1, *ranks)
    return units if rank >= units.shape[1] else np.stack([U[:, :rank].T for U, _ in found])
