"""What can be a reader beyond the plain Conv, Gemm and MatMul: shared, computed and sparse weights, weights on
the left, ConvTranspose, channels last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_tools import (
    agree,
    as_type,
    build,
    check_accounted,
    check_site,
    feeds_for,
    pair_layers,
    rename,
    run,
)
from onnx import ModelProto, numpy_helper
from reader_zoo import (
    CHANNELS_LAST,
    COMPUTED,
    LEFT,
    READERS,
    SHARED,
    TRANSPOSED,
    conv_transpose,
    dequantised,
    left_gemm,
    left_matmul,
)

from onnx_compnet.graph import model_io
from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.sites import find_sites
from onnx_compnet.graph.splice import splice
from onnx_compnet.layers import Activation, ConvGeometry, DenseGeometry


def site_at(model: ModelProto, tensor: str = "t"):
    return next(site for site in find_sites(model) if site.tensor == tensor)


def initializers(model: ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize("name", READERS)
def test_a_layer_that_must_not_change_the_function_does_not(name, activation):
    parent = READERS[name]()
    onnx.checker.check_model(parent)
    before = parent.SerializeToString(deterministic=True)
    check_accounted(parent)
    assert site_at(parent)
    feeds = feeds_for(parent)
    if "c" in feeds:
        feeds["c"] = np.array(True)
    for site in find_sites(parent):
        child = check_site(parent, feeds, site, activation)
        again = splice(
            child, site_at(child, site.tensor), pair_layers(child, site_at(child, site.tensor)), "b"
        )
        agree(run(parent, feeds), run(again.model, feeds), 1e-4)
    assert parent.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_weight_stays_and_the_reader_gets_its_own(name):
    parent = SHARED[name]()
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent)), "here").model
    assert initializers(child)["w"] == initializers(parent)["w"]
    assert "compnet/here/reader_0.weight" in initializers(child)
    for was in parent.graph.node:
        if was.op_type != "If" and "t" not in was.input and "y" not in was.output:
            assert was in child.graph.node or was.output[0] in ("b", "v")  # an alias of the reader alone


def test_two_readers_of_a_site_that_share_a_weight_get_one_each_and_it_goes():
    parent = build(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { t = Relu(x) y = MatMul(t, w) z = MatMul(t, w) }",
        w=(4, 4),
    )
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent)), "here").model
    assert "w" not in initializers(child)
    assert {f"compnet/here/reader_{i}.weight" for i in (0, 1)} <= initializers(child).keys()
    agree(run(parent, feeds_for(parent)), run(child, feeds_for(parent)))


@pytest.mark.parametrize("name", [name for name in COMPUTED if "bias" not in name])
def test_what_computed_the_old_weight_is_gone(name):
    parent = COMPUTED[name]()
    site = site_at(parent)
    child = splice(parent, site, pair_layers(parent, site), "here").model
    assert [node.op_type for node in child.graph.node if not node.name.startswith("compnet/")] == [
        node.op_type for node in parent.graph.node if "t" in (*node.input, *node.output)
    ]
    assert all(name.startswith("compnet/") for name in initializers(child))
    assert not child.graph.sparse_initializer
    model_io.check(child, parent)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_identity_and_transpose_are_written_through(name):
    parent = TRANSPOSED[name]()
    site = site_at(parent)
    child = splice(parent, site, pair_layers(parent, site), "here").model
    stayed = [node.op_type for node in child.graph.node if not node.name.startswith("compnet/")]
    assert stayed == [
        node.op_type for node in parent.graph.node if node.op_type != "Relu" or "t" in node.output
    ]
    assert not any("reader_0.weight" in name for name in initializers(child))
    model_io.check(child, parent)


def test_declared_shapes_follow_a_weight_through_its_transpose():
    parent = onnx.shape_inference.infer_shapes(TRANSPOSED["conv_of_a_transpose"]())
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent)), "here").model
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in child.graph.value_info}
    assert (shapes["u"], shapes["v"]) == ([2, 3, 8, 3], [3, 8, 2, 3])


def test_what_was_dead_already_and_what_else_reads_a_part_of_the_way_stay():
    parent = build(
        "g (float[N,4] x) => (float[N,3] y, double[4,3] z) { v = Cast<to=11>(w) u = Cast<to=1>(v) n = Neg(dead)"
        " z = Neg(v) t = Relu(x) y = MatMul(t, u) }",
        w=(4, 3),
        dead=(2,),
    )
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent)), "here").model
    left = [node for node in child.graph.node if not node.name.startswith("compnet/")]
    assert left[:-1] == [node for node in parent.graph.node if node.output[0] not in ("u", "y")]
    assert {"w", "dead"} <= initializers(child).keys()


def test_an_initialiser_that_is_an_input_goes_with_its_input():
    parent = build(
        "g (float[N,4] x) => (float[N,3] y) { v = Cast<to=1>(w) t = Relu(x) y = MatMul(t, v) }",
        ir=3,
        opset=9,
        w=(4, 3),
    )
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent)), "here").model
    assert "w" not in {item.name for item in child.graph.input}
    assert [spec.name for spec in model_io.inputs(child)] == ["x"]
    onnx.checker.check_model(child)


def test_the_geometry_of_a_weight_on_the_left():
    site = site_at(left_matmul(3, "left"))
    assert (site.kind, site.channel_axis, site.channels, site.rank) == ("matmul", -2, 4, 3)
    assert site.linear[0].geometry == DenseGeometry(channel_axis=-2, output_axis=-2)
    assert (site.linear[0].weight_slot, site.linear[0].output) == (0, "y")
    site = site_at(left_matmul(2))
    assert (site.kind, site.channel_axis) == ("gemm", 0)
    site = site_at(left_gemm("<transB=1>"))
    assert (site.kind, site.channel_axis) == ("gemm", -1)
    assert site.linear[0].geometry == DenseGeometry(channel_axis=-1, output_axis=0)
    site = site_at(LEFT["both_sides_of_a_conv"]())
    assert (site.kind, site.channel_axis, site.spatial) == ("conv", 1, (5,))


def test_a_left_matmul_without_bias_gets_a_column():
    parent = left_matmul(3)
    child = splice(parent, site_at(parent), pair_layers(parent, site_at(parent), "prelu"), "here").model
    shapes = {name.split("/")[-1]: list(tensor.dims) for name, tensor in initializers(child).items()}
    assert shapes["reader_0.bias"] == [3, 1]
    assert shapes["MatMul.bias"] == shapes["prelu.slope"] == [8, 1]
    assert child.graph.node[-1].op_type == "Add"


def test_a_row_added_to_a_left_product_is_no_bias():
    parent = build(
        "g (float[N,4,3] x) => (float[N,3,3] y) { t = Relu(x) p = MatMul(w, t) y = Add(p, b) }",
        w=(3, 4),
        b=(3,),
    )
    assert (site_at(parent).linear[0].output, site_at(parent).linear[0].add_index) == ("p", None)


def test_the_geometry_of_a_conv_transpose():
    model = conv_transpose(2, "<strides=[2,3], pads=[1,0,2,1], output_padding=[1,2]>")
    site = site_at(model)
    assert (site.kind, site.channels, site.linear[0].features) == ("conv", 4, 3)
    assert site.linear[0].geometry == ConvGeometry(
        (3, 3), (2, 3), (1, 1), (1, 0, 2, 1), transposed=True, output_padding=(1, 2)
    )
    model = conv_transpose(1, "<output_shape=[2,3,9], strides=[2]>")
    assert site_at(model).linear[0].geometry.output_shape == (9,)


def test_channels_last_lead_to_the_tensor_in_front_of_the_next_conv():
    model = CHANNELS_LAST["keras"]()
    assert resolve(model, "conv1").tensor == "t"
    assert site_at(model).activation == Activation("relu")
    assert site_at(model).name == "conv1"


def test_a_transpose_that_leads_to_no_site_is_not_passed():
    model = build(
        "g (float[N,6,4] x) => (float[N,6,6] y) { [k] k = MatMul(x, w) kt = Transpose<perm=[0,2,1]>(k)"
        " y = MatMul(x, kt) }",
        w=(4, 4),
    )
    assert resolve(model, "k", "block").tensor == "k"


def test_a_shared_weight_means_all_that_read_it():
    model = rename(SHARED["two_layers"](), w="tied.weight")
    names = {site.tensor: site.name for site in find_sites(model)}
    assert len(set(names.values())) == len(names) == 3
    for tensor, name in names.items():
        assert resolve(model, name).tensor == tensor


def test_the_weight_of_a_dequantised_layer_names_it():
    model = rename(dequantised("Constant<value = float {0.1}>()"), q="fc.weight_quantized")
    model.graph.node[-2].output[0] = model.graph.node[-1].input[0] = "t"
    assert resolve(model, "fc", "block").tensor == "y"


def test_bfloat16_models_get_bfloat16_layers():
    for activation in ("relu", "celu", "thresholded_relu", "gelu"):
        floats = build(
            "g (float[N,4] x) => (float[N,3] y) { t = Relu(x) y = MatMul(t, w) }", opset=9, w=(4, 3)
        )
        parent = as_type(floats, onnx.TensorProto.BFLOAT16)
        site = site_at(parent)
        assert site.dtype == "bfloat16"
        layers = pair_layers(parent, site)
        layers = replace(layers, layer=replace(layers.layer, activation=Activation(activation)))
        child = splice(parent, site, layers, "here").model
        assert {t.data_type for t in child.graph.initializer} == {onnx.TensorProto.BFLOAT16}
        onnx.checker.check_model(child)
        casts = [node for node in child.graph.node if node.op_type == "Cast"]
        assert [node.attribute[0].i for node in casts] == [16] * (activation == "thresholded_relu")
    plain = splice(parent, site, pair_layers(parent, site), "here").model
    agree(run(floats, feeds_for(floats)), run(as_float(plain), feeds_for(floats)), 0.02)


def as_float(model: ModelProto) -> ModelProto:
    """A bfloat16 model in float32."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model
