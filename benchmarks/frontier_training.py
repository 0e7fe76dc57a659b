"""A small check by training: children of equal width from differently chosen candidates, and the parent itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

import onnx_compnet as oc
from benchmarks.datasets import load
from benchmarks.frontier_sites import MODELS, PIXELS
from benchmarks.paper_run import OtherSettingsError, Record, machine, read, write
from onnx_compnet.version import __version__, library_versions

Array = npt.NDArray[Any]
WIDTH, CANDIDATES, CALIBRATION = 20, 40, 600
HOW: dict[str, Any] = {
    "epochs": 2, "batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup": 0.05,
    "weight_decay": 5e-4,
}  # fmt: skip
IMAGES = {"train": 10_000, "test": 5_000}
RATES = (5e-3, 2e-2)
CHILDREN: dict[str, dict[str, str] | None] = {
    "parent": None,
    "obs-auto": {"method": "obs", "init": "auto"},
    "obs-principal": {"method": "obs", "init": "principal"},
    "scaled-principal": {"method": "obs", "init": "principal"},
    "half-principal": {"method": "random", "init": "principal"},
    "alg3-auto": {"method": "alg3", "init": "auto"},
}
"""``scaled``: the same child with its new neurons rescaled. ``half``: of 20 principal and 20 random candidates."""


@dataclass(frozen=True)
class Run:
    """One network trained: a child of CHILDREN, at a rate, with a seed (candidates, split and order of images)."""

    child: str
    rate: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.child}.lr{self.rate:g}.seed{self.seed}.json"


def runs(seeds: int) -> list[Run]:
    """Seed by seed."""
    return [Run(child, rate, seed) for seed in range(seeds) for child in CHILDREN for rate in RATES]


def settings() -> dict[str, Any]:
    """What must be the same for results to be comparable."""
    return {"width": WIDTH, "candidates": CANDIDATES, "calibration": CALIBRATION, **IMAGES, **HOW}


def run(asked: Run, out: Path, _work: Path, say: Callable[[str], None] = print) -> Record:
    """The record of one run, from its file or made now. Raises OtherSettingsError, DatasetError."""
    path = out / asked.file
    found = read(path)
    if found is not None:
        if found["settings"] != settings():
            raise OtherSettingsError(f"{path} was made with other settings: take another --out")
        return found
    start = time.process_time()
    images = load("fashion-mnist").first(IMAGES["train"], IMAGES["test"])
    model, record = child(asked, images.train_x[:CALIBRATION])
    parts = [(images.train_x, images.train_y), (images.test_x, images.test_y)]
    try:
        tuned = oc.finetune(
            model, *({"x": x, "y": y} for x, y in parts), lr=asked.rate, seed=asked.seed, **HOW, **PIXELS
        )
        record |= {"accuracies": [epoch.val.accuracy for epoch in tuned.history]}
    except oc.DivergedError as error:
        record |= {"accuracies": [], "diverged": str(error)}
    record |= {"seconds": round(time.process_time() - start, 1), "machine": machine()}
    write(path, record)
    say(f"{asked.file}: {record['accuracies']} {record['seconds']} s")
    return record


def child(asked: Run, calibration: npt.NDArray[np.uint8]) -> tuple[onnx.ModelProto, Record]:
    """The network to train, and what is known of it before."""
    record: Record = {
        "format": 1, "child": asked.child, "rate": asked.rate, "seed": asked.seed, "settings": settings(),
        "versions": {"onnx-compnet": __version__, **library_versions()},
    }  # fmt: skip
    parent, how = oc.load(MODELS / "lenet4.onnx"), CHILDREN[asked.child]
    if how is None:
        return parent, record
    growth = oc.grow(
        parent,
        "conv1",
        {"x": calibration},
        keep=WIDTH,
        candidates=CANDIDATES,
        seed=asked.seed,
        **how,
        **PIXELS,
    )
    principal = (
        sum(place < growth.site.channels for place in growth.kept) if how["init"] == "principal" else 0
    )
    model = rescaled(growth, calibration) if asked.child.startswith("scaled") else growth.model
    known = {
        "width": len(growth.kept),
        "principal": principal,
        "site_error": growth.site_error,
        "activation": rms(activations(model, growth, calibration)[1]),
    }
    return model, record | known


def activations(
    model: onnx.ModelProto, growth: oc.Growth, images: npt.NDArray[np.uint8]
) -> tuple[Array, Array]:
    """What the new layer reads and what it puts out, on the images it was grown with."""
    first, reader = new_layer(model, growth)
    names = [first.input[0], reader.input[0]]
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(wider.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: images.astype(np.float32) * np.float32(PIXELS["scale"])}
    t, u = session.run(names, feeds)
    return t, u


def new_layer(model: onnx.ModelProto, growth: oc.Growth) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The new Conv, whose ReLU the reader reads, and the reader."""
    produced = {name: node for node in model.graph.node for name in node.output}
    reader = produced[growth.targets[0][1]]
    return produced[produced[reader.input[0]].input[0]], reader


def rescaled(growth: oc.Growth, images: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    """The same function with each new ReLU neuron as large as the tensor it reads; the reader undoes it."""
    model = onnx.ModelProto()
    model.CopyFrom(growth.model)
    t, u = activations(model, growth, images)
    factors = rms(t) / np.maximum(np.sqrt(np.mean(np.square(u, dtype=np.float64), axis=(0, 2, 3))), 1e-12)
    first, reader = new_layer(model, growth)
    by = {
        first.input[1]: factors[:, None, None, None],
        first.input[2]: factors,
        reader.input[1]: 1 / factors[:, None, None],
    }
    for tensor in model.graph.initializer:
        if tensor.name in by:
            values = numpy_helper.to_array(tensor) * by[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def rms(values: Array) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
