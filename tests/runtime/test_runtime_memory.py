import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything, split

X = TensorSpec("x", "float32", ("N", 3))
I = TensorSpec("ids", "int64", ("N", "T"))  # noqa: E741


def data(n=50):
    return np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)


def read(source, name="x", axis=0, **options):
    return np.concatenate([batch.feeds[name] for batch in everything(source, **options)], axis=axis)


# ---- arrays


def test_dict_of_arrays():
    source = open_data({"x": data(), "y": np.arange(50)}, [X])
    assert (source.n_samples, source.description, source.is_random) == (50, "arrays, 50 samples", False)
    np.testing.assert_array_equal(read(source, batch_size=7), data())


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, lambda a: a.tolist(), np.asfortranarray])
def test_kinds_of_arrays(wrap):
    np.testing.assert_array_equal(read(open_data({"x": wrap(data())}, [X])), data())


def test_one_array_for_a_single_input():
    named = TensorSpec("input", "float32", ("N", 3))
    for array in (data(), torch.from_numpy(data())):
        np.testing.assert_array_equal(read(open_data(array, [named]), "input"), data())
    with pytest.raises(DataError, match="found 'x'; expected 'input', 'ids'"):
        open_data(data(), [named, I])


def test_batches_are_not_views_of_the_callers_arrays():
    mine = data()
    next(iter(everything(open_data({"x": mine}, [X])))).feeds["x"][:] = 0
    np.testing.assert_array_equal(mine, data())


def test_bad_dicts():
    with pytest.raises(DataError, match="found none"):
        open_data({}, [X])
    with pytest.raises(DataError, match="Python objects"):
        open_data({"x": [object()]}, [X])
    with pytest.raises(DataError, match="is no array"):
        open_data({"x": [[1.0, 2.0], [3.0]]}, [X])
    with pytest.raises(DataError, match="zero samples"):
        open_data({"x": data(0)}, [X])


def test_a_source_stays_a_source():
    source = open_data({"x": data()}, [X])
    assert open_data(source, [X]) is source


@pytest.mark.parametrize("bad", [3, None, object()])
def test_no_data(bad):
    with pytest.raises(UsageError, match="pass a path"):
        open_data(bad, [X])


# ---- random


def test_random_is_seeded_and_marked():
    source = open_data("random", [X])
    assert (source.n_samples, source.is_random) == (256, True)
    assert source.description == "random data, 256 samples"
    first = read(source)
    np.testing.assert_array_equal(first, read(open_data("random:256", [X]), batch_size=9))
    np.testing.assert_array_equal(first[:100], read(open_data("random:100", [X])))
    assert not np.array_equal(first, read(open_data("random", [X], DataOptions(seed=1))))
    assert first.dtype == np.float32
    assert abs(first.mean()) < 0.2
    assert 0.9 < first.std() < 1.1
    assert everything(source).is_random


@pytest.mark.parametrize("text", ["random:0", "random:", "random:x", "random:-3", "random:1.5"])
def test_bad_random(text):
    with pytest.raises(UsageError, match="say random, or random:N"):
        open_data(text, [X])


def test_random_integers_and_booleans():
    inputs = [
        TensorSpec("ids", "int64", ("N", 16)),
        TensorSpec("attention_mask", "int64", ("N", 16)),
        TensorSpec("image", "uint8", ("N", 16)),
        TensorSpec("flag", "bool", ("N", 16)),
        TensorSpec("half", "float16", ("N", 16)),
    ]
    (batch,) = everything(open_data("random:64", inputs))
    assert {name: feed.dtype.name for name, feed in batch.feeds.items()} == {s.name: s.dtype for s in inputs}
    assert set(np.unique(batch.feeds["ids"])) == set(range(10))
    assert set(np.unique(batch.feeds["attention_mask"])) == {0, 1}
    assert batch.feeds["image"].max() > 200
    with pytest.raises(DataError, match="'s' takes no numbers"):
        open_data("random", [TensorSpec("s", "", ("N",))])


def test_random_needs_shapes():
    with pytest.raises(UsageError, match=r"input 'ids', which declares \(N, T\): say --shape ids="):
        open_data("random", [I])
    source = open_data("random:8", [I], DataOptions(shapes={"ids": (1, 12)}))
    assert read(source, "ids").shape == (8, 12)
    with pytest.raises(UsageError, match="does not fit"):
        open_data("random", [I], DataOptions(shapes={"ids": (1, 12, 3)}))
    with pytest.raises(UsageError, match="does not fit"):
        open_data("random", [X], DataOptions(shapes={"x": (1, 4)}))
    with pytest.raises(UsageError, match="names the input 'img'"):
        open_data("random", [X], DataOptions(shapes={"img": (1, 4)}))
    with pytest.raises(UsageError, match="declares no shape"):
        open_data("random", [TensorSpec("x", "float32", None)])
    free = open_data("random:8", [TensorSpec("x", "float32", None)], DataOptions(shapes={"x": (1, 5)}))
    assert read(free).shape == (8, 5)


