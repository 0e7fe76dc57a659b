from __future__ import annotations

import dataclasses

import onnx
import pytest
from graph_tools import build, check_accounted, replaced, why_not, with_weights
from graph_zoo import COMPUTED_TARGET, FLATTENINGS, OTHERS, REFUSED, WITH_SITES, conv, flattened, gemm, matmul

from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.sites import find_sites, refusals
from onnx_compnet.layers import Activation, ConvGeometry, DenseGeometry


@pytest.mark.parametrize("name", WITH_SITES)
def test_every_linear_node_is_a_reader_or_refused(name):
    model = WITH_SITES[name]()
    before = model.SerializeToString(deterministic=True)
    check_accounted(model)
    assert find_sites(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_or_a_block_says_why(name):
    make, words = REFUSED[name]
    model = make()
    check_accounted(model)
    assert any(words in reason for reason in why_not(model)), why_not(model)


@pytest.mark.parametrize("name", WITH_SITES)
def test_a_sites_name_and_tensor_resolve_to_it(name):
    model = WITH_SITES[name]()
    for site in find_sites(model):
        assert resolve(model, site.name) == site
        assert resolve(model, site.tensor) == site


def _site(model, tensor="t"):
    return next(site for site in find_sites(model) if site.tensor == tensor)


def test_a_conv_site():
    site = _site(conv(2, "<strides=[2,1], pads=[0,1,2,3], dilations=[1,2]>"))
    assert (site.kind, site.channels, site.channel_axis, site.rank) == ("conv", 4, 1, 4)
    assert (site.spatial, site.dtype, site.mode, site.max_taps) == ((7, 7), "float32", "replace", 9)
    assert site.linear[0].geometry == ConvGeometry((3, 3), (2, 1), (1, 2), (0, 1, 2, 3))
    assert (site.readers, site.linear[0].output, site.linear[0].features) == (("y",), "y", 3)


def test_a_dense_site_is_gemm_where_it_has_two_axes_and_matmul_elsewhere():
    assert _site(gemm("<transB=1>")).kind == "gemm"
    assert _site(matmul(2)).kind == "gemm"
    site = _site(matmul(4, "left"))
    assert (site.kind, site.rank, site.channel_axis, site.spatial) == ("matmul", 4, -1, ())
    assert (site.linear[0].output, site.linear[0].add_index) == ("y", 3)
    assert site.linear[0].geometry == DenseGeometry()


def test_a_gemm_with_trans_a_contracts_the_first_axis():
    site = _site(gemm("<transA=1>"))
    assert (site.channel_axis, site.channels) == (0, 4)
    assert site.linear[0].geometry == DenseGeometry(channel_axis=0)


@pytest.mark.parametrize("name", FLATTENINGS)
def test_both_sides_of_a_flatten_are_sites(name):
    model = FLATTENINGS[name]()
    spatial, flat = _site(model), _site(model, "f")
    taps = 1 if "squeeze" in name or name == "reshape_0_0" else 9
    assert spatial.linear[0].geometry == DenseGeometry(channel_axis=1, taps=taps, flattened=True)
    assert (spatial.kind, spatial.channels, spatial.rank) == ("conv", 4, 4)
    assert (flat.kind, flat.channels, flat.rank) == ("gemm", 4 * taps, 2)
    assert flat.linear[0].between == ()
    assert {model.graph.node[i].op_type for i in spatial.linear[0].between} <= {
        "Flatten",
        "Reshape",
        "Squeeze",
    }


@pytest.mark.parametrize(
    "how",
    [
        "f = Flatten<axis=2>(t)",  # the channels among the rows
        "s = Constant<value = int64[2] {-1,36}>() u = Reshape(t, s) f = Neg(u)",
        "ax = Constant<value = int64[2] {2,3}>() s = Constant<value = int64[2] {-1,36}>() f = Reshape(t, s)"
        " z = Neg(t)",
        "m = Constant<value = int64[1] {-1}>() n = Size(x) o = Reshape(n, m) s = Concat<axis=0>(o, m)"
        " f = Reshape(t, s)",
        "s = Constant<value = int64[2] {0,36}>() f = Reshape<allowzero=1>(t, s)",
    ],
)
def test_a_reshape_that_is_not_known_to_flatten_is_not_looked_through(how):
    model = flattened(how)
    check_accounted(model)
    assert "t" not in {site.tensor for site in replaced(model)}


def test_a_tensor_of_more_axes_than_a_conv_has_is_grown_behind_its_flatten():
    model = build(
        "g (float[N,2,1,2,1,2] x) => (float[N,3] y) { t = Relu(x) f = Flatten(t) y = Gemm(f, w) }", w=(8, 3)
    )
    check_accounted(model)
    assert [site.tensor for site in replaced(model)] == ["f"]


def test_a_shape_op_reads_no_values():
    model = flattened(COMPUTED_TARGET)
    assert any(node.op_type == "Shape" and node.input[0] == "t" for node in model.graph.node)
    assert _site(model).channels == 4


def test_symbolic_spatial_sizes_are_divided_by_the_weight():
    model = build(
        "g (float[N,2,H,W] x) => (float[N,3] y) { t = Conv(x, w0) f = Flatten(t) y = Gemm(f, w) }",
        w0=(4, 2, 1, 1),
        w=(36, 3),
    )
    site = _site(model)
    assert site.linear[0].geometry.taps == 9
    assert all(not isinstance(size, int) for size in site.spatial)


@pytest.mark.parametrize(("rows", "found"), [("t", True), ("a", True), ("z", False)])
def test_a_row_is_a_sample_only_where_the_target_takes_its_own_batch_size(rows, found):
    model = build(
        "g (float[N,2,L] x, float[M,1] z) => (float[R,3] y) { a = Neg(x) t = Relu(a)"
        f" n = Shape<start=0, end=1>({rows}) m = Constant<value = int64[1] {{-1}}>() s = Concat<axis=0>(n, m)"
        " f = Reshape(t, s) y = Gemm(f, w) }",
        w=(4, 3),
    )
    check_accounted(model)
    assert ("t" in {site.tensor for site in replaced(model)}) == found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "r = Tanh(h) p = MaxPool<kernel_shape=[1]>(r) t = BatchNormalization(p, s, s, s, s)",
            Activation("tanh"),
        ),
        ("r = LeakyRelu<alpha=0.2>(h) p = Dropout(r) t = Identity(p)", Activation("leaky_relu", (0.2,))),
        ("s1 = Sigmoid(h) r = Mul(h, s1) t = AveragePool<kernel_shape=[1]>(r)", Activation("silu")),
        ("t = Identity(h)", Activation("relu")),
    ],
)
def test_the_activation_in_front_of_the_site(body, expected):
    model = build(
        f"g (float[N,2,7] x) => (float[N,3,7] y) {{ h = Conv(x, w0) {body} y = Conv(t, w) }}",
        w0=(4, 2, 1),
        w=(3, 4, 1),
        s=(4,),
    )
    found = _site(model).activation
    assert found.name == expected.name
    assert found.parameters == pytest.approx(expected.parameters)


