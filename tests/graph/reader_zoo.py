"""Small models whose readers are more than the plain Conv, Gemm and MatMul; each has a site at "t"."""

from __future__ import annotations

import numpy as np
import onnx
from graph_tools import build, rename
from onnx import ModelProto, numpy_helper


def sparse(model: ModelProto, dims: list[int], *, flat: bool, as_node: bool) -> ModelProto:
    """Make a sparse "w" of the model's own."""
    values = numpy_helper.from_array(np.array([2, -3], np.float32), "" if as_node else "w")
    places = np.array([0, 5], np.int64) if flat else np.array([[0, 0], [1, 2]], np.int64)
    tensor = onnx.helper.make_sparse_tensor(values, numpy_helper.from_array(places, "w_places"), dims)
    if as_node:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    else:
        model.graph.sparse_initializer.append(tensor)
    return model


MATMUL = "g (float[N,4] x) => (float[N,3] y) { t = Relu(x) y = MatMul(t, w) }"
INT8 = "Constant<value = int8[4,3] {1,2,3,4,-5,6,7,-8,9,10,11,12}>()"


def dequantised(scale: str, op: str = "DequantizeLinear(q, s)") -> ModelProto:
    return build(
        f"g (float[N,4] x) => (float[N,3] y) {{ q = {INT8} s = {scale} w = {op} t = Relu(x) y = MatMul(t, w) }}",
        opset=21,
    )


SHARED = {
    "two_layers": lambda: build(
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) t = Relu(h) y = MatMul(t, w) }", w=(4, 4)
    ),
    "through_identity": lambda: build(
        "g (float[N,4] x) => (float[N,4] y) { a = Identity(w) b = Identity(w) h = MatMul(x, a) t = Relu(h)"
        " y = MatMul(t, b) }",
        w=(4, 4),
    ),
    "graph_output": lambda: build(
        "g (float[N,4] x) => (float[N,4] y, float[4,4] w) { t = Relu(x) y = MatMul(t, w) }", w=(4, 4)
    ),
    "body": lambda: build(
        "g (bool c, float[N,4] x) => (float[N,4] y, float[4,4] z) { t = Relu(x) y = MatMul(t, w) z = If(c) <"
        " then_branch = a () => (float[4,4] p) { p = Neg(w) },"
        " else_branch = b () => (float[4,4] r) { r = Abs(w) }> }",
        w=(4, 4),
    ),
    "another_op": lambda: build(
        "g (float[N,4] x) => (float[N,4] y, float[4,4] n) { t = Relu(x) y = MatMul(t, w) n = Neg(w) }",
        w=(4, 4),
    ),
    "transposed_elsewhere": lambda: build(
        "g (float[N,4] x) => (float[N,4] y) { v = Transpose(w) h = MatMul(x, w) t = Relu(h) y = MatMul(t, v) }",
        w=(4, 4),
    ),
    "conv_and_conv_transpose": lambda: build(
        "g (float[N,4,5] x) => (float[N,4,5] y) { h = Conv(x, w) t = Relu(h) y = ConvTranspose(t, w) }",
        w=(4, 4, 1),
    ),
}
COMPUTED = {
    "cast": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { v = Cast<to=11>(w) u = Cast<to=1>(v) t = Relu(x) y = MatMul(t, u) }",
        w=(4, 3),
    ),
    "reshape": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { s = Constant<value = int64[2] {4,-1}>() v = Reshape(w, s)"
        " t = Relu(x) y = MatMul(t, v) }",
        w=(12,),
    ),
    "squeeze_unsqueeze_flatten": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { a = Constant<value = int64[1] {0}>() v = Squeeze(w, a)"
        " u = Unsqueeze(v, a) r = Flatten<axis=2>(u) t = Relu(x) y = MatMul(t, r) }",
        w=(1, 4, 3),
    ),
    "dequantised": lambda: dequantised("Constant<value = float {0.1}>()"),
    "dequantised_by_column": lambda: dequantised(
        "Constant<value = float[3] {0.1,0.2,0.3}>()", "DequantizeLinear<axis=1>(q, s)"
    ),
    "dequantised_by_block": lambda: dequantised(
        "Constant<value = float[2,3] {0.1,0.2,0.3,0.4,0.5,0.6}>()",
        "DequantizeLinear<axis=0, block_size=2>(q, s)",
    ),
    "fake_quantised": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { s = Constant<value = float {0.1}>() z = Constant<value = int8 {0}>()"
        " q = QuantizeLinear(w, s, z) v = DequantizeLinear(q, s, z) t = Relu(x) y = MatMul(t, v) }",
        w=(4, 3),
    ),
    "product": lambda: build(
        "g (float[N,4,5] x) => (float[N,3,5] y) { v = Mul(w, m) t = Relu(x) y = Conv(t, v) }",
        w=(3, 4, 1),
        m=(3, 1, 1),
    ),
    "filled": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { s = Constant<value = int64[2] {4,3}>()"
        " v = ConstantOfShape<value = float[1] {0.5}>(s) t = Relu(x) y = MatMul(t, v) }"
    ),
    "split": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { a, v = Split<axis=0>(w) t = Relu(x) y = MatMul(t, v) }",
        w=(8, 3),
    ),
    "quantised_by_row": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { s = Constant<value = float[4] {0.1,0.2,0.3,0.2}>()"
        " z = Constant<value = uint8[4] {9,99,128,1}>() q = QuantizeLinear<axis=0>(w, s, z)"
        " v = DequantizeLinear<axis=0>(q, s, z) t = Relu(x) y = MatMul(t, v) }",
        w=(4, 3),
    ),
    "bias": lambda: build(
        "g (float[N,4,5] x) => (float[N,3,5] y) { s = Constant<value = float {0.1}>()"
        " q = Constant<value = int32[3] {1,2,-3}>() b = DequantizeLinear(q, s) t = Relu(x) y = Conv(t, w, b) }",
        w=(3, 4, 1),
    ),
    "bias_of_an_add": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { c = Cast<to=11>(b) d = Cast<to=1>(c) t = Relu(x) p = MatMul(t, w)"
        " y = Add(d, p) }",
        w=(4, 3),
        b=(3,),
    ),
    "sparse": lambda: sparse(build(MATMUL), [4, 3], flat=True, as_node=False),
    "sparse_coordinates": lambda: sparse(build(MATMUL), [4, 3], flat=False, as_node=False),
    "sparse_node": lambda: sparse(build(MATMUL), [4, 3], flat=True, as_node=True),
    "sparse_node_coordinates": lambda: sparse(build(MATMUL), [4, 3], flat=False, as_node=True),
}
TRANSPOSED = {
    "gemm_of_a_transpose": lambda: build(
        "g (float[N,4] x) => (float[N,3] y) { v = Transpose(w) u = Identity(v) t = Relu(x) y = Gemm(t, u, b) }",
        w=(3, 4),
        b=(3,),
    ),
    "conv_of_a_transpose": lambda: build(
        "g (float[N,4,5,5] x) => (float[N,3,4,2] y) {"
        " u = Identity(w) v = Transpose<perm=[3,2,0,1]>(u) t = Relu(x) y = Conv<strides=[1,2]>(t, v) }",
        w=(2, 3, 4, 3),
    ),
    "constant_node": lambda: build(
        "g (float[N,2] x) => (float[N,3] y) { w = Constant<value = float[3,2] {1,2,3,4,5,6}>() v = Transpose(w)"
        " t = Relu(x) y = MatMul(t, v) }"
    ),
}


