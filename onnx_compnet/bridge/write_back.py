"""A module's weights, in the model that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from onnx_compnet.bridge.module import OnnxModule, graph_digest
from onnx_compnet.bridge.normalise import stored_value
from onnx_compnet.bridge.tensors import to_array
from onnx_compnet.errors import UsageError
from onnx_compnet.graph.edits import write_values
from onnx_compnet.graph.folding import held_type
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.model_io import as_model


def write_back(module: nn.Module, model: ModelProto | str | Path) -> ModelProto:
    """A copy of ``model`` with the weights and running statistics of ``module``; all else byte for byte.

    Weights that have not changed keep their bytes, too; others are written in the type, shape and place that they
    have in the model, whatever the module's type and device. ``model`` itself is not changed.

    Args:
        module: what ``to_torch(model)`` returned, after training; it may be wrapped (DataParallel, compile).
        model: the model that the module was made of.

    Raises:
        UsageError: the module is none of ``to_torch``, or was made of another model.
        ModelError: the file can't be read.
    """
    inner = next((part for part in module.modules() if isinstance(part, OnnxModule)), None)
    if inner is None:
        raise UsageError(f"{type(module).__name__} holds no module of to_torch(); give what that returned")
    model = as_model(model)
    index = GraphIndex.of(model)
    changed: dict[str, NDArray[Any]] = {}
    for name, tensor in inner.stored():
        if held_type(index, name) is None:
            raise UsageError(f"the model holds no '{name}'; give the model that the module was made of")
        present = stored_value(index, name)
        if tuple(tensor.shape) != present.shape:
            raise UsageError(
                f"'{name}' has the shape {list(present.shape)} in the model and {list(tensor.shape)} in the module; "
                "give the model that the module was made of"
            )
        values = to_array(tensor, present)
        if values.tobytes() != present.tobytes():
            changed[name] = values
    if inner.graph_digest != graph_digest(model):
        raise UsageError("the model has other nodes than the one that the module was made of; give that one")
    return write_values(model, changed)
