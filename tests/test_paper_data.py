"""The data sets' own files: read as they are given out, refused where they are not what they say."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
import pytest

from benchmarks import datasets
from benchmarks.image_files import (
    MAGIC_IMAGES,
    MAGIC_LABELS,
    DatasetError,
    read_cifar_binary,
    read_cifar_pickle,
    read_idx,
)

RNG = np.random.default_rng(0)


def idx(values):
    """The bytes of an IDX file, written by its description alone."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def images(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n):
    return np.arange(n, dtype=np.uint8) % 10


def mnist(folder, n=(30, 20), ending="", pack=lambda raw: raw):
    """The four files; the arrays that are in them."""
    folder.mkdir(exist_ok=True)
    held = []
    for split, count in zip(("train", "t10k"), n, strict=True):
        for kind, values in (("images-idx3", images(count, 28, 28)), ("labels-idx1", labels(count))):
            (folder / f"{split}-{kind}-ubyte{ending}").write_bytes(pack(idx(values)))
            held.append(values)
    return held


@pytest.mark.parametrize(("ending", "pack"), [("", lambda raw: raw), (".gz", gzip.compress)])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_packed_or_not(tmp_path, name, ending, pack):
    train_x, train_y, test_x, test_y = mnist(tmp_path, ending=ending, pack=pack)
    found = datasets.load(name, tmp_path)
    np.testing.assert_array_equal(found.train_x, train_x[:, None])
    np.testing.assert_array_equal(found.test_x, test_x[:, None])
    np.testing.assert_array_equal(found.train_y, train_y)
    np.testing.assert_array_equal(found.test_y, test_y)
    assert found.train_y.dtype == np.int64
    assert found.mean == pytest.approx(np.mean(train_x / 255.0))
    assert found.std == pytest.approx(np.std(train_x / 255.0))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "0 bytes; an IDX header with 3 axes has 16"),
        (idx(labels(5)), "13 bytes; an IDX header"),
        (idx(labels(50)), "magic number 0x0801; 0x0803 is expected"),
        (idx(images(3, 28, 28))[:-1], "holds 2351 values; its header gives .3, 28, 28., so 2352"),
        (idx(images(3, 28, 28)) + b"\0", "holds more values; its header gives"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "which can't be"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**16, 2**16), "which can't be"),
        (gzip.compress(idx(images(3, 28, 28)))[:-9], "can't be read"),
        (b"\x1f\x8bno gzip at all", "can't be read"),
    ],
)
def test_a_bad_idx_file_is_refused_by_name(tmp_path, raw, told):
    path = tmp_path / "images"
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=told) as caught:
        read_idx(path, MAGIC_IMAGES)
    assert str(path) in str(caught.value)


def test_a_header_that_lies_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(idx(labels(4)) + bytes(1 << 24)))
    with pytest.raises(DatasetError, match="holds more values"):
        read_idx(path, MAGIC_LABELS)


def test_images_and_labels_must_belong_together(tmp_path):
    mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels(29)))
    with pytest.raises(DatasetError, match="30 images and 29 labels"):
        datasets.load("mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(30, 10, np.uint8)))
    with pytest.raises(DatasetError, match="the label 10; 0 to 9"):
        datasets.load("mnist", tmp_path)
    mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images(20, 27, 28)))
    with pytest.raises(DatasetError, match=r"\(27, 28\) pixels"):
        datasets.load("mnist", tmp_path)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_a_missing_data_set_says_where_to_get_it_and_where_to_put_it(tmp_path, name):
    with pytest.raises(DatasetError) as caught:
        datasets.load(name, tmp_path)
    text = str(caught.value)
    assert datasets.WHERE[name] in text
    assert str(tmp_path) in text
    assert "--data" in text


def test_without_a_folder_the_cache_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNX_COMPNET_CACHE", str(tmp_path))
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    train_x, *_ = mnist(folder)
    np.testing.assert_array_equal(datasets.load("mnist").train_x[:, 0], train_x)


