"""Arguments of the Python interface: what is taken, and what is refused within the package's own errors."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_compnet as oc
from onnx_compnet.graph import provenance
from onnx_compnet.graph.names import resolve

X = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)


def model(second=None):
    w = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    v = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32) if second is None else second
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        helper.make_node("Gemm", ["b", "v"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", v.shape[1]])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_numbers_of_any_kind_are_numbers():
    grown = oc.grow(
        model(),
        "first",
        {"x": X},
        seed=np.int32(0),
        lam=np.float32(0.1),
        candidates=np.int64(8),
        holdout=np.float16(0.5),
    )
    again = oc.grow(model(), "first", {"x": X}, seed=0, lam=float(np.float32(0.1)), candidates=8, holdout=0.5)
    assert grown.model == again.model


def test_a_site_is_a_place():
    site = next(site for site in oc.find_sites(model()) if site.name == "first")
    grown = oc.grow(model(), site, {"x": X}, candidates=8)
    assert grown.site == site
    assert oc.grow(model(), [site], {"x": X}, candidates=8).model == grown.model
    block = resolve(model(), "first", "block")
    assert oc.grow(model(), block, {"x": X}).site.mode == "block"


@pytest.mark.parametrize(
    "bad",
    [
        {"lam": None}, {"alpha": None}, {"seed": None}, {"kernel": None}, {"holdout": None}, {"ridge": None},
        {"device": None}, {"device": 3}, {"batch_axis": "x=0"}, {"batch_axis": {"x": 0.5}}, {"shape": {"x": 5}},
        {"shape": [1, 2]}, {"scale": {1, 2}}, {"candidates": "8"}, {"lam": "0.1"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_values_are_value_errors(bad):
    with pytest.raises(oc.UsageError):
        oc.grow(model(), "first", {"x": X}, **bad)


@pytest.mark.parametrize("after", [None, 3, [], [None], b"conv1"], ids=str)
def test_no_place(after):
    with pytest.raises(oc.UsageError, match="say where to grow"):
        oc.grow(model(), after, {"x": X})


@pytest.mark.parametrize("parent", [None, b"bytes", 3], ids=str)
def test_no_model(parent):
    for function in (oc.find_sites, oc.refusals, lambda m: oc.grow(m, "first", {"x": X})):
        with pytest.raises(oc.UsageError, match="a model is a path"):
            function(parent)


@pytest.mark.parametrize(
    "bad", [{"batch_size": 2.5}, {"max_rel_error": "a"}, {"min_agreement": "x"}, {"seed": "a"}], ids=str
)
def test_bad_values_of_verify(bad):
    with pytest.raises(oc.UsageError):
        oc.verify(model(), model(), {"x": X}, **bad)


def test_what_was_measured_on_is_named():
    grown = oc.grow(model(), "first", {"x": X}, candidates=8, holdout_data="random:100")
    assert grown.random_data
    assert "400 samples, held out: random data" in grown.data
    assert any("random" in warning for warning in grown.warnings)
    assert provenance.read(grown.model)[0]["random_data"] is True


def test_nan_in_the_parents_output_is_not_agreement():
    broken = np.full((6, 3), np.nan, np.float32)
    assert not oc.verify(model(broken), model(broken), {"x": X})


def test_a_gate_that_no_output_answers_to_fails():
    one_column = np.ones((6, 1), np.float32)
    with pytest.raises(oc.VerificationError, match="class scores"):
        oc.grow(model(one_column), "first", {"x": X}, candidates=8, min_agreement=0.5)
    assert oc.verify(model(one_column), model(one_column), {"x": X})


def test_nothing_compared_is_no_agreement():
    parent = model()
    parent.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    parent.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["N", 3]))
    verdict = oc.verify(parent, parent, {"x": X})
    assert not verdict
    assert verdict.not_compared == ("s",)
    assert any("not compared" in w for w in oc.grow(parent, "first", {"x": X}, candidates=8).warnings)


def test_an_activation_that_the_opset_can_not_express_is_refused_before_the_work():
    old = model()
    old.opset_import[0].version = 8
    old.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    for node in (old.graph.node[0], old.graph.node[2]):
        node.input.append("zero")  # a Gemm of that age needs its third input
    with pytest.raises(oc.UnsupportedError, match="gelu"):
        oc.grow(old, "first", {"x": X}, activation="gelu")


def test_memory_that_the_allocator_refuses_is_a_resource_error(monkeypatch):
    """torch says so by a bare RuntimeError; any other RuntimeError stays what it is."""
    from onnx_compnet import posed

    def refuse(message):
        def collect(*_, **__):
            raise RuntimeError(message)

        monkeypatch.setattr(posed, "collect", collect)

    refuse("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with pytest.raises(oc.ResourceError, match="--candidates"):
        oc.grow(model(), "first", {"x": X})
    refuse("something else")
    with pytest.raises(RuntimeError, match="something else"):
        oc.grow(model(), "first", {"x": X})
