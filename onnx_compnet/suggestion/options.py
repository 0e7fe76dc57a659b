"""The options of a suggestion, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_compnet.config import Normalisation, check_mappings, whole
from onnx_compnet.errors import UsageError

LOSSES = ("auto", "cross-entropy", "bce", "mse")


@dataclass(frozen=True)
class SuggestOptions:
    """What ``suggest`` takes besides model and data.

    Parameters
    ----------
    labels
        The array of the labels; where None "y" if the data has it, else the places are ranked without labels.
    loss
        ``cross-entropy``, ``bce`` or ``mse``; ``auto``: cross-entropy for integer labels, else mse.
    output_name, class_axis
        As for ``finetune``.
    kernel
        Of the new layers whose cost is told; their width is grow's default.
    """

    labels: str | None = None
    loss: str = "auto"
    output_name: str | None = None
    class_axis: int | None = None
    kernel: int = 3
    max_samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    scale: Normalisation = None
    mean: Normalisation = None
    std: Normalisation = None
    batch_axis: Mapping[str, int | None] | None = None
    shape: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UsageError(f"--loss {self.loss!r} is not one of {', '.join(LOSSES)}")
        for name, least in (("kernel", 1), ("max_samples", 1), ("batch_size", 1), ("seed", 0)):
            value = whole(name, getattr(self, name), least, optional=name in ("max_samples", "batch_size"))
            object.__setattr__(self, name, value)
        check_mappings(self.batch_axis, self.shape)
