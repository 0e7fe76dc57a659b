from __future__ import annotations

import pytest
from graph_tools import build

from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.inference import inferred_types, without_large_weights
from onnx_compnet.graph.names import resolve


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("com.microsoft.FastGelu(x)", (3, 4)),
        ("com.microsoft.BiasGelu(x, b)", (3, 4)),
        ("com.microsoft.FusedMatMul(x, w)", (3, 2)),
        ('com.microsoft.FusedGemm<activation="Relu", transB=1>(x, v, c)', (3, 2)),
        ("com.microsoft.FusedMatMul<transA=1>(x, u)", None),
        ("com.microsoft.NotKnown(x)", None),
    ],
)
def test_onnxruntimes_own_ops_are_understood(op, shape):
    model = build(
        f"g (float[3,4] x) => (float[A,B] y) {{ t = {op} y = Relu(t) }}",
        b=(4,),
        w=(4, 2),
        v=(2, 4),
        u=(3, 2),
        c=(2,),
    )
    before = model.SerializeToString(deterministic=True)
    assert GraphIndex.of(model).shape("t") == shape
    assert model.SerializeToString(deterministic=True) == before


def test_a_fused_conv_has_the_shape_of_a_conv():
    model = build(
        'g (float[N,3,8,8] x) => (float[A,B,C,D] y) { t = com.microsoft.FusedConv<activation="Relu",'
        " strides=[2,2], pads=[1,1,1,1], kernel_shape=[3,3]>(x, w) y = Relu(t) }",
        w=(5, 3, 3, 3),
    )
    assert GraphIndex.of(model).shape("t") == ("N", 5, 4, 4)
    assert resolve(model, "t").mode == "block"


def test_large_constants_become_inputs_of_the_same_shape():
    model = build(
        "g (float[N,64] x) => (float[N,64] y) { k = Constant<value_float = 1.0>() h = MatMul(x, w) y = Mul(h, k) }",
        w=(64, 64),
    )
    light = without_large_weights(model)
    assert [item.name for item in light.graph.input] == ["x", "w"]
    assert light.ByteSize() < 1000
    assert [size.dim_value for size in inferred_types(model)["h"].tensor_type.shape.dim][1:] == [64]
