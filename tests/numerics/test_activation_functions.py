from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation
from onnx_compnet.numerics.activations import apply, value_and_slope_at_zero

OPERATORS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "Elu",
    "selu": "Selu",
    "celu": "Celu",
    "gelu": "Gelu",
    "gelu_tanh": "Gelu",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "mish": "Mish",
    "thresholded_relu": "ThresholdedRelu",
}

OTHERS = [
    Activation("leaky_relu", (0.3,)),
    Activation("prelu", (-0.5,)),
    Activation("elu", (2.5,)),
    Activation("selu", (0.7, 1.9)),
    Activation("celu", (0.4,)),
    Activation("hardsigmoid", (0.7, 0.1)),
    Activation("clip", (-1.0, 0.5)),
    Activation("clip", (0.25, 3.0)),
    Activation("thresholded_relu", (0.0,)),
    Activation("thresholded_relu", (-0.5,)),
]

ALL = [*(Activation(name) for name in ACTIVATION_PARAMETERS), *OTHERS]


def onnx_function(activation: Activation, x: np.ndarray) -> np.ndarray:
    values = dict(zip(ACTIVATION_PARAMETERS[activation.name], activation.parameters, strict=True))
    constants = {key: np.float32(value) for key, value in values.items()}
    if activation.name == "silu":
        nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    elif activation.name == "clip":
        nodes = [helper.make_node("Clip", ["x", "min", "max"], ["y"])]
    elif activation.name == "prelu":
        nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    else:
        attributes = {"approximate": "tanh"} if activation.name == "gelu_tanh" else values
        nodes = [helper.make_node(OPERATORS[activation.name], ["x"], ["y"], **attributes)]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape))],
        [numpy_helper.from_array(value, key) for key, value in constants.items() if key in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_agrees_with_onnxruntime(activation: Activation) -> None:
    grid = np.concatenate([np.linspace(-6, 6, 241), [0.0, -50, -20.5, 20.5, 50]])
    x = grid.astype(np.float32).reshape(2, 3, 41)
    ours = apply(activation, torch.from_numpy(x))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), onnx_function(activation, x), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_float64_keeps_its_precision_and_extremes_are_finite(activation: Activation) -> None:
    x = torch.tensor([-1e4, -700.0, -1.0, 0.0, 1.0, 700.0, 1e4], dtype=torch.float64)
    value = apply(activation, x)
    assert value.dtype == torch.float64
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_value_and_slope_at_zero_are_those_of_the_function(activation: Activation) -> None:
    step = 1e-6
    below, zero, above = apply(activation, torch.tensor([-step, 0.0, step], dtype=torch.float64)).tolist()
    left, right = (zero - below) / step, (above - zero) / step
    if activation == Activation("thresholded_relu", (0.0,)):
        left = 0.0
    h0, h1 = value_and_slope_at_zero(activation)
    assert h0 == pytest.approx(zero, abs=1e-12)
    assert h1 == pytest.approx(math.sqrt((left**2 + right**2) / 2), abs=1e-5)
