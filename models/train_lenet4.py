"""Train LeNet4 on Fashion-MNIST and write every data file of this folder.

    python models/train_lenet4.py [--data FOLDER] [--out FOLDER] [--epochs N] [--seed N]

LeNet4 is the parent network of the CompNet paper: two convolutions and two dense layers. The script
reads the four IDX files of Fashion-MNIST, trains on the 60,000 training images, and writes

    lenet4.onnx                      exported through TorchScript
    lenet4_dynamo.onnx               the same weights, exported through torch.export ("dynamo")
    fashion_mnist_calibration.npz    2,000 training images, 200 of each class
    SHA256SUMS                       for `sha256sum -c`
    README.md                        only the block between the two `measured` markers

The figures in that block are measured on the ONNX files in onnxruntime, not on the torch module.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

HERE = Path(__file__).resolve().parent
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
MAGIC_LABELS = 0x0801  # unsigned bytes, one axis
MAGIC_IMAGES = 0x0803  # unsigned bytes, three axes
CLASSES = 10
PER_CLASS = 200
MODELS = ("lenet4.onnx", "lenet4_dynamo.onnx")
CALIBRATION = "fashion_mnist_calibration.npz"
MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


class DataError(Exception):
    """A data file is missing, is not an IDX file, or does not have the size that its header gives."""


def read_idx(path: Path, magic: int) -> UInt8Array:
    """Read one gzipped IDX file of unsigned bytes: a big-endian magic number, the axes, the bytes."""
    if not path.is_file():
        raise DataError(
            f"{path} is not there. Install the data with `apt-get install dataset-fashion-mnist` "
            "(Debian, Ubuntu), or give the folder with the four IDX files by --data."
        )
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file: {error}") from error
    axes = magic & 0xFF
    header = 4 * (1 + axes)
    if len(raw) < header:
        raise DataError(f"{path} has {len(raw)} bytes; an IDX header with {axes} axes needs {header}.")
    found, *shape = (int(value) for value in np.frombuffer(raw, ">u4", 1 + axes))
    if found != magic:
        raise DataError(f"{path} has magic number {found:#06x}; {magic:#06x} is expected.")
    expected = int(np.prod(shape))
    if len(raw) - header != expected:
        raise DataError(f"{path} holds {len(raw) - header} values; its header gives {shape}, so {expected}.")
    return np.frombuffer(raw, np.uint8, expected, header).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[UInt8Array, UInt8Array]:
    """Images [n,1,28,28] and labels [n] of `train` or `test`."""
    image_name, label_name, count = FILES[split]
    images = read_idx(folder / image_name, MAGIC_IMAGES)
    labels = read_idx(folder / label_name, MAGIC_LABELS)
    if images.shape != (count, 28, 28):
        raise DataError(f"{folder / image_name} has shape {images.shape}; ({count}, 28, 28) is expected.")
    if labels.shape != (count,):
        raise DataError(f"{folder / label_name} has shape {labels.shape}; ({count},) is expected.")
    if labels.max() >= CLASSES:
        raise DataError(f"{folder / label_name} has label {labels.max()}; 0 to {CLASSES - 1} are expected.")
    return images[:, None], labels


class LeNet4(nn.Module):
    """Conv 1→20 5×5, pool, Conv 20→50 5×5, pool, dense 800→256, dense 256→10, with ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 256)
        self.fc2 = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n,10] of images [n,1,28,28] with values in [0, 1]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        logits: torch.Tensor = self.fc2(x)
        return logits


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images left to right; shift the whole batch by up to one pixel each way."""
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
    down, right = (int(step) for step in torch.randint(0, 3, (2,), generator=generator))
    return F.pad(x, (1, 1, 1, 1))[:, :, down : down + 28, right : right + 28]


def train(images: UInt8Array, labels: UInt8Array, *, epochs: int, seed: int, batch: int = 128) -> LeNet4:
    """SGD with Nesterov momentum, one learning-rate cycle, weight decay, label smoothing."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = LeNet4()
    x_all = torch.from_numpy(images.copy())
    y_all = torch.from_numpy(labels.astype(np.int64))
    steps = -(-len(x_all) // batch)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.05, total_steps=epochs * steps, pct_start=0.2
    )
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for chunk in torch.randperm(len(x_all), generator=generator).split(batch):
            x = augment(x_all[chunk].float() / 255, generator)
            loss = F.cross_entropy(model(x), y_all[chunk], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chunk)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1:2d}/{epochs}  loss {total / len(x_all):.4f}  {seconds:.0f} s", flush=True)
    return model.eval()


