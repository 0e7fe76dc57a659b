"""The baseline "Scratch": a network's architecture with fresh weights, to be trained from the start.

===================================  ====================================================================
weight                               fresh value
===================================  ====================================================================
Conv, ConvTranspose, Gemm, MatMul,   normal; the variance rule of the activation that follows, by fan-in
Einsum                               (He for the rectifiers, Glorot for tanh, Kumar else, see
                                     ``numerics.initialise.variance``), 1/fan_in where none follows and
                                     for the last layer
LSTM, GRU, RNN                       uniform within ±1/√hidden, weights and biases (as torch has it)
Gather's tables (embeddings)         normal, standard deviation 0.02
biases, what is added or subtracted  0
scales, what multiplies or divides   1
running statistics                   mean 0, variance 1
PRelu's slopes                       0.25
others of rank 2 or more             normal, standard deviation 0.02 (position embeddings, class tokens)
others                               0
===================================  ====================================================================

Axes of length 1 do not count for the rank of what is added. Weights of ±10⁹ and beyond stand for infinity (masks)
and stay.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_compnet.baselines.uses import LINEAR, RECURRENT, Followers, Use, fixed_tensors, use_of
from onnx_compnet.bridge.normalise import Held, normalise, written_out
from onnx_compnet.config import whole
from onnx_compnet.graph.edits import write_values
from onnx_compnet.graph.folding import held_type
from onnx_compnet.graph.index import (
    GraphIndex,
    float_attribute,
    int_attribute,
    ints_attribute,
    is_op,
    text_attribute,
)
from onnx_compnet.graph.model_io import as_model
from onnx_compnet.numerics.initialise import variance

log = logging.getLogger(__name__)

EMBEDDING = 0.02
"""standard deviation of embeddings, as in BERT, GPT-2 and ViT"""
SLOPE = 0.25
"""PRelu's, as torch begins"""
_STREAM = 9
_STANDS_FOR_INFINITY = 1e9
_NORMALISATIONS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")

Float = NDArray[np.float64]


def scratch(model: onnx.ModelProto | str | Path, *, seed: int = 0) -> onnx.ModelProto:
    """A copy of ``model`` with fresh weights; all else byte for byte.

    The weights are those that ``to_torch`` makes Parameters or running statistics: what ``finetune`` trains. Shared
    ones stay shared, types and layouts stay. The same seed gives the same weights whichever exporter wrote the
    model, where its layers come in the same order: each is drawn from a stream of its own, in torch's layout.

    Args:
        model: the model, or its path; it is never changed.
        seed: 0 or more.

    Raises:
        UnsupportedError: the model can't be converted to torch, and so not trained.
        UsageError: the seed is negative.
        ModelError: the file can't be read.
    """
    seed = whole("seed", seed, 0) or 0
    model = as_model(model)
    held, source = normalise(model).held, GraphIndex.of(model)
    index = GraphIndex.of(written_out(model))
    constants = [name for graph in (source, index) for name in _constants(graph)]
    fixed = fixed_tensors(index, constants)
    dims = {item.name: (held_type(source, item.name) or (item.value.shape,))[0] for item in held}
    uses = {item.name: use_of(index, fixed, item.name, dims[item.name]) for item in held}
    _warn_of_kept(held, uses)
    draws = _Draws(seed, Followers(index, fixed))
    values: dict[str, NDArray[Any]] = {}
    for item in sorted(held, key=lambda item: _place(uses[item.name])):
        use = uses[item.name]
        if use is None or item.role not in ("parameter", "statistic") or _is_mask(item.value):
            continue
        fresh = draws.fresh(use, item.value.shape, dims[item.name])
        values[item.name] = fresh.reshape(item.value.shape).astype(item.value.dtype)
    return write_values(model, values)


def _constants(index: GraphIndex) -> list[str]:
    held = [node.output[0] for node in index.nodes if is_op(node, "Constant")]
    return [*index.initializers, *index.sparse, *held]


def _place(use: Use | None) -> tuple[int, int]:
    return (-1, 0) if use is None else (use.position, use.slot)


def _is_mask(value: NDArray[Any]) -> bool:
    return bool((np.abs(value.astype(np.float64)) >= _STANDS_FOR_INFINITY).any())


def _warn_of_kept(held: tuple[Held, ...], uses: dict[str, Use | None]) -> None:
    """Say which layers stay trained, as nothing here can train them."""
    kept = [
        item
        for item in held
        if item.role == "frozen" and (use := uses[item.name]) is not None and use.is_linear
    ]
    if kept:
        log.warning(
            "%d weights keep their trained values, as they can't be trained here: '%s' %s",
            len(kept), kept[0].name, kept[0].reason,
        )  # fmt: skip