def left_matmul(rank: int, bias: str = "", lead: tuple[int, ...] = ()) -> ModelProto:
    axes = ", ".join([*["N", "2"][: rank - 2], "4", "6"])
    out = ", ".join(["1"] * (len(lead) + 2 - rank) + ["N", "2"][: rank - 2] + ["3", "6"])
    last = {
        "": "y = MatMul(w, t)",
        "right": "p = MatMul(w, t) y = Add(p, b)",
        "left": "p = MatMul(w, t) y = Add(b, p)",
    }
    weights = {"w": (*lead, 3, 4)} | ({"b": (3, 1)} if bias else {})
    return build(f"g (float[{axes}] x) => (float[{out}] y) {{ t = Tanh(x) {last[bias]} }}", **weights)


def left_gemm(attributes: str = "", bias: tuple[int, ...] | None = None) -> ModelProto:
    columns = "float[N,4] x" if "transB" in attributes else "float[4,N] x"
    weights = {"w": (4, 3) if "transA" in attributes else (3, 4)} | ({"b": bias} if bias is not None else {})
    c = ", b" if bias is not None else ""
    return build(
        f"g ({columns}) => (float[3,N] y) {{ t = Relu(x) y = Gemm{attributes}(w, t{c}) }}", **weights
    )


LEFT = {
    **{
        f"matmul{rank}{bias}": lambda r=rank, b=bias: left_matmul(r, b)
        for rank in (2, 3, 4)
        for bias in ("", "left", "right")
    },
    **{f"matmul{rank}_lead": lambda r=rank: left_matmul(r, "", (1,)) for rank in (2, 3)},
    "gemm": left_gemm,
    "gemm_transA": lambda: left_gemm("<transA=1, alpha=0.5, beta=0.3>", (3, 1)),
    "gemm_transB": lambda: left_gemm("<transB=1>", ()),
    "gemm_transAB": lambda: left_gemm("<transA=1, transB=1>", (1,)),
    "gemm_one": lambda: left_gemm("<beta=2.0>", (1, 1)),
    "gemm_behind_a_flatten": lambda: build(
        "g (float[N,4,2,3] x) => (float[5,N] y) { t = Relu(x) f = Flatten(t) y = Gemm<transB=1>(w, f) }",
        w=(5, 24),
    ),
    "token_mixing": lambda: build(
        "g (float[N,4,5] x) => (float[N,3,5] y) { t = Relu(x) h = MatMul(w, t) r = Relu(h) y = MatMul(v, r) }",
        w=(6, 4),
        v=(3, 6),
    ),
    "both_sides_of_a_conv": lambda: build(
        "g (float[N,4,5] x) => (float[N,3,5] y, float[N,2,5] z) { t = Relu(x) y = MatMul(w, t) z = Conv(t, v) }",
        w=(3, 4),
        v=(2, 4, 1),
    ),
    "three_readers": lambda: build(
        "g (float[4,N] x) => (float[3,N] y, float[2,N] z, float[N,5] a) {"
        " t = Relu(x) y = MatMul(w, t) z = Gemm(v, t) a = Gemm<transA=1>(t, u) }",
        w=(3, 4),
        v=(2, 4),
        u=(4, 5),
    ),
    "right_with_a_lead": lambda: build(
        "g (float[N,4] x) => (float[1,N,3] y) { t = Relu(x) p = MatMul(t, w) y = Add(p, b) }",
        w=(1, 4, 3),
        b=(3,),
    ),
}


