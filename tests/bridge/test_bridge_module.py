"""The module that users get: names, modes, inputs, what it holds; and what is written back."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bridge_tools import assert_equal, build, compute, image, sgd_step, values, weight_names
from onnx import TensorProto, helper, numpy_helper

import onnx_compnet as oc
from onnx_compnet.bridge.module import OnnxModule

ROOT = Path(__file__).parent.parent.parent
F32 = np.float32
MEAN, VARIANCE = np.array([0.1, -0.2, 0.3], F32), np.array([0.5, 1.0, 2.0], F32)


def batch_norm(**weights):
    held = {"s": (3,), "b": (3,), "m": MEAN, "v": VARIANCE, **weights}
    return build("y = BatchNormalization<momentum=0.8>(x, s, b, m, v)", held)


def renamed(model, **names):
    """The model with other names, which the text format has no way to write."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return model


TWO_LAYERS = "c = Conv(x, w1, b1) r = Relu(c) y = Conv(r, w2)"
SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (2, 4, 1, 1)}


def two_layers(**names):
    return renamed(build(TWO_LAYERS, SHAPES), **names)


# ---------------------------------------------------------------- names


def test_weights_have_the_names_of_their_initialisers():
    model = two_layers(w1="features.0.weight", b1="features.0.bias", w2="compnet/conv2/weight")
    module = oc.to_torch(model)
    names = {"features.0.weight", "features.0.bias", "compnet/conv2/weight"}
    assert weight_names(module) == names == set(module.state_dict())
    assert module.get_parameter("features.0.bias").shape == (4,)
    assert module.get_submodule("features.0").weight is module.get_parameter("features.0.weight")
    assert [n for n, _ in module.named_parameters() if n.startswith("compnet/")] == ["compnet/conv2/weight"]


@pytest.mark.parametrize(
    "names", [("conv", "conv.bias", "conv.weight"), ("forward", "_slots", "eval.x"), ("a..b", "a.", "é ü"),
              ("graph_0", "graph_0.x", "y0")]
)  # fmt: skip
def test_awkward_names(names):
    model = two_layers(**dict(zip(SHAPES, names, strict=True)))
    module = oc.to_torch(model)
    assert weight_names(module) == set(names)
    assert_equal(module, model, image())
    assert oc.write_back(module, model) == model
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert state.keys() == set(names)
    sgd_step(module, image())
    assert_equal(module, oc.write_back(module, model), image())
    module.load_state_dict(state)
    assert oc.write_back(module, model) == model


@pytest.mark.parametrize("name", ["training", "a.training", ".a"])
def test_names_that_torch_can_not_hold(name):
    with pytest.raises(oc.UnsupportedError, match=f"'{name}'; rename it"):
        oc.to_torch(two_layers(w1=name))


def test_inner_names_that_are_all_alike():
    model = two_layers(w1="c_1")
    for node in model.graph.node:
        node.name = "c_1"
    module = oc.to_torch(model)
    assert compute(module, image())[0].shape == (2, 2, 6, 6)


# ---------------------------------------------------------------- what torch users do


def test_copies_pickles_and_functional_calls():
    module = oc.to_torch(two_layers(w1="features.weight"))
    x = torch.from_numpy(image())
    y = module(x)
    twin = copy.deepcopy(module)
    again = pickle.loads(pickle.dumps(module))
    with torch.no_grad():
        module.get_parameter("features.weight").zero_()
    assert not torch.equal(module(x), y)
    assert torch.equal(twin(x), y)
    assert torch.equal(again(x), y)
    weights = dict(twin.named_parameters())
    assert torch.equal(torch.func.functional_call(module, weights, (x,)), y)
    stream = io.BytesIO()
    torch.save(twin.state_dict(), stream)
    stream.seek(0)
    module.load_state_dict(torch.load(stream))
    assert torch.equal(module(x), y)


