from __future__ import annotations

import math

import numpy as np
import pytest
from graph_tools import build, feeds_for, run

from onnx_compnet.graph.bounds import bounds
from onnx_compnet.graph.index import GraphIndex

INF = math.inf
KNOWN = [
    ("t = Relu(x)", (0, INF)),
    ("a = Relu(x) t = MaxPool<kernel_shape=[2,2]>(a)", (0, INF)),
    ("a = Sigmoid(x) t = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(a)", (0, 1)),
    ("a = Constant<value_float = -1.0>() b = Constant<value_float = 2.0>() t = Clip(x, a, b)", (-1, 2)),
    ("a = Tanh(x) b = Relu(x) t = Concat<axis=1>(a, b)", (-1, INF)),
    ("a = Relu(x) b = Sigmoid(x) t = Add(a, b)", (0, INF)),
    ("a = Tanh(x) b = Sigmoid(x) t = Add(a, b)", (-1, 2)),
    ("a = Relu(x) b = Sigmoid(x) t = Mul(a, b)", (0, INF)),
    ("k = Constant<value_float = 0.5>() t = Max(x, k)", (0.5, INF)),
    ("k = Constant<value_float = 0.5>() a = Relu(x) t = Min(a, k)", (0, 0.5)),
    ("a = Relu(x) b = Transpose<perm=[0,2,3,1]>(a) t = Flatten(b)", (0, INF)),
    ("a = Sigmoid(x) t = ReduceMean<axes=[2]>(a)", (0, 1)),
    ("t = Softmax<axis=1>(x)", (0, 1)),
    ("a = Exp(x) t = Dropout(a)", (0, INF)),
    ("t = Softplus(x)", (0, INF)),
    ('a = Sigmoid(x) k = Constant<value = float[4] {1,1,2,2}>() t = Resize<mode="linear">(a, , k)', (0, 1)),
]
UNKNOWN = [
    "t = Neg(x)",
    "a = Relu(x) t = Sub(a, x)",
    "a = Relu(x) t = Mul(a, x)",
    "a = Relu(x) t = Conv(a, w)",
    "a = Relu(x) t = BatchNormalization(a, s, s, s, s)",
    "t = Elu(x)",
    'a = Relu(x) k = Constant<value = float[4] {1,1,2,2}>() t = Resize<mode="cubic">(a, , k)',
    "a = Relu(x) r = Constant<value_float = 0.5>() b = Constant<value = bool {1}>() t = Dropout(a, r, b)",
    "t = Gelu(x)",
]


def _model(body: str):
    return build(
        f"g (float[N,2,4,4] x) => (float[A,B,C,D] t) {{ {body} }}",
        opset=20 if "Gelu" in body else 17,
        w=(2, 2, 1, 1),
        s=(2,),
    )


@pytest.mark.parametrize(("body", "expected"), KNOWN)
def test_bounds_follow_from_the_ops_and_hold(body, expected):
    model = _model(body)
    assert bounds(GraphIndex.of(model), "t") == expected
    feeds = {name: 30 * value for name, value in feeds_for(model).items()}
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (value,) = run(model, feeds).values()
    assert expected[0] <= value.min() + 1e-6  # onnxruntime rounds tanh beyond 1
    assert value.max() - 1e-6 <= expected[1]


@pytest.mark.parametrize("body", UNKNOWN)
def test_what_is_not_known_may_be_anything(body):
    assert bounds(GraphIndex.of(_model(body)), "t") == (-INF, INF)


def test_a_function_of_several_ops_has_the_range_of_what_it_computes():
    model = _model("a = Constant<value_float = 3.0>() b = Add(x, a) c = Relu(b) t = Mul(x, c)")
    assert bounds(GraphIndex.of(model), "t") == (-INF, INF)


def test_a_long_chain_is_given_up():
    chain = " ".join(f"a{i + 1} = Identity(a{i})" for i in range(100))
    model = _model(f"a0 = Relu(x) {chain} t = Identity(a100)")
    assert bounds(GraphIndex.of(model), "t") == (-INF, INF)
    assert np.isfinite(bounds(GraphIndex.of(model), "a20")[0])
