"""Two processes under torchrun take the same steps as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx_compnet_cli.main import main
from training_zoo import pictures, small_model, weights

ROOT = Path(__file__).parents[2]


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    onnx.save(small_model(dropout=False), tmp_path / "child.onnx")  # masks of dropout differ by process
    np.savez(tmp_path / "train.npz", **pictures(53, 1))  # batches of 8, and a last one of 5: uneven parts
    np.savez(tmp_path / "val.npz", **pictures(31, 2))
    arguments = [
        "finetune", str(tmp_path / "child.onnx"), "--data", str(tmp_path / "train.npz"), "--val",
        str(tmp_path / "val.npz"), "--scale", "1/255", "--epochs", "2", "--batch-size", "8", "--optimizer", "sgd",
        "--lr", "0.1", "--augment", "crop,flip", "--clip-norm", "1", "--device", "cpu", "--best-by", "loss",
    ]  # fmt: skip
    paths = [str(ROOT), str(ROOT / "cli"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    two = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "onnx_compnet", *arguments, "-o", str(tmp_path / "two.onnx")),
            *("--json", str(tmp_path / "two.json"), "--checkpoint", str(tmp_path / "run")),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("tuned model") == 1
    assert main([*arguments, "-o", str(tmp_path / "one.onnx"), "--json", str(tmp_path / "one.json")]) == 0
    found, expected = (weights(onnx.load(tmp_path / f"{name}.onnx")) for name in ("two", "one"))
    moved = weights(small_model(dropout=False))
    for name in {name for name, values in moved.items() if values.ndim}:
        values = expected[name]
        assert np.abs(found[name] - values).max() < 1e-6
        assert not np.array_equal(values, moved[name])
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one")]
    assert [report["processes"] for report in reports] == [2, 1]
    for a, b in zip(*(report["history"] for report in reports), strict=True):
        assert abs(a["val"]["loss"] - b["val"]["loss"]) < 1e-6
        assert a["val"]["samples"] == 31
