"""Whole growths in front of readers whose weight is shared, computed, sparse or on the left, and of ConvTranspose."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import onnx_compnet as oc

RNG = np.random.default_rng(0)


def build(text: str, opset: int = 17, **weights: tuple[int, ...]) -> ModelProto:
    """A model from text; ``weights`` become He-like random initialisers of these shapes."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    rng = np.random.default_rng(1)
    for name, shape in weights.items():
        values = rng.normal(size=shape) * np.sqrt(2 / max(shape[-1], 3))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def outputs(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


MODELS = {
    "shared": lambda: build(
        "g (float[N,5] x) => (float[N,5] y) { h = MatMul(x, w) t = Relu(h) y = MatMul(t, w) }", w=(5, 5)
    ),
    "transposed": lambda: build(
        "g (float[N,5] x) => (float[N,3] y) { h = MatMul(x, w) t = Relu(h) u = Transpose(v) y = MatMul(t, u) }",
        w=(5, 6),
        v=(3, 6),
    ),
    "cast": lambda: build(
        "g (float[N,5] x) => (float[N,3] y) { h = MatMul(x, w) t = Relu(h) d = Cast<to=11>(v) u = Cast<to=1>(d)"
        " y = MatMul(t, u) }",
        w=(5, 6),
        v=(6, 3),
    ),
    "dequantised": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { t = Relu(x) s = Constant<value = float[3] {0.1,0.2,0.05}>()"
        " q = Constant<value = int8[4,3] {1,2,3,4,-5,6,7,-8,9,10,11,12}>() w = DequantizeLinear<axis=1>(q, s)"
        " y = MatMul(t, w) }"
    ),
    "left_matmul": lambda: build(
        "g (float[N,5,4] x) => (float[N,3,4] y) { h = MatMul(w, x) t = Tanh(h) p = MatMul(v, t) y = Add(p, b) }",
        w=(6, 5),
        v=(3, 6),
        b=(3, 1),
    ),
    "left_gemm": lambda: build(
        "g (float[5,4] x) => (float[3,4] y) { h = Gemm(w, x) t = Relu(h) y = Gemm<alpha=0.5>(v, t, b) }",
        w=(6, 5),
        v=(3, 6),
        b=(3, 1),
    ),
    "left_gemm_of_rows": lambda: build(
        "g (float[N,5] x) => (float[3,N] y) { h = Gemm(x, w) t = Relu(h) y = Gemm<transB=1>(v, t, b) }",
        w=(5, 6),
        v=(3, 6),
        b=(3, 1),
    ),
    "one_matrix_of_a_batch": lambda: build(
        "g (float[N,4,5] x) => (float[N,4,3] y) { h = MatMul(x, w) t = Relu(h) p = MatMul(t, v) y = Add(p, b) }",
        w=(5, 6),
        v=(1, 6, 3),
        b=(3,),
    ),
    "conv_transpose": lambda: build(
        "g (float[N,2,5] x) => (float[N,3,11] y) { h = Conv(x, w) t = Relu(h)"
        " y = ConvTranspose<strides=[2], pads=[1,0], output_padding=[1]>(t, v, b) }",
        w=(4, 2, 1),
        v=(4, 3, 3),
        b=(3,),
    ),
    "conv_transpose_2d": lambda: build(
        "g (float[N,2,4,3] x) => (float[N,3,8,6] y) { h = Conv(x, w) t = Relu(h)"
        ' y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(t, v) }',
        w=(4, 2, 1, 1),
        v=(4, 3, 3, 3),
    ),
    "channels_last": lambda: build(
        "g (float[N,5,5,2] x) => (float[N,3,3,3] y) { a = Transpose<perm=[0,3,1,2]>(x) [one] b = Conv(a, w)"
        " c = Transpose<perm=[0,2,3,1]>(b) d = Relu(c) t = Transpose<perm=[0,3,1,2]>(d) e = Conv(t, v)"
        " y = Transpose<perm=[0,2,3,1]>(e) }",
        w=(4, 2, 1, 1),
        v=(3, 4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_wide_layer_follows_the_parent(name):
    """The error that the moments predict is that of the child in onnxruntime: rows and weights have one order."""
    model = MODELS[name]()
    fixed = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    if fixed[0]:  # samples lie on the last axis
        feeds = [{"x": RNG.normal(size=fixed).astype(np.float32)} for _ in range(400)]
        data, x = lambda: iter(feeds), feeds[0]["x"]
    else:
        x = RNG.normal(size=(1200, *fixed[1:])).astype(np.float32)
        data = {"x": x}
    site = "one" if name == "channels_last" else "t"
    grown = oc.grow(model, site, data, candidates=60, lam=1e-4, alpha=0.0, kernel=1)
    assert grown.site.tensor == "t"
    assert grown.site_error < 0.1
    assert grown.sites[0].predicted_error == pytest.approx(grown.site_error, rel=0.02, abs=1e-3)
    before, after = outputs(model, x), outputs(grown.model, x)
    assert before.shape == after.shape
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before - before.mean())
    again = oc.grow(model, site, data, candidates=60, lam=1e-4, alpha=0.0, kernel=1)
    assert again.model.SerializeToString() == grown.model.SerializeToString()


def as_type(model: ModelProto, elem_type: int) -> ModelProto:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = elem_type
    return model


DENSE = "g (float[N,4] x) => (float[N,3] y) { t = Relu(x) y = MatMul(t, w) }"
FLAT = "g (float[N,2,3,3] x) => (float[N,3] y) { t = Relu(x) f = Flatten(t) y = Gemm(f, w) }"


@pytest.mark.parametrize(
    ("text", "shape", "elem_type", "words"),
    [
        (
            DENSE,
            (4, 3),
            TensorProto.BFLOAT16,
            "CPU provider can't run Gemm in bfloat16; grow the model in float32",
        ),
        (
            FLAT,
            (18, 3),
            TensorProto.BFLOAT16,
            "CPU provider can't run Conv in bfloat16; grow the model in float32",
        ),
        (
            FLAT,
            (18, 3),
            TensorProto.DOUBLE,
            "CPU provider can't run Conv in float64; grow the model in float32",
        ),
    ],
)
def test_a_layer_that_onnxruntime_can_not_run_is_refused_before_the_fit(text, shape, elem_type, words):
    model = as_type(build(text, w=shape), elem_type)
    assert next(site.tensor for site in oc.find_sites(model)) == "t"

    def data():
        raise AssertionError("the data was read")

    with pytest.raises(oc.UnsupportedError, match=words) as caught:
        oc.grow(model, "t", data)
    assert caught.value.exit_code == 3


def test_an_activation_that_onnxruntime_can_not_run_is_refused_by_name():
    model = as_type(build(DENSE, w=(4, 3)), TensorProto.DOUBLE)
    x = RNG.normal(size=(300, 4))
    assert oc.grow(model, "t", {"x": x}, candidates=12, lam=0.01).site.dtype == "float64"
    with pytest.raises(oc.UnsupportedError, match=r"can't run Hard\w+ in float64; take another activation"):
        oc.grow(model, "t", {"x": x}, activation="hardswish")


def test_a_quantised_layer_says_that_it_needs_mode_block():
    model = build(
        "g (float[N,4] x) => (float[N,3] y) { s = Constant<value = float {0.1}>() z = Constant<value = int8 {0}>()"
        " a = QuantizeLinear(x, s, z) t = DequantizeLinear(a, s, z) q = QuantizeLinear(w, s, z)"
        " v = DequantizeLinear(q, s, z) y = MatMul(t, v) }",
        w=(4, 3),
    )
    with pytest.raises(
        oc.UnsupportedError, match=r"it is quantised .* growing in front of it needs mode block"
    ):
        oc.grow(model, "t", {"x": np.zeros((9, 4), np.float32)}, mode="replace")


def test_a_child_with_a_shared_weight_passes_the_checker():
    x = RNG.normal(size=(300, 5)).astype(np.float32)
    grown = oc.grow(MODELS["shared"](), "t", {"x": x}, candidates=12, lam=0.01)
    onnx.checker.check_model(grown.model, full_check=True)
    names = [tensor.name for tensor in grown.model.graph.initializer]
    assert "w" in names
    assert "compnet/t/reader_0.weight" in names


def test_the_standard_operators_may_be_imported_by_their_long_name():
    model = build(DENSE, opset=13, w=(4, 3))
    model.opset_import[0].domain = "ai.onnx"
    x = RNG.normal(size=(300, 4)).astype(np.float32)
    assert oc.grow(model, "t", {"x": x}, activation="hardswish", candidates=12, lam=0.01).site_error < 1


def test_two_readers_with_the_weight_on_either_side_are_solved_together():
    model = build(
        "g (float[N,5,4] x) => (float[N,3,4] y, float[N,2,4] z) { h = Conv(x, w) t = Relu(h) y = MatMul(v, t)"
        " z = Conv(t, u) }",
        w=(6, 5, 1),
        v=(3, 6),
        u=(2, 6, 1),
    )
    x = RNG.normal(size=(600, 5, 4)).astype(np.float32)
    grown = oc.grow(model, "t", {"x": x}, candidates=60, lam=1e-4, alpha=0.0, kernel=1)
    assert grown.site.readers == ("y", "z")
    assert grown.sites[0].predicted_error == pytest.approx(grown.site_error, rel=0.02)
    assert grown.site_error < 0.1
