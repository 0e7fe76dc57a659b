"""The compare command: what it prints and writes, and bad input with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx_compnet_cli.main import main

MODELS = Path(__file__).parents[2] / "models"
LENET, IMAGES = MODELS / "lenet4.onnx", MODELS / "fashion_mnist_calibration.npz"
QUICK = ("--scale", "1/255", "--max-samples", "150", "--candidates", "12", "--device", "cpu")


@pytest.fixture
def compare(capsys):
    def compare(*extra, model=LENET, after="conv1", data=IMAGES):
        where = () if data is None else ("--data", data)
        code = main([str(each) for each in ("compare", model, "--after", after, *where, *QUICK, *extra)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return compare


def test_the_table(compare, tmp_path):
    folder = tmp_path / "children"
    code, out, err = compare(
        "--methods", "alg3, random,net2deeper", "-o", folder, "--json", tmp_path / "r.json"
    )
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines()[-5:]] == [
        "method",
        "parent",
        "alg3",
        "random",
        "net2deeper",
    ]
    assert {path.name for path in folder.iterdir()} == {"alg3.onnx", "random.onnx", "net2deeper.onnx"}
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == 1
    assert [row["row"] for row in report["rows"]] == ["parent", "alg3", "random", "net2deeper"]
    assert report["samples"] == {"fitted": 120, "held_out": 30}
    assert report["rows"][1]["runs"][0]["path"] == str(folder / "alg3.onnx")


def test_training_and_json_on_stdout(compare):
    arguments = ("--methods", "net2deeper", "--epochs", "1", "--seeds", "2", "--seed", "5", "--lr", "1e-3")
    code, out, err = compare(*arguments, "--json", "-")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["seeds"] == [5, 6]
    assert report["epochs"] == 1
    assert report["options"]["lr"] == 1e-3
    for row in report["rows"]:
        assert 0 <= row["accuracy"]["mean"] <= 1
        assert row["accuracy"]["spread"] is not None
        assert row["runs"][0]["training"]["samples"] == 135


def test_no_site_behind_a_flatten_for_netmorph(compare):
    code, out, _ = compare("--methods", "netmorph,net2deeper", after="conv2")
    assert code == 0
    assert "netmorph: " in out
    assert "failed" in out


BAD = {
    "unknown method": (("--methods", "alg3,algebra"), {}, 2, "'algebra' is not one of parent, alg1"),
    "no method": (("--methods", ","), {}, 2, "names no method to compare"),
    "seeds": (("--seeds", "many"), {}, 2, "'many' is neither a number nor a list"),
    "no seeds": (("--seeds", "0"), {}, 2, "--seeds must be a whole number of at least 1"),
    "val without epochs": (("--val", str(IMAGES)), {}, 2, "--val is for training: say --epochs N, too"),
    "rate without epochs": (("--lr", "0.1"), {}, 2, "--lr is for training: say --epochs N, too"),
    "no data": ((), {"data": None}, 2, "compare needs samples: --data"),
    "random data has no labels": (("--epochs", "1"), {"data": "random:150"}, 2, "has no labels"),
    "unknown name": ((), {"after": "conv9"}, 2, "conv9"),
    "preset": (("--epochs", "1", "--preset", "quick"), {}, 2, "--preset 'quick' is not one of"),
    "missing model": ((), {"model": "absent.onnx"}, 4, "absent.onnx"),
    "missing data": ((), {"data": "absent.npz"}, 4, "absent.npz"),
    "all refused": (("--methods", "netmorph"), {"after": "conv2"}, 3, "Flatten"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(compare, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, places, expected, reason = BAD[case]
    code, out, err = compare(*arguments, "-o", "children", **places)
    assert (code, out) == (expected, ""), err
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_no_labels(compare, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.load(IMAGES)["x"])
    code, out, err = compare("--epochs", "1", data=tmp_path / "x.npz")
    assert (code, out) == (4, "")
    assert "y" in err


def test_a_folder_with_files(compare, tmp_path):
    (tmp_path / "alg3.onnx").write_text("mine")
    code, _, err = compare("--methods", "alg3", "-o", tmp_path)
    assert code == 2
    assert "has files in it" in err
    assert (tmp_path / "alg3.onnx").read_text() == "mine"
    assert compare("--methods", "alg3", "-o", tmp_path, "--force")[0] == 0
    assert (tmp_path / "alg3.onnx").stat().st_size > 100_000