def export(model: LeNet4, folder: Path) -> None:
    """Write the network twice, once through each of torch's exporters, with the weights in the file."""
    example = torch.zeros(2, 1, 28, 28)
    script, dynamo = (folder / name for name in MODELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces that it is the older one
        torch.onnx.export(
            model,
            (example,),
            str(script),
            dynamo=False,
            opset_version=17,
            dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            input_names=["x"],
            output_names=["logits"],
        )
        torch.onnx.export(
            model,
            (example,),
            str(dynamo),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
            input_names=["x"],
            output_names=["logits"],
        )
    for path in (script, dynamo):
        proto = onnx.load(str(path))
        for node in proto.graph.node:  # source lines and paths of the machine that exported
            kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
            node.doc_string = ""
        onnx.checker.check_model(proto, full_check=True)
        path.write_bytes(proto.SerializeToString(deterministic=True))


def onnx_logits(path: Path, images: UInt8Array, batch: int = 500) -> Float32Array:
    """Logits that onnxruntime's CPU provider gives for uint8 images."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"x": images[start : start + batch].astype(np.float32) / 255})[0]
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def write_calibration(path: Path, images: UInt8Array, labels: UInt8Array, seed: int) -> None:
    """Draw 200 images of each class without replacement, shuffle them, and write `x` and `y`."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(np.flatnonzero(labels == c), PER_CLASS, replace=False) for c in range(CLASSES)]
    chosen = rng.permutation(np.concatenate(drawn))
    np.savez_compressed(path, x=images[chosen], y=labels[chosen].astype(np.int64))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measured_block(
    folder: Path, train_set: tuple[UInt8Array, UInt8Array], test_set: tuple[UInt8Array, UInt8Array]
) -> str:
    """The tables of the model card: accuracies in onnxruntime, sizes and SHA-256 sums."""
    with np.load(folder / CALIBRATION) as arrays:
        calibration = arrays["x"], arrays["y"]
    sets = {"train": train_set, "test": test_set, "calibration": calibration}
    lines = [
        "| set | images | accuracy of `lenet4.onnx` | accuracy of `lenet4_dynamo.onnx` |",
        "|---|---:|---:|---:|",
    ]
    gap = 0.0
    for name, (images, labels) in sets.items():
        first, second = (onnx_logits(folder / model, images) for model in MODELS)
        gap = max(gap, float(np.abs(first - second).max()))
        scores = [float((logits.argmax(1) == labels).mean()) for logits in (first, second)]
        lines.append(f"| {name} | {len(images):,} | {scores[0]:.4f} | {scores[1]:.4f} |")
    if gap > 1e-5:
        raise SystemExit(f"the two exports differ by {gap:.2g} in their logits; at most 1e-5 is allowed")
    lines += [
        "",
        f"Largest difference between the logits of the two files, over all of these images: {gap:.1e}.",
        "",
    ]
    lines += ["| file | bytes | SHA-256 |", "|---|---:|---|"]
    for name in (*MODELS, CALIBRATION):
        lines.append(f"| `{name}` | {(folder / name).stat().st_size:,} | `{sha256(folder / name)}` |")
    return "\n".join(lines)


def update_card(card: Path, block: str) -> None:
    """Replace what stands between the two markers of the model card, if the folder has a card."""
    if not card.is_file():
        return
    before, _, rest = card.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    card.write_text(f"{before}{MARKERS[0]}\n{block}\n{MARKERS[1]}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Train, export, measure, write."""
    parser = argparse.ArgumentParser(description="Train LeNet4 on Fashion-MNIST and export it to ONNX.")
    parser.add_argument(
        "--data", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where the files go (this script's folder)")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the training set (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, shuffling and drawing (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch; they change rounding (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    try:
        train_set, test_set = load_split(args.data, "train"), load_split(args.data, "test")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    args.out.mkdir(parents=True, exist_ok=True)
    export(train(*train_set, epochs=args.epochs, seed=args.seed), args.out)
    write_calibration(args.out / CALIBRATION, *train_set, seed=args.seed)
    block = measured_block(args.out, train_set, test_set)
    update_card(args.out / "README.md", block)
    sums = "".join(f"{sha256(args.out / name)}  {name}\n" for name in (*MODELS, CALIBRATION))
    (args.out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(block)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
