"""Two models and data → a Verdict: how far the child's tensors are from the parent's, on the same samples.

Measures, for a parent tensor ``b`` and a child tensor ``a`` over all samples::

    rel_error = ‖a - b‖ / ‖b - mean(b)‖     one mean for a model's output, a mean a channel for a site's target
    max_abs   = max |a - b|
    cosine    = ⟨a, b⟩ / (‖a‖·‖b‖)
    agreement = share of equal argmax over the last axis, for floats of rank ≥ 2 with ≥ 2 classes, else None

A tensor that does not vary has rel_error 0 where the child meets it to float32 rounding, infinity where not.
Sums run in float64, batch by batch; nothing of the data's size is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from onnx_compnet.config import Normalisation, check_mappings, real, whole
from onnx_compnet.errors import InputError, VerificationError
from onnx_compnet.graph import model_io, prune
from onnx_compnet.runtime.batches import Batches
from onnx_compnet.runtime.capture import capture
from onnx_compnet.runtime.device import Device, select
from onnx_compnet.runtime.session import Session
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import everything

MAX_REL_ERROR = 0.05
MIN_AGREEMENT = 0.99
_CONSTANT = 1e-24  # a spread below this share of the sum of squares is the rounding of the mean
_ROUNDING = 1e-12  # a constant is met where the squared difference is below this share of the sum of squares


@dataclass(frozen=True)
class Comparison:
    """How far one tensor of the child is from the parent's; ``elements`` is the number of compared values."""

    max_abs: float
    rel_error: float
    cosine: float
    agreement: float | None
    elements: int
    finite: bool
    close: bool | None = None  # within rtol and atol, where these were asked for


@dataclass(frozen=True)
class Gates:
    """The bounds that a verdict is held against; None where there is none."""

    max_rel_error: float | None = None
    min_agreement: float | None = None
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_rel_error", "rtol", "atol"):
            object.__setattr__(self, name, real(name, getattr(self, name), least=0.0, optional=True))
        agreement = real("min_agreement", self.min_agreement, least=0.0, most=1.0, optional=True)
        object.__setattr__(self, "min_agreement", agreement)

    @property
    def any(self) -> bool:
        """Whether there is a bound at all."""
        return any(
            bound is not None for bound in (self.max_rel_error, self.min_agreement, self.rtol, self.atol)
        )


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; true when every gate holds and every output is finite.

    ``outputs`` maps a tensor's name in the child to its Comparison, ``targets`` a name and a channel axis;
    ``failures`` has a sentence for each gate that does not hold; ``not_compared`` names outputs that are not
    numeric tensors.
    """

    outputs: Mapping[str, Comparison]
    failures: tuple[str, ...]
    samples: int
    data: str
    random_data: bool
    device: str
    providers: tuple[str, ...]
    targets: Mapping[tuple[str, int], Comparison] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.failures


class _Difference:
    """Streaming sums behind one Comparison; ``channel_axis`` None takes one mean over everything."""

    def __init__(self, gates: Gates, channel_axis: int | None) -> None:
        self.gates, self.channel_axis = gates, channel_axis
        self.max_abs = self.squared = self.ab = self.aa = self.bb = 0.0
        self.count, self.rows = 0, 0
        self.mean: Tensor | None = None
        self.spread: Tensor | None = None
        self.equal, self.ranked = 0, 0
        self.finite, self.close = True, True

    def update(self, parent: Tensor, child: Tensor) -> None:
        if parent.shape != child.shape:
            raise VerificationError(f"shapes differ: {list(parent.shape)} became {list(child.shape)}")
        if parent.numel() == 0:
            return
        if parent.is_floating_point() and parent.dim() >= 2 and parent.shape[-1] >= 2:
            self.equal += int((parent.argmax(-1) == child.argmax(-1)).sum())
            self.ranked += parent.shape[:-1].numel()
        b, a = parent.to(torch.float64), child.to(torch.float64)
        # the same infinity in both (a mask of -inf, say) is no difference; any other one is, and so is NaN
        self.finite &= bool((torch.isfinite(a) & torch.isfinite(b) | (a == b)).all())
        a, b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
        difference = (a - b).abs()
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.squared += float(difference.square().sum())
        self.ab += float((a * b).sum())
        self.aa += float(a.square().sum())
        self.bb += float(b.square().sum())
        self.count += b.numel()
        if self.gates.rtol is not None or self.gates.atol is not None:
            bound = (self.gates.atol or 0.0) + (self.gates.rtol or 0.0) * b.abs()
            self.close &= bool((difference <= bound).all())
        self._spread(b)

    def _spread(self, b: Tensor) -> None:
        """Update the mean and the centred squares (Chan, Golub, LeVeque)."""
        axis = self.channel_axis
        columns = b.reshape(-1, 1) if axis is None else b.movedim(axis, -1).reshape(-1, b.shape[axis])
        n, mean = len(columns), columns.mean(0)
        spread = (columns - mean).square().sum(0)
        if self.mean is None or self.spread is None:
            self.rows, self.mean, self.spread = n, mean, spread
            return
        total, shift = self.rows + n, mean - self.mean
        self.spread = self.spread + spread + shift.square() * (self.rows * n / total)
        self.mean = self.mean + shift * (n / total)
        self.rows = total

    def result(self) -> Comparison:
        spread = 0.0 if self.spread is None else float(self.spread.sum())
        if spread > _CONSTANT * self.bb:
            error = math.sqrt(self.squared / spread)
        else:
            error = 0.0 if self.squared <= _ROUNDING * self.bb else math.inf
        norms = math.sqrt(self.aa * self.bb)
        asked = self.gates.rtol is not None or self.gates.atol is not None
        return Comparison(
            max_abs=self.max_abs,
            rel_error=error,
            cosine=self.ab / norms if norms > 0 else (1.0 if self.aa == self.bb else 0.0),
            agreement=self.equal / self.ranked if self.ranked else None,
            elements=self.count,
            finite=self.finite,
            close=self.close if asked else None,
        )


@dataclass(frozen=True)
class Target:
    """A pair of inner tensors to compare, channel by channel: a reader's output in the parent and in the child."""

    parent: str
    child: str
    channel_axis: int


