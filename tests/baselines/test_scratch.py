"""The baseline "Scratch": the same graph, fresh weights, and the right spread of each."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper, parser
from torch import nn

import onnx_compnet as oc
from onnx_compnet.baselines.scratch import scratch

MODELS = Path(__file__).parent.parent.parent / "models"
F32 = np.float32


def build(body, weights, *, x="float[N,8]", y=""):
    """A model of text; weights are shapes (then all 3) or arrays."""
    text = f'<ir_version: 10, opset_import: ["": 20]> net ({x} x) => ({y or "float[]"} y) {{{body}}}'
    model = parser.parse_model(text)
    for name, value in weights.items():
        array = np.full(value, 3, F32) if isinstance(value, tuple) else value
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    if not y:
        model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def values(model):
    found = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def fresh(body, weights, **keywords):
    return values(scratch(build(body, weights, **keywords)))


def blanked(model):
    """The model without the numbers of what ``to_torch`` trains."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    trained = oc.to_torch(model).state_dict()
    for item in copy.graph.initializer:
        if item.name in trained:
            assert item.raw_data
            item.ClearField("raw_data")
    return copy


def exported(module, *arguments, dynamo):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), arguments, None if dynamo else buffer, dynamo=dynamo, verbose=False
        )
    return program.model_proto if dynamo else onnx.load_from_string(buffer.getvalue())


# ---------------------------------------------------------------- spreads

