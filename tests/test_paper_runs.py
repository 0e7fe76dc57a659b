"""The paper's experiments: networks, rows, resumability, and a real row on a few made-up images."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

import onnx_compnet as oc
from benchmarks import datasets, paper, paper_run
from benchmarks.networks import BLOCKS, INSERTED, VGG, LeNet4, to_onnx
from benchmarks.paper_plan import read_plan
from benchmarks.paper_rows import METHODS, ROWS, network, settings_of
from onnx_compnet.baselines.scratch import scratch

# ---------------------------------------------------------------- networks


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_lenet4_is_that_of_models():
    assert numbers(LeNet4()) == 233_196  # the model card's
    assert numbers(LeNet4(inserted=100)) == 233_196 + (100 * 20 * 9 + 100) + 80 * 50 * 25
    assert LeNet4(inserted=100)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


# D and E of Simonyan & Zisserman, convolutions alone: 14,714,688 and 20,024,384 (as torchvision counts them)
@pytest.mark.parametrize(
    ("kind", "layers", "convolutions"),
    [
        ("vgg15", 15, 14_714_688 - (256 * 512 * 9 + 512) - (512 - 256) * 512 * 9),
        ("vgg16", 16, 14_714_688),
        ("vgg17", 17, 14_714_688 + 256 * 256 * 9 + 256),
        ("vgg18", 18, 20_024_384 - (256 * 512 * 9 + 512) - (512 - 256) * 512 * 9),
        ("vgg19", 19, 20_024_384),
    ],
)
def test_the_vggs_are_those_of_the_paper(kind, layers, convolutions):
    module = VGG(kind)
    assert len(module.convolutions) + 3 == layers == int(kind.removeprefix("vgg"))
    dense = 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert numbers(module) == convolutions + dense


def test_a_width_multiplier_scales_every_layer():
    module = VGG("vgg16", 0.125, channels=1)
    widths = [module.get_submodule(name).out_channels for name in module.convolutions]
    assert widths == [width // 8 for block in BLOCKS["vgg16"] for width in block]
    assert module.conv1_1.in_channels == 1


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_inserted_layer_alone_has_the_activation(activation):
    model = to_onnx(VGG("vgg16", 0.125, activation=activation), (3, 32, 32))
    reads = {node.input[0]: node for node in model.graph.node if node.input}
    found = {
        node.input[1].partition(".")[0]: reads[node.output[0]].op_type
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    own = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[activation]
    assert found.pop(INSERTED["vgg16"]) == own
    assert set(found.values()) == {"Relu"}
    assert len(found) == 12


@pytest.mark.parametrize("name", ["vgg16-relu", "vgg17", "vgg19"])
def test_a_child_has_its_layer_where_the_deeper_network_has_it(name):
    """Growing the parent at the row's place gives the layers of the deeper network, in its order and widths."""
    row, settings = ROWS[name], settings_of("vgg", "fashion-mnist", width_multiplier=0.0625)
    kind = ROWS[row.parent].child if row.parent in ROWS else row.parent
    parent = scratch(to_onnx(network(kind, settings), (1, 32, 32)), seed=0)
    images = np.random.default_rng(0).normal(size=(120, 1, 32, 32)).astype(np.float32)
    width = row.candidates(settings)
    growth = oc.grow(
        parent, row.after, {"x": images}, method="random", candidates=2 * width, keep=width, mode="replace"
    )
    wanted = to_onnx(network(row.child, settings), (1, 32, 32))
    assert layers(growth.model) == layers(wanted)


def layers(model):
    """Operators in their order, with the shapes of the weights that are trained."""
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    return [
        (node.op_type, [shapes[name] for name in node.input if len(shapes.get(name, ())) > 1])
        for node in model.graph.node
        if node.op_type != "Constant"
    ]


def test_dropout_is_exported_at_rest_and_wakes_for_training():
    module = VGG("vgg15", 0.0625, channels=1)
    model = to_onnx(module, (1, 32, 32))
    assert [node.op_type for node in model.graph.node].count("Dropout") == 2
    x = torch.rand(3, 1, 32, 32)
    again = oc.to_torch(model)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), module.eval()(x))
        torch.manual_seed(0)
        assert not torch.equal(again.train()(x), again.eval()(x))


# ---------------------------------------------------------------- runs

