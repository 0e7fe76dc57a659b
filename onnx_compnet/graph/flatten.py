"""Looking through Flatten, Reshape and Squeeze from a dense layer's 2-D input to the spatial tensor in front.

These ops keep the row-major order of the elements. So if they turn (N, C, *S) into (rows, K) and K is
C·prod(S), then every row is one sample, flattened with the channels outermost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from onnx_compnet.graph.index import GraphIndex, attribute, int_attribute, is_op
from onnx_compnet.graph.weights import axes_of, integers
from onnx_compnet.layers import Dimension

RESHAPING = ("Flatten", "Reshape", "Squeeze")
_MAX_SPATIAL = 3  # axes that a Conv can have in front of the Flatten


@dataclass(frozen=True)
class Unflattened:
    """A spatial tensor that reaches a dense layer flattened, through the nodes ``between``, in order."""

    tensor: str
    channels: int
    taps: int
    between: tuple[int, ...]


def unflatten(index: GraphIndex, tensor: str, width: int) -> Iterator[Unflattened]:
    """The spatial tensors behind ``tensor``, which is (rows, ``width``); nearest first."""
    path: tuple[int, ...] = ()
    keeps_batch = True
    while (position := index.producers.get(tensor)) is not None:
        node = index.nodes[position]
        source = node.input[0] if node.input else ""
        shape = index.shape(source)
        kept = _keeps_batch(index, node, shape, final=not path)
        if kept is None or shape is None:
            return
        keeps_batch = keeps_batch and kept
        path = (position, *path)
        tensor = source
        divided = _divide(shape, width, keeps_batch)
        if divided is not None and len(shape) - 2 <= _MAX_SPATIAL:
            yield Unflattened(tensor, *divided, path)


def _keeps_batch(
    index: GraphIndex, node: NodeProto, shape: tuple[Dimension, ...] | None, *, final: bool
) -> bool | None:
    """Whether axis 0 is provably kept; None where the node can't be looked through.

    The last node of the way must give two axes, which only a Squeeze in front of others need not.
    """
    if shape is None or len(shape) < 3:
        return None
    if is_op(node, "Squeeze"):
        axes = axes_of(index, node)
        if axes is None:
            return None
        squeezed = {axis % len(shape) for axis in axes}
        if squeezed & {0, 1} or (final and len(shape) - len(squeezed) != 2):
            return None
        return True
    if not final:
        return None
    if is_op(node, "Flatten"):
        return True if int_attribute(node, "axis", 1) % len(shape) == 1 else None
    return _reshape_keeps_batch(index, node, shape) if is_op(node, "Reshape") else None


def _reshape_keeps_batch(index: GraphIndex, node: NodeProto, shape: tuple[Dimension, ...]) -> bool | None:
    target = integers(index, node.input[1])
    if target is None:
        measured = _measured(index, node.input[1])
        return None if measured is None else _same_first_size(index, measured, node.input[0])
    if len(target) != 2 or target[1] < -1:
        return None
    if 0 in target and int_attribute(node, "allowzero", 0):
        return None
    if target[1] == 0 and any(size != 1 for size in shape[2:]):
        return None
    return target[0] == 0 or (isinstance(shape[0], int) and target[0] == shape[0])


def _measured(index: GraphIndex, target: str) -> str | None:
    """The tensor whose axis 0 a computed Reshape target [size, -1] takes; None for any other target."""
    node = index.producer(target)
    if node is None or not is_op(node, "Concat") or len(node.input) != 2:
        return None
    return _first_size_of(index, node.input[0]) if integers(index, node.input[1]) == (-1,) else None


def _same_first_size(index: GraphIndex, one: str, other: str) -> bool:
    mine, theirs = index.shape(one), index.shape(other)
    return one == other or bool(mine and theirs and mine[0] is not None and mine[0] == theirs[0])


def _first_size_of(index: GraphIndex, name: str) -> str | None:
    """The tensor whose size on axis 0 a tensor holds, or None."""
    node = index.producer(name)
    while node is not None and is_op(node, "Unsqueeze", "Squeeze", "Identity", "Cast"):
        node = index.producer(node.input[0])
    if node is None:
        return None
    if is_op(node, "Shape"):
        first = int_attribute(node, "start", 0) == 0 and int_attribute(node, "end", -1) == 1
        return node.input[0] if first else None
    shape = index.producer(node.input[0]) if node.input else None
    if shape is None or not is_op(shape, "Shape") or int_attribute(shape, "start", 0) != 0:
        return None
    if is_op(node, "Gather"):
        first = integers(index, node.input[1]) == (0,)
    elif is_op(node, "Slice"):
        first = _slice_bound(index, node, "starts", 1) == (0,) and _slice_bound(index, node, "ends", 2) == (
            1,
        )
    else:
        first = False
    return shape.input[0] if first else None


def _slice_bound(index: GraphIndex, node: NodeProto, name: str, slot: int) -> tuple[int, ...] | None:
    found = attribute(node, name)
    if found is not None:
        return tuple(found.ints)
    return integers(index, node.input[slot]) if len(node.input) > slot else None


def _divide(shape: tuple[Dimension, ...], width: int, keeps_batch: bool) -> tuple[int, int] | None:
    """(C, taps) with C·taps = width for a tensor (N, C, *S), or None where that is not certain."""
    channels, spatial = shape[1], shape[2:]
    sizes = [size for size in spatial if isinstance(size, int)]
    taps = math.prod(sizes) if len(sizes) == len(spatial) else None
    if isinstance(channels, int) and taps is not None:
        return (channels, taps) if channels * taps == width and width > 0 else None
    if not keeps_batch:
        return None
    if isinstance(channels, int) and channels > 0 and width % channels == 0:
        return channels, width // channels
    if taps and width % taps == 0:
        return width // taps, taps
    return None


def resized_target(target: tuple[int, ...], width: int) -> tuple[int, ...] | None:
    """A constant Reshape target for another number of columns; None where it needs no change."""
    return None if target[-1] in (0, -1) else (*target[:-1], width)
