"""Grouped readers and cores that must stay: the same selection in another arrangement, and what it guarantees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numerics_oracles import Site, dense_site

from onnx_compnet.errors import UsageError
from onnx_compnet.numerics.algorithms import select
from onnx_compnet.numerics.moments import Covariance, Moments
from onnx_compnet.numerics.pool import Constraints
from onnx_compnet.numerics.problems import Problem, arranged, hadamard_statistics

METHODS = ("alg1", "alg2", "alg3", "obs", "forward", "random")
DN, GROUPS, TAPS, D2, N = 12, 3, 2, 6, 400


def grouped(seed: int = 0) -> tuple[list[Problem], list[Covariance], torch.Tensor, torch.Tensor]:
    """A reader of 3 groups: 4 of 12 neurons, 2 of 6 outputs each, two taps; and its rows."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(N, DN * TAPS, dtype=torch.float64, generator=generator).relu()
    W2 = torch.randn(DN // GROUPS * TAPS, D2, dtype=torch.float64, generator=generator)
    W2 *= torch.tensor([9.0, 9, 1, 1, 0.2, 0.2], dtype=torch.float64)
    y = torch.cat([u[:, g * 8 : g * 8 + 8] @ W2[:, g * 2 : g * 2 + 2] for g in range(GROUPS)], 1)
    y += 0.1 * torch.randn(N, D2, dtype=torch.float64, generator=generator)
    problems = [
        Problem(
            Moments.from_rows(u[:, g * 8 : g * 8 + 8], y[:, g * 2 : g * 2 + 2]),
            None,
            TAPS,
            (slice(0, 2),),
            (0,),
            among=torch.arange(g * 4, g * 4 + 4),
        )
        for g in range(GROUPS)
    ]
    folds = [Covariance.from_rows(part[:, ::TAPS]) for part in u.chunk(5)]
    return problems, folds, u, y


def test_groups_are_one_problem_whose_other_weights_are_zero() -> None:
    problems, _, u, y = grouped()
    W2s = [
        torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(g)) for g in range(3)
    ]
    whole = Problem(Moments.from_rows(u, y), None, TAPS)
    K, c, variance = hadamard_statistics(arranged(problems), W2s)
    expected = hadamard_statistics(arranged([whole]), [torch.block_diag(*W2s)])
    torch.testing.assert_close((K, c), expected[:2], rtol=1e-12, atol=1e-14)
    assert variance == expected[2] == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [None, 9, 7, 3])
