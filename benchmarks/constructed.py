"""Small models, one a case that exporters write: text in ONNX's own format, with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

IMAGE = "float[N, 3, 12, 12] x"
HEAD = "g = GlobalAveragePool(f) f2 = Flatten(g) y = Gemm<transB=1>(f2, wh, bh)"
HEAD_SHAPES = {"wh": (5, 8), "bh": (5,)}


def _image(body: str, **weights: tuple[int, ...]) -> tuple[str, dict[str, tuple[int, ...]]]:
    """An image network: ``body`` leads from x to f (8 channels), a head of five classes follows."""
    return f"net ({IMAGE}) => (float[N, 5] y) {{ {body} {HEAD} }}", {**weights, **HEAD_SHAPES}


def _tokens(body: str, **weights: tuple[int, ...]) -> tuple[str, dict[str, tuple[int, ...]]]:
    """A network on tokens: x (N, 6, 16) to y of the same shape."""
    return f"net (float[N, 6, 16] x) => (float[N, 6, 16] y) {{ {body} }}", weights


CONV1 = "c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1)"
TEXTS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "residual": _image(
        f"{CONV1} c2 = Conv<pads=[1,1,1,1]>(r1, w2) r2 = Relu(c2) c3 = Conv<pads=[1,1,1,1]>(r2, w3) "
        "s = Add(c3, r1) f = Relu(s)",
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(8, 8, 3, 3),
    ),
    "inception": _image(
        f"{CONV1} a = Conv(r1, wa) b = Conv<pads=[1,1,1,1]>(r1, wb) k = Concat<axis=1>(a, b) f = Relu(k)",
        w1=(6, 3, 3, 3), wa=(4, 6, 1, 1), wb=(4, 6, 3, 3),
    ),
    "squeeze_excite": _image(
        f"{CONV1} p = GlobalAveragePool(r1) q = Conv(p, wq) qr = Relu(q) e = Conv(qr, we) s = Sigmoid(e) "
        "f = Mul(r1, s)",
        w1=(8, 3, 3, 3), wq=(4, 8, 1, 1), we=(8, 4, 1, 1),
    ),
    "shared_weights": _image(
        f"{CONV1} c2 = Conv<pads=[1,1,1,1]>(r1, w2) r2 = Relu(c2) c3 = Conv<pads=[1,1,1,1]>(r2, w2) f = Relu(c3)",
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3),
    ),
    "grouped_conv": _image(
        f"{CONV1} c2 = Conv<pads=[1,1,1,1], group=2>(r1, w2) f = Relu(c2)", w1=(8, 3, 3, 3), w2=(8, 4, 3, 3)
    ),
    "depthwise_conv": _image(
        f"{CONV1} c2 = Conv<pads=[1,1,1,1], group=8>(r1, w2) r2 = Clip(c2, zero, six) c3 = Conv(r2, w3) "
        "f = Relu(c3)",
        w1=(8, 3, 3, 3), w2=(8, 1, 3, 3), w3=(8, 8, 1, 1),
    ),
    "conv_transpose": _image(
        f"{CONV1} c2 = ConvTranspose<strides=[2,2]>(r1, w2) f = Relu(c2)", w1=(6, 3, 3, 3), w2=(6, 8, 2, 2)
    ),
    "batch_norm_unfolded": _image(
        "c1 = Conv<pads=[1,1,1,1]>(x, w1) n1 = BatchNormalization(c1, s1, b1, m1, v1) r1 = Relu(n1) "
        "c2 = Conv<strides=[2,2]>(r1, w2) f = Relu(c2)",
        w1=(6, 3, 3, 3), s1=(6,), b1=(6,), m1=(6,), v1=(6,), w2=(8, 6, 3, 3),
    ),
    "resize_concat": _image(
        f"{CONV1} p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1) u = Resize<mode=\"nearest\">(p, , scales) "
        "k = Concat<axis=1>(r1, u) c2 = Conv(k, w2) f = Relu(c2)",
        w1=(4, 3, 3, 3), w2=(8, 8, 1, 1),
    ),
    "weights_behind_aliases": _image(
        "wt = Transpose<perm=[1,0,2,3]>(w1t) c1 = Conv<pads=[1,1,1,1]>(x, wt) r1 = Relu(c1) wi = Identity(w2) "
        "c2 = Conv(r1, wi) f = Relu(c2)",
        w1t=(3, 8, 3, 3), w2=(8, 8, 3, 3),
    ),
    "reader_in_if": _image(
        f"{CONV1} t = ReduceMean<keepdims=0>(r1) z = Constant<value_float=-1.0>() cond = Greater(t, z) "
        "f = If (cond) <then_branch = yes () => (float[N, 8, 12, 12] a) { a1 = Conv<pads=[1,1,1,1]>(r1, w2) "
        "a = Relu(a1) }, else_branch = no () => (float[N, 8, 12, 12] b) { b = Identity(r1) }>",
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3),
    ),
    "channels_last": (
        "net (float[N, 12, 12, 3] x) => (float[N, 12, 12, 8] y) { t = Transpose<perm=[0,3,1,2]>(x) "
        "c1 = Conv<pads=[1,1,1,1]>(t, w1) a = Transpose<perm=[0,2,3,1]>(c1) r = Relu(a) "
        "b = Transpose<perm=[0,3,1,2]>(r) c2 = Conv<pads=[1,1,1,1]>(b, w2) y = Transpose<perm=[0,2,3,1]>(c2) }",
        {"w1": (6, 3, 3, 3), "w2": (8, 6, 3, 3)},
    ),
    "volumes": (
        "net (float[N, 2, 6, 6, 6] x) => (float[N, 3] y) { c1 = Conv<pads=[1,1,1,1,1,1]>(x, w1) r1 = Relu(c1) "
        "c2 = Conv(r1, w2) r2 = Relu(c2) g = GlobalAveragePool(r2) h = Flatten(g) y = Gemm(h, w3) }",
        {"w1": (4, 2, 3, 3, 3), "w2": (6, 4, 3, 3, 3), "w3": (6, 3)},
    ),
    "attention": _tokens(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) "
        "p = Softmax<axis=-1>(s) o = MatMul(p, v) u = MatMul(o, wo) y = Add(u, x)",
        wq=(16, 16), wk=(16, 16), wv=(16, 16), wo=(16, 16),
    ),
    "feed_forward": _tokens(
        "a = MatMul(x, w1) b = Add(a, b1) h = Gelu(b) c = MatMul(h, w2) d = Add(c, b2) y = Add(d, x)",
        w1=(16, 32), b1=(32,), w2=(32, 16), b2=(16,),
    ),
    "weight_on_the_left": (
        "net (float[16, N] x) => (float[4, N] y) { a = MatMul(w1, x) r = Relu(a) y = MatMul(w2, r) }",
        {"w1": (12, 16), "w2": (4, 12)},
    ),
    "transposed_gemm": (
        "net (float[16, N] x) => (float[N, 4] y) { a = Gemm<transA=1>(x, w1) r = Relu(a) "
        "y = Gemm<alpha=0.5>(r, w2) }",
        {"w1": (16, 12), "w2": (12, 4)},
    ),
    "several_outputs": (
        "net (float[N, 16] x) => (float[N, 12] r, float[N, 4] y, float[N, 2] z) { a = Gemm(x, w1) r = Relu(a) "
        "y = Gemm(r, w2) z = Gemm(r, w3) }",
        {"w1": (16, 12), "w2": (12, 4), "w3": (12, 2)},
    ),
    "microsoft_ops": (
        "net (float[N, 16] x) => (float[N, 4] y) { a = Gemm(x, w1) g = com.microsoft.Gelu(a) b = Gemm(g, w2) "
        "h = com.microsoft.QuickGelu(b) y = Gemm(h, w3) }",
        {"w1": (16, 12), "w2": (12, 12), "w3": (12, 4)},
    ),
    "quantised_and_float": (
        "net (float[N, 16] x) => (float[N, 4] y) { a = Gemm(x, w1) r = Relu(a) q = QuantizeLinear(r, qs, qz) "
        "d = DequantizeLinear(q, qs, qz) wd = DequantizeLinear(wq, qs, wz) b = MatMul(d, wd) s = Relu(b) "
        "y = Gemm(s, w3) }",
        {"w1": (16, 12), "w3": (12, 4)},
    ),
    "loop_body": (
        "net (float[N, 8] x) => (float[N, 8] y) { n = Constant<value_int=3>() go = Constant<value=bool {1}>() "
        "s = Loop(n, go, x) <body = step (int64 i, bool c, float[N, 8] h) => (bool c2, float[N, 8] h2) "
        "{ c2 = Identity(c) m = MatMul(h, w1) h2 = Relu(m) }> y = MatMul(s, w2) }",
        {"w1": (8, 8), "w2": (8, 8)},
    ),
    "conv_transpose_groups": _image(
        f"{CONV1} c2 = ConvTranspose<strides=[2,2], group=2, pads=[1,0,1,0], output_padding=[1,0]>(r1, w2, b2) "
        "r2 = Relu(c2) c3 = ConvTranspose<dilations=[2,2]>(r2, w3) f = Relu(c3)",
        w1=(6, 3, 3, 3), w2=(6, 4, 3, 2), b2=(8,), w3=(8, 8, 2, 2),
    ),
    "weight_behind_cast": _image(
        f"wf = Cast<to=1>(wh16) {CONV1} c2 = Conv(r1, wf) f = Relu(c2)", w1=(6, 3, 3, 3)
    ),
    "weight_behind_reshape": (
        "net (float[N, 16] x) => (float[N, 4] y) { wr = Reshape(w1, s1) a = Gemm(x, wr) r = Relu(a) "
        "wt = Transpose<perm=[1,0]>(w2) b = MatMul(r, wt) s = Relu(b) wu = Unsqueeze(w3, axes) "
        "wq = Squeeze(wu, axes) y = Gemm(s, wq) }",
        {"w1": (8, 24), "w2": (12, 12), "w3": (12, 4)},
    ),
    "weight_behind_dequantize": (
        "net (float[N, 16] x) => (float[N, 4] y) { a = Gemm(x, w1) r = Relu(a) "
        "wd = DequantizeLinear<axis=1>(wq, ws, wz) b = MatMul(r, wd) s = Relu(b) y = Gemm(s, w3) }",
        {"w1": (16, 12), "ws": (12,), "w3": (12, 4)},
    ),
    "matmul_of_rank_3_weight": _tokens(
        "a = MatMul(x, w1) h = Relu(a) c = MatMul(h, w2) y = Add(c, b2)",
        w1=(1, 16, 24), w2=(1, 24, 16), b2=(16,),
    ),
    "gemm_constant_on_the_left": (
        "net (float[16, N] x) => (float[4, N] y) { a = Gemm(w1, x) r = Relu(a) y = Gemm<transA=1>(w2, r) }",
        {"w1": (12, 16), "w2": (12, 4)},
    ),
    "embedding_and_features": (
        "net (int64[N, 6] token, float[N, 8] x) => (float[N, 4] y) { e = Gather(table, token) "
        "m = ReduceMean<keepdims=0>(e, axes) k = Concat<axis=1>(m, x) a = Gemm(k, w1) r = Relu(a) y = Gemm(r, w2) }",
        {"table": (2, 10), "w1": (18, 12), "w2": (12, 4)},
    ),
    "rank_found_by_inference": (
        "net (float[N, 3, 8, 8] x) => (float[M, 5] y) { c = Conv(x, w1) r = Relu(c) size = Shape(r) "
        "n = Gather(size, zero64) nn = Unsqueeze(n, axis0) to = Concat<axis=0>(nn, last) flat = Reshape(r, to) "
        "t = Tanh(flat) y = MatMul(t, w2) }",
        {"w1": (4, 3, 3, 3), "w2": (144, 5)},
    ),
    "symbolic_sizes": (
        "net (float[batch, 3, height, width] x) => (float[batch, 5, height, width] y) { "
        "c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1) c2 = Conv<auto_pad=\"SAME_UPPER\">(r1, w2) r2 = Relu(c2) "
        "y = Conv(r2, w3) }",
        {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "w3": (5, 6, 1, 1)},
    ),
    "fixed_batch_1": (
        "net (float[1, 3, 8, 8] x) => (float[1, 5] y) { c = Conv(x, w1) r = Relu(c) f = Reshape(r, flat) "
        "a = Gemm(f, w2) s = Relu(a) y = Gemm(s, w3) }",
        {"w1": (4, 3, 3, 3), "w2": (144, 8), "w3": (8, 5)},
    ),
    "scan_body": (
        "net (float[N, 5, 8] x, float[N, 8] start) => (float[N, 8] y, float[N, 5, 8] steps) { "
        "last, steps = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
        "body = step (float[N, 8] h, float[N, 8] u) => (float[N, 8] h2, float[N, 8] h3) "
        "{ m = MatMul(h, w1) s = Add(m, u) h2 = Tanh(s) h3 = Identity(h2) }>(start, x) y = MatMul(last, w2) }",
        {"w1": (8, 8), "w2": (8, 8)},
    ),
    "outer_names_in_if": (
        "net (float[N, 16] x) => (float[N, 4] y) { a = Gemm(x, w1) r = Relu(a) total = ReduceSum<keepdims=0>(x) "
        "z = Constant<value_float=0.0>() cond = Greater(total, z) b = Gemm(r, w2) s = Relu(b) "
        "f = If (cond) <then_branch = yes () => (float[N, 12] u) { u = Add(s, a) }, "
        "else_branch = no () => (float[N, 12] v) { v = MatMul(s, w2) }> y = Gemm(f, w3) }",
        {"w1": (16, 12), "w2": (12, 12), "w3": (12, 4)},
    ),
    "scaled_features": (
        "net (float[N, 16] x) => (float[N, 4] y) { s = ai.onnx.ml.Scaler<offset=[0.5], scale=[2.0]>(x) "
        "n = ai.onnx.ml.Normalizer<norm=\"L2\">(s) a = Gemm(n, w1) r = Relu(a) y = Gemm(r, w2) }",
        {"w1": (16, 12), "w2": (12, 4)},
    ),
    "tanh_residual": _image(
        f"{CONV1} c2 = Conv<pads=[1,1,1,1]>(r1, w2) t = Tanh(c2) s = Add(t, r1) u = Tanh(s) c3 = Conv(u, w3) "
        "f = Add(c3, u)",
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(8, 8, 1, 1),
    ),
    "sigmoid_residual": _tokens(
        "a = MatMul(x, w1) s = Sigmoid(a) b = MatMul(s, w2) h = Add(b, s) g = Sigmoid(h) c = MatMul(g, w3) "
        "y = Add(c, x)",
        w1=(16, 12), w2=(12, 12), w3=(12, 16),
    ),
}  # fmt: skip

CONSTANTS: dict[str, dict[str, np.ndarray]] = {
    "depthwise_conv": {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)},
    "resize_concat": {"scales": np.array([1, 1, 2, 2], np.float32)},
    "quantised_and_float": {
        "qs": np.array(0.05, np.float32),
        "qz": np.array(0, np.uint8),
        "wz": np.array(0, np.int8),
        "wq": np.random.default_rng(3).integers(-40, 40, (12, 12), dtype=np.int8),
    },
    "weight_behind_cast": {
        "wh16": (np.random.default_rng(4).standard_normal((8, 6, 3, 3)) / 6).astype(np.float16)
    },
    "weight_behind_reshape": {"s1": np.array([16, -1]), "axes": np.array([0])},
    "weight_behind_dequantize": {
        "wz": np.zeros(12, np.int8),
        "wq": np.random.default_rng(5).integers(-4, 4, (12, 12), dtype=np.int8),
    },
    "embedding_and_features": {"axes": np.array([1])},
    "rank_found_by_inference": {"zero64": np.array(0), "axis0": np.array([0]), "last": np.array([-1])},
    "fixed_batch_1": {"flat": np.array([1, 144])},
}


def build(
    name: str, text: str, weights: dict[str, tuple[int, ...]], opset: int = 20, ir: int = 10
) -> ModelProto:
    """The model, its weights drawn (seeded) so that signals keep their size."""
    learn = ', "ai.onnx.ml": 3' if "ai.onnx.ml." in text else ""
    head = f'<ir_version: {ir}, opset_import: ["": {opset}, "com.microsoft": 1, "local": 1{learn}]>\n'
    model = parser.parse_model(head + text)
    rng = np.random.default_rng(0)
    tensors = {key: _draw(shape, rng) for key, shape in weights.items()} | CONSTANTS.get(name, {})
    for key, value in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(value, key))
        if ir < 4:
            elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(key, elem_type, value.shape))
    model.graph.name = name
    return model


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    size = math.prod(shape)
    fan_in = size // max(shape) if len(shape) == 2 else size // shape[0]
    return (rng.standard_normal(shape) * math.sqrt(2 / fan_in)).astype(np.float32)


def _named(model: ModelProto, name: str = "") -> ModelProto:
    """All nodes under one name: exporters that write none, or one for several."""
    for node in model.graph.node:
        node.name = name
    return model


def _typed(model: ModelProto, elem_type: int) -> ModelProto:
    """The model in another float type."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = elem_type
    return model


