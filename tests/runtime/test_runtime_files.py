import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnx_compnet.errors import DataError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime import base
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything

X = TensorSpec("x", "float32", ("N", 3))
H = TensorSpec("h", "float32", (2, "N", 4))
S = TensorSpec("s", "float32", (2, 4))


def data(n=50, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *(shape or (3,)))).astype(np.float32)


def read(source, name="x", axis=0, **options):
    return np.concatenate([batch.feeds[name] for batch in everything(source, **options)], axis=axis)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 100)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(tmp_path, save, order, small_chunks):
    path = tmp_path / "calib.npz"
    save(path, x=np.asarray(data(), order=order), y=np.arange(50), other=np.array([None], dtype=object))
    source = open_data(str(path), [X])
    assert (source.n_samples, source.is_random) == (50, False)
    assert source.description == "npz calib.npz, 50 samples"
    np.testing.assert_array_equal(read(source, batch_size=7), data())
    np.testing.assert_array_equal(read(source, batch_size=64), data())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_and_zip64(tmp_path, method):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("x.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, data())
    np.testing.assert_array_equal(read(open_data(path, [X])), data())


def test_large_header_version(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, data(), version=(2, 0))
    np.testing.assert_array_equal(read(open_data(path, [X])), data())


def test_x_stands_for_a_single_input(tmp_path):
    np.savez(tmp_path / "a.npz", x=data(), y=np.arange(50))
    np.testing.assert_array_equal(
        read(open_data(tmp_path / "a.npz", [TensorSpec("input.1", "float32", ("N", 3))]), "input.1"), data()
    )


def test_several_inputs_and_odd_names(tmp_path, small_chunks):
    inputs = [TensorSpec("enc/a:0", "float32", ("N", 3)), TensorSpec("b", "int64", ("N", 5))]
    arrays = {"enc/a:0": data(), "b": np.arange(250).reshape(50, 5)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    source = open_data(tmp_path / "a.npz", inputs)
    for batch in everything(source, batch_size=8):
        for name, array in arrays.items():
            np.testing.assert_array_equal(batch.feeds[name], array[batch.indices])


def test_npy(tmp_path, small_chunks):
    np.save(tmp_path / "a.npy", data())
    source = open_data(tmp_path / "a.npy", [TensorSpec("input", "float32", ("N", 3))])
    assert source.description == "npy a.npy, 50 samples"
    np.testing.assert_array_equal(read(source, "input", batch_size=16), data())
    with pytest.raises(DataError, match=r"save an .npz with 'x', 'h'"):
        open_data(tmp_path / "a.npy", [X, H])


def test_folder(tmp_path, small_chunks):
    for k in range(3):
        np.savez(tmp_path / f"part{k}.npz", x=data(10 * k + 5, seed=k))
    np.save(tmp_path / "z.npy", data(4, seed=9))
    (tmp_path / "README.txt").write_text("no data")
    (tmp_path / "._part0.npz").write_text("what macOS leaves")
    source = open_data(tmp_path, [X])
    assert source.n_samples == 49
    assert source.description == f"folder {tmp_path.name} of 4 files, 49 samples"
    parts = [data(10 * k + 5, seed=k) for k in range(3)] + [data(4, seed=9)]
    np.testing.assert_array_equal(read(source, batch_size=6), np.concatenate(parts))


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match=r"has no .npz or .npy files"):
        open_data(tmp_path, [X])
    np.savez(tmp_path / "a.npz", x=data(), s=data(2, 4))
    np.savez(tmp_path / "b.npz", x=data(), s=data(2, 4, seed=1))
    with pytest.raises(DataError, match=r"input 's' of b.npz differs from that of the first shard"):
        open_data(tmp_path, [X, S])
    np.savez(tmp_path / "b.npz", x=data(5, 2))
    with pytest.raises(DataError, match=r"'x' of b.npz has the shape \(5, 2\)"):
        open_data(tmp_path, [X])
    np.savez(tmp_path / "b.npz", z=data())
    with pytest.raises(DataError, match=r"b.npz has no array"):
        open_data(tmp_path, [X, S])
    inputs = [X, TensorSpec("z", "float32", ("N",))]
    np.savez(tmp_path / "a.npz", x=data(), z=np.zeros(50, np.float32))
    np.savez(tmp_path / "b.npz", x=data(), z=np.zeros(3, np.float32))
    with pytest.raises(DataError, match=r"b.npz has different numbers of samples"):
        open_data(tmp_path, inputs)


def test_constants(tmp_path):
    state, scalar = data(2, 4), np.float32(3)
    inputs = [X, S, TensorSpec("k", "float32", ())]
    np.savez(tmp_path / "a.npz", x=data(), s=state, k=scalar)
    for batch in everything(open_data(tmp_path / "a.npz", inputs), batch_size=16):
        np.testing.assert_array_equal(batch.feeds["s"], state)
        assert batch.feeds["k"].shape == ()


def test_batch_axis(tmp_path, small_chunks):
    sequence = np.moveaxis(data(50, 2, 4), 0, 1)
    np.savez_compressed(tmp_path / "a.npz", x=data(), h=sequence)
    free = TensorSpec("h", "float32", (None, None, 4))
    source = open_data(tmp_path / "a.npz", [X, free], DataOptions(batch_axis={"h": 1}))
    np.testing.assert_array_equal(read(source, "h", 1, batch_size=7), sequence)
    with pytest.raises(DataError, match=r"different numbers of samples.*--batch-axis NAME=K"):
        open_data(tmp_path / "a.npz", [X, free])
    with pytest.raises(DataError, match="no axis 3"):
        open_data(tmp_path / "a.npz", [X, free], DataOptions(batch_axis={"h": "3"}))
    constant = open_data(tmp_path / "a.npz", [X, free], DataOptions(batch_axis={"h": "none"}))
    assert next(iter(everything(constant))).feeds["h"].shape == (2, 50, 4)
    # the model's own symbol says the same
    np.testing.assert_array_equal(read(open_data(tmp_path / "a.npz", [X, H]), "h", 1), sequence)


def test_first_axis_wins_where_a_state_could_be_either(tmp_path):
    np.savez(tmp_path / "a.npz", x=data(2), s=data(2, 4))
    source = open_data(tmp_path / "a.npz", [X, S])
    assert source.fixed_batch == 2
    source = open_data(tmp_path / "a.npz", [X, S], DataOptions(batch_axis={"s": None}))
    assert source.fixed_batch is None


def test_wrong_keys(tmp_path):
    np.savez(tmp_path / "a.npz", images=data(), labels=np.arange(50))
    with pytest.raises(DataError, match=r"found 'images', 'labels'; expected 'x'$"):
        open_data(tmp_path / "a.npz", [X])
    with pytest.raises(DataError, match=r"found 'images', 'labels'; expected 'x', 'h'$"):
        open_data(tmp_path / "a.npz", [X, H])


@pytest.mark.parametrize(
    ("shape", "declared", "reason"),
    [
        ((9, 28, 28), ("N", 1, 28, 28), "an axis is missing"),
        ((9, 28, 28, 3), ("N", 3, 28, 28), "channels seem to be last"),
        ((9, 3, 28, 27), ("N", 3, 28, 28), "reshape the array"),
        ((9, 3), ("N",), "it must have 1 axes"),
        ((0, 3), ("N", 3), "zero samples"),
        ((), (), "every input is a constant"),
    ],
)
def test_wrong_shapes(tmp_path, shape, declared, reason):
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=reason):
        open_data(tmp_path / "a.npz", [TensorSpec("x", "float32", declared)])


