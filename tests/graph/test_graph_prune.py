from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_tools import build, feeds_for, run
from graph_zoo import OTHERS, conv

from onnx_compnet.errors import UsageError
from onnx_compnet.graph.prune import prefix, with_outputs


def test_a_prefix_holds_what_its_tensors_need_and_no_more():
    parent = OTHERS["several_readers"]()
    before = parent.SerializeToString(deterministic=True)
    part = prefix(parent, ["b", "t"])
    onnx.checker.check_model(part, full_check=True)
    assert [item.name for item in part.graph.output] == ["b", "t"]
    assert [node.output[0] for node in part.graph.node] == ["h", "t", "b"]
    assert [tensor.name for tensor in part.graph.initializer] == ["w0", "wb"]
    feeds = feeds_for(parent)
    got, whole = run(part, feeds), run(with_outputs(parent, ["t"]), feeds)
    for name in ("b", "t"):
        np.testing.assert_array_equal(got[name], whole[name])
    assert parent.SerializeToString(deterministic=True) == before


def test_inputs_that_are_not_needed_are_gone():
    parent = build(
        "g (float[N,4] x, float[N,4] z) => (float[N,4] y) { a = Relu(x) b = Neg(z) y = Add(a, b) }",
    )
    assert [item.name for item in prefix(parent, ["b"]).graph.input] == ["z"]


def test_a_graph_input_can_be_an_output_under_its_own_name():
    parent = conv(1)
    for model in (prefix(parent, ["x", "c"]), with_outputs(parent, ["x"])):
        onnx.checker.check_model(model)
        feeds = feeds_for(parent)
        np.testing.assert_array_equal(run(model, feeds)["x"], feeds["x"])


def test_what_bodies_and_functions_need_stays():
    parent = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
        "g (bool c, float[N] x, float[N] unused) => (float[N] y, float[N] z) { a = Relu(x) b = local.f(a) s = Exp(x)"
        " y = If(c) < then_branch = p () => (float[N] q) { q = Add(b, s) },"
        " else_branch = r () => (float[N] t) { t = Identity(s) }>"
        " z = local.h(unused) }"
        '<domain: "local", opset_import: ["": 17, "local": 1]> f (u) => (v) { v = local.g(u) }'
        '<domain: "local", opset_import: ["": 17]> g (u) => (v) { v = Neg(u) }'
        '<domain: "local", opset_import: ["": 17]> h (u) => (v) { v = Abs(u) }'
    )
    part = prefix(parent, ["y"])
    assert [item.name for item in part.functions] == ["f", "g"]
    assert [item.name for item in part.graph.input] == ["c", "x"]
    assert len(part.graph.node) == 4
    feeds = {"c": np.array(True), "x": np.array([1.0, -2.0], np.float32)}
    expected = run(parent, {**feeds, "unused": feeds["x"]})["y"]
    np.testing.assert_array_equal(run(part, feeds)["y"], expected)


def test_ir_3_initialisers_stay_inputs():
    part = prefix(OTHERS["ir3"](), ["t"])
    assert [item.name for item in part.graph.input] == ["x", "w0"]
    onnx.checker.check_model(part)


def test_outputs_carry_their_types():
    part = prefix(conv(2), ["c"])
    kind = part.graph.output[0].type.tensor_type
    assert kind.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value for d in kind.shape.dim][1:] == [4, 7, 7]


def test_with_outputs_keeps_the_model_and_skips_its_outputs():
    parent = conv(2)
    more = with_outputs(parent, ["y", "t", "c", "t"])
    assert [item.name for item in more.graph.output] == ["y", "t", "c"]
    assert list(more.graph.node) == list(parent.graph.node)
    assert list(more.graph.initializer) == list(parent.graph.initializer)
    assert with_outputs(parent, []) == parent


def test_unknown_tensors_are_refused():
    with pytest.raises(UsageError, match="no tensor 'nowhere'"):
        prefix(conv(1), ["nowhere"])
    with pytest.raises(UsageError, match="at least one"):
        prefix(conv(1), [])
    with pytest.raises(UsageError, match="no tensor 'nowhere'"):
        with_outputs(conv(1), ["nowhere"])
