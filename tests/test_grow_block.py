"""Mode block: a layer behind any tensor, whatever reads it; exact where the activation allows it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

import onnx_compnet as oc
from onnx_compnet.numerics.initialise import EXACT_PAIRS

RESIDUAL = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y, float[N, 6, 8, 8] sum) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        sum = Add (a, x)
        r = Relu (sum)
        b = Conv <pads = [1, 1, 1, 1]> (r, w2)
        y = Add (b, r)
    }
"""
TRANSFORMER = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 5, 8] x) => (float[N, 5, 8] y) {
        q = MatMul (x, w1)
        k = MatMul (x, w2)
        kt = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, kt)
        p = Softmax <axis = -1> (s)
        y = MatMul (p, x)
    }
"""
BODY = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 6] x, bool flag) => (float[N, 6] y) {
        h = Gemm (x, w1)
        y = If (flag) <
            then_branch = t () => (float[N, 6] u) { u = Relu (h) },
            else_branch = e () => (float[N, 6] v) { v = Sigmoid (h) }
        >
    }
"""


def model_of(text, **shapes):
    """A model from its text, with normal initialisers."""
    model = parser.parse_model(text)
    for number, (name, shape) in enumerate(shapes.items()):
        values = np.random.default_rng(number).normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def residual():
    return model_of(RESIDUAL, w1=(6, 6, 3, 3), w2=(6, 6, 3, 3))


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def relative(child, parent):
    return max(
        np.linalg.norm(a - b) / np.linalg.norm(b - b.mean()) for a, b in zip(child, parent, strict=True)
    )


