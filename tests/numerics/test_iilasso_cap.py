from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics_oracles import regression

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics.iilasso import cap_search, capped, iilasso
from onnx_compnet.numerics.similarity import similarity

D = 16


def statistics(rank: int | None = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, y = regression(np.random.default_rng(0), 500, D, rank)
    K = X.T @ X / 500
    return K, X.T @ y / 500, similarity(torch.from_numpy(K)).numpy()


@pytest.mark.parametrize("keep", range(1, D + 1))
def test_lambda_meets_every_cap(keep: int) -> None:
    K, c, R = statistics()
    lam = 1e-4 * abs(c).max()
    free = iilasso(K, c, R, lam, 0.1)
    ours = capped(K, c, R, keep, lam, 0.1, strengthen="lam")
    assert 1 <= len(ours.support) <= keep
    assert ours.status == "optimal"
    assert (ours.lam == lam) == (len(free.support) <= keep)
    assert ours.alpha == 0.1
    again = iilasso(K, c, R, ours.lam, ours.alpha, start=ours.beta)
    np.testing.assert_array_equal(again.support, ours.support)


@pytest.mark.parametrize("keep", range(1, D + 1))
def test_alpha_meets_every_cap_where_lambda_can_not(keep: int) -> None:
    R = statistics()[2]
    ours = capped(np.eye(D), np.ones(D), R, keep, 0.1, 0.1, strengthen="alpha")
    assert len(ours.support) in (keep, keep - 1)
    assert ours.lam == 0.1
    assert ours.alpha >= 0.1
    assert ours.status == "optimal"


def test_all_sizes_between_are_met_when_regressors_enter_one_by_one() -> None:
    c = np.linspace(0.2, 1.0, D)
    for keep in range(1, D + 1):
        ours = capped(np.eye(D), c, np.zeros((D, D)), keep, 0.01, 0.0)
        assert ours.support.tolist() == list(range(D - keep, D))


def test_what_leaves_together_can_not_be_capped() -> None:
    with pytest.raises(UsageError, match="leave together"):
        capped(np.eye(4), np.ones(4), np.zeros((4, 4)), 2, 0.1, 0.1, strengthen="lam")
    with pytest.raises(UsageError, match="raising alpha"):
        capped(np.eye(4), np.ones(4), np.zeros((4, 4)), 2, 0.1, 0.1, strengthen="alpha")


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 2, "max_itr": 0}])
def test_bad_caps(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        capped(*statistics(), **options)


def test_no_more_solves_than_allowed() -> None:
    strengths: list[float] = []

    def solve(strength: float, weaker: int) -> int:
        strengths.append(strength)
        return round(1000 / strength)

    assert cap_search(solve, lambda size: size, 1000, 437, 1.0, 1e6, 8) is not None
    assert len(strengths) <= 7
    strengths.clear()
    assert cap_search(solve, lambda size: size, 1000, 437, 1.0, 1e6, 100) == 437
    strengths.clear()
    assert cap_search(solve, lambda size: size, 1000, 2, 1.0, None, 100) == 2
    sizes = iter([4, 3, 9, 9, 3])
    assert cap_search(lambda *_: next(sizes), lambda size: size, 20, 5, 1.0, 100.0, 6) == 4
    assert cap_search(solve, lambda size: size, 5, 7, 1.0, None, 1) == 5
    assert cap_search(solve, lambda size: size, 9, 7, 1.0, None, 1) is None