def _sparse(model: ModelProto) -> ModelProto:
    """The first weight as a sparse initialiser."""
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values[np.abs(values) < np.median(np.abs(values))] = 0
    places = np.flatnonzero(values)
    entries = numpy_helper.from_array(values.ravel()[places], tensor.name)
    indices = numpy_helper.from_array(places.astype(np.int64), tensor.name + "_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(entries, indices, list(values.shape)))
    del model.graph.initializer[0]
    return model


def _function(model: ModelProto) -> ModelProto:
    """A dense layer as a local function, called where the first Gemm was."""
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["P"]), helper.make_node("Relu", ["P"], ["Y"]),
    ]  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("local", "Dense", ["X", "W"], ["Y"], nodes, opsets))
    call = helper.make_node("Dense", ["x", "w1"], ["r"], domain="local", name="dense")
    del model.graph.node[:2]
    model.graph.node.insert(0, call)
    return model


MLP = (
    "net (float[N, 16] x) => (float[N, 4] y) { a = Gemm(x, w1) r = Relu(a) b = Gemm(r, w2) s = Relu(b) "
    "y = Gemm(s, w3) }",
    {"w1": (16, 12), "w2": (12, 12), "w3": (12, 4)},
)
_OLD = _image(
    f"{CONV1} p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1) c2 = Conv(p, w2) f = Relu(c2)",
    w1=(6, 3, 3, 3), w2=(8, 6, 3, 3),
)  # fmt: skip

