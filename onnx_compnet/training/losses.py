"""What is minimised, as (sum over the batch, how many were summed), so that parts of a batch add up exactly.

With s the output (scores before softmax or sigmoid), y the labels, t the teacher's output::

    cross-entropy   - log softmax(s)[y]                            a label;    y integers, -100 is left out
    bce             - y log σ(s) - (1 - y) log(1 - σ(s))           an element; 0 ≤ y ≤ 1
    mse             (s - y)²                                       an element
    distill         T² · KL(softmax(t/T) ‖ softmax(s/T))           a row of scores; where they look like scores
                    (s - t)²                                       an element, else (and for distill-mse)

An output that the model itself makes by Softmax or Sigmoid is taken back to scores first (log p, logit p), also where
only its shape or type is changed behind that. A teacher's is by what the teacher makes it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.graph.index import is_op

IGNORED = -100
_SAME_VALUES = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_TINY = 1e-12  # where a probability is cut before its logarithm is taken

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """One loss. ``outputs``: the names of those that count; ``made_by``: the last operator of each one (``makers``).

    ``kind``: "cross-entropy", "bce", "mse", "distill" or "distill-mse". ``class_axis``: None lets shapes tell.
    """

    kind: str
    outputs: tuple[str, ...]
    made_by: Mapping[str, str]
    class_axis: int | None = None
    temperature: float = 2.0
    teacher_made_by: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, outputs: Outputs, labels: Tensor | None, teacher: Outputs | None
    ) -> tuple[Tensor, int]:
        """The loss's sum (a scalar tensor) and the number of terms. Labels or the teacher's outputs are needed."""
        if self.kind.startswith("distill"):
            assert teacher is not None
            parts = [self._distill(name, outputs[name], teacher[name]) for name in self.outputs]
            # a mean over rows and one over elements: each output counts by its own mean
            return _together(parts)
        assert labels is not None
        name = self.outputs[0]
        output = self._scores(outputs[name], self.made_by.get(name))
        if self.kind == "cross-entropy":
            scores = output.movedim(self.axis(output.shape, labels.shape), -1)
            flat = labels.reshape(-1).long()
            total = nn.functional.cross_entropy(
                scores.reshape(-1, scores.shape[-1]), flat, reduction="sum", ignore_index=IGNORED
            )
            return total, int((flat != IGNORED).sum())
        target = labels.to(output.dtype).reshape(output.shape)
        if self.kind == "bce":
            return nn.functional.binary_cross_entropy_with_logits(
                output, target, reduction="sum"
            ), output.numel()
        return nn.functional.mse_loss(output, target, reduction="sum"), output.numel()

    def correct(self, outputs: Outputs, labels: Tensor) -> tuple[int, int]:
        """How many labels are met, of how many."""
        output = outputs[self.outputs[0]]
        if self.kind == "bce":
            hit = (self._scores(output, self.made_by.get(self.outputs[0])) > 0) == (
                labels.reshape(output.shape) > 0.5
            )
            return int(hit.sum()), hit.numel()
        found = output.argmax(self.axis(output.shape, labels.shape))
        counted = labels != IGNORED
        return int(((found == labels) & counted).sum()), int(counted.sum())

    def agreeing(self, outputs: Outputs, teacher: Outputs) -> tuple[int, int]:
        """How many rows of scores have the teacher's largest one, of how many (0 where nothing is a score)."""
        equal = rows = 0
        for name in self.outputs:
            a, b = outputs[name], teacher[name]
            if _like_scores(a.shape, self._default_axis(a.dim())):
                axis = self._default_axis(a.dim())
                hit = a.argmax(axis) == b.argmax(axis)
                equal, rows = equal + int(hit.sum()), rows + hit.numel()
        return equal, rows

    @property
    def classifies(self) -> bool:
        """Whether labels, where there are any, give an accuracy."""
        return self.kind != "mse"

    def axis(self, shape: Sequence[int], labels: Sequence[int]) -> int:
        """The axis of an output with ``shape`` that holds the classes, for labels of that shape: 1, or the last.

        Raises DataError where the two don't fit, UsageError where both axes could be meant.
        """
        rank = len(shape)
        asked = [self.class_axis] if self.class_axis is not None else [1, rank - 1]
        fitting = [
            a for a in dict.fromkeys(asked) if -rank <= a < rank and _without(shape, a) == list(labels)
        ]
        if not fitting:
            raise DataError(
                f"labels of the shape {list(labels)} don't fit the output {self.outputs[0]!r}, {list(shape)}: "
                "cross-entropy takes the output's shape without its axis of classes (--class-axis K)"
            )
        if len(fitting) > 1:
            raise UsageError(
                f"the classes may be on axis 1 or on the last one of {list(shape)}: say --class-axis K"
            )
        return fitting[0] % rank

    def check_labels(
        self, labels: np.ndarray[Any, Any], shape: Sequence[int], name: str, numbers: np.ndarray[Any, Any]
    ) -> None:
        """Raise DataError unless the ``labels`` of all samples fit an output of ``shape`` (of some batch).

        ``numbers`` are the samples' own, for the message.
        """
        if self.kind.startswith("distill") and labels.dtype.kind not in "iub":
            raise DataError(f"{name} are {labels.dtype}: an accuracy needs integers")
        if labels.dtype.kind not in "biuf":
            raise DataError(f"{name} are {labels.dtype}: save them as numbers")
        output = [len(labels), *shape[1:]]
        if self.kind in ("bce", "mse"):
            if int(np.prod(output)) != labels.size:
                raise DataError(
                    f"{name} have the shape {list(labels.shape)}, the output {output}: they must be equal"
                )
            bad = ~np.isfinite(labels) if self.kind == "mse" else ~((labels >= 0) & (labels <= 1))
            if bad.any():
                what = "NaN or infinite" if self.kind == "mse" else "not between 0 and 1"
                raise DataError(f"{name} are {what} at sample {numbers[_first(bad)]}: repair them")
            return
        if labels.dtype.kind not in "iub":
            raise DataError(
                f"{name} are {labels.dtype}, and cross-entropy takes integers: save class numbers, or say --loss "
                "bce or --loss mse"
            )
        classes = output[self.axis(output, labels.shape)]
        bad = ((labels < 0) | (labels >= classes)) & (labels.astype(np.int64) != IGNORED)
        if bad.any():
            at = _first(bad)
            value = labels[at].ravel()[np.flatnonzero(bad[at].ravel())[0]]
            raise DataError(
                f"{name} have the value {value} at sample {numbers[at]}, and the output {self.outputs[0]!r} has "
                f"{classes} classes (0 to {classes - 1}): repair the labels, or train another model"
            )
        if (labels.astype(np.int64) == IGNORED).all():
            raise DataError(f"{name} are all {IGNORED}, which is left out: give samples with classes")

    def _scores(self, output: Tensor, made_by: str | None) -> Tensor:
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if self.kind in ("mse", "distill-mse"):
            return output
        if made_by == "Sigmoid" or (made_by == "Softmax" and self.kind == "bce"):
            return torch.logit(output, eps=1e-7)
        return output.clamp_min(_TINY).log() if made_by == "Softmax" else output

    def _distill(self, name: str, output: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
        axis = self._default_axis(output.dim())
        if self.kind == "distill-mse" or not _like_scores(output.shape, axis):
            return nn.functional.mse_loss(output.float(), teacher.float(), reduction="sum"), output.numel()
        T = self.temperature
        made = ((output, self.made_by.get(name)), (teacher, self.teacher_made_by.get(name)))
        s, t = ((self._scores(each, by) / T).log_softmax(axis) for each, by in made)
        return nn.functional.kl_div(
            s, t, reduction="sum", log_target=True
        ) * T**2, output.numel() // output.shape[axis]

    def _default_axis(self, rank: int) -> int:
        """Where a teacher's scores lie: on axis 1 of images' outputs, else on the last one."""
        if self.class_axis is not None:
            return self.class_axis
        return 1 if rank >= 4 else -1


def makers(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """The operator that makes the values of each tensor: the last one but for those of shapes and types."""
    by = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for name in names:
        node = by.get(name)
        while node is not None and is_op(node, *_SAME_VALUES):
            node = by.get(node.input[0])
        found[name] = node.op_type if node is not None and is_op(node, node.op_type) else ""
    return found


def _like_scores(shape: Sequence[int], axis: int) -> bool:
    return len(shape) >= 2 and -len(shape) <= axis < len(shape) and shape[axis] >= 2


def _without(shape: Sequence[int], axis: int) -> list[int]:
    rest = list(shape)
    del rest[axis]
    return rest


def _together(parts: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """The sum of the outputs' means, written as (sum, count) with the first one's count."""
    count = parts[0][1]
    total = parts[0][0]
    for other, terms in parts[1:]:
        total = total + other * (count / max(1, terms))
    return total, count


def _first(bad: np.ndarray[Any, Any]) -> int:
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
