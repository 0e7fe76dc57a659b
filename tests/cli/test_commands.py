"""The commands on good input: what they print, write and return."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_compnet_cli.main import main

MODELS = Path(__file__).parents[2] / "models"
LENET, IMAGES = MODELS / "lenet4.onnx", MODELS / "fashion_mnist_calibration.npz"
SCALED = ("--data", str(IMAGES), "--scale", "1/255", "--max-samples", "300")


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A child of LeNet with its JSON report."""
    folder = tmp_path_factory.mktemp("child")
    path, report = folder / "child.onnx", folder / "report.json"
    arguments = [
        "grow",
        LENET,
        "--after",
        "conv1",
        "--candidates",
        "30",
        "-o",
        path,
        *SCALED,
        "--json",
        report,
    ]
    assert main([str(argument) for argument in arguments]) == 0
    return path, json.loads(report.read_text())


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_report_says_what_was_done(child):
    path, report = child
    assert report["schema"] == 1
    assert report["parent_sha256"] == sha256(LENET)
    assert report["child_sha256"] == sha256(path)
    assert report["candidates"] == 30
    assert report["width"] == len(report["kept"]) <= 30
    assert report["sites"][0]["site"] == report["site"] == "conv1"
    assert report["samples"] == {"fitted": 240, "held_out": 60}
    assert report["lam"] == pytest.approx(0.1 * report["lam_max"])
    assert report["status"] == "optimal"
    assert 0 < report["site_error"] < 1
    assert set(report["outputs"]["logits"]) == {"max_abs", "rel_error", "cosine", "agreement"}
    assert report["parameters"]["after"] > report["parameters"]["before"] == 233196
    assert report["providers"] == ["CPUExecutionProvider"]
    assert {"capture", "solve", "splice", "verify"} <= set(report["seconds"])
    kept, errors = zip(*((point["kept"], point["error"]) for point in report["curve"]), strict=True)
    assert list(kept) == sorted(kept)
    assert errors[0] > errors[-1]


def test_grow_prints_the_story(tmp_path, capsys):
    path = tmp_path / "c.onnx"
    assert main(["grow", str(LENET), "--after", "conv2", "--candidates", "20", "--method", "random", "--keep", "8",
                 "-o", str(path), *SCALED]) == 0  # fmt: skip
    out = capsys.readouterr().out
    for part in (
        "site",
        "conv2",
        "random",
        "20 candidates → 8 kept",
        "held-out",
        "agreement",
        "233,196",
        str(path),
    ):
        assert part in out


def test_same_command_same_bytes(child, tmp_path):
    path, _ = child
    again = tmp_path / "again.onnx"
    command = ["grow", str(LENET), "--after", "conv1", "--candidates", "30", "-o", str(again), *SCALED]
    assert main(command) == 0
    assert again.read_bytes() == path.read_bytes()


