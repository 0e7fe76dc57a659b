from __future__ import annotations

import onnx
import pytest
from graph_tools import build, rename, replaced
from graph_zoo import FLATTENINGS, conv

from onnx_compnet.errors import AmbiguousNameError, NameNotFoundError, UnsupportedError
from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.scopes import enclosing, last_component, scope
from onnx_compnet.graph.sites import find_sites


def test_both_exporters_answer_to_the_same_names(lenets):
    found = {}
    for exporter, model in lenets.items():
        found[exporter] = [
            (resolve(model, name).name, resolve(model, name).kind, resolve(model, name).activation)
            for name in ("conv1", "conv2", "fc1", "conv1.weight", "conv2.bias")
        ]
        names = [site.name for site in find_sites(model)]
        assert [name for name in names if name in ("conv1", "conv2", "fc1")] == ["conv1", "conv2", "fc1"]
        assert names[0] == model.graph.input[0].name
    assert found["torchscript"] == found["dynamo"]
    assert found["dynamo"][2][2].name == "gelu"


def test_every_site_of_lenet_resolves(lenet):
    for site in find_sites(lenet):
        assert resolve(lenet, site.name) == site
        assert resolve(lenet, site.tensor) == site


def test_the_activation_module_leads_to_the_same_place(lenets):
    for model in lenets.values():
        assert resolve(model, "act") == resolve(model, "fc1")


def test_behind_the_last_layer_only_a_block_can_stand(lenet):
    with pytest.raises(UnsupportedError, match=r"output of the model \(mode block can grow there\)"):
        resolve(lenet, "fc2", "replace")
    assert resolve(lenet, "fc2").tensor == lenet.graph.output[0].name
    assert resolve(lenet, "fc2").mode == resolve(lenet, "fc2", "block").mode == "block"


def test_an_unknown_name_lists_the_nearest(lenet):
    with pytest.raises(NameNotFoundError, match="conv1") as caught:
        resolve(lenet, "conv_1")
    assert "conv1" in caught.value.candidates
    with pytest.raises(NameNotFoundError, match="places to grow") as caught:
        resolve(lenet, "zzzzzzz")
    assert "conv2" in caught.value.candidates


def _chain():
    """Two blocks with equal names inside, as TorchScript's exporter writes them."""
    model = build(
        "g (float[N,2,8] x) => (float[N,2,8] y) {"
        " [c1] a = Conv(x, w1) [r1] b = Relu(a) [c2] c = Conv(b, w2) [r2] d = Tanh(c) [c3] y = Conv(d, w3) }",
        w1=(3, 2, 1),
        w2=(4, 3, 1),
        w3=(2, 4, 1),
    )
    return rename(
        model,
        c1="/layer1/layer1.0/conv1/Conv",
        r1="/layer1/layer1.0/relu/Relu",
        c2="/layer1/layer1.1/conv1/Conv",
        r2="/layer1/layer1.1/tanh/Tanh",
        c3="/head/Conv",
        w1="onnx::Conv_11",
        w2="onnx::Conv_12",
    )


def test_module_paths_and_last_components():
    model = _chain()
    assert resolve(model, "layer1.0.conv1").tensor == "b"
    assert resolve(model, "layer1.1.conv1").tensor == "d"
    assert resolve(model, "layer1.0").tensor == "b"
    assert resolve(model, "tanh").tensor == "d"
    assert resolve(model, "/layer1/layer1.0/relu/Relu").tensor == "b"
    assert [site.name for site in replaced(model)] == ["x", "layer1.0.conv1", "layer1.1.conv1"]


def test_ambiguous_names_list_what_resolves():
    model = _chain()
    for name in ("conv1", "layer1", "Conv"):
        with pytest.raises(AmbiguousNameError, match=r"layer1\.0\.conv1") as caught:
            resolve(model, name)
        for candidate in caught.value.candidates:
            resolve(model, candidate)


