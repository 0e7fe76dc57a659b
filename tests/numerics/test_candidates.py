from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onnx_compnet.errors import UsageError
from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation
from onnx_compnet.numerics.initialise import AUTO_RULES, RULES, candidates, variance
from onnx_compnet.numerics.rows import new_layer

FLOAT32 = np.dtype(np.float32)


def test_every_activation_has_an_automatic_rule() -> None:
    assert set(AUTO_RULES) == set(ACTIVATION_PARAMETERS)
    assert set(AUTO_RULES.values()) <= set(RULES)


@pytest.mark.parametrize("name", list(ACTIVATION_PARAMETERS))
def test_the_variance_is_that_of_the_rule(name: str) -> None:
    D1, Dn, kernel = 20, 60, (3, 5)
    layer = candidates("conv", D1, Dn, kernel, Activation(name), seed=1, dtype=FLOAT32)
    fan_in, fan_out = D1 * 15, Dn * 15
    expected = {
        "he": 2 / fan_in,
        "glorot": 2 / (fan_in + fan_out),
        "kumar": variance("kumar", Activation(name), fan_in, fan_out) if AUTO_RULES[name] == "kumar" else 0.0,
    }[AUTO_RULES[name]]
    assert layer.W1.shape == (Dn, D1, 3, 5)
    assert layer.W1.dtype == layer.b1.dtype == FLOAT32
    assert not layer.b1.any()
    assert layer.W1.var() == pytest.approx(expected, rel=0.05)  # 18,000 numbers: 1 % standard error
    assert abs(layer.W1.mean()) < 5 * math.sqrt(expected / layer.W1.size)


def test_kumar_by_hand() -> None:
    assert variance("auto", Activation("sigmoid"), 100, 7) == pytest.approx(3.6**2 / 100, rel=0.02)
    assert variance("kumar", Activation("tanh"), 50, 7) == pytest.approx(1 / 50)
    assert variance("kumar", Activation("relu"), 50, 7) == pytest.approx(2 / 50)
    assert variance("auto", Activation("gelu"), 50, 7) == pytest.approx(4 / 50)
    assert (
        variance("xavier", Activation("gelu"), 50, 30)
        == variance("glorot", Activation("relu"), 50, 30)
        == 2 / 80
    )


def test_an_mlp_and_its_1x1_convolution_are_the_same_numbers() -> None:
    h = Activation("relu")
    flat = candidates("gemm", 5, 7, (), h, seed=3, dtype=FLOAT32)
    conv = candidates("conv", 5, 7, (1, 1), h, seed=3, dtype=FLOAT32)
    np.testing.assert_array_equal(flat.W1, conv.W1[:, :, 0, 0])
    t = torch.randn(4, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_conv = new_layer(conv, t)[1].movedim(1, -1).reshape(-1, 7)
    by_flat = new_layer(flat, t.movedim(1, -1).reshape(-1, 5))[1]
    torch.testing.assert_close(by_conv, by_flat, rtol=1e-12, atol=1e-12)


def test_the_seed_decides_and_the_dtype_only_rounds() -> None:
    h = Activation("tanh")
    one = candidates("matmul", 5, 7, (), h, seed=3, dtype=np.dtype(np.float64), channel_axis=-1)
    two = candidates("matmul", 5, 7, (), h, seed=3, dtype=np.dtype(np.float16))
    other = candidates("matmul", 5, 7, (), h, seed=4, dtype=np.dtype(np.float64))
    np.testing.assert_array_equal(one.W1.astype(np.float16), two.W1)
    assert not np.array_equal(one.W1, other.W1)


@pytest.mark.parametrize(
    "change",
    [{"init": "xavierr"}, {"D1": 0}, {"Dn": 0}, {"kernel": (3, 0)}, {"kernel": ()}, {"seed": -1}],
    ids=str,
)
def test_bad_arguments_are_usage_errors(change: dict[str, object]) -> None:
    good = {"D1": 3, "Dn": 4, "kernel": (3, 3), "seed": 0, "init": "he"}
    with pytest.raises(UsageError):
        candidates("conv", activation=Activation("relu"), dtype=FLOAT32, **{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kernel"):
        candidates("gemm", 3, 4, (1,), Activation("relu"), seed=0, dtype=FLOAT32)


def test_kumar_is_refused_where_the_function_is_flat() -> None:
    with pytest.raises(UsageError, match="flat at 0"):
        candidates("gemm", 3, 4, (), Activation("thresholded_relu"), init="kumar", seed=0, dtype=FLOAT32)
