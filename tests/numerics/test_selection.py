"""obs and forward against refits from scratch, and the price of every width against a fit of that width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.errors import DataError, UsageError, VerificationError
from onnx_compnet.layers import Activation, ConvGeometry, DenseGeometry, Geometry
from onnx_compnet.numerics import elimination, ridge, selection
from onnx_compnet.numerics.algorithms import select
from onnx_compnet.numerics.elimination import Backward, BlockElimination
from onnx_compnet.numerics.initialise import candidates
from onnx_compnet.numerics.moments import Moments, columns_of
from onnx_compnet.numerics.pool import Constraints
from onnx_compnet.numerics.problems import Problem, arranged, fit_readers, restricted, variances, worst
from onnx_compnet.numerics.rows import new_layer, row_chunks
from onnx_compnet.numerics.selection import Order, by_contribution, forward, in_rounds, obs
from onnx_compnet.numerics.widths import width_curve

RHO = 1e-6
DN = 12


def random_problem(
    seed: int, taps: int = 1, D2: int = 3, n: int = 400, among: torch.Tensor | None = None, Dn: int = DN
) -> Problem:
    """Correlated ReLU columns; y follows some of them; a third is held out."""
    generator = torch.Generator().manual_seed(seed)
    own = Dn if among is None else len(among)
    u = torch.randn(n, own * taps, dtype=torch.float64, generator=generator).relu()
    u = u + 0.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator) @ torch.randn(
        3, own * taps, dtype=torch.float64, generator=generator
    )
    W2 = torch.randn(own * taps, D2, dtype=torch.float64, generator=generator)
    W2 *= torch.rand(own, 1, dtype=torch.float64, generator=generator).pow(3).repeat_interleave(taps, 0)
    y = u @ W2 + torch.randn(n, D2, dtype=torch.float64, generator=generator) + 2
    cut = 2 * n // 3
    return Problem(
        Moments.from_rows(u[:cut], y[:cut]), Moments.from_rows(u[cut:], y[cut:]), taps, among=among
    )


def conv_problem(spatial: tuple[int, ...], geometry: Geometry, seed: int = 0, samples: int = 8) -> Problem:
    """A convolution over a convolution with ReLU, its rows cut from real windows."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(samples, 4, *spatial, dtype=torch.float64, generator=generator)
    layer = candidates(
        "conv", 4, DN, (3,) * len(spatial), Activation("relu"), seed=seed, dtype=np.dtype(np.float64)
    )
    A = new_layer(layer, t)[1]
    u = torch.cat(list(row_chunks(A, geometry)))
    y = u @ torch.randn(u.shape[1], 3, dtype=torch.float64, generator=generator)
    y = y.relu() + 0.1 * torch.randn(*y.shape, dtype=torch.float64, generator=generator)
    cut = 2 * len(u) // 3
    return Problem(Moments.from_rows(u[:cut], y[:cut]), Moments.from_rows(u[cut:], y[cut:]), u.shape[1] // DN)


def two_readers() -> list[Problem]:
    """A 3-tap reader with two outputs side by side, and a dense one of another scale."""
    first = random_problem(1, taps=3, D2=4)
    second = random_problem(2, D2=2)
    scaled = Moments(
        second.fit.n,
        second.fit.mean_u,
        50 * second.fit.mean_y,
        second.fit.uu,
        50 * second.fit.uy,
        2500 * second.fit.yy,
    )
    return [
        Problem(first.fit, first.held_out, 3, (slice(0, 1), slice(1, 4)), (0, 2)),
        Problem(scaled, None, 1, (slice(0, 2),), (1,)),
    ]


def grouped(groups: int = 3) -> list[Problem]:
    """A grouped reader: one problem a group, over its share of the neurons."""
    shares = torch.arange(DN).chunk(groups)
    found = [random_problem(g, taps=2, D2=2, among=share) for g, share in enumerate(shares)]
    return [Problem(p.fit, p.held_out, 2, (slice(0, 2),), (0,), among=p.among) for p in found]


CASES: dict[str, tuple[Callable[[], list[Problem]], int]] = {
    "dense": (lambda: [random_problem(0)], 1),
    "taps": (lambda: [random_problem(0, taps=4)], 1),
    "flattened": (
        lambda: [
            conv_problem(
                (3,), DenseGeometry(channel_axis=1, output_axis=1, taps=3, flattened=True), samples=300
            )
        ],
        1,
    ),
    "1-D": (lambda: [conv_problem((40,), ConvGeometry((3,), (2,), (1,), (1, 1)))], 1),
    "2-D": (lambda: [conv_problem((9, 9), ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)))], 1),
    "several readers": (two_readers, 1),
    "grouped": (grouped, 3),
    "grouped beside dense": (lambda: [*grouped(), replace(random_problem(9, D2=2), readers=(1,))], 3),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[tuple[Problem, ...], int]:
    make, groups = CASES[request.param]
    return arranged(make()), groups


