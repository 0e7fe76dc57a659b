"""The memory of a growth does not depend on the number of samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODELS = Path(__file__).parent.parent / "models"


def peak(folder, data):
    """Peak resident bytes of a whole growth, as the command reports it."""
    report = folder / "report.json"
    command = [
        "grow",
        MODELS / "lenet4.onnx",
        "--after",
        "conv1",
        "--candidates",
        "8",
        "--scale",
        "1/255",
        "-q",
    ]
    command += ["--data", data, "-o", folder / "c.onnx", "--force", "--json", report]
    subprocess.run(
        [sys.executable, "-m", "onnx_compnet", *map(str, command)], check=True, capture_output=True
    )
    return json.loads(report.read_text())["peak_memory"]


@pytest.mark.slow
def test_peak_memory_on_32000_images_is_that_on_2000(tmp_path):
    with np.load(MODELS / "fashion_mnist_calibration.npz") as data:
        x = data["x"]
    np.savez_compressed(tmp_path / "few.npz", x=x)
    np.savez_compressed(
        tmp_path / "many.npz", x=np.concatenate([np.roll(x, shift, axis=3) for shift in range(16)])
    )
    assert peak(tmp_path, tmp_path / "many.npz") < 1.1 * peak(tmp_path, tmp_path / "few.npz")
