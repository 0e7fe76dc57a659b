"""Values of constants: as they are held, or computed by the nodes that lie behind what holds them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, TensorProto, numpy_helper

from onnx_compnet.errors import UnsupportedError
from onnx_compnet.graph.index import GraphIndex, attribute, is_op
from onnx_compnet.graph.inference import LARGE

_SCALARS = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64}


def held_type(index: GraphIndex, tensor: str) -> tuple[tuple[int, ...], int] | None:
    """``(dims, elem_type)`` of an initialiser or a Constant's output; None for any other tensor and for strings."""
    if tensor in index.initializers:
        held = index.initializers[tensor]
        return tuple(held.dims), held.data_type
    if tensor in index.sparse:
        return tuple(index.sparse[tensor].dims), index.sparse[tensor].values.data_type
    node = index.producer(tensor)
    return _constant_type(node) if node is not None and is_op(node, "Constant") else None


def _constant_type(node: NodeProto) -> tuple[tuple[int, ...], int] | None:
    for item in node.attribute:
        if item.name == "value":
            return tuple(item.t.dims), item.t.data_type
        if item.name == "sparse_value":
            return tuple(item.sparse_tensor.dims), item.sparse_tensor.values.data_type
        if item.name in _SCALARS:
            return (), _SCALARS[item.name]
        if item.name in _LISTS:
            return (len(item.floats) or len(item.ints),), _LISTS[item.name]
    return None


def is_sparse(index: GraphIndex, tensor: str) -> bool:
    """Whether a constant is held as a sparse tensor."""
    node = index.producer(tensor)
    return tensor in index.sparse or (node is not None and attribute(node, "sparse_value") is not None)


def held_value(index: GraphIndex, tensor: str) -> NDArray[Any]:
    """The values of a tensor that ``held_type`` knows."""
    if tensor in index.initializers:
        return numpy_helper.to_array(index.initializers[tensor])
    if tensor in index.sparse:
        return _dense(index.sparse[tensor])
    node = index.producer(tensor)
    for item in node.attribute if node is not None else ():
        if item.name == "value":
            return numpy_helper.to_array(item.t)
        if item.name == "sparse_value":
            return _dense(item.sparse_tensor)
        if item.name == "value_float":
            return np.array(item.f, np.float32)
        if item.name == "value_int":
            return np.array(item.i, np.int64)
        if item.name == "value_floats":
            return np.array(item.floats, np.float32)
        if item.name == "value_ints":
            return np.array(item.ints, np.int64)
    raise AssertionError(f"'{tensor}' holds no value")


def _dense(sparse: SparseTensorProto) -> NDArray[Any]:
    """Its indices are places in row-major order (nnz,) or coordinates (nnz, rank)."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return dense


def fold(index: GraphIndex, tensor: str) -> NDArray[Any]:
    """The values of a tensor in ``index.constants``, by ONNX's own definition of the nodes that compute it.

    Raises:
        UnsupportedError: ONNX's reference implementation can't compute it.
    """
    nodes, held = _made_of(index, tensor)
    return _evaluate(index, tensor, nodes, held) if nodes else held_value(index, tensor)


def fold_small(index: GraphIndex, tensor: str) -> NDArray[Any] | None:
    """The values of a constant that is small and made of small ones; None for any other. Computed once."""
    if tensor not in index.constants:
        return None
    if tensor not in index.folded:
        _, held = _made_of(index, tensor)
        sizes = [held_type(index, name) for name in held]
        index.folded[tensor] = None
        if all(found is not None and math.prod(found[0]) <= LARGE for found in sizes):
            with suppress(UnsupportedError):  # then it is as unknown as what is computed from inputs
                index.folded[tensor] = fold(index, tensor)
    return index.folded[tensor]


def _made_of(index: GraphIndex, tensor: str) -> tuple[list[NodeProto], list[str]]:
    """The nodes that compute a constant, in order, and the held constants that they read."""
    kept: set[int] = set()
    held: dict[str, None] = {}
    pending = [tensor]
    while pending:
        name = pending.pop()
        position = index.producers.get(name)
        if position is None or is_op(index.nodes[position], "Constant"):
            held[name] = None
        elif position not in kept:
            kept.add(position)
            pending.extend(item for item in index.nodes[position].input if item)
    return [index.nodes[position] for position in sorted(kept)], list(held)


_QUANTISATION = 19  # the oldest opset whose quantisation ops are in the reference implementation


def _older_quantisation() -> list[Any]:
    from onnx.reference.op_run import OpRun

    def along(values: NDArray[Any], x: NDArray[Any], axis: int) -> NDArray[Any]:
        shape = [1] * x.ndim
        if values.size > 1:
            shape[axis] = values.size
        return values.reshape(shape)

    class DequantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **_: Any) -> tuple[Any]:
            steps = x.astype(np.int32) - (0 if zero is None else along(zero.astype(np.int32), x, axis))
            return ((steps * along(scale, x, axis)).astype(scale.dtype),)

    class QuantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **_: Any) -> tuple[Any]:
            zero = np.zeros((), np.uint8) if zero is None else zero
            limits = np.iinfo(zero.dtype)
            steps = np.rint(x / along(scale, x, axis)) + along(zero.astype(np.int32), x, axis)
            return (np.clip(steps, limits.min, limits.max).astype(zero.dtype),)

    return [DequantizeLinear, QuantizeLinear]


def _evaluate(index: GraphIndex, tensor: str, nodes: list[NodeProto], held: list[str]) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator  # takes a second, and few models need it

    types = {name: held_type(index, name) for name in held}
    if any(found is None for found in types.values()):
        raise UnsupportedError(f"the constant '{tensor}' is made of strings")
    inputs = [
        onnx.helper.make_tensor_value_info(n, found[1], found[0]) for n, found in types.items() if found
    ]
    output = onnx.helper.make_empty_tensor_value_info(tensor)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "constant", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", index.opset)],
        ir_version=index.model.ir_version,
    )
    feeds = {name: held_value(index, name) for name in held}
    try:
        own = _older_quantisation() if index.opset < _QUANTISATION else []
        (value,) = cast(list[Any], ReferenceEvaluator(model, new_ops=own).run([tensor], feeds))
    except Exception as error:  # whatever an operator's implementation raises
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"the constant '{tensor}' can't be computed ({reason}); fold it first, with onnxslim for one"
        ) from error
    return np.asarray(value)
