"""K and c of Algorithm 3 against the matrix [vec(T_1) … vec(T_Dn)] that the paper forms (Eq. 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics_oracles import vectorised

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics import problems as module
from onnx_compnet.numerics.moments import Moments, columns_of
from onnx_compnet.numerics.problems import Problem, arranged, hadamard_statistics, restricted
from onnx_compnet.numerics.ridge import fit


def rows(n: int, p: int, D2: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    u = np.maximum(rng.standard_normal((n, p)) + 0.5 * rng.standard_normal((n, 1)), 0)
    y = u @ rng.standard_normal((p, D2)) + rng.standard_normal((n, D2)) + 3
    return u, y


def moments(u: np.ndarray, y: np.ndarray) -> Moments:
    return Moments.from_rows(torch.from_numpy(u), torch.from_numpy(y))


def explicit(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """K and c of readers (u, y, W2, taps), each divided by its total variance."""
    K: np.ndarray | float = 0.0
    c: np.ndarray | float = 0.0
    for u, y, W2, taps in parts:
        u, y = u - u.mean(0), y - y.mean(0)
        variance = (y**2).sum() / len(y)
        T = vectorised(u, W2, taps)
        K = K + T.T @ T / len(y) / variance
        c = c + T.T @ y.reshape(-1) / len(y) / variance
    return np.asarray(K), np.asarray(c)


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 1e-3])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_one_reader(taps: int, rho: float, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    u, y = rows(150, 7 * taps, 2, 0)
    problem = Problem(moments(u, y), None, taps)
    W2 = fit(problem.fit, rho).W2
    K, c, variance = hadamard_statistics(arranged([problem]), [W2])
    expected_K, expected_c = explicit([(u, y, W2.numpy(), taps)])
    np.testing.assert_allclose(K, expected_K, rtol=1e-12, atol=1e-14 * abs(expected_K).max())
    np.testing.assert_allclose(c, expected_c, rtol=1e-12, atol=1e-14 * abs(expected_c).max())
    assert variance == 1
    if rho == 0:
        np.testing.assert_allclose(K.sum(1), c, rtol=1e-9)  # β = 1 solves the unpenalised problem


def test_several_readers_of_several_geometries() -> None:
    Dn = 5
    (u, y), (u3, y3) = rows(150, Dn, 4, 0), rows(90, 3 * Dn, 3, 1)
    y[:, 2:] *= 100  # a reader of another scale counts no more than the others
    narrow = Problem(moments(u, y), None, 1, (slice(0, 2), slice(2, 4)), (0, 2))
    wide = Problem(moments(u3, y3), None, 3, (), (1,))
    W2, W3 = fit(narrow.fit).W2, fit(wide.fit).W2
    K, c, variance = hadamard_statistics(arranged([narrow, wide]), [W2, W3])
    expected = explicit(
        [
            (u, y[:, :2], W2[:, :2].numpy(), 1),
            (u, y[:, 2:], W2[:, 2:].numpy(), 1),
            (u3, y3, W3.numpy(), 3),
        ]
    )
    np.testing.assert_allclose(K, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(c, expected[1], rtol=1e-12, atol=1e-14)
    assert variance == 3


def test_a_reader_that_does_not_vary_does_not_count() -> None:
    u, y = rows(150, 5, 3, 0)
    y[:, 2] = 7.0
    both = Problem(moments(u, y), None, 1, (slice(0, 2), slice(2, 3)))
    alone = Problem(moments(u, y[:, :2]), None)
    K, c, variance = hadamard_statistics(arranged([both]), [fit(both.fit).W2])
    expected_K, expected_c, _ = hadamard_statistics(arranged([alone]), [fit(alone.fit).W2])
    torch.testing.assert_close((K, c), (expected_K, expected_c), rtol=1e-12, atol=1e-14)
    assert variance == 1


def test_restricting_takes_all_taps_of_a_neuron() -> None:
    u, y = rows(80, 12, 2, 0)
    problem = restricted(Problem(moments(u, y), moments(u, y), 3), torch.tensor([3, 1]))
    columns = columns_of([3, 1], 3).numpy()
    for found in (problem.fit, problem.held_out):
        assert found is not None
        torch.testing.assert_close(found.uu, moments(u[:, columns], y).uu)


@pytest.mark.parametrize(
    "problems",
    [
        [],
        [Problem(Moments.zero(6, 2), None, 1, (slice(0, 1),))],
        [Problem(Moments.zero(6, 2), None, 1, (slice(0, 2),), (1,))],
        [Problem(Moments.zero(6, 2), None, 4)],
        [Problem(Moments.zero(6, 2), None, 1), Problem(Moments.zero(6, 2), None, 2)],
    ],
)
def test_problems_that_contradict_each_other(problems: list[Problem]) -> None:
    with pytest.raises(UsageError):
        arranged(problems)
