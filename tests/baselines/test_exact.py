"""Method exact: the same function in onnxruntime, by as few neurons as the readers' weights need."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.errors import UnsupportedError, UsageError, VerificationError

PAIRS = ("relu", "leaky_relu", "prelu", "gelu", "gelu_tanh", "silu", "hardswish", "softplus")


def build(
    body: str, x: str, y: str, weights: dict[str, np.ndarray], act: str = "Relu", opset: int = 20
) -> ModelProto:
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({x}) => ({y}) {{ t = {act}(x) {body} }}'
    model = parser.parse_model(text)
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_rank(rank: int, *shape: int) -> np.ndarray:
    """Weights (D2, D1, *kernel) whose channels span ``rank`` dimensions."""
    rows = normal(shape[1], rank) @ normal(rank, shape[0] * int(np.prod(shape[2:])), seed=6)
    return np.moveaxis(rows.reshape(shape[1], shape[0], *shape[2:]), 0, 1).astype(np.float32)


IMAGE = "float[N,6,9,8] x"
MODELS = {  # model, the width with relu (behind Relu), the width with any other
    "conv": (lambda: build("y = Conv<pads=[1,1,1,1]>(t, w, b)", IMAGE, "float[N,C,H,W] y",
                           {"w": normal(5, 6, 3, 3), "b": normal(5)}), 6, 12),
    "conv of rank 2": (lambda: build("y = Conv<pads=[1,1,1,1]>(t, w)", IMAGE, "float[N,C,H,W] y",
                                     {"w": of_rank(2, 5, 6, 3, 3)}), 4, 4),
    "few outputs, strides, dilations": (
        lambda: build("y = Conv<pads=[1,2,1,2], strides=[2,1], dilations=[1,2]>(t, w)", IMAGE,
                      "float[N,C,H,W] y", {"w": of_rank(2, 2, 6, 3, 3)}), 4, 4),
    "same_lower, even kernel": (
        lambda: build('y = Conv<auto_pad="SAME_LOWER">(t, w)', IMAGE, "float[N,C,H,W] y",
                      {"w": of_rank(1, 3, 6, 2, 4)}), 2, 2),
    "channels that nobody reads": (
        lambda: build("y = Conv(t, w)", IMAGE, "float[N,C,H,W] y",
                      {"w": normal(5, 6, 1, 1) * np.array([1, 0, 1, 1, 0, 1], np.float32)[:, None, None]}), 4, 8),
    "two readers": (
        lambda: build("y = Conv(t, w) z = Conv<pads=[1,1,1,1], strides=[2,2]>(t, v)", IMAGE,
                      "float[N,C,H,W] y, float[N,D,I,J] z",
                      {"w": of_rank(1, 3, 6, 1, 1), "v": of_rank(1, 4, 6, 3, 3)[:, ::-1].copy()}), 4, 4),
    "grouped": (lambda: build("y = Conv<group=2, pads=[1,1,1,1]>(t, w)", IMAGE, "float[N,C,H,W] y",
                              {"w": of_rank(1, 8, 3, 3, 3)}), 4, 4),
    "groups of different rank": (
        lambda: build("y = Conv<group=2>(t, w)", IMAGE, "float[N,C,H,W] y",
                      {"w": np.concatenate([of_rank(1, 4, 3, 1, 1), normal(4, 3, 1, 1)])}), 6, 12),
    "depthwise": (lambda: build("y = Conv<group=6>(t, w)", IMAGE, "float[N,C,H,W] y",
                                {"w": normal(6, 1, 3, 3)}), 6, 12),
    "transposed": (lambda: build("y = ConvTranspose<strides=[2,2]>(t, w)", IMAGE, "float[N,C,H,W] y",
                                 {"w": np.moveaxis(of_rank(2, 4, 6, 3, 3), 0, 1).copy()}), 4, 4),
    "1-D": (lambda: build("y = Conv<pads=[2,1]>(t, w)", "float[N,6,11] x", "float[N,C,L] y",
                          {"w": of_rank(2, 4, 6, 4)}), 4, 4),
    "3-D": (lambda: build("y = Conv(t, w)", "float[N,4,5,4,6] x", "float[N,C,D,H,W] y",
                          {"w": of_rank(1, 4, 4, 3, 2, 2)}), 2, 2),
    "flattened": (lambda: build("f = Flatten(t) y = Gemm(f, w)", "float[N,6,3,2] x", "float[N,M] y",
                                {"w": of_rank(2, 5, 6, 6).transpose(1, 2, 0).reshape(36, 5).copy()}), 4, 4),
    "gemm": (lambda: build("y = Gemm<transB=1, alpha=0.5>(t, w, b)", "float[N,8] x", "float[N,M] y",
                           {"w": of_rank(3, 5, 8), "b": normal(5)}), 6, 6),
    "matmul": (lambda: build("y = MatMul(t, w)", "float[N,5,8] x", "float[N,5,M] y",
                             {"w": of_rank(3, 5, 8).T.copy()}), 6, 6),
    "on the left": (lambda: build("y = MatMul(w, t)", "float[N,8,5] x", "float[N,M,5] y",
                                  {"w": of_rank(3, 5, 8)}), 6, 6),
    "block": (lambda: build("h = Conv(t, w) y = Add(t, h)", IMAGE, "float[N,6,9,8] y",
                            {"w": normal(6, 6, 1, 1)}), 6, 12),
}  # fmt: skip


def run(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


def x_of(model: ModelProto, samples: int = 30) -> np.ndarray:
    dims = model.graph.input[0].type.tensor_type.shape.dim[1:]
    return normal(samples, *(dim.dim_value for dim in dims))


@pytest.mark.parametrize("activation", ["auto", "gelu"])
@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_at_full_rank(name: str, activation: str) -> None:
    make, with_relu, with_pairs = MODELS[name]
    model = make()
    x = x_of(model)
    growth = oc.grow(model, "tensor:t", {"x": x}, method="exact", activation=activation)
    for before, after in zip(run(model, x), run(growth.model, x), strict=True):
        assert np.linalg.norm(after - before) <= 2e-6 * np.linalg.norm(before)
    assert growth.site_error < 1e-5
    assert len(growth.kept) == (with_relu if activation == "auto" else with_pairs)
    assert len(growth.model.graph.node) > len(model.graph.node)
    assert not growth.warnings


@pytest.mark.parametrize("activation", PAIRS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_exact_pair_at_every_scale(activation: str, scale: float) -> None:
    model = build(
        "y = Gemm(t, w)", "float[N,8] x", "float[N,M] y", {"w": of_rank(3, 5, 8).T.copy()}, act="Tanh"
    )
    model.graph.node.insert(1, onnx.helper.make_node("Mul", ["t0", "scale"], ["t"]))
    model.graph.node[0].output[0] = "t0"
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
    growth = oc.grow(model, "tensor:t", {"x": x_of(model, 200)}, method="exact", activation=activation)
    assert len(growth.kept) == 6
    assert growth.site_error < (1e-6 if activation != "softplus" else 1e-5)


def test_a_clip_hands_the_channels_on_that_are_read() -> None:
    zeros = np.array([1, 0, 1, 1, 0, 1, 1, 1], np.float32)
    model = build(
        "y = Gemm(t, w)", "float[N,8] x", "float[N,M] y", {"w": of_rank(2, 5, 8).T * zeros[:, None]}
    )
    model.graph.node[0].op_type = "Clip"
    model.graph.node[0].input.extend(["low", "high"])
    for name, value in (("low", 0.0), ("high", 6.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    growth = oc.grow(model, "tensor:t", {"x": x_of(model)}, method="exact")
    assert str(growth.sites[0].activation).startswith("clip")
    assert len(growth.kept) == 6
    assert growth.site_error < 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_precisions(dtype: type) -> None:
    """In half precision only channels themselves are exact, not combinations of them."""
    kind = {"float64": "double", "float16": "float16"}[np.dtype(dtype).name]
    weights = normal(4, 3).astype(np.float64) @ normal(3, 8).astype(np.float64)
    model = build(
        "y = Gemm<transB=1>(t, w)", f"{kind}[N,8] x", f"{kind}[N,M] y", {"w": weights.astype(dtype)}
    )
    growth = oc.grow(
        model, "tensor:t", {"x": x_of(model, 100).astype(dtype)}, method="exact", activation="silu"
    )
    assert len(growth.kept) == (6 if dtype == np.float64 else 16)
    assert growth.site_error < (1e-12 if dtype == np.float64 else 5e-3)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "elu", "mish"])
def test_what_has_no_exact_layer_names_the_best_approximate_one(activation: str) -> None:
    model = MODELS["conv"][0]()
    model.graph.node[0].op_type = "Tanh"
    with pytest.raises(
        UnsupportedError, match=rf"{activation}.* no exact layer .*--activation relu.*--method alg3"
    ):
        oc.grow(model, "tensor:t", {"x": x_of(model)}, method="exact", activation=activation)


def test_weights_that_are_all_zero() -> None:
    model = build(
        "y = Gemm(t, w, b)",
        "float[N,8] x",
        "float[N,M] y",
        {"w": np.zeros((8, 3), np.float32), "b": normal(3)},
    )
    growth = oc.grow(model, "tensor:t", {"x": x_of(model)}, method="exact")
    assert len(growth.kept) == 1
    assert growth.site_error == 0


def test_the_width_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gemm"][0]()
    for option in ({"keep": 3}, {"candidates": 30}):
        with pytest.raises(UsageError, match="method exact has as many neurons as it needs"):
            oc.grow(model, "tensor:t", {"x": x_of(model)}, method="exact", **option)
    from onnx_compnet import steps

    monkeypatch.setitem(steps.TOLERANCE, "float32", 1e-12)
    with pytest.raises(VerificationError, match="above the 1e-12 of an exact layer") as failed:
        oc.grow(model, "tensor:t", {"x": x_of(model)}, method="exact", activation="gelu")
    assert failed.value.growth.site_error > 1e-12


def test_two_exact_layers_one_behind_the_other() -> None:
    model = MODELS["gemm"][0]()
    x = x_of(model)
    child = oc.grow(model, "tensor:t", {"x": x}, method="exact").model
    again = oc.grow(child, "tensor:t", {"x": x}, method="exact", activation="gelu")
    assert np.allclose(run(again.model, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-5)