def test_frozen_parameters_stay():
    model = two_layers()
    module = oc.to_torch(model)
    module.get_parameter("w1").requires_grad_(False)
    optimiser = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), lr=0.1)
    module(torch.from_numpy(image())).sum().backward()
    optimiser.step()
    tuned = oc.write_back(module, model)
    assert np.array_equal(values(tuned, "w1"), values(model, "w1"))
    assert not np.array_equal(values(tuned, "w2"), values(model, "w2"))


@pytest.mark.parametrize(
    "other", ["c = Conv(x, w1, b1) y = Conv(c, w2)", "c = Conv(x, w1, b1) r = Tanh(c) y = Conv(r, w2)"]
)
def test_a_model_of_the_same_weights_and_other_nodes_is_refused(other):
    module = oc.to_torch(two_layers())
    with pytest.raises(oc.UsageError, match="other nodes than the one that the module was made of"):
        oc.write_back(module, build(other, SHAPES))


def test_wrapped_and_in_another_type():
    model = two_layers()
    module = oc.to_torch(model)
    wrapped = torch.nn.Sequential(module).double()
    assert oc.write_back(wrapped, model) == model


def test_inputs_by_order_and_by_name():
    model = build(
        "a = MatMul(x, w) y = Add(a, z) u = Relu(y)", {"w": (4, 4)}, x="float[N,4]", others=", float[N,4] z"
    )
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "u"
    module = oc.to_torch(model)
    assert (module.input_names, module.output_names) == (("x", "z"), ("y", "u"))
    x, z = torch.ones(2, 4), torch.full((2, 4), 2.0)
    y, u = module(x, z)
    assert torch.equal(module(x, z=z)[0], y)
    assert torch.equal(module(z=z, x=x)[1], u)
    for inputs, named in (((x,), {}), ((x, z, x), {}), ((x, z), {"z": z}), ((x,), {"q": z})):
        with pytest.raises(oc.UsageError, match="inputs are x, z"):
            module(*inputs, **named)


# ---------------------------------------------------------------- train and eval


def test_batch_normalisation_learns_its_statistics_in_training_only():
    model = batch_norm()
    module = oc.to_torch(model)
    assert not module.training
    x = torch.from_numpy(image(16))
    module(x)
    assert oc.write_back(module, model) == model
    reference = torch.nn.BatchNorm2d(3, momentum=0.2)
    for key, name in (("weight", "s"), ("bias", "b"), ("running_mean", "m"), ("running_var", "v")):
        getattr(reference, key).data.copy_(torch.from_numpy(values(model, name).copy()))
    module.train()
    assert torch.allclose(module(x), reference(x))
    assert set(dict(module.named_buffers())) >= {"m", "v"}
    tuned = oc.write_back(module.eval(), model)
    assert np.array_equal(values(tuned, "m"), reference.running_mean.numpy())
    assert not np.array_equal(values(tuned, "v"), values(model, "v"))
    assert np.array_equal(values(tuned, "s"), values(model, "s"))
    assert_equal(module, tuned, image())


def test_one_value_a_channel_is_normalised_by_the_stored_statistics():
    model = batch_norm()
    module = oc.to_torch(model)
    x = torch.from_numpy(image(1)[..., :1, :1])
    expected = module(x)
    assert torch.equal(module.train()(x), expected)
    assert oc.write_back(module, model) == model
    model = build("y = InstanceNormalization(x, s, b)", {"s": (3,), "b": (3,)}, x="float[N,3,1,1]")
    assert_equal(oc.to_torch(model).train(), model, image(1)[..., :1, :1])


def test_statistics_that_are_a_weight_too_stay_as_they_are():
    model = renamed(batch_norm(), m="b")
    module = oc.to_torch(model)
    assert "running statistic" in module.frozen["b"]
    assert weight_names(module) == {"s"}
    module.train()
    module(torch.from_numpy(image(8)))
    sgd_step(module, image())
    assert_equal(module, oc.write_back(module, model), image())


