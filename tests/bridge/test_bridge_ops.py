"""Ops without weights, in the forms that differ between ONNX and torch, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx2torch
import pytest
import torch
from bridge_tools import assert_equal, build, image

import onnx_compnet as oc

I64 = np.int64
CASES = {
    "max_pool_ceil": "y = MaxPool<kernel_shape=[3,2], strides=[2,3], pads=[1,0,1,1], ceil_mode=1>(x)",
    "max_pool_dilated": "y = MaxPool<kernel_shape=[3,2], dilations=[2,1]>(x)",
    "max_pool_same": 'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_LOWER">(x)',
    "average_pool": "y = AveragePool<kernel_shape=[3,2], pads=[1,0,0,1]>(x)",
    "average_pool_counted": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    "average_pool_ceil": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(x)",
    "average_pool_ceil_counted": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0], ceil_mode=1, count_include_pad=1>(x)"
    ),
    "average_pool_dilated": "y = AveragePool<kernel_shape=[2,2], dilations=[2,3]>(x)",
    "lrn": "y = LRN<size=3, alpha=0.1, beta=0.5, bias=2.0>(x)",
    "hard_sigmoid": "y = HardSigmoid<alpha=0.25>(x)",
    "clip": "a = Constant<value_float=-0.5>() b = Constant<value_float=0.5>() y = Clip(x, a, b)",
    "clip_below": "b = Constant<value_float=0.5>() y = Clip(x, , b)",
    "flatten_0": "y = Flatten<axis=0>(x)",
    "flatten_last": "y = Flatten<axis=-1>(x)",
    "squeeze": "a = Constant<value_ints=[1,-1]>() e = Unsqueeze(x, a) y = Squeeze(e, a)",
    "slice": (
        "s = Constant<value_ints=[-2,1]>() e = Constant<value_ints=[-9223372036854775807,7]>() "
        "a = Constant<value_ints=[2,-1]>() t = Constant<value_ints=[-2,2]>() y = Slice(x, s, e, a, t)"
    ),
    "split_uneven": "a, b, c = Split<axis=2, num_outputs=3>(x) y = Concat<axis=2>(c, a, b)",
    "split_sizes": "s = Constant<value_ints=[1,7]>() a, b = Split<axis=3>(x, s) y = Add(a, b)",
    "expand": "s = Constant<value_ints=[4,1,1,1,8]>() y = Expand(x, s)",
    "reshape_zero": "s = Constant<value_ints=[0,-1,4]>() y = Reshape(x, s)",
    "pad_axes": "p = Constant<value_ints=[1,2,3,-1]>() a = Constant<value_ints=[2,-1]>() y = Pad(x, p, , a)",
    "pad_reflect": 'p = Constant<value_ints=[0,0,3,1,0,0,2,7]>() y = Pad<mode="reflect">(x, p)',
    "pad_edge": 'p = Constant<value_ints=[0,1,3,1,0,0,2,7]>() y = Pad<mode="edge">(x, p)',
    "pad_wrap": 'p = Constant<value_ints=[0,1,3,1,0,0,2,7]>() y = Pad<mode="wrap">(x, p)',
    "reduce_all": "y = ReduceMean<keepdims=0>(x)",
    "reduce_axes": "a = Constant<value_ints=[-1,1]>() y = ReduceL2<keepdims=0>(x, a)",
    "reduce_empty": "y = ReduceSum<noop_with_empty_axes=1>(x)",
    "reduce_log_sum_exp": "a = Constant<value_ints=[2]>() y = ReduceLogSumExp(x, a)",
    "reduce_product": "a = Constant<value_ints=[2,3]>() y = ReduceProd<keepdims=0>(x, a)",
    "shape_part": "s = Shape<start=1, end=-1>(x) y = Cast<to=1>(s)",
    "gather_negative": "i = Constant<value_ints=[-1,0]>() y = Gather<axis=1>(x, i)",
    "gather_nd": "i = Constant<value=int64[2,1,2] {0, -1, 2, 3}>() y = GatherND<batch_dims=1>(x, i)",
    "mish_as_a_function": "y = Mish(x)",
    "where": "h = Constant<value_float=0.0>() c = Greater(x, h) y = Where(c, x, h)",
    "trilu": "y = Trilu<upper=0>(x)",
    "one_hot": (
        "a = ArgMax<axis=3>(x) d = Constant<value_int=8>() v = Constant<value_floats=[0.5,2.0]>() y = OneHot(a, d, v)"
    ),
    "one_hot_beyond": (
        "i = Cast<to=7>(x) d = Constant<value_int=2>() v = Constant<value_floats=[0.5,2.0]>() "
        "y = OneHot<axis=1>(i, d, v)"
    ),
    "cumsum": "a = Constant<value_int=2>() y = CumSum(x, a)",
    "cumsum_exclusive": "a = Constant<value_int=-1>() y = CumSum<exclusive=1>(x, a)",
    "cumsum_reverse": "a = Constant<value_int=1>() y = CumSum<exclusive=1, reverse=1>(x, a)",
    "cumsum_of_int32": "a = Constant<value_int=1>() i = Cast<to=6>(x) c = CumSum(i, a) y = Cast<to=1>(c)",
    "nonzero": "r = Relu(x) n = NonZero(r) y = Cast<to=1>(n)",
    "top_k_of_equal_ones": "r = Relu(x) k = Constant<value_ints=[7]>() v, i = TopK(r, k) y = Cast<to=1>(i)",
    "top_k_smallest": "k = Constant<value_ints=[3]>() v, i = TopK<axis=1, largest=0>(x, k) y = Cast<to=1>(i)",
    "is_inf": "z = Constant<value_float=0.0>() d = Div(x, z) i = IsInf<detect_negative=0>(d) y = Cast<to=1>(i)",
    "constant_of_shape": "s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)",
    "constant_output": "y = Relu(x) z = Constant<value_floats=[1.0,2.0]>()",
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 18])
def test_a_function_has_the_defaults_of_its_op(opset):
    model = build("y = MeanVarianceNormalization(x)", opset=opset)
    assert_equal(oc.to_torch(model), model, image())
    window = build("n = Constant<value_int=8>() h = HannWindow(n) y = Mul(x, h)")
    assert_equal(oc.to_torch(window), window, image())


def test_a_function_of_the_model_has_its_own_defaults():
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18, "own": 1]> net (float[N,3] x) => (float[N,3] y)
        { a = own.outer (x) y = own.leaky <alpha = 0.5> (a) }
        <domain: "own", opset_import: ["": 18, "own": 1]> outer (x) => (y) { y = own.leaky (x) }
        <domain: "own", opset_import: ["": 18]> leaky <alpha: float = 0.2> (x) => (y)
        { y = LeakyRelu <alpha: float = @alpha> (x) }""")
    assert_equal(oc.to_torch(model), model, image(shape=(3,)))


