import logging

import numpy as np
import onnx.parser
import pytest
import torch

from onnx_compnet.errors import DataError, ResourceError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime import base
from onnx_compnet.runtime import capture as captures
from onnx_compnet.runtime.capture import capture
from onnx_compnet.runtime.device import select
from onnx_compnet.runtime.session import Session
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything, split

X = TensorSpec("x", "float32", ("N", 3))
FIXED = TensorSpec("x", "float32", (8, 3))


def data(n=100):
    return np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)


def told(batches):
    return [(batch.fold, batch.indices.tolist()) for batch in batches]


def test_the_order_depends_on_nothing_but_the_samples(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=data())
    expected = told(split(open_data({"x": data()}, [X]), batch_size=8).fit)
    assert sorted(index for _, indices in expected for index in indices)[-1] <= 99
    for size in (1, 50, 500, 2**20):
        monkeypatch.setattr(base, "CHUNK_BYTES", size)
        fit = split(open_data(tmp_path / "a.npz", [X]), batch_size=8).fit
        assert told(fit) == told(fit) == expected


def test_batches_are_pure_and_full_but_for_the_last_of_a_fold():
    batches = list(split(open_data({"x": data()}, [X]), batch_size=7, folds=3).fit)
    assert {batch.fold for batch in batches} == {0, 1, 2}
    assert sum(batch.size for batch in batches) == 80
    assert [batch.size for batch in batches[:-3]] == [7] * (len(batches) - 3)
    for batch in batches:
        np.testing.assert_array_equal(batch.feeds["x"], data()[batch.indices])
        assert batch.feeds["x"].flags.c_contiguous


def test_default_batch_size():
    assert [batch.size for batch in everything(open_data({"x": data()}, [X]))] == [64, 36]


def test_fixed_batch_size(caplog):
    with caplog.at_level(logging.WARNING, logger="onnx_compnet"):
        both = split(open_data({"x": data()}, [FIXED]), folds=5)
    assert (both.fit.samples, both.fit.dropped) == (80, 0)
    assert (both.held_out.samples, both.held_out.dropped) == (16, 4)
    assert caplog.text.count("are dropped") == 1
    assert "4 of 20 samples are dropped, the model fixes a batch size of 8" in caplog.text
    fit = list(both.fit)
    assert [batch.size for batch in fit] == [8] * 10
    assert np.bincount([batch.fold for batch in fit]).tolist() == [2] * 5
    assert sorted(np.concatenate([batch.indices for batch in fit])) == sorted(
        {*np.concatenate([b.indices for b in fit])}
    )


def test_leftovers_of_folds_are_pooled_into_full_batches():
    fit = split(open_data({"x": data(60)}, [FIXED]), folds=5).fit  # 48 samples, 9 or 10 a fold
    for _ in range(2):
        batches = list(fit)
        assert [batch.size for batch in batches] == [8] * 6
        assert [batch.fold for batch in batches[5:]] == [0]
        assert len({int(i) for batch in batches for i in batch.indices}) == 48


def test_fixed_batch_size_of_one_and_states():
    inputs = [TensorSpec("x", "float32", (1, 3)), TensorSpec("s", "float32", (2, 1, 4))]
    source = open_data({"x": data(), "s": np.ones((2, 1, 4))}, inputs)
    assert source.fixed_batch == 1
    batches = list(everything(source))
    assert len(batches) == 100
    assert batches[0].feeds["s"].shape == (2, 1, 4)


def test_fixed_batch_size_errors():
    source = open_data({"x": data()}, [FIXED])
    with pytest.raises(UsageError, match="--batch-size 4: the model fixes a batch size of 8"):
        everything(source, 4)
    with pytest.raises(UsageError, match="fixes a batch size of 8"):
        split(open_data({"x": data()}, [FIXED], DataOptions(batch_size=4)))
    assert everything(source, 8).samples == 96
    with pytest.raises(DataError, match="leaves 7 samples here"):
        everything(open_data({"x": data(7)}, [FIXED]))
    with pytest.raises(DataError, match=r"fix different batch sizes \('x' 8, 'z' 2\)"):
        open_data({"x": data(), "z": data()}, [FIXED, TensorSpec("z", "float32", (2, 3))])


