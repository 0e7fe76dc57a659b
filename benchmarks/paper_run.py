"""One run: parent → child (oc.grow) → training (oc.finetune) → one JSON file.

A run that has its file is not repeated. The file is written whole or not at all; a run that was interrupted goes on
from finetune's checkpoint, as growing again gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import onnx_compnet as oc
from benchmarks.datasets import Images, load
from benchmarks.networks import to_onnx
from benchmarks.paper_rows import (
    CAPPED,
    ROWS,
    WIDTH_OF,
    Row,
    Settings,
    image_shape,
    network,
    settings_from,
    stored,
)
from onnx_compnet import config
from onnx_compnet.baselines.scratch import scratch
from onnx_compnet.cost import forward_flops
from onnx_compnet.report import dumps
from onnx_compnet.version import __version__, library_versions

Record = dict[str, Any]
FORMAT = 1
DRAWN = ("trained", "scratch", "scratch-long")
"""What begins with drawn weights; "trained" is a parent."""
_NETMORPH = {"netmorph-oracle": "netmorph", "netmorph-redundant": "netmorph"}


class NotAvailableError(Exception):
    """This version of onnx-compnet has no such method."""


class OtherSettingsError(Exception):
    """A result file of the same name was made with other settings."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What the runs of one set share: ``out`` holds results, ``work`` networks and checkpoints."""

    settings: Settings
    family: str
    out: Path
    work: Path
    data: Path | None = None
    device: str = "auto"
    say: Callable[[str], None] = lambda text: print(text, flush=True)

    @cached_property
    def images(self) -> Images:
        """The data set, cut and padded. Raises DatasetError."""
        s = self.settings
        size = image_shape(self.family, s)[-1]
        return load(s.dataset, self.data).first(s.samples, s.test_samples).padded(size)

    @cached_property
    def pixels(self) -> dict[str, float]:
        """How pixels become the network's input: a mean of 0 and a standard deviation of 1."""
        return {"scale": 1 / 255, "mean": self.images.mean, "std": self.images.std}

    def path(self, name: str, method: str, seed: int) -> Path:
        """The result file of one run; ``name`` is a row, or a network that is a parent."""
        return self.out / f"{name}.{self.settings.tag}" / f"{method}.seed{seed}.json"

    def model_path(self, name: str, method: str, seed: int) -> Path:
        """Where the trained network of a run is kept, where another run begins with it."""
        return self.work / f"{name}.{self.settings.tag}" / f"{method}.seed{seed}.onnx"

    # ------------------------------------------------------------ runs

    def run(self, row: Row, method: str, seed: int, *, again: bool = False) -> Record:
        """The record of one cell, from its file or made now (``again`` in any case), with what it needs first.

        Raises NotAvailableError, OtherSettingsError, DatasetError.
        """
        path = self.path(row.name, method, seed)
        found = self._done(path)
        if found is not None and not again:
            return found
        given = self._width(row, method, seed)
        parent = self.parent(row, seed)
        start = time.perf_counter()
        record, child = self._child(row, method, seed, parent, given)
        record["seconds"] = {"grow": round(time.perf_counter() - start, 3)}
        if child is None:
            return self._finish(path, record)
        record |= self._size(parent, child)
        kept = self.model_path(row.name, method, seed) if _needed_later(row, method) else None
        twin = None if kept else self._twin(record)  # whose network was not kept
        if twin is not None:
            copied = {key: twin[key] for key in _OF_TRAINING if key in twin}
            same = {"same_as": twin["method"], "same_row": twin["row"]}
            return self._finish(path, {**record, **copied, **same})
        record |= self._trained(child, path, record, kept)
        return self._finish(path, record)

    def parent(self, row: Row, seed: int) -> onnx.ModelProto:
        """The row's parent, trained now if it is not there: a network of its own, or another row's child."""
        if row.parent in ROWS:
            source, method = ROWS[row.parent], "alg3"
            kept = self.model_path(source.name, method, seed)
            self.run(source, method, seed, again=not kept.is_file())
            return oc.load(kept)
        kept, path = (
            self.model_path(row.parent, "trained", seed),
            self.path(row.parent, "trained", seed),
        )
        if self._done(path) is None or not kept.is_file():
            record = self._head(row.parent, "trained", seed)
            model = self._drawn(row.parent, seed)
            record |= self._size(model, model) | {"seconds": {}}
            record |= self._trained(model, path, record, kept)
            self._finish(path, record)
        return oc.load(kept)

    def _done(self, path: Path) -> Record | None:
        record = read(path)
        if record is None:
            return None
        ours, theirs = stored(self.settings), stored(settings_from(record["settings"]))
        other = [f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if theirs[key] != ours[key]]
        if other:
            raise OtherSettingsError(
                f"{path} was made with other settings ({', '.join(other)}): take the same ones, or another --out"
            )
        return record

    def _finish(self, path: Path, record: Record) -> Record:
        write(path, record)
        self.say(f"{path.parent.name} {path.stem}: {summary(record)}")
        return record

    def _head(self, name: str, method: str, seed: int) -> Record:
        return {
            "format": FORMAT,
            "row": name,
            "method": method,
            "seed": seed,
            "settings": stored(self.settings),
            "versions": {"onnx-compnet": __version__, **library_versions()},
            "machine": machine(),
        }

    def _width(self, row: Row, method: str, seed: int) -> int | None:
        if method in CAPPED:
            return row.cap(method, self.settings)
        source = WIDTH_OF.get(method)
        return None if source is None else int(self.run(row, source, seed)["kept"])

    # ------------------------------------------------------------ children

    def _drawn(self, kind: str, seed: int, *, activation: str = "relu", inserted: int = 0) -> onnx.ModelProto:
        module = network(kind, self.settings, activation=activation, inserted=inserted)
        return scratch(to_onnx(module, image_shape(self.family, self.settings)), seed=seed)

    def _child(
        self, row: Row, method: str, seed: int, parent: onnx.ModelProto, width: int | None
    ) -> tuple[Record, onnx.ModelProto | None]:
        record = self._head(row.name, method, seed) | {"parent_digest": digest(parent)}
        candidates = row.candidates(self.settings)
        if method == "parent":
            return record, parent
        if method in DRAWN:
            record |= {"candidates": candidates, "kept": candidates}
            return record, self._drawn(row.child, seed, activation=row.activation, inserted=candidates)
        taken = CAPPED[method][0] if method in CAPPED else _NETMORPH.get(method, method)
        if taken not in config.METHODS:
            raise NotAvailableError(f"{method}: this version of onnx-compnet has no method {taken}")
        options: dict[str, Any] = {"method": taken, "activation": row.activation, "seed": seed, **self.pixels}
        if width is not None:
            options["keep"] = width
        if method != "net2deeper" and method != "netmorph-oracle":
            options["candidates"] = candidates
        options |= {"lam": self.settings.lam, "alpha": self.settings.alpha, "device": self.device}
        try:
            growth = oc.grow(parent, row.after, {"x": self._calibration(seed)}, mode="replace", **options)
        except oc.UnsupportedError as error:
            return record | {"refused": str(error)}, None
        grown = growth.sites[-1]
        outcome = growth.verdict.outputs["logits"]
        return record | {
            "candidates": growth.candidates,
            "kept": len(growth.kept),
            "dropped_dead": grown.dropped_dead,
            "site_error": growth.site_error,
            "rel_error": outcome.rel_error,
            "agreement": outcome.agreement,
            "rows": grown.rows,
            "columns": grown.columns,
        }, growth.model

    def _calibration(self, seed: int) -> np.ndarray[Any, Any]:
        n = len(self.images.train_x)
        drawn = np.random.default_rng([seed, 1]).permutation(n)[: self.settings.calibration]
        return self.images.train_x[np.sort(drawn)]

    def _size(self, parent: onnx.ModelProto, child: onnx.ModelProto) -> Record:
        feeds = {"x": np.zeros((1, *image_shape(self.family, self.settings)), np.float32)}
        return {
            "digest": digest(child),
            "parameters": {"before": parameters(parent), "after": parameters(child)},
            "flops": {"before": forward_flops(parent, feeds), "after": forward_flops(child, feeds)},
        }

    def _twin(self, record: Record) -> Record | None:
        """A run that trained the very same network with the same seed, so that training gives the same again."""
        if record["method"] in DRAWN:
            return None
        for path in sorted(self.out.glob(f"*.{self.settings.tag}/*.seed{record['seed']}.json")):
            found = self._done(path)
            if found is None or "same_as" in found or found["method"] in DRAWN or "history" not in found:
                continue
            if found["digest"] == record["digest"]:
                return found
        return None

    # ------------------------------------------------------------ training

    def _trained(self, model: onnx.ModelProto, path: Path, record: Record, keep: Path | None) -> Record:
        """Train ``model``, write it to ``keep``, and say how it went."""
        s, method = self.settings, record["method"]
        epochs = {"trained": s.parent_epochs, "scratch-long": s.parent_epochs + s.epochs}.get(
            method, s.epochs
        )
        if method in DRAWN:
            how = {"lr": s.parent_lr, "schedule": "one-cycle", "weight_decay": s.parent_weight_decay}
        else:
            how = {"lr": s.lr, "schedule": s.schedule, "weight_decay": s.weight_decay}
        mark = f"{path.parent.name}.{path.stem}.{record['digest'][:16]}"
        checkpoint = self.work / "checkpoints" / mark
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        images = self.images
        start = time.perf_counter()
        try:
            tuned = oc.finetune(
                model,
                {"x": images.train_x, "y": images.train_y},
                {"x": images.test_x, "y": images.test_y},
                epochs=epochs, batch_size=s.batch_size, optimizer="sgd", momentum=s.momentum, warmup=0.0,
                clip_norm=s.clip_norm, augment=s.augment, crop_padding=s.crop_padding, best_by="accuracy",
                seed=record["seed"], device=self.device, checkpoint=checkpoint, **how, **self.pixels,
            )  # fmt: skip
        except oc.DivergedError as error:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return {"diverged": str(error)}
        seconds = time.perf_counter() - start
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            tuned.save(keep, force=True)
        shutil.rmtree(checkpoint, ignore_errors=True)
        return {
            "training": {**how, "epochs": epochs},
            "history": [
                {
                    "epoch": epoch.number,
                    "accuracy": epoch.val.accuracy,
                    "loss": epoch.val.loss,
                    "train_loss": epoch.train_loss,
                    "seconds": round(epoch.seconds, 3),
                }
                for epoch in tuned.history
            ],
            "best_epoch": tuned.best_epoch,
            "accuracy": tuned.accuracy,
            "train_seconds": round(seconds, 3),
            "device": tuned.device,
            "providers": list(tuned.providers),
            "images": {"train": len(images.train_x), "test": len(images.test_x)},
        }