@pytest.mark.parametrize("name", CASES)
def test_op(name):
    model = build(CASES[name])
    if name == "constant_output":
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[1].name = "z"
    assert_equal(oc.to_torch(model), model, image())


RESIZES = [
    ("nearest", "half_pixel", "round_prefer_floor"), ("nearest", "half_pixel", "ceil"),
    ("nearest", "asymmetric", "floor"), ("nearest", "align_corners", "round_prefer_ceil"),
    ("linear", "half_pixel", "floor"), ("linear", "asymmetric", "floor"), ("linear", "align_corners", "floor"),
    ("linear", "pytorch_half_pixel", "floor"), ("cubic", "half_pixel", "floor"), ("cubic", "align_corners", "floor"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "coordinates", "rounding"), RESIZES)
@pytest.mark.parametrize("sizes", [[16, 24], [4, 3]])
def test_resize(mode, coordinates, rounding, sizes):
    body = (
        f's = Constant<value_ints=[2,3,{sizes[0]},{sizes[1]}]>() '
        f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}", '
        f'nearest_mode="{rounding}">(x, , , s)'
    )  # fmt: skip
    model = build(body, x="float[2,3,8,8]")
    assert_equal(oc.to_torch(model), model, image())


def test_resize_by_scales_of_old_opsets():
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    for opset, op in ((9, "Upsample"), (10, "Resize")):
        model = build(f'y = {op}<mode="linear">(x, s)', scales, opset=opset)
        assert_equal(oc.to_torch(model), model, image())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("h = Constant<value_float=2.0>() i = Cast<to=7>(x) y = Pow(i, h)", onnx.TensorProto.INT64),
        (
            "a = Constant<value=int32 {7}>() s = ReduceMin<keepdims=0>(x) z = Sub(s, s) b = Cast<to=6>(z) "
            "d = Constant<value=int32 {-2}>() y = Range(a, b, d)",
            onnx.TensorProto.INT32,
        ),
    ],
)
def test_the_type_of_integers(body, kind):
    model = build(body)
    model.graph.output[0].type.tensor_type.elem_type = kind
    assert_equal(oc.to_torch(model), model, image())


