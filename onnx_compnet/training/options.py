"""The options of a fine-tuning, checked once, with a reason for each default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnx_compnet.config import Normalisation, check_mappings, real, whole
from onnx_compnet.errors import UsageError

LOSSES = ("auto", "cross-entropy", "bce", "mse", "distill", "distill-mse")
OPTIMIZERS = ("sgd", "adamw")
EPOCHS = 10
SCHEDULES = ("constant", "cosine", "one-cycle", "step")
CRITERIA = ("auto", "accuracy", "loss", "last")
AUGMENTATIONS = ("crop", "flip")
_LEAST_AXIS = -64  # torch's tensors have no more axes
PRESETS: dict[str, dict[str, Any]] = {
    # AdamW at a tenth of its usual rate: the weights are trained already
    "default": {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.05},
    # section 3.1 of the paper, its LeNet and its VGG experiments; it names no schedule
    "paper": {"optimizer": "sgd", "lr": 5e-3, "weight_decay": 1e-6, "schedule": "constant", "warmup": 0.0},
    "paper-vgg": {
        "optimizer": "sgd",
        "lr": 3e-4,
        "weight_decay": 1e-6,
        "schedule": "constant",
        "warmup": 0.0,
    },
}


@dataclass(frozen=True)
class FinetuneOptions:
    """What ``finetune`` takes besides model and data; the command line's options with underscores.

    Parameters
    ----------
    loss
        ``cross-entropy`` (integer labels; -100 is left out), ``bce`` (labels 0 to 1 in the output's shape), ``mse``,
        ``distill`` (the teacher's outputs instead of labels: KL where they look like class scores, else squared
        error), ``distill-mse``. ``auto``: distill with a teacher, else cross-entropy.
    teacher, temperature
        The model (or its path) to learn from, run in onnxruntime; the temperature of KL.
    labels
        The name of the labels' array, "y" where labels are needed. Named with a teacher, they measure accuracy.
    output_name, class_axis
        The output that is trained, where there are several; the axis of the classes, where shapes don't tell.
    preset
        What optimizer, lr, weight_decay, schedule and warmup are where they are not given: ``default``, or
        ``paper`` and ``paper-vgg`` for the paper's LeNet and VGG experiments.
    epochs, max_steps
        Passes over the data, EPOCHS where neither is given; optimiser steps, after which the run ends within an
        epoch, too: what is left of it is validated like an epoch. Of both, what is reached first counts, and the
        schedule runs over that.
    lr, lr_new
        Peak learning rates; ``lr_new`` is for the new layers and the readers that were solved anew, by default lr.
    warmup
        Share of all steps in which the rate rises linearly (one-cycle has its own rise).
    step_epochs, gamma
        Of the schedule ``step``: the rate is multiplied by gamma each step_epochs (default: a third of the epochs).
    freeze
        fnmatch patterns of initialisers that stay as they are.
    clip_norm
        The largest norm of the gradient, over all parameters.
    amp
        bfloat16 where torch.autocast takes it; CUDA only.
    patience
        Stop after so many epochs without a better one.
    best_by
        What makes an epoch the best one; ``auto``: accuracy where there is one, else the loss; ``last``: to be the
        last, so that validation data chooses nothing.
    augment, crop_padding
        ``crop`` (shifts of up to crop_padding pixels) and ``flip`` (left and right), on 4-D inputs as stored.
    checkpoint, checkpoint_every
        A folder that the run can go on from; written after each epoch, and within one each so many steps.
    holdout
        Share of the data that validates where no validation data is given.
    parent
        A further model whose figures are wanted beside the child's and the tuned one's.
    """

    loss: str = "auto"
    teacher: Any = None
    temperature: float = 2.0
    labels: str | None = None
    output_name: str | None = None
    class_axis: int | None = None
    preset: str = "default"
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    lr_new: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    step_epochs: int | None = None
    gamma: float = 0.1
    freeze: Sequence[str] = ()
    clip_norm: float | None = None
    amp: bool = False
    patience: int | None = None
    best_by: str = "auto"
    augment: Sequence[str] = ()
    crop_padding: int = 4
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    parent: Any = None
    holdout: float = 0.1
    max_samples: int | None = None
    seed: int = 0
    device: str = "auto"
    scale: Normalisation = None
    mean: Normalisation = None
    std: Normalisation = None
    batch_axis: Mapping[str, int | None] | None = None
    shape: Mapping[str, Sequence[int]] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        _choice("preset", self.preset, tuple(PRESETS))
        _choice("loss", self.loss, LOSSES)
        _choice("optimizer", self.optimizer, OPTIMIZERS, optional=True)
        _choice("schedule", self.schedule, SCHEDULES, optional=True)
        _choice("best_by", self.best_by, CRITERIA)
        checked: dict[str, Any] = {
            "temperature": real("temperature", self.temperature, above=0.0),
            "lr": real("lr", self.lr, above=0.0, optional=True),
            "lr_new": real("lr_new", self.lr_new, above=0.0, optional=True),
            "momentum": real("momentum", self.momentum, least=0.0, below=1.0),
            "weight_decay": real("weight_decay", self.weight_decay, least=0.0, optional=True),
            "warmup": real("warmup", self.warmup, least=0.0, below=1.0, optional=True),
            "gamma": real("gamma", self.gamma, above=0.0, most=1.0),
            "clip_norm": real("clip_norm", self.clip_norm, above=0.0, optional=True),
            "holdout": real("holdout", self.holdout, above=0.0, below=1.0),
            "epochs": whole("epochs", self.epochs, 1, optional=True),
            "max_steps": whole("max_steps", self.max_steps, 1, optional=True),
            "batch_size": whole("batch_size", self.batch_size, 1, optional=True),
            "step_epochs": whole("step_epochs", self.step_epochs, 1, optional=True),
            "patience": whole("patience", self.patience, 1, optional=True),
            "class_axis": whole("class_axis", self.class_axis, _LEAST_AXIS, optional=True),
            "crop_padding": whole("crop_padding", self.crop_padding, 1),
            "checkpoint_every": whole("checkpoint_every", self.checkpoint_every, 1, optional=True),
            "max_samples": whole("max_samples", self.max_samples, 1, optional=True),
            "seed": whole("seed", self.seed, 0),
            "freeze": _strings("freeze", self.freeze),
            "augment": _strings("augment", self.augment),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in self.augment:
            _choice("augment", name, AUGMENTATIONS)
        check_mappings(self.batch_axis, self.shape)
        _require_teacher(self)
        if self.best_by == "last" and self.patience is not None:
            raise UsageError(
                "--patience waits for a better epoch, and by --best-by last none is: leave one out"
            )
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise UsageError("--checkpoint-every needs a folder: --checkpoint DIR")

    @property
    def distils(self) -> bool:
        """Whether a teacher's outputs are learned, and no labels."""
        return self.loss.startswith("distill") or (self.loss == "auto" and self.teacher is not None)

    def resolved(self) -> FinetuneOptions:
        """Return these options with the preset's values where none are given, and EPOCHS if nothing ends it."""
        missing = {name: value for name, value in PRESETS[self.preset].items() if getattr(self, name) is None}
        if self.epochs is None and self.max_steps is None:
            missing["epochs"] = EPOCHS
        return replace(self, **missing)

    def changed(self, changes: Mapping[str, Any]) -> FinetuneOptions:
        """Return these options with some replaced; UsageError names an option that does not exist."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"finetune has no option {name!r}; it has {', '.join(known)}")
        return replace(self, **changes)


def _require_teacher(options: FinetuneOptions) -> None:
    if options.distils and options.teacher is None:
        raise UsageError(f"--loss {options.loss} learns from another model's outputs: give --teacher PARENT")
    if options.teacher is not None and not options.distils:
        raise UsageError(
            f"--teacher is given, and --loss {options.loss} would not use it; leave one of them out"
        )


def _choice(name: str, value: object, known: Sequence[str], *, optional: bool = False) -> None:
    if value not in known and not (optional and value is None):
        raise UsageError(f"--{name.replace('_', '-')} {value!r} is not one of {', '.join(known)}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    """One string (with commas), or several, as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise UsageError(f"--{name} must be a string or several, not {value!r}")