@pytest.mark.parametrize("opset", [9, 12, 20, 22])
def test_dropout_drops_in_training_only(opset):
    old = opset < 12
    body = f"y = Dropout{'<ratio=0.25>(x)' if old else '(x, ratio, mode)'}"
    weights = {} if old else {"ratio": np.array(0.25, F32), "mode": np.array(True)}
    module = oc.to_torch(build(body, weights, opset=opset))
    x = torch.ones(64, 3, 8, 8)
    assert torch.equal(module(x), x)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), x)
    torch.manual_seed(0)
    y = module.train()(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (y == 0).float().mean() == pytest.approx(0.25, abs=0.02)


# ---------------------------------------------------------------- where weights are held


def test_constants_of_ops_are_no_parameters():
    model = build("c = Mul(x, half) p = Pow(c, exps) q = Clip(p, low) y = MatMul(q, w)",
                  {"half": np.array([0.5], F32), "exps": np.array([2.0, 1.0, 2.0, 1.0], F32),
                   "low": np.array(-1, F32), "w": (4, 4)}, x="float[N,4]")  # fmt: skip
    module = oc.to_torch(model)
    assert weight_names(module) == {"w"} == set(module.state_dict())
    assert not module.frozen


def test_weights_in_constant_nodes_and_sparse_ones():
    model = build(
        "y0 = MatMul(x, w) z = MatMul(y0, k) s = MatMul(z, p) y = MatMul(s, q)", {"w": (4, 4)}, x="float[N,4]"
    )
    dense = np.random.default_rng(0).standard_normal((4, 4)).astype(F32)
    for name, key in (("k", "value"), ("p", "sparse_value")):
        stored = numpy_helper.from_array(dense, "") if key == "value" else sparse(dense, "")
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], **{key: stored}))
    model.graph.sparse_initializer.append(sparse(dense.T.copy(), "q"))
    model.graph.node[0].doc_string = "kept"
    module = oc.to_torch(model)
    assert weight_names(module) == {"w", "k", "p", "q"}
    assert module.get_parameter("q").shape == (3,)
    x = np.ones((2, 4), F32) + np.arange(4, dtype=F32)
    assert_equal(module, model, x)
    before = model.SerializeToString()
    assert oc.write_back(module, model).SerializeToString() == before
    sgd_step(module, x)
    tuned = oc.write_back(module, model)
    assert_equal(module, tuned, x)
    assert model.SerializeToString() == before
    assert [node.name for node in tuned.graph.node] == [node.name for node in model.graph.node]
    assert tuned.graph.sparse_initializer[0].indices == model.graph.sparse_initializer[0].indices


def sparse(dense, name):
    places = np.array([1, 6, 11], np.int64)
    stored = numpy_helper.from_array(dense.reshape(-1)[places], name)
    return helper.make_sparse_tensor(stored, numpy_helper.from_array(places), dense.shape)


def test_dequantised_weights_and_masks_are_frozen():
    weights = {"w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "scale": np.array([0.1, 0.2, 0.3, 0.4], F32),
               "mask": np.array([[0.0, -np.inf, 0.0, 0.0]], F32), "u": (4, 4)}  # fmt: skip
    body = "d = DequantizeLinear<axis=1>(w, scale) a = MatMul(x, d) b = MatMul(a, u) m = Add(b, mask) y = Softmax(m)"
    model = build(body, weights, x="float[N,4]")
    module = oc.to_torch(model)
    assert weight_names(module) == {"u"}
    assert module.frozen == {
        "d": "is computed from constants",
        "mask": "holds infinities",
    }
    x = image(2, shape=(4,))
    assert_equal(module, model, x)
    sgd_step(module, x)
    assert_equal(module, oc.write_back(module, model), x)