def compare(
    parent: onnx.ModelProto,
    child: onnx.ModelProto,
    batches: Batches,
    device: Device,
    *,
    gates: Gates | None = None,
    targets: Sequence[Target] = (),
    data: str = "",
    random_data: bool = False,
    progress: str | None = None,
) -> Verdict:
    """Run both models over ``batches`` and compare their outputs and ``targets``.

    Raises
    ------
    VerificationError
        The child's inputs, outputs or shapes are not the parent's, or onnxruntime refuses the child.
    """
    gates = gates or Gates()
    _same_interface(parent, child)
    parent_session = Session(prune.with_outputs(parent, [t.parent for t in targets]), device)
    try:
        child_session = Session(prune.with_outputs(child, [t.child for t in targets]), device)
    except InputError as error:
        raise VerificationError(f"onnxruntime refuses the child: {error}") from error

    names = [output.name for output in model_io.outputs(child)]
    differences = {name: _Difference(gates, None) for name in names}
    inner = [_Difference(gates, target.channel_axis) for target in targets]
    not_compared: set[str] = set()
    samples = 0
    for batch, before in capture(parent_session, batches, progress=progress, finite=False):
        after = child_session.run(batch.feeds)
        samples += batch.size
        pairs = [(name, before[name], after[name], differences[name]) for name in names]
        pairs += [(t.child, before[t.parent], after[t.child], d) for t, d in zip(targets, inner, strict=True)]
        for name, b, a, difference in pairs:
            if not isinstance(b, Tensor) or not isinstance(a, Tensor):
                not_compared.add(name)
                continue
            try:
                difference.update(b, a)
            except VerificationError as error:
                raise VerificationError(f"{name}: {error}") from error
    outputs = {n: difference.result() for n, difference in differences.items() if n not in not_compared}
    return Verdict(
        outputs=outputs,
        failures=tuple(_failures(outputs, gates)),
        samples=samples,
        data=data,
        random_data=random_data,
        device=device.name,
        providers=child_session.providers,
        targets={(t.child, t.channel_axis): d.result() for t, d in zip(targets, inner, strict=True)},
        not_compared=tuple(sorted(not_compared)),
    )


