"""Converters for onnx2torch's registry, and its ``convert``: the only onnx2torch import.

What this package converts itself is moved to a domain of its own by ``normalise``, so nothing of onnx2torch is
replaced for others who use it in the same process. Ops that only took more types in a newer version are registered
under that version with onnx2torch's converter for the older one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import onnx
from onnx import ModelProto, NodeProto
from onnx2torch import convert
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import Tensor, fx, nn

from onnx_compnet.bridge import ops, recurrent, selection, windows
from onnx_compnet.bridge.tensors import to_tensor
from onnx_compnet.errors import UnsupportedError

DOMAIN = "onnx_compnet"
"""The domain of the nodes that this package converts; one of another domain is named ``domain.Op`` in it."""

OWN: dict[str, Callable[..., Any]] = {
    "Conv": windows.conv, "ConvTranspose": windows.conv_transpose, "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool, "GlobalAveragePool": windows.global_average_pool,
    "GlobalMaxPool": windows.global_max_pool, "Resize": windows.resize, "Resize10": windows.resize_10,
    "Upsample": windows.upsample, "Gemm": ops.gemm, "BatchNormalization": ops.batch_normalization,
    "InstanceNormalization": ops.instance_normalization, "LayerNormalization": ops.layer_normalization,
    "PRelu": ops.prelu, "Dropout": ops.dropout, "Densify": ops.densify, "Gelu": ops.gelu,
    "com.microsoft.Gelu": ops.gelu, "com.microsoft.FastGelu": ops.fast_gelu,
    "com.microsoft.QuickGelu": ops.quick_gelu, "Softmax": ops.softmax, "LogSoftmax": ops.log_softmax,
    "Clip": ops.clip, "HardSigmoid": ops.hard_sigmoid, "Trilu": ops.trilu, "Reshape": ops.reshape,
    "Flatten": ops.flatten, "Squeeze": ops.squeeze, "Unsqueeze": ops.unsqueeze, "Expand": ops.expand,
    "Slice": ops.slice_, "Split": ops.split, "Cast": ops.cast, "Shape": ops.shape, "Size": ops.size,
    "ConstantOfShape": ops.constant_of_shape, "ScatterND": ops.scatter_nd,
    "ScatterElements": ops.scatter_elements, "GatherElements": selection.gather_elements,
    "GatherND": selection.gather_nd, "OneHot": selection.one_hot, "CumSum": selection.cumsum,
    "NonZero": selection.nonzero, "TopK": selection.top_k, "NonMaxSuppression": selection.non_max_suppression,
    "IsInf": ops.is_inf, "Pow": ops.power, "Range": ops.range_, "ThresholdedRelu": ops.thresholded_relu,
    "Pad": ops.pad, "LSTM": recurrent.lstm, "GRU": recurrent.gru, "RNN": recurrent.rnn,
    **{f"Reduce{how}": partial(ops.reduce, how=how) for how in ops.REDUCTIONS},
    **{name: partial(ops.unary, name=name.lower()) for name in ("Acosh", "Asinh", "Atanh", "Cosh", "Sinh")},
    "ai.onnx.ml.Scaler": ops.scaler,
}  # fmt: skip

_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "BatchNormalization": {"training_mode": (0,), "is_test": (1,), "spatial": (1,)},
    "Resize": {
        "antialias": (0,), "keep_aspect_ratio_policy": ("stretch",), "mode": ("nearest", "linear", "cubic"),
        "coordinate_transformation_mode": (
            "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"
        ),
    },
    "Resize10": {"mode": ("nearest", "linear")},
    "Upsample": {"mode": ("nearest", "linear")},
    "MaxPool": {"storage_order": (0,)},
    "Cast": {"to": tuple(ops.TYPES)},
    "Pad": {"mode": ("constant", "reflect", "edge", "wrap")},
    "ScatterND": {"reduction": ("none", "add")},
    "ScatterElements": {"reduction": ("none", "add")},
    "LSTM": {"layout": (0,), "input_forget": (0,), "activations": (["Sigmoid", "Tanh", "Tanh"] * 2,
             ["Sigmoid", "Tanh", "Tanh"])},
    "GRU": {"layout": (0,), "linear_before_reset": (1,), "activations": (["Sigmoid", "Tanh"] * 2,
            ["Sigmoid", "Tanh"])},
    "RNN": {"layout": (0,), "activations": (["Tanh"] * 2, ["Tanh"])},
}  # fmt: skip
"""attribute → values that are converted (an attribute that the function does not take is left out then)"""
_WITHOUT_EFFECT = {
    "Conv": ("kernel_shape",), "ConvTranspose": ("kernel_shape",), "Dropout": ("seed",),
    "Cast": ("saturate", "round_mode"), "TopK": ("sorted",), "Resize": ("extrapolation_value",),
}  # fmt: skip
"""attributes that say nothing new, or nothing of the types and modes that are converted"""
_REQUIRED = {"GRU": {"linear_before_reset": 0}}  # ONNX's default is refused, too
_LEFT_OUT = {"LSTM": (4, 7), "GRU": (4,), "RNN": (4,)}  # inputs that are not converted
_OUTPUTS = {"Dropout": 2, "LayerNormalization": 3, "LSTM": 3, "GRU": 2, "RNN": 2, "Split": 1 << 30, "TopK": 2}

_NEWER_TYPES = (
    "Acos", "Asin", "Atan", "Celu", "Cos", "DepthToSpace", "Einsum", "Elu", "Equal", "EyeLike", "GreaterOrEqual",
    "HardSwish", "Identity", "IsNaN", "LessOrEqual", "Mod", "Round", "Selu", "Sin", "Softplus",
    "Softsign", "Tan", "Transpose",
)  # fmt: skip


class Op(nn.Module):
    """One node: its function, with its attributes and the places of those inputs that it has."""

    def __init__(
        self, function: Callable[..., Any], places: list[int], attributes: dict[str, Any], many: bool
    ):
        super().__init__()
        parameters = inspect.signature(function).parameters
        self.function, self.places, self.many = function, places, many
        self.attributes = attributes
        self.learns = "training" in parameters

    def forward(self, *present: Tensor) -> Any:
        """The node's outputs: a tensor, or a tuple where the node has several outputs."""
        inputs: list[Tensor | None] = [None] * (self.places[-1] + 1 if self.places else 0)
        for place, tensor in zip(self.places, present, strict=True):
            inputs[place] = tensor
        extra = {"training": self.training} if self.learns else {}
        result = self.function(*inputs, **self.attributes, **extra)
        return result if self.many or not isinstance(result, tuple) else result[0]