def test_a_mask_that_is_built_of_constants_is_no_weight():
    weights = {"zeros": np.zeros((4, 4), F32), "ones": np.ones((1, 4), F32), "at": np.array([[2]], np.int64),
               "far": np.array(-100, F32), "none": np.array(0, F32), "u": (4, 4)}  # fmt: skip
    body = (
        "a = ScatterND(zeros, at, ones) t = Transpose<perm=[1,0]>(a) c = Equal(t, none) m = Where(c, t, far) "
        "b = MatMul(x, u) s = Add(b, m) y = Softmax(s)"
    )
    model = build(body, weights, x="float[N,4]")
    module = oc.to_torch(model)
    assert weight_names(module) == {"u"}
    assert module.frozen == {"m": "is computed from constants"}
    assert_equal(module, model, image(4, shape=(4,)))


def test_weights_given_to_a_function_learn_and_those_inside_do_not():
    inside = helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(np.eye(4, dtype=F32) * 2, "k")
    )
    dense = helper.make_function(
        "local", "Dense", ["a", "w"], ["b"],
        [helper.make_node("MatMul", ["a", "w"], ["h"]), inside, helper.make_node("MatMul", ["h", "k"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    model = build("a = MatMul(x, w) y = MatMul(a, w)", {"w": (4, 4)}, x="float[N,4]")
    for node in model.graph.node:
        node.op_type, node.domain = "Dense", "local"
    model.functions.append(dense)
    model.opset_import.append(helper.make_opsetid("local", 1))
    module = oc.to_torch(model)
    assert weight_names(module) == {"w"}
    assert set(module.frozen.values()) == {"lies in a function"}
    x = image(2, shape=(4,))
    assert_equal(module, model, x)
    sgd_step(module, x)
    assert_equal(module, oc.write_back(module, model), x)


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", ["lenet4", "lenet4_dynamo"])
def test_grown_model(name):
    calibration = ROOT / "models" / "fashion_mnist_calibration.npz"
    growth = oc.grow(ROOT / "models" / f"{name}.onnx", "conv1", calibration, scale=1 / 255, candidates=12,
                     max_samples=400, seed=0)  # fmt: skip
    module = oc.to_torch(growth.model)
    new = [name for name in weight_names(module) if name.startswith("compnet/")]
    assert len(new) >= 2
    x = image(4, shape=(1, 28, 28))
    assert_equal(module, growth.model, x)
    assert oc.write_back(module, growth.model).SerializeToString() == growth.model.SerializeToString()
    sgd_step(module, x, length=0.5)
    tuned = oc.write_back(module, growth.model)
    assert_equal(module, tuned, x)
    assert list(tuned.graph.node) == list(growth.model.graph.node)


def test_a_path_is_read_and_nothing_is_written(tmp_path):
    path = tmp_path / "model.onnx"
    model = two_layers()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 6, 6]))
    onnx.save(model, path)
    module = oc.to_torch(path)
    assert isinstance(module, OnnxModule)
    assert oc.write_back(module, path) == oc.load(path)
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_write_back_refuses_what_does_not_belong_together():
    model = two_layers()
    module = oc.to_torch(model)
    with pytest.raises(oc.UsageError, match="Linear holds no module of to_torch"):
        oc.write_back(torch.nn.Linear(2, 2), model)
    with pytest.raises(oc.UsageError, match="holds no 'w1'"):
        oc.write_back(module, two_layers(w1="other"))
    with pytest.raises(oc.UsageError, match=r"'w2' has the shape \[3, 4, 1, 1\]"):
        oc.write_back(module, build(TWO_LAYERS, {**SHAPES, "w2": (3, 4, 1, 1)}))


def test_types_of_the_stored_tensors_stay():
    model = build("y = MatMul(x, w)", {"w": (4, 4)}, x="float[N,4]")
    typed = model.graph.initializer[0]
    held = numpy_helper.to_array(typed)
    typed.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], held.reshape(-1)))
    typed.doc_string = "kept"
    module = oc.to_torch(model)
    assert oc.write_back(module, model) == model
    sgd_step(module, image(2, shape=(4,)))
    tuned = oc.write_back(module, model)
    assert tuned.graph.initializer[0].doc_string == "kept"
    assert_equal(module, tuned, image(2, shape=(4,)))
