"""The files of models/: what the model card says about them is so."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
ONNX_FILES = ("lenet4.onnx", "lenet4_dynamo.onnx")
CALIBRATION = "fashion_mnist_calibration.npz"
ALL_FILES = (
    *ONNX_FILES,
    CALIBRATION,
    "README.md",
    "LICENSE.fashion-mnist",
    "SHA256SUMS",
    "train_lenet4.py",
)


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lenet4", MODELS / "train_lenet4.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def calibration() -> tuple[np.ndarray, np.ndarray]:
    with np.load(MODELS / CALIBRATION, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["x", "y"]
        return arrays["x"], arrays["y"]


def logits_of(name: str, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(MODELS / name, providers=["CPUExecutionProvider"])
    chunks = np.array_split(images, max(1, len(images) // 500))
    return np.concatenate([session.run(["logits"], {"x": c.astype(np.float32) / 255})[0] for c in chunks])


def card_row(first_cell: str) -> list[str]:
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if "|" in line
    ]
    (row,) = [row for row in rows if row[0].strip("`") == first_cell]
    return row


# ---- the files


def test_files_are_there_and_small() -> None:
    sizes = {name: (MODELS / name).stat().st_size for name in ALL_FILES}
    assert min(sizes.values()) > 0
    assert sum(path.stat().st_size for path in MODELS.iterdir() if path.is_file()) < 5_000_000


@pytest.mark.parametrize("name", [*ONNX_FILES, CALIBRATION])
def test_sums_in_the_list_and_in_the_card_are_the_files(name: str) -> None:
    data = (MODELS / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    listed = dict(reversed(line.split("  ")) for line in (MODELS / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {*ONNX_FILES, CALIBRATION}
    assert listed[name] == digest
    _, size, in_card = card_row(name)
    assert int(size.replace(",", "")) == len(data)
    assert in_card.strip("`") == digest


def test_licence_of_the_images_is_beside_them() -> None:
    text = (MODELS / "LICENSE.fashion-mnist").read_text(encoding="utf-8")
    assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in text
    assert "Permission is hereby granted, free of charge" in text


def test_calibration_images(calibration: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = calibration
    assert x.shape == (2000, 1, 28, 28)
    assert x.dtype == np.uint8
    assert y.dtype == np.int64
    assert np.bincount(y, minlength=10).tolist() == [200] * 10
    assert len(np.unique(x.reshape(2000, -1), axis=0)) > 1990


# ---- the networks


@pytest.mark.parametrize("name", ONNX_FILES)
def test_network_is_as_the_card_says(name: str) -> None:
    model = onnx.load(MODELS / name)
    onnx.checker.check_model(model, full_check=True)
    (x,), (logits,) = model.graph.input, model.graph.output
    assert (x.name, logits.name) == ("x", "logits")
    assert x.type.tensor_type.elem_type == logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    for value, sizes in ((x, [1, 28, 28]), (logits, [10])):
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param, "the batch axis is open"
        assert [dim.dim_value for dim in rest] == sizes
    floats = {
        tensor.name: list(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert floats == {
        "conv1.weight": [20, 1, 5, 5],
        "conv1.bias": [20],
        "conv2.weight": [50, 20, 5, 5],
        "conv2.bias": [50],
        "fc1.weight": [256, 800],
        "fc1.bias": [256],
        "fc2.weight": [10, 256],
        "fc2.bias": [10],
    }
    parameters = sum(int(np.prod(dims)) for dims in floats.values())
    assert int(card_row("Parameters")[1].replace(",", "")) == parameters
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_exporters_name_nodes_in_their_own_way() -> None:
    first, second = ([node.name for node in onnx.load(MODELS / name).graph.node] for name in ONNX_FILES)
    assert {"/conv1/Conv", "/conv2/Conv", "/fc1/Gemm", "/fc2/Gemm"} <= set(first)
    assert {"node_conv2d", "node_conv2d_1", "node_linear", "node_linear_1"} <= set(second)


@pytest.mark.parametrize("name", ONNX_FILES)
def test_no_source_path_is_left_in_a_network(name: str) -> None:
    assert re.search(rb"\.py\b", (MODELS / name).read_bytes()) is None


def test_both_exports_have_the_same_weights_and_outputs(calibration: tuple[np.ndarray, np.ndarray]) -> None:
    weights = [
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(MODELS / name).graph.initializer}
        for name in ONNX_FILES
    ]
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
    first, second = (logits_of(name, calibration[0]) for name in ONNX_FILES)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("column", [0, 1])
def test_accuracy_on_the_calibration_images(column: int, calibration: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = calibration
    _, images, *accuracies = card_row("calibration")
    assert images == "2,000"
    measured = float((logits_of(ONNX_FILES[column], x).argmax(1) == y).mean())
    assert measured == pytest.approx(float(accuracies[column]), abs=0.0011)  # two images: rounding may differ


def test_accuracy_on_the_test_set(trainer: ModuleType) -> None:
    if not (trainer.DEBIAN_FOLDER / trainer.FILES["test"][0]).is_file():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    images, labels = trainer.load_split(trainer.DEBIAN_FOLDER, "test")
    measured = float((logits_of("lenet4.onnx", images).argmax(1) == labels).mean())
    assert measured >= 0.90
    assert measured == pytest.approx(float(card_row("test")[2]), abs=0.0006)


def test_calibration_images_are_from_the_training_set(
    trainer: ModuleType, calibration: tuple[np.ndarray, np.ndarray]
) -> None:
    if not (trainer.DEBIAN_FOLDER / trainer.FILES["train"][0]).is_file():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    images, labels = trainer.load_split(trainer.DEBIAN_FOLDER, "train")
    known = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    assert all((image.tobytes(), int(label)) in known for image, label in zip(*calibration, strict=True))


# ---- the reader of IDX files


def idx_bytes(magic: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return gzip.compress(struct.pack(f">I{len(shape)}I", magic, *shape) + values)


WHOLE = idx_bytes(0x0803, (2, 3, 4), bytes(24))


def test_idx_round_trip(trainer: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    values = np.arange(2 * 3 * 4, dtype=np.uint8)
    path.write_bytes(idx_bytes(0x0803, (2, 3, 4), values.tobytes()))
    np.testing.assert_array_equal(trainer.read_idx(path, 0x0803), values.reshape(2, 3, 4))


def test_idx_missing_names_the_package(trainer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(trainer.DataError, match="apt-get install dataset-fashion-mnist"):
        trainer.read_idx(tmp_path / "none.gz", 0x0803)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(idx_bytes(0x0801, (24,), bytes(24)), "magic number 0x0801; 0x0803 is", id="labels"),
        pytest.param(idx_bytes(0x0D03, (2, 3, 4), bytes(24)), "magic number 0x0d03", id="floats"),
        pytest.param(idx_bytes(0x0803, (2, 3, 4), bytes(23)), "holds 23 values", id="too short"),
        pytest.param(idx_bytes(0x0803, (2, 3, 4), bytes(25)), "holds 25 values", id="too long"),
        pytest.param(idx_bytes(0x0803, (), b"\0\0"), "has 6 bytes", id="no header"),
        pytest.param(gzip.compress(b""), "has 0 bytes", id="empty"),
        pytest.param(b"plain text", "not a complete gzip file", id="not gzip"),
        pytest.param(WHOLE[:-12], "not a complete gzip file", id="cut gzip"),
        pytest.param(WHOLE[:10] + b"\xff" * 30, "not a complete gzip file", id="spoilt gzip"),
    ],
)
def test_idx_that_is_broken(trainer: ModuleType, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.gz"
    path.write_bytes(content)
    with pytest.raises(trainer.DataError, match=message):
        trainer.read_idx(path, 0x0803)


def test_split_of_the_wrong_size_is_refused(trainer: ModuleType, tmp_path: Path) -> None:
    images, labels, _ = trainer.FILES["test"]
    (tmp_path / images).write_bytes(idx_bytes(0x0803, (3, 28, 28), bytes(3 * 784)))
    (tmp_path / labels).write_bytes(idx_bytes(0x0801, (3,), bytes(3)))
    with pytest.raises(trainer.DataError, match=r"shape \(3, 28, 28\)"):
        trainer.load_split(tmp_path, "test")


def test_script_without_data_ends_with_one_sentence(
    trainer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        assert trainer.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 4
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_images_for_the_training_demo(trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(MODELS))
    spec = importlib.util.spec_from_file_location("fashion_mnist", MODELS / "fashion_mnist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([str(tmp_path), "--data", str(tmp_path / "absent")]) == 0
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
    for name, count in (("train", 1500), ("val", 500)):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert arrays["x"].shape == (count, 1, 28, 28)
            assert arrays["y"].dtype == np.int64
