"""Net2DeeperNet and NetMorph as children of the splice: the same function, measured in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.errors import UnsupportedError, UsageError


def build(body: str, inputs: str, outputs: str, opset: int = 17, **weights: tuple[int, ...]) -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    for number, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(number).normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def image(body: str, outputs: str = "float[N,C,H,W] y", **weights: tuple[int, ...]) -> ModelProto:
    return build(f"t = Relu(x) {body}", "float[N,4,9,8] x", outputs, **weights)


def run(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


W = {"w": (5, 4, 3, 3)}
READERS = {
    "conv": lambda: image("y = Conv<pads=[1,1,1,1]>(t, w)", **W),
    "valid": lambda: image('y = Conv<auto_pad="VALID">(t, w)', **W),
    "uneven_pads": lambda: image("y = Conv<pads=[2,0,1,1]>(t, w)", **W),
    "strides": lambda: image("y = Conv<pads=[1,1,1,1], strides=[2,3]>(t, w)", **W),
    "dilations": lambda: image("y = Conv<pads=[1,2,1,2], dilations=[1,2]>(t, w)", **W),
    "same_upper": lambda: image('y = Conv<auto_pad="SAME_UPPER">(t, w)', **W),
    "same_lower_stride": lambda: image('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(t, w)', w=(5, 4, 2, 3)),
    "even_kernel": lambda: image("y = Conv<pads=[0,1,1,0]>(t, w, b)", w=(5, 4, 2, 4), b=(5,)),
    "pointwise": lambda: image("y = Conv(t, w, b)", w=(5, 4, 1, 1), b=(5,)),
    "two_readers": lambda: image(
        "y = Conv<pads=[1,1,1,1]>(t, w) z = Conv<pads=[1,1,1,1], strides=[2,2]>(t, v, b)",
        "float[N,C,H,W] y, float[N,D,I,J] z",
        **W, v=(6, 4, 3, 3), b=(6,),
    ),
    "one_dimension": lambda: build(
        "t = Relu(x) y = Conv<pads=[2,1], dilations=[2]>(t, w)", "float[N,4,11] x", "float[N,C,L] y", w=(6, 4, 3)
    ),
    "three_dimensions": lambda: build(
        "t = Relu(x) y = Conv<pads=[1,0,1,1,0,1]>(t, w)", "float[N,3,5,4,6] x", "float[N,C,D,H,W] y",
        w=(4, 3, 3, 2, 3),
    ),
    "gemm": lambda: build(
        "t = Relu(x) y = Gemm<transB=1, alpha=0.5>(t, w, b)", "float[N,6] x", "float[N,4] y", w=(4, 6), b=(4,)
    ),
    "matmul": lambda: build("t = Relu(x) y = MatMul(t, w)", "float[N,5,6] x", "float[N,5,4] y", w=(6, 4)),
    "weight_on_the_left": lambda: build(
        "t = Relu(x) y = MatMul(w, t)", "float[N,6,5] x", "float[N,4,5] y", w=(4, 6)
    ),
    "block": lambda: image("h = Conv<pads=[1,1,1,1]>(t, w) y = Add(t, h)", w=(4, 4, 3, 3)),
    "dense_block": lambda: build(
        "t = Relu(x) h = MatMul(t, w) y = Add(t, h)", "float[N,6] x", "float[N,6] y", w=(6, 6)
    ),
}  # fmt: skip


def x_of(model: ModelProto, samples: int = 40) -> np.ndarray:
    dims = model.graph.input[0].type.tensor_type.shape.dim[1:]
    return normal(samples, *(dim.dim_value for dim in dims))


@pytest.mark.parametrize("method", ["net2deeper", "netmorph"])
@pytest.mark.parametrize("name", READERS)
def test_the_function_stays(name: str, method: str) -> None:
    model = READERS[name]()
    x = x_of(model)
    growth = oc.grow(model, "tensor:t", {"x": x}, method=method)
    for before, after in zip(run(model, x), run(growth.model, x), strict=True):
        assert after.shape == before.shape
        assert np.abs(after - before).max() <= 2e-5 * np.abs(before).max()
    assert growth.site_error < 1e-5
    assert bool(growth.verdict)
    assert not growth.warnings
    channels = growth.site.channels
    assert len(growth.kept) == (channels if method == "net2deeper" else 2 * channels)
    assert growth.sites[0].rows == 0
    assert np.isnan(growth.sites[0].fitted_error)


def test_one_size_may_be_open_and_the_other_fixed() -> None:
    model = build(
        "t = Relu(x) y = Conv<pads=[1,0,1,2]>(t, w)", "float[N,4,9,wide] x", "float[N,C,H,W] y", **W
    )
    x = normal(4, 4, 9, 8)
    growth = oc.grow(model, "tensor:t", {"x": x}, method="netmorph")
    assert np.allclose(run(growth.model, x)[0], run(model, x)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "dilations", "one_dimension", "gemm", "block"])
def test_the_child_can_be_grown_again(name: str) -> None:
    model = READERS[name]()
    x = x_of(model)
    child = oc.grow(model, "tensor:t", {"x": x}, method="netmorph").model
    again = oc.grow(child, "tensor:t", {"x": x}, method="netmorph", seed=1)
    assert np.allclose(run(again.model, x)[0], run(model, x)[0], atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "hardswish", "mish"])
def test_the_parametric_activation_starts_as_the_identity(activation: str) -> None:
    model = READERS["conv"]()
    x = x_of(model)
    child = oc.grow(model, "tensor:t", {"x": x}, method="netmorph", activation=activation).model
    assert np.allclose(run(child, x)[0], run(model, x)[0], atol=1e-5)
    kind = "slope" if activation in ("relu", "leaky_relu") else "share"
    (name,) = [item.name for item in child.graph.initializer if item.name.endswith(kind)]
    module = oc.to_torch(child)
    learned = dict(module.named_parameters())
    assert any(name in key for key in learned), "a of the parametric activation is learned"
    import torch

    loss = module(torch.from_numpy(x)).square().sum()
    loss.backward()
    (parameter,) = [value for key, value in learned.items() if name in key]
    assert parameter.grad is not None
    assert float(parameter.grad.abs().max()) > 0
    assert parameter.shape == (8, 1, 1)


@pytest.mark.parametrize(("keep", "exact"), [(4, True), (5, True), (3, False), (1, False)])
def test_netmorph_says_when_the_width_is_too_small(keep: int, exact: bool) -> None:
    model = READERS["conv"]()
    growth = oc.grow(model, "tensor:t", {"x": x_of(model)}, method="netmorph", keep=keep)
    assert len(growth.kept) == keep
    assert (growth.site_error < 1e-5) == exact
    told = [text for text in growth.warnings if "NetMorph misses them by" in text]
    assert bool(told) != exact
    assert all("4 neurons are enough" in text for text in told)


def test_few_outputs_need_no_more_neurons_than_that() -> None:
    model = image("y = Conv<pads=[1,1,1,1]>(t, w)", w=(2, 4, 3, 3))
    growth = oc.grow(model, "tensor:t", {"x": x_of(model)}, method="netmorph", keep=2)
    assert growth.site_error < 1e-5


def test_the_seed_draws_other_filters_and_the_bytes_are_the_same_for_one_seed() -> None:
    model = READERS["conv"]()
    data = {"x": x_of(model)}
    children = [oc.grow(model, "tensor:t", data, method="netmorph", seed=seed).model for seed in (0, 0, 1)]
    first, second, third = (child.SerializeToString(deterministic=True) for child in children)
    assert first == second != third


REFUSED = {
    "flatten": (
        lambda: build("t = Relu(x) f = Flatten(t) y = MatMul(f, w)", "float[N,2,3] x", "float[N,4] y", w=(6, 4)),
        "behind a Flatten",
    ),
    "grouped": (lambda: image("y = Conv<group=2>(t, w)", w=(6, 2, 3, 3)), "a grouped convolution"),
    "transposed": (lambda: image("y = ConvTranspose(t, w)", w=(4, 5, 3, 3)), "a transposed convolution"),
    "windows_differ": (
        lambda: image(
            "y = Conv(t, w) z = Conv(t, v)", "float[N,C,H,W] y, float[N,D,I,J] z", **W, v=(6, 4, 1, 1)
        ),
        "one kernel, padding and dilation",
    ),
    "unknown_size": (
        lambda: build(
            't = Relu(x) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(t, w)',
            "float[N,4,H,W] x", "float[N,5,I,J] y", **W,
        ),
        "does not fix",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_netmorph_refuses_with_a_reason_and_an_alternative(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        oc.grow(make(), "tensor:t", {"x": normal(30, 4, 9, 8) if name != "flatten" else normal(30, 2, 3)},
                method="netmorph")  # fmt: skip
    assert "alg3" in str(caught.value)


def test_net2deeper_keeps_grouped_readers() -> None:
    model = REFUSED["grouped"][0]()
    x = x_of(model)
    growth = oc.grow(model, "tensor:t", {"x": x}, method="net2deeper")
    assert np.allclose(run(growth.model, x)[0], run(model, x)[0], atol=1e-6)


@pytest.mark.parametrize("in_front", ["Tanh", "Sigmoid", "Identity"])
def test_net2deeper_refuses_what_is_not_idempotent(in_front: str) -> None:
    model = build(f"t = {in_front}(x) y = MatMul(t, w)", "float[N,6] x", "float[N,4] y", w=(6, 4))
    activation = "tanh" if in_front != "Identity" else "relu"
    with pytest.raises(UnsupportedError, match="is not linear on values"):
        oc.grow(model, "tensor:t", {"x": normal(30, 6)}, method="net2deeper", activation=activation)


def test_net2deeper_may_have_another_activation_where_the_values_allow_it() -> None:
    model = build("t = Sigmoid(x) y = MatMul(t, w)", "float[N,6] x", "float[N,4] y", w=(6, 4))
    growth = oc.grow(model, "tensor:t", {"x": normal(30, 6)}, method="net2deeper", activation="relu")
    assert growth.site_error < 1e-6


@pytest.mark.parametrize("name", ["conv", "gemm"])
def test_a_batch_norm_is_the_identity_at_its_moments(name: str) -> None:
    model = READERS[name]()
    x = x_of(model, 50)
    growth = oc.grow(model, "tensor:t", {"x": x}, method="net2deeper", batch_norm=True)
    assert np.allclose(run(growth.model, x)[0], run(model, x)[0], atol=1e-5)
    (norm,) = [node for node in growth.model.graph.node if node.op_type == "BatchNormalization"]
    values = {item.name: numpy_helper.to_array(item) for item in growth.model.graph.initializer}
    scale, bias, mean, variance = (values[key] for key in norm.input[1:])
    assert np.allclose(bias, mean)
    assert np.allclose(scale, np.sqrt(variance + 1e-5))
    t = np.maximum(x, 0)
    axes = (0, *range(2, t.ndim))
    # the fitted samples are four fifths of these
    assert np.allclose(mean, t.mean(axes), atol=0.1)
    assert np.allclose(variance, t.var(axes), atol=0.1)


def test_a_batch_norm_needs_the_channels_on_axis_1() -> None:
    model = READERS["matmul"]()
    with pytest.raises(UnsupportedError, match="channels on axis 1"):
        oc.grow(model, "tensor:t", {"x": x_of(model)}, method="net2deeper", batch_norm=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "net2deeper", "keep": 3}, "as many neurons as there are channels"),
        ({"method": "net2deeper", "candidates": 9}, "as many neurons as there are channels"),
        ({"method": "netmorph", "batch_norm": True}, "--batch-norm is for method net2deeper"),
        ({"method": "netmorph", "candidates": 3, "keep": 4}, "more than the 3 candidates"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    model = READERS["conv"]()
    with pytest.raises(UsageError, match=message):
        oc.grow(model, "tensor:t", {"x": x_of(model)}, **options)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types(dtype: str) -> None:
    text = READERS["gemm"]()
    model = ModelProto.FromString(text.SerializeToString())
    kind = {"float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}[dtype]
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = kind
    for item in model.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(dtype), item.name))
    x = x_of(text).astype(dtype)
    growth = oc.grow(model, "tensor:t", {"x": x}, method="netmorph")
    assert growth.site_error < {"float16": 3e-3, "float64": 1e-12}[dtype]


def test_a_dry_run_constructs_the_layer() -> None:
    from onnx_compnet.planning import plan

    model = READERS["conv"]()
    text = plan(model, "tensor:t", {"x": x_of(model)}, method="netmorph", keep=7)
    assert "7 neurons" in text
    assert "nothing is fitted" in text
    with pytest.raises(UnsupportedError):
        plan(REFUSED["grouped"][0](), "tensor:t", {"x": normal(30, 4, 9, 8)}, method="netmorph")
