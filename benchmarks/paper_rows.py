"""The rows and columns of the CompNet paper's Tables 1 and 2, and the settings of its section 3.1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from benchmarks.networks import VGG, LeNet4, scaled

METHODS = {
    "alg1": "Alg1",
    "alg2": "Alg2",
    "alg3": "Alg3",
    "netmorph-oracle": "NetMorph-Oracle",
    "netmorph-redundant": "NetMorph-Redundant",
    "net2deeper": "Net2DeeperNet",
    "random": "random",
    "scratch": "Scratch",
    "parent": "parent trained on",
    "alg1-capped": "Alg1 capped",
    "alg2-capped": "Alg2 capped",
    "alg3-capped": "Alg3 capped",
    "random-capped": "random capped",
    "scratch-long": "Scratch long",
}
WIDTH_OF = {"netmorph-oracle": "alg2", "random": "alg3"}
"""Whose width a method is given."""
CAPPED = {
    "alg1-capped": ("alg1", 0),
    "alg2-capped": ("alg2", 1),
    "alg3-capped": ("alg3", 2),
    "random-capped": ("random", 2),
}
"""The methods that are given a width of the paper's Table 1, scaled: the tool's method, and whose width."""


@dataclass(frozen=True)
class Row:
    """One row: ``parent`` (a network, or the row whose child by Algorithm 3 it is) grows behind layer ``after``."""

    name: str
    title: str
    parent: str
    child: str
    after: str
    redundant: int
    activation: str
    sparse: tuple[int, int, int]
    """The paper's Table 1: widths that Algorithms 1 to 3 keep."""
    compression: float
    """Its "average compress rate": the share that is kept, in percent, as printed there."""
    best: tuple[float, float, float, float, float, float]
    """The paper's Table 2, in percent: Alg1, Alg2, Alg3, NetMorph-Oracle, NetMorph-Redundant, Scratch."""

    @property
    def family(self) -> str:
        """``lenet`` or ``vgg``."""
        return "lenet" if self.child.startswith("lenet") else "vgg"

    def candidates(self, settings: Settings) -> int:
        """N_redundant at this width."""
        return scaled(self.redundant, settings.width_multiplier)

    def cap(self, method: str, settings: Settings) -> int:
        """The width of a method of CAPPED at this width of the network."""
        return scaled(self.sparse[CAPPED[method][1]], settings.width_multiplier)


ROWS = {
    row.name: row
    for row in (
        Row("lenet5", "LeNet4 to LeNet5 (ReLU)", "lenet4", "lenet5", "conv1", 100, "relu",
            (41, 46, 49), 45.3, (99.15, 99.20, 99.18, 99.17, 99.18, 99.19)),
        Row("vgg16-relu", "VGG15 to VGG16 (ReLU)", "vgg15", "vgg16", "conv3_3", 512, "relu",
            (165, 200, 255), 40.4, (84.74, 84.50, 83.31, 83.44, 82.38, 83.14)),
        Row("vgg16-sigmoid", "VGG15 to VGG16 (Sigmoid)", "vgg15", "vgg16", "conv3_3", 512, "sigmoid",
            (196, 162, 105), 30.1, (83.63, 83.71, 83.08, 83.25, 82.54, 69.97)),
        Row("vgg16-tanh", "VGG15 to VGG16 (TanH)", "vgg15", "vgg16", "conv3_3", 512, "tanh",
            (213, 178, 157), 35.7, (83.68, 83.52, 83.86, 83.41, 83.00, 80.70)),
        Row("vgg17", "VGG16 to VGG17 (ReLU)", "vgg16-relu", "vgg17", "conv3_2", 256, "relu",
            (155, 121, 127), 52.5, (85.45, 85.37, 85.78, 85.69, 85.51, 82.71)),
        Row("vgg19", "VGG18 to VGG19 (ReLU)", "vgg18", "vgg19", "conv3_4", 512, "relu",
            (221, 211, 255), 44.5, (89.00, 88.84, 88.90, 88.95, 88.87, 85.26)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How the runs of a set are done. The defaults of ``settings_of`` are the paper's, as far as it says.

    ``parent_*`` and ``one-cycle`` are the recipe for a network that begins with drawn weights: parents, Scratch (for
    ``epochs``) and Scratch long (for ``parent_epochs + epochs``). All others are trained for ``epochs`` by ``lr``
    and ``schedule``. ``calibration`` training images are given to ``grow``.
    """

    dataset: str
    epochs: int
    parent_epochs: int
    lr: float
    parent_lr: float
    schedule: str = "constant"
    width_multiplier: float = 1.0
    samples: int | None = None
    test_samples: int | None = None
    batch_size: int = 128
    weight_decay: float = 1e-6
    parent_weight_decay: float = 5e-4
    momentum: float = 0.9
    clip_norm: float | None = None
    dropout: float = 0.5
    augment: tuple[str, ...] = ()
    crop_padding: int = 4
    calibration: int = 2000
    lam: float = 0.1
    alpha: float = 0.1

    @property
    def tag(self) -> str:
        """Short name of the set that runs with these settings belong to."""
        images = "all" if self.samples is None else str(self.samples)
        return f"{self.dataset}.w{self.width_multiplier:g}.n{images}.e{self.epochs}"


def settings_of(family: str, dataset: str | None = None, **changes: Any) -> Settings:
    """The paper's settings for ``lenet`` or ``vgg``; None among ``changes`` leaves one as it is."""
    name = dataset or {"lenet": "mnist", "vgg": "cifar10"}[family]
    if family == "lenet":
        augment = ("flip",) if name == "fashion-mnist" else ()
        start = Settings(name, 200, 200, 5e-3, 5e-2, augment=augment)
    else:
        padding = 2 if name == "fashion-mnist" else 4
        start = Settings(
            name,
            1000,
            1000,
            3e-4,
            2e-2,
            augment=("crop", "flip"),
            crop_padding=padding,
            clip_norm=5.0,
            calibration=5000,  # 512 candidates of 3 × 3 need as many rows at 4 × 4 positions
        )
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    return replace(start, **{key: value for key, value in given.items() if value is not None})


def settings_from(stored: Mapping[str, Any]) -> Settings:
    """The settings that a result file holds."""
    known = {field.name for field in fields(Settings)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return Settings(**{key: value for key, value in given.items() if key in known})


def stored(settings: Settings) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(settings).items()}


def network(kind: str, settings: Settings, *, activation: str = "relu", inserted: int = 0) -> nn.Module:
    """The torch module of a network; ``inserted`` is the width of LeNet5's additional layer."""
    if kind in ("lenet4", "lenet5"):
        return LeNet4(scaled(20, settings.width_multiplier), inserted, activation)
    channels = 3 if settings.dataset == "cifar10" else 1
    return VGG(
        kind, settings.width_multiplier, channels=channels, dropout=settings.dropout, activation=activation
    )


def image_shape(family: str, settings: Settings) -> tuple[int, int, int]:
    """(C, H, W) of an image."""
    if family == "lenet":
        if settings.dataset == "cifar10":
            raise ValueError("LeNet4 takes 28 × 28 grey pixels: MNIST or Fashion-MNIST, not CIFAR-10")
        return 1, 28, 28
    return 3 if settings.dataset == "cifar10" else 1, 32, 32


def natural(text: str) -> list[Any]:
    """A key that sorts numbers in names by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