def _convert_own(node: Any, _: OnnxGraph) -> OperationConverterResult:
    proto: NodeProto = node.proto
    function = OWN[proto.op_type]
    _check(proto)
    given = {item.name: _value(item) for item in proto.attribute}
    given |= {"parts": len(proto.output)} if proto.op_type == "Split" else {}
    parameters = inspect.signature(function).parameters
    old = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    dropped = {"since", *_ALLOWED.get(proto.op_type, ()), *_WITHOUT_EFFECT.get(proto.op_type, ())}
    attributes = {}
    for name, value in given.items():
        if name in parameters or (old and name not in dropped):
            attributes[name] = value
        elif name not in dropped:
            raise NotImplementedError(f"its attribute '{name}' is not known")
    places = [place for place, name in enumerate(proto.input) if name]
    return OperationConverterResult(
        torch_module=Op(function, places, attributes, len(proto.output) > 1),
        onnx_mapping=OnnxMapping(inputs=tuple(n for n in proto.input if n), outputs=tuple(proto.output)),
    )


def _check(node: NodeProto) -> None:
    """NotImplementedError where the function of a node does not know its attributes, inputs or outputs."""
    given = {**_REQUIRED.get(node.op_type, {}), **{item.name: _value(item) for item in node.attribute}}
    for name, values in _ALLOWED.get(node.op_type, {}).items():
        if name in given and given[name] not in values:
            raise NotImplementedError(f"{name} = {given[name]} is not converted")
    for place in _LEFT_OUT.get(node.op_type, ()):
        if len(node.input) > place and node.input[place]:
            raise NotImplementedError(f"its input {place} ('{node.input[place]}') is not converted")
    most = _OUTPUTS.get(node.op_type, 1)
    if len(node.output) > most:
        raise NotImplementedError(f"its output {most} ('{node.output[most]}') is not converted")


def _value(item: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, onnx.TensorProto):
        return to_tensor(onnx.numpy_helper.to_array(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if item.type in (item.INTS, item.FLOATS):
        return list(value)
    return [text.decode() for text in value] if item.type == item.STRINGS else value


def _register() -> None:
    for name in OWN:
        add_converter(operation_type=name, version=1, domain=DOMAIN)(_convert_own)
    versions: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in _NEWER_TYPES:
            versions.setdefault(schema.name, []).append(schema.since_version)
    for name, found in versions.items():
        known = None
        for version in sorted(found):
            try:
                known = get_converter(operation_type=name, version=version)
            except NotImplementedError:
                if known is not None:
                    add_converter(operation_type=name, version=version)(known)


_register()


def is_known(domain: str, op: str, version: int) -> bool:
    """Whether there is a converter for an op at an opset version."""
    try:
        get_converter(operation_type=op, version=version, domain=domain)
    except NotImplementedError:
        return False
    return True


def to_graph_module(model: ModelProto) -> fx.GraphModule:
    """A normalised model as a graph module: a function of its inputs, in order.

    A node's doc_string is how messages call it.

    Raises:
        UnsupportedError: a node's attributes or inputs are not converted; names the first.
    """
    graph, versions = OnnxGraph(model.graph), {item.domain: item.version for item in model.opset_import}
    for node in graph.nodes.values():
        converter = get_converter(
            operation_type=node.operation_type, version=versions[node.domain], domain=node.domain
        )
        try:
            converter(node, graph)
        except Exception as error:  # whatever a converter raises where it meets what it does not know
            reason = str(error) or type(error).__name__
            raise UnsupportedError(
                f"{node.proto.doc_string} (opset {versions['']}) can't be converted to torch: {reason}"
            ) from error
    try:
        return cast(fx.GraphModule, convert(model))
    except Exception as error:  # what is wrong with no single node, an inconsistent shape for one
        raise UnsupportedError(f"the model can't be converted to torch: {error}") from error
