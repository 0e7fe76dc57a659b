"""The training loop: epochs of steps, validation after each, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from onnx_compnet.training import chance
from onnx_compnet.training.augment import Augmentation
from onnx_compnet.training.checkpoints import Checkpoints
from onnx_compnet.training.evaluate import Model, Score, evaluate
from onnx_compnet.training.losses import Objective, Outputs
from onnx_compnet.training.options import FinetuneOptions
from onnx_compnet.training.parallel import Group
from onnx_compnet.training.parameters import Trained, optimiser, set_rate
from onnx_compnet.training.samples import Rows, Samples
from onnx_compnet.training.schedule import Schedule


@dataclass(frozen=True)
class Epoch:
    """One pass over the data, or what max_steps leaves of it.

    Number 0 is the child before training: it has no ``train_loss`` and no ``lr``.
    """

    number: int
    train_loss: float | None
    val: Score
    lr: float | None
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """``best`` is the number of the epoch whose weights the module has; ``diverged`` says why it was cut short."""

    history: tuple[Epoch, ...]
    best: int
    diverged: str | None


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run needs besides the module: data, what is minimised, and how."""

    train: Samples
    val: Samples
    batch_size: int
    objective: Objective
    teacher: Model | None
    inputs: Sequence[str]
    outputs: Sequence[str]
    trained: Trained
    options: FinetuneOptions
    augmentation: Augmentation | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch; a batch size that the model fixes leaves the rest of the samples out."""
        whole = self.train.n // self.batch_size
        return whole if self.train.fixed_batch is not None else math.ceil(self.train.n / self.batch_size)


class Trainer:
    """One run of ``job`` on ``module``, which lies on the group's device."""

    def __init__(self, module: nn.Module, job: Job, group: Group, checkpoints: Checkpoints | None) -> None:
        self.module, self.job, self.group, self.checkpoints = module, job, group, checkpoints
        options = job.options
        self.optimizer = optimiser(module, job.trained, options)
        self.learning = [p for part in self.optimizer.param_groups for p in part["params"]]
        self.schedule = Schedule(
            str(options.schedule), options.epochs, job.steps, options.warmup or 0.0, options.step_epochs,
            options.gamma, options.max_steps,
        )  # fmt: skip
        self.history: list[Epoch] = []
        self.best: dict[str, Any] = {}
        self.best_epoch = 0

    def run(self) -> Outcome:
        """Train; the module ends with the best epoch's weights, in eval mode."""
        with torch.random.fork_rng(devices=[] if self.group.device.type == "cpu" else [self.group.device]):
            diverged = self._epochs()
        self.module.load_state_dict(self.best)
        self.module.eval()
        return Outcome(tuple(self.history), self.best_epoch, diverged)

    def _epochs(self) -> str | None:
        state = self.checkpoints.load() if self.checkpoints else None
        epoch, step, sums = 1, 0, (0.0, 0.0)
        if state is None:
            self._note(0, None, None, 0.0)
        else:
            epoch, step, sums = self._restore(state)
        while epoch <= self.schedule.passes and not self._patience_over():
            start = time.perf_counter()
            loss = self._epoch(epoch, step, sums)
            if isinstance(loss, str):
                return loss
            self.group.spread(list(self.module.buffers()))
            lr = max(part["lr"] for part in self.optimizer.param_groups)
            if not self._note(epoch, loss, lr, time.perf_counter() - start):
                return f"the validation loss of epoch {epoch} is not finite"
            epoch, step, sums = epoch + 1, 0, (0.0, 0.0)
            self._save(epoch, step, sums)
        return None

    # ------------------------------------------------------------ one epoch

    def _epoch(self, epoch: int, first: int, sums: tuple[float, float]) -> float | str:
        """Mean loss of the epoch's steps from ``first`` on (``sums`` are those before), or why it had to stop."""
        job, options = self.job, self.job.options
        order = chance.order(options.seed, epoch, job.train.n)
        self.module.train()
        last = self.schedule.steps_of(epoch)
        steps = range(first, last)
        hidden = not options.progress or self.group.rank > 0
        for step in tqdm(
            steps, f"epoch {epoch}/{self.schedule.passes}", disable=hidden, leave=False, unit="step"
        ):
            rows = order[step * job.batch_size : (step + 1) * job.batch_size]
            set_rate(self.optimizer, self.schedule.factor((epoch - 1) * job.steps + step))
            total, terms = self._step(rows, epoch, step)
            if not math.isfinite(total):
                return f"the loss is not finite at step {step + 1} of epoch {epoch}"
            sums = (sums[0] + total, sums[1] + terms)
            every = options.checkpoint_every
            if every and (step + 1) % every == 0 and step + 1 < last:
                self._save(epoch, step + 1, sums)
        return sums[0] / max(1.0, sums[1])

    def _step(self, rows: Rows, epoch: int, step: int) -> tuple[float, float]:
        """One optimiser step; the loss's sum over the whole batch and its terms. A loss of NaN changes nothing."""
        options = self.job.options
        part = self.group.share(len(rows))
        chance.seed_torch(options.seed, epoch, step, self.group.rank)
        self.optimizer.zero_grad(set_to_none=True)
        total, terms = 0.0, 0
        if len(rows[part]):
            loss, terms = self._loss(rows, part, epoch, step)
            total = float(loss.detach())
            (loss / max(1, terms)).backward()  # type: ignore[no-untyped-call]
        all_total, all_terms = self.group.total([total, terms])
        if not math.isfinite(all_total):
            return all_total, all_terms
        self.group.average(self.learning, terms / max(1.0, all_terms))
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.learning, options.clip_norm)
        self.optimizer.step()
        return all_total, all_terms

    def _loss(self, rows: Rows, part: slice, epoch: int, step: int) -> tuple[torch.Tensor, int]:
        job, device = self.job, self.group.device
        drawn = None
        if job.augmentation is not None:
            rng = chance.augmentation(job.options.seed, epoch, step)
            drawn = job.augmentation.draw(rng, len(rows))[part]
        feeds, stored = job.train.batch(rows[part], job.augmentation, drawn)
        labels = None if stored is None else torch.from_numpy(np.array(stored)).to(device)
        goal = None if job.teacher is None else job.teacher(feeds)
        with torch.autocast("cuda", torch.bfloat16) if job.options.amp else nullcontext():
            outputs = self.outputs(feeds)
        return job.objective(outputs, labels, goal)

    def outputs(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Outputs:
        """What the module makes of feeds, by output name."""
        tensors = [torch.from_numpy(np.array(feeds[name])).to(self.group.device) for name in self.job.inputs]
        result = self.module(*tensors)
        values = result if isinstance(result, tuple | list) else (result,)
        return dict(zip(self.job.outputs, values, strict=True))

    # ------------------------------------------------------------ between epochs

    def _note(self, number: int, loss: float | None, lr: float | None, seconds: float) -> bool:
        """Validate, remember, keep the weights if they are the best; False where the loss is no number."""
        job = self.job
        self.module.eval()
        score = evaluate(self.outputs, job.val, job.batch_size, job.objective, job.teacher, self.group)
        self.history.append(Epoch(number, loss, score, lr, seconds))
        if not score.finite and number:
            return False
        if number == 0 or self._key(number, score) > self._key(
            self.best_epoch, self.history[self.best_epoch].val
        ):
            self.best_epoch = number
            self.best = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}
        return True

    def _key(self, number: int, score: Score) -> tuple[float, float]:
        if self.job.options.best_by == "last":
            return float(number), 0.0
        by_accuracy = self.job.options.best_by != "loss" and score.accuracy is not None
        return (score.accuracy or 0.0) if by_accuracy else 0.0, -score.loss

    def _patience_over(self) -> bool:
        patience = self.job.options.patience
        return patience is not None and self.history[-1].number - self.best_epoch >= patience

    def _save(self, epoch: int, step: int, sums: tuple[float, float]) -> None:
        if self.checkpoints is None or self.group.rank > 0:
            return
        self.checkpoints.save(
            {
                "epoch": epoch,
                "step": step,
                "sums": list(sums),
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_epoch": self.best_epoch,
                "history": [asdict(each) for each in self.history],
            }
        )

    def _restore(self, state: dict[str, Any]) -> tuple[int, int, tuple[float, float]]:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.history = [Epoch(**{**each, "val": Score(**each["val"])}) for each in state["history"]]
        return state["epoch"], state["step"], (state["sums"][0], state["sums"][1])
