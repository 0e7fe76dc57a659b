"""Whole growths of small networks of every geometry, against what the mathematics promises."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnx_compnet as oc
from onnx_compnet.graph import provenance
from onnx_compnet.layers import ACTIVATION_PARAMETERS


def network(nodes, weights, x_shape, y_rank, opset=17, dtype=np.float32):
    """A model with input x and output y; weights as {name: array}."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", *x_shape])],
        [helper.make_tensor_value_info("y", kind, [None] * y_rank)],
        [numpy_helper.from_array(np.asarray(array, dtype), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape, seed=0, scale=None):
    fan_in = np.prod(shape[1:])
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return values * (np.sqrt(2 / fan_in) if scale is None else scale)


def outputs(model, x, *names):
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    have = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"x": x})


def conv_network(rank):
    """x → Conv → Relu → Conv (stride 2, dilation 2 on the last axis, uneven pads) → y in 1, 2 or 3 dimensions."""
    size = {1: (20,), 2: (9, 10), 3: (5, 6, 7)}[rank]
    weights = {
        "one.weight": normal(4, 3, *[3] * rank),
        "one.bias": normal(4, scale=0.1),
        "two.weight": normal(5, 4, *[2] * rank),
    }
    attributes = {"strides": [2] * rank, "dilations": [1] * (rank - 1) + [2], "pads": [1] * rank + [0] * rank}
    nodes = [
        helper.make_node("Conv", ["x", "one.weight", "one.bias"], ["a"], "first", pads=[1] * (2 * rank)),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "two.weight"], ["y"], "second", **attributes),
    ]
    return network(nodes, weights, (3, *size), rank + 2), (3, *size)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_networks_grow(rank):
    model, shape = conv_network(rank)
    x = np.random.default_rng(rank).normal(size=(300, *shape)).astype(np.float32)
    grown = oc.grow(model, "one", {"x": x}, candidates=24, lam=0.01)
    again = outputs(grown.model, x, "y")[0]
    parent = outputs(model, x, "y")[0]
    assert grown.site.kind == "conv"
    assert grown.sites[0].kernel == (3,) * rank
    assert again.shape == parent.shape
    assert np.linalg.norm(again - parent) < 0.8 * np.linalg.norm(parent - parent.mean())
    assert grown.sites[0].predicted_error == pytest.approx(grown.site_error, rel=1e-3)


def mlp(width=6, dtype=np.float32, opset=17, **attributes):
    """x → Gemm → Relu → Gemm (with ``attributes``) → y."""
    second = normal(width, 4)
    weights = {
        "one": normal(5, width),
        "one_b": normal(width, scale=0.1),
        "two": second.T if attributes.get("transB") else second,
        "two_b": normal(4, scale=0.1),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "one", "one_b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        helper.make_node("Gemm", ["b", "two", "two_b"], ["y"], "second", **attributes),
    ]
    return network(nodes, weights, (5,), 2, opset, dtype)


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"beta": 0.0}])
def test_gemm_attributes_do_not_change_the_fit(attributes):
    """A wide layer fits a linear reader well whatever the attributes say, so a wrong factor would show."""
    x = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    grown = oc.grow(mlp(**attributes), "first", {"x": x}, candidates=150, lam=1e-4, alpha=0.0)
    assert grown.site_error < 0.05
    assert grown.verdict.outputs["y"].rel_error == pytest.approx(grown.site_error, rel=0.2)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_matmul_networks_grow(rank, bias):
    inner = (7, 3)[: rank - 2]
    weights = {"one": normal(5, 6), "two": normal(6, 4), "two_b": normal(4, scale=0.1)}
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["b"], "act"),
        helper.make_node("MatMul", ["b", "two"], ["c" if bias else "y"], "second"),
    ]
    if bias:
        nodes.append(helper.make_node("Add", ["two_b", "c"], ["y"], "bias"))
    model = network(nodes, weights, (*inner, 5), rank)
    x = np.random.default_rng(0).normal(size=(1500, *inner, 5)).astype(np.float32)
    grown = oc.grow(model, "first", {"x": x}, candidates=80, lam=1e-4, alpha=0.0)
    assert grown.site.kind == ("gemm" if rank == 2 else "matmul")
    assert str(grown.sites[0].activation) == "tanh"
    assert grown.site_error < 0.1
    before, after = outputs(model, x[:50], "y")[0], outputs(grown.model, x[:50], "y")[0]
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before - before.mean())


def test_several_readers_are_solved_together():
    weights = {"one": normal(5, 6), **{f"w{i}": normal(6, 3 + i, seed=i) for i in range(3)}}
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        *(helper.make_node("MatMul", ["b", f"w{i}"], [f"p{i}"], f"reader{i}") for i in range(3)),
        helper.make_node("Concat", ["p0", "p1", "p2"], ["y"], "join", axis=-1),
    ]
    x = np.random.default_rng(0).normal(size=(2000, 5)).astype(np.float32)
    grown = oc.grow(network(nodes, weights, (5,), 2), "first", {"x": x}, candidates=100, lam=1e-3, alpha=0.0)
    assert grown.site.readers == ("reader0", "reader1", "reader2")
    assert len(grown.targets) == 3
    assert grown.site_error == max(grown.sites[0].reader_errors.values()) < 0.1