def normal(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("activation", sorted(EXACT_PAIRS - {"clip"}))
@pytest.mark.parametrize("tensor", ["x", "a", "sum", "r", "b", "y"])
def test_a_block_with_its_exact_set_keeps_the_function(tensor, activation):
    model, x = residual(), normal(40, 6, 8, 8)
    grown = oc.grow(model, tensor, {"x": x}, mode="block", activation=activation, lam=1e-6)
    assert grown.site.mode == "block"
    assert grown.site_error < 1e-5
    assert relative(run(grown.model, {"x": x}), run(model, {"x": x})) < 1e-5


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softsign", "elu", "mish", "selu", "celu"])
def test_other_activations_are_nearly_linear_at_the_start(activation):
    model, x = residual(), normal(40, 6, 8, 8)
    grown = oc.grow(model, "sum", {"x": x}, mode="block", activation=activation, lam=1e-6)
    assert grown.site_error < 0.02


@pytest.mark.parametrize("seed", [3, 4, 8, 12])
def test_a_tensor_of_rare_large_values_is_kept_as_well(seed):
    """Rounding makes the exact weights look wrong by 1e-3 and more there: they must not be corrected."""
    text = "g (float[N, 3, 2] x) => (float[N, 3, 2] y, float[N, 3, 2] z) { h = Relu (x) t = MatMul (h, w) "
    text += "y = Sigmoid (t) z = Tanh (t) }"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weight = np.array([[-0.5, 0.6], [-1.6, 0.3]], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    x = (1.5 * np.random.default_rng(seed).standard_normal((250, 3, 2)) - 3).astype(np.float32)
    assert oc.grow(model, "t", {"x": x}, mode="block", activation="silu").site_error < 1e-5


def test_a_block_is_compact_when_asked_to_be():
    model, x = residual(), normal(60, 6, 8, 8)
    sizes = [len(oc.grow(model, "r", {"x": x}, mode="block", keep=keep).kept) for keep in (12, 5)]
    assert sizes[1] <= 5 < sizes[0] <= 12


def test_attention_takes_a_block_on_its_last_axis():
    model, x = model_of(TRANSFORMER, w1=(8, 8), w2=(8, 8)), normal(300, 5, 8)
    for tensor in ("q", "k", "y"):
        grown = oc.grow(model, tensor, {"x": x}, mode="block", activation="gelu", lam=1e-6)
        assert grown.site.kind == "matmul"
        assert relative(run(grown.model, {"x": x}), run(model, {"x": x})) < 1e-4


def test_bodies_read_the_block():
    model, x = model_of(BODY, w1=(6, 6)), normal(400, 6)
    feeds = {"x": x, "flag": np.array(True)}
    grown = oc.grow(model, "h", feeds, mode="block", lam=1e-6)
    assert grown.site.readers == (model.graph.node[-1].output[0],)
    for flag in (True, False):
        feeds["flag"] = np.array(flag)
        assert relative(run(grown.model, feeds), run(model, feeds)) < 1e-4


@pytest.mark.parametrize("tensor", ["x", "a", "sum", "y"])
def test_everything_else_stays_byte_for_byte(tensor):
    model, x = residual(), normal(40, 6, 8, 8)
    for node in model.graph.node:
        node.doc_string = f"about {node.op_type}"
    child = oc.grow(model, tensor, {"x": x}, mode="block", lam=1e-6).model
    assert list(child.graph.input) == list(model.graph.input)
    assert list(child.graph.output) == list(model.graph.output)
    assert list(child.graph.initializer)[:2] == list(model.graph.initializer)
    old = [node for node in child.graph.node if not node.name.startswith("compnet/")]
    assert len(old) == len(model.graph.node)
    changed = [a for a, b in zip(old, model.graph.node, strict=True) if a != b]
    if tensor == "x":  # an input keeps its name, so what reads it has to change
        assert all("x" in b.input for a, b in zip(old, model.graph.node, strict=True) if a != b)
    else:
        assert [node.doc_string for node in changed] == [f"about {changed[0].op_type}"]
        assert changed[0].output[0].startswith("compnet/")


def test_two_blocks_and_a_replaced_reader_of_one_model():
    model, x = residual(), normal(60, 6, 8, 8)
    grown = oc.grow(model, ["a", "sum"], {"x": x}, mode="block", lam=1e-6)
    assert [entry.site.tensor for entry in grown.sites] == ["a", "sum"]
    again = oc.grow(grown.model, "sum", {"x": x}, mode="block", lam=1e-6)
    assert relative(run(again.model, {"x": x}), run(model, {"x": x})) < 1e-3


def test_replace_is_refused_there_with_a_hint():
    with pytest.raises(oc.UnsupportedError, match=r"read by Add .*mode block can grow there"):
        oc.grow(residual(), "r", {"x": normal(40, 6, 8, 8)}, mode="replace")


def test_auto_takes_replace_where_it_is_possible_and_a_block_elsewhere():
    text = RESIDUAL.replace("b = Conv <pads = [1, 1, 1, 1]> (r, w2)", "s = Tanh (r) b = Conv (s, w2)")
    model, x = model_of(text, w1=(6, 6, 3, 3), w2=(6, 6, 1, 1)), normal(40, 6, 8, 8)
    modes = {name: oc.grow(model, name, {"x": x}).site.mode for name in ("s", "r", "sum", "y")}
    assert modes == {"s": "replace", "r": "block", "sum": "block", "y": "block"}


@pytest.mark.parametrize(
    ("text", "tensor", "reason"),
    [
        (
            "g (float[N, 4, C] x) => (float[N, 4, C] y) { h = Relu (x) y = Sigmoid (h) }",
            "h",
            "no fixed number",
        ),
        ("g (float[7] x) => (float[7] y) { h = Relu (x) y = Sigmoid (h) }", "h", "has 1 axes"),
        (
            "g (float[N, 4] x) => (int64[N, 4] y) { h = Cast <to = 7> (x) y = Neg (h) }",
            "h",
            "is int64, not float32",
        ),
    ],
    ids=["channels", "rank", "type"],
)
def test_a_block_is_refused_with_the_reason(text, tensor, reason):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    with pytest.raises(oc.UnsupportedError, match=reason):
        oc.grow(model, tensor, "random:40", mode="block", shape={"x": (2, 3, 4)})


def test_too_few_candidates_for_the_exact_set_are_filled_up():
    grown = oc.grow(residual(), "sum", {"x": normal(40, 6, 8, 8)}, mode="block", candidates=7)
    assert grown.candidates == len(grown.kept) == 12
    assert any("12 candidates" in warning for warning in grown.warnings)


def test_where_the_activation_is_linear_on_the_tensor_the_core_is_as_narrow():
    model, x = residual(), normal(40, 6, 8, 8)
    assert oc.grow(model, "r", {"x": x}, lam=0.9).kept == tuple(range(6))
    assert oc.grow(model, "r", {"x": x}, lam=0.9, activation="gelu").kept == tuple(range(12))


def test_a_channel_that_the_data_leaves_dead_keeps_its_core():
    model, x = residual(), normal(60, 6, 8, 8)
    dead = x.copy()
    dead[:, 2] = -100.0
    for keep in (None, 6):
        grown = oc.grow(model, "r", {"x": dead}, keep=keep)
        assert relative(run(grown.model, {"x": x}), run(model, {"x": x})) < 1e-5


def test_all_convs_grows_behind_each_and_says_what_it_left_out():
    text = RESIDUAL.replace("b = Conv <pads = [1, 1, 1, 1]> (r, w2)", "s = Tanh (r) b = Conv (s, w2)")
    model, x = model_of(text, w1=(6, 6, 3, 3), w2=(6, 6, 1, 1)), normal(80, 6, 8, 8)
    grown = oc.grow(model, "all-convs", {"x": x})
    assert [(entry.site.tensor, entry.site.mode) for entry in grown.sites] == [("a", "block"), ("b", "block")]
    assert relative(run(grown.model, {"x": x}), run(model, {"x": x})) < 1e-5
    grown = oc.grow(model, ["s", "all-convs"], {"x": x}, mode="auto")
    assert [entry.site.tensor for entry in grown.sites] == ["a", "s", "b"]
    with pytest.raises(oc.UnsupportedError, match=r"all-convs.*read by Add"):
        oc.grow(model, "all-convs", {"x": x}, mode="replace")
    with pytest.raises(oc.UnsupportedError, match="it has no Conv"):
        oc.grow(model_of(TRANSFORMER, w1=(8, 8), w2=(8, 8)), "all-convs", {"x": normal(20, 5, 8)})


def test_all_convs_takes_what_can_be_solved_anew_first():
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 2] y) {
            a = Conv (x, w1)
            r = Relu (a)
            b = Conv (r, w2)
            c = Softmax <axis = 1> (b)
            f = Flatten (c)
            y = Gemm (f, w3)
        }
    """
    model, x = model_of(text, w1=(4, 3, 3, 3), w2=(5, 4, 3, 3), w3=(80, 2)), normal(200, 3, 8, 8)
    grown = oc.grow(model, "all-convs", {"x": x}, mode="replace", candidates=6)
    assert [(entry.site.tensor, entry.site.mode) for entry in grown.sites] == [("r", "replace")]
    assert any("'b' is read by Softmax" in warning for warning in grown.warnings)
    grown = oc.grow(model, "all-convs", {"x": x}, candidates=6)
    assert [(e.site.tensor, e.site.mode) for e in grown.sites] == [("r", "replace"), ("b", "block")]