def test_several_matches_that_lead_to_one_place_are_not_ambiguous():
    model = build(
        "g (float[N,2,8] x) => (float[N,2,8] y) {"
        " [c1] a = Conv(x, w1) [n] b = BatchNormalization(a, s, o, m, v) c = Relu(b) y = Conv(c, w2) }",
        w1=(3, 2, 1),
        w2=(2, 3, 1),
        s=(3,),
        o=(3,),
        m=(3,),
        v=(3,),
    )
    rename(
        model,
        c1="/block/conv/Conv",
        n="/block/norm/BatchNormalization",
        s="block.norm.weight",
        w1="block.conv.weight",
    )
    for name in ("block", "block.norm", "norm", "block.conv", "conv", "block.norm.weight"):
        assert resolve(model, name).tensor == "c"
    assert find_sites(model)[1].name == "block.conv"


@pytest.mark.parametrize(
    "chain",
    [
        "r = Relu(a) p = MaxPool<kernel_shape=[1]>(r) t = Identity(p)",
        "s = Sigmoid(a) r = Mul(a, s) p = AveragePool<kernel_shape=[1]>(r) t = Dropout(p)",
        "r = LRN<size=3>(a) q = GlobalAveragePool(r) t = Tanh(q)",
        'b = Add(a, k) r = PRelu(b, k) t = Pad<mode="constant">(r, z)',
    ],
)
def test_a_node_leads_through_activations_pooling_and_normalisation(chain):
    model = build(
        "g (float[N,2,8] x) => (float[N,2,M] y) <int64[6] z = {0,0,1,0,0,1}> { [first] a = Conv(x, w1) "
        + chain
        + " y = Conv(t, w2) }",
        w1=(3, 2, 1),
        w2=(2, 3, 1),
        k=(3, 1),
    )
    assert resolve(model, "first").tensor == "t"
    assert resolve(model, "t").name == "first"
    with pytest.raises(UnsupportedError, match="not a linear layer"):
        resolve(model, "a", "replace")
    assert (resolve(model, "a").tensor, resolve(model, "a").mode) == ("a", "block")


@pytest.mark.parametrize("name", FLATTENINGS)
def test_a_node_stops_in_front_of_a_flatten(name):
    model = FLATTENINGS[name]()
    model.graph.node[0].name = "first"
    assert resolve(model, "first").tensor == "t"


def test_a_reshape_that_can_not_be_looked_through_is_passed():
    model = build(
        "g (float[N,2,3,3] x) => (float[N,3] y) { [first] c = Conv(x, w0) t = Relu(c)"
        " m = Constant<value = int64[1] {-1}>() n = Size(x) o = Reshape(n, m) d = Constant<value = int64[1] {18}>()"
        " q = Div(o, d) s = Concat<axis=0>(q, m) f = Reshape(t, s) y = Gemm(f, w) }",
        w0=(4, 2, 1, 1),
        w=(36, 3),
    )
    assert resolve(model, "first").tensor == "f"


def test_a_branch_takes_a_block_and_says_what_else_reads_it():
    model = build(
        "g (float[N,4] x) => (float[N,4] y) {"
        " [fc] h = MatMul(x, w0) t = Relu(h) a = MatMul(t, w) [plus] y = Add(a, t) }",
        w0=(4, 4),
        w=(4, 4),
    )
    with pytest.raises(UnsupportedError, match=r"'t', which is read by Add 'plus'.*mode block"):
        resolve(model, "fc", "replace")
    site = resolve(model, "fc")
    assert (site.mode, site.readers, site.name) == ("block", ("a", "plus"), "fc")
    assert site.why_block == "is read by Add 'plus', which is not a linear layer"
    assert site in find_sites(model)


def test_weights_through_identity_and_constant_nodes():
    model = build(
        "g (float[N,4] x) => (float[N,3] y) { v = Identity(w0) h = MatMul(x, v) t = Relu(h)"
        " k = Constant<value = float[2,3] {1,2,3,4,5,6}>() u = MatMul(t, k) y = Tanh(u) }",
        w0=(4, 2),
    )
    rename(model, w0="enc.fc.weight", k="dec.fc.weight")
    assert resolve(model, "enc.fc").tensor == "t"
    assert resolve(model, "dec.fc").tensor == "y"
    with pytest.raises(AmbiguousNameError):
        resolve(model, "fc")