def test_an_mlp_and_its_1x1_convolutions_grow_to_the_same_weights():
    one, two = normal(6, 5), normal(4, 6)
    conv = network(
        [
            helper.make_node("Conv", ["x", "one.weight"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"], "act"),
            helper.make_node("Conv", ["b", "two.weight"], ["y"], "second"),
        ],
        {"one.weight": one[..., None, None], "two.weight": two[..., None, None]},
        (5, 1, 1),
        4,
    )
    dense = network(
        [
            helper.make_node("Gemm", ["x", "one.weight"], ["a"], "first", transB=1),
            helper.make_node("Relu", ["a"], ["b"], "act"),
            helper.make_node("Gemm", ["b", "two.weight"], ["y"], "second", transB=1),
        ],
        {"one.weight": one, "two.weight": two},
        (5,),
        2,
    )
    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    for method in ("alg1", "alg2", "alg3"):
        options = {"candidates": 20, "kernel": 1, "keep": 12, "method": method}
        a = oc.grow(conv, "one", {"x": x[..., None, None]}, **options)
        b = oc.grow(dense, "one", {"x": x}, **options)
        assert a.kept == b.kept
        dense_weights = {t.name: numpy_helper.to_array(t) for t in b.model.graph.initializer}
        assert len(a.model.graph.initializer) == len(dense_weights) == 5
        for tensor in a.model.graph.initializer:
            squeezed = numpy_helper.to_array(tensor).squeeze()
            other = dense_weights[tensor.name.replace("/Conv.", "/Gemm.")]
            np.testing.assert_allclose(
                squeezed, other if squeezed.shape == other.shape else other.T, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", sorted(ACTIVATION_PARAMETERS))
@pytest.mark.parametrize("opset", [9, 17, 20])
def test_every_activation_can_be_written(name, opset):
    """What was fitted in torch is what onnxruntime computes: prediction and measurement agree."""
    model = mlp(opset=opset)
    x = np.random.default_rng(0).normal(size=(1200, 5)).astype(np.float32)
    grown = oc.grow(model, "first", {"x": x}, candidates=40, method="random", keep=20, activation=name)
    assert grown.sites[0].activation.name == name
    assert grown.sites[0].predicted_error == pytest.approx(grown.site_error, rel=5e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype):
    x = np.random.default_rng(0).normal(size=(1200, 5)).astype(dtype)
    grown = oc.grow(mlp(dtype=dtype), "first", {"x": x}, candidates=60, lam=1e-3, alpha=0.0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert {t.data_type for t in grown.model.graph.initializer} == {kind}
    assert grown.site_error < 0.1


def test_gate_raises_and_carries_the_child():
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    with pytest.raises(oc.VerificationError, match=r"above 0\.001") as caught:
        oc.grow(mlp(), "first", {"x": x}, candidates=6, max_rel_error=0.001)
    onnx.checker.check_model(caught.value.growth.model)
    assert not caught.value.growth.verdict


def test_a_child_that_is_not_finite_is_refused(monkeypatch):
    """Should a solve ever end in infinities, nothing is written."""
    from onnx_compnet import pipeline

    survivors = pipeline._survivors

    def damaged(candidate, selection):
        layers = survivors(candidate, selection)
        layers.readers[0].W2[0, 0] = np.inf
        return layers

    monkeypatch.setattr(pipeline, "_survivors", damaged)
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    with pytest.raises(oc.VerificationError, match="finite"):
        oc.grow(mlp(), "first", {"x": x}, candidates=12)


def test_a_child_that_onnxruntime_can_not_run_is_refused_and_carried(monkeypatch):
    monkeypatch.setattr(
        "onnx_compnet.planning.require_runnable", lambda *_: None
    )  # which would refuse it before
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]
    parent = network(
        nodes, {"w": normal(8, 2)}, (2, 2, 2), 2, dtype=np.float64
    )  # onnxruntime has no such Conv
    x = np.random.default_rng(0).normal(size=(100, 2, 2, 2))
    with pytest.raises(oc.VerificationError, match="Conv") as caught:
        oc.grow(parent, after="t", data={"x": x}, method="random", keep=3)
    (about,) = provenance.read(caught.value.growth.model)
    assert about["site_error"] is None


def test_an_output_that_was_constant_and_moves_is_reported():
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    parent = network(nodes, {"w": np.eye(3), "v": np.eye(3)}, (3,), 2)
    x = np.random.default_rng(0).uniform(1, 2, size=(100, 3)).astype(np.float32)
    growth = oc.grow(parent, after="t", data={"x": x}, method="random", keep=2)
    assert growth.verdict.outputs["y"].rel_error == np.inf
    (about,) = provenance.read(growth.model)
    assert about["outputs"]["y"]["rel_error"] is None


def test_both_sides_of_a_flatten_grow_in_any_order():
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]
    parent = network(nodes, {"w": normal(8, 2)}, (2, 2, 2), 2)
    x = np.random.default_rng(0).normal(size=(400, 2, 2, 2)).astype(np.float32)
    grown = [
        oc.grow(parent, after=after, data={"x": x}, method="random", candidates=6, keep=6)
        for after in (["t", "f"], ["f", "t"])
    ]
    assert [[site.site.tensor for site in growth.sites] for growth in grown] == [["t", "f"]] * 2
    assert grown[0].model == grown[1].model


def test_of_readers_with_one_name_the_worst_counts():
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["hard"], "same"),
        helper.make_node("MatMul", ["t", "v"], ["same"]),  # unnamed: it goes by its output's name
        helper.make_node("Add", ["hard", "same"], ["y"]),
    ]
    easy = np.repeat(normal(4, 1), 2, axis=1)
    parent = network(nodes, {"w": normal(4, 2, seed=1), "v": easy * 100}, (4,), 2)
    x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    grown = oc.grow(parent, after="t", data={"x": x}, method="random", candidates=4, keep=4)
    worst = max(c.rel_error for c in grown.verdict.targets.values())
    assert len(grown.verdict.targets) == 2
    assert grown.site_error == grown.sites[0].reader_errors["same"] == worst
    assert worst > grown.verdict.targets["same", -1].rel_error


