"""What a fine-tuning hands back: the tuned model, its figures, and how they are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_compnet.graph import model_io
from onnx_compnet.training.evaluate import Score
from onnx_compnet.training.loop import Epoch
from onnx_compnet.training.options import FinetuneOptions
from onnx_compnet.training.parameters import Trained
from onnx_compnet.version import __version__, library_versions

SCHEMA = 1
_RECORDED = (
    "loss", "temperature", "labels", "output_name", "class_axis", "preset", "epochs", "max_steps", "batch_size",
    "optimizer", "lr", "lr_new", "momentum", "weight_decay", "schedule", "warmup", "step_epochs", "gamma", "freeze",
    "clip_norm", "amp", "patience", "best_by", "augment", "crop_padding", "holdout", "max_samples", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """A tuned model and what is known about it.

    ``scores`` has "child", "tuned" and, if it was asked for, "parent": each measured in onnxruntime on the
    validation data. ``history`` starts with the child (epoch 0); ``best_epoch`` is the one whose weights were kept.
    ``batch_size`` and ``loss`` are what was really taken.
    """

    model: onnx.ModelProto
    scores: Mapping[str, Score]
    history: tuple[Epoch, ...]
    best_epoch: int
    options: FinetuneOptions
    loss: str
    batch_size: int
    trained: Trained
    samples: int
    data: str
    val: str
    random_data: bool
    device: str
    providers: tuple[str, ...]
    processes: int
    child_sha256: str
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def accuracy(self) -> float | None:
        """The tuned ONNX model's accuracy on the validation data; None without class labels."""
        return self.scores["tuned"].accuracy

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the tuned model atomically; OutputExistsError if ``path`` exists and not ``force``."""
        model_io.save(self.model, path, force=force)


def provenance(tuned: Tuned) -> dict[str, Any]:
    """What is written into the model: all but the times."""
    report = {
        "schema": SCHEMA,
        "version": __version__,
        "libraries": library_versions(),
        "child_sha256": tuned.child_sha256,
        "data": tuned.data,
        "val": tuned.val,
        "random_data": tuned.random_data,
        "samples": tuned.samples,
        "device": tuned.device,
        "providers": list(tuned.providers),
        "processes": tuned.processes,
        **{name: getattr(tuned.options, name) for name in _RECORDED},
        "loss": tuned.loss,
        "batch_size": tuned.batch_size,
        "parameters": {
            "old": len(tuned.trained.old), "new": len(tuned.trained.new), "frozen": len(tuned.trained.frozen)
        },
        "epochs_run": tuned.history[-1].number,
        "best_epoch": tuned.best_epoch,
        "scores": {name: asdict(score) for name, score in tuned.scores.items()},
        "warnings": list(tuned.warnings),
    }  # fmt: skip
    return {name: _plain(value) for name, value in report.items()}


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def tuned_report(tuned: Tuned, sha256: str | None) -> dict[str, Any]:
    """What ``finetune --json`` writes; ``sha256`` is that of the written file, None where there is none."""
    history = [_plain({**asdict(epoch), "seconds": round(epoch.seconds, 3)}) for epoch in tuned.history]
    return {
        **provenance(tuned),
        "tuned_sha256": sha256,
        "history": history,
        "seconds": {stage: round(seconds, 3) for stage, seconds in tuned.seconds.items()},
    }


def tuned_text(tuned: Tuned, written: str) -> str:
    """The story of a training: a line an epoch, then the comparison; ``written`` says where the model is."""
    lines = []
    for epoch in tuned.history:
        train = "child" if epoch.train_loss is None else f"train loss {epoch.train_loss:.4g}"
        kept = "  ← kept" if epoch.number == tuned.best_epoch else ""
        lines.append(f"epoch {epoch.number:>3}   {train}, validation {_score(epoch.val)}{kept}")
    rate = "" if tuned.options.lr_new is None else f", new layers {tuned.options.lr_new:g}"
    trained = tuned.trained
    lines += [
        f"trained     {len(trained.old)} weights, {len(trained.new)} of new layers, {len(trained.frozen)} frozen; "
        f"{tuned.loss}, {tuned.options.optimizer}, lr {tuned.options.lr:g}{rate}",
        f"data        {tuned.samples} samples of {tuned.data}"
        + (" — RANDOM data, not the model's own" if tuned.random_data else ""),
        f"measured on {tuned.scores['tuned'].samples} validation samples of {tuned.val}, in onnxruntime",
    ]
    lines += [f"{name:<12}{_score(score)}" for name, score in tuned.scores.items()]
    lines += [f"seconds     {sum(tuned.seconds.values()):.1f} on {tuned.device}", f"tuned model {written}"]
    return "\n".join(lines)


def _score(score: Score) -> str:
    parts = [f"loss {score.loss:.4g}"]
    if score.accuracy is not None:
        parts.append(f"accuracy {score.accuracy:.4f}")
    if score.agreement is not None:
        parts.append(f"agreement with the teacher {score.agreement:.4f}")
    return ", ".join(parts)