def objective(problems: Sequence[Problem], neurons: Sequence[int]) -> float:
    """Σ over the readers of (squared error + ridge)/σ², by least squares on the neurons alone, from scratch."""
    total, variance = 0.0, variances(problems)
    for problem in problems:
        own = range(DN) if problem.among is None else problem.among.tolist()
        columns = columns_of([own.index(j) for j in neurons if j in own], problem.taps)
        G, C = problem.fit.G, problem.fit.C
        G = G + RHO * G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)
        W2 = torch.linalg.solve(G[columns][:, columns], C[columns])
        error = problem.fit.v - (C[columns] * W2).sum(0)
        for place, part in zip(problem.readers, problem.slices, strict=True):
            total += float(error[part].sum()) / variance[place]
    return total


def group_of(neuron: int, groups: int) -> int:
    return neuron * groups // DN


def backward_from_scratch(problems: Sequence[Problem], groups: int) -> list[int]:
    left, dropped = list(range(DN)), []
    while len(left) > groups:
        done = {group_of(j, groups) for j in dropped[len(dropped) // groups * groups :]}
        allowed = [j for j in left if group_of(j, groups) not in done]
        worst_one = min(allowed, key=lambda j: objective(problems, [k for k in left if k != j]))
        left.remove(worst_one)
        dropped.append(worst_one)
    return [*left, *reversed(dropped)]


def forward_from_scratch(problems: Sequence[Problem], groups: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < DN:
        done = {group_of(j, groups) for j in taken[len(taken) // groups * groups :]}
        allowed = [j for j in range(DN) if j not in taken and group_of(j, groups) not in done]
        taken.append(min(allowed, key=lambda j: objective(problems, [*taken, j])))
    return taken


def test_obs_is_a_refit_from_scratch_at_every_step(case: tuple[tuple[Problem, ...], int]) -> None:
    problems, groups = case
    order = obs(problems, groups=groups, rho=RHO)
    assert order.places.tolist() == backward_from_scratch(problems, groups)
    assert order.least == groups


def test_forward_is_a_refit_from_scratch_at_every_step(case: tuple[tuple[Problem, ...], int]) -> None:
    problems, groups = case
    order = forward(problems, groups=groups, rho=RHO)
    expected = forward_from_scratch(problems, groups)
    assert order.places.tolist() == expected
    for most in (5, 6):
        assert (
            forward(problems, groups=groups, most=most).places.tolist() == expected[: most // groups * groups]
        )


def test_every_width_costs_what_a_fit_of_it_costs(case: tuple[tuple[Problem, ...], int]) -> None:
    problems, groups = case
    for order in (obs(problems, groups=groups), by_contribution(problems, groups=groups)):
        curve = width_curve(problems, order)
        assert curve.widths.tolist() == list(range(groups, DN + 1, groups))
        for at, width in enumerate(curve.widths):
            support = torch.from_numpy(np.sort(order.places[:width]))
            readers, _ = fit_readers([restricted(problem, support) for problem in problems], RHO)
            np.testing.assert_allclose(curve.fitted[:, at], [r.fitted_error for r in readers], rtol=1e-9)
            if curve.held_out is not None and all(p.held_out for p in problems):
                held_out = [r.held_out_error for r in readers]
                np.testing.assert_allclose(curve.held_out[:, at], held_out, rtol=1e-5)


@pytest.mark.parametrize("method", [obs, forward])
def test_a_core_is_in_front(method: Callable[..., Order]) -> None:
    problems = arranged([random_problem(3)])
    core = (2, 7, 11)
    order = method(problems, core=core)
    assert order.least == 3
    assert sorted(order.places[:3].tolist()) == list(core)
    assert sorted(order.places.tolist()) == list(range(DN))
    rest = [j for j in range(DN) if j not in core]
    for at in range(3, DN):  # each step the best that the core allows
        chosen = order.places[:at].tolist()
        if method is forward:
            best = min((j for j in rest if j not in chosen), key=lambda j: objective(problems, [*chosen, j]))
            assert order.places[at] == best
        else:
            more = [*chosen, int(order.places[at])]
            costs = {j: objective(problems, [k for k in more if k != j]) for j in more if j not in core}
            assert order.places[at] == min(costs, key=costs.__getitem__)


@pytest.mark.parametrize("method", [obs, forward])
def test_a_core_that_is_not_the_same_in_every_group(method: Callable[..., Order]) -> None:
    order = method(arranged(grouped()), core=(0, 1, 4), groups=3)
    assert order.least == 6
    for width in order.widths:
        assert len(set(np.bincount(order.places[:width] // 4, minlength=3))) == 1
    assert {0, 1, 4} <= set(order.places[:6].tolist())


def test_rounds_take_one_of_each_group_in_turn() -> None:
    order = in_rounds(np.array([5, 4, 0, 3, 2, 1]), 6, 3, core=[1])
    assert order.places.tolist() == [1, 3, 5, 0, 2, 4]
    assert order.widths.tolist() == [3, 6]
    assert in_rounds(np.array([3, 1, 2]), 4, 1, core=[2]).places.tolist() == [2, 3, 1]


def test_work_put_off_and_done_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = arranged([random_problem(4, taps=3, Dn=40, n=2000)])
    expected = obs(problems).places.tolist()
    for pending, refresh in ((3, 0.0), (1000, 0.0), (7, 0.95)):
        monkeypatch.setattr(elimination, "PENDING", pending)
        monkeypatch.setattr(elimination, "REFRESH", refresh)
        assert obs(problems).places.tolist() == expected


def test_elimination_is_a_schur_complement() -> None:
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(30, 12, dtype=torch.float64, generator=generator)
    A, B = M.T @ M, torch.randn(12, 2, dtype=torch.float64, generator=generator)
    state = BlockElimination(A.clone(), B.clone(), 3)
    gone = [2, 0]
    for block in gone:
        j = slice(3 * block, 3 * block + 3)
        worths, definite = state.worths()
        assert definite
        expected = float((B[j] * torch.linalg.solve(A[j, j], B[j])).sum())
        assert float(worths[block]) == pytest.approx(expected, rel=1e-10)
        assert state.eliminate(block)
        A, B = (
            A - A[:, j] @ torch.linalg.solve(A[j, j], A[j]),
            B - A[:, j] @ torch.linalg.solve(A[j, j], B[j]),
        )
    assert state.settle().tolist() == [1, 3]
    left = columns_of([1, 3], 3)
    torch.testing.assert_close(state._A, A[left][:, left])
    torch.testing.assert_close(state._B, B[left])


def test_a_block_that_is_not_definite_is_left_alone() -> None:
    A = torch.tensor([[1.0, 0], [0, -1]], dtype=torch.float64)
    state = BlockElimination(A, torch.ones(2, 1, dtype=torch.float64), 1)
    worths, definite = state.worths()
    assert (worths.tolist(), definite) == ([1.0, 0.0], False)
    assert not state.eliminate(1)
    assert state.left == 2


@pytest.mark.parametrize("block", [0, 5])
def test_a_downdate_that_lost_its_way_is_factorised_anew(block: int) -> None:
    (problem,) = arranged([random_problem(4, taps=3)])
    (state,) = selection._states(Backward, [problem], RHO)
    for place in (3, 8):
        state.take(place)
    expected = state.worths()
    places = state._left.tolist()
    state._state._blocks[places.index(block)] = -torch.eye(3, dtype=torch.float64)
    np.testing.assert_allclose(state.worths(), expected, rtol=1e-6)
    state._state._A.neg_()
    state.take(block)
    remaining = state.worths()
    assert (remaining[[3, 8, block]] == 0).all()
    (fresh,) = selection._states(Backward, [problem], RHO)
    for place in (3, 8, block):
        fresh.take(place)
    np.testing.assert_allclose(remaining, fresh.worths(), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 1e-6])
@pytest.mark.parametrize("method", ["obs", "forward"])
def test_of_equal_neurons_one_stays_until_the_end(method: str, rho: float) -> None:
    """Copies add nothing: all of them but one go before any other neuron, the first one stays."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(300, 6, dtype=torch.float64, generator=generator)
    y = u @ torch.randn(6, 2, dtype=torch.float64, generator=generator)
    copies = torch.cat([u, u[:, [1]], u[:, [1]], u[:, [4]]], 1)
    problem = Problem(Moments.from_rows(copies, y), None)
    found = select(method, [problem], keep=6, rho=rho)
    assert len({1, 6, 7} & set(found.kept)) == 1
    assert len({4, 8} & set(found.kept)) == 1
    assert found.fitted_error < 1e-5
    assert found.kept == select(method, [problem], keep=6, rho=rho).kept


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    taps=st.integers(1, 3),
    D2=st.integers(1, 30),
    method=st.sampled_from([obs, forward, by_contribution]),
)
def test_errors_on_fitted_rows_never_grow_with_the_width(
    seed: int, taps: int, D2: int, method: Callable[..., Order]
) -> None:
    problems = arranged([random_problem(seed, taps, D2)])
    curve = width_curve(problems, method(problems))
    assert (np.diff(curve.fitted[0]) <= 1e-9).all()
    assert curve.held_out is not None
    whole = worst(fit_readers(problems, RHO)[0])
    assert curve.fitted[0, -1] == pytest.approx(whole[0], rel=1e-9)
    assert curve.held_out[0, -1] == pytest.approx(whole[1], rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from([obs, forward, by_contribution]))
def test_neurons_in_another_order_are_the_same_selection(seed: int, method: Callable[..., Order]) -> None:
    problem = random_problem(seed, taps=2)
    permutation = torch.randperm(DN, generator=torch.Generator().manual_seed(seed))
    columns = columns_of(permutation, 2)
    assert problem.held_out is not None
    moved = Problem(problem.fit.subset(columns), problem.held_out.subset(columns), 2)
    one, other = (method(arranged([each])) for each in (problem, moved))
    assert permutation[torch.from_numpy(other.places)].tolist() == one.places.tolist()


def test_more_outputs_than_columns_are_folded_together() -> None:
    problems = arranged([random_problem(8, D2=40)])
    assert obs(problems).places.tolist() == backward_from_scratch(problems, 1)


@pytest.mark.parametrize("method", ["obs", "forward"])
def test_a_target_that_does_not_vary(method: str) -> None:
    problem = random_problem(0)
    still = Moments(
        problem.fit.n,
        problem.fit.mean_u,
        problem.fit.mean_y,
        problem.fit.uu,
        0 * problem.fit.uy,
        0 * problem.fit.yy,
    )
    with pytest.raises(DataError, match="nothing to fit"):
        select(method, [Problem(still, None)], keep=3)
    beside = select(method, [Problem(still, None), random_problem(1)], keep=3)
    assert beside.kept == select(method, [random_problem(1)], keep=3).kept
    assert beside.fitted_error == select(method, [random_problem(1)], keep=3).fitted_error


def test_rows_that_are_too_few() -> None:
    few = random_problem(0, n=15)  # 10 fitted rows, 12 candidates
    with pytest.raises(DataError, match="10 rows can't fit 12 columns"):
        select("obs", [few], keep=3)
    found = select("forward", [few], keep=3)
    assert [point[1] for point in found.curve] == [1, 2, 3]
    wide = select("forward", [few], max_error=9.0)
    assert [point[1] for point in wide.curve] == list(range(1, 10))  # 9 columns are the most that 10 rows fit


@pytest.mark.parametrize("method", ["obs", "forward"])
def test_the_narrowest_width_within_an_error(method: str) -> None:
    problem = random_problem(6)
    curve = select(method, [problem], keep=DN).curve
    for _, width, error, _ in curve[1:-1]:
        assert error is not None
        found = select(method, [problem], max_error=error * 1.01)
        assert found.held_out_error is not None
        assert found.held_out_error <= error * 1.01
        assert len(found.kept) <= width
        narrower = [at for _, at, value, _ in curve if value is not None and value <= error * 1.01 * 0.999]
        assert len(found.kept) == narrower[0]
    best = min(point[2] for point in curve if point[2] is not None)
    with pytest.raises(VerificationError, match=f"out of reach: the best on the path is {best:.4g}"):
        select(method, [problem], max_error=best / 2)
    with pytest.raises(VerificationError, match=r"with 2 of 12 candidates \(keep = 2\)"):
        select(method, [problem], max_error=best * 1.01, keep=2)
    with pytest.raises(UsageError, match="held-out rows"):
        select(method, [Problem(problem.fit, None)], max_error=0.5)


def with_prior(exact: bool, n: int = 400) -> tuple[Problem, torch.Tensor]:
    """Neurons 0 to 4 make y with known weights; the others only look like it."""
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(n, DN, dtype=torch.float64, generator=generator)
    u[:, 5:] += u[:, :1]
    prior = torch.zeros(DN, 3, dtype=torch.float64)
    prior[:5] = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    y = u @ prior + (0 if exact else 0.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator))
    cut = 2 * n // 3
    b2 = torch.zeros(3, dtype=torch.float64) if exact else None
    fit, held_out = Moments.from_rows(u[:cut], y[:cut]), Moments.from_rows(u[cut:], y[cut:])
    return Problem(fit, held_out, prior=prior, exact_b2=b2), prior


@pytest.mark.parametrize("method", ["obs", "forward"])
def test_exact_weights_that_are_known_win(method: str) -> None:
    problem, prior = with_prior(exact=True)
    found = select(method, [problem], keep=8, constraints=Constraints(tuple(range(5))))
    assert set(range(5)) <= set(found.kept)
    assert found.kept == tuple(range(8))  # of what is worth nothing the first stay
    assert torch.equal(found.readers[0].W2[:5], prior[:5])
    narrow = select(method, [problem], max_error=1e-4, constraints=Constraints(tuple(range(5))))
    assert narrow.kept == (0, 1, 2, 3, 4)
    assert narrow.held_out_error is not None
    assert narrow.held_out_error <= 1e-4
    less = select(method, [problem], max_error=0.6, constraints=Constraints(tuple(range(5))))
    assert len(less.kept) < 5


@pytest.mark.parametrize("n", [18, 30, 400])
def test_a_prior_is_priced_as_it_is_fitted(n: int) -> None:
    problem, _ = with_prior(exact=False, n=n)
    problems = arranged([problem])
    order = forward(problems, core=range(5))
    curve = width_curve(problems, order)
    assert curve.held_out is not None
    for at, width in enumerate(curve.widths):
        support = torch.from_numpy(np.sort(order.places[:width]))
        left = [restricted(problems[0], support)]
        if problem.fit.n <= width:
            assert np.isnan(curve.held_out[0, at])
            continue
        assert worst(fit_readers(left, RHO)[0]) == pytest.approx(
            (curve.fitted[0, at], curve.held_out[0, at]), rel=1e-6
        )


def test_exact_weights_need_no_rows() -> None:
    problem, _ = with_prior(exact=True, n=12)  # 8 fitted rows, 12 candidates
    found = select("obs", [problem], keep=10, constraints=Constraints(tuple(range(5))))
    assert set(range(5)) <= set(found.kept)
    assert found.fitted_error < 1e-7
    order = Order(np.arange(DN), 1)
    curve = width_curve(arranged([problem]), order)
    assert curve.held_out is not None
    assert curve.held_out[0, 4:].max() < 1e-6


def test_a_singular_gram_needs_a_ridge() -> None:
    problem = random_problem(0)
    twice = columns_of([*range(DN), *range(DN)], 1)
    doubled = Problem(problem.fit.subset(twice), None)
    order = obs(arranged([doubled]), rho=0.0)
    assert "nearly dependent" in order.warnings[0]
    assert {j % DN for j in order.places[:DN].tolist()} == set(range(DN))


def test_columns_that_never_vary_cost_nothing() -> None:
    problem = random_problem(0)
    assert ridge.factorise(Moments.zero(4, 2), RHO) is None
    still = Problem(replace(Moments.zero(DN, 2), n=400), None, readers=(1,), slices=(slice(0, 2),))
    both = arranged([Problem(problem.fit, None, readers=(0,), slices=(slice(0, 3),)), still])
    assert obs(both).places.tolist() == obs(arranged([problem])).places.tolist()
    assert width_curve(both, obs(both)).fitted.shape == (2, DN)


def test_groups_that_do_not_fit() -> None:
    for method in (selection.obs, selection.forward):
        with pytest.raises(UsageError, match="shared out"):
            method(arranged([random_problem(0)]), groups=5)


def test_pairs_beat_single_neurons_when_dropped_from_behind() -> None:
    """What forward selection can't see: two neurons that are worth something only together."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 2000, 1, dtype=torch.float64, generator=generator)
    u = torch.cat([a + 9 * b, b + 0.01 * a, a + c], 1)
    problem = arranged([Problem(Moments.from_rows(u, a), None)])
    assert set(obs(problem).places[:2].tolist()) == {0, 1}
    assert set(forward(problem).places[:2].tolist()) != {0, 1}
    errors = {pair: objective_of_two(problem, pair) for pair in itertools.combinations(range(3), 2)}
    assert min(errors, key=errors.__getitem__) == (0, 1)


def objective_of_two(problems: Sequence[Problem], pair: tuple[int, int]) -> float:
    left = [restricted(problem, torch.tensor(pair)) for problem in problems]
    return worst(fit_readers(left, RHO)[0])[0]
