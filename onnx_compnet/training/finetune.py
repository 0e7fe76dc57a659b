"""finetune(): the order of the steps.

load → samples → score the child → torch module → Trainer → write back → check → score → Tuned
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from onnx_compnet.bridge.module import OnnxModule, to_torch
from onnx_compnet.bridge.write_back import write_back
from onnx_compnet.errors import (
    DataError,
    DivergedError,
    ModelError,
    ResourceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from onnx_compnet.graph import model_io, provenance
from onnx_compnet.runtime.batches import BATCH_SIZE
from onnx_compnet.runtime.device import Device, select
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.session import Session
from onnx_compnet.training import chance, parallel
from onnx_compnet.training.augment import Augmentation
from onnx_compnet.training.checkpoints import Checkpoints
from onnx_compnet.training.evaluate import Model, Score, evaluate
from onnx_compnet.training.loop import Job, Outcome, Trainer
from onnx_compnet.training.losses import Objective, makers
from onnx_compnet.training.options import FinetuneOptions
from onnx_compnet.training.parallel import Group
from onnx_compnet.training.parameters import Trained, choose, new_names
from onnx_compnet.training.result import Tuned
from onnx_compnet.training.result import provenance as provenance_of
from onnx_compnet.training.samples import Samples, read_samples

log = logging.getLogger(__name__)

_SAME_RUN = tuple(  # what may differ between a run and the one that goes on from its checkpoint
    field.name
    for field in fields(FinetuneOptions)
    if field.name not in ("checkpoint", "checkpoint_every", "progress", "device", "parent", "teacher")
)
_CLOSE = 1e-2  # how far the losses of the written model and of the module may be apart without a warning


def finetune(
    model: onnx.ModelProto | str | Path,
    data: Any,
    val: Any = None,
    *,
    options: FinetuneOptions | None = None,
    **changes: Any,
) -> Tuned:
    """Train ``model`` and write the best weights back into the same graph.

    Parameters
    ----------
    model
        The model, or its path; it is never changed.
    data, val
        Samples with labels (array ``y``), in whatever form ``grow`` takes them; of a torch DataLoader or a function
        the tuples (inputs, labels). They are held in memory as they are stored. Where ``val`` is None the share
        ``holdout`` of the data validates.
    options, **changes
        :class:`onnx_compnet.training.options.FinetuneOptions`, whole or by keyword.

    Raises
    ------
    DivergedError
        The loss is no number any more; ``.tuned`` has the last good weights.
    VerificationError
        The checker or onnxruntime refuse the tuned model.
    UsageError, UnsupportedError, ModelError, DataError, ResourceError
        As in :mod:`onnx_compnet.errors`.
    """
    options = (options or FinetuneOptions()).changed(changes).resolved()
    device = select(parallel.local_device(options.device))
    if options.amp and device.kind != "cuda":
        raise UsageError(f"--amp is for CUDA, and this runs on {device.name}: leave it out")
    if options.amp and not torch.cuda.is_bf16_supported():
        raise ResourceError("--amp trains in bfloat16, which this GPU has not: leave it out")
    with _out_of_memory_said(), parallel.group(device.torch_device) as group:
        return _Run(model, data, val, options, device, group).tuned()


class _Run:
    """One fine-tuning in one process."""

    def __init__(
        self, model: Any, data: Any, val: Any, options: FinetuneOptions, device: Device, group: Group
    ) -> None:
        self.options, self.device, self.group = options, device, group
        self.seconds: dict[str, float] = {}
        with self._timed("load"):
            self.child = model_io.as_model(model)
            self.inputs = model_io.inputs(self.child)
            self.outputs = [spec.name for spec in model_io.outputs(self.child)]
            self.child_sha256 = model_io.sha256(self.child)
            self.train, self.val = self._samples(data, val)
            self.batch_size = self._batch_size()
            self.objective = self._objective()
            teacher = None if options.teacher is None else self._model(options.teacher, "teacher")
            self.teacher_sha256 = None if teacher is None else model_io.sha256(teacher)
            self.teacher = None if teacher is None else Session(teacher, device).run
            if teacher is not None:
                theirs = makers(teacher, self.objective.outputs)
                self.objective = replace(self.objective, teacher_made_by=theirs)
            parent = None if options.parent is None else self._model(options.parent, "parent")
        with self._timed("measure"):
            session = Session(self.child, device)
            self.providers = session.providers
            known = None if parent is None else Session(parent, device)
            self._check_shapes(
                session, {"teacher": self.teacher, "parent": None if known is None else known.run}
            )
            self.scores = {} if known is None else {"parent": self._score(known)}
            self.scores["child"] = self._score(session)
            if not self.scores["child"].finite:
                raise ModelError(
                    "the model's own loss on the validation data is not finite: it can't be trained"
                )

    def tuned(self) -> Tuned:
        """Train, write back, check, measure."""
        module = to_torch(self.child)
        names = [name for name, _ in module.named_parameters()]
        trained = choose(names, new_names(self.child, names), self.options.freeze)
        _require_precision(module, trained)
        job = Job(
            train=self.train,
            val=self.val,
            batch_size=self.batch_size,
            objective=self.objective,
            teacher=self.teacher,
            inputs=module.input_names,
            outputs=module.output_names,
            trained=trained,
            options=self.options,
            augmentation=self._augmentation(),
        )
        checkpoints = (
            Checkpoints(self.options.checkpoint, self._identity()) if self.options.checkpoint else None
        )
        with self._timed("train"):
            outcome = Trainer(module.to(self.device.torch_device), job, self.group, checkpoints).run()
        with self._timed("verify"):
            model = self._written(module)
            self.scores["tuned"] = self._score(Session(model, self.device))
        tuned = Tuned(
            model=model,
            scores=self.scores,
            history=outcome.history,
            best_epoch=outcome.best,
            options=self.options,
            loss=self.objective.kind,
            batch_size=self.batch_size,
            trained=trained,
            samples=self.train.n,
            data=self.train.source.description,
            val=self.val.source.description if self.val.source is not self.train.source else "the same data",
            random_data=self.train.source.is_random,
            device=self.device.name,
            providers=self.providers,
            processes=self.group.world,
            child_sha256=self.child_sha256,
            seconds=dict(self.seconds),
            warnings=self._warnings(outcome),
        )
        provenance.write_finetune(model, provenance_of(tuned))
        for warning in tuned.warnings if self.group.rank == 0 else ():
            log.warning(warning)
        if not self.scores["tuned"].finite:
            raise VerificationError("the tuned model's loss in onnxruntime is not finite", tuned)
        if outcome.diverged:
            raise DivergedError(
                f"{outcome.diverged}: try a lower --lr, or --clip-norm 1; the weights of epoch {outcome.best} "
                "are the last good ones",
                tuned,
            )
        return tuned

    # ------------------------------------------------------------ data

    def _samples(self, data: Any, val: Any) -> tuple[Samples, Samples]:
        options = self.options
        labels = options.labels or (None if options.distils else "y")
        read = DataOptions.of(
            scale=options.scale, mean=options.mean, std=options.std, batch_axis=options.batch_axis,
            shapes=options.shape, seed=options.seed,
        )  # fmt: skip
        train = read_samples(data, self.inputs, read, labels)
        if val is not None:
            held = read_samples(val, self.inputs, read, labels, option="--val")
            held.require_like(train)
            parts = train.part(chance.subset(options.seed, train.n, options.max_samples)), held
        else:
            rows = chance.held_out(options.seed, train.n)[: options.max_samples]
            count = max(round(options.holdout * len(rows)), train.fixed_batch or 1)
            parts = train.part(np.sort(rows[count:])), train.part(np.sort(rows[:count]))
        for samples, least in zip(parts, (train.fixed_batch or 1,) * 2, strict=True):
            if samples.n < least:
                raise DataError(
                    f"{samples.name} leaves {samples.n} samples for training or validation, at least {least} are "
                    "needed in each: give more, or --val"
                )
        return parts

    def _batch_size(self) -> int:
        fixed, asked = self.train.fixed_batch, self.options.batch_size
        if fixed is None:
            return asked or BATCH_SIZE
        if asked not in (None, fixed):
            raise UsageError(
                f"--batch-size {asked}: the model fixes a batch size of {fixed}; leave the option out"
            )
        if self.group.world > 1:
            raise UnsupportedError(
                f"the model fixes a batch size of {fixed}, so a batch can't be shared among {self.group.world} "
                "processes: export it with a free batch axis, or use one process"
            )
        return fixed

    def _objective(self) -> Objective:
        options, outputs = self.options, model_io.outputs(self.child)
        floats = [spec.name for spec in outputs if spec.dtype.startswith(("float", "bfloat"))]
        if not floats:
            raise UnsupportedError(
                "no output of the model holds floats: there is nothing to compare with a target"
            )
        if options.output_name is not None and options.output_name not in floats:
            raise UsageError(f"--output-name {options.output_name!r} is none of the float outputs: {floats}")
        if options.output_name is not None:
            floats = [options.output_name]
        if len(floats) > 1 and not options.distils:
            raise UsageError(
                f"the model has several outputs, {floats}: say which is trained, --output-name NAME"
            )
        kind = options.loss
        if kind == "auto":
            kind = "distill" if options.distils else "cross-entropy"
        if options.best_by == "accuracy" and (kind == "mse" or self.train.labels is None):
            raise UsageError("--best-by accuracy needs class labels: say --best-by loss")
        made_by = makers(self.child, floats)
        return Objective(kind, tuple(floats), made_by, options.class_axis, options.temperature)

    def _model(self, model: Any, role: str) -> onnx.ModelProto:
        """The teacher or the parent: it takes the same inputs and has the outputs that are compared."""
        other = model_io.as_model(model)
        extra = [
            spec.name for spec in model_io.inputs(other) if spec.name not in {s.name for s in self.inputs}
        ]
        lacks = [
            n for n in self.objective.outputs if n not in {spec.name for spec in model_io.outputs(other)}
        ]
        if extra or lacks:
            what = f"takes the input {extra[0]!r}" if extra else f"has no output {lacks[0]!r}"
            raise ModelError(
                f"the {role} {what}, unlike the model that is trained: it must have the same interface"
            )
        return other

    def _check_shapes(self, session: Session, others: Mapping[str, Model | None]) -> None:
        """Run one batch, and hold all labels and the other models' outputs against the shapes that come out."""
        size = min(self.batch_size, self.train.n)
        feeds, name = self.train.batch(np.arange(size))[0], self.objective.outputs[0]
        shapes = self._shapes(session.run, feeds)
        for role, run in others.items():
            try:
                theirs = shapes if run is None else self._shapes(run, feeds)
            except DataError as error:
                raise ModelError(f"the {role} can't take the samples: {error}") from error
            for each, shape in theirs.items():
                if shape != shapes[each]:
                    raise ModelError(
                        f"the output {each!r} of the {role} has the shape {shape}, and that of the model that is "
                        f"trained {shapes[each]}: it must have the same interface"
                    )
        shape, axis = shapes[name], self.options.class_axis
        if axis is not None and not -len(shape) <= axis < len(shape):
            raise UsageError(
                f"--class-axis {axis}: the output {name!r} has the shape {shape} and no such axis"
            )
        if self.train.labels is not None and (not shape or shape[0] != size):
            raise UnsupportedError(
                f"the output {name!r} has the shape {shape} for {size} samples, and labels are compared "
                "sample by sample: its first axis must be the samples"
            )
        for samples in (self.train, self.val):
            if samples.labels is not None:
                called = f"the labels {samples.labels!r} of {samples.name}"
                self.objective.check_labels(samples.all_labels(), shape, called, samples.numbers)

    def _shapes(self, run: Model, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, list[int]]:
        found = run(feeds)
        return {name: list(found[name].shape) for name in self.objective.outputs}

    def _augmentation(self) -> Augmentation | None:
        options = self.options
        if not options.augment:
            return None
        images = self.train.images()
        if not images:
            raise UsageError(
                "--augment is for images, float inputs of four axes (N, C, H, W), and there are none"
            )
        if self.train.labels is not None and self.train.all_labels().ndim > 2:
            raise UsageError(
                "--augment moves images and not their labels, which lie by position here: leave it out"
            )
        return Augmentation(options.augment, options.crop_padding, images)

    # ------------------------------------------------------------ figures

    def _score(self, session: Session) -> Score:
        return evaluate(session.run, self.val, self.batch_size, self.objective, self.teacher, self.group)

    def _written(self, module: OnnxModule) -> onnx.ModelProto:
        model = write_back(module.cpu(), self.child)
        model_io.check(model, self.child)
        return model

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run."""
        same = {name: repr(getattr(self.options, name)) for name in _SAME_RUN}
        digests = {
            "model": self.child_sha256,
            "teacher": str(self.teacher_sha256),
            "data": f"{self.train.checksum():08x}",
            "validation data": f"{self.val.checksum():08x}",
            "processes": str(self.group.world),
        }
        return {**same, **digests, "batch_size": str(self.batch_size)}

    def _warnings(self, outcome: Outcome) -> tuple[str, ...]:
        found = []
        if outcome.best == 0 and not outcome.diverged:
            found.append("no epoch was better than the child on the validation data: its weights were kept")
        torch_loss, onnx_loss = outcome.history[outcome.best].val.loss, self.scores["tuned"].loss
        if not math.isclose(torch_loss, onnx_loss, rel_tol=_CLOSE, abs_tol=1e-6):
            found.append(
                f"the written model's loss is {onnx_loss:.4g} in onnxruntime, and {torch_loss:.4g} in torch"
            )
        if self.train.source.is_random:
            found.append(
                "trained and measured on random data: no figure here says anything about real inputs"
            )
        return tuple(found)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _require_precision(module: OnnxModule, trained: Trained) -> None:
    parameters = dict(module.named_parameters())
    for name in (*trained.old, *trained.new):
        dtype = parameters[name].dtype
        if dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(
                f"the weight {name!r} is {str(dtype).removeprefix('torch.')}, too coarse for an optimiser's steps: "
                "convert the model to float32, train that, and convert the result (or --freeze the weight)"
            )


@contextmanager
def _out_of_memory_said() -> Iterator[None]:
    """torch says it by bare RuntimeErrors."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise ResourceError("out of memory: lower --batch-size, or train on fewer samples") from error
