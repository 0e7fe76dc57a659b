"""The torch module of a model: its weights under their names, and the graph that reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

from onnx import ModelProto
from torch import Tensor, nn

from onnx_compnet.bridge.converters import to_graph_module
from onnx_compnet.bridge.normalise import Normalised, normalise
from onnx_compnet.bridge.tensors import to_tensor
from onnx_compnet.errors import UnsupportedError, UsageError
from onnx_compnet.graph.model_io import as_model


class OnnxModule(nn.Module):
    """An ONNX model as a torch module; see ``to_torch``.

    ``input_names`` and ``output_names`` are the model's, in order. ``frozen`` has the name of each floating-point
    tensor that is no Parameter though it is no mere constant of an op, and the reason. ``parameter.weight`` of the
    ONNX file is ``module.get_parameter("parameter.weight")``: parts between dots are modules.
    """

    def __init__(self, normalised: Normalised) -> None:
        super().__init__()
        self.input_names, self.output_names = normalised.inputs, normalised.outputs
        self.frozen: dict[str, str] = {item.name: item.reason for item in normalised.held if item.reason}
        self._stored = tuple(item.name for item in normalised.held if item.stored)
        self.graph_digest = ""
        self._slots: list[tuple[str, nn.Module, str]] = []
        graph = to_graph_module(normalised.model)
        for inner in graph.modules():
            for name, constant in list(inner.named_buffers(recurse=False)):
                inner.register_buffer(name, constant, persistent=False)  # the file's weights are the state
        first = {item.name.split(".")[0] for item in normalised.held}
        self._graph = next(name for number in count() if (name := f"graph_{number}") not in first)
        self.add_module(self._graph, graph)
        for item in normalised.held:
            tensor = to_tensor(item.value)
            holder, key = self._holder(item.name)
            self._slots.append((item.name, holder, key))
            # past register_parameter and register_buffer, which refuse dots and names of methods
            if item.role == "parameter":
                holder._parameters[key] = nn.Parameter(tensor)
                continue
            holder._buffers[key] = tensor
            if not item.stored:
                holder._non_persistent_buffers_set.add(key)

    def _holder(self, name: str) -> tuple[nn.Module, str]:
        """The module in which a tensor lies so that its full name is ``name``, and its key there."""
        *path, key = parts = name.split(".")
        if not parts[0] or "training" in parts:  # torch loses the one and uses the other itself
            raise UnsupportedError(
                f"no torch module can hold a tensor called '{name}'; rename it in the model"
            )
        holder: nn.Module = self
        for part in path:
            inner = holder._modules.get(part)
            if inner is None:
                inner = holder._modules[part] = nn.Module()
            holder = inner
        return holder, key

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor that the graph reads, weights and frozen ones, with its name, in the graph's order."""
        for name, holder, key in self._slots:
            found: Tensor | None = holder._parameters.get(key)
            if found is None:
                found = holder._buffers.get(key)
            yield name, cast(Tensor, getattr(holder, key)) if found is None else found

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Those of ``tensors`` that the model's main graph holds: what ``write_back`` writes."""
        names = set(self._stored)
        return ((name, tensor) for name, tensor in self.tensors() if name in names)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The model's outputs: a tensor, or a tuple where it has several.

        Args:
            inputs: tensors for the model's inputs, in order, of the shapes and types that the model declares.
            named: or by their names, after those by order.

        Raises:
            UsageError: an input is missing, given twice or not known.
        """
        names = self.input_names[len(inputs) :]
        if len(inputs) > len(self.input_names) or set(names) != named.keys():
            raise UsageError(
                f"the model's inputs are {', '.join(self.input_names)}; given were {len(inputs)} in order"
                + (f" and {', '.join(named)}" if named else "")
            )
        result = self._modules[self._graph](  # type: ignore[misc]
            *inputs, *(named[name] for name in names), *(tensor for _, tensor in self.tensors())
        )
        return tuple(result) if isinstance(result, list) else result


def to_torch(model: ModelProto | str | Path) -> OnnxModule:
    """A torch module that computes what an ONNX model computes, with every float weight an ``nn.Parameter``.

    A Parameter has its initialiser's name in ``named_parameters()`` and ``state_dict()`` (the output's name for a
    weight in a Constant node) and its stored shape: a weight behind a Transpose, Reshape or Cast is the stored one,
    a sparse weight is the vector of its stored elements. Shared weights are one Parameter. Running statistics are
    buffers under their names. BatchNormalization and Dropout follow ``train()`` and ``eval()``; the module is
    returned in eval mode. ``module.frozen`` says which tensors can't be trained and why: those that are computed
    from integers (DequantizeLinear), lie in a function, hold infinities, or are running statistics and weights at
    once. One element alone is a constant of its op (√2, 0.5) unless a layer holds it, and zeros for a recurrent
    layer's initial state are one. The model is not changed and nothing is written.

    Args:
        model: a model or a path; float16 and bfloat16 weights stay in their type.

    Raises:
        UnsupportedError: an op has no conversion; names op, version and node. Or no torch module can hold a tensor
            of some weight's name.
        ModelError: the file can't be read.
    """
    model = as_model(model)
    module = OnnxModule(normalise(model))
    module.graph_digest = graph_digest(model)
    return module.eval()


def graph_digest(model: ModelProto) -> str:
    """SHA-256 of what the main graph computes: its ops, how they are connected, and its weights' names."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(repr((node.domain, node.op_type, list(node.input), list(node.output))).encode())
    names = [item.name for item in model.graph.initializer]
    digest.update(repr((names, [item.values.name for item in model.graph.sparse_initializer])).encode())
    return digest.hexdigest()
