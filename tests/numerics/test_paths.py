"""max_error with every method: the narrowest selection on the method's own path that keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numerics_oracles import Site, dense_site

from onnx_compnet.errors import DataError, UsageError, VerificationError
from onnx_compnet.numerics import paths
from onnx_compnet.numerics.algorithms import METHODS, select
from onnx_compnet.numerics.iilasso import iilasso
from onnx_compnet.numerics.moments import Moments
from onnx_compnet.numerics.paths import Run
from onnx_compnet.numerics.pool import Constraints, Pool
from onnx_compnet.numerics.problems import Problem, restricted
from onnx_compnet.numerics.selection import Order

DN = 24


@pytest.fixture(scope="module")
def site() -> Site:
    return dense_site()


def refitted(site: Site, kept: Sequence[int]) -> float:
    """The held-out error of least squares on the samples themselves."""
    n = site.problem.fit.n
    u, y = site.A[:, list(kept)], site.y
    centre, level = u[:n].mean(0), y[:n].mean(0)
    W2 = torch.linalg.lstsq(u[:n] - centre, y[:n] - level).solution
    made = (u[n:] - centre) @ W2 + level
    return float((made - y[n:]).norm() / (y[n:] - y[n:].mean(0)).norm())


@pytest.mark.parametrize("method", METHODS)
def test_the_width_is_the_least_that_will_do(site: Site, method: str) -> None:
    found = select(method, [site.problem], site.folds, max_error=0.6, seed=3)
    assert found.held_out_error is not None
    assert found.held_out_error <= 0.6
    assert refitted(site, found.kept) == pytest.approx(found.held_out_error, rel=1e-4)
    widths = [point[1] for point in found.curve]
    errors = [point[2] for point in found.curve]
    assert widths == list(range(1, DN + 1))
    assert all(point[0] is None for point in found.curve)
    narrower = [error for width, error in zip(widths, errors, strict=True) if width < len(found.kept)]
    assert all(error is not None and error > 0.6 * 0.999 for error in narrower)
    assert errors[len(found.kept) - 1] == pytest.approx(found.held_out_error, rel=1e-6)
    fitted = np.array([point[3] for point in found.curve])
    assert (np.diff(fitted) <= 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_selections_on_a_path_are_nested(site: Site, method: str) -> None:
    before: set[int] = set()
    for allowed in (0.85, 0.75, 0.65, 0.55, 0.48):
        kept = set(select(method, [site.problem], site.folds, max_error=allowed).kept)
        assert before < kept
        before = kept


@pytest.mark.parametrize("method", METHODS)
def test_out_of_reach(site: Site, method: str) -> None:
    with pytest.raises(
        VerificationError, match=r"a held-out error of 0.01 is out of reach: the best on the path"
    ):
        select(method, [site.problem], site.folds, max_error=0.01)
    with pytest.raises(
        VerificationError, match=r"with 3 of 24 candidates \(keep = 3\); more candidates, more samples"
    ):
        select(method, [site.problem], site.folds, max_error=0.45, keep=3)
    with pytest.raises(UsageError, match="held-out rows"):
        select(method, [replace(site.problem, held_out=None)], site.folds, max_error=0.5)


def test_a_falling_lambda_lets_the_neurons_of_algorithm_3_in(site: Site) -> None:
    """The neurons that stay are those of a lasso of some λ, as far as its support has that width."""
    for allowed in (0.8, 0.65, 0.55):
        found = select("alg3", [site.problem], max_error=allowed)
        assert found.lam is not None
        assert found.lam_max is not None
        assert found.solution is not None
        assert found.solution.lam == pytest.approx(found.lam * found.lam_max)
        same = select("alg3", [site.problem], lam=found.lam, path_points=0)
        assert set(found.kept) <= set(same.kept)
        kept = list(found.kept)
        torch.testing.assert_close(found.beta[kept], same.beta[kept], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["alg1", "alg2"])
def test_a_rising_alpha_drops_the_neurons_of_algorithms_1_and_2(site: Site, method: str) -> None:
    """β is that of an α at which the neurons chosen have all been in; one that is out again there has β = 0."""
    alphas = []
    for allowed in (0.5, 0.7, 0.8):
        found = select(method, [site.problem], site.folds, max_error=allowed)
        assert found.alpha is not None
        assert found.solution is not None
        assert found.solution.alpha == found.alpha
        assert found.beta.any()
        assert set(found.beta.nonzero().reshape(-1).tolist()) <= set(found.kept)
        alphas.append(found.alpha)
    assert alphas == sorted(alphas)
    assert alphas[0] < alphas[-1]


def test_the_order_of_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    solution = iilasso(np.eye(2), np.ones(2), np.zeros((2, 2)))
    runs = [
        Run(np.array([7]), np.array([0.5]), solution),
        Run(np.array([3, 7, 9]), np.array([0.1, 1.0, -0.2]), solution),
        Run(np.array([1, 3]), np.array([0.3, 9.0]), solution),
    ]
    orders: list[Order] = []
    monkeypatch.setattr(paths, "along", lambda pool, order, **_: orders.append(order))
    paths.along_runs(Pool.of([site.problem], None), runs, max_error=0.5, rho=1e-6, rest=[20, 4])
    places = orders[0].places.tolist()
    assert places[:6] == [7, 9, 3, 1, 20, 4]  # by entry, by |β| there, and then by the rest
    assert sorted(places) == list(range(DN))


def test_the_seed_draws_the_path_of_random(site: Site) -> None:
    kept = [select("random", [site.problem], max_error=0.6, seed=seed).kept for seed in range(4)]
    assert len(set(kept)) > 1
    assert kept[2] == select("random", [site.problem], max_error=0.6, seed=2).kept


@pytest.mark.parametrize("method", METHODS)
def test_a_core_has_to_compete(site: Site, method: str) -> None:
    core = tuple(range(12))
    found = select(method, [site.problem], site.folds, max_error=0.75, constraints=Constraints(core))
    assert len(found.kept) < 12


@pytest.mark.parametrize("method", METHODS)
def test_groups_stay_equal(site: Site, method: str) -> None:
    """Two halves of a tensor, each read by a group of its own."""
    halves = []
    for g, share in enumerate((torch.arange(12), torch.arange(12, 24))):
        part = restricted(site.problem, share)
        halves.append(
            Problem(part.fit, part.held_out, 1, (slice(0, 4),), (0,), among=torch.arange(12 * g, 12 * g + 12))
        )
    found = select(method, halves, site.folds, max_error=0.75, constraints=Constraints(groups=2))
    counts = np.bincount(np.array(found.kept) // 12, minlength=2)
    assert counts[0] == counts[1] < 12
    assert [point[1] for point in found.curve] == list(range(2, 25, 2))
    assert found.held_out_error is not None
    assert found.held_out_error <= 0.75


@pytest.mark.parametrize("method", METHODS)
def test_the_worst_reader_counts(site: Site, method: str) -> None:
    easy = replace(site.problem, readers=(0,))
    n, noise = site.problem.fit.n, torch.Generator().manual_seed(9)
    y = site.y[:, :2] + 2 * torch.randn(len(site.y), 2, dtype=torch.float64, generator=noise)
    hard = Problem(Moments.from_rows(site.A[:n], y[:n]), Moments.from_rows(site.A[n:], y[n:]), readers=(1,))
    alone = select(method, [easy], site.folds, max_error=0.95)
    both = select(method, [easy, hard], site.folds, max_error=0.95)
    assert len(both.kept) >= len(alone.kept)
    assert max(reader.held_out_error or 0 for reader in both.readers) <= 0.95


def test_no_width_has_enough_rows(site: Site) -> None:
    few = replace(site.problem, fit=replace(site.problem.fit, n=1))
    with pytest.raises(DataError, match="1 rows can't fit one neuron of 1 columns"):
        select("random", [few], max_error=0.5)
