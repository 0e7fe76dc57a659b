from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.numerics.moments import (
    Covariance,
    CovarianceAccumulator,
    Moments,
    MomentsAccumulator,
    columns_of,
    merge,
    merge_covariances,
)

NAMES = ("mean_u", "mean_y", "uu", "uy", "yy")


def rows(
    n: int, p: int = 5, D2: int = 3, seed: int = 0, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, p, dtype=torch.float64, generator=generator)
    y = u[:, :1] + torch.randn(n, D2, dtype=torch.float64, generator=generator)
    return u + offset, y - offset


def assert_same(a: Moments, b: Moments, rtol: float) -> None:
    assert a.n == b.n
    for name in NAMES:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == torch.float64
        assert float((x - y).abs().max()) <= rtol * float(y.abs().max())


def test_moments_are_numpys() -> None:
    u, y = rows(50)
    moments = Moments.from_rows(u, y)
    both = np.cov(np.concatenate([u, y], axis=1), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.G, both[:5, :5], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(moments.C, both[:5, 5:], rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(moments.v, both[5:, 5:].diagonal(), rtol=1e-13)
    np.testing.assert_allclose(moments.mean_u, u.mean(0), rtol=1e-13)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 1500), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_split_and_any_order_of_merging_gives_the_same(sizes: list[int], random: object) -> None:
    u, y = rows(sum(sizes), offset=3.0)
    whole = Moments.from_rows(u, y)
    accumulator = MomentsAccumulator(5, 3)
    parts = []
    for part_u, part_y in zip(u.split(sizes), y.split(sizes), strict=True):
        accumulator.update(part_u, part_y)
        parts.append(Moments.from_rows(part_u, part_y))
    random.shuffle(parts)  # type: ignore[attr-defined]
    while len(parts) > 1:
        parts.append(merge(parts.pop(0), parts.pop(0)))
    if whole.n:
        assert_same(accumulator.result(), whole, 1e-12)
        assert_same(parts[0], whole, 1e-12)


@pytest.mark.parametrize("split", [1, 37, 1024, 5000, 20000])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_rows_are_precise(split: int, offset: float) -> None:
    u, y = (tensor.float() for tensor in rows(20000 if split > 1 else 3000, offset=offset))
    exact = Moments.from_rows(u.double(), y.double())
    accumulator = MomentsAccumulator(5, 3)
    for part_u, part_y in zip(u.split(split), y.split(split), strict=True):
        accumulator.update(part_u, part_y)
    assert_same(accumulator.result(), exact, 5e-7)


def test_centring_survives_a_mean_far_above_the_spread() -> None:
    u, y = (tensor.float() for tensor in rows(4000, offset=3e4))
    exact = Moments.from_rows(u.double(), y.double())
    accumulator = MomentsAccumulator(5, 3)
    accumulator.update(u, y)
    assert_same(accumulator.result(), exact, 5e-6)


def test_a_mean_that_float32_can_not_hold_does_not_inflate_the_variance() -> None:
    u, y = rows(4000)
    u = (3e4 + 0.01 * u).float()  # float32 is spaced by 0.002 here, its mean is not on that grid
    accumulator = MomentsAccumulator(5, 3)
    accumulator.update(u, y)
    assert_same(accumulator.result(), Moments.from_rows(u.double(), y), 1e-5)


def test_drifting_data_are_merged_right() -> None:
    parts = [rows(700, seed=i, offset=10.0 * i) for i in range(4)]
    accumulator = MomentsAccumulator(5, 3)
    for u, y in parts:
        accumulator.update(u.float(), y.float())
    u, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert_same(accumulator.result(), Moments.from_rows(u.float().double(), y.float().double()), 5e-7)


def test_merge_is_commutative_and_zero_is_neutral() -> None:
    a, b, c = (Moments.from_rows(*rows(20, seed=i)) for i in range(3))
    assert_same(merge(a, b), merge(b, a), 1e-14)
    assert_same(merge(a, Moments.zero(5, 3)), a, 0)
    assert_same(merge(Moments.zero(5, 3), a), a, 0)
    reference = merge(merge(a, b), c)
    for x, y, z in itertools.permutations((a, b, c)):
        assert_same(merge(x, merge(y, z)), reference, 1e-13)
    assert merge(Moments.zero(2, 1), Moments.zero(2, 1)).n == 0


def test_result_is_a_copy_and_the_accumulator_goes_on() -> None:
    u, y = rows(60)
    accumulator = MomentsAccumulator(5, 3)
    accumulator.update(u[:30], y[:30])
    half = accumulator.result()
    accumulator.update(u[30:], y[30:])
    assert_same(half, Moments.from_rows(u[:30], y[:30]), 1e-12)
    assert_same(accumulator.result(), Moments.from_rows(u, y), 1e-12)


def test_rows_handed_in_may_change_afterwards() -> None:
    u, y = rows(30)
    accumulator = MomentsAccumulator(5, 3)
    handed = u.clone()
    accumulator.update(handed, y)
    handed.fill_(7)
    assert_same(accumulator.result(), Moments.from_rows(u, y), 1e-12)


def test_subset_is_the_moments_of_the_columns() -> None:
    u, y = rows(40, p=6)
    columns = columns_of([2, 0], taps=2)
    assert columns.tolist() == [4, 5, 0, 1]
    assert_same(Moments.from_rows(u, y).subset(columns), Moments.from_rows(u[:, columns], y), 1e-13)


def test_bad_rows() -> None:
    accumulator = MomentsAccumulator(5, 3)
    with pytest.raises(UsageError, match="rows are"):
        accumulator.update(torch.zeros(4, 5), torch.zeros(3, 3))
    with pytest.raises(UsageError, match="merged"):
        merge(Moments.zero(5, 3), Moments.zero(5, 2))
    with pytest.raises(UsageError, match="float32 or float64"):
        MomentsAccumulator(5, 3, dtype=torch.float16)
    u, y = rows(40)
    u[3, 2] = float("nan")
    accumulator.update(u, y)
    with pytest.raises(DataError, match="not finite"):
        accumulator.result()


def test_covariance() -> None:
    x = rows(3000)[0]
    x[:, 2] = 4.0
    accumulator = CovarianceAccumulator(5)
    for part in x.float().split(450):
        accumulator.update(part)
    covariance = accumulator.result()
    exact = Covariance.from_rows(x.float().double())
    merged = merge_covariances(Covariance.from_rows(x[:100]), Covariance.from_rows(x[100:]))
    r = torch.corrcoef(x[:, [0, 1, 3, 4]].T)
    for ours, tolerance in ((covariance, 5e-7), (exact, 1e-7), (merged, 1e-12)):
        assert ours.n == 3000
        found = ours.correlation()
        assert float((found[[0, 1, 3, 4]][:, [0, 1, 3, 4]] - r).abs().max()) < tolerance
        assert found[2].tolist() == [0, 0, 1, 0, 0]
    neurons = torch.tensor([3, 1])
    torch.testing.assert_close(exact.subset(neurons).xx, exact.xx[neurons][:, neurons])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_moments_stay_on_the_device_of_their_rows() -> None:
    u, y = rows(5000)
    accumulator = MomentsAccumulator(5, 3, "cuda")
    accumulator.update(u.float().cuda(), y.float().cuda())
    moments = accumulator.result()
    assert moments.uu.is_cuda
    assert_same(moments.to("cpu"), Moments.from_rows(u.float().double(), y.float().double()), 5e-7)
