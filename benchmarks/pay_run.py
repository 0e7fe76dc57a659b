"""One run of the experiments on when growing pays: parent → child (oc.grow) → training (oc.finetune) → one JSON file.

Cost is counted in floating point operations: an image trained on costs three forward passes (one forward, two
backward), as ``onnx_compnet.cost.forward_flops`` counts one; what growing costs is taken from the child's budget.
The figure of a run is the accuracy after its last step; no epoch is chosen.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import onnx_compnet as oc
from benchmarks.datasets import Images, load
from benchmarks.networks import LeNet4, to_onnx
from benchmarks.paper_run import OtherSettingsError, digest, machine, parameters, read, write
from benchmarks.pay_plan import TEST, Experiment, Task
from onnx_compnet.baselines.scratch import scratch
from onnx_compnet.cost import forward_flops
from onnx_compnet.version import __version__, library_versions

Record = dict[str, Any]
FORMAT = 1
BATCH = 128
HELD_OUT = 10_000
"""training images that validate the search"""
TRAINING = 3
"""forward passes that an image trained on costs"""
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-cycle": {"schedule": "one-cycle", "warmup": 0.0},
    "cosine": {"schedule": "cosine", "warmup": 0.05},
    "falling": {"schedule": "cosine", "warmup": 0.0},
    "constant": {"schedule": "constant", "warmup": 0.05},
}
_GROWN_BY = {"twice": "alg3", "thrice": "alg3", "alg3-early": "alg3", "alg3-images": "alg3"}
_LAM = 0.01  # weak, so that the width that is asked for is the one that comes out
_HOLDOUT = 0.2


class NoRunError(Exception):
    """None of the runs from which the best one is to be taken came to its end."""


@dataclass(frozen=True)
class Setting:
    """What all runs share, kept in each file; a file of another setting is refused."""

    dataset: str = "fashion-mnist"
    batch_size: int = BATCH
    momentum: float = 0.9
    weight_decay: float = 5e-4
    samples: int | None = None
    """training images, all by default"""
    scale: float = 1.0
    """of both budgets"""

    def stored(self, experiment: Experiment) -> Record:
        """As JSON holds it."""
        budget = {
            key: value for key, value in vars(experiment).items() if key not in ("name", "title", "width")
        }
        return {**vars(self), "experiment": budget}


def images_within(flops: float, forward: int) -> int:
    """How many images a budget trains on a network whose forward pass costs ``forward``."""
    return max(0, math.floor(flops / (TRAINING * forward)))


def steps_within(images: int, n: int, batch: int) -> int:
    """Optimiser steps, 1 at least, that see at most ``images`` images, of n an epoch with a smaller last batch."""
    epochs, rest = divmod(images, n)
    return max(1, epochs * math.ceil(n / batch) + rest // batch)


def images_after(steps: int, n: int, batch: int) -> int:
    """Images seen after so many steps."""
    epochs, rest = divmod(steps, math.ceil(n / batch))
    return epochs * n + min(rest * batch, n)


def growth_flops(parent: int, child: int, growth: oc.Growth) -> int:
    """Floating point operations of a growth: forward passes, the candidates' layer, their Gram matrix, the check.

    ``parent`` and ``child`` are forward passes. Every sample passes the parent up to the readers (counted whole) and
    the candidates; each row of the readers' input goes into the Gram matrix, 2·columns² (and the targets, fewer).
    The linear systems, columns³ / 3 each, are counted once. Held-out samples pass both networks once more.
    """
    samples, held_out = growth.samples_fitted + growth.samples_held_out, growth.samples_held_out
    total = held_out * (parent + child)
    for grown in growth.sites:
        if grown.rows:
            wider = grown.candidates / len(grown.kept)
            columns = grown.columns * wider if grown.columns else 0.0
            rows = grown.rows * samples / growth.samples_fitted
            total += round(samples * (parent + child * wider) + 2 * rows * columns**2 + columns**3 / 3)
    return total


@dataclass(frozen=True, eq=False)
class Bench:
    """What the runs share: ``out`` holds results, ``work`` networks and checkpoints."""

    setting: Setting
    out: Path
    work: Path
    data: Path | None = None
    say: Callable[[str], None] = lambda text: print(text, flush=True)

    @cached_property
    def images(self) -> Images:
        """The data set. Raises DatasetError."""
        return load(self.setting.dataset, self.data).first(self.setting.samples, None)

    @cached_property
    def pixels(self) -> dict[str, float]:
        """How pixels become the network's input."""
        return {"scale": 1 / 255, "mean": self.images.mean, "std": self.images.std}

    def path(self, task: Task) -> Path:
        """The result file of a run."""
        return self.out / task.folder / f"{task.name}.json"

    def done(self, task: Task) -> Record | None:
        """The record of a run that was finished. Raises OtherSettingsError."""
        path = self.path(task)
        record = read(path)
        if record is not None and record["setting"] != self.setting.stored(task.experiment):
            raise OtherSettingsError(
                f"{path} was made with the setting {record['setting']}, and this is "
                f"{self.setting.stored(task.experiment)}: take the same one, or another --out"
            )
        return record

    def best(self, tasks: Sequence[Task]) -> Task:
        """The finished run with the highest accuracy at its end, by the lower loss where two are equal.

        Raises NoRunError.
        """
        found = {task: record for task in tasks if (record := self.done(task)) is not None}
        good = {task: record["final"] for task, record in found.items() if "final" in record}
        if not good:
            raise NoRunError(f"no run of {[task.name for task in tasks]} came to its end")
        return max(good, key=lambda task: (good[task]["accuracy"], -good[task]["loss"]))

    # ------------------------------------------------------------ one run

    def run(self, task: Task) -> Record:
        """The record of a run, from its file or made now, together with the parent that it needs."""
        model_path = self.work / task.folder / f"{task.name}.onnx"
        record = self.done(task)
        if record is not None and (task.method != "parent" or model_path.is_file() or "final" not in record):
            return record
        parent = self._parent(task)
        record = {
            "format": FORMAT,
            "experiment": task.experiment.name,
            "split": task.split,
            "method": task.method,
            "seed": task.seed,
            "recipe": {**vars(task.recipe), "sites": list(task.recipe.sites)},
            "parent": task.parent and task.parent.name,
            "setting": self.setting.stored(task.experiment),
            "versions": {"onnx-compnet": __version__, **library_versions()},
            "machine": machine(),
        }
        try:
            made, model = self._made(task, parent)
            record |= made
            if task.method == "parent":
                model_path.parent.mkdir(parents=True, exist_ok=True)
                aside = model_path.with_suffix(".part")
                aside.write_bytes(model.SerializeToString(deterministic=True))
                aside.replace(model_path)
        except oc.DivergedError as error:
            record |= {"diverged": str(error)}
        except oc.UnsupportedError as error:
            record |= {"refused": str(error)}
        write(self.path(task), record)
        for folder in self._checkpoints(task).parent.glob(f"{self._checkpoints(task).name}*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.say(f"{task.folder} {task.name}: {summary(record)}")
        return record

    def _parent(self, task: Task) -> onnx.ModelProto | None:
        begins = task.begins
        if begins is None:
            return None
        self.run(begins)
        return oc.load(self.work / begins.folder / f"{begins.name}.onnx")

    def _made(self, task: Task, parent: onnx.ModelProto | None) -> tuple[Record, onnx.ModelProto]:
        drawn = self._drawn(task)
        unit = TRAINING * self._forward(drawn) * self.setting.scale
        before, rest = task.experiment.parent_images * unit, task.experiment.images * unit
        if task.method == "parent":
            return self._stages(task, drawn, (), before)
        if task.method == "parent-total":
            return self._stages(task, drawn, (), before + rest)
        if task.method in ("scratch", "scratch-total"):
            shape, _ = self._grown(task, drawn, task.recipe.sites[0], "random")
            for site in task.recipe.sites[1:]:
                shape, _ = self._grown(task, shape, site, "random")
            total = rest if task.method == "scratch" else before + rest
            return self._stages(task, scratch(shape, seed=task.seed), (), total)
        assert parent is not None
        if task.method == "alg3-images":
            child, growth = self._grown(task, parent, task.recipe.sites[0], "alg3")
            forward = self._forward(child)
            rest = TRAINING * forward * task.experiment.images * self.setting.scale
            rest += growth_flops(self._forward(parent), forward, growth)
            return self._stages(task, parent, task.recipe.sites[:1], rest)
        sites = () if task.method.startswith("trained-on") else task.recipe.sites
        return self._stages(task, parent, sites, rest)

    def _stages(
        self, task: Task, model: onnx.ModelProto, sites: Sequence[str], budget: float
    ) -> tuple[Record, onnx.ModelProto]:
        """Grow in front of each site and train, each time for an equal part of the budget; or train alone."""
        curve: list[Record] = []
        growths: list[Record] = []
        spent, images, seconds = 0, 0, 0.0
        for stage, site in enumerate(sites or (None,)):
            end = budget * (stage + 1) / max(1, len(sites))
            if site is not None:
                start, before = time.perf_counter(), self._forward(model)
                model, growth = self._grown(task, model, site, _GROWN_BY.get(task.method, task.method))
                cost = growth_flops(before, self._forward(model), growth)
                growths.append(_of_growth(site, growth, cost, time.perf_counter() - start))
                spent += cost
            forward = self._forward(model)
            n, batch = len(self._split(task)[0]["y"]), self.setting.batch_size
            steps = steps_within(images_within(end - spent, forward), n, batch)
            tuned = self._trained(task, model, steps, stage)
            for epoch in tuned.history:
                seen = images_after(min(steps, epoch.number * math.ceil(n / batch)), n, batch)
                point = {"images": images + seen, "flops": spent + TRAINING * forward * seen}
                curve.append(
                    {
                        "stage": stage,
                        "epoch": epoch.number,
                        **point,
                        "accuracy": epoch.val.accuracy,
                        "loss": epoch.val.loss,
                        "train_loss": epoch.train_loss,
                    }
                )
            spent, images, model = curve[-1]["flops"], curve[-1]["images"], tuned.model
            seconds += tuned.seconds["train"]
        record = {
            "digest": digest(model),
            "parameters": parameters(model),
            "forward_flops": self._forward(model),
            "flops": {"budget": round(budget), "spent": spent, "growth": sum(g["flops"] for g in growths)},
            "growths": growths,
            "curve": curve,
            "final": {"accuracy": curve[-1]["accuracy"], "loss": curve[-1]["loss"]},
            "train_seconds": round(seconds, 1),
        }
        return record, model

    # ------------------------------------------------------------ its parts

    def _drawn(self, task: Task) -> onnx.ModelProto:
        torch.manual_seed(task.seed)
        return to_onnx(LeNet4(task.experiment.channels), (1, 28, 28))

    def _forward(self, model: onnx.ModelProto) -> int:
        return forward_flops(model, {"x": np.zeros((1, 1, 28, 28), np.float32)})

    def _split(self, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
        """The images that a run is trained on, and those on which it is measured."""
        images = self.images
        n = len(images.train_y)
        order = np.random.default_rng(0).permutation(n)
        if task.split == TEST:
            rows, held = order, {"x": images.test_x, "y": images.test_y}
        else:
            count = min(HELD_OUT, n // 6)
            chosen = np.sort(order[:count])
            rows, held = order[count:], {"x": images.train_x[chosen], "y": images.train_y[chosen]}
        if task.method == "parent":
            rows = rows[: task.experiment.parent_samples]
        rows = np.sort(rows)
        return {"x": images.train_x[rows], "y": images.train_y[rows]}, held

    def _grown(self, task: Task, model: onnx.ModelProto, site: str, method: str) -> tuple[Any, oc.Growth]:
        place = find_site(model, site)
        width = max(1, round(task.recipe.width * place.channels))
        options: dict[str, Any] = {
            "method": method,
            "seed": task.seed,
            "mode": "replace",
            "holdout": _HOLDOUT,
        }
        if method == "random":
            options |= {"candidates": width, "keep": width}
        elif method == "netmorph":
            options |= {"keep": width}
        elif method != "net2deeper":
            options |= {"candidates": 2 * width, "keep": width, "lam": _LAM}
        train, _ = self._split(task)
        spatial = place.readers[0].endswith("Conv")
        count = task.experiment.calibration if spatial else task.experiment.calibration_dense
        rows = np.random.default_rng([task.seed, 1]).permutation(len(train["y"]))[:count]
        data = {"x": train["x"][np.sort(rows)]}
        growth = oc.grow(model, place, data, device="cpu", **options, **self.pixels)
        return growth.model, growth

    def _checkpoints(self, task: Task) -> Path:
        return self.work / "checkpoints" / f"{task.folder}.{task.name}"

    def _trained(self, task: Task, model: onnx.ModelProto, steps: int, stage: int) -> oc.Tuned:
        train, held = self._split(task)
        folder = self._checkpoints(task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        s, recipe = self.setting, task.recipe
        return oc.finetune(
            model, train, held, max_steps=steps, batch_size=s.batch_size, optimizer="sgd", momentum=s.momentum,
            weight_decay=s.weight_decay, lr=recipe.lr, lr_new=recipe.lr * recipe.new, best_by="last",
            seed=task.seed, device="cpu", checkpoint=folder.with_name(f"{folder.name}.{stage}"),
            **SCHEDULES[recipe.schedule], **self.pixels,
        )  # fmt: skip


def find_site(model: onnx.ModelProto, name: str) -> oc.Site:
    """The site in front of the layer ``name``, that of fc1 in front of Flatten; ``flat`` is fc1's, behind it."""
    layer = "fc1" if name == "flat" else name
    found = [site for site in oc.find_sites(model) if any(f"/{layer}/" in reader for reader in site.readers)]
    flat = [site for site in found if "Flatten" in site.tensor]
    if name == "flat":
        return flat[-1]
    return [site for site in found if site not in flat][-1]


def _of_growth(site: str, growth: oc.Growth, flops: int, seconds: float) -> Record:
    return {
        "site": site,
        "candidates": growth.candidates,
        "kept": len(growth.kept),
        "site_error": growth.site_error if math.isfinite(growth.site_error) else None,
        "agreement": growth.verdict.outputs["logits"].agreement,
        "flops": flops,
        "seconds": round(seconds, 2),
    }


def summary(record: Record) -> str:
    """One line about a run."""
    for what in ("diverged", "refused"):
        if what in record:
            return f"{what}, {record[what]}"
    accuracies = " ".join(f"{point['accuracy']:.4f}" for point in record["curve"])
    grown = "".join(f"{each['kept']}/{each['candidates']} kept, " for each in record["growths"])
    flops = record["flops"]
    cost = f"{flops['spent'] / flops['budget']:.1%} of {flops['budget'] / 1e9:.0f} GFLOP"
    return f"{grown}{accuracies}, {cost}, {record['train_seconds']:.0f} s"
