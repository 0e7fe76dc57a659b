"""Measures against plain numpy, on models whose outputs are chosen."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_compnet as oc

RNG = np.random.default_rng(0)


def linear(w, b, dtype=TensorProto.FLOAT, name="y"):
    """y = x·w + b."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Add", ["p", "b"], [name], "sum"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", w.shape[0]])],
        [helper.make_tensor_value_info(name, dtype, ["N", w.shape[1]])],
        [
            numpy_helper.from_array(w.astype(np.float32), "w"),
            numpy_helper.from_array(b.astype(np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_measures_are_their_definitions():
    w, b = RNG.normal(size=(4, 3)), np.array([100.0, 0.0, -50.0])
    other = w + 0.01 * RNG.normal(size=w.shape)
    x = RNG.normal(size=(333, 4)).astype(np.float32)
    verdict = oc.verify(linear(w, b), linear(other, b), {"x": x}, max_rel_error=None, min_agreement=None)
    parent, child = x.astype(np.float64) @ w + b, x.astype(np.float64) @ other + b
    c = verdict.outputs["y"]
    assert verdict
    assert verdict.samples == 333
    assert c.elements == 999
    assert c.max_abs == pytest.approx(np.abs(child - parent).max(), rel=1e-3)
    assert c.rel_error == pytest.approx(
        np.linalg.norm(child - parent) / np.linalg.norm(parent - parent.mean()), rel=1e-3
    )
    assert c.cosine == pytest.approx(
        (child * parent).sum() / np.linalg.norm(child) / np.linalg.norm(parent), abs=1e-9
    )
    assert c.agreement == np.mean(child.argmax(-1) == parent.argmax(-1))


def test_a_model_is_itself():
    model = linear(RNG.normal(size=(4, 3)), np.zeros(3))
    verdict = oc.verify(model, model, "random:20", rtol=0.0, atol=0.0)
    c = verdict.outputs["y"]
    assert (c.max_abs, c.rel_error, c.agreement) == (0.0, 0.0, 1.0)
    assert verdict.random_data


@pytest.mark.parametrize(
    ("gate", "value", "word"),
    [
        ("max_rel_error", 1e-9, "relative error"),
        ("min_agreement", 1.0, "agreement"),
        ("rtol", 1e-9, "atol"),
        ("atol", 1e-9, "atol"),
    ],
)
def test_each_gate_fails_alone(gate, value, word):
    w = RNG.normal(size=(4, 3))
    gates = {"max_rel_error": None, "min_agreement": None, gate: value}
    x = RNG.normal(size=(500, 4)).astype(np.float32)
    verdict = oc.verify(linear(w, np.zeros(3)), linear(w + 0.1, np.arange(3)), {"x": x}, **gates)
    assert not verdict
    assert len(verdict.failures) == 1
    assert word in verdict.failures[0]


def test_tolerances_are_elementwise():
    w, b = np.eye(3), np.zeros(3)
    x = np.array([[1.0, 2.0, 300.0]] * 5, np.float32)
    relaxed = {"max_rel_error": None, "min_agreement": None}
    assert oc.verify(linear(w, b), linear(w * 1.001, b), {"x": x}, rtol=2e-3, **relaxed)
    assert not oc.verify(linear(w, b), linear(w * 1.001, b), {"x": x}, atol=0.1, **relaxed)
    assert oc.verify(linear(w, b), linear(w * 1.001, b), {"x": x}, atol=0.4, **relaxed)


def test_one_column_has_no_agreement():
    verdict = oc.verify(
        linear(RNG.normal(size=(4, 1)), np.zeros(1)), linear(np.ones((4, 1)), np.zeros(1)), "random:9"
    )
    assert verdict.outputs["y"].agreement is None


def test_a_child_that_turns_infinite_fails_without_any_gate():
    w = RNG.normal(size=(4, 3))
    bad = w.copy()
    bad[0, 0] = np.inf
    verdict = oc.verify(
        linear(w, np.zeros(3)), linear(bad, np.zeros(3)), "random:9", max_rel_error=None, min_agreement=None
    )
    assert not verdict
    assert "finite" in verdict.failures[0]


def test_minus_infinity_in_both_is_a_mask_and_passes():
    w, b = RNG.normal(size=(4, 3)), np.array([0.0, -np.inf, 0.0])
    verdict = oc.verify(linear(w, b), linear(w, b), "random:9")
    assert verdict
    assert verdict.outputs["y"].rel_error == 0


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_another_value_that_is_not_finite_fails(value):
    w, b = RNG.normal(size=(4, 3)), np.array([0.0, -np.inf, 0.0])
    other = np.array([0.0, value, 0.0])
    verdict = oc.verify(linear(w, b), linear(w, other), "random:9", max_rel_error=None, min_agreement=None)
    assert not verdict
    assert "infinity" in verdict.failures[0]


@pytest.mark.parametrize("level", [0.3, -1e6, 1e-6])
def test_constant_output_that_is_met_to_rounding_has_no_error(level):
    """The mean of equal numbers need not equal them: what is left of the spread is no scale."""
    w, b = np.zeros((4, 3)), np.full(3, level)
    x = np.zeros((1000, 4), np.float32)
    met = oc.verify(linear(w, b), linear(w, b * (1 + 1e-7)), {"x": x}, batch_size=7)
    assert met
    assert met.outputs["y"].rel_error == 0
    missed = oc.verify(linear(w, b), linear(w, b * (1 + 1e-4)), {"x": x}, batch_size=7)
    assert missed.outputs["y"].rel_error == np.inf


def test_constant_output_that_moves_is_infinitely_wrong():
    w = np.zeros((4, 3))
    assert oc.verify(linear(w, np.ones(3)), linear(w, np.ones(3)), "random:9")
    moved = oc.verify(linear(w, np.ones(3)), linear(w, np.ones(3) * 1.5), "random:9", min_agreement=None)
    assert not moved
    assert moved.outputs["y"].rel_error == np.inf


def test_other_outputs_are_not_comparable():
    w = RNG.normal(size=(4, 3))
    with pytest.raises(oc.VerificationError, match="different outputs"):
        oc.verify(linear(w, np.zeros(3)), linear(w, np.zeros(3), name="z"), "random:9")


def test_other_shapes_are_not_comparable():
    w = RNG.normal(size=(4, 3))
    with pytest.raises(oc.VerificationError, match="shapes differ"):
        oc.verify(linear(w, np.zeros(3)), linear(np.ones((4, 5)), np.zeros(5)), "random:9")
