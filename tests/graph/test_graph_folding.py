"""Constants behind other ops: their types without their values, and their values as ONNX defines them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_tools import agree, as_type, build, feeds_for, pair_layers, run
from onnx import numpy_helper
from reader_zoo import COMPUTED, TRANSPOSED

from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph import folding
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import find_sites
from onnx_compnet.graph.splice import splice
from onnx_compnet.graph.weights import constant_value, find_constant, integers, scalar


@pytest.mark.parametrize("name", [name for name in (*COMPUTED, *TRANSPOSED) if "sparse" not in name])
def test_a_constant_is_what_onnxruntime_makes_of_it(name):
    model = {**COMPUTED, **TRANSPOSED}[name]()
    reader = next(node for node in model.graph.node if "t" in node.input)
    index = GraphIndex.of(model)
    source = find_constant(index, reader.input[1])
    assert source is not None
    value = constant_value(index, source)
    assert (value.shape, value.dtype.name) == (source.dims, source.dtype)
    del model.graph.output[:], model.graph.input[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(source.name, 1, None))
    keep = [node for node in model.graph.node if set(node.output) <= index.constants]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    np.testing.assert_allclose(run(model, {})[source.name], value, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in COMPUTED if "sparse" in name])
def test_a_sparse_constant_has_zeros_elsewhere(name):
    index = GraphIndex.of(COMPUTED[name]())
    source = find_constant(index, "w")
    assert source is not None
    assert source.dims == (4, 3)
    np.testing.assert_array_equal(
        constant_value(index, source), [[2, 0, 0], [0, 0, -3], [0, 0, 0], [0, 0, 0]]
    )


def test_listing_reads_no_values(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a value was read")

    monkeypatch.setattr(folding, "_evaluate", forbidden)
    monkeypatch.setattr(folding, "held_value", forbidden)
    for name in ("cast", "dequantised", "dequantised_by_block", "product", "sparse"):
        assert any(site.tensor == "t" for site in find_sites(COMPUTED[name]()))


def test_a_constant_knows_where_it_is_held():
    index = GraphIndex.of(TRANSPOSED["conv_of_a_transpose"]())
    source = find_constant(index, "v")
    assert source is not None
    assert (source.name, source.tensor, source.node, source.path) == ("v", "w", None, (0, 1))
    assert (source.dims, source.dtype) == ((3, 4, 2, 3), "float32")


def test_bfloat16_constants_are_folded():
    model = as_type(
        build(
            "g (float[N,4] x) => (float[N,3] y) { v = Transpose(w) t = Relu(x) y = MatMul(t, v) }", w=(3, 4)
        ),
        onnx.TensorProto.BFLOAT16,
    )
    index = GraphIndex.of(model)
    source = find_constant(index, "v")
    assert source is not None
    assert source.dtype == constant_value(index, source).dtype.name == "bfloat16"


def test_small_constants_are_computed():
    index = GraphIndex.of(
        build(
            "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = double {0.5}>() b = Cast<to=1>(a)"
            " c = Constant<value = int64[2] {2,3}>() d = Constant<value = int64[1] {-1}>() e = Concat<axis=0>(c, d)"
            " r = RandomNormal<shape=[1]>() k = Abs(r) s = Sqrt(w) y = Mul(x, b) }",
            w=(2000,),
        )
    )
    assert scalar(index, "b") == 0.5
    assert integers(index, "e") == (2, 3, -1)
    assert integers(index, "b") is scalar(index, "e") is scalar(index, "k") is scalar(index, "x") is None
    assert find_constant(index, "k") is find_constant(index, "x") is None
    assert folding.fold_small(index, "s") is None
    assert folding.fold_small(index, "b") is folding.fold_small(index, "b")


def test_what_onnx_can_not_compute_is_no_small_constant_and_says_why(monkeypatch):
    model = build("g (float[N,4] x) => (float[N,4] y) { b = Neg(w) y = Mul(x, b) }", w=(1,))

    class Broken:
        def __init__(self, *_, **__):
            raise NotImplementedError("no implementation")

    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", Broken)
    index = GraphIndex.of(model)
    assert scalar(index, "b") is None
    source = find_constant(index, "b")
    assert source is not None
    with pytest.raises(UnsupportedError, match="fold it first"):
        constant_value(index, source)


def test_strings_and_unknown_shapes_are_no_weights():
    model = build(
        'g (float[N,4] x) => (float[N,4] y) { s = Constant<value_string = "a">() t = Relu(x) n = NonZero(w)'
        " v = Cast<to=1>(n) y = MatMul(t, v) }",
        w=(4, 4),
    )
    index = GraphIndex.of(model)
    assert find_constant(index, "s") is find_constant(index, "v") is None
    block = next(site for site in find_sites(model) if site.tensor == "t")
    assert "weight is computed by Cast 'v' from constants (fold them first" in block.why_block


def test_a_reshape_target_put_together_from_constants_is_rewritten():
    model = build(
        "g (float[2,4,3] x) => (float[2,5] y) { a = Constant<value = int64[1] {2}>()"
        " b = Constant<value = int64[1] {12}>() s = Concat<axis=0>(a, b) t = Relu(x) f = Reshape(t, s)"
        " y = Gemm(f, w) }",
        w=(12, 5),
    )
    site = next(site for site in find_sites(model) if site.tensor == "t")
    child = splice(model, site, pair_layers(model, site), "here").model
    targets = [numpy_helper.to_array(t).tolist() for t in child.graph.initializer if "shape" in t.name]
    assert targets == [[2, 24]]
    assert not {"Concat", "Constant"} & {node.op_type for node in child.graph.node}
    agree(run(model, feeds_for(model)), run(child, feeds_for(model)))
