from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics_oracles import descent_loop, loss, regression, similarity_loop
from scipy import optimize
from sklearn.linear_model import Lasso

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics.iilasso import Solution, iilasso, lambda_path
from onnx_compnet.numerics.similarity import MAX_CORRELATION, similarity

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60)


def statistics(
    seed: int = 0, n: int = 300, D: int = 12, rank: int | None = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, y = regression(np.random.default_rng(seed), n, D, rank)
    K = X.T @ X / n
    return K, X.T @ y / n, similarity(torch.from_numpy(K)).numpy()


def kkt(K: np.ndarray, c: np.ndarray, R: np.ndarray, solution: Solution) -> float:
    """The largest violation, coordinate by coordinate, from the definition."""
    beta, lam, alpha, worst = solution.beta, solution.lam, solution.alpha, 0.0
    for j in range(len(c)):
        slope = c[j] - sum(K[j] * beta)
        bound = lam * (1 + alpha * sum(R[j] * abs(beta)))
        worst = max(worst, abs(slope - np.sign(beta[j]) * bound) if beta[j] else max(0.0, abs(slope) - bound))
    return worst


def test_similarity_is_eq_7() -> None:
    K = statistics()[0]
    np.testing.assert_allclose(similarity(torch.from_numpy(K)), similarity_loop(K), rtol=1e-12)
    capped = similarity(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert capped[0, 1] == pytest.approx(MAX_CORRELATION / (1 - MAX_CORRELATION))
    assert capped.diagonal().tolist() == [0, 0]
    assert similarity(-torch.tensor([[1.0, 0.5], [0.5, 1.0]]))[0, 1] == 1
    with pytest.raises(UsageError, match="square"):
        similarity(torch.zeros(2, 3))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("lam", [0.3, 0.05, 0.005])
def test_agrees_with_the_loop_of_eqs_8_to_10(lam: float, alpha: float) -> None:
    K, c, R = statistics(D=8)
    ours = iilasso(K, c, R, lam, alpha)
    slow = descent_loop(K, c, R, lam, alpha, np.ones(8), range(8), 3000)
    assert ours.objective == pytest.approx(loss(K, c, R, lam, alpha, ours.beta), rel=1e-12)
    assert ours.objective <= loss(K, c, R, lam, alpha, slow) + 1e-12
    if ours.convex or ours.start == "given":
        np.testing.assert_allclose(ours.beta, slow, atol=1e-8)


def test_the_diagonal_of_the_similarity_counts_as_in_eq_8() -> None:
    K, c, R = statistics(D=8)
    R = R + 2 * np.eye(8)
    ours = iilasso(K, c, R, 0.05, 1.0)
    np.testing.assert_allclose(
        ours.beta, descent_loop(K, c, R, 0.05, 1.0, np.ones(8), range(8), 3000), atol=1e-8
    )


def test_one_sweep_is_eq_8() -> None:
    ours = iilasso([[1.0]], [1.0], [[2.0]], 0.1, 0.5, max_sweeps=1)
    assert ours.beta[0] == pytest.approx(0.9 / (1 + 0.5 * 0.1 * 2.0), rel=1e-15)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.03, 0.003])
def test_at_alpha_0_it_is_the_lasso_of_scikit_learn(share: float, rank: int | None) -> None:
    n, D = 300, 15
    X, y = regression(np.random.default_rng(3), n, D, rank)
    K, c = X.T @ X / n, X.T @ y / n
    lam = share * abs(c).max()
    expected = Lasso(alpha=lam, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    ours = iilasso(K, c, similarity(torch.from_numpy(K)), lam, 0.0)
    np.testing.assert_allclose(ours.beta, expected, atol=1e-8)
    np.testing.assert_array_equal(ours.beta != 0, expected != 0)
    assert ours.convex


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scipy_where_f_is_convex(seed: int) -> None:
    K, c, R = statistics(seed, D=5, rank=None)
    lam, alpha = 0.05, 0.5
    ours = iilasso(K, c, R, lam, alpha)
    assert ours.convex

    def split(z: np.ndarray) -> float:  # β = a − b with a, b >= 0 makes the penalty smooth
        size, beta = z[:5] + z[5:], z[:5] - z[5:]
        return float(beta @ K @ beta / 2 - c @ beta + lam * (size.sum() + alpha / 2 * size @ R @ size))

    found = optimize.minimize(split, np.full(10, 0.1), bounds=[(0, None)] * 10, method="L-BFGS-B", tol=1e-14)
    assert ours.objective == pytest.approx(found.fun, abs=1e-9)
    np.testing.assert_allclose(ours.beta, found.x[:5] - found.x[5:], atol=1e-4)


@EXAMPLES
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.floats(0.002, 1.2),
    st.floats(0, 3),
    st.sampled_from([None, 3]),
)
def test_every_optimum_satisfies_the_kkt_conditions(
    seed: int, D: int, share: float, alpha: float, rank: int | None
) -> None:
    K, c, R = statistics(seed, n=60, D=D, rank=rank)
    ours = iilasso(K, c, R, share * abs(c).max(), alpha)
    assert ours.status == "optimal"
    assert ours.advice == ""
    assert ours.kkt_violation <= 1e-8 * ours.lam_max
    assert kkt(K, c, R, ours) <= 1.1e-8 * ours.lam_max
    assert ours.objective <= 1e-15  # F(0) = 0 is always within reach
    if share >= 1:
        assert not ours.beta.any()
    else:
        assert ours.beta.any()
    np.testing.assert_array_equal(ours.support, np.flatnonzero(ours.beta))