def conv_transpose(axes: int, attributes: str = "", bias: bool = True) -> ModelProto:
    size, out = ", ".join("5" * axes), ", ".join("abc"[:axes])
    weights = {"w": (4, 3) + (3,) * axes} | ({"b": (3,)} if bias else {})
    return build(
        f"g (float[N,4,{size}] x) => (float[N,3,{out}] y) "
        f"{{ t = Relu(x) y = ConvTranspose{attributes}(t, w{', b' if bias else ''}) }}",
        **weights,
    )


TRANSPOSED_CONVS = {
    **{f"{axes}d": lambda a=axes: conv_transpose(a) for axes in (1, 2, 3)},
    "bare": lambda: conv_transpose(2, bias=False),
    "grouped": lambda: build(
        "g (float[N,4,5] x) => (float[N,6,a] y) { t = Relu(x) y = ConvTranspose<group=2, strides=[2]>(t, w, b) }",
        w=(4, 3, 3),
        b=(6,),
    ),
    "depthwise": lambda: build(
        "g (float[N,4,5] x) => (float[N,8,a] y) { t = Relu(x) y = ConvTranspose<group=4>(t, w) }", w=(4, 2, 3)
    ),
    "strided": lambda: conv_transpose(2, "<strides=[2,3], pads=[1,0,2,1], output_padding=[1,2]>"),
    "dilated": lambda: conv_transpose(1, "<dilations=[2], strides=[2]>"),
    "cut_to_less_than_the_input": lambda: conv_transpose(1, "<pads=[3,3]>"),
    "same": lambda: conv_transpose(2, '<auto_pad="SAME_UPPER", strides=[2,2]>'),
    "shaped": lambda: conv_transpose(2, "<output_shape=[10,9], strides=[2,2]>"),
}
CHANNELS_LAST = {
    "keras": lambda: rename(
        build(
            "g (float[N,5,5,2] x) => (float[N,3,3,3] y) {"
            " a = Transpose<perm=[0,3,1,2]>(x) [one] b = Conv(a, w1) c = Transpose<perm=[0,2,3,1]>(b) d = Add(c, b1)"
            " e = Relu(d) t = Transpose<perm=[0,3,1,2]>(e) [two] f = Conv(t, w2) y = Transpose<perm=[0,2,3,1]>(f) }",
            w1=(4, 2, 1, 1),
            b1=(4,),
            w2=(3, 4, 3, 3),
        ),
        one="conv1",
    ),
}
READERS = {
    f"{group}_{name}": make
    for group, models in {
        "shared": SHARED,
        "computed": COMPUTED,
        "transposed": TRANSPOSED,
        "left": LEFT,
        "conv_transpose": TRANSPOSED_CONVS,
        "channels_last": CHANNELS_LAST,
    }.items()
    for name, make in models.items()
}