def test_thresholded_relu():
    model = build("y = ThresholdedRelu<alpha=0.4>(x)", opset=13)
    assert_equal(oc.to_torch(model), model, image())


def test_top_k_of_old_opsets():
    model = build("v, i = TopK<axis=2, k=3>(x) y = Relu(v)", opset=9)
    assert_equal(oc.to_torch(model), model, image())


@pytest.mark.parametrize("given", ["most, overlap, least", "most, overlap", "most"])
@pytest.mark.parametrize("centre", [0, 1])
def test_non_max_suppression(given, centre):
    model = build(
        f"n = NonMaxSuppression<center_point_box={centre}>(b, s, {given}) y = Cast<to=1>(n)",
        {
            "most": np.array([4], I64), "overlap": np.array([0.2], np.float32),
            "least": np.array([-0.3], np.float32),
        },
        x="float[2,3,16]", others=", float[2,16,4] b, float[2,3,16] s",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 1, (2, 16, 4)).astype(np.float32)  # the first corner is not always the smaller one
    scores = rng.normal(size=(2, 3, 16)).astype(np.float32)
    assert_equal(oc.to_torch(model), model, scores, boxes, scores)


def test_softmax_of_old_opsets_is_over_all_later_axes():
    model = build("y = Softmax<axis=2>(x)", opset=11)
    assert_equal(oc.to_torch(model), model, image())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = Det(x)", "Det 'y'"),
        ("a = Relu(x) y = com.microsoft.BiasSplitGelu(a, a)", r"com\.microsoft version 1"),
        ('y = Resize<antialias=1, mode="linear">(x, , s)', "antialias = 1"),
        ("y, i = MaxPool<kernel_shape=[2,2]>(x) j = Cast<to=1>(i) z = Add(y, j)", "output 1"),
        ("y = BatchNormalization<training_mode=1>(x, k, k, k, k)", "training_mode = 1"),
    ],
)
def test_refusals_name_op_and_node(body, said):
    weights = {"s": np.array([1, 1, 2, 2], np.float32), "k": np.ones(3, np.float32)}
    model = build(
        body, {name: value for name, value in weights.items() if f"{name}" in body.split("(x, ")[-1]}
    )
    if "z =" in body:
        model.graph.output[0].name = "z"
    with pytest.raises(oc.UnsupportedError, match=said):
        oc.to_torch(model)


@pytest.mark.parametrize(("name", "called"), [("", "Resize 'y'"), ("/up.0/Resize", "Resize '/up.0/Resize'")])
def test_refusals_call_nodes_as_the_model_does(name, called):
    model = build('y = Resize<mode="linear">(x, s)', {"s": np.array([1, 1, 2, 2], np.float32)}, opset=10)
    model.graph.node[0].name = name
    model.graph.node[0].attribute[0].s = b"bicubic"
    with pytest.raises(oc.UnsupportedError, match=called):
        oc.to_torch(model)


def test_refusal_comes_before_any_conversion(monkeypatch):
    from onnx_compnet.bridge import module

    monkeypatch.setattr(module, "to_graph_module", lambda _: pytest.fail("conversion was begun"))
    model = build("a = Conv(x, w) d = Det(a) e = Det(x) y = Add(d, e)", {"w": (1, 3, 1, 1)})
    with pytest.raises(oc.UnsupportedError, match=r"Det 'd' \(ai\.onnx version 11, 1 more\)"):
        oc.to_torch(model)


def test_onnx2torch_itself_is_as_it_was():
    model = build("y = Conv(x, w)", {"w": (4, 3, 3, 3)}, opset=13)
    assert isinstance(
        next(m for m in onnx2torch.convert(model).modules() if "Conv" in type(m).__name__), torch.nn.Conv2d
    )