def test_every_group_keeps_as_many_and_its_errors_are_those_of_a_forward_pass(
    method: str, keep: int | None
) -> None:
    problems, folds, u, y = grouped()
    if keep is None and method in ("obs", "forward", "random"):
        return
    found = select(method, problems, folds, keep=keep, lam=0.3, constraints=Constraints(groups=GROUPS))
    per_group = np.bincount(np.array(found.kept) // 4, minlength=GROUPS)
    assert len(set(per_group)) == 1
    assert 1 <= per_group[0] <= (keep or DN) // GROUPS
    (reader,) = found.readers
    columns = [[k * TAPS + q for k in found.kept if k // 4 == g for q in range(TAPS)] for g in range(GROUPS)]
    assert reader.W2.shape == (per_group[0] * TAPS, D2)
    made = (
        torch.cat([u[:, columns[g]] @ reader.W2[:, g * 2 : g * 2 + 2] for g in range(GROUPS)], 1) + reader.b2
    )
    direct = float((made - y).norm() / (y - y.mean(0)).norm())
    assert reader.fitted_error == pytest.approx(direct, rel=1e-8)


def test_a_group_is_filled_up_with_the_first_that_were_dropped() -> None:
    problems, folds, *_ = grouped()
    found = select("alg3", problems, folds, lam=0.3, constraints=Constraints(groups=GROUPS))
    chosen = np.flatnonzero(found.beta.numpy())
    counts = np.bincount(chosen // 4, minlength=GROUPS)
    assert len(set(counts)) > 1
    for group in range(GROUPS):
        own = [k for k in chosen if k // 4 == group]
        more = [k for k in range(group * 4, group * 4 + 4) if k not in own][: max(counts) - len(own)]
        assert [k for k in found.kept if k // 4 == group] == sorted(own + more)


@pytest.fixture(scope="module")
def site() -> Site:
    return dense_site()


@pytest.mark.parametrize("method", METHODS)
def test_a_core_stays_unless_fewer_are_asked_for(site: Site, method: str) -> None:
    core = (1, 5, 20)
    for keep in (3, 6, None):
        if keep is None and method in ("obs", "forward", "random"):
            continue
        found = select(
            method, [site.problem], site.folds, keep=keep, lam=0.6, alpha=2, constraints=Constraints(core)
        )
        assert set(core) <= set(found.kept)
        assert keep is None or len(found.kept) <= keep
    fewer = select(
        method, [site.problem], site.folds, keep=2, lam=0.6, alpha=2, constraints=Constraints(core)
    )
    assert 1 <= len(fewer.kept) <= 2


def test_a_core_stays_where_the_data_does_not_move_it_with_the_weights_that_are_known(site: Site) -> None:
    n = site.problem.fit.n
    A = site.A.clone()
    A[:, 4] = 0.0
    prior = torch.zeros(24, 4, dtype=torch.float64)
    prior[4] = torch.tensor([1.0, 2, 3, 4])
    problem = Problem(Moments.from_rows(A[:n], site.y[:n]), None, prior=prior)
    found = select("alg3", [problem], site.folds, lam=0.3, constraints=Constraints((4,)))
    assert found.kept.index(4) >= 0
    torch.testing.assert_close(found.readers[0].W2[found.kept.index(4)], prior[4])
    assert 4 not in select("alg3", [problem], site.folds, lam=0.3).kept


def test_known_weights_that_are_right_need_few_rows(site: Site) -> None:
    A = site.A[:20]
    prior = torch.zeros(24, 4, dtype=torch.float64)
    prior[:6] = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    problem = Problem(Moments.from_rows(A, A @ prior), None, prior=prior)
    found = select("alg3", [problem], site.folds, constraints=Constraints(tuple(range(6))))
    assert found.kept == tuple(range(6))
    assert found.fitted_error < 1e-12
    torch.testing.assert_close(found.readers[0].W2, prior[:6])


@pytest.mark.parametrize(
    ("constraints", "keep", "words"),
    [
        (Constraints(groups=3), 2, "at least 3, one for each group"),
        (Constraints(groups=5), None, "shared out"),
    ],
)
def test_constraints_that_can_not_be_met(
    site: Site, constraints: Constraints, keep: int | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        select("alg3", [site.problem], site.folds, keep=keep, constraints=constraints)


def test_without_refit_the_core_keeps_its_rows(site: Site) -> None:
    found = select(
        "alg3", [site.problem], site.folds, lam=0.6, refit=False, constraints=Constraints((1, 5, 20))
    )
    whole = select("alg3", [replace(site.problem)], site.folds, lam=1e-9, alpha=0, refit=False)
    row = list(found.kept).index(1)
    if found.beta[1] == 0:
        torch.testing.assert_close(found.readers[0].W2[row], whole.readers[0].W2[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_core_is_enough_where_nothing_varies(site: Site, method: str) -> None:
    A, y = torch.ones_like(site.A), torch.ones_like(site.y)
    prior = torch.zeros(24, 4, dtype=torch.float64)
    prior[:4] = torch.eye(4, dtype=torch.float64)
    problem = Problem(Moments.from_rows(A, y), Moments.from_rows(A, y), prior=prior)
    found = select(method, [problem], site.folds, keep=4, constraints=Constraints((0, 1, 2, 3)))
    assert found.kept == (0, 1, 2, 3)
    torch.testing.assert_close(found.readers[0].W2, prior[:4])
    assert found.held_out_error == 0


def test_exact_weights_are_taken_as_they_are_while_their_neurons_stay(site: Site) -> None:
    generator = torch.Generator().manual_seed(3)
    prior = torch.zeros(24, 4, dtype=torch.float64)
    prior[:6] = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    b2 = torch.randn(4, dtype=torch.float64, generator=generator)
    y = site.A @ prior + b2 + 0.05 * torch.randn(len(site.A), 4, dtype=torch.float64, generator=generator)
    problem = Problem(Moments.from_rows(site.A, y), None, prior=prior, exact_b2=b2)
    for refit in (True, False):
        found = select("alg3", [problem], lam=0.3, refit=refit, constraints=Constraints(tuple(range(6))))
        torch.testing.assert_close(found.readers[0].b2, b2, rtol=0, atol=0)
        rows = [found.kept.index(j) for j in range(6)]
        torch.testing.assert_close(found.readers[0].W2[rows], prior[:6], rtol=0, atol=0)
    fewer = select("alg3", [problem], keep=4, constraints=Constraints(tuple(range(6))))
    assert not torch.equal(fewer.readers[0].b2, b2)


def test_of_fit_and_known_weights_the_better_on_other_rows_is_taken(site: Site) -> None:
    """Fitted to few rows, the weights follow the noise; where those that are known are far off, they don't count."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(24, 4, dtype=torch.float64, generator=generator)
    y = site.A @ truth + 2 * torch.randn(len(site.A), 4, dtype=torch.float64, generator=generator)
    few, others = Moments.from_rows(site.A[:30], y[:30]), Moments.from_rows(site.A[30:], y[30:])
    right, wrong = truth + 0.01, 9 * truth
    for prior, taken in ((right, True), (wrong, False)):
        problem = Problem(few, others, prior=prior)
        (reader,) = select("random", [problem], keep=24).readers
        assert torch.equal(reader.W2, prior) == taken
