"""Directions against the truncated SVD they are defined by, and neurons that carry them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation
from onnx_compnet.numerics.activations import apply
from onnx_compnet.numerics.directions import carriers, directions, linear_on


def tensors(n: int, D1: int, m: int, seed: int, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n, rank or D1)) @ rng.normal(size=(rank or D1, D1)) + rng.normal(size=D1)
    return torch.from_numpy(t), torch.from_numpy(rng.normal(size=(D1, m)))


def covariance(t: torch.Tensor) -> torch.Tensor:
    return torch.cov(t.T, correction=0).reshape(t.shape[1], t.shape[1])


@settings(max_examples=40, deadline=None)
@given(D1=st.integers(1, 6), m=st.integers(1, 6), k=st.integers(1, 6), seed=st.integers(0, 999))
def test_the_first_k_leave_what_the_truncated_svd_leaves(D1, m, k, seed):
    t, W = tensors(60, D1, m, seed)
    rows = directions(covariance(t), W)
    assert len(rows) == min(D1, m)
    k = min(k, len(rows))
    centred = t - t.mean(0)
    y, z = centred @ W, centred @ rows[:k].T
    assert torch.allclose(covariance(centred @ rows.T), torch.eye(len(rows), dtype=torch.float64), atol=1e-6)
    left = y - z @ torch.linalg.lstsq(z, y).solution
    best = torch.linalg.svdvals(y)[k:].square().sum()
    assert float(left.square().sum()) == pytest.approx(float(best), abs=1e-7 * float(y.square().sum()))


def test_what_never_varies_and_what_nothing_reads_has_no_direction():
    t, W = tensors(50, 5, 4, 0, rank=2)
    assert len(directions(covariance(t), W)) == 2
    W[:, 1:] = 0
    assert len(directions(covariance(t), W)) == 1
    assert directions(torch.zeros(5, 5), W).shape == (0, 5)


ALL = [Activation(name) for name in ACTIVATION_PARAMETERS]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ALL, ids=str)
def test_a_linear_layer_behind_the_neurons_has_the_directions_again(activation, biased):
    t, W = tensors(400, 4, 4, 1)
    rows = directions(covariance(t), W)
    z = t @ rows.T
    found = carriers(rows, z.amin(0), z.amax(0), activation, biased=biased)
    weight, bias = found.W, found.b
    if not biased:
        assert not bias.any()
    A = apply(activation, t @ weight.T + bias)
    told = torch.zeros(len(t), len(rows), dtype=t.dtype).index_add(1, found.of, A * found.gain)
    off = (told - told.mean(0)) - (z - z.mean(0))
    design = torch.cat([A, torch.ones(len(A), 1, dtype=A.dtype)], 1)
    left = z - design @ torch.linalg.lstsq(design, z, driver="gelsd").solution
    share = float(left.square().mean().sqrt() / z.std())
    flat = not biased and activation.name == "thresholded_relu"
    bent = not biased and activation.name in ("elu", "celu", "selu", "mish", "clip")
    assert share < (1.0 if flat else 0.5 if bent else 0.02)
    assert float(off.square().mean().sqrt() / z.std()) < (1.01 if flat else 0.7 if bent else 0.04)
    one_each = biased or activation.name in ("tanh", "softsign")
    assert len(weight) == (len(rows) if one_each else 2 * len(rows))


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_the_linear_range_is_linear(activation):
    begin, end = linear_on(activation)
    low = begin if math.isfinite(begin) else -50.0
    high = end if math.isfinite(end) else max(low, 0) + 50.0
    x = torch.linspace(low, high, 2001, dtype=torch.float64)[1:-1]
    y = apply(activation, x)
    design = torch.stack([x, torch.ones_like(x)], 1)
    left = y - design @ torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    assert float(left.square().mean().sqrt() / y.std()) < 0.02


def test_a_clip_without_bounds_is_the_identity():
    rows = torch.eye(2, dtype=torch.float64)
    low, high = torch.tensor([-1.0, 2.0]).double(), torch.tensor([3.0, 9.0]).double()
    found = carriers(rows, low, high, Activation("clip", (-math.inf, math.inf)), biased=True)
    assert torch.equal(found.W, rows)
    assert not found.b.any()
    assert torch.allclose(found.gain, torch.ones(2, dtype=torch.float64))
    above = carriers(rows, low, high, Activation("clip", (-math.inf, 1.0)), biased=True)
    assert bool((high + above.b < 1).all())
