import math
import re

import numpy as np
import pytest

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.options import DataOptions, entries
from onnx_compnet.runtime.sources import open_data
from onnx_compnet.runtime.split import everything

X = TensorSpec("x", "float32", ("N", 3, 2))
IDS = TensorSpec("ids", "int64", ("N",))


def only(source):
    (batch,) = everything(source)
    return batch.feeds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {}),
        ((), {}),
        (0.5, {None: (0.5,)}),
        (np.float32(0.5), {None: (0.5,)}),
        ("1/255", {None: (1 / 255,)}),
        ("x=1/4,2,3e-1", {"x": (0.25, 2.0, 0.3)}),
        ([0.1, 0.2], {None: (0.1, 0.2)}),
        (("1/2", "x=2"), {None: (0.5,), "x": (2.0,)}),
        ([(None, 1), ("x", [1, 2])], {None: (1.0,), "x": (1.0, 2.0)}),
        ({"": 1, "x": "1/2"}, {None: (1.0,), "x": (0.5,)}),
    ],
)
def test_scaling_entries(value, expected):
    assert entries(value, "--scale") == expected


@pytest.mark.parametrize("value", ["abc", "", "1/0", math.nan, "x=", ("1", "2"), [("x",)], [object()]])
def test_bad_scaling(value):
    with pytest.raises(UsageError, match="--scale"):
        entries(value, "--scale")


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"max_samples": -1}, {"seed": -1}])
def test_bad_numbers(bad):
    with pytest.raises(UsageError, match="must"):
        DataOptions(**bad)


def test_of_takes_none_for_the_default():
    assert DataOptions.of(batch_size=None, shapes=None, seed=3) == DataOptions(seed=3)


@pytest.mark.parametrize("value", ["two", -1, "-1"])
def test_bad_batch_axis(value):
    with pytest.raises(UsageError, match="--batch-axis x="):
        open_data({"x": np.zeros((4, 3, 2), np.float32)}, [X], DataOptions(batch_axis={"x": value}))


@pytest.mark.parametrize("option", ["scale", "mean", "std", "batch_axis"])
def test_unknown_input_names(option):
    with pytest.raises(UsageError, match="names the input 'img'"):
        open_data({"x": np.zeros((4, 3, 2), np.float32)}, [X], DataOptions(**{option: {"img": 1}}))


def test_scale_mean_std_per_channel():
    data = np.random.default_rng(0).integers(0, 256, (5, 3, 2)).astype(np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    got = only(open_data({"x": data}, [X], DataOptions(scale="1/255", mean=mean, std=std)))["x"]
    expected = (data / 255 - np.reshape(mean, (3, 1))) / np.reshape(std, (3, 1))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert data.dtype == np.uint8


def test_scaling_applies_to_the_named_input_and_skips_integers():
    inputs = [X, TensorSpec("z", "float32", ("N",)), IDS]
    data = {"x": np.ones((4, 3, 2), np.uint8), "z": np.ones(4, np.int16), "ids": np.arange(4)}
    feeds = only(open_data(data, inputs, DataOptions(scale=[(None, 2), ("z", 5)])))
    assert feeds["x"].max() == 2
    assert feeds["z"].max() == 5
    assert feeds["ids"].tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="'ids', which does not take floats"):
        open_data(data, inputs, DataOptions(scale={"ids": 2}))


def test_scaling_errors():
    data = {"x": np.ones((4, 3, 2), np.uint8)}
    with pytest.raises(UsageError, match="std has a zero"):
        open_data(data, [X], DataOptions(scale=1, std=0))
    with pytest.raises(UsageError, match="2 values, one a channel, and axis 1"):
        only(open_data(data, [X], DataOptions(scale=[1, 2])))
    with pytest.raises(DataError, match="--scale 1/255"):
        open_data(data, [X], DataOptions(mean=3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_integers_for_a_float_input(dtype):
    data = {"x": np.ones((4, 3, 2), dtype)}
    with pytest.raises(
        DataError, match=re.escape("(Python: scale=1/255), or --scale 1 to pass the values as they")
    ):
        open_data(data, [X])
    assert only(open_data(data, [X], DataOptions(scale=1)))["x"].tolist() == np.ones((4, 3, 2)).tolist()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("float64", "float32"),
        (">f4", "float32"),
        ("float32", "float16"),
        ("float16", "float64"),
        ("int32", "int64"),
        ("uint8", "int32"),
        ("int64", "int32"),
        ("bool", "int64"),
        ("int64", "bool"),
        ("uint64", "uint8"),
    ],
)
def test_casts(given, wanted):
    data = np.array([0, 1, 1, 0]).astype(given)
    got = only(open_data({"a": data}, [TensorSpec("a", wanted, ("N",))]))["a"]
    assert got.dtype == np.dtype(wanted)
    assert got.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("given", "wanted", "reason"),
    [
        ("float32", "int64", "save it as integers"),
        ("complex64", "float32", "save it as float32"),
        ("<U3", "float32", "save it as float32"),
        ("float32", "bool", "save it as integers"),
    ],
)
def test_impossible_casts(given, wanted, reason):
    with pytest.raises(DataError, match=reason):
        open_data({"a": np.array([0, 1]).astype(given)}, [TensorSpec("a", wanted, ("N",))])


def test_text_passes_to_inputs_that_are_not_numeric():
    data = np.array(["a", "bc"])
    assert only(open_data({"a": data}, [TensorSpec("a", "", ("N",))]))["a"].tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    ("value", "wanted"), [(2**31, "int32"), (-1, "uint8"), (2, "bool"), (-(2**40), "int32")]
)
def test_out_of_range(value, wanted):
    data = np.zeros((6, 2), np.int64)
    data[4, 1] = value
    with pytest.raises(DataError, match=re.escape(f"the value {value} in sample 4")):
        list(everything(open_data({"a": data}, [TensorSpec("a", wanted, ("N", 2))])))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_not_finite(value):
    data = np.zeros((200, 3, 2))
    data[137, 1, 0] = value
    with pytest.raises(DataError, match="input 'x' has NaN or infinite values in sample 137"):
        list(everything(open_data({"x": data}, [X]), batch_size=7))
