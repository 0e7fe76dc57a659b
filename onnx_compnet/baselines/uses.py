"""How each weight of a model is read: by which op, in which layout, and what comes behind that op."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_compnet.graph.activations import match_backward, match_forward
from onnx_compnet.graph.index import GraphIndex, is_op
from onnx_compnet.graph.weights import permutation
from onnx_compnet.layers import Activation

LINEAR: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Einsum": tuple(range(8)),
}  # fmt: skip
"""op → the inputs that are the weights of a linear layer"""
RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""op → its number of gates"""

_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_ASKS_FOR_SHAPES = ("Shape", "Size")
_TRANSPARENT = (
    "Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Pad",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "Add", "Sum",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "LpPool", "Resize", "Upsample",
    "DepthToSpace",
)  # fmt: skip
"""what may lie between a linear layer and the activation that is taken to follow it"""

Move = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Use:
    """An op that reads a weight: ``node``, at ``position``, as its input ``slot``.

    ``shape`` is what it reads, None where that is not known. ``moves`` lead from the stored layout to it:
    ("transpose", axes) and ("reshape", the shape before); None where something else lies between. ``factor`` is the
    op, if there is one, by which the weight was spread over something larger before it was read (the gain of weight
    normalisation).
    """

    position: int
    node: NodeProto
    slot: int
    shape: tuple[int, ...] | None
    moves: tuple[Move, ...] | None
    factor: NodeProto | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the weight is that of a linear layer."""
        return self.factor is None and self.slot in LINEAR.get(self.node.op_type, ())

    @property
    def is_table(self) -> bool:
        """Whether rows of it are looked up: an embedding."""
        return is_op(self.node, "Gather") and self.slot == 0

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values in the layout that is read, in that of the file."""
        for kind, argument in reversed(self.moves or ()):
            values = (
                values.transpose(np.argsort(argument)) if kind == "transpose" else values.reshape(argument)
            )
        return values


def fixed_tensors(index: GraphIndex, constants: Collection[str]) -> set[str]:
    """``constants`` and all that is computed from them alone."""
    found = {"", *constants}
    for node in index.nodes:
        if any(node.input) and found.issuperset(node.input):
            found.update(node.output)
    return found - {""}


def use_of(index: GraphIndex, fixed: Collection[str], name: str, dims: tuple[int, ...]) -> Use | None:
    """The op that says what a weight is for, or None where only the model's caller reads it.

    Of several: a look-up, else the first in the graph's order, those before the ones that it was spread for.
    """
    found = list(_uses(index, fixed, name, dims))
    order = sorted(found, key=lambda use: (not use.is_table, use.factor is not None, use.position, use.slot))
    return order[0] if order else None


def _uses(index: GraphIndex, fixed: Collection[str], name: str, dims: tuple[int, ...]) -> Iterator[Use]:
    """Each op with other inputs than constants that reads the weight, or what is computed from it alone."""
    pending, seen = deque([(name, Use(-1, NodeProto(), 0, dims, ()))]), {name}
    while pending:
        tensor, so_far = pending.popleft()
        for position in dict.fromkeys(index.consumers.get(tensor, ())):
            node = index.nodes[position]
            if is_op(node, *_ASKS_FOR_SHAPES):
                continue
            slot = list(node.input).index(tensor)
            if node.output[0] not in fixed:
                yield replace(so_far, position=position, node=node, slot=slot)
            elif node.output[0] not in seen:
                seen.add(node.output[0])
                pending.append((node.output[0], _moved(index, so_far, node, slot)))


def _moved(index: GraphIndex, so_far: Use, node: NodeProto, slot: int) -> Use:
    """The layout behind one op of constants."""
    before, moves = so_far.shape, so_far.moves
    declared = index.shape(node.output[0])
    after = None if declared is None else tuple(size for size in declared if isinstance(size, int))
    if declared is None or after is None or len(after) < len(declared):
        after = None
    if is_op(node, "Identity", "Cast"):
        return so_far
    if is_op(node, "Transpose") and before is not None:
        axes = permutation(node, len(before))
        after = tuple(before[axis] for axis in axes)
        return replace(so_far, shape=after, moves=None if moves is None else (*moves, ("transpose", axes)))
    same = before is not None and after is not None and math.prod(before) == math.prod(after)
    if is_op(node, *_RESHAPING) and slot == 0 and same and before is not None:
        return replace(so_far, shape=after, moves=None if moves is None else (*moves, ("reshape", before)))
    larger = before is not None and after is not None and math.prod(before) < math.prod(after)
    factor = node if larger and so_far.factor is None and not is_op(node, "Concat") else so_far.factor
    return replace(so_far, shape=after, moves=None, factor=factor)


class Followers:
    """What comes behind a linear layer."""

    def __init__(self, index: GraphIndex, fixed: Collection[str]) -> None:
        self._index, self._fixed = index, fixed
        self._leads: set[str] = set()
        for node in reversed(index.nodes):  # tensors from which a further layer with weights is reached
            layer = [*LINEAR.get(node.op_type, ()), *((1,) if node.op_type in RECURRENT else ())]
            weighted = any(node.input[slot] in fixed for slot in layer if slot < len(node.input))
            if weighted or not self._leads.isdisjoint(node.output):
                self._leads.update(node.input)

    def activation(self, node: NodeProto) -> Activation | None:
        """The activation that follows a linear layer; None where none does, and for the last layer of the model.

        Bias, normalisation, pooling, sums, concatenations and changes of the shape may lie between.
        """
        pending, seen = deque([node.output[0]]), set(node.output)
        while pending:
            tensor = pending.popleft()
            match = match_forward(self._index, tensor)
            readers = self._index.readers(tensor)
            for position in () if match else readers:
                back = match_backward(self._index, self._index.nodes[position].output[0])
                match = back if back is not None and back.source == tensor else match
            if match is not None:
                return match.activation if match.result in self._leads else None
            for position in readers:
                reader = self._index.nodes[position]
                scaled = is_op(reader, "Mul", "Div", "Sub") and any(n in self._fixed for n in reader.input)
                if (scaled or is_op(reader, *_TRANSPARENT)) and reader.output[0] not in seen:
                    seen.add(reader.output[0])
                    pending.append(reader.output[0])
        return None