ACTIVATIONS = {  # followed by: variance · fan_in, for 512 inputs and 256 outputs
    "Relu": 2.0,
    "LeakyRelu": 2.0,
    "Elu": 2.0,
    "Tanh": 2 / (512 + 256) * 512,
    "Sigmoid": 3.6**2,
    "Gelu": 4.0,
    "Softmax": 1.0,
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_the_rule_follows_the_activation(op):
    body = f"a = MatMul(x, w1) c = Add(a, b1) d = {op}(c) y = MatMul(d, w2)"
    found = fresh(body, {"w1": (512, 256), "b1": (256,), "w2": (256, 100)}, x="float[N,512]")
    assert found["w1"].var() * 512 == pytest.approx(ACTIVATIONS[op], rel=0.03)
    assert abs(found["w1"].mean()) < 3 * found["w1"].std() / 512 / 0.7
    assert found["w2"].var() * 256 == pytest.approx(1.0, rel=0.05)
    assert not found["b1"].any()


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh"])
def test_the_last_layer_has_the_plain_rule_whatever_follows(op):
    found = fresh(f"a = MatMul(x, w) y = {op}(a)", {"w": (256, 200)}, x="float[N,256]")
    assert found["w"].var() * 256 == pytest.approx(1.0, rel=0.05)


def test_an_activation_behind_normalisation_pooling_and_a_sum():
    body = """a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, v) p = MaxPool<kernel_shape=[1,1]>(n)
              t = Add(p, x) r = Relu(t) g = GlobalAveragePool(r) f = Flatten(g) y = MatMul(f, w2)"""
    norm = dict.fromkeys("sbmv", (64,))
    found = fresh(body, {"w1": (64, 64, 3, 3), **norm, "w2": (64, 10)}, x="float[N,64,8,8]")
    assert found["w1"].var() * 64 * 9 == pytest.approx(2.0, rel=0.03)
    for name, value in {"s": 1, "b": 0, "m": 0, "v": 1}.items():
        np.testing.assert_array_equal(found[name], np.full(64, value, F32))


def test_a_tensor_that_a_sum_reads_beside_the_activation():
    body = "a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) c = Add(a, b) y = MatMul(c, w3)"
    found = fresh(body, {"w1": (256, 256), "w2": (256, 256), "w3": (256, 99)}, x="float[N,256]")
    assert found["w1"].var() * 256 == pytest.approx(2.0, rel=0.05)
    assert found["w2"].var() * 256 == pytest.approx(1.0, rel=0.05)


CONVOLUTIONS = {  # node, weight, fan_in
    "groups": ("Conv<group=4, pads=[1,1,1,1]>", (64, 8, 3, 3), 8 * 9),
    "depthwise": ("Conv<group=32, pads=[1,1,1,1]>", (512, 1, 5, 5), 25),
    "transposed": ("ConvTranspose<pads=[1,1,1,1]>", (32, 64, 3, 3), 32 * 9),
    "transposed, groups": ("ConvTranspose<group=2>", (32, 64, 3, 3), 16 * 9),
    "transposed, strides": ("ConvTranspose<strides=[2,2]>", (32, 64, 4, 4), 32 * 4),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_fan_in_of_convolutions(case):
    node, shape, fan_in = CONVOLUTIONS[case]
    features = shape[0] if node.startswith("Conv<") else shape[1] * (2 if "group" in node else 1)
    body = f"a = {node}(x, w1) r = Relu(a) y = Conv(r, w2)"
    found = fresh(body, {"w1": shape, "w2": (3, features, 1, 1)}, x="float[N,32,8,8]")
    assert found["w1"].var() * fan_in == pytest.approx(2.0, rel=0.05)


LAYOUTS = {  # nodes, weight: all are y = x·Wᵀ
    "Gemm": ("a = Gemm(x, w)", lambda w: w.T),
    "Gemm, transB": ("a = Gemm<transB=1>(x, w)", lambda w: w),
    "MatMul": ("a = MatMul(x, w)", lambda w: w.T),
    "Transpose": ("t = Transpose(w) a = MatMul(x, t)", lambda w: w),
    "Cast, Transpose": ("i = Identity(w) j = Cast<to=1>(i) t = Transpose(j) a = Gemm(x, t)", lambda w: w),
    "Reshape": ("k = Constant<value_ints=[12,8]>() s = Reshape(w, k) a = Gemm<transB=1>(x, s)", np.ravel),
    "Unsqueeze": ("k = Constant<value_ints=[0]>() u = Unsqueeze(w, k) a = MatMul(x, u)", lambda w: w.T),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_same_draw_in_every_layout(case):
    nodes, store = LAYOUTS[case]
    weight = store(np.full((12, 8), 3, F32))
    found = fresh(nodes + " r = Relu(a) y = MatMul(r, v)", {"w": weight, "v": (12, 3)})
    expected = fresh(
        LAYOUTS["Gemm, transB"][0] + " r = Relu(a) y = MatMul(r, v)", {"w": (12, 8), "v": (12, 3)}
    )
    np.testing.assert_array_equal(found["w"], store(expected["w"]))
    np.testing.assert_array_equal(found["v"], expected["v"])


def test_alpha_of_gemm_is_made_up_for():
    found = fresh(
        "a = Gemm<alpha=0.5>(x, w) r = Relu(a) y = MatMul(r, v)",
        {"w": (256, 256), "v": (256, 9)},
        x="float[N,256]",
    )
    assert found["w"].var() * 256 * 0.25 == pytest.approx(2.0, rel=0.05)


def test_einsum():
    body = 'a = Einsum<equation="nd,hdk->nhk">(x, w) r = Relu(a) y = Einsum<equation="nhk,hkd->nd">(r, v)'
    found = fresh(body, {"w": (4, 128, 32), "v": (4, 32, 128)}, x="float[N,128]")
    assert found["w"].var() * 128 == pytest.approx(2.0, rel=0.05)
    assert found["v"].var() * 128 == pytest.approx(1.0, rel=0.05)  # sums over h and k


def test_a_sparse_weight_takes_its_density_into_account():
    places = np.sort(np.random.default_rng(0).permutation(256 * 256)[:16384]).astype(np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.full(16384, 3, F32), "w"),
        numpy_helper.from_array(places, "places"),
        [256, 256],
    )
    model = build("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", {"v": (256, 9)}, x="float[N,256]")
    model.graph.sparse_initializer.append(sparse)
    child = scratch(model)
    drawn = numpy_helper.to_array(child.graph.sparse_initializer[0].values)
    assert drawn.var() * 64 == pytest.approx(2.0, rel=0.05)
    assert child.graph.sparse_initializer[0].indices == sparse.indices


# ---------------------------------------------------------------- all else


def test_recurrent_layers():
    body = "a, h, c = LSTM<hidden_size=25>(x, w, r, b) s = Squeeze(h) y = MatMul(s, v)"
    shapes = {"w": (1, 100, 8), "r": (1, 100, 25), "b": (1, 200), "v": (25, 3)}
    found = fresh(body, shapes, x="float[T,N,8]")
    for name in "wrb":
        assert 0.19 < np.abs(found[name]).max() <= 0.2
        assert found[name].var() == pytest.approx(0.2**2 / 3, rel=0.2)


def test_embeddings_slopes_scales_and_what_is_added():
    body = """i = Cast<to=7>(x) e = Gather(table, i) p = Add(e, positions) n = LayerNormalization(p, s, b)
              m = Mul(n, gain) d = Div(m, spread) z = Sub(d, shift) q = PRelu(z, slope) t = Concat<axis=1>(q, token)
              y = MatMul(t, w)"""
    shapes = {
        "table": (300, 64), "positions": (1, 8, 64), "s": (64,), "b": (64,), "gain": (64,), "spread": (64,),
        "shift": (64,), "slope": (64,), "token": (1, 1, 64), "w": (64, 9),
    }  # fmt: skip
    found = fresh(body, shapes, x="float[1,8]")
    for name in ("table", "positions", "token"):
        assert found[name].std() == pytest.approx(0.02, rel=0.3), name
    for name, value in {"s": 1, "gain": 1, "spread": 1, "b": 0, "shift": 0, "slope": 0.25}.items():
        assert (found[name] == value).all(), name


def test_a_tied_embedding_is_one_tensor_with_an_embeddings_spread():
    body = "i = Cast<to=7>(x) e = Gather(w, i) t = Transpose(w) y = MatMul(e, t)"
    found = fresh(body, {"w": (500, 64)}, x="float[N,8]")
    assert list(found) == ["w"]
    assert found["w"].std() == pytest.approx(0.02, rel=0.03)


def test_weight_normalisation_has_a_direction_and_a_gain():
    body = """k = Constant<value_ints=[1]>() n = ReduceL2(v, k) u = Div(v, n) w = Mul(u, g)
              a = Gemm<transB=1>(x, w) y = Relu(a)"""
    found = fresh(body, {"v": (64, 8), "g": (64, 1)})
    assert (found["g"] == 1).all()
    assert found["v"].var() * 8 == pytest.approx(1.0, rel=0.2)


def test_constants_of_ops_and_masks_stay():
    mask = np.triu(np.full((8, 8), -3.4e38, F32), 1)
    body = """two = Constant<value_float=2.0>() s = Div(x, two) a = MatMul(s, w) m = Add(a, mask) p = Softmax(m)
              low = Constant<value_float=0.1>() c = Clip(p, low) y = MatMul(c, w)"""
    model = build(body, {"w": (8, 8), "mask": mask}, x="float[8,8]")
    child = scratch(model)
    np.testing.assert_array_equal(values(child)["mask"], mask)
    assert child.graph.node == model.graph.node
    assert (values(child)["w"] != 3).all()


def test_types_are_kept():
    for kind, name in ((10, "float16"), (11, "double"), (16, "bfloat16")):
        weight = onnx.helper.make_tensor("w", kind, [64, 64], np.full(4096, 3.0))
        model = build("y = MatMul(x, w)", {}, x=f"{name}[N,64]")
        model.graph.initializer.append(weight)
        (drawn,) = scratch(model).graph.initializer
        assert drawn.data_type == kind
        assert numpy_helper.to_array(drawn).astype(np.float64).var() * 64 == pytest.approx(1, rel=0.05)


def test_weights_that_nothing_can_train_are_named(caplog):
    body = "w = DequantizeLinear(q, scale) a = MatMul(x, w) y = MatMul(a, v)"
    held = {"q": np.full((8, 8), 5, np.int8), "scale": np.array(0.1, F32), "v": (8, 3)}
    with caplog.at_level("WARNING", logger="onnx_compnet"):
        child = scratch(build(body, held))
    assert (values(child)["q"] == 5).all()
    assert "1 weights keep their trained values, as they can't be trained here: 'w'" in caplog.text


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", ["lenet4.onnx", "lenet4_dynamo.onnx"])
def test_lenet(name):
    model = oc.load(MODELS / name)
    before = model.SerializeToString(deterministic=True)
    child = scratch(model, seed=1)
    assert model.SerializeToString(deterministic=True) == before
    assert blanked(child).SerializeToString(deterministic=True) == blanked(model).SerializeToString(
        deterministic=True
    )
    found, trained = values(child), values(model)
    for layer, fan_in, rule in (("conv1", 25, 2), ("conv2", 500, 2), ("fc1", 800, 2), ("fc2", 256, 1)):
        assert found[f"{layer}.weight"].var() * fan_in == pytest.approx(rule, rel=0.15)
        assert not found[f"{layer}.bias"].any()
        assert (
            abs(np.corrcoef(found[f"{layer}.weight"].ravel(), trained[f"{layer}.weight"].ravel())[0, 1]) < 0.2
        )
    assert scratch(MODELS / name, seed=1) == child
    assert not np.array_equal(values(scratch(model, seed=2))["fc2.weight"], found["fc2.weight"])


def test_both_exporters_files_get_the_same_weights():
    one, two = (values(scratch(MODELS / name)) for name in ("lenet4.onnx", "lenet4_dynamo.onnx"))
    shared = [name for name in one if name.endswith(("weight", "bias"))]
    assert len(shared) == 8
    for name in shared:
        np.testing.assert_array_equal(one[name], two[name])


class Encoder(nn.Module):
    """An embedding, positions, two layers of attention and feed-forward, a head."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(100, 32), nn.Parameter(torch.randn(1, 6, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens) + self.positions).mean(1))


@pytest.fixture(scope="module", params=[False, True], ids=["torchscript", "dynamo"])
def transformer(request):
    torch.manual_seed(0)
    module = Encoder()
    for weight in module.parameters():  # equal ones would be merged
        nn.init.normal_(weight)
    return exported(module, torch.randint(0, 100, (2, 6)), dynamo=request.param)


@pytest.mark.slow
def test_a_transformer(transformer):
    module, old = oc.to_torch(scratch(transformer)), oc.to_torch(transformer)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    assert weights.keys() == dict(old.named_parameters()).keys()
    table = next(weight for weight in weights.values() if weight.shape == (100, 32))
    assert float(table.std()) == pytest.approx(0.02, rel=0.1)
    positions = next(weight for weight in weights.values() if weight.numel() == 6 * 32)
    assert float(positions.std()) == pytest.approx(0.02, rel=0.2)
    matrices = [
        w for w in weights.values() if w.ndim == 2 and 32 in w.shape and w is not table and w is not positions
    ]
    spreads = {  # by the number of weights: variance · fan_in
        3 * 32 * 32: (32, 1.0), 32 * 32: (32, 1.0), 5 * 32: (32, 1.0),
    }  # fmt: skip
    wide = 0
    for weight in matrices:
        if weight.numel() == 32 * 128:  # into the feed-forward part (gelu: 4/32) or out of it (1/128)
            wide += 1
            found = float(weight.var())
            assert min(abs(found * 8 - 1), abs(found * 128 - 1)) < 0.1
        else:
            fan_in, rule = spreads[weight.numel()]
            assert float(weight.var()) * fan_in == pytest.approx(rule, rel=0.35), weight.shape
    assert wide == 4
    vectors = [w for w in weights.values() if w.ndim == 1 and w.numel() > 1]
    assert vectors
    for weight in vectors:
        assert (weight == 0).all() or (weight == 1).all()
    tokens = torch.randint(0, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.isfinite(module(tokens)).all()


def test_a_network_from_scratch_learns():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    data = {"x": (rng.normal(0, 1, (96, 8)) + 2 * np.eye(8)[y]).astype(F32), "y": y}
    body = (
        "a = MatMul(x, w1) b = Add(a, b1) n = BatchNormalization(b, s, t, m, v) r = Relu(n) y = MatMul(r, w2)"
    )
    model = build(
        body, {"w1": (8, 16), "b1": (16,), **dict.fromkeys("stmv", (16,)), "w2": (16, 3)}, y="float[N,3]"
    )
    child = scratch(model)
    tuned = oc.finetune(child, data, data, epochs=5, lr=0.02, batch_size=16, device="cpu")
    losses = [epoch.val.loss for epoch in tuned.history]
    assert losses[-1] < 0.5 * losses[0]
    assert tuned.accuracy > 0.8 > 0.6 > tuned.scores["child"].accuracy
    same = scratch(tuned.model)  # nothing of the training is left
    assert values(same)["w1"].tobytes() == values(child)["w1"].tobytes()
    assert (values(same)["v"] == 1).all()


# ---------------------------------------------------------------- bad input


def test_bad_input(tmp_path):
    with pytest.raises(oc.UsageError, match="--seed must be a whole number of at least 0, not -1"):
        scratch(MODELS / "lenet4.onnx", seed=-1)
    with pytest.raises(oc.ModelError):
        scratch(tmp_path / "absent.onnx")
    body = "n = NonZero(x) f = Cast<to=1>(n) y = Det(f)"
    with pytest.raises(oc.UnsupportedError, match="Det"):
        scratch(build(body, {}))
