"""Cores of blocks and grouped readers: activations and tensors that are hard to keep."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.graph.bounds import bounds
from onnx_compnet.graph.index import GraphIndex


def model_of(body, opset=17, ir=8, outputs="float[N, 6] y", inputs="float[N, 6] x", **weights):
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    for number, (name, value) in enumerate(weights.items()):
        if isinstance(value, tuple):
            value = np.random.default_rng(number).normal(size=value) / np.sqrt(value[0])
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


BLOCK = "h = MatMul(x, w) t = {}(h) u = MatMul(t, v) y = Add(t, u)"


@pytest.mark.parametrize(
    "activation",
    ["ThresholdedRelu", "ThresholdedRelu<alpha=0.5>", "LeakyRelu<alpha=-1.0>", "LeakyRelu<alpha=-0.9999>",
     "HardSigmoid<alpha=1.0, beta=-1.0>"],
)  # fmt: skip
def test_behind_an_activation_of_which_nothing_can_be_made_again_there_is_a_relu(activation):
    model = model_of(BLOCK.format(activation), w=(6, 6), v=(6, 6))
    grown = oc.grow(model, "tensor:t", {"x": normal(200, 6)})
    assert grown.site.mode == "block"
    assert grown.site_error < 1e-5


def test_an_activation_that_is_asked_for_and_flat_is_used_with_a_warning():
    model = model_of(BLOCK.format("Relu"), w=(6, 6), v=(6, 6))
    grown = oc.grow(model, "tensor:h", {"x": normal(200, 6)}, activation="thresholded_relu")
    assert any("flat at 0" in warning for warning in grown.warnings)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("activation", ["softplus", "gelu", "silu", "relu"])
def test_small_and_large_tensors_are_kept_as_well(activation, scale):
    model = model_of(BLOCK.format("Neg"), w=(6, 6), v=(6, 6))
    grown = oc.grow(model, "tensor:t", {"x": normal(200, 6, scale=scale)}, activation=activation)
    assert grown.site_error < 1e-5


def test_the_scale_of_a_nearly_linear_core_is_that_of_all_samples():
    model = model_of(BLOCK.format("Tanh"), w=(6, 6), v=(6, 6))
    x = normal(400, 6)
    quiet = x.copy()
    quiet[:64] *= 1e-3
    for data in (x, quiet):
        feeds = [{"x": data[i : i + 20]} for i in range(0, 400, 20)]
        grown = oc.grow(model, "tensor:t", lambda feeds=feeds: iter(feeds))
        assert grown.site_error < 2e-3


def overridable(body, **weights):
    """A model whose initialisers are inputs as well, so that a caller may replace them."""
    model = model_of(body, **weights)
    for tensor in model.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims))
        model.graph.input.append(info)
    return model


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        ("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", "replace"),
        ("h = MatMul(x, w) r = Relu(h) s = Transpose(v) y = MatMul(r, s)", "replace"),
        ("h = MatMul(x, w) r = Relu(h) s = Mul(v, v) y = MatMul(r, s)", "block"),
    ],
)
def test_initialisers_that_a_caller_may_replace_stay_inputs_as_they_are(body, mode):
    model = overridable(body, w=(6, 6), v=(6, 6))
    grown = oc.grow(model, "tensor:r", {"x": normal(300, 6)}, candidates=13)
    assert grown.site.mode == mode
    assert list(grown.model.graph.input) == list(model.graph.input)
    assert all(tensor in grown.model.graph.initializer for tensor in model.graph.initializer)
    assert any("no longer follow" in warning for warning in grown.warnings) == (mode == "replace")
    if mode == "block":
        assert "the caller may replace" in grown.site.why_block


def test_what_a_caller_may_replace_bounds_nothing():
    model = overridable("h = MatMul(x, w) y = Max(h, k)", w=(6, 6), k=0.0)
    assert bounds(GraphIndex.of(model), "y") == (-np.inf, np.inf)
    fixed = model_of("h = MatMul(x, w) y = Max(h, k)", w=(6, 6), k=0.0)
    assert bounds(GraphIndex.of(fixed), "y") == (0.0, np.inf)


def test_two_sites_with_one_target_are_each_measured_on_their_own_axis():
    body = "r = Relu(x) p = MatMul(w, r) y = Add(p, b)"
    shapes = {"inputs": "float[N, 5, 4] x", "outputs": "float[N, 3, 4] y"}
    model = model_of(body, **shapes, w=(3, 5), b=np.linspace(-9, 9, 3)[:, None])
    x = normal(300, 5, 4)
    alone = oc.grow(model, "tensor:r", {"x": x}, candidates=4).site_error
    both = oc.grow(model, ["tensor:r", "tensor:y"], {"x": x}, candidates=4)
    found = {entry.site.tensor: entry.site_error for entry in both.sites}
    assert found["r"] == pytest.approx(alone, rel=1e-3)


def test_a_later_site_keeps_the_activation_that_was_planned():
    body = "c = Conv(x, w) r = Elu(c) p = GlobalAveragePool(r) q = Conv(p, v) y = Add(q, r)"
    shapes = {"inputs": "float[N, 3, 4, 4] x", "outputs": "float[N, 5, 4, 4] y"}
    model = model_of(body, **shapes, w=normal(5, 3, 1, 1), v=normal(5, 5, 1, 1))
    grown = oc.grow(model, ["tensor:r", "tensor:p"], {"x": normal(400, 3, 4, 4)})
    assert [entry.activation.name for entry in grown.sites] == ["elu", "elu"]


@pytest.mark.parametrize(("training", "warned"), [(True, True), (False, False)])
def test_a_dropout_that_trains_is_warned_of(training, warned):
    body = "h = MatMul(x, w) d = Dropout(h, k, m) r = Relu(d) y = MatMul(r, v)"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 6] y) {{ {body} }}'
    model = parser.parse_model(text)
    for name, value in (
        ("w", normal(6, 6)),
        ("v", normal(6, 6)),
        ("k", np.float32(0.5)),
        ("m", np.array(training)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    grown = oc.grow(model, "tensor:r", {"x": normal(300, 6)})
    assert any("Dropout" in warning for warning in grown.warnings) == warned
