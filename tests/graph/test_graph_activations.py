from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from graph_tools import build, run
from onnx import TensorProto, helper, numpy_helper

from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.activations import evaluate, match_backward, match_forward
from onnx_compnet.graph.emission import emit
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation

F = torch.nn.functional
TORCH = {
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "prelu": lambda z: F.leaky_relu(z, 0.3),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": lambda z: F.elu(z, 0.7),
    "selu": torch.selu,
    "celu": lambda z: F.celu(z, 0.5),
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "clip": lambda z: torch.clamp(z, -1, 2),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "thresholded_relu": lambda z: F.threshold(z, 0.5, 0.0),
}
PARAMETERS = {
    "leaky_relu": (0.2,),
    "prelu": (0.3,),
    "elu": (0.7,),
    "celu": (0.5,),
    "hardsigmoid": (1 / 6, 0.5),
    "clip": (-1.0, 2.0),
    "thresholded_relu": (0.5,),
}
OPSETS = [7, 8, 9, 10, 11, 12, 13, 14, 18, 20, 22]


def emitted_model(activation, opset, dtype="float32", channels=4, spatial_rank=1):
    emission = emit(activation, opset, channels, spatial_rank, dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = ["N", channels, *(["L"] * spatial_rank)]
    graph = helper.make_graph(
        [helper.make_node(n.op_type, n.inputs, [n.output], **dict(n.attributes)) for n in emission.nodes],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in emission.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", ACTIVATION_PARAMETERS)
def test_evaluate_agrees_with_torch(name):
    z = np.linspace(-7, 7, 101)
    expected = TORCH[name](torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(evaluate(Activation(name, PARAMETERS.get(name, ())), z), expected, atol=1e-12)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ACTIVATION_PARAMETERS)
def test_what_is_emitted_computes_the_activation_and_is_recognised(name, opset):
    activation = Activation(name, PARAMETERS.get(name, ()))
    if name == "gelu" and opset < 9:
        with pytest.raises(UnsupportedError, match="Erf"):
            emit(activation, opset)
        return
    model = emitted_model(activation, opset)
    x = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32) * 3
    np.testing.assert_allclose(run(model, {"x": x})["y"], evaluate(activation, x), atol=3e-6)
    if len(model.graph.node) == 1 or name in ("gelu", "gelu_tanh", "silu", "hardswish", "mish"):
        index = GraphIndex.of(model)
        for match in (match_backward(index, "y"), match_forward(index, "x")):
            assert match is not None
            assert (match.source, match.result, match.activation.name) == ("x", "y", name)
            assert match.activation.parameters == pytest.approx(activation.parameters)
            assert len(match.nodes) == len(model.graph.node)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", ACTIVATION_PARAMETERS)
def test_constants_have_the_dtype_of_the_model(name, dtype):
    for opset in (9, 13, 21):
        model = emitted_model(Activation(name, PARAMETERS.get(name, ())), opset, dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        assert all(tensor.data_type == kind for tensor in model.graph.initializer)


def test_slopes_lie_on_the_channels():
    assert emit(Activation("prelu"), 13, 3, 2).constants["slope"].shape == (3, 1, 1)
    assert emit(Activation("prelu"), 13, 3).constants["slope"].shape == (3,)


@pytest.mark.parametrize(
    ("low", "high", "inputs"),
    [(0.0, 6.0, 3), (-math.inf, 6.0, 3), (-1.0, math.inf, 2), (-math.inf, math.inf, 1)],
)
def test_a_clip_without_a_bound(low, high, inputs):
    activation = Activation("clip", (low, high))
    for opset in (10, 13):
        model = emitted_model(activation, opset)
        if opset == 13:
            assert len(model.graph.node[0].input) == inputs
        assert match_backward(GraphIndex.of(model), "y").activation == activation


def _match(body, opset=20, **weights):
    model = build(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", opset=opset, **weights)
    return match_forward(GraphIndex.of(model), "x")


def _constants(**values):
    return " ".join(f"{name} = Constant<value = float {{{value}}}>()" for name, value in values.items())


ERF = _constants(r="1.4142135", i="0.70710677", h="0.5", one="1.0")
TANH = _constants(s="0.7978845608", c="0.044715", h="0.5", one="1.0", three="3.0", two="2.0")
SIX = _constants(a="3.0", z="0.0", six="6.0", sixth="0.16666667")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gelu", ERF + "d = Div(x,r) e = Erf(d) p = Add(e,one) m = Mul(x,p) y = Mul(m,h)"),
        ("gelu", ERF + "d = Mul(i,x) e = Erf(d) p = Add(one,e) m = Mul(h,x) y = Mul(p,m)"),
        ("gelu", ERF + "d = Div(x,r) e = Erf(d) p = Add(e,one) m = Mul(p,h) y = Mul(x,m)"),
        (
            "gelu",
            ERF + _constants(q="2.0") + "d = Div(x,r) e = Erf(d) p = Add(one,e) m = Mul(x,p) y = Div(m,q)",
        ),
        (
            "gelu",
            ERF.replace("1.4142135", "1.414")
            + "d = Div(x,r) e = Erf(d) p = Add(e,one) m = Mul(x,p) y = Mul(m,h)",
        ),
        (
            "gelu_tanh",
            TANH + "p = Pow(x,three) q = Mul(p,c) a = Add(x,q) b = Mul(a,s) t = Tanh(b) o = Add(t,one)"
            " m = Mul(h,x) y = Mul(m,o)",
        ),
        (
            "gelu_tanh",
            TANH
            + "x2 = Mul(x,x) x3 = Mul(x,x2) q = Mul(c,x3) a = Add(q,x) b = Mul(s,a) t = Tanh(b) o = Add(one,t)"
            " m = Mul(x,o) y = Mul(h,m)",
        ),
        (
            "gelu_tanh",
            TANH + "x2 = Pow(x,two) q = Mul(c,x2) a = Add(q,one) u = Mul(s,x) b = Mul(u,a) t = Tanh(b)"
            " o = Add(one,t) m = Mul(x,o) y = Mul(h,m)",
        ),
        ("silu", "s = Sigmoid(x) y = Mul(x,s)"),
        ("silu", "s = Sigmoid(x) y = Mul(s,x)"),
        ("silu", _constants(one="1.0") + "n = Neg(x) e = Exp(n) o = Add(one,e) y = Div(x,o)"),
        ("hardswish", "s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x,s)"),
        ("hardswish", SIX + "p = Add(x,a) q = Clip(p,z,six) m = Mul(x,q) y = Div(m,six)"),
        ("hardswish", SIX + "p = Add(a,x) q = Clip(p,z,six) d = Div(q,six) y = Mul(d,x)"),
        ("hardswish", SIX + "p = Add(a,x) q = Clip(p,z,six) m = Mul(x,q) y = Mul(sixth,m)"),
        ("hardswish", SIX + "p = Add(a,x) r = Relu(p) q = Min(r,six) m = Mul(x,q) y = Mul(sixth,m)"),
        ("mish", "p = Softplus(x) t = Tanh(p) y = Mul(x,t)"),
        ("gelu", "y = Gelu(x)"),
        ("gelu", 'y = Gelu<approximate="none">(x)'),
        ("gelu_tanh", 'y = Gelu<approximate="tanh">(x)'),
        ("gelu", "y = com.microsoft.Gelu(x)"),
        ("relu", _constants(z="0.0") + "y = Clip(x,z)"),
    ],
)
def test_a_pattern_is_recognised(name, body):
    match = _match(body)
    assert match is not None
    assert match.activation.name == name
    assert (match.source, match.result) == ("x", "y")


def test_a_swish_op():
    model = build("g (float[N,4] x) => (float[N,4] y) { y = Swish(x) }", opset=24)
    assert match_backward(GraphIndex.of(model), "y").activation == Activation("silu")


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(x) u = Neg(x) y = Mul(u,s)",  # not a known function
        "s = Sigmoid(x) y = Mul(s,s)",
        ERF + "d = Mul(x,h) e = Erf(d) p = Add(e,one) m = Mul(x,p) y = Mul(m,h)",  # another scale
        "s = Sigmoid(w) y = Mul(x,s)",  # not of x alone
        "s = HardSigmoid(x) y = Mul(x,s)",
        "y = Softmax(x)",
    ],
)
def test_what_is_no_activation_is_not_taken_for_one(body):
    model = build(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", w=(4,))
    assert match_backward(GraphIndex.of(model), "y") is None


def test_a_function_whose_inside_is_read_elsewhere_is_not_followed():
    model = build("g (float[N,4] x) => (float[N,4] y, float[N,4] s) { s = Sigmoid(x) y = Mul(x,s) }")
    index = GraphIndex.of(model)
    assert match_backward(index, "y").activation == Activation("silu")
    assert match_forward(index, "x") is None


def test_one_function_after_another():
    model = build(
        "g (float[N,4] x) => (float[N,4] y) { a = Sigmoid(x) b = Mul(x,a) c = Softplus(b) d = Tanh(c) y = Mul(b,d) }"
    )
    index = GraphIndex.of(model)
    first, second = match_forward(index, "x"), match_forward(index, "b")
    assert (first.result, first.activation.name) == ("b", "silu")
    assert (second.result, second.activation.name) == ("y", "mish")


def test_the_slopes_of_a_prelu_are_averaged():
    model = build("g (float[N,2] x) => (float[N,2] y) { y = PRelu(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.1, 0.3], np.float32), "w"))
    assert match_backward(GraphIndex.of(model), "y").activation.parameters == pytest.approx((0.2,))


def test_clip_bounds_that_are_computed_are_not_known():
    model = build("g (float[N,2] x, float lo) => (float[N,2] y) { y = Clip(x, lo) }")
    assert match_backward(GraphIndex.of(model), "y") is None
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
