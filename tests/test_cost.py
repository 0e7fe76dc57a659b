"""FLOPs by hand, for each kind of linear layer, and for the LeNet of models/."""

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_compnet as oc
from onnx_compnet.cost import forward_flops

_WEIGHTS = {
    "conv": ("Conv <strides=[2,2], pads=[1,1,1,1], group=2>", (4, 3, 3, 3), 2 * 4 * 4 * 4 * 3 * 9 * 2),
    "transpose": ("ConvTranspose <strides=[2,2]>", (6, 5, 2, 2), 2 * 6 * 8 * 8 * 5 * 4 * 2),
}


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


@pytest.mark.parametrize("kind", _WEIGHTS)
def test_convolutions(kind: str) -> None:
    op, shape, flops = _WEIGHTS[kind]
    model = _model(f"g (float[N,6,8,8] x) => (float[N,C,H,W] y) {{ y = {op}(x, w) }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), "w"))
    assert forward_flops(model, {"x": np.zeros((2, 6, 8, 8), np.float32)}) == flops


def test_products_with_and_without_weights() -> None:
    model = _model(
        """g (float[N,3] x) => (float[N,N] y)
        <float[3,5] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}>
        { a = Gemm(x, w)  b = Transpose<perm=[1,0]>(a)  c = MatMul(a, b)  y = Relu(c) }"""
    )
    assert forward_flops(model, {"x": np.zeros((7, 3), np.float32)}) == 2 * (7 * 5 * 3 + 7 * 7 * 5)


def test_a_transposed_gemm() -> None:
    model = _model("g (float[3,N] x, float[3,5] w) => (float[N,5] y) { y = Gemm<transA=1>(x, w) }")
    feeds = {"x": np.zeros((3, 7), np.float32), "w": np.zeros((3, 5), np.float32)}
    assert forward_flops(model, feeds) == 2 * 7 * 5 * 3


def test_a_recurrent_layer_without_its_first_output() -> None:
    model = _model("g (float[T,N,3] x) => (float[1,N,4] h) { , h = LSTM<hidden_size=4>(x, w, r) }")
    for name, columns in (("w", 3), ("r", 4)):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.zeros((1, 16, columns), np.float32), name)
        )
    assert forward_flops(model, {"x": np.zeros((5, 2, 3), np.float32)}) == 2 * 5 * 2 * 16 * (3 + 4)


@pytest.mark.parametrize("name", ["lenet4", "lenet4_dynamo"])
def test_lenet(name: str) -> None:
    model = oc.load(f"models/{name}.onnx")
    (spec,) = [item.name for item in model.graph.input]
    macs = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 256 + 256 * 10
    assert forward_flops(model, {spec: np.zeros((3, 1, 28, 28), np.float32)}) == 3 * 2 * macs