@pytest.mark.parametrize("method", ["alg3", "random"])
def test_held_out_targets_that_do_not_vary_have_no_error_to_write(method):
    """All samples but one, which is fitted, are equal: the error of the held-out ones divides by 0."""
    x = np.ones((300, 5), np.float32)
    x[0] = 2  # fitted at seed 0
    grown = oc.grow(mlp(), "first", {"x": x}, method=method, keep=1, ridge=0.1)
    assert grown.site_error == np.inf
    (written,) = provenance.read(grown.model)
    assert written["site_error"] is None
    assert written["fitted_error"] == grown.sites[0].fitted_error


def test_a_child_that_can_not_run_is_a_failed_verdict(monkeypatch):
    from onnx_compnet import pipeline

    def refuse(*_):
        raise oc.VerificationError("the checker says no")

    monkeypatch.setattr(pipeline.model_io, "check", refuse)
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    with pytest.raises(oc.VerificationError, match="the checker says no") as caught:
        oc.grow(mlp(), "first", {"x": x}, candidates=12)
    assert np.isnan(caught.value.growth.site_error)
    assert provenance.read(caught.value.growth.model)[0]["site_error"] is None


def test_batch_size_does_not_show():
    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    for method in ("alg2", "alg3"):
        grown = [
            oc.grow(mlp(), "first", {"x": x}, candidates=24, method=method, batch_size=b)
            for b in (7, 64, 500)
        ]
        assert len({g.kept for g in grown}) == 1
        assert grown[0].site_error == pytest.approx(grown[2].site_error, rel=1e-4)


def test_unknown_option_is_named():
    with pytest.raises(oc.UsageError, match="lamda"):
        oc.grow(mlp(), "first", {"x": np.zeros((9, 5), np.float32)}, lamda=0.1)


def test_the_same_place_twice_is_refused():
    with pytest.raises(ValueError, match="same place"):
        oc.grow(mlp(), ["first", "act"], {"x": np.zeros((90, 5), np.float32)})


def test_a_model_that_draws_random_numbers_is_grown_with_a_warning():
    weights = {"one.weight": normal(6, 4), "two.weight": normal(3, 6)}
    nodes = [
        helper.make_node("Gemm", ["x", "one.weight"], ["a"], "first", transB=1),
        helper.make_node("RandomNormalLike", ["a"], ["noise"], "noise", scale=0.1),
        helper.make_node("Add", ["a", "noise"], ["s"], "add"),
        helper.make_node("Relu", ["s"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "two.weight"], ["y"], "second", transB=1),
    ]
    x = normal(300, 4, scale=1).astype(np.float32)
    grown = oc.grow(network(nodes, weights, (4,), 2), "relu", {"x": x})
    assert any("draws random numbers itself (RandomNormalLike 'noise')" in w for w in grown.warnings)


def test_a_transpose_in_front_of_a_gemm_may_be_a_site():
    """onnxruntime's fusion of the two would lose the Transpose, whose output is captured."""
    text = "g (float[N, 4] x) => (float[N, 3] y) { t = Transpose <perm = [1, 0]> (x) "
    text += "wt = Transpose <perm = [1, 0]> (w) y = Gemm <transA = 1> (t, wt) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    x = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    assert oc.grow(model, "tensor:t", {"x": x}).site_error < 0.5
