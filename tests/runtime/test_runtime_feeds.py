import itertools

import numpy as np
import pytest
import torch

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything, split

X = TensorSpec("x", "float32", ("N", 3))
H = TensorSpec("h", "float32", (2, "N", 4))


def feeds(count=5, size=4):
    for k in range(count):
        yield {"x": np.full((size, 3), k, np.float32), "h": np.full((2, size, 4), k, np.float32)}


def test_feeds_pass_unchanged():
    source = open_data(feeds, [X, H])
    assert (source.n_samples, source.description) == (None, "the data function")
    batches = everything(source, batch_size=3)
    assert batches.samples is batches.length_hint is None
    got = list(batches)
    assert [batch.size for batch in got] == [4] * 5
    assert got[2].indices.tolist() == [8, 9, 10, 11]
    for batch, feed in zip(got, feeds(), strict=True):
        assert all(np.array_equal(batch.feeds[name], feed[name]) for name in feed)
    assert batches.samples == source.n_samples == 20
    assert source.description == "the data function, 20 samples"


def test_size_is_along_the_batch_axis():
    source = open_data(feeds, [H, X])
    assert next(iter(everything(source))).size == 4
    source = open_data(feeds, [H], DataOptions(batch_axis={"h": 1}))
    assert next(iter(everything(source))).size == 4
    assert next(iter(everything(open_data(feeds, [TensorSpec("h", "float32", (2, 4, 4))])))).size == 2
    scalar = open_data(lambda: iter([np.float32(3) * np.ones(())]), [TensorSpec("k", "float32", ())])
    assert next(iter(everything(scalar))).size == 1


@pytest.mark.parametrize(
    "item",
    [
        {"x": np.ones((2, 3))},
        {"input": torch.ones(2, 3)},
        np.ones((2, 3)),
        torch.ones(2, 3),
        torch.ones(2, 3, dtype=torch.bfloat16),
        [torch.ones(2, 3)],
        (np.ones((2, 3)), np.arange(2)),
        ({"x": np.ones((2, 3))}, np.arange(2)),
        ([np.ones((2, 3))], np.arange(2)),
    ],
)
def test_forms_of_a_feed(item):
    (batch,) = everything(open_data(lambda: [item], [TensorSpec("input", "float32", ("N", 3))]))
    assert batch.feeds["input"].dtype == np.float32
    assert batch.feeds["input"].tolist() == np.ones((2, 3)).tolist()


def test_reiterable_containers():
    items = list(feeds())
    source = open_data(items, [X, H])
    assert len(list(everything(source))) == 5
    assert len(list(everything(source))) == 5


@pytest.mark.parametrize("one_shot", [feeds(), iter([]), map(str, [])])
def test_one_shot_iterators(one_shot):
    with pytest.raises(UsageError, match="function that returns a fresh iterator"):
        open_data(one_shot, [X, H])


def failing(items, **options):
    with pytest.raises(DataError) as caught:
        list(everything(open_data(lambda: iter(items), [X], DataOptions(**options))))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_feeds():
    good = np.ones((2, 3), np.float32)
    assert "feed 1 of the data function has no array for the model's input 'x'" in failing(
        [good, {"img": good}]
    )
    assert "feed 0 of the data function is str" in failing(["abc"])
    assert "is a tuple of 3" in failing([(good, good, good)])
    assert "an axis is missing" in failing([good[0]])
    assert "dtype uint8" in failing([good.astype(np.uint8)])
    assert "NaN or infinite values of feed 1" in failing([good, good * np.nan])
    assert "yields no samples" in failing([])
    assert "Python objects" in failing([np.array([[None] * 3])])
    assert "yields no samples within --max-samples 1" in failing([good], max_samples=1)


def test_scaling_of_feeds():
    (batch,) = everything(
        open_data(lambda: [np.full((2, 3), 255, np.uint8)], [X], DataOptions(scale="1/255"))
    )
    assert batch.feeds["x"].max() == 1


@pytest.mark.parametrize("given", [None, 3, np.ones((2, 3)), {"x": 1}, "abc"])
def test_functions_that_give_no_feeds(given):
    with pytest.raises(DataError, match="it must yield feeds"):
        list(everything(open_data(lambda: given, [X])))


def test_exceptions_of_python_callers_stay_theirs():
    def broken():
        yield np.ones((2, 3))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(everything(open_data(broken, [X])))


def test_unstable_functions_are_found():
    rng = np.random.default_rng(0)
    source = open_data(lambda: (rng.standard_normal((2, 3)) for _ in range(30)), [X])
    with pytest.raises(DataError, match="different samples at each pass"):
        list(split(source).fit)  # the look ahead was the first pass


def test_shuffled_order_is_found_between_the_two_sides():
    rng = np.random.default_rng(0)
    rows = np.arange(90, dtype=np.float32).reshape(30, 1, 3)
    with pytest.raises(DataError, match="would mix fitted and held-out ones"):
        list(split(open_data(lambda: iter(rng.permutation(rows)), [X])).held_out)


def test_shrinking_and_growing_functions_are_found():
    for counts in ([5, 4], [4, 5], [5, 0]):
        left = iter(counts)
        batches = everything(open_data(lambda left=left: feeds(next(left)), [X, H]))
        list(batches)
        with pytest.raises(DataError, match="different samples at each pass"):
            list(batches)


def test_two_passes_at_once():
    batches = everything(open_data(feeds, [X, H]))
    assert all(a.indices.tolist() == b.indices.tolist() for a, b in zip(batches, batches, strict=True))


SCRIPT = """
import numpy as np
from beside import SIZE

def feeds():
    for k in range(4):
        yield {"x": np.full((SIZE, 3), k, np.float32)}

def broken():
    yield from feeds()
    raise ValueError("no more\\ndata")

number = 3
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    (tmp_path / "load.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("SIZE = 2\n")
    yield tmp_path / "load.py"
    __import__("sys").modules.pop("beside", None)


def test_function_in_a_file(script):
    source = open_data(f"{script}:feeds", [X])
    assert [batch.size for batch in everything(source)] == [2] * 4
    assert source.description == f"{script}:feeds, 8 samples"


def test_bad_function_files(script, tmp_path):
    with pytest.raises(DataError, match=r"load.py:broken raised ValueError at feed 4: no more data"):
        list(everything(open_data(f"{script}:broken", [X])))
    with pytest.raises(DataError, match=r"no function 'nothing': it has \['feeds', 'broken'\]"):
        open_data(f"{script}:nothing", [X])
    with pytest.raises(DataError, match="no function 'number'"):
        open_data(f"{script}:number", [X])
    with pytest.raises(UsageError, match="say which function"):
        open_data(str(script), [X])
    with pytest.raises(UsageError, match="say which function"):
        open_data(f"{script}:", [X])
    with pytest.raises(DataError, match=r"absent.py does not exist"):
        open_data(f"{tmp_path}/absent.py:feeds", [X])
    (tmp_path / "syntax.py").write_text("def (:\n")
    with pytest.raises(DataError, match="can't be imported, SyntaxError"):
        open_data(f"{tmp_path}/syntax.py:feeds", [X])


def test_endless_functions_end_with_max_samples():
    def endless():
        return (np.full((4, 3), k, np.float32) for k in itertools.count())

    parts = split(open_data(endless, [X]), max_samples=400)
    fit, held_out = ([batch.indices for batch in part] for part in (parts.fit, parts.held_out))
    assert (len(fit), len(held_out)) == (80, 20)
    assert sorted(np.concatenate(fit + held_out)) == list(range(400))
