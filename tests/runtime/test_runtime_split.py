import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything, split

X = TensorSpec("x", "float32", ("N", 1))
FIXED = TensorSpec("x", "float32", (4, 1))


def arrays(n, spec=X, **options):
    return open_data({"x": np.arange(n, dtype=np.float32)[:, None]}, [spec], DataOptions(**options))


def feeds(count, size=2):
    def fresh():
        for k in range(count):
            yield {"x": np.arange(k * size, (k + 1) * size, dtype=np.float32)[:, None]}

    return open_data(fresh, [X])


def ids(batches):
    """The samples by their content, which is their number; each batch's own numbers must say the same."""
    found = []
    for batch in batches:
        values = batch.feeds["x"][:, 0].tolist()
        assert values == batch.indices.tolist()
        assert batch.size == len(values)
        found += values
    assert len(set(found)) == len(found)
    return {int(value) for value in found}


def folds(batches):
    return {int(index): batch.fold for batch in batches for index in batch.indices}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 400),
    holdout=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    limit=st.none() | st.integers(2, 500),
    parts=st.integers(1, 7),
    batch_size=st.integers(1, 70),
)
def test_samples_are_split_exactly(n, holdout, seed, limit, parts, batch_size):
    source = arrays(n)
    options = {"holdout": holdout, "seed": seed, "max_samples": limit, "folds": parts}
    both = split(source, **options, batch_size=batch_size)
    fit, held = ids(both.fit), ids(both.held_out)
    total = min(n, limit or n)
    assert fit.isdisjoint(held)
    assert len(fit) + len(held) == total
    assert len(held) == min(max(round(holdout * total), 1), total - 1)
    assert fit | held <= set(range(n))
    assert (both.fit.samples, both.held_out.samples) == (len(fit), len(held))
    other = split(source, **options, batch_size=64)
    assert (ids(other.fit), ids(other.held_out)) == (fit, held)
    of = folds(both.fit)
    assert of == folds(other.fit)
    counts = np.bincount(list(of.values()), minlength=parts)
    assert counts.max() - counts.min() <= 1
    assert {batch.fold for batch in both.held_out} == {0}
    assert all(batch.size <= batch_size for batch in both.fit)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 90),
    holdout=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    parts=st.integers(1, 5),
    limit=st.none() | st.integers(4, 200),
)
def test_feeds_are_split_whole(count, holdout, seed, parts, limit):
    source = feeds(count)
    both = split(source, holdout=holdout, seed=seed, folds=parts, max_samples=limit)
    fit, held = ids(both.fit), ids(both.held_out)
    total = min(count, count if limit is None else limit // 2)
    assert fit.isdisjoint(held)
    assert fit | held == set(range(2 * total))
    assert all(batch.size == 2 for batch in both.fit)
    assert fit
    assert held
    exact = total if total <= 20 else total // 20 * 20  # a share is exact where a block ends
    in_full_blocks = sum(1 for k in held if k < 2 * exact) // 2
    assert in_full_blocks == min(max(round(holdout * exact), 1), exact - 1)
    assert {batch.fold for batch in both.fit} <= set(range(parts))


def test_seeds_differ_and_are_repeated():
    source = arrays(100)
    assert ids(split(source, seed=1).held_out) == ids(split(arrays(100), seed=1).held_out)
    assert ids(split(source, seed=1).held_out) != ids(split(source, seed=2).held_out)
    assert ids(split(feeds(20), seed=1).held_out) != ids(split(feeds(20), seed=2).held_out)


def test_held_out_data_of_its_own():
    both = split(arrays(50), held_out_source=arrays(7), folds=5)
    assert (ids(both.fit), ids(both.held_out)) == (set(range(50)), set(range(7)))
    assert {batch.fold for batch in both.fit} == set(range(5))
    both = split(arrays(50), held_out_source=arrays(70), max_samples=20)
    assert (both.fit.samples, both.held_out.samples) == (20, 20)
    both = split(feeds(3), held_out_source=feeds(1))
    assert (ids(both.fit), ids(both.held_out)) == (set(range(6)), {0, 1})


def test_options_are_the_defaults():
    source = arrays(100, max_samples=10, batch_size=3)
    both = split(source)
    assert (both.fit.samples, both.held_out.samples) == (8, 2)
    assert max(batch.size for batch in split(source, folds=1).fit) == 3
    assert split(source, max_samples=50).fit.samples == 40
    assert everything(source).samples == 10


def test_everything():
    batches = everything(arrays(100), 30)
    assert ids(batches) == set(range(100))
    assert [batch.size for batch in batches] == [30, 30, 30, 10]
    assert {batch.fold for batch in batches} == {0}
    some = everything(arrays(100), max_samples=20, seed=3)
    assert ids(some) == ids(everything(arrays(100), 7, max_samples=20, seed=3))
    assert len(ids(some)) == 20
    assert ids(everything(feeds(9))) == set(range(18))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"holdout": 0.0}, "--holdout 0.0"),
        ({"holdout": 1.0}, "--holdout 1.0"),
        ({"folds": 0}, "folds is 0"),
        ({"folds": 251}, "between 1 and 250"),
        ({"max_samples": 0}, "--max-samples is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_bad_numbers(bad, reason):
    with pytest.raises(UsageError, match=reason):
        split(arrays(10), **bad)


def test_too_little_data():
    with pytest.raises(DataError, match="gives 1 sample: at least two"):
        split(arrays(1))
    with pytest.raises(DataError, match="gives 1 sample: at least two"):
        split(arrays(10), max_samples=1)
    with pytest.raises(DataError, match="yields 1 feed: "):
        split(feeds(1))
    with pytest.raises(DataError, match="yields 0 feeds: "):
        split(feeds(0))
    with pytest.raises(DataError, match="yields 1 feed within --max-samples 3"):
        split(feeds(10), max_samples=3)


def test_fixed_batches_reach_both_sides():
    both = split(arrays(16, FIXED))
    assert (both.fit.samples, both.held_out.samples) == (12, 4)
    assert (both.fit.dropped, both.held_out.dropped) == (0, 0)
    both = split(arrays(16, FIXED), holdout=0.9)
    assert (both.fit.samples, both.held_out.samples) == (4, 12)
    with pytest.raises(DataError, match="fixes a batch size of 4"):
        split(arrays(7, FIXED))
