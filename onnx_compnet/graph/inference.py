"""The types and shapes of a model's tensors, as far as onnx can infer them, without copying its weights."""

from __future__ import annotations

import math

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

LARGE = 1024  # elements; larger constants say nothing that shape inference needs

# onnxruntime's own ops that onnx knows nothing of: a standard op whose first output has the same type and shape,
# and how many of the inputs it takes.
_STAND_INS = {
    "com.microsoft": {
        **dict.fromkeys(
            ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasAdd", "BiasDropout"), ("Identity", 1)
        ),
        **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), ("Identity", 1)),
        **dict.fromkeys(("MultiHeadAttention", "RotaryEmbedding"), ("Identity", 1)),
        "FusedConv": ("Conv", 2),
        "FusedGemm": ("Gemm", 3),
        "FusedMatMul": ("MatMul", 2),
    },
    "": {"SimplifiedLayerNormalization": ("Identity", 1)},
}


def inferred_types(model: ModelProto) -> dict[str, TypeProto]:
    """The type of each tensor of the main graph that is declared or can be inferred; constants are left out."""
    light = without_large_weights(model)
    local = {(item.domain, item.name) for item in model.functions}
    for node in light.graph.node:
        if (node.domain, node.op_type) not in local:
            _make_understood(node)
    for data_prop in (True, False):
        try:
            light = onnx.shape_inference.infer_shapes(light, data_prop=data_prop)
            break
        except Exception:  # inference is a help, not a judge; what is declared remains
            continue
    graph = light.graph
    return {i.name: i.type for part in (graph.value_info, graph.output, graph.input) for i in part}


def without_large_weights(model: ModelProto) -> ModelProto:
    """A copy whose large constants are graph inputs instead: the same shapes, few bytes."""
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    source, target = model.graph, light.graph
    target.name = source.name
    target.input.extend(source.input)
    target.output.extend(source.output)
    target.value_info.extend(source.value_info)
    target.sparse_initializer.extend(source.sparse_initializer)
    known = {item.name for item in source.input}

    def declare(name: str, tensor: TensorProto) -> None:
        if name not in known:
            target.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))

    for tensor in source.initializer:
        if math.prod(tensor.dims) > LARGE:
            declare(tensor.name, tensor)
        else:
            target.initializer.append(tensor)
    for node in source.node:
        held = _held(node)
        if held is not None and math.prod(held.dims) > LARGE:
            declare(node.output[0], held)
        else:
            target.node.append(node)
    declared = {item.name for item in target.input}
    stale = [i for i, item in enumerate(target.value_info) if item.name in declared]
    for i in reversed(stale):
        del target.value_info[i]
    return light


def _held(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant holds."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((item.t for item in node.attribute if item.name == "value"), None)


def _make_understood(node: NodeProto) -> None:
    """Put a standard op in the place of one that onnx does not know; type and shape of the first output stay."""
    op, inputs = _STAND_INS.get(node.domain, {}).get(node.op_type, ("", 0))
    transposed = any(item.name.startswith("trans") and item.i for item in node.attribute)
    if not op or (op == "MatMul" and transposed):
        return
    node.op_type, node.domain = op, ""
    del node.input[inputs:], node.output[1:]
    if op in ("Identity", "MatMul"):
        del node.attribute[:]