def test_undeclared_rank(tmp_path):
    np.savez(tmp_path / "a.npz", x=data())
    np.testing.assert_array_equal(
        read(open_data(tmp_path / "a.npz", [TensorSpec("x", "float32", None)])), data()
    )


def test_mismatched_counts_and_dtypes(tmp_path):
    np.savez(tmp_path / "a.npz", x=data(), b=np.zeros(49, np.int64))
    with pytest.raises(DataError, match="'x' 50, 'b' 49"):
        open_data(tmp_path / "a.npz", [X, TensorSpec("b", "int64", ("N",))])
    np.savez(tmp_path / "a.npz", x=data().astype(np.uint8))
    with pytest.raises(DataError, match=r"dtype uint8.*--scale 1/255"):
        open_data(tmp_path / "a.npz", [X])
    np.savez(tmp_path / "a.npz", x=np.array([[1, 2, None]], dtype=object))
    with pytest.raises(
        DataError, match=r"array 'x' of a.npz holds Python objects, which are never unpickled"
    ):
        open_data(tmp_path / "a.npz", [X])
    np.save(tmp_path / "a.npy", np.array([[1, 2, None]], dtype=object))
    with pytest.raises(DataError, match="never unpickled"):
        open_data(tmp_path / "a.npy", [X])
    broken = data()
    broken[33, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=broken)
    with pytest.raises(DataError, match=r"'x' has NaN or infinite values in sample 33 of a.npz"):
        list(everything(open_data(tmp_path / "a.npz", [X]), batch_size=8))


