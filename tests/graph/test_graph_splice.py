from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_tools import PAIRS, as_type, build, check_accounted, feeds_for, pair_layers, rename, replaced, run
from graph_zoo import CONVS, FLATTENINGS, GEMMS, MATMULS, OTHERS, WITH_SITES, conv, gemm, matmul
from onnx import numpy_helper

from onnx_compnet.errors import UnsupportedError, UsageError, VerificationError
from onnx_compnet.graph import model_io
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.sites import find_sites
from onnx_compnet.graph.splice import splice
from onnx_compnet.graph.weights import reader_weights
from onnx_compnet.layers import Activation, ReaderWeights


def _site(model, tensor="t"):
    return next(site for site in find_sites(model) if site.tensor == tensor)


def _agree(parent, child, tolerance=1e-6):
    feeds = feeds_for(parent)
    before, after = run(parent, feeds), run(child, feeds)
    assert list(before) == list(after)
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert after[name].shape == expected.shape
        np.testing.assert_allclose(after[name], expected, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", WITH_SITES)
def test_a_layer_that_must_not_change_the_function_does_not(name):
    parent = WITH_SITES[name]()
    before = parent.SerializeToString(deterministic=True)
    for site in find_sites(parent):
        spliced = splice(parent, site, pair_layers(parent, site), "here")
        model_io.check(spliced.model, parent)
        _agree(parent, spliced.model, 1e-6 if "float64" not in name else 1e-13)
        kept = site.mode == "replace" or site.tensor not in GraphIndex.of(parent).inputs
        assert not kept or spliced.targets == tuple((r.output, r.output) for r in site.linear)
        check_accounted(spliced.model)
    assert parent.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("activation", PAIRS)
@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_activations_of_the_new_layer(activation, opset):
    for parent in (conv(2, opset=opset), gemm(c="vector", opset=opset), matmul(3, "right", opset=opset)):
        site = _site(parent)
        child = splice(parent, site, pair_layers(parent, site, activation), "a").model
        model_io.check(child)
        _agree(parent, child, 3e-6)
        assert next(s for s in find_sites(child) if len(s.readers) == 1 and s.readers == site.readers)


def test_the_slopes_of_a_prelu_lie_on_the_channels():
    parent = gemm("<transA=1>", "vector")
    site = _site(parent)
    child = splice(parent, site, pair_layers(parent, site, "prelu"), "a").model
    slope = next(t for t in child.graph.initializer if t.name.endswith("slope"))
    assert list(slope.dims) == [8, 1]
    _agree(parent, child)
    parent = conv(3)
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent), "prelu"), "a").model
    assert [8, 1, 1, 1] in [list(tensor.dims) for tensor in child.graph.initializer]


@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
def test_kernels_of_any_size_keep_the_spatial_shape(kernel):
    parent = conv(2)
    layers = pair_layers(parent, _site(parent), kernel=kernel)
    child = splice(parent, _site(parent), layers, "k").model
    model_io.check(child)
    _agree(parent, child)


def test_the_child_can_be_grown_again_at_the_same_place():
    for make in (*CONVS.values(), *MATMULS.values(), *FLATTENINGS.values(), GEMMS["gemm_transB"]):
        parent = make()
        once = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "same").model
        twice = splice(once, _site(once), pair_layers(once, _site(once)), "same").model
        model_io.check(twice)
        _agree(parent, twice)
        assert any(node.name.startswith("compnet/same_2/") for node in twice.graph.node)
        behind = _site(twice, replaced(once)[1].tensor)
        third = splice(twice, behind, pair_layers(twice, behind), "same").model
        _agree(parent, third)


def test_all_sites_of_a_model_one_after_the_other():
    model = parent = OTHERS["attention"]()
    for tensor in [site.tensor for site in find_sites(parent)]:
        site = _site(model, tensor)
        model = splice(model, site, pair_layers(model, site), tensor).model
    assert sum(node.op_type == "Relu" for node in model.graph.node) == len(find_sites(parent))
    model_io.check(model)
    _agree(parent, model)


def _decorated():
    """A model with everything that an editor might lose."""
    model = build(
        "g (float[N,2,6,6] x) => (float[N,3] y, float[N,4,6,6] z) { h = Conv(x, w0) t = Relu(h) f = Flatten(t)"
        " [reader] y = Gemm<alpha=0.5, transB=1>(f, w, b) a = Conv(x, w0) z = com.microsoft.Gelu(a)"
        " unused = Neg(a) }",
        w0=(4, 2, 1, 1),
        w=(3, 144),
        b=(3,),
        never_read=(2, 2),
    )
    model = onnx.shape_inference.infer_shapes(model)
    model.doc_string, model.producer_name, model.domain, model.model_version = (
        "doc",
        "someone",
        "some.where",
        7,
    )
    model.metadata_props.add(key="k", value="v")
    graph = model.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="gk", value="gv")
    for position, node in enumerate(graph.node):
        node.doc_string = f"doc {position}"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=str(position))
        for item in node.attribute:
            item.doc_string = "attribute doc"
    graph.initializer[1].doc_string = "weight doc"
    graph.input[0].doc_string = "input doc"
    graph.output[0].metadata_props.add(key="ok", value="ov")
    annotation = graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.opset_import.add(domain="local", version=1)
    function = onnx.helper.make_function(
        "local",
        "f",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Neg", ["a"], ["b"])],
        [onnx.helper.make_opsetid("", 17)],
    )
    function.overload = "other"
    model.functions.append(function)
    return model


