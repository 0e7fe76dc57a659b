"""A model of more than 2 GiB, which no single protobuf file can hold: loaded, grown, saved and run."""

from __future__ import annotations

import hashlib
import math
import os
import resource
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_compnet as oc

WIDE, DEEP = 18_400, 14_800  # two matrices of 1.09 GB
SMALL = 12
COPIES = 6  # of the weights: parent, child, both in onnxruntime, which packs them again

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "ONNX_COMPNET_LARGE" not in os.environ,
        reason="writes 5 GB and takes some minutes; ONNX_COMPNET_LARGE=1 runs it",
    ),
]


def write_model(folder: Path) -> Path:
    """A small MLP, and beside it two large layers, whose weights are written without being held."""
    shapes = {"wide": (SMALL, WIDE), "big1": (WIDE, DEEP), "big2": (DEEP, WIDE), "w1": (SMALL, 16), "w2": (16, 12),
              "w3": (12, 4)}  # fmt: skip
    tensors, offset = [], 0
    random = np.random.default_rng(0)
    with (folder / "parent.bin").open("wb") as stream:
        for name, (rows, columns) in shapes.items():
            stream.seek(offset)
            row = (random.standard_normal(columns) / np.sqrt(rows)).astype(np.float32)
            for number in range(rows):
                stream.write(np.roll(row, 7 * number).tobytes())
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(rows, columns))
            tensor.data_location = TensorProto.EXTERNAL
            length = 4 * rows * columns
            for key, value in (("location", "parent.bin"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += -(-length // 4096) * 4096
    layers = [("MatMul", "x", "wide", "a"), ("MatMul", "a", "big1", "b"), ("MatMul", "b", "big2", "c")]
    nodes = [helper.make_node(op, [t, weight], [y], f"node_{y}") for op, t, weight, y in layers]
    nodes.append(helper.make_node("ReduceMax", ["c"], ["top"], keepdims=1, axes=[1]))
    for number, (t, y) in enumerate((("x", "h"), ("r", "i"), ("s", "mlp")), 1):
        nodes.append(helper.make_node("MatMul", [t, f"w{number}"], [y], f"layer{number}"))
        if y != "mlp":
            nodes.append(helper.make_node("Relu", [y], [{"h": "r", "i": "s"}[y]]))
    nodes.append(helper.make_node("Add", ["mlp", "top"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SMALL])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "parent.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_model_above_2_gib_is_grown(tmp_path):
    path = write_model(tmp_path)
    before = {file.name: digest(file) for file in tmp_path.iterdir()}
    model = oc.load(path)
    assert sum(4 * math.prod(tensor.dims) for tensor in model.graph.initializer) > 2**31
    (site,) = (site for site in oc.find_sites(model) if site.tensor == "r")
    x = np.random.default_rng(1).standard_normal((80, SMALL)).astype(np.float32)
    growth = oc.grow(model, site.name, {"x": x}, candidates=8, batch_size=40)
    assert growth.site_error < 1
    child = tmp_path / "child.onnx"
    growth.save(child)
    shown, error = growth.model, growth.verdict.outputs["y"].max_abs
    names = [item.name for item in shown.graph.initializer]
    del model, growth, shown
    onnx.checker.check_model(child, full_check=True)
    assert {file.name: digest(file) for file in tmp_path.iterdir() if file.name in before} == before
    again: ModelProto = oc.load(child)
    assert [item.name for item in again.graph.initializer] == names
    del again
    new, old = run(child, x), run(path, x)
    assert np.isfinite(new).all()
    assert np.abs(new - old).max() < 10 * error + 1
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 2**30:.1f} GiB")
    assert peak < COPIES * 8 * WIDE * DEEP
