"""The README's commands and its Python example run as they stand, in the README's order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from onnx_compnet_cli.main import main

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.slow
def test_every_example_runs(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    ran = []
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            ran.append("python")
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["onnx-compnet"]:
                assert main(words[1:]) == 0, (line, capsys.readouterr().err)
                ran.append(words[1])
    commands = ["sites", "suggest", "grow", "grow", "verify", "info", "finetune", "compare"]
    assert ran == [*commands, "python", "python"]
    assert {
        "lenet5.onnx",
        "lenet5_tuned.onnx",
        "small.onnx",
        "small.json",
        "lenet5_python.onnx",
        "tuned.onnx",
    } <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_comparison_that_is_shown_is_the_one_that_is_made(monkeypatch, capsys):
    """All but the seconds, and the last digit of what is fitted."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text("utf-8")
    command = re.search(r"^onnx-compnet (compare (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert main([*shlex.split(command[1].replace("\\\n", " ")), "--device", "cpu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line.split() for line in re.search(r"```\n(method .*?)```", text, re.DOTALL)[1].splitlines()]
    made = rows[rows.index(shown[0]) :]
    assert [row[0] for row in made] == [row[0] for row in shown]
    for mine, theirs in zip(made[2:], shown[2:], strict=True):
        assert mine[1:5] == theirs[1:5]
        assert [float(each) for each in mine[5:7]] == pytest.approx(
            [float(each) for each in theirs[5:7]], rel=0.1, abs=2e-6
        )


def test_the_demo_that_is_shown_is_the_one_that_make_runs():
    shown = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    command = re.findall(r"onnx-compnet grow .*", makefile)[0]
    assert "--candidates 40 -o demo/lenet5.onnx" in command
    assert "40 candidates → 31 kept" in shown
    for target in ("demo", "test", "finetune-demo"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert f"make {target}" in shown
