"""Candidates that carry the data's principal directions, through every kind of reader."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.config import GrowOptions
from onnx_compnet.planning import plan

RNG = np.random.default_rng(0)


def build(body: str, inputs: str, outputs: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for number, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(number).normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def low_rank(n: int, *shape: int) -> np.ndarray:
    """Samples of a few hidden causes, as activations are."""
    mix = RNG.normal(size=(3, shape[0]))
    causes = RNG.normal(size=(n, *shape[1:], 3))
    noise = 0.02 * RNG.normal(size=(n, *shape[1:], shape[0]))
    return np.moveaxis(causes @ mix + noise, -1, 1).astype(np.float32)


READERS = {
    "gemm": (lambda h: build(f"t = {h}(x) y = Gemm(t, w)", "float[N,8] x", "float[N,4] y", w=(8, 4)), (8,)),
    "conv": (lambda h: build(f"t = {h}(x) y = Conv(t, w)", "float[N,8,6,5] x", "float[N,C,H,W] y", w=(4, 8, 2, 2)),
             (8, 6, 5)),
    "padded": (lambda h: build(f"t = {h}(x) y = Conv<pads=[1,1,1,1]>(t, w)", "float[N,8,6,5] x", "float[N,C,H,W] y",
                             w=(4, 8, 3, 3)), (8, 6, 5)),
    "block": (lambda h: build(f"t = {h}(x) y = Softmax(t)", "float[N,8] x", "float[N,8] y"), (8,)),
}  # fmt: skip


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "Elu"])
@pytest.mark.parametrize("name", READERS)
def test_few_principal_neurons_do_better_than_random_ones(name: str, activation: str) -> None:
    make, shape = READERS[name]
    model = make(activation)
    data = {"x": low_rank(400, *shape)}
    keep = 6
    errors = [
        oc.grow(model, "tensor:t", data, method="obs", keep=keep, init=init, candidates=24).site_error
        for init in ("auto", "principal")
    ]
    assert errors[1] < 1.05 * errors[0]
    if name in ("gemm", "conv"):
        assert errors[1] < 0.7 * errors[0]


def test_all_directions_carry_everything() -> None:
    model = READERS["gemm"][0]("Relu")
    grown = oc.grow(
        model, "tensor:t", {"x": low_rank(600, 8)}, method="random", keep=16, init="principal", ridge=0.0
    )
    assert grown.site_error < 0.06  # beyond three standard deviations they bend


def test_the_readers_weights_stay_small_where_candidates_depend_on_each_other() -> None:
    """Smooth maps in front of a large kernel: without known weights the fit would cancel large ones."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 4, 9, 9)).cumsum(2).cumsum(3).astype(np.float32) / 5
    model = build("t = Relu(x) y = Conv(t, w)", "float[N,4,9,9] x", "float[N,C,H,W] y", w=(3, 4, 5, 5))
    grown = oc.grow(model, "tensor:t", {"x": x}, init="principal", method="random", candidates=8, keep=8)
    weights = {i.name: numpy_helper.to_array(i) for i in grown.model.graph.initializer}
    assert grown.site_error < 0.15
    assert np.abs(weights["w"]).max() < 30 * np.abs(numpy_helper.to_array(model.graph.initializer[0])).max()


@pytest.mark.parametrize("n", [100, 1000])
def test_a_principal_neuron_varies_by_1_however_many_samples_there_are(n: int) -> None:
    x = low_rank(n, 8)
    grown = oc.grow(READERS["gemm"][0]("Relu"), "tensor:t", {"x": x}, method="random", keep=8, candidates=8,
                    init="principal", ridge=0.0)  # fmt: skip
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in grown.model.graph.initializer}
    W1 = next(W for name, W in weights.items() if name.startswith("compnet/") and W.shape == (8, 8))
    outputs = np.maximum(x, 0) @ W1.T
    # the reader needs four directions; they were found on four fifths of the samples
    assert np.abs(outputs.std(0)[:4] - 1).max() < 0.3


def test_same_bytes_for_one_seed_and_other_random_ones_for_another() -> None:
    model = READERS["conv"][0]("Relu")
    data = {"x": low_rank(200, 8, 6, 5)}
    children = [
        oc.grow(model, "tensor:t", data, method="alg3", init="principal", seed=seed).model.SerializeToString()
        for seed in (0, 0, 1)
    ]
    assert children[0] == children[1] != children[2]


def test_fewer_candidates_than_directions() -> None:
    model = READERS["gemm"][0]("Relu")
    grown = oc.grow(
        model, "tensor:t", {"x": low_rank(300, 8)}, candidates=3, method="random", keep=3, init="principal"
    )
    assert len(grown.kept) == 3


def test_grouped_readers_keep_their_random_candidates_and_say_so() -> None:
    model = build(
        "t = Relu(x) y = Conv<group=2>(t, w)", "float[N,8,6,5] x", "float[N,C,H,W] y", w=(4, 4, 2, 2)
    )
    grown = oc.grow(model, "tensor:t", {"x": low_rank(200, 8, 6, 5)}, init="principal")
    assert any("principal directions are not for grouped" in text for text in grown.warnings)


def test_a_dry_run_takes_the_option() -> None:
    model = READERS["gemm"][0]("Relu")
    assert "16 candidates" in plan(
        model, "tensor:t", {"x": low_rank(50, 8)}, options=GrowOptions(init="principal")
    )