def test_json_on_stdout_is_only_json(tmp_path, capsys):
    arguments = ["--after", "fc1", "--candidates", "20", "--method", "random", "--keep", "8", "--json", "-"]
    assert main(["grow", str(LENET), *arguments, "-o", str(tmp_path / "c.onnx"), *SCALED]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "random"


def test_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grow", str(LENET), "--after", "conv1", "--dry-run", *SCALED]) == 0
    out = capsys.readouterr().out
    assert "40 candidates" in out
    assert "240 to fit, 60 held out" in out
    assert list(tmp_path.iterdir()) == []


def test_gate_that_fails_puts_the_child_aside(tmp_path, capsys):
    path = tmp_path / "c.onnx"
    arguments = ["--after", "conv1", "--candidates", "4", "--max-rel-error", "0.001"]
    assert main(["grow", str(LENET), *arguments, "-o", str(path), *SCALED]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.onnx.rejected.onnx"]
    onnx.checker.check_model(onnx.load(tmp_path / "c.onnx.rejected.onnx"))
    assert "above 0.001" in capsys.readouterr().err


def test_sites_lists_places_and_reasons(capsys):
    assert main(["sites", str(LENET)]) == 0
    out = capsys.readouterr().out
    for part in ("conv1", "conv2", "fc1", "/conv2/Conv", "relu"):
        assert part in out
    assert main(["sites", str(LENET), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    by_name = {site["name"]: site for site in report["sites"]}
    assert by_name["conv1"]["channels"] == 20
    assert by_name["conv1"]["readers"] == ["/conv2/Conv"]
    assert report["refusals"] == []


def test_info_tells_how_a_child_came_about(child, capsys):
    path, report = child
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "conv1" in out
    assert report["parent_sha256"] in out
    assert main(["info", str(path), "--json", "-"]) == 0
    (growth,) = json.loads(capsys.readouterr().out)["growths"]
    assert growth["kept"] == report["kept"]
    assert "seconds" not in growth
    assert main(["info", str(LENET)]) == 0
    assert "was not grown" in capsys.readouterr().out


def test_info_of_a_child_of_a_child(child, tmp_path, capsys):
    path, _ = child
    again = tmp_path / "two.onnx"
    arguments = ["--after", "fc1", "--candidates", "20", "--method", "random", "--keep", "5"]
    assert main(["grow", str(path), *arguments, "-o", str(again), *SCALED]) == 0
    capsys.readouterr()
    assert main(["info", str(again), "--json", "-"]) == 0
    assert [g["site"] for g in json.loads(capsys.readouterr().out)["growths"]] == ["conv1", "fc1"]


def test_verify_passes_and_fails(child, tmp_path, capsys):
    path, _ = child
    data = ("--data", str(IMAGES), "--scale", "1/255", "--max-samples", "200")
    assert main(["verify", str(LENET), str(LENET), *data]) == 0
    assert "agree" in capsys.readouterr().out
    assert (
        main(["verify", str(LENET), str(path), *data, "--max-rel-error", "1", "--min-agreement", "0.3"]) == 0
    )
    assert main(["verify", str(LENET), str(path), *data, "--max-rel-error", "1e-6"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_verify_rejects_a_broken_child(child, tmp_path, capsys):
    """A child whose reader's bias was damaged: everything runs, the function is gone."""
    path, _ = child
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.bias")
    damaged = onnx.numpy_helper.to_array(bias)[::-1] + 1
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(damaged), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    data = ("--data", str(IMAGES), "--scale", "1/255", "--max-samples", "200")
    assert main(["verify", str(LENET), str(tmp_path / "broken.onnx"), *data, "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert report["failures"]


def test_verify_rejects_another_interface(tmp_path, capsys):
    model = onnx.load(LENET)
    model.graph.output[0].name = "scores"
    model.graph.node[-1].output[0] = "scores"
    onnx.save(model, tmp_path / "renamed.onnx")
    data = ("--data", str(IMAGES), "--scale", "1/255")
    assert main(["verify", str(LENET), str(tmp_path / "renamed.onnx"), *data]) == 1
    assert "different outputs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sites", "grow", "verify", "info"])
def test_help_shows_a_worked_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"example:\n  onnx-compnet {command} " in capsys.readouterr().out


def test_module_version_and_completion():
    def run(*arguments):
        command = [sys.executable, "-m", "onnx_compnet", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run("--version").startswith("onnx-compnet 0.")
    assert "complete" in run("--print-completion", "bash")


def test_help_needs_neither_torch_nor_onnxruntime():
    code = (
        "import sys; from onnx_compnet_cli.main import main; main(['grow', '--help']);"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def run_in_shell(line, **environment):
    """The command in a shell of its own, for what only a real process has: streams and encodings."""
    line = re.sub(r"(^|; )onnx-compnet ", rf'\1"{sys.executable}" -m onnx_compnet ', line)
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error(closed):
    assert run_in_shell(f'onnx-compnet sites "{LENET}" {closed}').returncode == 0


def test_a_terminal_without_greek_letters(child, tmp_path):
    path, _ = child
    arguments = f'"{LENET}" "{path}" --data random:20 --json "{tmp_path / "v.json"}"'
    result = run_in_shell(
        f"onnx-compnet info {path}; onnx-compnet verify {arguments}", PYTHONIOENCODING="ascii"
    )
    assert result.returncode == 1  # random images are not clothes: the two differ, and it is said so
    assert b"the two models differ" in result.stdout
    assert b"internal error" not in result.stderr


def test_what_a_data_function_prints_stays_off_stdout(tmp_path, capsys):
    (tmp_path / "feeds.py").write_text(
        "import numpy as np\n\ndef loud():\n    for _ in range(6):\n        print('here')\n"
        "        yield {'x': np.zeros((4, 1, 28, 28), np.float32)}\n"
    )
    assert (
        main(["verify", str(LENET), str(LENET), "--data", f"{tmp_path / 'feeds.py'}:loud", "--json", "-"])
        == 0
    )
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == 24
    assert "here" in captured.err
