"""suggest: scores against plain torch, costs against real growths, and its bad inputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper, parser
from onnx_compnet_cli.main import main

import onnx_compnet as oc
from onnx_compnet.cost import forward_flops
from onnx_compnet.errors import DataError, ModelError, UnsupportedError, UsageError

DATA = "models/fashion_mnist_calibration.npz"
LENET = "models/lenet4.onnx"


def build(body: str, inputs: str, outputs: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for number, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(number).normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def network() -> onnx.ModelProto:
    return build(
        "a = Conv<pads=[1,1,1,1]>(x, w1, b1) t = Relu(a) c = Conv(t, w2, b2) d = Relu(c) f = Flatten(d)"
        " y = Gemm<transB=1>(f, w3, b3)",
        "float[N,2,6,5] x", "float[N,4] y", w1=(3, 2, 3, 3), b1=(3,), w2=(4, 3, 2, 2), b2=(4,), w3=(4, 80), b3=(4,),
    )  # fmt: skip


def samples(n: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"x": rng.normal(size=(n, 2, 6, 5)).astype(np.float32), "y": rng.integers(0, 4, n)}


def score_of(suggestion: oc.Suggestion, tensor: str) -> oc.SiteScore:
    return next(score for score in suggestion.sites if score.site.tensor == tensor)


def test_scores_are_those_of_plain_torch() -> None:
    """The bottleneck at t: least squares of −∂L/∂c on patches of t, by hand."""
    model, data = network(), samples()
    found = score_of(oc.suggest(model, data, batch_size=128), "t")
    w = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in model.graph.initializer}
    t = F.relu(F.conv2d(torch.from_numpy(data["x"]), w["w1"], w["b1"], padding=1))
    c = F.conv2d(t, w["w2"], w["b2"]).requires_grad_()
    scores = F.linear(F.relu(c).flatten(1), w["w3"], w["b3"])
    loss = F.cross_entropy(scores, torch.from_numpy(data["y"]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, c)
    v = -gradient.movedim(1, -1).reshape(-1, 4).double().numpy()
    u = F.unfold(t, 2).transpose(1, 2).reshape(len(v), -1).double().numpy()
    design = np.column_stack([u, np.ones(len(u))])
    left = v - design @ np.linalg.lstsq(design, v, rcond=None)[0]
    expected = (left**2).sum() / (1 - u.shape[1] / len(u)) / len(data["x"])
    assert found.bottleneck == pytest.approx(expected, rel=1e-4)
    assert found.unexpressed == pytest.approx(expected * len(data["x"]) / (v**2).sum(), rel=1e-4)
    x = t.movedim(1, -1).reshape(-1, 3).double().numpy()
    shares = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    shares /= shares.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize("tensor", ["t", "d", "x", "y"])
def test_the_cost_is_that_of_a_growth_that_keeps_all(tensor: str) -> None:
    model, data = network(), samples(3000 if tensor == "d" else 400)
    found = score_of(oc.suggest(model, data), tensor)
    method = {"method": "random", "keep": found.neurons, "candidates": found.neurons}
    grown = oc.grow(model, f"tensor:{tensor}", {"x": data["x"]}, **method)
    assert len(grown.kept) == found.neurons
    assert grown.parameters_after - grown.parameters_before == found.parameters
    feed = {"x": data["x"][:2]}
    assert forward_flops(grown.model, feed) - forward_flops(model, feed) == 2 * found.flops


def test_places_are_ranked_by_the_bottleneck_or_by_the_rank() -> None:
    data = samples()
    with_labels, without = oc.suggest(network(), data), oc.suggest(network(), {"x": data["x"]})
    psi = [score.bottleneck for score in with_labels.sites if score.bottleneck is not None]
    assert psi == sorted(psi, reverse=True)
    used = [score.used for score in without.sites]
    assert used == sorted(used, reverse=True)
    assert without.loss is None
    assert all(score.bottleneck is None for score in without.sites)
    assert any("without labels" in text for text in without.warnings)
    names = {site.name for site in oc.find_sites(network())}
    assert {score.site.name for score in with_labels.sites} == names


def test_grouped_readers_blocks_and_several_readers() -> None:
    model = build(
        "a = Conv<pads=[1,1,1,1]>(x, w1) t = Relu(a) c = Conv<group=2, pads=[1,1,1,1]>(t, w2) s = Add(c, t)"
        " r = Relu(s) p = Conv(r, w3) q = Conv(r, w4) z = Add(p, q) m = GlobalAveragePool(z) y = Flatten(m)",
        "float[N,2,6,5] x", "float[N,3] y", w1=(4, 2, 3, 3), w2=(4, 2, 3, 3), w3=(3, 4, 1, 1), w4=(3, 4, 1, 1),
    )  # fmt: skip
    data = samples()
    found = oc.suggest(model, {"x": data["x"], "y": data["y"] % 3})
    assert all(score.bottleneck is not None for score in found.sites if score.site.tensor != "y")
    assert {score.site.mode for score in found.sites} == {"replace", "block"}
    two = score_of(found, "r")
    assert len(two.site.linear) == 2
    assert two.unexpressed is not None
    assert 0 < two.unexpressed <= 1


def test_float_labels_mean_squares_and_a_named_array_and_output() -> None:
    model = build(
        "t = Relu(x) y = MatMul(t, w) z = MatMul(t, v)", "float[N,6] x", "float[N,2] y, float[N,3] z",
        w=(6, 2), v=(6, 3),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(200, 6)).astype(np.float32), "target": rng.normal(size=(200, 3))}
    found = oc.suggest(model, data, labels="target", output_name="z")
    assert found.loss == "mse"
    with pytest.raises(UsageError, match="say which counts"):
        oc.suggest(model, data, labels="target")


def test_too_few_rows_are_a_reason_that_says_how_many_are_enough() -> None:
    data = samples(100)
    found = score_of(oc.suggest(network(), data), "f")
    assert found.bottleneck is None
    assert "100 rows are too few for 80 columns: give 160 samples" in found.unscored
    enough = score_of(oc.suggest(network(), samples(160)), "f")
    assert enough.bottleneck is not None


def test_the_batch_size_changes_nothing() -> None:
    data = samples(200)
    one, other = (oc.suggest(network(), data, batch_size=size) for size in (7, 64))
    for a, b in zip(one.sites, other.sites, strict=True):
        assert a.site.name == b.site.name
        assert a.effective_rank == pytest.approx(b.effective_rank, rel=1e-4)
        assert a.bottleneck == pytest.approx(b.bottleneck, rel=1e-3)


def test_sites_are_measured_in_turns_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples(200)
    whole = oc.suggest(network(), data)
    monkeypatch.setattr("onnx_compnet.suggestion.run.available_memory", lambda _: 1000)
    in_turns = oc.suggest(network(), data)
    assert [score.bottleneck for score in whole.sites] == [score.bottleneck for score in in_turns.sites]


BAD = {
    "labels_out_of_range": ({"x": samples()["x"], "y": np.full(400, 9)}, {}, DataError, "4 classes"),
    "no_such_labels": (samples(), {"labels": "z"}, DataError, "'z'"),
    "unknown_loss": (samples(), {"loss": "hinge"}, UsageError, "not one of"),
    "unknown_option": (samples(), {"epochs": 3}, UsageError, "no option 'epochs'"),
    "no_data": (None, {}, UsageError, "needs samples"),
    "other_shape": ({"x": np.zeros((5, 3, 6, 5), np.float32)}, {}, DataError, "shape"),
    "bad_count": (samples(), {"max_samples": 0}, UsageError, "--max-samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    data, options, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        oc.suggest(network(), data, **options)


def test_models_that_can_not_be_scored() -> None:
    nothing = build("y = Relu(x)", "float[N,M] x", "float[N,M] y")
    with pytest.raises(UnsupportedError, match="nothing in this model can be grown"):
        oc.suggest(nothing, {"x": np.zeros((4, 3), np.float32)})
    infinite = build("t = Relu(x) h = MatMul(t, w) y = Log(h)", "float[N,4] x", "float[N,3] y", w=(4, 3))
    data = {"x": np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), "y": np.zeros(50, int)}
    with pytest.raises(ModelError, match="not finite on samples 0"):
        oc.suggest(infinite, data)


def test_the_command_on_lenet(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    figures = tmp_path / "suggest.json"
    arguments = ["suggest", LENET, "--data", DATA, "--scale", "1/255", "--max-samples", "1700", "--json"]
    assert main([*arguments, str(figures)]) == 0
    text = capsys.readouterr().out
    table = text.split("\n\n")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert "█" in table[1]
    report = json.loads(figures.read_text())
    assert report["schema"] == 1
    assert report["loss"] == "cross-entropy"
    assert [row["site"] for row in report["sites"]] == [line.split()[0] for line in table[1:]]
    assert main([*arguments, "-", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == report["sites"]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        ([], 2, "needs samples"),
        (["--data", "nowhere.npz"], 4, "does not exist"),
        (["--data", DATA], 4, "--scale"),
        (["--data", DATA, "--scale", "1/255", "--labels", "z"], 4, "'z'"),
        (["--data", DATA, "--scale", "1/255", "--json", LENET], 2, "would replace"),
        (["--data", DATA, "--scale", "1/255", "--kernel", "0"], 2, "--kernel"),
    ],
)
def test_the_command_on_bad_input(
    extra: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suggest", LENET, *extra]) == code
    assert message in capsys.readouterr().err