def test_samples_on_another_axis():
    sequence = TensorSpec("h", "float32", (None, None, 4))
    arrays = {"x": data(), "h": np.random.default_rng(1).standard_normal((5, 100, 4))}
    source = open_data(arrays, [X, sequence], DataOptions(batch_axis={"h": 1}))
    for batch in split(source, batch_size=7).fit:
        np.testing.assert_array_equal(batch.feeds["h"], arrays["h"][:, batch.indices].astype(np.float32))
        assert batch.feeds["h"].flags.c_contiguous


def test_fingerprint():
    batches = everything(open_data({"x": data()}, [X]))
    assert batches.fingerprint is None
    next(iter(batches))
    assert batches.fingerprint is None
    list(batches)
    first = batches.fingerprint
    list(batches)
    assert batches.fingerprint == first
    other = everything(open_data({"x": data() + 1}, [X]))
    list(other)
    assert other.fingerprint != first


def test_changing_arrays_are_found():
    mine = data()
    batches = everything(open_data({"x": mine}, [X]), 10)
    next(iter(batches))
    mine[3] = 0
    with pytest.raises(DataError, match="different samples at each pass"):
        list(batches)


# ---- capture


def session(text="y = Relu(x)"):
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,3] x) => (float[N,3] y) {{ {text} }}'
    )
    return Session(model, select("cpu"))


def test_capture_gives_what_the_session_gives():
    batches = everything(open_data({"x": data()}, [X]), 30)
    counted = []
    rows = 0
    for batch, tensors in capture(session(), batches, counted.append):
        assert torch.equal(tensors["y"], torch.from_numpy(data()[batch.indices]).relu())
        rows += len(tensors["y"])
    assert rows == 100
    assert counted == [30, 30, 30, 10]


def test_capture_refuses_what_is_not_finite():
    logs = session("y = Log(x)")
    mine = np.ones((20, 3))
    mine[13, 1] = -1
    batches = everything(open_data({"x": mine}, [X]), 6)
    with pytest.raises(DataError, match="tensor 'y' has NaN or infinite values, first for sample 13"):
        list(capture(logs, batches))
    mine[13, 1] = 0
    batches = everything(open_data({"x": mine}, [X]), 6)
    with pytest.raises(DataError, match="sample 13"):
        list(capture(logs, batches))
    assert len(list(capture(logs, batches, finite=False))) == 4


def test_what_is_checked_for_finiteness():
    (batch,) = everything(open_data({"x": data()[:2]}, [X]))
    captures.require_finite(
        {
            "i": torch.ones(2, dtype=torch.int64),
            "e": torch.empty(0, 3),
            "s": ["a"],
            "h": torch.ones(2).half(),
        },
        batch,
    )
    with pytest.raises(DataError, match="'k' has NaN or infinite values: it overflows"):
        captures.require_finite({"k": torch.tensor(torch.inf)}, batch)


def test_a_bar_only_on_a_terminal(monkeypatch, capsys):
    batches = everything(open_data({"x": data()}, [X]))
    list(capture(session(), batches, "fitting"))
    list(capture(session(), batches, True))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(captures.sys.stderr, "isatty", lambda: True, raising=False)
    list(capture(session(), batches, False))
    list(capture(session(), batches))
    assert capsys.readouterr() == ("", "")
    list(capture(session(), batches, "fitting"))
    shown = capsys.readouterr()
    assert "fitting" in shown.err
    assert shown.out == ""


def test_out_of_memory_on_the_device(monkeypatch):
    def full(feeds):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    ours = session()
    monkeypatch.setattr(ours, "run", full)
    with pytest.raises(ResourceError, match="lower --batch-size"):
        list(capture(ours, everything(open_data({"x": data()}, [X]))))