def test_everything_outside_the_edit_stays_byte_for_byte():
    parent = _decorated()
    site = next(s for s in find_sites(parent) if s.tensor == "t")
    child = splice(parent, site, pair_layers(parent, site), "here").model
    _agree(parent, child)
    for field in parent.DESCRIPTOR.fields_by_name:
        if field != "graph":
            assert getattr(child, field) == getattr(parent, field), field
    rewritten = {"w", "b"}
    for field in parent.graph.DESCRIPTOR.fields_by_name:
        if field not in ("node", "initializer", "value_info"):
            assert getattr(child.graph, field) == getattr(parent.graph, field), field
    old = [item for item in child.graph.initializer if not item.name.startswith("compnet/")]
    assert [item.name for item in old] == [item.name for item in parent.graph.initializer]
    for was, now in zip(parent.graph.initializer, old, strict=True):
        assert was.doc_string == now.doc_string
        assert (was == now) == (was.name not in rewritten) or was.name == "b"
    nodes = [node for node in child.graph.node if not node.name.startswith("compnet/")]
    for was, now in zip(parent.graph.node, nodes, strict=True):
        if was.op_type == "Flatten":
            assert now.input[0].startswith("compnet/here/")
            now.input[0] = "t"
        assert was == now
    infos = {item.name: item for item in child.graph.value_info}
    assert list(infos) == [item.name for item in parent.graph.value_info]
    for was in parent.graph.value_info:
        assert (infos[was.name] == was) == (was.name != "f")
    assert infos["f"].type.tensor_type.shape.dim[1].dim_value == 8 * 36


def test_new_nodes_stand_directly_in_front_of_the_first_reader():
    parent = OTHERS["several_readers"]()
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "here").model
    assert [node.name or node.output[0] for node in child.graph.node] == [
        *("h", "t", "compnet/here/Conv", "compnet/here/Relu", "a", "b", "f", "c"),
    ]


def test_weights_keep_their_names_and_holders():
    parent = OTHERS["constants"]()
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "here").model
    shapes = {tensor.name: list(tensor.dims) for tensor in child.graph.initializer}
    assert (shapes["w"], shapes["b"]) == ([6, 2], [2])
    assert [node.op_type for node in child.graph.node].count("Identity") == 3
    first = _site(parent, "x")
    child = splice(parent, first, pair_layers(parent, first), "here").model
    constants = {node.output[0]: node for node in child.graph.node if node.op_type == "Constant"}
    assert list(constants["c"].attribute[0].t.dims) == [8, 3]
    assert constants["cb"].attribute[0].name == "value"
    onnx.checker.check_model(child, full_check=True)


def test_a_shared_bias_stays_as_it_is():
    parent = OTHERS["shared_bias"]()
    for site in replaced(parent):
        layers = pair_layers(parent, site)
        moved = replace(layers, readers=tuple(ReaderWeights(r.W2, r.b2 + 1) for r in layers.readers))
        child = splice(parent, site, moved, "here").model
        values = {t.name: numpy_helper.to_array(t) for t in child.graph.initializer}
        np.testing.assert_array_equal(values["b"], numpy_helper.to_array(parent.graph.initializer[-1]))
        np.testing.assert_allclose(values["compnet/here/reader_0.bias"], values["b"] + 1)


def test_a_matmul_without_bias_gets_an_add_that_takes_over_its_output():
    parent = matmul(3)
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "here").model
    product, add = child.graph.node[-2:]
    assert (product.op_type, add.op_type, list(add.output)) == ("MatMul", "Add", ["y"])
    assert add.name.startswith("compnet/here/")
    assert product.output[0].startswith("compnet/here/")


def test_before_ir_4_initialisers_are_inputs():
    parent = OTHERS["ir3"]()
    site = _site(parent)
    child = splice(parent, site, pair_layers(parent, site), "here").model
    declared = {
        item.name: [d.dim_value for d in item.type.tensor_type.shape.dim] for item in child.graph.input
    }
    assert declared.keys() >= {tensor.name for tensor in child.graph.initializer}
    assert declared["w"] == [72, 3]
    assert [spec.name for spec in model_io.inputs(child)] == ["x"]
    onnx.checker.check_model(child)


