"""compare() on real models: every method, the same samples, training, what is kept and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.comparison import run as bench
from onnx_compnet.config import METHODS

MODELS = Path(__file__).parents[2] / "models"
LENET, IMAGES = MODELS / "lenet4.onnx", MODELS / "fashion_mnist_calibration.npz"
SMALL = {"scale": 1 / 255, "max_samples": 200, "device": "cpu"}
F32 = np.float32


@pytest.fixture(scope="module")
def lenet():
    return oc.compare(LENET, "conv1", IMAGES, candidates=30, **SMALL)


def mlp(activation="Relu", batch="N"):
    """Eight inputs, twelve hidden units, three classes."""
    body = f"a = Gemm<transB=1>(x, w1, b1) h = {activation}(a) y = Gemm<transB=1>(h, w2, b2)"
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> net (float[{batch},8] x) => (float[{batch},3] y) {{{body}}}'
    )
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"w1": (12, 8), "b1": (12,), "w2": (3, 12), "b2": (3,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(F32), name))
    return model


def samples(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return {"x": (rng.normal(0, 0.7, (n, 8)) + 2 * np.eye(8)[y]).astype(F32), "y": y}


TRAINED = {"epochs": 2, "lr": 0.02, "batch_size": 16, "device": "cpu"}


def test_every_method_at_one_site(lenet):
    assert {"parent", *METHODS, "netmorph-alg2", "scratch"} <= {row.name for row in lenet.rows}
    assert lenet.rows[0].name == "parent"
    assert not any(row.failures for row in lenet.rows)
    parent = lenet["parent"].runs[0]
    assert (parent.parameters, parent.width, parent.site_error) == (233196, None, None)
    width = {row.name: row.runs[0].width for row in lenet.rows}
    assert width["random"] == width["scratch"] == width["alg3"] < 30
    assert width["netmorph"] == 30
    assert width["netmorph-alg2"] == width["alg2"]
    assert width["net2deeper"] == 20
    for row in lenet.rows[1:]:
        (found,) = row.runs
        assert found.parameters > parent.parameters
        assert found.flops > parent.flops
        assert found.seconds >= 0
        assert found.path is None
    error = {row.name: row.runs[0].site_error for row in lenet.rows}
    assert error["net2deeper"] < 1e-6 < error["alg3"] < error["random"] < 0.5 < error["scratch"]
    assert lenet["net2deeper"].runs[0].agreement == 1.0
    assert lenet["scratch"].runs[0].agreement < 0.6
    assert (lenet.samples_fitted, lenet.samples_held_out) == (160, 40)
    assert lenet.site.name == "conv1"


def test_the_rows_are_what_grow_makes(lenet):
    growth = oc.grow(LENET, "conv1", IMAGES, candidates=30, **SMALL)
    (found,) = lenet["alg3"].runs
    assert found.width == len(growth.kept)
    assert found.site_error == pytest.approx(growth.site_error, rel=1e-6)
    assert found.agreement == growth.verdict.outputs["logits"].agreement
    # conv1 (20·25·576·2), the new layer (width·20·9·144·2), conv2, fc1, fc2
    own = 2 * (20 * 25 * 576 + found.width * 20 * 9 * 144 + 50 * found.width * 25 * 64 + 800 * 256 + 2560)
    assert found.flops == own


def test_keep_is_every_width():
    found = oc.compare(
        LENET, "conv1", IMAGES, methods=["random", "alg3", "netmorph-alg2"], candidates=20, keep=7, **SMALL
    )
    width = {row.name: row.runs[0].width for row in found.rows[1:] if row.runs}
    assert width["random"] == width["alg3"] == 7
    assert "netmorph-alg2" in width or found["netmorph-alg2"].failures


def test_an_error_instead_of_a_width():
    rows = ["alg3", "obs", "random", "netmorph"]
    found = oc.compare(mlp(), "w1", samples(400), methods=rows, max_error=0.3, candidates=24)
    width = {row.name: row.runs[0].width for row in found.rows[1:]}
    for name in ("alg3", "obs", "random"):
        assert found[name].runs[0].site_error < 0.31
    assert width["obs"] <= width["alg3"]
    assert width["obs"] < width["random"]
    assert width["netmorph"] == 24
    with pytest.raises(oc.VerificationError, match="out of reach"):
        oc.compare(mlp(), "w1", samples(), methods=["obs", "forward"], max_error=1e-9, candidates=24)


def test_one_call_a_seed_and_lenders_that_are_not_shown(monkeypatch):
    made = []

    def counting(model, after, data, options):
        made.append((options.method, options.seed, options.keep))
        return oc.grow(model, after, data, options=options)

    monkeypatch.setattr(bench, "grow", counting)
    found = oc.compare(mlp(), "w1", samples(), methods=["random"], seeds=[4, 2])
    assert [row.name for row in found.rows] == ["parent", "random"]
    widths = [run.width for run in found["random"].runs]
    assert made == [
        ("alg3", 4, None), ("random", 4, widths[0]), ("alg3", 2, None), ("random", 2, widths[1])
    ]  # fmt: skip
    assert [run.seed for run in found["random"].runs] == [4, 2]


def test_batch_norm_is_for_net2deeper_alone():
    found = oc.compare(mlp(), "w1", samples(), methods=["alg3", "net2deeper"], batch_norm=True)
    plain = oc.compare(mlp(), "w1", samples(), methods=["alg3", "net2deeper"])
    more = [
        found[name].runs[0].parameters - plain[name].runs[0].parameters for name in ("alg3", "net2deeper")
    ]
    assert more[0] == 0 < more[1]


def test_a_method_that_can_not_is_a_row():
    found = oc.compare(mlp("Tanh"), "w1", samples(), methods=["alg3", "net2deeper"])
    assert not found["net2deeper"].runs
    assert "Tanh" in found["net2deeper"].failures[0] or "tanh" in found["net2deeper"].failures[0]
    assert found["alg3"].runs


def test_a_lender_that_fails_is_named(monkeypatch):
    def no_alg3(model, after, data, options):
        if options.method == "alg3":
            raise oc.ResourceError("out of memory")
        return oc.grow(model, after, data, options=options)

    monkeypatch.setattr(bench, "grow", no_alg3)
    found = oc.compare(mlp(), "w1", samples(), methods=["alg3", "random", "scratch", "alg1"])
    assert found["alg3"].failures == {0: "out of memory"}
    for name in ("random", "scratch"):
        assert found[name].failures == {0: "it takes its width from alg3, which failed: out of memory"}
    assert found["alg1"].runs


def test_where_all_fail():
    with pytest.raises(oc.UnsupportedError, match="tanh"):
        oc.compare(mlp("Tanh"), "w1", samples(), methods=["net2deeper"])
    with pytest.raises(oc.UnsupportedError, match=r"no method can grow there. alg1: .*; net2deeper: .*tanh"):
        oc.compare(mlp("Tanh"), "w1", samples(), methods=["alg1", "net2deeper"], lam=5.0)
    with pytest.raises(oc.DataError, match="rows"):  # the one reason that all have
        oc.compare(mlp(), "w1", samples(4), methods=["alg3", "random"], candidates=12)


# ---------------------------------------------------------------- training


def test_every_row_is_trained(tmp_path):
    train, val = samples(150, 1), samples(90, 2)
    folder = tmp_path / "children"
    found = oc.compare(
        mlp(), "w1", train, val, methods=["alg3", "net2deeper", "scratch"], seeds=2, output=folder, **TRAINED
    )
    assert found.seeds == (0, 1)
    for row in found.rows:
        assert len(row.runs) == 2
        for run in row.runs:
            training = run.training
            assert (training.samples, training.val_samples) == (150, 90)
            assert accuracy(training.path, val) == pytest.approx(training.accuracy)
            if row.name != "parent":
                assert accuracy(run.path, val) == pytest.approx(training.before)
        assert row.mean(lambda run: run.training.accuracy) > 0.75
    assert found["parent"].runs[0].path is None
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"parent-seed0-tuned.onnx", "parent-seed1-tuned.onnx"} | {
        f"{name}-seed{seed}{tuned}.onnx"
        for name in ("alg3", "net2deeper", "scratch") for seed in (0, 1) for tuned in ("", "-tuned")
    }  # fmt: skip
    weights = [onnx.load(folder / f"scratch-seed{seed}.onnx").graph.initializer for seed in (0, 1)]
    assert weights[0] != weights[1]


def accuracy(path, data):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"x": data["x"]})
    return float((scores.argmax(1) == data["y"]).mean())


def test_three_seeds_by_default_with_training():
    found = oc.compare(mlp(), "w1", samples(), methods=["net2deeper"], **{**TRAINED, "epochs": 1})
    assert found.seeds == (0, 1, 2)
    assert [run.seed for run in found["net2deeper"].runs] == [0, 1, 2]


def test_data_of_a_function():
    data = samples(150)

    def feeds():
        for start in range(0, 150, 10):
            yield {"x": data["x"][start : start + 10]}, data["y"][start : start + 10]

    found = oc.compare(mlp(), "w1", feeds, methods=["alg3", "net2deeper"], seeds=1, **TRAINED)
    assert (found.samples_fitted, found.samples_held_out) == (120, 30)
    assert found["alg3"].runs[0].training.samples == 135


def test_a_training_that_diverges_is_told_of_that_row(monkeypatch):
    def diverging(model, data, val, options):
        if any("compnet" in node.name for node in model.graph.node):
            raise oc.DivergedError("the loss is no number")
        return oc.finetune(model, data, val, options=options)

    monkeypatch.setattr(bench, "finetune", diverging)
    found = oc.compare(mlp(), "w1", samples(), methods=["net2deeper"], seeds=1, **TRAINED)
    assert found["net2deeper"].failures == {0: "training: the loss is no number"}
    assert found["net2deeper"].runs[0].training is None  # its growth is still shown
    assert found["parent"].runs[0].training.accuracy is not None


def test_labels_are_looked_at_before_anything_grows(monkeypatch):
    monkeypatch.setattr(bench, "grow", lambda *_, **__: pytest.fail("it grew"))
    data = samples()
    del data["y"]
    with pytest.raises(oc.DataError, match="y"):
        oc.compare(mlp(), "w1", data, **TRAINED)


def test_a_model_with_a_fixed_batch():
    found = oc.compare(mlp(batch=4), "w1", samples(), methods=["net2deeper"])
    free = oc.compare(mlp(), "w1", samples(), methods=["net2deeper"])
    assert found["net2deeper"].runs[0].flops == free["net2deeper"].runs[0].flops == 2 * (8 * 12 + 144 + 36)


# ---------------------------------------------------------------- arguments

WRONG = {
    "methods": ({"methods": ["alg9"]}, "'alg9' is not one of parent"),
    "method": ({"method": "alg1"}, "compare has no option 'method'; it has methods"),
    "teacher": ({"teacher": "m", "epochs": 1}, "it has labels instead"),
    "unknown": ({"colour": 1}, "neither grow nor finetune has an option 'colour'"),
    "training": ({"lr": 0.1}, "--lr is for training: say --epochs N, too"),
    "epochs": ({"epochs": 0}, "--epochs must be a whole number of at least 1"),
    "seeds": ({"seeds": 0}, "--seeds must be a whole number of at least 1"),
    "seed list": ({"seeds": [1, 1]}, "or different ones"),
    "seed": ({"seeds": [-1]}, "--seeds must be a whole number of at least 0"),
    "lam": ({"lam": -1}, "--lam must be a number above 0"),
    "keep": ({"keep": 9, "candidates": 5}, "--keep 9 is more than the 5 candidates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case, monkeypatch):
    monkeypatch.setattr(bench, "grow", lambda *_, **__: pytest.fail("it grew"))
    keywords, reason = WRONG[case]
    with pytest.raises(oc.UsageError, match=reason):
        oc.compare(mlp(), "w1", samples(), **keywords)


def test_one_place_only():
    with pytest.raises(oc.UsageError, match="--after names 2; name one of them"):
        oc.compare(LENET, ["conv1", "conv2"], IMAGES, **SMALL)


def test_the_folder(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    path = taken / "alg3.onnx"
    onnx.save(mlp(), path)
    (tmp_path / "file").write_text("x")
    for output, force, error, reason in (
        (taken, False, oc.OutputExistsError, "has files in it; name another folder or add --force"),
        (taken, True, oc.OutputExistsError, "which is never overwritten"),
        (tmp_path / "file", True, oc.UsageError, "is a file"),
        (tmp_path / "no" / "folder", False, oc.UsageError, "does not exist; make it first"),
    ):
        with pytest.raises(error, match=reason):
            oc.compare(path, "w1", samples(), methods=["alg3"], output=output, force=force)
    found = oc.compare(mlp(), "w1", samples(), methods=["alg3"], output=taken, force=True)
    assert found["alg3"].runs[0].path == str(path)
    assert len(onnx.load(path).graph.node) == 5