SMALL = {
    "--dataset": "fashion-mnist", "--width-multiplier": "0.25", "--epochs": "1", "--parent-epochs": "1",
    "--seeds": "1", "--calibration": "150", "--batch-size": "50", "--threads": "1", "--device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made_up(monkeypatch):
    """Four kinds of stripes that a small network learns to tell apart in a few steps."""
    rng = np.random.default_rng(0)

    def part(n):
        y = np.arange(n) % 4
        x = rng.integers(0, 60, (n, 1, 28, 28))
        for image, label in zip(x, y, strict=True):
            image[0, label::4, :] += 150
        return x.astype(np.uint8), y.astype(np.int64)

    images = datasets.Images("fashion-mnist", *part(400), *part(100))
    monkeypatch.setattr(paper_run, "load", lambda name, folder: images)


def run(tmp_path, *arguments, **changes):
    options = {**SMALL, "--out": str(tmp_path / "out"), "--work": str(tmp_path / "work"), **changes}
    return paper.main([*(word for pair in options.items() for word in pair), *arguments])


def files(tmp_path):
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.json"))}


def test_a_row_is_run_from_its_parent_to_its_results(tmp_path, made_up, capsys):
    assert run(tmp_path, "--rows", "lenet5") == 0
    folder = tmp_path / "out" / "lenet5.fashion-mnist.w0.25.nall.e1"
    records = {path.name.split(".")[0]: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(records) == set(METHODS)
    assert not list((tmp_path / "work" / "checkpoints").iterdir())
    for method, record in records.items():
        assert (record["row"], record["method"], record["seed"]) == ("lenet5", method, 0)
        assert record["settings"]["width_multiplier"] == 0.25
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
        epochs = 2 if method == "scratch-long" else 1
        assert [epoch["epoch"] for epoch in record["history"]] == list(range(epochs + 1))
        assert record["accuracy"] == max(epoch["accuracy"] for epoch in record["history"])
    kept = {method: record.get("kept") for method, record in records.items()}
    assert kept["random"] == kept["alg3"]
    assert kept["random-capped"] == kept["alg3-capped"] == 12  # a quarter of the paper's 49
    assert (kept["alg1-capped"], kept["alg2-capped"]) == (10, 12)
    assert kept["netmorph-oracle"] == kept["alg2"]
    assert kept["netmorph-redundant"] == kept["scratch"] == records["alg3"]["candidates"] == 25
    assert kept["net2deeper"] == 5
    for method in ("netmorph-oracle", "netmorph-redundant", "net2deeper"):  # exact
        assert records[method]["site_error"] < 1e-4
        assert records[method]["history"][0]["accuracy"] == records["parent"]["history"][0]["accuracy"]
    parents = {record["parent_digest"] for record in records.values()}
    assert len(parents) == 1
    assert records["alg3"]["parameters"]["before"] == records["parent"]["parameters"]["after"]
    assert records["alg3"]["flops"]["after"] > records["parent"]["flops"]["after"]

    before = files(tmp_path)
    capsys.readouterr()
    assert run(tmp_path, "--rows", "lenet5") == 0  # nothing is missing
    assert files(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_what_is_there_stays_and_what_is_half_written_is_done_again(tmp_path, made_up, capsys):
    arguments = ("--rows", "lenet5", "--methods", "parent", "net2deeper")
    assert run(tmp_path, *arguments) == 0
    first = files(tmp_path)
    folder = tmp_path / "out" / "lenet5.fashion-mnist.w0.25.nall.e1"
    (folder / "parent.seed0.json").write_bytes(first["parent.seed0.json"][:200])
    marked = first["net2deeper.seed0.json"].replace(b'"seed": 0', b'"seed":  0')
    (folder / "net2deeper.seed0.json").write_bytes(marked)
    assert run(tmp_path, *arguments, "--list") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "lenet5.fashion-mnist.w0.25.nall.e1/parent.seed0.json"
    assert run(tmp_path, *arguments) == 0
    second = files(tmp_path)
    assert second["net2deeper.seed0.json"] == marked
    assert second["trained.seed0.json"] == first["trained.seed0.json"]
    again, before = (json.loads(each["parent.seed0.json"]) for each in (second, first))
    assert [epoch["accuracy"] for epoch in again["history"]] == [e["accuracy"] for e in before["history"]]
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == []


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path, made_up, monkeypatch):
    arguments = ("--rows", "lenet5", "--methods", "parent")
    from onnx_compnet.training import loop

    note = loop.Trainer._note
    seen = []

    def noted(self, number, *rest):
        seen.append(number)
        if seen == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return note(self, number, *rest)

    monkeypatch.setattr(loop.Trainer, "_note", noted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments, **{"--parent-epochs": "4"})
    assert files(tmp_path) == {}
    assert run(tmp_path, *arguments, **{"--parent-epochs": "4"}) == 0
    assert seen[4:6] == [3, 4]  # epochs 1 and 2 were not repeated


def test_results_of_other_settings_are_not_mixed(tmp_path, made_up, capsys):
    arguments = ("--rows", "lenet5", "--methods", "parent")
    assert run(tmp_path, *arguments) == 0
    assert run(tmp_path, *arguments, "--lr", "0.001") == 2
    told = capsys.readouterr().err
    assert "lr 0.005 there, 0.001 here" in told
    assert "--out" in told
    assert run(tmp_path, *arguments, **{"--width-multiplier": "0.3"}) == 0  # a folder of its own


def test_a_method_that_this_version_lacks_is_named(tmp_path, made_up, monkeypatch, capsys):
    monkeypatch.setattr(paper_run.config, "METHODS", ("alg3",))
    assert run(tmp_path, "--rows", "lenet5", "--methods", "netmorph-redundant", "parent") == 1
    assert "no method netmorph" in capsys.readouterr().err
    assert "parent.seed0.json" in files(tmp_path)


def test_what_the_tool_refuses_is_a_result(tmp_path, made_up):
    arguments = ("--rows", "vgg16-tanh", "--methods", "net2deeper")
    assert run(tmp_path, *arguments, **{"--width-multiplier": "0.0625", "--samples": "100"}) == 0
    record = json.loads(files(tmp_path)["net2deeper.seed0.json"])
    assert "not linear" in record["refused"]
    assert "history" not in record


def test_the_same_network_is_not_trained_twice(tmp_path, made_up):
    """The parents of two rows are one: training it on is done once, and said so."""
    changes = {"--width-multiplier": "0.0625", "--samples": "100", "--test-samples": "50"}
    assert run(tmp_path, "--rows", "vgg16-sigmoid", "vgg16-tanh", "--methods", "parent", **changes) == 0
    first, second = (
        json.loads((path / "parent.seed0.json").read_text())
        for path in sorted((tmp_path / "out").glob("vgg16*"))
    )
    assert "same_as" not in first
    assert (second["same_as"], second["same_row"]) == ("parent", "vgg16-sigmoid")
    assert second["row"] == "vgg16-tanh"
    assert second["history"] == first["history"]
    assert second["digest"] == first["digest"]


def test_vgg17_grows_the_tuned_vgg16(tmp_path, made_up, monkeypatch):
    changes = {"--width-multiplier": "0.0625", "--samples": "200", "--test-samples": "50"}
    assert run(tmp_path, "--rows", "vgg17", "--methods", "parent", **changes) == 0
    found = files(tmp_path)
    assert {"trained.seed0.json", "alg3.seed0.json", "parent.seed0.json"} == set(found)
    vgg16, vgg17 = (json.loads(found[name]) for name in ("alg3.seed0.json", "parent.seed0.json"))
    assert (vgg16["row"], vgg17["row"]) == ("vgg16-relu", "vgg17")
    assert vgg17["history"][0]["accuracy"] == vgg16["accuracy"]
    assert vgg17["parameters"]["before"] == vgg16["parameters"]["after"]
    (kept,) = (tmp_path / "work").rglob("alg3.seed0.onnx")
    kept.unlink()  # without it the run of VGG16 is done again, be there another of the same network or not
    monkeypatch.setattr(paper_run.Bench, "_twin", lambda self, record: vgg16)
    (tmp_path / "out" / "vgg17.fashion-mnist.w0.0625.n200.e1" / "parent.seed0.json").unlink()
    assert run(tmp_path, "--rows", "vgg17", "--methods", "parent", **changes) == 0
    assert onnx.load(kept).graph.output[0].name == "logits"


# ---------------------------------------------------------------- command line


def test_a_missing_data_set_ends_in_one_sentence(tmp_path, capsys):
    assert run(tmp_path, "--rows", "lenet5", "--data", str(tmp_path)) == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "dataset-fashion-mnist" in told
    assert run(tmp_path, "--rows", "lenet5", **{"--dataset": "cifar10"}) == 2
    assert "28 × 28" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[set]]\nrows = ['lenet6']", "'lenet6'"),
        ("[[set]]\nmethods = ['alg4']", "'alg4'"),
        ("[[set]]\nepoch = 4", "'epoch'"),
        ("[set", "can't be read"),
        ("", r"no [[set]]"),
        ("[[set]]\nsettings = 'few'", "no [settings.few]"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path, capsys, text, told):
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    assert paper.main(["--plan", str(plan), "--out", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err


def test_the_plan_lists_its_runs_seed_by_seed(tmp_path, capsys):
    plan = paper.ROOT / "benchmarks" / "paper_plan.toml"
    assert paper.main(["--plan", str(plan), "--out", str(tmp_path), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(set(listed)) > 20
    first = [line for line in listed if line.startswith("lenet5")][:27]  # nine methods, three seeds
    assert [line.split("seed")[1] for line in first] == [f"{k}.json" for k in (0, 1, 2) for _ in range(9)]


def test_sets_share_settings_by_name(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[settings.few]\nepochs = 2\nlr = 0.1\n[[set]]\nsettings = "few"\nseeds = 1\nlr = 0.2')
    assert read_plan(plan) == [{"epochs": 2, "lr": 0.2, "seeds": 1}]


def test_the_papers_settings_are_the_defaults():
    lenet, vgg = settings_of("lenet"), settings_of("vgg")
    assert (lenet.dataset, lenet.lr, lenet.weight_decay, lenet.momentum) == ("mnist", 5e-3, 1e-6, 0.9)
    assert (vgg.dataset, vgg.lr, vgg.weight_decay, vgg.momentum) == ("cifar10", 3e-4, 1e-6, 0.9)
    assert {lenet.schedule, vgg.schedule} == {"constant"}
    assert {lenet.lam, lenet.alpha, vgg.lam, vgg.alpha} == {0.1}
    assert vgg.dropout == 0.5
    assert vgg.augment == ("crop", "flip")
    assert [row.redundant for row in ROWS.values()] == [100, 512, 512, 512, 256, 512]
