"""Work that grows with the model and no faster: calls are counted, so no clock is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnx_compnet as oc

BLOCKS, TIMES = 50, 4
MOST = 4.5  # 4 would be linear, 16 quadratic


class Chain:
    """A chain of equal blocks."""

    def __init__(self, kind: str, blocks: int) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        block: Callable[[str], str] = getattr(self, kind)
        tensor = "x"
        for _ in range(blocks):
            tensor = block(tensor)
        shape = ["N", 2, 4, 4]
        graph = helper.make_graph(
            self.nodes, kind, [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [None] * 4)], self.weights,
        )  # fmt: skip
        opset = [helper.make_opsetid("", 17)]
        self.model = helper.make_model(graph, opset_imports=opset, ir_version=8)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        number = len(self.nodes)
        self.nodes.append(helper.make_node(op, inputs, [f"t{number}"], f"/block{number}/{op}", **attributes))
        return f"t{number}"

    def weight(self, *shape: int) -> str:
        name = f"block{len(self.weights)}.weight"
        self.weights.append(numpy_helper.from_array(np.full(shape, 0.5, np.float32), name))
        return name

    def conv(self, t: str) -> str:
        return self.node("Relu", self.node("Conv", t, self.weight(2, 2, 1, 1)))

    def residual(self, t: str) -> str:
        return self.node("Add", self.node("Conv", self.conv(t), self.weight(2, 2, 1, 1)), t)

    def pools(self, t: str) -> str:
        rest = [self.weight(2) for _ in range(4)]
        return self.node("MaxPool", self.node("BatchNormalization", t, *rest), kernel_shape=[1, 1])

    def dense(self, t: str) -> str:
        product = self.node("MatMul", t, self.node("Identity", self.weight(4, 4)))
        return self.node("Tanh", self.node("Add", product, self.weight(4)))

    def attention(self, t: str) -> str:
        q, k, v = (self.node("MatMul", t, self.weight(4, 4)) for _ in range(3))
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 1, 3, 2]))
        return self.node("Add", t, self.node("MatMul", self.node("Softmax", scores, axis=-1), v))

    def shared(self, t: str) -> str:
        one = self.weights[0].name if self.weights else self.weight(4, 4)
        return self.node("Tanh", self.node("MatMul", t, one))

    def elementwise(self, t: str) -> str:
        return self.node("Mul", self.node("Sigmoid", t), t)


def calls(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls, those in C among them."""
    count = 0

    def seen(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def tried(kind: str, blocks: int, folder: Path) -> dict[str, int]:
    model = Chain(kind, blocks).model
    onnx.save(model, path := folder / f"{kind}_{blocks}.onnx")
    return {
        "load": calls(lambda: oc.load(path)),
        "find_sites": calls(lambda: oc.find_sites(model)),
        "refusals": calls(lambda: oc.refusals(model)),
    }


@pytest.mark.parametrize("kind", ["conv", "residual", "pools", "dense", "attention", "shared", "elementwise"])
def test_four_times_the_blocks_are_four_times_the_work(kind, tmp_path):
    oc.find_sites(Chain(kind, 2).model)  # imports what there is to import
    few, many = (tried(kind, blocks, tmp_path) for blocks in (BLOCKS, TIMES * BLOCKS))
    grown = {what: many[what] / few[what] for what in few}
    assert all(share < MOST for share in grown.values()), grown