def test_several_readers_of_one_tensor():
    site = _site(OTHERS["several_readers"]())
    assert site.readers == ("a", "b", "c")
    assert [reader.geometry.taps for reader in site.linear] == [1, 9, 36]
    assert site.max_taps == 36


def test_the_projections_of_attention_share_a_site_and_its_products_take_blocks():
    model = OTHERS["attention"]()
    assert _site(model, "x").readers == ("q0", "k0", "v")
    assert not refusals(model)
    blocks = {site.readers: site.why_block for site in find_sites(model) if site.mode == "block"}
    assert "product of two tensors" in blocks[("s",)]
    assert ("o",) in blocks


def test_sites_are_plain_data_in_graph_order():
    model = OTHERS["shared_bias"]()
    sites = find_sites(model)
    assert [site.tensor for site in sites if site.mode == "replace"] == ["x", "t", "s"]
    assert dataclasses.replace(sites[0]) == sites[0]
    assert len({hash(site) for site in sites}) == len(sites)


def test_a_bias_that_varies_over_rows_is_not_part_of_the_reader():
    reader = _site(OTHERS["matrix_bias"]()).linear[0]
    assert (reader.output, reader.add_index) == ("p", None)


def test_large_models_are_looked_at_quickly():
    layers = 400
    body = " ".join(f"h{i + 1} = Conv(r{i}, w{i}) r{i + 1} = Relu(h{i + 1})" for i in range(layers))
    weights = {f"w{i}": (2, 2, 1, 1) for i in range(layers)}
    model = build(
        f"g (float[N,2,4,4] x) => (float[N,2,4,4] y) {{ r0 = Relu(x) {body} y = Identity(r{layers}) }}",
        **weights,
    )
    assert len(replaced(model)) == layers


def _with_local_function(main, function):
    return with_weights(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17, "local": 1]> {main}'
            f'<domain: "local", opset_import: ["": 17]> {function}'
        ),
        w=(8, 3),
    )


def test_a_local_function_is_not_the_op_whose_name_it_has():
    flat = _with_local_function(
        "g (float[N,4,2] x) => (float[N,3] y) { t = Relu(x) f = local.Flatten(t) y = MatMul(f, w) }",
        "Flatten (a) => (c) { b = Transpose<perm=[0,2,1]>(a) c = Flatten(b) }",
    )
    assert [site.tensor for site in replaced(flat)] == ["f"]
    doubled = _with_local_function(
        "g (float[N,8] x) => (float[N,3] y) { t = Relu(x) v = local.Identity(w) y = MatMul(t, v) }",
        "Identity (a) => (c) { c = Add(a, a) }",
    )
    assert "computed by Identity" in why_not(doubled)[0]
    read = _with_local_function(
        "g (float[N,8] x) => (float[N,3] y, float[N,8] z) { t = Relu(x) y = MatMul(t, w) z = local.Shape(t) }",
        "Shape (a) => (c) { c = Neg(a) }",
    )
    assert "is read by Shape" in why_not(read)[0]
    fed = _with_local_function(
        "g (float[N,8] x) => (float[N,3] y) { t = local.Constant<value = float {1}>(x) y = MatMul(t, w) }",
        "Constant <value> (a) => (c) { k = Constant<value: tensor = @value>() c = Add(a, k) }",
    )
    assert [site.tensor for site in replaced(fed)] == ["t"]