def test_a_bias_that_an_exporter_merged_does_not_make_a_name_ambiguous():
    model = build(
        "g (float[N,4] x) => (float[N,4] y) { h = Gemm(x, w0, b) t = Relu(h) u = Gemm(t, w1, b) s = Tanh(u)"
        " y = Gemm(s, w2, b) }",
        w0=(4, 4),
        w1=(4, 4),
        w2=(4, 4),
        b=(4,),
    )
    rename(model, w0="fc1.weight", w1="fc2.weight", w2="fc3.weight", b="fc1.bias")
    assert resolve(model, "fc1").tensor == "t"
    assert resolve(model, "fc2").tensor == "s"
    assert [site.name for site in find_sites(model)] == ["x", "fc1", "fc2", "fc3"]


def test_a_node_with_the_name_of_another_tensor_comes_first():
    model = build(
        "g (float[N,4] x) => (float[N,4] y) {"
        " [t] h = MatMul(x, w0) u = Relu(h) t = MatMul(u, w1) y = MatMul(t, w2) }",
        w0=(4, 5),
        w1=(5, 6),
        w2=(6, 4),
    )
    assert resolve(model, "t").tensor == "u"
    assert resolve(model, "tensor:t").tensor == "t"
    for site in find_sites(model):
        assert resolve(model, site.name) == site


def test_a_tensor_name_means_that_tensor():
    model = conv(2)
    assert resolve(model, "x").tensor == "x"
    assert resolve(model, "t").tensor == "t"
    with pytest.raises(UnsupportedError, match="'c' is read by Relu"):
        resolve(model, "c", "replace")
    assert resolve(model, "c").tensor == "c"


def test_a_module_goes_before_a_tensor_of_its_name_that_is_no_site():
    model = build(
        "g (float[N,4] x) => (float[N,3] y) { [node_linear] linear = Gemm(x, w0) [node_relu] relu = Relu(linear)"
        " y = Gemm(relu, w1) }",
        w0=(4, 5),
        w1=(5, 3),
    )
    assert resolve(model, "linear").tensor == "linear"
    rename(model, w0="linear.weight")
    assert resolve(model, "linear").tensor == "relu"
    assert resolve(model, "tensor:relu").tensor == resolve(model, "relu").tensor == "relu"


def test_scopes_of_both_exporters():
    def named(name="", **metadata):
        node = onnx.NodeProto(name=name)
        for key, value in metadata.items():
            node.metadata_props.add(key=key.replace("__", "."), value=value)
        return scope(node)

    assert named("/layer1/layer1.0/conv1/Conv") == "layer1.0.conv1"
    assert named("/features/features.4/block/block.0/block.0.0/Conv_1") == "features.4.block.0.0"
    assert named("/Relu_1") == ""
    assert named("conv1") == ""
    assert (
        named("n", pkg__torch__onnx__name_scopes="['', 'layer1.0', 'layer1.0.conv1', 'conv2d']")
        == "layer1.0.conv1"
    )
    assert named("n", pkg__torch__onnx__name_scopes="not a list") == ""
    assert (
        named("n", namespace=": __main__.Net/conv1: torch.nn.Conv2d/conv2d: aten.conv2d.default") == "conv1"
    )
    assert enclosing("a.b.c") == ["a.b.c", "a.b", "a"]
    assert enclosing("") == []
    assert last_component("/a/b.c") == "c"


def test_a_tensor_can_be_named_whatever_the_nodes_are_called():
    model = build(
        "g (float[N,4] x) => (float[N,3] y) {"
        " [u] t = Relu(x) [w0] h = MatMul(t, w) [t] u = Neg(h) y = MatMul(u, v) }",
        w=(4, 3),
        v=(3, 3),
    )
    for node in model.graph.node:
        node.name = {"w0": "tensor:u", "": "tensor:t"}.get(node.name, node.name)
    assert {site.tensor for site in replaced(model)} == {"t", "u"}
    for site in find_sites(model):
        assert resolve(model, site.name) == site
        assert resolve(model, f"tensor:{site.tensor}") == site