def test_missing_and_misnamed_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_data(tmp_path / "absent.npz", [X])
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match="unknown suffix"):
        open_data(tmp_path / "a.csv", [X])
    (tmp_path / "text.npz").write_text("hello, I am no archive")
    with pytest.raises(DataError, match=r"text.npz is no .npz archive"):
        open_data(tmp_path / "text.npz", [X])
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(DataError, match=r"text.npy is not a readable .npy array"):
        open_data(tmp_path / "text.npy", [X])
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no .npz archive"):
        open_data(tmp_path / "empty.npz", [X])
    np.save(tmp_path / "a.npy", data())
    (tmp_path / "a.npy").rename(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"is a .npy file by content"):
        open_data(tmp_path / "b.npz", [X])
    np.savez(tmp_path / "c.npz", x=data())
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    with pytest.raises(DataError, match=r"is a .npz archive by content"):
        open_data(tmp_path / "c.npy", [X])
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(DataError, match=r"array 'x' of d.npz is not a readable"):
        open_data(tmp_path / "d.npz", [X])
    with pytest.raises(DataError, match="no inputs"):
        open_data(tmp_path / "c.npy", [])


def failure(path, expected=data()):  # noqa: B008
    """The message of the DataError; nothing else may be raised, and nothing else be read than was written."""
    try:
        got = read(open_data(path, [X]))
    except DataError as error:
        return str(error)
    assert expected is None or np.array_equal(got, expected)
    return ""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_truncation_and_any_damage_is_a_data_error(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x=data())
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(DataError):
            read(open_data(path, [X]))
    wrong = 0
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        message = failure(path)
        assert "\n" not in message
        wrong += message != ""
    assert wrong > len(content) / 5 * 0.5


def test_truncated_and_damaged_npy(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, data())
    content = path.read_bytes()
    for size in range(0, len(content) - 1, 17):
        path.write_bytes(content[:size])
        with pytest.raises(DataError):
            open_data(path, [X])
    for place in range(128):
        path.write_bytes(content[:place] + b"\x07" + content[place + 1 :])
        assert "\n" not in failure(path, None)


def test_changed_in_between(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=data())
    batches = everything(open_data(path, [X]))
    list(batches)
    np.savez(path, x=data(seed=1))
    with pytest.raises(DataError, match="different samples at each pass"):
        list(batches)
    np.savez(path, x=data(51))
    with pytest.raises(DataError, match="changed while it was in use"):
        list(batches)


SCRIPT = """
import json, sys, resource
import numpy as np
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.sources import open_data
from onnx_compnet.runtime.split import split
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
parts = split(open_data(sys.argv[1], [TensorSpec("x", "float32", ("N", 3, 32, 32))]))
samples = sum(batch.size for part in (parts.fit, parts.held_out) for batch in part)
print(json.dumps([samples, peak() - before]))
"""


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_memory_does_not_grow_with_the_samples(tmp_path, suffix):
    grown = {}
    for n in (2000, 16000):
        path = tmp_path / f"{n}.{suffix}"
        array = np.zeros((n, 3, 32, 32), np.float32)
        np.savez_compressed(path, x=array) if suffix == "npz" else np.save(path, array)
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True
        )
        samples, grown[n] = json.loads(out.stdout)
        assert samples == n
        path.unlink()
    assert grown[16000] - grown[2000] < 30 * 1024, grown  # kB; the samples alone are 168 MiB more


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=data())
    assert open_data("a.npz", [X]).n_samples == 50
    assert open_data(Path("a.npz"), [X]).n_samples == 50
