from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from numerics_oracles import Site, dense_site

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import Activation, ConvGeometry
from onnx_compnet.numerics.algorithms import METHODS, Problem, alg1, alg2, alg3, random_subset, select
from onnx_compnet.numerics.iilasso import Solution, Statistics, iilasso
from onnx_compnet.numerics.initialise import candidates
from onnx_compnet.numerics.moments import Covariance, Moments, merge_covariances
from onnx_compnet.numerics.problems import arranged, hadamard_statistics
from onnx_compnet.numerics.ridge import fit, relative_error
from onnx_compnet.numerics.rows import new_layer, row_chunks, target_rows
from onnx_compnet.numerics.similarity import similarity

STRONG = {"lam": 0.5, "alpha": 2.0}  # prunes a small pool


@pytest.fixture(scope="module")
def site() -> Site:
    return dense_site()


def pooled(site: Site) -> Covariance:
    return reduce(merge_covariances, site.folds)


def direct_errors(
    site: Site, kept: tuple[int, ...], W2: torch.Tensor, b2: torch.Tensor
) -> tuple[float, float]:
    n = site.problem.fit.n
    errors = []
    for part in (slice(0, n), slice(n, None)):
        u, y = site.A[part][:, list(kept)], site.y[part]
        errors.append(float((u @ W2 + b2 - y).norm() / (y - y.mean(0)).norm()))
    return errors[0], errors[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_selection_is_complete_and_its_errors_are_true(site: Site, method: str) -> None:
    found = select(method, [site.problem], site.folds, keep=10, **STRONG)
    assert 1 <= len(found.kept) <= 10
    assert list(found.kept) == sorted(set(found.kept))
    assert found.beta.shape == (24,)
    assert found.beta.nonzero().reshape(-1).tolist() == list(found.kept)
    (reader,) = found.readers
    assert reader.W2.shape == (len(found.kept), 4)
    fitted, held_out = direct_errors(site, found.kept, reader.W2, reader.b2)
    assert found.fitted_error == reader.fitted_error == pytest.approx(fitted, rel=1e-8)
    assert found.held_out_error == reader.held_out_error == pytest.approx(held_out, rel=1e-8)
    if method in ("obs", "forward", "random"):
        assert (found.solution, found.lam, found.lam_max, found.alpha) == (None, None, None, None)
    else:
        assert found.solution is not None
        assert found.solution.status == "optimal"
    again = select(method, [site.problem], site.folds, keep=10, **STRONG)
    assert again.kept == found.kept
    assert torch.equal(again.beta, found.beta)


def test_algorithm_1_is_the_lasso_of_each_against_itself(site: Site) -> None:
    found = alg1([site.problem], site.folds, **STRONG)
    R = similarity(pooled(site).correlation())
    expected = iilasso(np.eye(24), np.ones(24), R, 0.5, 2.0)
    np.testing.assert_array_equal(found.beta.numpy(), expected.beta)
    assert (found.lam, found.lam_max, found.alpha) == (0.5, 1, 2.0)
    assert 0 < len(found.kept) < 24


def test_algorithms_1_and_2_never_look_at_y(site: Site) -> None:
    other = dense_site(D2=3, y_of=torch.randn(24, 3, dtype=torch.float64))
    for method in (alg1, alg2):
        assert (
            method([site.problem], site.folds, **STRONG).kept
            == method([other.problem], other.folds, **STRONG).kept
        )


@pytest.mark.parametrize("keep", [None, 7])
def test_on_one_sample_algorithm_2_is_algorithm_1(site: Site, keep: int | None) -> None:
    one = [pooled(site)]
    expected = alg1([site.problem], one, **STRONG, keep=keep)
    for folds, rounds in ((one, 1), (one * 5, 5)):
        found = alg2([site.problem], folds, **STRONG, keep=keep)
        assert found.rounds == rounds
        assert len(found.kept) == len(expected.kept) if keep else found.kept == expected.kept
        if keep is None:
            np.testing.assert_allclose(found.beta, expected.beta, atol=1e-7)


def test_with_folds_algorithm_2_drops_until_every_fold_is_at_rest() -> None:
    site = dense_site(n=150, D1=8)  # small folds, whose correlations differ
    found = alg2([site.problem], site.folds, **STRONG)
    whole = alg1([site.problem], site.folds, **STRONG)
    first = alg1([site.problem], site.folds[:1], **STRONG)
    assert found.rounds > 5
    assert found.kept != whole.kept
    assert set(found.kept) < set(first.kept)  # dropped neurons stay dropped
    kept = torch.tensor(found.kept)
    start = found.beta[kept]
    for fold in site.folds:
        R = similarity(fold.subset(kept).correlation())
        at_rest = iilasso(np.eye(len(kept)), np.ones(len(kept)), R, 0.5, 2.0, start=start)
        if at_rest.start == "given":
            assert len(at_rest.support) == len(kept)


def test_at_the_papers_values_a_small_pool_loses_nothing_and_the_report_says_so(site: Site) -> None:
    for method in (alg1, alg2):
        found = method([site.problem], site.folds)
        assert len(found.kept) == 24
        assert "none of the 24 neurons was dropped" in found.warnings[0]
        assert "= 90" in found.warnings[0]


def test_algorithm_3_without_penalty_is_beta_1(site: Site) -> None:
    K, c, _ = hadamard_statistics(arranged([site.problem]), [fit(site.problem.fit, 0.0).W2])
    np.testing.assert_allclose(torch.linalg.solve(K, c), 1, atol=1e-6)
    found = alg3([site.problem], lam=1e-9, rho=0.0)
    np.testing.assert_allclose(found.beta, 1, atol=1e-3)
    assert len(found.kept) == 24


def test_algorithm_3_is_the_lasso_of_the_contributions(site: Site) -> None:
    found = alg3([site.problem], lam=0.05, alpha=0.3)
    n = site.problem.fit.n
    u, y = site.A[:n] - site.A[:n].mean(0), site.y[:n] - site.y[:n].mean(0)
    W2 = fit(site.problem.fit).W2
    T = torch.stack([(u[:, i : i + 1] @ W2[i : i + 1]).reshape(-1) for i in range(24)], 1)
    size = T.norm(dim=0)
    T_std, y_std = T / size, y.reshape(-1) / y.norm()
    r = T_std.T @ T_std
    expected = iilasso(
        r,
        T_std.T @ y_std,
        similarity(r),
        0.05 * float((T_std.T @ y_std).abs().max()),
        0.3,
        start=size / y.norm(),
    )
    np.testing.assert_allclose(found.beta, torch.from_numpy(expected.beta) * y.norm() / size, atol=1e-6)
    assert found.lam == pytest.approx(0.05)
    assert found.lam_max == pytest.approx(expected.lam_max)
    assert found.alpha == 0.3


def test_algorithm_3_finds_the_neurons_that_y_is_made_of() -> None:
    planted = [2, 3, 11, 17]
    W = torch.zeros(24, 4, dtype=torch.float64)
    W[planted] = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2
    site = dense_site(y_of=W)
    found = alg3([site.problem], lam=0.02)
    assert list(found.kept) == planted
    torch.testing.assert_close(found.readers[0].W2, W[planted], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.readers[0].b2, torch.full((4,), 0.3, dtype=torch.float64), rtol=0, atol=1e-3
    )
    assert found.held_out_error is not None
    assert found.held_out_error < 1e-3


def test_algorithm_3_beats_random_subsets_of_its_size() -> None:
    site = dense_site(Dn=60, D1=8, n=3000)
    found = alg3([site.problem], keep=15)
    assert found.held_out_error is not None
    others = [random_subset([site.problem], keep=len(found.kept), seed=s).held_out_error for s in range(10)]
    assert found.held_out_error < np.median([error for error in others if error is not None])


def test_without_refit_the_rows_are_scaled_by_beta(site: Site) -> None:
    full = fit(site.problem.fit).W2
    found = alg3([site.problem], lam=0.05, refit=False)
    kept = list(found.kept)
    reader = found.readers[0]
    torch.testing.assert_close(reader.W2, found.beta[kept, None] * full[kept], rtol=1e-12, atol=0)
    errors = direct_errors(site, found.kept, reader.W2, reader.b2)
    assert (found.fitted_error, found.held_out_error) == (pytest.approx(errors[0]), pytest.approx(errors[1]))
    refitted = alg3([site.problem], lam=0.05)
    assert refitted.kept == found.kept
    assert refitted.fitted_error < found.fitted_error


def test_the_curve_of_algorithm_3(site: Site) -> None:
    found = alg3([site.problem], path_points=7)
    fractions = [point[0] for point in found.curve]
    assert len(found.curve) == 7
    assert fractions == sorted(fractions, reverse=True)
    fraction, count, error, fitted = found.curve[-1]
    alone = alg3([site.problem], lam=fraction, path_points=0)
    assert alone.curve == ()
    assert (count, error) == (len(alone.kept), pytest.approx(alone.held_out_error))
    assert fitted == pytest.approx(alone.fitted_error)
    assert found.curve[0][1] < count


def conv_site(Dn: int = 5) -> tuple[tuple[Problem, ...], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Three readers of one tensor: 3x3, 1x1, 3x3; of the first and the last the rows are the same."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(8, 3, 7, 7, dtype=torch.float64, generator=generator)
    layer = candidates("conv", 3, Dn, (3, 3), Activation("relu"), seed=0, dtype=np.dtype(np.float64))
    A = new_layer(layer, t)[1]
    wide, narrow = (
        ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        ConvGeometry((1, 1), (2, 2), (1, 1), (0,) * 4),
    )
    weights = [
        torch.randn(D2, 3, k, k, dtype=torch.float64, generator=generator)
        for D2, k in ((2, 3), (3, 1), (1, 3))
    ]
    rows, targets = [], []
    for geometry, weight in zip((wide, narrow, wide), weights, strict=True):
        rows.append(torch.cat(list(row_chunks(A, geometry))))
        stride, pad = geometry.strides[0], geometry.pads[0]
        y = torch.nn.functional.conv2d(t, weight, stride=stride, padding=pad)
        targets.append(target_rows(y, geometry))
    both = torch.cat([targets[0], targets[2]], 1)
    problems = (
        Problem(Moments.from_rows(rows[0], both), None, 9, (slice(0, 2), slice(2, 3)), (0, 2)),
        Problem(Moments.from_rows(rows[1], targets[1]), None, 1, (), (1,)),
    )
    return problems, list(zip(rows, targets, strict=True))


def test_several_readers_without_penalty_have_beta_1() -> None:
    problems, _ = conv_site()
    found = alg3(problems, lam=1e-9, rho=0.0, path_points=0)
    np.testing.assert_allclose(found.beta, 1, atol=1e-4)


class Spy:
    """The arguments of every solve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts: list[np.ndarray] = []
        self.second_starts: list[bool] = []
        self.found: list[np.ndarray] = []
        original = Statistics.solve

        def solve(
            this: Statistics, lam: float, alpha: float, start: object = None, **options: bool
        ) -> Solution:
            beta = np.ones(len(this.c)) if start is None else np.array(start)
            solution = original(this, lam, alpha, beta, **options)
            self.starts.append(beta)
            self.second_starts.append(options.get("second_start", True))
            self.found.append(solution.beta)
            return solution

        monkeypatch.setattr(Statistics, "solve", solve)


def test_algorithm_3_starts_from_beta_1(monkeypatch: pytest.MonkeyPatch) -> None:
    problems, _ = conv_site()
    spy = Spy(monkeypatch)
    found = alg3(problems, path_points=0)
    kept = list(found.kept)
    scale = found.beta[kept].numpy() / spy.found[0][kept]
    np.testing.assert_allclose(spy.starts[0][kept] * scale, 1, rtol=1e-12)


def test_algorithm_2_starts_every_round_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    site = dense_site(n=150, D1=8)
    spy = Spy(monkeypatch)
    found = alg2([site.problem], site.folds, **STRONG)
    assert len(spy.starts) == found.rounds
    assert spy.second_starts == [True] + [False] * (found.rounds - 1)
    assert (spy.starts[0] == 1).all()
    for before, start in zip(spy.found, spy.starts[1:], strict=False):
        np.testing.assert_array_equal(start, before[before != 0])


@pytest.mark.parametrize("refit", [True, False])
def test_several_readers_come_back_in_their_order(refit: bool) -> None:
    problems, readers = conv_site()
    found = alg3(problems, keep=3, refit=refit)
    assert [tuple(reader.W2.shape) for reader in found.readers] == [
        (len(found.kept) * q, D2) for q, D2 in ((9, 2), (1, 3), (9, 1))
    ]
    for reader, (u, y), q in zip(found.readers, readers, (9, 1, 9), strict=True):
        mine = u.reshape(len(u), -1, q)[:, list(found.kept)].reshape(len(u), -1)
        error = float((mine @ reader.W2 + reader.b2 - y).norm() / (y - y.mean(0)).norm())
        assert reader.fitted_error == pytest.approx(error, rel=1e-8)
        assert reader.held_out_error is None
    assert found.fitted_error == max(reader.fitted_error for reader in found.readers)
    assert found.held_out_error is None


def kill(site: Site, dead: list[int], level: float = 0.0) -> Site:
    """The site with some activations constant."""
    A = site.A.clone()
    A[:, dead] = level
    n = site.problem.fit.n
    problem = Problem(Moments.from_rows(A[:n], site.y[:n]), Moments.from_rows(A[n:], site.y[n:]))
    return replace(site, A=A, problem=problem)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_neurons_that_do_not_vary_are_dropped_and_counted(site: Site, method: str, level: float) -> None:
    found = select(method, [kill(site, [0, 5, 23], level).problem], site.folds, keep=20, lam=0.01)
    assert found.dropped_dead == 3
    assert not {0, 5, 23} & set(found.kept)
    assert not found.beta[[0, 5, 23]].any()
    assert len(found.kept) >= 10


def test_nothing_left_alive(site: Site) -> None:
    with pytest.raises(DataError, match="no candidate"):
        alg3([kill(site, list(range(24))).problem])


@pytest.mark.parametrize("method", ["alg1", "alg2", "alg3"])
def test_of_two_equal_neurons_one_survives(site: Site, method: str) -> None:
    x, A = (torch.cat([tensor, tensor[:, [4]]], 1) for tensor in (site.x, site.A))
    n = site.problem.fit.n
    problem = Problem(Moments.from_rows(A[:n], site.y[:n]), None)
    folds = [Covariance.from_rows(x[:n][i::5]) for i in range(5)]
    found = select(method, [problem], folds, lam=0.01)
    assert len({4, 24} & set(found.kept)) == 1


@pytest.mark.parametrize("keep", range(1, 25))
@pytest.mark.parametrize("method", METHODS)
def test_every_cap_is_kept(site: Site, method: str, keep: int) -> None:
    lam = 0.01 if method == "alg3" else 0.1
    found = select(method, [site.problem], site.folds, lam=lam, keep=keep, path_points=0)
    assert max(1, keep - 3) <= len(found.kept) <= keep
    if method in ("alg1", "alg2"):
        assert found.lam == 0.1
        assert found.alpha is not None
        assert (found.alpha > 0.1) == (keep < 24)


def test_the_random_baseline_is_seeded(site: Site) -> None:
    draws = {random_subset([site.problem], keep=8, seed=seed).kept for seed in range(6)}
    assert len(draws) > 3
    assert all(len(kept) == 8 for kept in draws)
    few = random_subset([kill(site, [0]).problem], keep=24)
    assert len(few.kept) == 23
    assert "only 23 of the 24" in few.warnings[0]


@pytest.mark.parametrize("method", ["alg1", "alg2", "alg3"])
def test_a_lambda_that_leaves_nothing_names_one_that_keeps_some(site: Site, method: str) -> None:
    with pytest.raises(UsageError, match=r"λ_max = .*--lam 0\.5 keeps \d+") as caught:
        select(method, [site.problem], site.folds, lam=1.0)
    kept = int(str(caught.value).split()[-1])
    assert len(select(method, [site.problem], site.folds, lam=0.5).kept) == kept > 0


def test_too_few_rows(site: Site) -> None:
    n = 20
    problem = Problem(Moments.from_rows(site.A[:n], site.y[:n]), None)
    with pytest.raises(DataError, match="20 rows can't fit 24 columns"):
        alg3([problem])
    small = random_subset([problem], keep=6)  # only the survivors are fitted
    assert "20 rows fit 6 columns, n/p = 3.3" in small.warnings[0]
    assert alg1([problem], site.folds, keep=6).readers[0].W2.shape == (6, 4)
    barely = Problem(Moments.from_rows(site.A[:40], site.y[:40]), None)
    assert "all candidates: 40 rows fit 24 columns" in alg3([barely]).warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "alg4"}, "unknown method"),
        ({"method": "random"}, "needs keep"),
        ({"method": "obs"}, "give keep or max_error"),
        ({"method": "forward"}, "give keep or max_error"),
        ({"method": "alg3", "keep": 0}, "keep"),
        ({"method": "alg3", "lam": 0.0}, "lam"),
        ({"method": "alg3", "lam": float("nan")}, "lam"),
        ({"method": "alg1", "alpha": -1.0}, "alpha"),
        ({"method": "alg1", "x_folds": ()}, "covariances"),
        ({"method": "alg2", "x_folds": (Covariance.zero(24),)}, "covariances"),
    ],
    ids=str,
)
def test_bad_options(site: Site, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(**{"problems": [site.problem], "x_folds": site.folds, **options})  # type: ignore[arg-type]


def test_targets_that_do_not_vary(site: Site) -> None:
    problem = Problem(Moments.from_rows(site.A, torch.ones(len(site.A), 2, dtype=torch.float64)), None)
    with pytest.raises(DataError, match="no reader's output varies"):
        alg3([problem])
    assert random_subset([problem], keep=3).fitted_error == 0


def test_held_out_error_needs_no_second_pass(site: Site) -> None:
    found = alg3([site.problem])
    assert site.problem.held_out is not None
    held_out = site.problem.held_out.subset(torch.tensor(found.kept))
    assert found.held_out_error == relative_error(held_out, found.readers[0].W2, found.readers[0].b2)
