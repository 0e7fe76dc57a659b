"""What is known of the readers' new weights beforehand, where the candidates have a core that keeps the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import Geometry
from onnx_compnet.numerics.initialise import Core


@dataclass(frozen=True, eq=False)
class Known:
    """What a reader's W2 (Dn/groups·taps, D2) and b2 (D2,) are known to be; ``exact`` to rounding."""

    W2: Tensor
    b2: Tensor
    exact: bool


def known_weights(index: GraphIndex, site: Site, Dn: int, core: Core | None) -> list[Known] | None:
    """For each reader the weights with which the core does what the reader did with t; 0 for other neurons.

    With t = Pᵀu for the core's P (Dn, D1), L2 on t is P·W2 on u, tap by tap, in each group by itself. None without
    a core, and where its activation is flat.
    """
    if core is None or core.W2 is None:
        return None
    P = np.zeros((Dn, site.channels))
    P[core.places] = core.W2
    if site.mode == "block":
        zero = torch.zeros(site.channels, dtype=torch.float64)
        return [Known(torch.from_numpy(P), zero, core.exact)]
    found = []
    for reader in site.linear:
        present = reader_weights(index, reader)
        W2 = _through(P, present.W2.astype(np.float64), reader.geometry)
        found.append(Known(W2, torch.from_numpy(present.b2.astype(np.float64)), core.exact))
    return found


def _through(P: np.ndarray, W2: np.ndarray, geometry: Geometry) -> Tensor:
    Dn, D1 = P.shape
    groups, taps, D2 = geometry.groups, geometry.taps, W2.shape[1]
    mixed = P.reshape(groups, Dn // groups, groups, D1 // groups)[np.arange(groups), :, np.arange(groups)]
    weights = W2.reshape(D1 // groups, taps, groups, D2 // groups)
    known = np.einsum("gnd,dqgf->nqgf", mixed, weights)
    return torch.from_numpy(known.reshape(-1, D2))


def by_group(known: Sequence[Known], groups: int) -> list[Known]:
    """The readers of one geometry side by side, one a group."""
    W2s = torch.cat([each.W2.reshape(len(each.W2), groups, -1) for each in known], 2).unbind(1)
    b2s = torch.cat([each.b2.reshape(groups, -1) for each in known], 1).unbind(0)
    exact = all(each.exact for each in known)
    return [Known(W2, b2, exact) for W2, b2 in zip(W2s, b2s, strict=True)]