_OF_TRAINING = (
    "training", "history", "best_epoch", "accuracy", "train_seconds", "device", "providers", "images", "diverged",
)  # fmt: skip


def _needed_later(row: Row, method: str) -> bool:
    return method == "alg3" and any(other.parent == row.name for other in ROWS.values())


def summary(record: Mapping[str, Any]) -> str:
    """One line about a run."""
    if "refused" in record:
        return f"refused, {record['refused']}"
    if "diverged" in record:
        return f"diverged, {record['diverged']}"
    kept = f"{record['kept']}/{record['candidates']} kept, " if "kept" in record else ""
    error = f"site error {record['site_error']:.3f}, " if "site_error" in record else ""
    curve = " ".join(f"{epoch['accuracy']:.4f}" for epoch in record["history"])
    same = f" (as {record['same_as']})" if "same_as" in record else f", {record['train_seconds']:.0f} s"
    return f"{kept}{error}{curve}{same}"


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in the float initialisers."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    sizes = [int(np.prod(item.dims)) for item in model.graph.initializer if item.data_type in floats]
    return sum(sizes)


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph, without what grow and finetune noted of it."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def machine() -> dict[str, Any]:
    """The processor's name, its cores, and how many threads torch takes; the GPU if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def read(path: Path) -> Record | None:
    """The record in a result file; None where there is none, or no whole one."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def write(path: Path, record: Record) -> None:
    """Put the whole file in its place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(dumps(record) + "\n", "utf-8")
    aside.replace(path)