@EXAMPLES
@given(st.integers(0, 10_000), st.floats(0.01, 0.8), st.floats(0, 0.3), st.randoms(use_true_random=False))
def test_certified_convex_means_one_optimum(seed: int, share: float, alpha: float, random: object) -> None:
    D = 8
    K, c, R = statistics(seed, D=D, rank=None)
    lam = share * abs(c).max()
    ours = iilasso(K, c, R, lam, alpha)
    smallest = np.linalg.eigvalsh(K)[0] + lam * alpha * np.linalg.eigvalsh(R)[0]
    assert ours.convexity_bound == pytest.approx(smallest, abs=1e-12)
    if not ours.convex:
        return
    assert ours.other_objective is None
    order = list(range(D))
    random.shuffle(order)  # type: ignore[attr-defined]
    square = np.ix_(order, order)
    start = np.random.default_rng(seed).standard_normal(D)
    other = iilasso(K[square], c[order], R[square], lam, alpha, start=start)
    np.testing.assert_allclose(other.beta, ours.beta[order], atol=1e-6)
    np.testing.assert_array_equal(np.sort(np.array(order)[other.support]), ours.support)


def test_without_the_certificate_the_better_of_two_starts_is_kept() -> None:
    K, c, R = np.eye(2), np.array([1.0, 0.9]), np.array([[0.0, 50.0], [50.0, 0.0]])
    start = np.array([0.0, 1.0])  # a local minimum on the second coordinate
    ours = iilasso(K, c, R, 0.1, 1.0, start=start)
    assert not ours.convex
    assert ours.convexity_bound == pytest.approx(1 - 0.1 * 50)
    assert (ours.start, ours.support.tolist()) == ("zero", [0])
    assert ours.objective == pytest.approx(-(0.9**2) / 2)
    assert ours.other_objective == pytest.approx(-(0.8**2) / 2)
    best = iilasso(K, c, R, 0.1, 1.0, start=[1.0, 0.0])
    assert (best.start, best.support.tolist(), best.other_objective) == ("given", [0], pytest.approx(-0.405))


@pytest.mark.parametrize("sign", [1, -1])
def test_of_two_equal_regressors_exactly_one_survives(sign: int) -> None:
    X, y = regression(np.random.default_rng(1), 400, 6)
    X = np.c_[X, sign * X[:, 2]]
    y = y + X[:, 2]
    K, c = X.T @ X / 400, X.T @ y / 400
    R = similarity(torch.from_numpy(K)).numpy()
    for gram, corr in ((K, c), (np.eye(7), np.ones(7))):
        for start in (None, np.zeros(7)):
            support = iilasso(gram, corr, R, 0.01, 0.1, start=start).support
            assert len({2, 6} & set(support.tolist())) == 1


def test_algorithm_1_by_hand() -> None:
    R = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ours = iilasso(np.eye(3), np.ones(3), R, 0.2, 2.0)
    pair = 0.8 / (1 + 0.2 * 2.0 * 1.0)  # β = 1 − λ − λα·R·β for the first two
    np.testing.assert_allclose(ours.beta, [pair, pair, 0.8], rtol=1e-12)


def test_algorithm_1_depends_on_lambda_times_alpha_only() -> None:
    K = statistics(D=20, rank=2)[0]
    R = similarity(torch.from_numpy(K)).numpy()
    one = iilasso(np.eye(20), np.ones(20), R, 0.1, 2.0)
    two = iilasso(np.eye(20), np.ones(20), R, 0.4, 0.5)
    assert 0 < len(one.support) < 20
    np.testing.assert_array_equal(one.support, two.support)
    np.testing.assert_allclose(one.beta / 0.9, two.beta / 0.6, atol=1e-7)


def test_lambda_max_is_where_the_first_coordinate_enters() -> None:
    K, c, R = statistics()
    lam_max = abs(c).max()
    at = iilasso(K, c, R, lam_max, 0.1)
    assert at.lam_max == lam_max
    assert at.support.tolist() == []
    assert iilasso(K, c, R, lam_max * (1 - 1e-6), 0.1).support.tolist() == [int(abs(c).argmax())]
    assert iilasso(K, 0 * c, R, 0.1, 0.1).status == "optimal"