def test_a_part_and_a_frame(tmp_path):
    mnist(tmp_path)
    whole = datasets.load("mnist", tmp_path)
    part = whole.first(7, 5)
    assert (len(part.train_x), len(part.train_y), len(part.test_x), len(part.test_y)) == (7, 7, 5, 5)
    np.testing.assert_array_equal(whole.first(7, None).train_x, part.train_x)
    rows = [np.flatnonzero((whole.train_x == image).all((1, 2, 3)))[0] for image in part.train_x]
    np.testing.assert_array_equal(whole.train_y[rows], part.train_y)
    padded = whole.padded(32)
    assert padded.train_x.shape == (30, 1, 32, 32)
    np.testing.assert_array_equal(padded.train_x[:, :, 2:30, 2:30], whole.train_x)
    assert padded.test_x.sum() == whole.test_x.sum()
    assert whole.padded(28) is whole


# ---------------------------------------------------------------- CIFAR-10

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def test_the_python_version_is_read(tmp_path):
    """Pickles as Python 2 wrote them: byte strings for keys, numpy's old module name."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    held = {}
    for name in BATCHES:
        x, y = images(4, 3072), [3, 1, 9, 0]
        raw = pickle.dumps(
            {b"batch_label": b"one", b"labels": y, b"data": x, b"filenames": [b"a"]}, protocol=2
        )
        (folder / name).write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        held[name] = x
    found = datasets.load("cifar10", tmp_path)
    assert found.train_x.shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(found.train_x[4:8].reshape(4, -1), held["data_batch_2"])
    np.testing.assert_array_equal(found.test_x.reshape(4, -1), held["test_batch"])
    np.testing.assert_array_equal(found.test_y, [3, 1, 9, 0])


def test_the_binary_version_is_read(tmp_path):
    held = {}
    for name in BATCHES:
        records = images(4, 3073)
        records[:, 0] = [3, 1, 9, 0]
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
        held[name] = records[:, 1:]
    found = datasets.load("cifar10", tmp_path)
    np.testing.assert_array_equal(found.train_x[8:12].reshape(4, -1), held["data_batch_3"])
    np.testing.assert_array_equal(found.train_y[:4], [3, 1, 9, 0])
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DatasetError, match=r"data_batch_4\.bin is not in"):
        datasets.load("cifar10", tmp_path)


def test_a_binary_batch_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    for raw in (b"", bytes(3072), bytes(3 * 3073 - 1)):
        path.write_bytes(raw)
        with pytest.raises(DatasetError, match="no whole number of records"):
            read_cifar_binary(path)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Evil(), "which no batch of CIFAR-10 needs"),
        ({b"data": images(2, 3072), b"labels": [0, 1], b"more": Evil()}, "which no batch of CIFAR-10 needs"),
        ([1, 2], "holds a list"),
        ({b"labels": [0]}, "no uint8 array 'data'"),
        ({b"data": images(2, 3071), b"labels": [0, 1]}, "3,072 values an image"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, "no uint8 array"),
        ({b"data": images(2, 3072), b"labels": [0, 10]}, "whole numbers from 0 to 9"),
        ({b"data": images(2, 3072), b"labels": "01"}, "no list 'labels'"),
    ],
)
def test_a_bad_pickle_is_refused_and_runs_nothing(tmp_path, capsys, content, told):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DatasetError, match=told) as caught:
        read_cifar_pickle(path)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_pickle_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "data_batch_1"
    raw = pickle.dumps({b"data": images(2, 3072), b"labels": [0, 1]}, protocol=2)
    for size in (0, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(DatasetError, match="no pickled batch"):
            read_cifar_pickle(path)


def test_a_pickle_has_as_many_labels_as_images(tmp_path):
    for name in BATCHES:
        content = {b"data": images(2, 3072), b"labels": [0, 1, 2]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DatasetError, match="2 images and 3 labels"):
        datasets.load("cifar10", tmp_path)