EXTERNAL = "external_data"  # its weights lie in a file beside it
VARIANTS: dict[str, Callable[[], ModelProto]] = {
    EXTERNAL: lambda: build(EXTERNAL, *MLP),
    "unnamed_nodes": lambda: _named(build("unnamed_nodes", *MLP)),
    "duplicate_names": lambda: _named(build("duplicate_names", *MLP), "layer"),
    "float16": lambda: _typed(build("float16", *MLP), TensorProto.FLOAT16),
    "bfloat16": lambda: _typed(build("bfloat16", *MLP), TensorProto.BFLOAT16),
    "float64": lambda: _typed(build("float64", *MLP), TensorProto.DOUBLE),
    "sparse_weight": lambda: _sparse(build("sparse_weight", *MLP)),
    "local_function": lambda: _function(build("local_function", *MLP)),
    "opset7_ir3": lambda: build("opset7_ir3", *_OLD, opset=7, ir=3),
    "newest_opset": lambda: build(
        "newest_opset", *_OLD, opset=min(onnx.defs.onnx_opset_version(), 26), ir=11
    ),
}


def names() -> list[str]:
    """Every constructed model."""
    return [*TEXTS, *VARIANTS]


def model(name: str) -> ModelProto:
    """One of them."""
    return VARIANTS[name]() if name in VARIANTS else build(name, *TEXTS[name])
