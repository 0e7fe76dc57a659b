"""NetMorph's filters: F2 behind F1 is G, by torch's own convolutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics.morph import ZERO, composed, general, netmorph, practical

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def filters(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error_on_an_image(G, morph, K2, p=1) -> float:
    """‖L2(t) − F2(F1(t))‖/‖L2(t)‖, all the padding on F1."""
    K, K1, rank = G.shape[2:], morph.F1.shape[2:], G.ndim - 2
    x = filters(2, G.shape[1], *[9, 8, 7][:rank], seed=7)
    pads: list[int] = []
    for k, a, b, e in zip(K, K1, K2, morph.offset, strict=True):
        pads = [p + e, p + a + b - 1 - k - e, *pads]
    expected = CONV[rank](F.pad(x, [p] * 2 * rank), G)
    found = CONV[rank](CONV[rank](F.pad(x, pads), morph.F1), morph.F2)
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(1, 3),
    Co=st.integers(1, 5),
    Ci=st.integers(1, 4),
    k=st.integers(1, 3),
    k1=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_as_many_neurons_as_channels_are_enough(rank, Co, Ci, k, k1, seed):
    G = filters(Co, Ci, *[k] * rank, seed=seed)
    found = netmorph(G, Ci, [k1] * rank, [k] * rank, seed=seed)
    assert found.loss <= ZERO
    assert error_on_an_image(G, found, [k] * rank) < 1e-6
    if found.F1.numel() > 1 and found.F2.numel() > 1:
        assert found.F1.std(correction=0) == pytest.approx(float(found.F2.std(correction=0)))


def test_composed_is_the_sum_over_taps():
    F1, F2 = filters(3, 2, 2, 3), filters(4, 3, 3, 2, seed=1)
    slow = np.zeros((4, 2, 4, 4))
    for o, i, m in itertools.product(range(4), range(2), range(3)):
        for a in itertools.product(range(2), range(3)):
            for b in itertools.product(range(3), range(2)):
                slow[(o, i, a[0] + b[0], a[1] + b[1])] += float(F2[(o, m, *b)] * F1[(m, i, *a)])
    assert np.allclose(composed(F1, F2).numpy(), slow)


def test_each_least_squares_is_the_best_there_is():
    """The last step of a round, F1 for a fixed F2, against an explicit lstsq over all unknowns."""
    G = filters(3, 4, 3)
    found = general(G, 2, [2], [2], max_itr=1)  # K̃ = 3 and two neurons: not exact
    columns = []
    for place in range(found.F1.numel()):
        unit = torch.zeros(found.F1.numel(), dtype=torch.float64)
        unit[place] = 1
        columns.append(composed(unit.reshape(found.F1.shape), found.F2).reshape(-1))
    matrix, y = torch.stack(columns, 1), G.reshape(-1, 1)
    best = matrix @ torch.linalg.lstsq(matrix, y, driver="gelsd").solution
    assert float((G - composed(found.F1, found.F2)).norm()) == pytest.approx(
        float((best - y).norm()), rel=1e-9
    )


def test_the_general_algorithm_never_gets_worse_with_more_rounds():
    G = filters(6, 8, 3, 3)
    losses = [general(G, 4, [3, 3], [3, 3], max_itr=rounds).loss for rounds in (1, 2, 5, 10)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert general(G, 4, [3, 3], [3, 3]).algorithm == "general"


def test_a_dense_layer_is_a_product_of_two_matrices():
    G = filters(5, 7)
    found = netmorph(G, 5, (), ())
    assert found.loss <= ZERO
    assert torch.allclose(found.F2 @ found.F1, G)
    truncated = netmorph(G, 2, (), (), max_itr=200)
    rank2 = torch.linalg.svdvals(G)[2:].norm() / G.norm()
    assert truncated.loss == pytest.approx(float(rank2), rel=0.02)


def test_too_few_neurons_are_told_by_the_loss():
    G = filters(8, 16, 3, 3)
    found = netmorph(G, 4, (3, 3), (3, 3))
    assert found.loss > 0.1
    assert found.loss == pytest.approx(
        float((composed(found.F1, found.F2)[:, :, 1:4, 1:4] - G).norm() / G.norm()), rel=0.2
    )


def test_the_practical_algorithm_ends_with_one_kernel_of_a_single_tap():
    G = filters(8, 16, 3, 3)
    found = practical(G, 16, (3, 3), (3, 3))
    assert found is not None
    assert found.loss <= ZERO
    assert found.algorithm == "practical"
    taps = [int((each.abs().amax((0, 1)) > 1e-9).sum()) for each in (found.F1, found.F2)]
    assert min(taps) == 1


def test_filters_of_zeros_stay_zero():
    found = netmorph(torch.zeros(3, 2, 3, 3), 4, (3, 3), (3, 3))
    assert found.loss == 0
    assert composed(found.F1, found.F2).abs().max() < 1e-12


def test_the_seed_decides():
    G = filters(4, 3, 3)
    one, same, other = (netmorph(G, 5, [3], [3], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.F1, same.F1)
    assert not torch.equal(one.F1, other.F1)


def test_kernels_that_are_too_small_are_refused():
    with pytest.raises(UsageError, match="don't fit"):
        general(filters(2, 2, 5), 4, [2], [2])
    with pytest.raises(UsageError, match="at least one neuron"):
        netmorph(filters(2, 2, 3), 0, [3], [3])
