"""New layers as onnx-graphsurgeon nodes, named by the edit they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_compnet.graph.edits import Edits
from onnx_compnet.graph.emission import RESULT, SOURCE, emit
from onnx_compnet.graph.structures import Site
from onnx_compnet.layers import Array, BatchNorm, CandidateLayer


class LayerWriter:
    """Writes nodes in order; ``nodes`` are those written so far."""

    def __init__(self, edits: Edits, opset: int, site: Site) -> None:
        self._edits, self._opset, self._site = edits, opset, site
        self.nodes: list[gs.Node] = []

    def layer(self, source: gs.Variable, layer: CandidateLayer) -> gs.Variable:
        """A layer and its activation on ``source``."""
        x = self._candidate(source, layer)
        return self._activation(self._normalised(x, layer.norm) if layer.norm else x, layer)

    def constant(self, name: str, values: NDArray[Any]) -> gs.Constant:
        """A constant under a fresh name."""
        return gs.Constant(self._edits.fresh(name), np.ascontiguousarray(values))

    def conv(
        self,
        source: gs.Variable,
        weight: Array,
        bias: Array,
        result: str = "",
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
    ) -> gs.Variable:
        """A Conv with one group and stride 1, by default with same padding; weight (out, in, *kernel)."""
        kernel = weight.shape[2:]
        begin = [(size - 1) // 2 for size in kernel]
        same = begin + [size - 1 - first for size, first in zip(kernel, begin, strict=True)]
        ones = [1] * len(kernel)
        attributes = {
            "kernel_shape": list(kernel),
            "strides": ones,
            "dilations": list(dilations or ones),
            "pads": same if pads is None else list(pads),
            "group": 1,
        }
        inputs = [source, self.constant("Conv.weight", weight), self.constant("Conv.bias", bias)]
        return self._node("Conv", inputs, attributes, result)

    def gemm(self, source: gs.Variable, weight: Array, bias: Array, result: str = "") -> gs.Variable:
        """A Gemm; weight (out, in)."""
        inputs = [source, self.constant("Gemm.weight", weight), self.constant("Gemm.bias", bias)]
        return self._node("Gemm", inputs, {"transB": 1}, result)

    def matmul(self, source: gs.Variable, weight: Array, bias: Array, result: str = "") -> gs.Variable:
        """A MatMul and an Add; weight (out, in)."""
        product = self._node("MatMul", [source, self.constant("MatMul.weight", weight.T)], {})
        return self._node("Add", [product, self.constant("MatMul.bias", bias)], {}, result)

    def _candidate(self, source: gs.Variable, layer: CandidateLayer) -> gs.Variable:
        W1, b1 = layer.W1, layer.b1
        if layer.kind == "conv":
            return self.conv(source, W1, b1, pads=layer.pads, dilations=layer.dilations)
        if layer.kind == "gemm" and layer.channel_axis == 0:
            # t and x hold the channels on axis 0, so the weight has to stand on the left.
            weight, bias = self.constant("Gemm.weight", W1), self.constant("Gemm.bias", b1.reshape(-1, 1))
            return self._node("Gemm", [weight, source, bias], {})
        if layer.kind == "matmul" and layer.channel_axis == -2:
            product = self._node("MatMul", [self.constant("MatMul.weight", W1), source], {})
            return self._node("Add", [product, self.constant("MatMul.bias", b1.reshape(-1, 1))], {})
        return self.gemm(source, W1, b1) if layer.kind == "gemm" else self.matmul(source, W1, b1)

    def _normalised(self, x: gs.Variable, norm: BatchNorm) -> gs.Variable:
        arrays = {"scale": norm.scale, "bias": norm.bias, "mean": norm.mean, "variance": norm.variance}
        inputs = [x, *(self.constant(f"BatchNormalization.{key}", held) for key, held in arrays.items())]
        return self._node("BatchNormalization", inputs, {"epsilon": norm.epsilon})

    def _activation(self, x: gs.Variable, layer: CandidateLayer) -> gs.Variable:
        trailing = len(self._site.spatial) if layer.kind == "conv" else int(layer.channel_axis in (0, -2))
        emission = emit(layer.activation, self._opset, len(layer.b1), trailing, self._site.dtype)
        known: dict[str, gs.Tensor] = {SOURCE: x, "": gs.Variable.empty()}
        for key, value in emission.constants.items():
            known[key] = self.constant(f"{layer.activation.name}.{key}", value)
        for node in emission.nodes:
            inputs = [known[name] for name in node.inputs]
            known[node.output] = self._node(node.op_type, inputs, dict(node.attributes))
        return known[RESULT]

    def _node(
        self, op: str, inputs: list[gs.Tensor], attributes: dict[str, Any], result: str = ""
    ) -> gs.Variable:
        name = self._edits.fresh(op)
        output = gs.Variable(result or f"{name}_output")
        self.nodes.append(gs.Node(op, name, attributes, inputs, [output]))
        return output
