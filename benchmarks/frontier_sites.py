"""The sites at which widths are compared: a trained model, real samples, the candidates, and their inits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnx_compnet as oc
from benchmarks import corpus_data, frontier_texts
from benchmarks.corpus import model_path
from benchmarks.networks import LeNet4, to_onnx
from benchmarks.paper_rows import ROWS, Settings
from benchmarks.paper_run import Bench
from onnx_compnet.baselines.scratch import scratch

Array = NDArray[Any]
MODELS = Path(__file__).resolve().parent.parent / "models"
INITS = ("auto", "principal", "linear")
PIXELS = {"scale": 1 / 255}
MINILM_MLP = "model.0.auto_model.encoder.layer.0.intermediate.dense"
VGG_SETTINGS = Settings(
    "fashion-mnist", epochs=4, parent_epochs=5, lr=5e-3, parent_lr=5e-2, schedule="cosine", width_multiplier=0.125,
    samples=10_000, test_samples=5_000, batch_size=64, dropout=0.1, calibration=1000, augment=("flip",),
)  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """One site. ``model`` makes the parent, its files in the folder given; ``data`` its feeds, all of them."""

    name: str
    title: str
    after: str
    activation: str
    candidates: int
    samples: int
    said: str
    model: Callable[[Path], onnx.ModelProto]
    data: Callable[[Path], Mapping[str, Array]]
    inits: tuple[str, ...] = INITS
    normalisation: Callable[[Path], Mapping[str, float]] = field(default=lambda _: {})

    def options(self, init: str, seed: int) -> dict[str, Any]:
        """What ``GrowOptions`` are made of, but for the method and the normalisation of the inputs."""
        return {"init": init, "seed": seed, "activation": self.activation, "candidates": self.candidates}


# ---------------------------------------------------------------- LeNet4


def _lenet4(_: Path) -> onnx.ModelProto:
    return oc.load(MODELS / "lenet4.onnx")


def _fashion(_: Path) -> dict[str, Array]:
    with np.load(MODELS / "fashion_mnist_calibration.npz") as file:
        return {"x": file["x"]}


def digits(work: Path) -> onnx.ModelProto:
    """LeNet4 trained on 4,500 digits, now if it is not in ``work``; 500 others chose the epoch."""
    kept = work / "lenet4-digits.onnx"
    if not kept.is_file():
        images, labels = corpus_data.load("mnist-5k")
        order = np.random.default_rng(0).permutation(len(images))
        parts = [{"x": images[part, None], "y": labels[part]} for part in (order[500:], order[:500])]
        drawn = scratch(to_onnx(LeNet4(), (1, 28, 28)), seed=0)
        tuned = oc.finetune(
            drawn, *parts, epochs=4, batch_size=64, lr=5e-2, schedule="one-cycle", warmup=0.0, optimizer="sgd",
            momentum=0.9, weight_decay=5e-4, best_by="accuracy", seed=0, **PIXELS,
        )  # fmt: skip
        work.mkdir(parents=True, exist_ok=True)
        tuned.save(kept)
    return oc.load(kept)


def _digit_images(_: Path) -> dict[str, Array]:
    images, _labels = corpus_data.load("mnist-5k")
    return {"x": images[np.random.default_rng(0).permutation(len(images))][500:, None]}


# ---------------------------------------------------------------- VGG15, MiniLM, AttaCut


@lru_cache
def _vgg_bench(work: Path) -> Bench:
    return Bench(VGG_SETTINGS, "vgg", work / "results", work, say=lambda _: None)


def _vgg15(work: Path) -> onnx.ModelProto:
    return _vgg_bench(work).parent(ROWS["vgg16-relu"], 0)


SITES = {
    site.name: site
    for site in (
        *(
            Frontier(
                f"lenet4-{h}", f"LeNet4, Fashion-MNIST, {said}", "conv1", h, 80, 800,
                "Fashion-MNIST training images", _lenet4, _fashion, normalisation=lambda _: PIXELS,
            )
            for h, said in (("relu", "ReLU"), ("gelu", "GELU"), ("tanh", "tanh"))
        ),
        Frontier(
            "digits-relu", "LeNet4, MNIST digits, ReLU", "conv1", "relu", 80, 800, "MNIST digits", digits,
            _digit_images, normalisation=lambda _: PIXELS,
        ),
        Frontier(
            "vgg15-relu", "VGG15 at an eighth of the width, Fashion-MNIST, ReLU", ROWS["vgg16-relu"].after, "relu",
            128, 1500, "Fashion-MNIST training images, padded to 32 × 32", _vgg15,
            lambda work: {"x": _vgg_bench(work).images.train_x},
            normalisation=lambda work: _vgg_bench(work).pixels,
        ),
        Frontier(
            "minilm-gelu", "MiniLM, MLP of the first layer, GELU",
            MINILM_MLP, "auto", 256, 500, "sentences of the Python documentation, 32 WordPiece tokens each",
            lambda _: oc.load(model_path("minilm_l3_paraphrase")), lambda _: frontier_texts.tokens(500, 32),
            inits=("auto", "principal"),
        ),
        Frontier(
            "attacut-relu", "AttaCut, 1-D convolutions, ReLU", "node_cat", "relu", 128, 500,
            "Thai messages of dpkg, apt and grep, 48 characters each",
            lambda _: oc.load(model_path("attacut_sc")), lambda _: frontier_texts.characters(500, 48),
        ),
    )
}  # fmt: skip