def test_initialisers_that_are_inputs_by_choice_stay_as_they_are():
    parent = conv(2)
    for tensor in parent.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        parent.graph.input.append(info)
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "here").model
    assert list(child.graph.input) == list(parent.graph.input)
    held = {tensor.name: list(tensor.dims) for tensor in child.graph.initializer}
    assert (held["w"], held["compnet/here/reader_0.weight"]) == ([3, 4, 3, 3], [3, 8, 3, 3])
    model_io.check(child)
    _agree(parent, child)


@pytest.mark.parametrize("make", [GEMMS["gemm_alpha_beta"], GEMMS["gemm_transAB"], GEMMS["gemm_alpha_0"]])
def test_a_reader_computes_exactly_what_it_was_given(make):
    parent = make()
    site = _site(parent)
    layers = pair_layers(parent, site)
    rng = np.random.default_rng(0)
    wanted = ReaderWeights(
        rng.standard_normal(layers.readers[0].W2.shape).astype(np.float32),
        rng.standard_normal(3).astype(np.float32),
    )
    child = splice(parent, site, replace(layers, readers=(wanted,)), "here").model
    behind = next(s for s in find_sites(child) if s.readers == site.readers)
    got = reader_weights(GraphIndex.of(child), behind.linear[0])
    np.testing.assert_allclose(got.W2, wanted.W2, rtol=3e-7)
    np.testing.assert_allclose(got.b2, wanted.b2, rtol=3e-7)


def test_float16_models_get_float16_layers():
    parent = as_type(conv(1), onnx.TensorProto.FLOAT16)
    site = _site(parent)
    assert site.dtype == "float16"
    layers = pair_layers(parent, site)
    wide = replace(layers, layer=replace(layers.layer, W1=layers.layer.W1.astype(np.float64)))
    child = splice(parent, site, wide, "here").model
    assert {t.data_type for t in child.graph.initializer} == {onnx.TensorProto.FLOAT16}
    model_io.check(child)
    _agree(parent, child, 5e-3)
    huge = replace(
        layers, readers=(ReaderWeights(layers.readers[0].W2.astype(np.float64) * 1e9, layers.readers[0].b2),)
    )
    with pytest.raises(VerificationError, match="not finite in float16"):
        splice(parent, site, huge, "here")


def test_weights_that_are_not_finite_are_refused():
    parent = conv(1)
    layers = pair_layers(parent, _site(parent))
    layers.readers[0].b2[0] = np.nan
    with pytest.raises(VerificationError, match="finite"):
        splice(parent, _site(parent), layers, "here")


def test_layers_that_do_not_fit_are_refused():
    parent = conv(2)
    site, layers = _site(parent), pair_layers(parent, _site(parent))
    layer = layers.layer
    wrong = {
        "kind conv": replace(layers, layer=replace(layer, kind="gemm")),
        "W1 has the shape": replace(layers, layer=replace(layer, W1=layer.W1[:, :3])),
        "b1 has the shape": replace(layers, layer=replace(layer, b1=layer.b1[:3])),
        "1 readers": replace(layers, readers=()),
        "must be": replace(layers, readers=(ReaderWeights(layers.readers[0].W2[:-1], layers.readers[0].b2),)),
    }
    for words, item in wrong.items():
        with pytest.raises(UsageError, match=words):
            splice(parent, site, item, "here")
    with pytest.raises(UsageError, match="not one of this model"):
        splice(conv(1), site, layers, "here")
    with pytest.raises(UsageError, match="not one of this model"):
        splice(splice(parent, site, layers, "here").model, site, layers, "here")
    old = conv(1, opset=8)
    with pytest.raises(UnsupportedError, match="opset 8"):
        splice(old, _site(old), pair_layers(old, _site(old), "gelu"), "here")


def test_names_never_collide():
    parent = rename(conv(2), c="compnet/here/Conv_output", w0="compnet/here_2/Conv.weight")
    parent.graph.node[0].name = "compnet/here_3"
    child = splice(parent, _site(parent), pair_layers(parent, _site(parent)), "here").model
    assert child.graph.node[2].name == "compnet/here_4/Conv"
    _agree(parent, child)


def test_lenet_grown_everywhere_answers_to_the_same_names(lenet):
    model = lenet
    feeds = {
        model.graph.input[0].name: np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    }
    (expected,) = run(lenet, feeds).values()
    for name in ("conv1", "conv2", "fc1"):
        site = resolve(model, name)
        assert site.name == name
        model = splice(model, site, pair_layers(model, site), name).model
        model_io.check(model)
        check_accounted(model)
        assert resolve(model, name).tensor == site.tensor
    (got,) = run(model, feeds).values()
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert [node.name for node in model.graph.node if node.name.startswith("compnet/")]


def test_the_new_activation_is_found_again():
    parent = conv(2)
    site = _site(parent)
    layers = pair_layers(parent, site)
    layers = replace(layers, layer=replace(layers.layer, activation=Activation("elu", (0.5,))))
    child = splice(parent, site, layers, "here").model
    behind = next(s for s in find_sites(child) if s.readers == site.readers)
    assert behind.activation == Activation("elu", (0.5,))
    assert _site(child).activation == Activation("relu")
