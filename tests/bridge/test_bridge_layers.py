"""Layers with weights: equal to onnxruntime before and after a step, every weight reached, the same bytes back."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_tools import assert_equal, build, image, sgd_step, values, weight_names

import onnx_compnet as oc

F32 = np.float32
TOKENS = {"x": "float[N,6,16]"}
LINE = {"x": "float[N,3,9]"}
STATS = {"m": np.array([0.1, -0.2, 0.3], F32), "v": np.array([0.5, 1.0, 2.0], F32)}
DECOMPOSED_NORM = (
    "one = Constant<value_ints=[-1]>() two = Constant<value_float=2.0>() e = Constant<value_float=0.00001>() "
    "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q) w = Add(v, e) "
    "s = Sqrt(w) n = Div(d, s) g = Mul(n, scale) y = Add(g, shift)"
)
DECOMPOSED_GELU = (
    "h = MatMul(x, w) root = Constant<value_float=1.4142135>() one = Constant<value_float=1.0>() "
    "half = Constant<value_float=0.5>() a = Div(h, root) e = Erf(a) p = Add(e, one) q = Mul(h, p) y = Mul(q, half)"
)
ATTENTION = (
    "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) "
    "c = Constant<value_float=0.25>() sc = Mul(s, c) p = Softmax<axis=-1>(sc) o = MatMul(p, v) y = MatMul(o, wo)"
)
CASES = {
    "conv_1d": (LINE, "y = Conv<pads=[1,1], strides=[2]>(x, w, b)", {"w": (4, 3, 3), "b": (4,)}),
    "conv_2d": ({}, "y = Conv<pads=[1,0,2,1], dilations=[1,2]>(x, w, b)", {"w": (4, 3, 3, 3), "b": (4,)}),
    "conv_3d": ({"x": "float[N,3,8,8,5]"}, "y = Conv(x, w)", {"w": (2, 3, 3, 3, 2)}),
    "conv_same": ({}, 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": (4, 3, 3, 3)}),
    "conv_same_lower": ({}, 'y = Conv<auto_pad="SAME_LOWER", strides=[3,2]>(x, w)', {"w": (4, 3, 4, 4)}),
    "conv_depthwise": ({}, "y = Conv<group=3>(x, w, b)", {"w": (6, 1, 3, 3), "b": (6,)}),
    "conv_one_bias": ({}, "y = Conv(x, w, b)", {"w": (1, 3, 3, 3), "b": (1,)}),
    "transpose_1d": (
        LINE, "y = ConvTranspose<strides=[2], output_padding=[1]>(x, w, b)", {"w": (3, 4, 3), "b": (4,)},
    ),
    "transpose_2d": (
        {}, "y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], dilations=[2,1]>(x, w)", {"w": (3, 4, 3, 3)},
    ),
    "transpose_groups": ({}, "y = ConvTranspose<group=3, pads=[1,1,1,1]>(x, w, b)", {"w": (3, 2, 3, 3), "b": (6,)}),
    "transpose_shape": ({}, "y = ConvTranspose<strides=[2,2], output_shape=[16,15]>(x, w)", {"w": (3, 2, 3, 3)}),
    "gemm": ({"x": "float[N,6]"}, "y = Gemm(x, w, b)", {"w": (6, 4), "b": (4,)}),
    "gemm_all": (
        {"x": "float[N,6]"}, "y = Gemm<alpha=0.5, beta=2.0, transA=1, transB=1>(w, x, b)", {"w": (6, 4), "b": (4, 1)},
    ),
    "matmul_add": (TOKENS, "h = MatMul(x, w) y = Add(h, b)", {"w": (16, 5), "b": (5,)}),
    "matmul_add_one": (TOKENS, "h = MatMul(x, w) y = Add(b, h)", {"w": (16, 1), "b": (1,)}),
    "matmul_left": (TOKENS, "y = MatMul(w, x)", {"w": (4, 6)}),
    "batch_norm": ({}, "y = BatchNormalization(x, s, b, m, v)", {"s": (3,), "b": (3,), **STATS}),
    "instance_norm": ({}, "y = InstanceNormalization(x, s, b)", {"s": (3,), "b": (3,)}),
    "group_norm": (
        {"x": "float[N,4,8,8]", "opset": 21}, "y = GroupNormalization<num_groups=2>(x, s, b)", {"s": (4,), "b": (4,)},
    ),
    "layer_norm": (TOKENS, "y = LayerNormalization<axis=-2>(x, s, b)", {"s": (6, 16), "b": (6, 16)}),
    "layer_norm_parts": ({**TOKENS, "opset": 17}, DECOMPOSED_NORM, {"scale": (16,), "shift": (16,)}),
    "rms_norm": ({**TOKENS, "opset": 23}, "y = RMSNormalization(x, s)", {"s": (16,)}),
    "gelu_parts": (TOKENS, DECOMPOSED_GELU, {"w": (16, 8)}),
    "gelu": (TOKENS, 'h = MatMul(x, w) y = Gelu<approximate="tanh">(h)', {"w": (16, 8)}),
    "gelu_microsoft": (TOKENS, "h = MatMul(x, w) y = com.microsoft.Gelu(h)", {"w": (16, 8)}),
    "prelu": ({}, "y = PRelu(x, s)", {"s": (3, 1, 1)}),
    "prelu_one": ({}, "y = PRelu(x, s)", {"s": (1,)}),
    "attention": (TOKENS, ATTENTION, dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))),
    "attention_op": (
        {**TOKENS, "opset": 23},
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)",
        dict.fromkeys(("wq", "wk", "wv"), (16, 16)),
    ),
    "shared": (TOKENS, "a = MatMul(x, w) r = Tanh(a) y = MatMul(r, w)", {"w": (16, 16)}),
    "transposed": (TOKENS, "t = Transpose<perm=[1,0]>(w) i = Identity(t) y = MatMul(x, i)", {"w": (5, 16)}),
    "cast": (TOKENS, "c = Cast<to=1>(w) y = MatMul(x, c)", {"w": np.linspace(-1, 1, 80).reshape(16, 5)}),
    "scaled": (TOKENS, "c = Mul(w, g) y = MatMul(x, c)", {"w": (16, 5), "g": (5,)}),
    "lstm": (
        {"x": "float[5,2,3]", "opset": 14},
        'y, h, c = LSTM<hidden_size=4, direction="bidirectional">(x, w, r, b)',
        {"w": (2, 16, 3), "r": (2, 16, 4), "b": (2, 32)},
    ),
    "lstm_reverse": (
        {"x": "float[5,2,3]", "opset": 14}, 'y, h = LSTM<hidden_size=4, direction="reverse">(x, w, r)',
        {"w": (1, 16, 3), "r": (1, 16, 4)},
    ),
    "gru": (
        {"x": "float[5,2,3]", "opset": 22}, "y = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b)",
        {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)},
    ),
    "rnn": (
        {"x": "float[5,2,3]", "opset": 14}, "y = RNN<hidden_size=4>(x, w, r, b)",
        {"w": (1, 4, 3), "r": (1, 4, 4), "b": (1, 8)},
    ),
}  # fmt: skip


def input_of(text):
    shape = [int(size) if size != "N" else 2 for size in text[text.index("[") + 1 : -1].split(",")]
    return np.random.default_rng(1).standard_normal(shape).astype(F32)


@pytest.mark.parametrize("between", ["", "h = Identity(h0)", "h = Expand(h0, n)"])
def test_an_initial_state_is_a_weight_unless_it_is_zero(between):
    body = f"{between} y = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, , , {'h' if between else 'h0'})"
    weights = {"w": (1, 12, 3), "r": (1, 12, 4), "n": np.array([1, 2, 4])}
    for state, learned in ((np.zeros((1, 2, 4), F32), set()), ((1, 2, 4), {"h0"})):
        model = build(body, {**weights, "h0": state}, x="float[5,2,3]", opset=14)
        module = oc.to_torch(model)
        assert weight_names(module) == {"w", "r"} | learned
        assert_equal(module, model, input_of("float[5,2,3]"))


@pytest.mark.parametrize("name", CASES)
def test_layer(name):
    options, body, weights = CASES[name]
    model = build(body, weights, **options)
    before = model.SerializeToString()
    module = oc.to_torch(model)
    x = input_of(options.get("x", "float[N,3,8,8]"))
    assert weight_names(module) == weights.keys() - STATS.keys()
    assert not module.frozen
    assert_equal(module, model, x)
    assert oc.write_back(module, model).SerializeToString() == before
    sgd_step(module, x)
    tuned = oc.write_back(module, model)
    assert model.SerializeToString() == before
    for weight in weight_names(module):
        assert not np.array_equal(values(model, weight), values(tuned, weight))
    assert_equal(module, tuned, x)


NETWORK = (
    "c = Conv<pads=[1,1,1,1]>(x, w1, b1) n = BatchNormalization(c, s, b, m, v) r = Relu(n) "
    "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) a = AveragePool<kernel_shape=[2,2]>(p) "
    "f = Flatten(a) g = Gemm<transB=1>(f, w2, b2) t = Transpose<perm=[1,0]>(g) u = Transpose<perm=[1,0]>(t) "
    "i = Identity(u) d = Dropout(i) k = Reshape(d, shape) z = Tanh(k) y = Softmax<axis=1>(z)"
)
WEIGHTS = {
    "w1": (3, 3, 3, 3), "b1": (3,), "s": (3,), "b": (3,), **STATS, "w2": (5, 27), "b2": (5,),
    "shape": np.array([0, -1], np.int64),
}  # fmt: skip


@pytest.mark.parametrize("opset", range(9, 24))
def test_network_of_each_opset(opset):
    model = build(NETWORK, WEIGHTS, opset=opset, ir=10 if opset > 8 else 3)
    module = oc.to_torch(model)
    x = image()
    assert_equal(module, model, x)
    sgd_step(module, x)
    assert_equal(module, oc.write_back(module, model), x)


def test_old_model_whose_initialisers_are_inputs():
    body = "c = Conv(x, w) r = Relu(c) p = GlobalMaxPool(r) f = Flatten(p) y = Gemm(f, u, b)"
    model = build(body, {"w": (4, 3, 3, 3), "u": (4, 5), "b": (1, 5)}, opset=7, ir=3)
    module = oc.to_torch(model)
    assert module.input_names == ("x",)
    assert_equal(module, model, image())
    sgd_step(module, image())
    tuned = oc.write_back(module, model)
    options = [item for item in tuned.graph.input if item.name == "x"]
    assert len(options) == 1
    del tuned.graph.input[1:]  # as onnxruntime's feeds want it
    tuned.ir_version = 4
    assert_equal(module, tuned, image())


def test_embedding():
    tokens = np.array([[0, 3, 3], [5, -1, 2]], np.int64)
    model = build("e = Gather(table, x) y = MatMul(e, w)", {"table": (7, 4), "w": (4, 2)}, x="int64[N,3]")
    module = oc.to_torch(model)
    assert_equal(module, model, tokens)
    sgd_step(module, tokens)
    gradient = module.get_parameter("table").grad.abs().sum(1) > 0
    assert gradient.tolist() == [True, False, True, True, False, True, True]
    assert_equal(module, oc.write_back(module, model), tokens)


def test_float16_stays_float16():
    weights = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float16)
               for name, shape in (("w", (16, 8)), ("b", (8,)))}  # fmt: skip
    model = build("h = MatMul(x, w) y = Add(h, b)", weights, x="float16[N,6,16]", y="float16 y")
    module = oc.to_torch(model)
    x = input_of(TOKENS["x"]).astype(np.float16)
    assert_equal(module, model, x, rtol=2e-3)
    sgd_step(module, x)
    tuned = oc.write_back(module, model)
    assert values(tuned, "w").dtype == np.float16
    assert_equal(module, tuned, x, rtol=2e-3)


def test_bfloat16_round_trip():
    import ml_dtypes

    w = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    model = build(
        "y = MatMul(x, w)", {"w": w.astype(ml_dtypes.bfloat16)}, x="bfloat16[N,6,16]", y="bfloat16 y"
    )
    module = oc.to_torch(model)
    assert oc.write_back(module, model) == model
    module.get_parameter("w").data.add_(1)
    assert not np.array_equal(values(oc.write_back(module, model), "w"), values(model, "w"))
