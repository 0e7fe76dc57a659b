"""What is known of the readers' new weights beforehand, where the candidates have a core that keeps the function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import Geometry
from onnx_compnet.numerics.initialise import Core


def known_weights(index: GraphIndex, site: Site, Dn: int, core: Core | None) -> list[Tensor] | None:
    """W2 of each reader in canonical form, with which the core does what the reader did with t; 0 for other neurons.

    With t = Pᵀu for the core's P (Dn, D1), L2 on t is P·W2 on u, tap by tap, in each group by itself. None without
    a core, and where its activation is flat.
    """
    if core is None or core.W2 is None:
        return None
    P = np.zeros((Dn, site.channels))
    P[core.places] = core.W2
    if site.mode == "block":
        return [torch.from_numpy(P)]
    present = [reader_weights(index, reader).W2.astype(np.float64) for reader in site.linear]
    return [_through(P, W2, reader.geometry) for W2, reader in zip(present, site.linear, strict=True)]


def _through(P: np.ndarray, W2: np.ndarray, geometry: Geometry) -> Tensor:
    Dn, D1 = P.shape
    groups, taps, D2 = geometry.groups, geometry.taps, W2.shape[1]
    mixed = P.reshape(groups, Dn // groups, groups, D1 // groups)[np.arange(groups), :, np.arange(groups)]
    weights = W2.reshape(D1 // groups, taps, groups, D2 // groups)
    known = np.einsum("gnd,dqgf->nqgf", mixed, weights)
    return torch.from_numpy(known.reshape(-1, D2))


def by_group(weights: Sequence[Tensor], groups: int) -> list[Tensor]:
    """Readers' W2 (Dn/groups·taps, D2) of one geometry, side by side, one tensor a group."""
    parts = [W2.reshape(len(W2), groups, -1) for W2 in weights]
    return list(torch.cat(parts, 2).unbind(1))
