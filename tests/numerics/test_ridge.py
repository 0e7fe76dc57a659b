from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.numerics.moments import Moments
from onnx_compnet.numerics.ridge import fit, intercept, relative_error, squared_errors


def regression(n: int = 200, p: int = 7, D2: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, p, dtype=torch.float64, generator=generator) + 2
    W = torch.randn(p, D2, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return u, u @ W - 5 + 0.4 * torch.randn(n, D2, dtype=torch.float64, generator=generator)


def direct_error(u: torch.Tensor, y: torch.Tensor, W2: torch.Tensor, b2: torch.Tensor) -> float:
    return float((u @ W2 + b2 - y).norm() / (y - y.mean(0)).norm())


def test_without_ridge_it_is_least_squares_with_intercept() -> None:
    u, y = regression()
    found = fit(Moments.from_rows(u, y), rho=0)
    expected = np.linalg.lstsq(np.c_[u, np.ones(len(u))], y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.W2, expected[:-1], rtol=1e-11)
    np.testing.assert_allclose(found.b2, expected[-1], rtol=1e-11)
    assert (found.rho, found.jitter_raised, found.warnings) == (0, False, ())
    assert found.rows_per_column == 200 / 7


@pytest.mark.parametrize("rho", [1e-6, 1e-2, 0.7])
def test_the_ridge_is_relative_to_the_mean_variance(rho: float) -> None:
    u, y = regression()
    moments = Moments.from_rows(u, y)
    found = fit(moments, rho=rho)
    penalty = rho * float(moments.G.diagonal().mean()) * moments.n
    expected = Ridge(alpha=penalty).fit(u.numpy(), y.numpy())
    np.testing.assert_allclose(found.W2, expected.coef_.T, rtol=1e-9)
    np.testing.assert_allclose(found.b2, expected.intercept_, rtol=1e-9)


def test_errors_are_those_of_a_forward_pass() -> None:
    (u, y), (held_u, held_y) = regression(), regression(seed=1)
    held_y += 0.7  # what a b2 of the fitted rows can't know
    fitted, held_out = Moments.from_rows(u, y), Moments.from_rows(held_u, held_y)
    found = fit(fitted, rho=0.1)
    assert relative_error(fitted, found.W2, found.b2) == pytest.approx(
        direct_error(u, y, found.W2, found.b2), rel=1e-10
    )
    expected = direct_error(held_u, held_y, found.W2, found.b2)
    assert relative_error(held_out, found.W2, found.b2) == pytest.approx(expected, rel=1e-10)
    expected = direct_error(held_u, held_y[:, 1:], found.W2[:, 1:], found.b2[1:])
    weights = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert relative_error(held_out, found.W2, found.b2, weights) == pytest.approx(expected, rel=1e-10)
    square = ((held_u @ found.W2 + found.b2 - held_y) ** 2).mean(0)
    torch.testing.assert_close(squared_errors(held_out, found.W2, found.b2), square, rtol=1e-9, atol=0)


def test_an_exact_fit_has_an_error_of_rounding_and_never_below_zero() -> None:
    u, _ = regression()
    moments = Moments.from_rows(u, u[:, :2] - u[:, 2:4])
    found = fit(moments, rho=0)
    assert 0 <= relative_error(moments, found.W2, found.b2) < 1e-7


def test_a_target_that_does_not_vary() -> None:
    u, _ = regression()
    moments = Moments.from_rows(u, torch.full((200, 1), 0.1, dtype=torch.float64))
    found = fit(moments)
    assert relative_error(moments, found.W2, found.b2) == 0
    assert math.isinf(relative_error(moments, found.W2, found.b2 + 1))


def test_columns_that_do_not_vary() -> None:
    _, y = regression()
    moments = Moments.from_rows(torch.ones(200, 4, dtype=torch.float64), y)
    found = fit(moments)
    assert not found.W2.any()
    torch.testing.assert_close(found.b2, y.mean(0))
    assert relative_error(moments, found.W2, found.b2) == pytest.approx(1)


def test_dependent_columns_raise_the_ridge_and_say_so() -> None:
    u, y = regression()
    moments = Moments.from_rows(torch.cat([u, u[:, :2]], 1), y)
    found = fit(moments, rho=0)
    assert found.jitter_raised
    assert 0 < found.rho <= 1e-2
    assert "ridge was raised" in found.warnings[0]
    assert relative_error(moments, found.W2, found.b2) == pytest.approx(
        relative_error(Moments.from_rows(u, y), *(lambda f: (f.W2, f.b2))(fit(Moments.from_rows(u, y), 0))),
        rel=1e-4,
    )


def test_a_matrix_that_is_no_covariance_is_refused() -> None:
    u, y = regression()
    good = Moments.from_rows(u, y)
    bad = Moments(
        good.n, good.mean_u, good.mean_y, good.uu - 2 * torch.diag(good.uu[0].abs()), good.uy, good.yy
    )
    bad.uu[0, 1] = bad.uu[1, 0] = 10 * float(good.uu.max())
    bad.uu.diagonal().abs_()
    with pytest.raises(DataError, match="can't be factorised"):
        fit(bad)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_too_few_rows_are_refused_with_both_numbers(n: int) -> None:
    u, y = regression(n)
    with pytest.raises(DataError, match=f"{n} rows can't fit 7 columns.*fewer candidate neurons") as caught:
        fit(Moments.from_rows(u, y))
    assert caught.value.exit_code == 4


def test_few_rows_are_a_warning_with_both_numbers() -> None:
    assert "30 rows fit 7 columns, n/p = 4.3" in fit(Moments.from_rows(*regression(30))).warnings[0]
    assert fit(Moments.from_rows(*regression(35))).warnings == ()


def test_negative_rho_and_intercept() -> None:
    u, y = regression()
    moments = Moments.from_rows(u, y)
    with pytest.raises(UsageError, match="rho"):
        fit(moments, rho=-1)
    W2 = torch.ones(7, 3, dtype=torch.float64)
    torch.testing.assert_close(intercept(moments, W2), (y - u @ W2).mean(0))


@pytest.mark.parametrize("rho", [1e-6, 0.1])
def test_a_prior_is_what_the_ridge_pulls_towards(rho: float) -> None:
    """The minimum of ‖y − W2ᵀu‖²/n + ρ·(tr G/p)·‖W2 − W⁰‖², by the normal equations written out."""
    u, y = regression()
    prior = torch.full((7, 3), 0.5, dtype=torch.float64)
    found = fit(Moments.from_rows(u, y), rho=rho, prior=prior)
    U, Y = u - u.mean(0), y - y.mean(0)
    strength = rho * float((U * U).sum()) / 7  # n·ρ·tr(G)/p
    left = U.T @ U + strength * torch.eye(7, dtype=torch.float64)
    expected = torch.linalg.solve(left, U.T @ Y + strength * prior)
    torch.testing.assert_close(found.W2, expected, rtol=1e-10, atol=1e-12)
    assert fit(Moments.from_rows(u, y), rho=1e6, prior=prior).W2.sub(prior).abs().max() < 1e-3


def test_a_prior_that_is_right_is_kept_as_it_is() -> None:
    u, _ = regression()
    exact = torch.eye(7, dtype=torch.float64)[:, :3]
    found = fit(Moments.from_rows(u.float(), (u @ exact).float()), rho=0.1, prior=exact)
    assert torch.equal(found.W2, exact)
    torch.testing.assert_close(found.b2, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