def verify(
    parent: onnx.ModelProto | str | Path,
    child: onnx.ModelProto | str | Path,
    data: Any,
    *,
    max_rel_error: float | None = MAX_REL_ERROR,
    min_agreement: float | None = MIN_AGREEMENT,
    rtol: float | None = None,
    atol: float | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: Normalisation = None,
    mean: Normalisation = None,
    std: Normalisation = None,
    batch_axis: Mapping[str, int | None] | None = None,
    shape: Mapping[str, Sequence[int]] | None = None,
    progress: bool = False,
) -> Verdict:
    """Check on ``data`` that ``child`` computes what ``parent`` computes; ``bool(verdict)`` is the answer.

    All the samples of ``data`` are used; whether they were also fitted is the caller's to know. ``data`` and the
    keywords after ``min_agreement`` are those of :func:`onnx_compnet.grow`.

    Raises
    ------
    VerificationError
        The two can't be compared: other inputs, outputs or shapes, or a child that onnxruntime refuses.
    UsageError, ModelError, DataError, ResourceError
        As in :mod:`onnx_compnet.errors`.
    """
    gates = Gates(max_rel_error, min_agreement, rtol, atol)
    max_samples = whole("max_samples", max_samples, 1, optional=True)
    batch_size = whole("batch_size", batch_size, 1, optional=True)
    seed = whole("seed", seed, 0) or 0
    check_mappings(batch_axis, shape)
    parent_model, child_model = model_io.as_model(parent), model_io.as_model(child)
    options = DataOptions.of(
        batch_size=batch_size,
        max_samples=max_samples,
        scale=scale,
        mean=mean,
        std=std,
        batch_axis=batch_axis,
        shapes=shape,
        seed=seed,
    )
    source = open_data(data, model_io.inputs(parent_model), options)
    return compare(
        parent_model,
        child_model,
        everything(source, batch_size=batch_size, max_samples=max_samples, seed=seed),
        select(device),
        gates=gates,
        data=source.description,
        random_data=source.is_random,
        progress="verify" if progress else None,
    )


def _same_interface(parent: onnx.ModelProto, child: onnx.ModelProto) -> None:
    for kind, specs in (("input", model_io.inputs), ("output", model_io.outputs)):
        before = {spec.name: spec.dtype for spec in specs(parent)}
        after = {spec.name: spec.dtype for spec in specs(child)}
        if before != after:
            raise VerificationError(
                f"the two models have different {kind}s: {_listed(before)} in the parent, "
                f"{_listed(after)} in the child"
            )


def _listed(specs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({dtype or 'not a tensor'})" for name, dtype in specs.items()) or "none"


def _failures(outputs: Mapping[str, Comparison], gates: Gates) -> list[str]:
    failures = []
    if not outputs and gates.any:
        failures.append("nothing was compared: no output of the model is a numeric tensor")
    for name, c in outputs.items():
        if not c.finite:
            failures.append(
                f"{name}: NaN, or not finite where the parent's is (or the other way round), or another infinity"
            )
        if gates.max_rel_error is not None and not c.rel_error <= gates.max_rel_error:
            failures.append(f"{name}: relative error {c.rel_error:.3g} is above {gates.max_rel_error:g}")
        if gates.min_agreement is not None and c.agreement is not None and c.agreement < gates.min_agreement:
            failures.append(f"{name}: agreement {c.agreement:.4f} is below {gates.min_agreement:g}")
        if c.close is False:
            failures.append(
                f"{name}: values differ by more than atol + rtol·|parent| (max_abs {c.max_abs:.3g})"
            )
    return failures
