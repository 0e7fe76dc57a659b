"""Small models that hold each situation the graph room must understand."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from graph_tools import as_type, build
from onnx import ModelProto


def conv(axes: int, attributes: str = "", bias: bool = True, opset: int = 17) -> ModelProto:
    """Conv → Relu → Conv with ``attributes``."""
    size = ", ".join(["9"] * axes)
    b = ", b" if bias else ""
    weights = {"w0": (4, 2) + (3,) * axes, "w": (3, 4) + (3,) * axes}
    if bias:
        weights["b"] = (3,)
    return build(
        f"g (float[N,2,{size}] x) => (float[N,3,{','.join('abc'[:axes])}] y) "
        f"{{ c = Conv(x, w0) t = Relu(c) y = Conv{attributes}(t, w{b}) }}",
        opset=opset,
        **weights,
    )


def gemm(attributes: str = "", c: str = "", opset: int = 17) -> ModelProto:
    """Gemm → Tanh → Gemm with ``attributes`` and a bias of shape ``c``."""
    shape = {"": None, "scalar": (), "one": (1,), "vector": (3,), "row": (1, 3)}[c]
    weights = {"w0": (5, 4), "b0": (4,), "w": (3, 4) if "transB" in attributes else (4, 3)}
    if shape is not None:
        weights["b"] = shape
    bias = ", b" if shape is not None else ""
    body = "h = Gemm(x, w0, b0) t = Tanh(h)"
    if "transA" in attributes:
        body = "h0 = Gemm(x, w0, b0) h = Transpose<perm=[1,0]>(h0) t = Tanh(h)"
    return build(
        f"g (float[N,5] x) => (float[N,3] y) {{ {body} y = Gemm{attributes}(t, w{bias}) }}",
        opset=opset,
        **weights,
    )


def matmul(rank: int, bias: str = "", opset: int = 17) -> ModelProto:
    """MatMul → Relu → MatMul (+ Add with the bias "left" or "right") on a tensor of that rank."""
    lead = ", ".join(["N", "6", "2"][: rank - 1])
    last = {"": "", "right": "y = Add(p, b)", "left": "y = Add(b, p)"}[bias]
    product = "p" if bias else "y"
    weights = {"w0": (5, 4), "w": (4, 3)} | ({"b": (3,)} if bias else {})
    return build(
        f"g (float[{lead},5] x) => (float[{lead},3] y) "
        f"{{ h = MatMul(x, w0) t = Relu(h) {product} = MatMul(t, w) {last} }}",
        opset=opset,
        **weights,
    )


def flattened(how: str, opset: int = 17, size: int = 3, batch: str = "N") -> ModelProto:
    """Conv → Relu → (t) → ``how`` (f = …) → Gemm."""
    pool = "t = MaxPool<kernel_shape=[3,3]>(r)" if size == 1 else "t = Identity(r)"
    return build(
        f"g (float[{batch},2,5,5] x) => (float[{batch},3] y) "
        f"{{ c = Conv(x, w0) r = Relu(c) {pool} {how} y = Gemm(f, w, b) }}",
        opset=opset,
        w0=(4, 2, 3, 3),
        w=(4 * size * size, 3),
        b=(3,),
    )


def _ints(values: str) -> str:
    count = values.count(",") + 1
    return f"s = Constant<value = int64[{count}] {{{values}}}>()"


COMPUTED_TARGET = (
    "sh = Shape(t) i = Constant<value = int64 {0}>() n = Gather<axis=0>(sh, i) "
    "ax = Constant<value = int64[1] {0}>() u = Unsqueeze(n, ax) m = Constant<value = int64[1] {-1}>() "
    "s = Concat<axis=0>(u, m) f = Reshape(t, s)"
)
FLATTENINGS: dict[str, Callable[[], ModelProto]] = {
    "flatten": lambda: flattened("f = Flatten(t)"),
    "flatten_axis": lambda: flattened("f = Flatten<axis=-3>(t)"),
    "reshape_0_-1": lambda: flattened(_ints("0,-1") + " f = Reshape(t, s)"),
    "reshape_-1_K": lambda: flattened(_ints("-1,36") + " f = Reshape(t, s)"),
    "reshape_0_K": lambda: flattened(_ints("0,36") + " f = Reshape(t, s)"),
    "reshape_1_K": lambda: flattened(_ints("1,36") + " f = Reshape(t, s)", batch="1"),
    "reshape_N_K": lambda: flattened(_ints("2,36") + " f = Reshape(t, s)", batch="2"),
    "reshape_N_-1": lambda: flattened(_ints("2,-1") + " f = Reshape(t, s)", batch="2"),
    "reshape_0_0": lambda: flattened(_ints("0,0") + " f = Reshape(t, s)", size=1, batch="2"),
    "reshape_computed": lambda: flattened(COMPUTED_TARGET),
    "reshape_sliced": lambda: flattened(
        "sh = Shape<start=0, end=1>(t) m = Constant<value = int64[1] {-1}>() "
        "s = Concat<axis=0>(sh, m) f = Reshape(t, s)"
    ),
    "squeeze": lambda: flattened("ax = Constant<value = int64[2] {2,3}>() f = Squeeze(t, ax)", size=1),
    "squeeze_attribute": lambda: flattened("f = Squeeze<axes=[2,3]>(t)", size=1, opset=11),
    "squeeze_twice": lambda: flattened(
        "g = Squeeze<axes=[3]>(t) f = Squeeze<axes=[-1]>(g)", size=1, opset=11
    ),
    "squeeze_flatten": lambda: flattened("g = Squeeze<axes=[3]>(t) f = Flatten(g)", size=1, opset=11),
}

CONVS: dict[str, Callable[[], ModelProto]] = {
    **{f"conv{axes}d": lambda axes=axes: conv(axes) for axes in (1, 2, 3)},
    **{f"conv2d_{opset}": lambda opset=opset: conv(2, opset=opset) for opset in (7, 11, 13, 21, 23)},
    "conv_bare": lambda: conv(2, bias=False),
    "conv_strided": lambda: conv(2, "<strides=[2,3], pads=[1,0,2,1]>"),
    "conv_dilated": lambda: conv(1, "<dilations=[2]>"),
    "conv_same_upper": lambda: conv(2, '<auto_pad="SAME_UPPER", strides=[2,2]>'),
    "conv_same_lower": lambda: conv(2, '<auto_pad="SAME_LOWER", strides=[2,2]>'),
    "conv_valid": lambda: conv(3, '<auto_pad="VALID">'),
}
GEMMS: dict[str, Callable[[], ModelProto]] = {
    **{f"gemm_{opset}": lambda opset=opset: gemm(c="vector", opset=opset) for opset in (7, 9, 11, 13, 21)},
    "gemm_bare": lambda: gemm(),
    **{f"gemm_{c}": lambda c=c: gemm(c=c) for c in ("scalar", "one", "row")},
    "gemm_transB": lambda: gemm("<transB=1>", "vector"),
    "gemm_transA": lambda: gemm("<transA=1>", "vector"),
    "gemm_transAB": lambda: gemm("<transA=1, transB=1, alpha=0.3>", "row"),
    "gemm_alpha_beta": lambda: gemm("<alpha=0.5, beta=3.0>", "vector"),
    "gemm_alpha_0": lambda: gemm("<alpha=0.0>", "vector"),
    "gemm_beta_0": lambda: gemm("<beta=0.0>", "scalar"),
}
MATMULS: dict[str, Callable[[], ModelProto]] = {
    f"matmul{rank}{bias}": lambda rank=rank, bias=bias: matmul(rank, bias)
    for rank in (2, 3, 4)
    for bias in ("", "left", "right")
}


def _constant_weights() -> ModelProto:
    """Weights and biases from Constant nodes and behind Identity."""
    model = build(
        "g (float[N,4] x) => (float[N,2] y) {"
        " c = Constant<value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>() cb = Constant<value_floats=[1.0,2.0,3.0]>()"
        " h = Gemm(x, c, cb) t = Relu(h) v = Identity(w) vv = Identity(v) vb = Identity(b) y = Gemm(t, vv, vb) }",
        w=(3, 2),
        b=(2,),
    )
    return onnx.shape_inference.infer_shapes(model)


def _several_readers() -> ModelProto:
    return build(
        "g (float[N,2,6,6] x) => (float[N,3,6,6] a, float[N,5,4,4] b, float[N,2] c) {"
        " h = Conv(x, w0) t = Relu(h) a = Conv(t, wa, ba) b = Conv<strides=[1,1]>(t, wb)"
        " f = Flatten(t) c = Gemm(f, wc) }",
        w0=(4, 2, 1, 1),
        wa=(3, 4, 1, 1),
        ba=(3,),
        wb=(5, 4, 3, 3),
        wc=(144, 2),
    )


def _attention() -> ModelProto:
    return build(
        "g (float[N,6,4] x) => (float[N,6,4] y) {"
        " q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Add(bk, k0) v = MatMul(x, wv)"
        " kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) o = MatMul(p, v)"
        " y = MatMul(o, wo) }",
        wq=(4, 4),
        wk=(4, 4),
        wv=(4, 4),
        wo=(4, 4),
        bq=(4,),
        bk=(4,),
    )


def _shared_bias() -> ModelProto:
    return build(
        "g (float[N,4] x) => (float[N,4] y) { h = Gemm(x, w0, b) t = Relu(h) u = Gemm(t, w1, b)"
        " s = Tanh(u) p = MatMul(s, w2) y = Add(p, b) }",
        w0=(4, 4),
        w1=(4, 4),
        w2=(4, 4),
        b=(4,),
    )


def _inputs_and_values() -> ModelProto:
    """IR 3: initialisers are inputs; declared shapes of everything."""
    model = build(
        "g (float[N,2,5,5] x) => (float[N,3] y) {"
        " c = Conv(x, w0) t = Relu(c) f = Flatten(t) p = MatMul(f, w) y = Add(p, b) }",
        opset=8,
        ir=3,
        w0=(4, 2, 3, 3),
        w=(36, 3),
        b=(3,),
    )
    return onnx.shape_inference.infer_shapes(model)


OTHERS: dict[str, Callable[[], ModelProto]] = {
    "constants": _constant_weights,
    "several_readers": _several_readers,
    "attention": _attention,
    "shared_bias": _shared_bias,
    "ir3": _inputs_and_values,
    "float64": lambda: as_type(conv(2), onnx.TensorProto.DOUBLE),
    "float64_gemm": lambda: as_type(gemm("<alpha=0.3>", "vector"), onnx.TensorProto.DOUBLE),
    "depthwise": lambda: build(
        "g (float[N,4,5] x) => (float[N,4,5] y) { t = Relu(x) y = Conv<group=4>(t, w) }", w=(4, 1, 1)
    ),
    "groups": lambda: build(
        "g (float[N,12,5,5] x) => (float[N,6,4,3] y, float[N,4,5,5] z) { t = Relu(x)"
        " y = Conv<group=3, pads=[0,0,1,0]>(t, v, b) z = Conv<group=2>(t, w) }",
        v=(6, 4, 3, 3),
        b=(6,),
        w=(4, 6, 1, 1),
    ),
    "groups_transposed": lambda: build(
        "g (float[N,6,5] x) => (float[N,8,A] y, float[N,3,B] z) { t = Relu(x)"
        " y = ConvTranspose<group=2, strides=[2], pads=[1,0]>(t, v, b) z = ConvTranspose<group=3>(t, w) }",
        v=(6, 4, 3),
        b=(8,),
        w=(6, 1, 2),
    ),
    "branches": lambda: build(
        "g (float[N,2,6,6] x) => (float[N,2,6,6] y) { a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) s = Add(b, x)"
        " z = Relu(s) y = Conv(z, w2) }",
        w0=(3, 2, 1, 1),
        w1=(2, 3, 1, 1),
        w2=(2, 2, 1, 1),
    ),
    # ONNX does not know the shape that onnxruntime's own op gives
    "unknown_rank": lambda: build(
        "g (float[N,6,5] x) => (float[N,6,3] y) { h = MatMul(x, w0) t = com.microsoft.Gelu(h) y = MatMul(t, w) }",
        w0=(5, 4),
        w=(4, 3),
    ),
    "unknown_rank_conv": lambda: build(
        "g (float[N,2,5] x) => (float[N,3,5] y) { h = Conv(x, w0) t = com.microsoft.Gelu(h) y = Conv(t, w) }",
        w0=(4, 2, 1),
        w=(3, 4, 1),
    ),
    "matrix_bias": lambda: build(
        "g (float[2,4] x) => (float[2,3] y) { t = Relu(x) p = MatMul(t, w) y = Add(p, b) }",
        w=(4, 3),
        b=(2, 3),
    ),
}


WITH_SITES = {**CONVS, **GEMMS, **MATMULS, **FLATTENINGS, **OTHERS}


def _quantised() -> ModelProto:
    return build("g (uint8[N,4] x, uint8[4,3] w) => (int32[N,3] y) { y = MatMulInteger(x, w) }")


def _qdq() -> ModelProto:
    return build(
        "g (float[N,2,2,2] x) => (float[N,3] y) {"
        " s = Constant<value = float {0.1}>() z = Constant<value = uint8 {7}>()"
        " q = Constant<value = uint8[8,3] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24}>()"
        " a = QuantizeLinear(x, s, z) d = DequantizeLinear(a, s, z) f = Flatten(d)"
        " w = DequantizeLinear(q, s, z) y = MatMul(f, w) }"
    )


def _subgraph() -> ModelProto:
    return build(
        "g (bool c, float[N,4] x) => (float[N,4] y) { t = Relu(x) y = If(c) <"
        " then_branch = a () => (float[N,4] p) { p = MatMul(t, w) },"
        " else_branch = b () => (float[N,4] q) { q = Identity(t) }> }",
        w=(4, 4),
    )


def _function() -> ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { y = local.f(x, w) }"
        '<domain: "local", opset_import: ["": 17]> f (a, b) => (c) { c = MatMul(a, b) }'
    )


def _mismatched_axes() -> ModelProto:
    return build(
        "g (float[N,4,4] x) => (float[N,3,4] y, float[N,4,2] z) { t = Relu(x) y = Conv(t, w) z = MatMul(t, v) }",
        w=(3, 4, 1),
        v=(4, 2),
    )


# model, words of the reason
REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "deformed": (
        lambda: build(
            "g (float[N,4,5,5] x, float[N,2,5,5] o) => (float[N,3,5,5] y) { t = Relu(x) y = DeformConv(t, w, o) }",
            opset=19,
            w=(3, 4, 1, 1),
        ),
        "depends on its data",
    ),
    "quantised": (_quantised, "quantise"),
    "qdq": (
        _qdq,
        "its input and weight come from DequantizeLinear); growing in front of it needs mode block",
    ),
    "batched": (
        lambda: build("g (float[2,N,4] x) => (float[2,N,3] y) { t = Relu(x) y = MatMul(t, w) }", w=(2, 4, 3)),
        "is a batch of 2 matrices",
    ),
    "batched_left": (
        lambda: build("g (float[2,4,N] x) => (float[2,3,N] y) { t = Relu(x) y = MatMul(w, t) }", w=(2, 3, 4)),
        "is a batch of 2 matrices",
    ),
    "vector_weight": (
        lambda: build("g (float[N,4] x) => (float[N] y) { t = Relu(x) y = MatMul(t, w) }", w=(4,)),
        "is a vector, so that its output has no axis of features",
    ),
    "integers": (
        lambda: build(
            "g (int32[N,2] x) => (int32[N,2] y) { w = Constant<value = int32[2,2] {1,2,3,4}>() y = MatMul(x, w) }"
        ),
        "neither float32",
    ),
    "product": (
        lambda: build("g (float[3,4] x) => (float[3,3] y) { v = Transpose(x) t = Relu(x) y = MatMul(t, v) }"),
        "product of two tensors",
    ),
    "random_weight": (
        lambda: build(
            "g (float[N,4] x) => (float[N,3] y) { v = RandomNormal<shape=[4,3]>() t = Relu(x) y = MatMul(t, v) }"
        ),
        "product of two tensors",
    ),
    "drawn_weight": (
        lambda: build(
            "g (float[N,4] x) => (float[N,3] y) { v = RandomNormalLike(w) t = Relu(x) y = MatMul(t, v) }",
            w=(4, 3),
        ),
        "computed by RandomNormalLike 'v': a product of two tensors has no constant weight",
    ),
    "input_weight": (
        lambda: build("g (float[N,4] x, float[4,3] w) => (float[N,3] y) { t = Relu(x) y = MatMul(t, w) }"),
        "graph input 'w'",
    ),
    "row_varying": (
        lambda: build(
            "g (float[2,4] x) => (float[2,3] y) { t = Relu(x) y = Gemm(t, w, b) }", w=(4, 3), b=(2, 3)
        ),
        "row to row",
    ),
    "column_bias": (
        lambda: build(
            "g (float[2,4] x) => (float[2,3] y) { t = Relu(x) y = Gemm(t, w, b) }", w=(4, 3), b=(2, 1)
        ),
        "row to row",
    ),
    "row_bias_of_columns": (
        lambda: build(
            "g (float[4,3] x) => (float[3,3] y) { t = Relu(x) y = Gemm(w, t, b) }", w=(3, 4), b=(1, 3)
        ),
        "differs from column to column",
    ),
    "square_column_bias": (  # as many rows as features
        lambda: build(
            "g (float[3,4] x) => (float[3,3] y) { t = Relu(x) y = Gemm(t, w, b) }", w=(4, 3), b=(3, 1)
        ),
        "row to row",
    ),
    "computed_bias": (
        lambda: build(
            "g (float[2,4] x, float[3] b) => (float[2,3] y) { t = Relu(x) y = Gemm(t, w, b) }", w=(4, 3)
        ),
        "bias is the graph input",
    ),
    "old": (lambda: conv(1, opset=6), "opset 6"),
    "axes": (_mismatched_axes, "disagree on its channel axis"),
    "flatten_elsewhere": (
        lambda: build(
            "g (float[N,4,1,1] x) => (float[N,4,1,1] y, float[N,3] z) { t = Relu(x) y = Conv(t, w) f = Flatten(t)"
            " u = Neg(f) z = Gemm(u, v) }",
            w=(4, 4, 1, 1),
            v=(4, 3),
        ),
        "read by Flatten 'f'",
    ),
    "residual": (
        lambda: build(
            "g (float[N,4] x) => (float[N,4] y) { t = Relu(x) a = MatMul(t, w) y = Add(a, t) }", w=(4, 4)
        ),
        "read by Add",
    ),
    "output": (
        lambda: build(
            "g (float[N,4] x) => (float[N,3] y, float[N,4] t) { t = Relu(x) y = MatMul(t, w) }", w=(4, 3)
        ),
        "output of the model",
    ),
    "captured": (
        lambda: build(
            "g (bool c, float[N,4] x) => (float[N,3] y, float[N,4] z) { t = Relu(x) y = MatMul(t, w) z = If(c) <"
            " then_branch = a () => (float[N,4] p) { p = Neg(t) },"
            " else_branch = b () => (float[N,4] q) { q = Identity(x) }> }",
            w=(4, 3),
        ),
        "body of If",
    ),
    "subgraph": (_subgraph, "body of If"),
    "function": (_function, "local function"),
    "constant_input": (
        lambda: build("g (float[N,4] x) => (float[2,3] y) { y = MatMul(k, w) }", k=(2, 4), w=(4, 3)),
        "is a constant",
    ),
    "fused": (
        lambda: build("g (float[N,4] x) => (float[N,3] y) { y = com.microsoft.FusedMatMul(x, w) }", w=(4, 3)),
        "com.microsoft",
    ),
    "no_elements": (
        lambda: build("g (float[N,4,0] x) => (float[N,3,0] y) { t = Relu(x) y = Conv(t, w) }", w=(3, 4, 1)),
        "has no elements",
    ),
    "vector": (lambda: build("g (float[4] x) => (float[3] y) { y = MatMul(x, w) }", w=(4, 3)), "vector"),
}
