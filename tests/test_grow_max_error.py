"""--max-error from the data to the child: the width, the figure that is measured, and what is out of reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_compnet_cli.main import main

import onnx_compnet as oc
from onnx_compnet.config import CONSTRUCTED, FLOAT64_BELOW, METHODS, GrowOptions

MODELS = Path(__file__).parent.parent / "models"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(1500, 6)).astype(np.float32)
FITTING = [method for method in METHODS if method not in CONSTRUCTED]


def model(readers=1, act="Relu"):
    weights = {"w": RNG.normal(size=(6, 8)), **{f"v{i}": RNG.normal(size=(8, 3 + i)) for i in range(readers)}}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"], "first"), helper.make_node(act, ["a"], ["b"], "act")]
    nodes += [helper.make_node("Gemm", ["b", f"v{i}"], [f"y{i}"], f"reader{i}") for i in range(readers)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["N", 3 + i]) for i in range(readers)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def parent():
    return model()


@pytest.mark.parametrize("method", FITTING)
@pytest.mark.parametrize("allowed", [0.4, 0.1])
def test_the_error_that_is_measured_keeps_to_it(parent, method, allowed):
    grown = oc.grow(parent, "first", {"x": X}, method=method, candidates=80, max_error=allowed)
    assert grown.site_error <= allowed
    site = grown.sites[0]
    assert site.predicted_error == pytest.approx(grown.site_error, rel=1e-3)
    assert site.max_error == allowed
    if len(grown.kept) > 1:
        narrower = next(point for point in site.curve if point.kept == len(grown.kept) - 1)
        assert narrower.error > allowed * 0.999


def test_small_errors_are_summed_in_float64(parent):
    assert GrowOptions(max_error=FLOAT64_BELOW / 2).precise_sums
    assert not GrowOptions(max_error=FLOAT64_BELOW).precise_sums
    grown = oc.grow(parent, "first", {"x": X}, method="obs", mode="block", max_error=1e-3)
    assert grown.site_error <= 1e-3
    assert grown.sites[0].predicted_error <= 1e-3
    tanh = oc.grow(model(act="Tanh"), "first", {"x": X}, method="obs", candidates=150, max_error=5e-3)
    assert tanh.site_error <= 5e-3
    assert tanh.sites[0].predicted_error == pytest.approx(tanh.site_error, rel=1e-3)


def test_every_reader_keeps_to_it():
    grown = oc.grow(model(readers=3), "first", {"x": X}, method="obs", candidates=80, max_error=0.2).sites[0]
    assert len(grown.reader_errors) == 3
    assert max(grown.reader_errors.values()) == grown.site_error <= 0.2


def test_keep_is_a_limit(parent):
    free = oc.grow(parent, "first", {"x": X}, method="obs", candidates=80, max_error=0.3)
    width = len(free.kept)
    same = oc.grow(parent, "first", {"x": X}, method="obs", candidates=80, max_error=0.3, keep=width)
    assert same.kept == free.kept
    with pytest.raises(
        oc.VerificationError, match=rf"site first: .* with {width - 1} of 80 candidates \(keep"
    ):
        oc.grow(parent, "first", {"x": X}, method="obs", candidates=80, max_error=0.3, keep=width - 1)


def test_a_constructed_layer_is_held_to_it(parent):
    assert oc.grow(parent, "first", {"x": X}, method="net2deeper", max_error=1e-4).site_error <= 1e-4
    with pytest.raises(oc.VerificationError, match="above --max-error 1e-05") as failed:
        oc.grow(parent, "first", {"x": X}, method="netmorph", keep=1, max_error=1e-5)
    assert failed.value.growth.site_error > 1e-5


def test_several_sites_each_keep_to_it_and_what_adds_up_is_told():
    path = MODELS / "lenet4.onnx"
    data = MODELS / "fashion_mnist_calibration.npz"
    options = {"scale": 1 / 255, "max_samples": 300, "candidates": 60, "method": "forward"}
    grown = oc.grow(path, ["conv1", "fc1"], data, max_error=0.4, **options)
    assert all(site.predicted_error <= 0.4 for site in grown.sites)
    above = [site for site in grown.sites if site.site_error > 0.4]
    assert [f"{site.site.name}: the site error is" in " ".join(grown.warnings) for site in above] == [
        True
    ] * len(above)


@pytest.mark.parametrize("method", FITTING)
def test_the_same_options_make_the_same_child(parent, method):
    options = {"method": method, "candidates": 40, "max_error": 0.4, "seed": 2}
    assert (
        oc.grow(parent, "first", {"x": X}, **options).model
        == oc.grow(parent, "first", {"x": X}, **options).model
    )


@pytest.mark.parametrize("method", ["obs", "forward", "random"])
def test_a_width_is_needed(parent, method):
    with pytest.raises(oc.UsageError, match=f"method {method} has no width .* --keep C .* --max-error E"):
        oc.grow(parent, "first", {"x": X}, method=method)


@pytest.mark.parametrize("bad", [0, -0.1, float("nan"), "0.1"])
def test_bad_errors(parent, bad):
    with pytest.raises(oc.UsageError, match="--max-error must be a number above 0"):
        oc.grow(parent, "first", {"x": X}, method="obs", max_error=bad)


def test_scaled_rows_can_not_be_held_to_it(parent):
    with pytest.raises(oc.UsageError, match="--no-refit"):
        oc.grow(parent, "first", {"x": X}, max_error=0.1, refit=False)


def test_on_the_command_line(tmp_path, capsys, parent):
    child, report = tmp_path / "child.onnx", tmp_path / "report.json"
    (tmp_path / "m.onnx").write_bytes(parent.SerializeToString())
    np.savez(tmp_path / "x.npz", x=X)
    command = ["grow", str(tmp_path / "m.onnx"), "--after", "first", "--data", str(tmp_path / "x.npz")]
    command += ["--candidates", "60", "--method", "obs", "-o", str(child), "--json", str(report)]
    assert main([*command, "--max-error", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "obs, site error at most 0.3" in shown
    found = json.loads(report.read_text())
    assert found["max_error"] == 0.3
    assert [point["kept"] for point in found["curve"]] == list(range(1, 61))
    assert {"lam", "kept", "error", "fitted_error"} == set(found["curve"][0])
    width = found["width"]
    error = found["curve"][width - 1]["error"]
    assert f"{width}: {error:.3g}" in shown
    assert "60: " in shown
    child.unlink()
    report.unlink()
    assert main([*command, "--max-error", "1e-6"]) == 1
    assert "site first: a held-out error of 1e-06 is out of reach" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "x.npz"]
    assert main([*command, "--max-error", "0.3", "--dry-run"]) == 2  # nothing for --json
    assert main([*command[:-2], "--max-error", "0.3", "--dry-run"]) == 0
    assert "obs, at most 60 kept, site error at most 0.3" in capsys.readouterr().out


GEOMETRIES = {
    "grouped": (
        "y = Conv<group=2, pads=[1,1,1,1]>(t, w)",
        "float[N,4,7,6] x",
        "float[N,C,H,W] y",
        (6, 2, 3, 3),
    ),
    "depthwise": ("y = Conv<group=4>(t, w)", "float[N,4,7,6] x", "float[N,C,H,W] y", (4, 1, 3, 3)),
    "transposed": (
        "y = ConvTranspose<strides=[2,2]>(t, w)",
        "float[N,4,5,4] x",
        "float[N,C,H,W] y",
        (4, 3, 2, 2),
    ),
    "1-D": ("y = Conv<pads=[1,1], strides=[2]>(t, w)", "float[N,4,12] x", "float[N,C,L] y", (5, 4, 3)),
    "3-D": ("y = Conv(t, w)", "float[N,3,4,4,4] x", "float[N,C,D,H,W] y", (3, 3, 2, 2, 2)),
    "flattened": ("f = Flatten(t) y = Gemm(f, w)", "float[N,3,2,2] x", "float[N,M] y", (12, 4)),
    "matmul": ("y = MatMul(t, w)", "float[N,5,6] x", "float[N,5,M] y", (6, 4)),
    "on the left": ("y = MatMul(w, t)", "float[N,6,5] x", "float[N,M,5] y", (4, 6)),
}


@pytest.mark.parametrize("method", ["obs", "forward", "alg3", "random"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry(name, method):
    rng = np.random.default_rng(1)
    body, x, y, shape = GEOMETRIES[name]
    parsed = parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g ({x}) => ({y}) {{ t = Relu(x) {body} }}'
    )
    parsed.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "w"))
    dims = [each.dim_value for each in parsed.graph.input[0].type.tensor_type.shape.dim[1:]]
    data = {"x": rng.normal(size=(900, *dims)).astype(np.float32)}
    grown = oc.grow(parsed, "tensor:t", data, method=method, candidates=24, max_error=0.6)
    assert grown.site_error <= 0.6
    assert grown.sites[0].predicted_error == pytest.approx(grown.site_error, rel=1e-3, abs=1e-3)
    assert len(grown.kept) % grown.site.groups == 0
    assert len(grown.kept) < 24
    widths = [point.kept for point in grown.sites[0].curve]
    assert widths == list(range(grown.site.groups, 25, grown.site.groups))
    same = oc.grow(parsed, "tensor:t", data, method="obs", candidates=24, keep=len(grown.kept))
    assert len(same.kept) == len(grown.kept)