class _Draws:
    """Fresh values, each from a stream of its own: by the seed and the place among all that is drawn."""

    def __init__(self, seed: int, followers: Followers) -> None:
        self._seed, self._followers, self._count = seed, followers, 0

    def fresh(self, use: Use, shape: tuple[int, ...], dims: tuple[int, ...]) -> Float:
        """The fresh values of a weight of ``shape`` in the file: ``dims``, or the stored elements of a sparse one."""
        op, slot = use.node.op_type, use.slot
        if use.is_table:
            return self._normal(shape, EMBEDDING)
        if use.factor is not None:
            op = use.factor.op_type
        elif use.is_linear:
            return self._linear(use, shape, dims)
        elif op in RECURRENT and slot in (1, 2, 3):
            return self._recurrent(use, shape)
        if op == "PRelu" and slot == 1 and use.factor is None:
            return np.full(shape, SLOPE)
        if op == "BatchNormalization":
            return np.full(shape, float(slot in (1, 4)))
        if op in _NORMALISATIONS:
            return np.full(shape, float(slot == 1))
        if op in ("Mul", "Div"):
            return np.ones(shape)
        vector = sum(size > 1 for size in dims) < 2 if op in ("Add", "Sub", "Sum") else len(dims) < 2
        if vector or op in LINEAR or op in RECURRENT:  # of these: biases and initial states
            return np.zeros(shape)
        return self._normal(shape, EMBEDDING)

    def _generator(self) -> np.random.Generator:
        self._count += 1
        return np.random.default_rng([self._seed, _STREAM, self._count])

    def _normal(self, shape: tuple[int, ...], deviation: float) -> Float:
        return deviation * self._generator().standard_normal(shape)

    def _linear(self, use: Use, shape: tuple[int, ...], dims: tuple[int, ...]) -> Float:
        """He, Glorot or Kumar, in the layout (D2, D1/groups, *kernel) or (D2, D1) wherever that can be undone."""
        read = use.shape if use.shape is not None else dims
        fan_in, fan_out = _fans(use, read)
        if shape != dims:  # of a sparse weight: as many as are stored
            share = math.prod(shape) / max(math.prod(dims), 1)
            fan_in, fan_out = fan_in * share, fan_out * share
        activation = self._followers.activation(use.node)
        spread = 1 / fan_in if activation is None else variance("auto", activation, fan_in, fan_out)
        deviation = math.sqrt(spread) / _gain(use)
        if use.moves is None or shape != dims:
            return self._normal(shape, deviation)
        if _holds_columns(use, read):
            drawn = self._normal((*read[:-2], read[-1], read[-2]), deviation).swapaxes(-1, -2)
        else:
            drawn = self._normal(read, deviation)
        return use.stored(drawn)

    def _recurrent(self, use: Use, shape: tuple[int, ...]) -> Float:
        rows = (use.shape or shape)[1]
        gates = RECURRENT[use.node.op_type] * (2 if use.slot == 3 else 1)
        bound = 1 / math.sqrt(max(int_attribute(use.node, "hidden_size", rows // gates), 1))
        return self._generator().uniform(-bound, bound, shape)


def _gain(use: Use) -> float:
    """Gemm's alpha, by which the product is multiplied."""
    alpha = float_attribute(use.node, "alpha", 1.0) if use.node.op_type == "Gemm" else 1.0
    return abs(alpha) or 1.0


def _holds_columns(use: Use, read: tuple[int, ...]) -> bool:
    """Whether a matrix has the inputs first, (D1, D2)."""
    op, slot = use.node.op_type, use.slot
    if op == "Gemm":
        return bool(int_attribute(use.node, "transB" if slot else "transA", 0)) == (slot == 0)
    return op == "MatMul" and slot == 1 and len(read) > 1


def _fans(use: Use, read: tuple[int, ...]) -> tuple[float, float]:
    """How many products a sum has, and to how many sums an input goes."""
    op, size = use.node.op_type, math.prod(read)
    if op == "Conv":
        groups = int_attribute(use.node, "group", 1)
        return size / read[0], size / read[1] / groups
    if op == "ConvTranspose":  # with strides a position gets a part of the kernel only
        groups, steps = int_attribute(use.node, "group", 1), ints_attribute(use.node, "strides") or ()
        return max(size / read[1] / groups / math.prod(steps), 1.0), size / read[0]
    if op == "Einsum":
        return _einsum_fans(use, read)
    inputs = read[-2] if _holds_columns(use, read) else read[-1]
    outputs = 1 if len(read) < 2 else read[-1] if _holds_columns(use, read) else read[-2]
    return float(inputs), float(outputs)


def _einsum_fans(use: Use, read: tuple[int, ...]) -> tuple[float, float]:
    equation = text_attribute(use.node, "equation", "").replace(" ", "").replace("...", "")
    terms, found, result = equation.partition("->")
    if not found:
        result = "".join(letter for letter in terms.replace(",", "") if terms.count(letter) == 1)
    others = [term for place, term in enumerate(terms.split(",")) if place != use.slot]
    mine = dict(zip(reversed(terms.split(",")[use.slot]), reversed(read), strict=False))
    summed = math.prod(size for letter, size in mine.items() if letter not in result)
    own = math.prod(size for letter, size in mine.items() if not any(letter in other for other in others))
    return float(summed), float(own)
