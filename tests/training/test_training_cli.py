"""The finetune command: what it writes and prints, and every bad input with its exit code."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_compnet_cli.main import main
from training_zoo import pictures, small_model

from onnx_compnet.training.loop import Trainer


@pytest.fixture
def files(tmp_path):
    """child.onnx, train.npz and val.npz."""
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(small_model(), folder / "child.onnx")
    np.savez(folder / "train.npz", **pictures(90, 1))
    np.savez(folder / "val.npz", **pictures(60, 2))
    return folder


@pytest.fixture
def command(files, tmp_path, capsys):
    """Run it for one epoch; code, stdout, stderr."""

    def command(*extra, child="child.onnx", train="train.npz", val="val.npz", output="tuned.onnx"):
        arguments = [
            "finetune",
            files / child,
            "--data",
            files / train,
            "--val",
            files / val,
            "--scale",
            "1/255",
        ]
        arguments += ["--epochs", "1", "--device", "cpu", "-o", tmp_path / output, *extra]
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return command


@pytest.fixture
def refused(command, tmp_path):
    """Run it; check that nothing was written and one error printed; code and that error."""

    def refused(*extra, **places):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code, out, err = command(*extra, **places)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        errors = [line for line in err.splitlines() if "error:" in line]
        assert out == ""
        assert len(errors) == 1
        return code, errors[0]

    return refused


def test_what_is_written_and_printed(command, tmp_path, files, capsys):
    code, out, _ = command("--json", tmp_path / "t.json", "--parent", files / "child.onnx", "--lr", "0.01")
    assert code == 0
    assert "tuned model" in out
    assert "← kept" in out
    report = json.loads((tmp_path / "t.json").read_text())
    assert set(report["scores"]) == {"parent", "child", "tuned"}
    assert report["history"][1]["train_loss"] > 0
    assert report["samples"] == 90
    assert main(["info", str(tmp_path / "tuned.onnx")]) == 0
    assert "training 1" in capsys.readouterr().out
    code, out, _ = command("--json", "-", "--force")
    assert code == 0
    assert json.loads(out)["schema"] == 1


def test_out_is_not_overwritten(command, refused, files):
    assert command()[0] == 0
    code, error = refused()
    assert code == 2
    assert "--force" in error
    assert command("--force")[0] == 0
    for used in ("child.onnx", "train.npz", "val.npz"):
        code, error = refused("--force", output=f"in/{used}")
        assert code == 2
        assert used in error


def test_a_loss_that_turns_nan_goes_aside(command, tmp_path):
    options = ("--optimizer", "sgd", "--lr", "1e30", "--json", tmp_path / "t.json")
    code, _, err = command(*options)
    assert code == 1
    assert "not finite" in err
    assert "tuned.onnx.rejected.onnx" in err
    assert not (tmp_path / "tuned.onnx").exists()
    onnx.checker.check_model(onnx.load(tmp_path / "tuned.onnx.rejected.onnx"))
    assert json.loads((tmp_path / "t.json").read_text())["best_epoch"] == 0
    assert command(*options)[0] == 1  # what was put aside by an earlier run may be replaced


def test_no_room_for_a_checkpoint(command, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = command("--checkpoint", tmp_path / "run")
    assert code == 5
    assert "no space" in err
    assert not (tmp_path / "tuned.onnx").exists()


def test_an_interrupted_command_goes_on(command, tmp_path, monkeypatch):
    arguments = ("--checkpoint", tmp_path / "run", "--epochs", "3", "--batch-size", "16")
    with monkeypatch.context() as patch:
        step = Trainer._step

        def interrupted(self, rows, epoch, number):
            if epoch == 2:
                raise KeyboardInterrupt
            return step(self, rows, epoch, number)

        patch.setattr(Trainer, "_step", interrupted)
        assert command(*arguments)[0] == 130
    assert command(*arguments)[0] == 0
    other = arguments[2:]
    assert command(*other, output="whole.onnx")[0] == 0
    assert (tmp_path / "tuned.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def with_labels(files, labels, n=90):
    np.savez(files / "bad.npz", x=pictures(n, 1)["x"], **({} if labels is None else {"y": labels}))
    return "bad.npz"


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (None, ["no labels 'y'", "found 'x'"]),
        (np.full(90, 3), ["value 3 at sample 0", "3 classes (0 to 2)"]),
        (np.r_[np.zeros(50, int), -1, np.zeros(39, int)], ["value -1 at sample 50"]),
        (np.zeros(90), ["float64", "cross-entropy takes integers"]),
        (np.zeros((90, 2), int), ["[90, 2]", "don't fit", "logits"]),
        (np.zeros(40, int), ["different numbers of samples"]),
        (np.array(0), ["one entry a sample"]),
        (np.full(90, -100), ["are all -100"]),
        (np.array(["a"] * 90), ["save them as numbers"]),
    ],
)
def test_bad_labels(refused, files, labels, parts):
    bad = with_labels(files, labels)
    code, error = refused(train=bad, val=bad)
    assert code == 4
    assert not [part for part in parts if part not in error], error


def test_bad_labels_of_other_losses(refused, files):
    bad = with_labels(files, np.full((90, 3), 2.0))
    code, error = refused("--loss", "bce", train=bad, val=bad)
    assert code == 4
    assert "not between 0 and 1 at sample 0" in error
    bad = with_labels(files, np.full((90, 3), np.nan))
    code, error = refused("--loss", "mse", train=bad, val=bad)
    assert code == 4
    assert "NaN" in error


def test_validation_of_another_shape(refused, files):
    np.savez(files / "wide.npz", x=np.zeros((9, 1, 6, 7), np.uint8), y=np.zeros(9, int))
    code, error = refused(val="wide.npz")
    assert code == 4
    assert "wide.npz" in error
    assert "(9, 1, 6, 7)" in error
    np.savez(files / "vague.npz", x=np.zeros((9, 1, 6, 6), np.uint8), y=np.zeros((9, 1), int))
    code, error = refused(val="vague.npz")
    assert code == 4
    assert "'y'" in error


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--freeze", "cnov.*"], ["'cnov.*' matches no weight", "conv.bias"]),
        (["--freeze", "*"], ["nothing to train"]),
        (["--amp"], ["--amp is for CUDA"]),
        (["--loss", "hinge"], ["'hinge' is not one of"]),
        (["--loss", "distill"], ["--teacher"]),
        (["--optimizer", "lion"], ["not one of sgd, adamw"]),
        (["--schedule", "zigzag"], ["not one of"]),
        (["--preset", "mine"], ["not one of"]),
        (["--best-by", "f1"], ["--best-by 'f1'"]),
        (["--augment", "mixup"], ["--augment 'mixup'"]),
        (["--lr", "0"], ["--lr must be"]),
        (["--lr-new", "-1"], ["--lr-new must be"]),
        (["--warmup", "1"], ["--warmup must be"]),
        (["--epochs", "0"], ["--epochs must be"]),
        (["--max-steps", "0"], ["--max-steps must be"]),
        (["--best-by", "last", "--patience", "1"], ["--patience waits for a better epoch"]),
        (["--patience", "0"], ["--patience must be"]),
        (["--output-name", "scores"], ["'scores' is none of the float outputs"]),
        (["--labels", "x"], ["'x' is an input of the model"]),
        (["--checkpoint-every", "5"], ["--checkpoint DIR"]),
        (["--batch-size", "0"], ["--batch-size"]),
    ],
)
def test_bad_options(refused, extra, parts):
    code, error = refused(*extra)
    assert code == 2
    assert not [part for part in parts if part not in error], error


def test_data_that_is_missing(refused, files):
    code, error = refused(train="absent.npz")
    assert code == 4
    assert "absent.npz" in error
    assert main(["finetune", str(files / "child.onnx"), "-o", str(files / "t.onnx")]) == 2
    arguments = ["finetune", str(files / "child.onnx"), "-o", str(files / "t.onnx"), "--data", "random:20"]
    assert main(arguments) == 2  # random data have no labels
    assert main([*arguments, "--teacher", str(files / "child.onnx"), "--epochs", "1"]) == 0


def test_an_operator_without_conversion(refused, files):
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 3))  # noqa: E731
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("Det", ["square"], ["d"], "determinant"),
        helper.make_node("Mul", ["a", "d"], ["logits"], "scaling"),
    ]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, (3, 3), np.eye(3).ravel()),
        helper.make_tensor("square", TensorProto.FLOAT, (2, 2), [1.0, 0.0, 0.0, 2.0]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("logits")], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        files / "det.onnx",
    )
    np.savez(files / "flat.npz", x=np.ones((30, 3), np.float32), y=np.zeros(30, int))
    code, error = refused(child="det.onnx", train="flat.npz", val="flat.npz")
    assert code == 3
    assert "Det" in error


def test_a_teacher_of_another_interface(refused, files):
    other = small_model()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "scores"
    onnx.save(other, files / "teacher.onnx")
    code, error = refused("--teacher", files / "teacher.onnx")
    assert code == 4
    assert "teacher has no output 'logits'" in error


def test_augmentation_of_what_is_no_image(refused, files):
    weights = [helper.make_tensor("w", TensorProto.FLOAT, (3, 3), np.eye(3).ravel())]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 3))  # noqa: E731
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    graph = helper.make_graph([node], "g", [value("x")], [value("logits")], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        files / "flat.onnx",
    )
    np.savez(files / "flat.npz", x=np.ones((30, 3), np.float32), y=np.zeros(30, int))
    code, error = refused("--augment", "flip", child="flat.onnx", train="flat.npz", val="flat.npz")
    assert code == 2
    assert "images" in error


def test_help_shows_an_example(capsys):
    assert main(["finetune", "--help"]) == 0
    assert "onnx-compnet finetune child.onnx --data train.npz" in capsys.readouterr().out
