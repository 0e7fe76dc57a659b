"""Inputs that are added to inner tensors: with zeros nothing changes, and their gradient is the tensors' own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto

from onnx_compnet.errors import UsageError
from onnx_compnet.graph.index import GraphIndex

PREFIX = "compnet/probe"


def with_probes(model: ModelProto, tensors: Mapping[str, str]) -> tuple[ModelProto, dict[str, str]]:
    """A copy of ``model`` in which an input of its own is added to each of ``tensors`` ({name: float type}).

    Returns the copy and the name of each tensor's probe. Raises UsageError for a tensor that no node of the main
    graph makes.
    """
    index = GraphIndex.of(model)
    copy = ModelProto()
    copy.CopyFrom(model)
    probes: dict[str, str] = {}
    adds: dict[int, list[onnx.NodeProto]] = {}
    for number, (name, dtype) in enumerate(tensors.items()):
        position = index.producers.get(name)
        if position is None:
            raise UsageError(f"no node of the main graph makes the tensor '{name}'")
        probe, raw = f"{PREFIX}/{number}", f"{PREFIX}/{number}/raw"
        node = copy.graph.node[position]
        node.output[list(node.output).index(name)] = raw
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        copy.graph.input.append(onnx.helper.make_tensor_value_info(probe, kind, None))
        adds.setdefault(position, []).append(
            onnx.helper.make_node("Add", [raw, probe], [name], name=raw + "/Add")
        )
        probes[name] = probe
    for position in sorted(adds, reverse=True):
        for add in adds[position]:
            copy.graph.node.insert(position + 1, add)
    return copy, probes
