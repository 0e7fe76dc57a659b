"""Effective rank and expressivity bottleneck against their definitions on samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.numerics.expressivity import bottleneck, effective_rank
from onnx_compnet.numerics.moments import Covariance, Moments


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), channels=st.integers(1, 6), seed=st.integers(0, 999))
def test_effective_rank_is_the_entropy_of_the_singular_values_squared(n, channels, seed):
    x = np.random.default_rng(seed).normal(size=(n, channels))
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    shares = values[values > 1e-12 * values.max()] / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(Covariance.from_rows(torch.from_numpy(x))) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_plain_cases():
    t = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = torch.cat([t, 2 * t, -t], 1)
    assert effective_rank(Covariance.from_rows(together)) == pytest.approx(1, abs=1e-6)
    apart = torch.randn(4000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert effective_rank(Covariance.from_rows(apart)) == pytest.approx(5, rel=1e-2)
    assert effective_rank(Covariance.from_rows(torch.ones(9, 3))) == 0


def test_bottleneck_is_the_residual_of_least_squares_with_a_bias():
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(300, 7)), rng.normal(size=(300, 4)) + 2
    v[:, 0] += 3 * u[:, 1]
    design = np.column_stack([u, np.ones(len(u))])
    left = v - design @ np.linalg.lstsq(design, v, rcond=None)[0]
    found = bottleneck([Moments.from_rows(torch.from_numpy(u), torch.from_numpy(v))])
    assert found is not None
    assert found.wanted == pytest.approx((v**2).sum())
    assert found.unexpressed == pytest.approx((left**2).sum() / (1 - 7 / 300), rel=1e-4)


def test_chance_is_taken_out():
    """Of pure noise nothing is expressed, however many columns there are."""
    rng = np.random.default_rng(4)
    shares = []
    for p in (2, 50, 200):
        u, v = rng.normal(size=(1000, p)), rng.normal(size=(1000, 30))
        found = bottleneck([Moments.from_rows(torch.from_numpy(u), torch.from_numpy(v))])
        assert found is not None
        shares.append(found.unexpressed / found.wanted)
    assert shares == pytest.approx([1, 1, 1], abs=0.02)


def test_what_is_linear_in_the_input_is_expressed():
    rng = np.random.default_rng(5)
    u = rng.normal(size=(200, 6))
    v = u @ rng.normal(size=(6, 3)) + rng.normal(size=3)
    found = bottleneck([Moments.from_rows(torch.from_numpy(u), torch.from_numpy(v))])
    assert found is not None
    assert found.unexpressed < 1e-4 * found.wanted


def test_groups_add_up_and_too_few_rows_give_nothing():
    rng = np.random.default_rng(6)
    parts = [
        Moments.from_rows(*(torch.from_numpy(rng.normal(size=(40, k))) for k in (3, 2))) for _ in range(2)
    ]
    both, one, two = bottleneck(parts), bottleneck(parts[:1]), bottleneck(parts[1:])
    assert both is not None
    assert one is not None
    assert two is not None
    assert both.unexpressed == pytest.approx(one.unexpressed + two.unexpressed)
    few = Moments.from_rows(*(torch.from_numpy(rng.normal(size=(5, k))) for k in (3, 2)))
    assert bottleneck([few]) is None


def test_constant_and_repeated_columns_do_no_harm():
    rng = np.random.default_rng(7)
    u = rng.normal(size=(100, 2))
    u = np.column_stack([u, u, np.ones(100)])
    v = rng.normal(size=(100, 2))
    found = bottleneck([Moments.from_rows(torch.from_numpy(u), torch.from_numpy(v))])
    assert found is not None
    assert 0.5 < found.unexpressed / found.wanted <= 1
    flat = Moments.from_rows(torch.ones(50, 3), torch.from_numpy(rng.normal(size=(50, 2))))
    assert bottleneck([flat]) is not None