def test_random_axes():
    inputs = [
        X,
        TensorSpec("h", "float32", (2, "N", 4)),
        TensorSpec("s", "float32", (2, 4)),
        TensorSpec("k", "float32", ()),
    ]
    batches = everything(open_data("random:20", inputs), batch_size=8)
    assert [tuple(feed.shape for feed in batch.feeds.values()) for batch in batches] == [
        ((n, 3), (2, n, 4), (2, 4), ()) for n in (8, 8, 4)
    ]
    first, second, _ = batches
    np.testing.assert_array_equal(first.feeds["s"], second.feeds["s"])
    asked = open_data(
        "random:20", inputs, DataOptions(batch_axis={"h": None, "s": 1}, shapes={"h": (2, 7, 4)})
    )
    assert asked.fixed_batch == 4
    assert next(iter(everything(asked))).feeds["h"].shape == (2, 7, 4)
    with pytest.raises(UsageError, match=r"--batch-axis h=3: the model declares \(2, N, 4\)"):
        open_data("random", inputs, DataOptions(batch_axis={"h": 3}))
    with pytest.raises(DataError, match="no axis for samples"):
        open_data("random", [TensorSpec("k", "float32", ())])


def test_random_for_a_fixed_batch():
    inputs = [TensorSpec("x", "float32", (100, 3)), TensorSpec("m", "float32", (100, 1))]
    source = open_data("random", inputs)
    assert (source.n_samples, source.fixed_batch) == (800, 100)
    parts = split(source)
    assert {batch.feeds["m"].shape for batch in parts.held_out} == {(100, 1)}
    assert open_data("random:128", inputs).n_samples == 128


# ---- torch


class Squares(Dataset):
    def __init__(self, n=50):
        self.n = n
        self.asked = []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.asked.append(index)
        return torch.full((3,), float(index)), index % 10


def test_shuffling_loader_gives_the_same_samples_in_order():
    state = torch.random.get_rng_state()
    source = open_data(DataLoader(Squares(), batch_size=8, shuffle=True, drop_last=True), [X])
    assert source.n_samples == 50
    assert source.description == "torch DataLoader, 50 samples"
    for _ in range(2):
        assert read(source, batch_size=16)[:, 0].tolist() == list(range(50))
    assert torch.equal(state, torch.random.get_rng_state())


def test_only_the_samples_that_are_taken_are_loaded():
    squares = Squares(1000)
    source = open_data(DataLoader(squares, batch_size=8), [X])
    squares.asked.clear()
    parts = split(source, max_samples=40)
    assert sum(batch.size for batch in parts.fit) == 32
    assert len(squares.asked) == 32
    for batch in parts.held_out:
        assert batch.feeds["x"][:, 0].tolist() == batch.indices.tolist()


def test_subsets_stay_subsets():
    sampler = SubsetRandomSampler([9, 3, 5])
    assert read(open_data(DataLoader(Squares(), sampler=sampler), [X]))[:, 0].tolist() == [3, 5, 9]
    subset = Subset(Squares(), [7, 1])
    assert read(open_data(DataLoader(subset, shuffle=True), [X]))[:, 0].tolist() == [7, 1]


def test_dicts_and_several_inputs_from_a_loader():
    inputs = [X, TensorSpec("z", "float32", ("N",))]
    pairs = TensorDataset(torch.from_numpy(data()), torch.arange(50.0), torch.arange(50))
    np.testing.assert_array_equal(
        read(open_data(DataLoader(pairs, batch_size=8), inputs), "z"), np.arange(50)
    )
    dicts = [{"x": row, "z": np.float32(k), "label": k} for k, row in enumerate(data())]
    np.testing.assert_array_equal(read(open_data(DataLoader(dicts, batch_size=8), inputs)), data())
    nested = [((row, np.float32(k)), k) for k, row in enumerate(data())]
    np.testing.assert_array_equal(
        read(open_data(DataLoader(nested, batch_size=8), inputs), "z"), np.arange(50)
    )


def test_time_first_loader_needs_its_batch_axis():
    inputs = [TensorSpec("s", "float32", (None, None, 4))]
    rows = [(torch.full((7, 4), float(k)),) for k in range(20)]

    def collate(items):
        return (torch.stack([item[0] for item in items], dim=1),)

    loader = DataLoader(rows, batch_size=8, collate_fn=collate)
    with pytest.raises(DataError, match=r"shape \(7, 8, 4\) in a batch of 8 samples: say its batch axis"):
        open_data(loader, inputs)
    source = open_data(loader, inputs, DataOptions(batch_axis={"s": 1}))
    assert read(source, "s", 1)[0, :, 0].tolist() == list(range(20))


def test_loader_errors():
    with pytest.raises(DataError, match="data set is empty"):
        open_data(DataLoader(Squares(0)), [X])
    with pytest.raises(DataError, match=r"(tuple|list) of 3"):
        open_data(DataLoader([(1.0, 2.0, 3.0)] * 4), [X])
    with pytest.raises(DataError, match=r"shape \(1, 4\), the model declares \(N, 3\)"):
        open_data(DataLoader([torch.zeros(4)] * 4), [X])
    with pytest.raises(DataError, match="--scale 1/255"):
        open_data(DataLoader([torch.zeros(3, dtype=torch.uint8)] * 4), [X])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.from_numpy(data(20)))


def test_loaders_without_random_access_come_as_feeds():
    source = open_data(DataLoader(Stream(), batch_size=6), [X])
    assert source.n_samples is None
    batches = everything(source)
    assert [batch.size for batch in batches] == [6, 6, 6, 2]
    assert batches.samples == source.n_samples == 20


def test_random_augmentation_is_found():
    class Noisy(Squares):
        def __getitem__(self, index):
            return torch.randn(3), 0

    batches = everything(open_data(DataLoader(Noisy(), batch_size=8), [X]))
    list(batches)
    with pytest.raises(DataError, match="fix its seed"):
        list(batches)