def test_a_path_descends_from_nothing() -> None:
    K, c, R = statistics()
    path = lambda_path(K, c, R, alpha=0.1, points=15, smallest=1e-3)
    lams = [solution.lam for solution in path]
    assert lams == sorted(lams, reverse=True)
    assert lams[0] == pytest.approx(path[0].lam_max)
    assert lams[-1] == pytest.approx(1e-3 * path[0].lam_max)
    assert len(path[0].support) == 0
    for solution in path:
        assert solution.status == "optimal"
        assert kkt(K, c, R, solution) <= 1.1e-8 * solution.lam_max
        if solution.convex:
            np.testing.assert_allclose(solution.beta, iilasso(K, c, R, solution.lam, 0.1).beta, atol=1e-6)
    given = lambda_path(K, c, R, [0.01, 0.1])
    assert [solution.lam for solution in given] == [0.1, 0.01]
    with pytest.raises(UsageError, match="points"):
        lambda_path(K, c, R, points=0)


def test_a_hard_problem_ends_within_its_budget_and_says_so() -> None:
    K, c, R = statistics(D=40, rank=2, n=2000)
    stopped = iilasso(K, c, R, 1e-4 * abs(c).max(), 0.1, max_sweeps=2)
    assert stopped.status == "budget"
    assert "max_sweeps" in stopped.advice
    assert stopped.sweeps == 2
    assert kkt(K, c, R, stopped) == pytest.approx(stopped.kkt_violation)
    assert stopped.objective < loss(K, c, R, stopped.lam, 0.1, np.ones(40))
    assert iilasso(K, c, R, stopped.lam, 0.1).status == "optimal"


def test_low_lambda_and_nearly_dependent_regressors_still_end_at_the_optimum() -> None:
    K, c, R = statistics(D=120, rank=3, n=1500)
    for share in (1e-2, 1e-4, 1e-6):
        ours = iilasso(K, c, R, share * abs(c).max(), 0.1)
        assert ours.status == "optimal"
        assert ours.sweeps < 3000


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_nearly_equal_regressors_are_left_along_directions_without_a_minimum(alpha: float) -> None:
    """R is so large that F has no minimum on most supports, and so flat there that sweeps alone never end."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((180, 5)) @ rng.standard_normal((5, 60)) + 0.01 * rng.standard_normal((180, 60))
    y = X @ (rng.standard_normal(60) * (rng.random(60) < 0.5)) + rng.standard_normal(180)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    K, c = X.T @ X / 180, X.T @ y / 180
    R = similarity(torch.from_numpy(K)).numpy()
    lam = 1e-4 * abs(c).max()
    ours = iilasso(K, c, R, lam, alpha)
    assert (ours.status, ours.convex) == ("optimal", False)
    assert ours.sweeps < 300
    assert kkt(K, c, R, ours) <= 1.1e-8 * ours.lam_max
    assert len(ours.support) < 20
    start = np.ones(60)
    stopped = [iilasso(K, c, R, lam, alpha, start=start, max_sweeps=n).objective for n in range(1, 120, 4)]
    assert (np.diff(stopped) <= 1e-12).all()  # F never rises


def test_tensors_of_any_dtype_are_taken() -> None:
    K, c, R = statistics()
    ours = iilasso(*(torch.from_numpy(array) for array in (K, c, R)))
    np.testing.assert_array_equal(ours.beta, iilasso(K, c, R).beta)
    assert ours.beta.dtype == np.float64
    single = iilasso(*(torch.from_numpy(array).float() for array in (K, c, R)), start=torch.ones(12))
    np.testing.assert_allclose(single.beta, ours.beta, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": np.eye(3)}, "must be"),
        ({"gram": np.ones(2)}, "2 axes"),
        ({"corr": np.array([1.0, np.nan])}, "finite"),
        ({"gram": np.array([[1.0, 0.5], [0.1, 1.0]])}, "symmetric"),
        ({"similarity": np.array([[0.0, 0.5], [0.1, 0.0]])}, "symmetric"),
        ({"similarity": -np.ones((2, 2))}, "negative"),
        ({"gram": np.diag([1.0, 0.0])}, "variance"),
        ({"gram": np.array([[1.0, 3.0], [3.0, 1.0]])}, "semidefinite"),
        ({"lam": 0.0}, "lam"),
        ({"lam": float("inf")}, "lam"),
        ({"lam": float("nan")}, "lam"),
        ({"alpha": -0.1}, "alpha"),
        ({"max_sweeps": 0}, "max_sweeps"),
        ({"tol": -1.0}, "tol"),
        ({"start": np.ones(3)}, "same length"),
    ],
    ids=str,
)
def test_bad_arguments_are_usage_errors(change: dict[str, object], message: str) -> None:
    good = {"gram": np.eye(2), "corr": np.ones(2), "similarity": np.zeros((2, 2))}
    with pytest.raises(UsageError, match=message):
        iilasso(**{**good, **change})  # type: ignore[arg-type]
