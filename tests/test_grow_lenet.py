"""The main job on the model and data of the repository, measured here by code that shares nothing with the tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_compnet as oc

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def images():
    with np.load(MODELS / "fashion_mnist_calibration.npz") as data:
        return data["x"].astype(np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def parts(images):
    """1,000 images to fit, 400 others to measure on."""
    order = np.random.default_rng(1).permutation(len(images))
    return images[order[:1000]], images[order[1000:1400]]


def run(model, tensors, x):
    """Values of the tensors, by onnxruntime alone."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    have = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in have)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(tensors), {session.get_inputs()[0].name: x})


def centred_error(child, parent):
    """‖a - b‖ / ‖b - mean of b by channel‖ for (N, C, H, W)."""
    child, parent = child.astype(np.float64), parent.astype(np.float64)
    return np.linalg.norm(child - parent) / np.linalg.norm(
        parent - parent.mean(axis=(0, 2, 3), keepdims=True)
    )


@pytest.fixture(scope="module", params=["alg1", "alg2", "alg3", "obs", "forward", "random"])
def grown(request, parts):
    keep = {"random": 60, "obs": 40, "forward": 40}.get(request.param)
    return oc.grow(
        MODELS / "lenet4.onnx",
        "conv1",
        {"x": parts[0]},
        holdout_data={"x": parts[1]},
        method=request.param,
        candidates=100,
        keep=keep,
        lam=0.03 if request.param == "alg3" else 0.1,
    )


@pytest.mark.slow
def test_figures_are_confirmed_by_an_independent_measurement(grown, parts):
    parent = onnx.load(MODELS / "lenet4.onnx")
    onnx.checker.check_model(grown.model, full_check=True)
    onnx.shape_inference.infer_shapes(grown.model, check_type=True, strict_mode=True)
    ((before, after),) = grown.targets
    logits, y = run(parent, ["logits", before], parts[1])
    child_logits, child_y = run(grown.model, ["logits", after], parts[1])

    assert grown.site_error == pytest.approx(centred_error(child_y, y), rel=1e-4)
    agreement = float(np.mean(logits.argmax(-1) == child_logits.argmax(-1)))
    outcome = grown.verdict.outputs["logits"]
    assert outcome.agreement == pytest.approx(agreement, abs=1e-12)
    spread = np.linalg.norm(logits.astype(np.float64) - logits.astype(np.float64).mean())
    assert outcome.rel_error == pytest.approx(np.linalg.norm(child_logits - logits) / spread, rel=1e-4)
    assert grown.samples_held_out == len(parts[1])
    assert agreement >= 0.97


@pytest.mark.slow
def test_the_child_has_one_conv_more_and_as_wide_as_reported(grown):
    convs = [node for node in grown.model.graph.node if node.op_type == "Conv"]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in grown.model.graph.initializer}
    new, reader = convs[1], convs[2]
    assert len(convs) == 3
    assert new.name.startswith("compnet/")
    assert reader.name == "/conv2/Conv"
    assert shapes[new.input[1]] == (len(grown.kept), 20, 3, 3)
    assert shapes[reader.input[1]] == (50, len(grown.kept), 5, 5)
    assert grown.parameters_after - grown.parameters_before == (
        len(grown.kept) * (20 * 9 + 1) + 50 * 25 * (len(grown.kept) - 20)
    )
    assert np.flatnonzero(grown.beta).tolist() == list(grown.kept)


@pytest.fixture(scope="module")
def quick():
    """Settings under which a growth of LeNet takes a second or two."""
    return {"data": MODELS / "fashion_mnist_calibration.npz", "scale": 1 / 255, "max_samples": 400}


def test_default_lambda_is_compact(quick):
    grown = oc.grow(MODELS / "lenet4.onnx", "conv1", candidates=40, **quick)
    assert 1 <= len(grown.kept) < 0.8 * 40


@pytest.mark.parametrize("method", ["alg1", "alg2", "alg3"])
def test_keep_is_a_cap(method, quick):
    grown = oc.grow(MODELS / "lenet4.onnx", "conv1", method=method, candidates=40, keep=20, **quick)
    assert 1 <= len(grown.kept) <= 20


def test_both_exports_give_the_same_child(quick, parts):
    children = [
        oc.grow(MODELS / name, "conv1", candidates=20, **quick)
        for name in ("lenet4.onnx", "lenet4_dynamo.onnx")
    ]
    assert children[0].kept == children[1].kept
    outputs = [run(child.model, ["logits"], parts[1])[0] for child in children]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5 * np.abs(outputs[0]).max())


def test_same_seed_same_bytes_other_seed_other_bytes(quick):
    def child(seed):
        return oc.grow(MODELS / "lenet4.onnx", "conv1", candidates=20, seed=seed, **quick).model

    assert child(3).SerializeToString(deterministic=True) == child(3).SerializeToString(deterministic=True)
    assert child(3).SerializeToString(deterministic=True) != child(4).SerializeToString(deterministic=True)


def test_the_parent_is_not_edited(quick):
    parent = oc.load(MODELS / "lenet4.onnx")
    before = parent.SerializeToString(deterministic=True)
    oc.grow(parent, "conv2", candidates=60, method="random", keep=5, **quick)
    assert parent.SerializeToString(deterministic=True) == before


def test_every_site_of_lenet_grows(quick):
    model = oc.load(MODELS / "lenet4.onnx")
    for site in oc.find_sites(model):
        grown = oc.grow(model, site.name, candidates=8, method="random", keep=4, **quick)
        assert grown.site == site
        assert len(grown.kept) == 4
        assert np.isfinite(grown.site_error)


def test_several_sites_in_one_run(quick):
    grown = oc.grow(MODELS / "lenet4.onnx", ["fc1", "conv1"], candidates=30, **quick)
    assert [entry.site.name for entry in grown.sites] == ["conv1", "fc1"]
    assert len([node for node in grown.model.graph.node if node.op_type in ("Conv", "Gemm")]) == 6
    assert grown.verdict.outputs["logits"].agreement > 0.5


def test_a_child_can_be_grown_again(quick):
    first = oc.grow(MODELS / "lenet4.onnx", "conv1", candidates=30, **quick)
    second = oc.grow(first.model, "conv1", candidates=30, **quick)
    assert len([node for node in second.model.graph.node if node.op_type == "Conv"]) == 4


def test_held_out_error_is_near_the_moments_prediction(quick):
    grown = oc.grow(MODELS / "lenet4.onnx", "conv1", candidates=20, **quick).sites[0]
    assert grown.predicted_error == pytest.approx(grown.site_error, rel=1e-3)
    assert grown.fitted_error < grown.site_error
