"""Reading, checking and describing models; see ``model_files`` for how they are written."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from onnx_compnet.errors import ModelError, UsageError, VerificationError
from onnx_compnet.graph.index import GraphIndex, is_op, nodes_within, opset, type_shape
from onnx_compnet.graph.inference import without_large_weights
from onnx_compnet.graph.model_files import fits_a_message, save, tensors_of
from onnx_compnet.layers import TensorSpec

__all__ = ["as_model", "check", "inputs", "load", "opset", "outputs", "parameter_count", "save", "sha256"]

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- reading


def load(path: str | Path) -> ModelProto:
    """Read a model with its external data.

    Raises:
        ModelError: the file is missing, not a model, truncated, empty or refused by the ONNX checker, or its
            external data is missing.
    """
    path = Path(path)
    model = _parse(path, _bytes_of(path))
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"'{path}' holds no graph, or one without nodes; export the model again")
    if not model.graph.output:
        raise ModelError(f"the graph in '{path}' has no outputs; export the model again")
    _load_external_data(model, path)
    try:
        _basic_check(model)
    except Exception as error:
        raise ModelError(
            f"the ONNX checker refuses '{path}': {_first_line(error)}; export the model again"
        ) from error
    return model


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"'{path}' is a directory; give the .onnx file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"there is no file '{path}'; check the path") from None
    except OSError as error:
        raise ModelError(
            f"'{path}' can't be read ({error.strerror}); check the path and its permissions"
        ) from error
    if not data:
        raise ModelError(f"'{path}' is empty; copy or export the model again")
    return data


def _parse(path: Path, data: bytes) -> ModelProto:
    try:
        model = ModelProto()
        model.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, whose home has moved between its versions
        what = "is truncated or is no ONNX model"
        if _looks_like_text(data):
            what = "is a text file, not an ONNX model"
            if data.startswith(b"version https://git-lfs"):
                what = "is a Git LFS pointer, not the model itself (git lfs pull fetches it)"
        raise ModelError(f"'{path}' {what}; copy or export the model again") from None
    if not model.ir_version and not model.opset_import:
        raise ModelError(
            f"'{path}' is no ONNX model (it names no IR version); copy or export the model again"
        )
    return model


def _looks_like_text(data: bytes) -> bool:
    head = data[:1024]
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)


def _load_external_data(model: ModelProto, path: Path) -> None:
    for tensor in tensors_of(model):
        if not uses_external_data(tensor):
            continue
        where = next((item.value for item in tensor.external_data if item.key == "location"), "")
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:
            raise ModelError(
                f"the weight '{tensor.name}' of '{path}' can't be read from its external file '{where}' "
                f"({_first_line(error)}); keep that file beside the model"
            ) from error
        expected = math.ceil(math.prod(tensor.dims) * _bits(tensor.data_type) / 8)
        if len(tensor.raw_data) != expected:
            raise ModelError(
                f"the external file '{where}' of '{path}' is truncated: the weight '{tensor.name}' needs "
                f"{expected} bytes, {len(tensor.raw_data)} are there; copy the file again"
            )
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _bits(elem_type: int) -> int:
    name = TensorProto.DataType.Name(elem_type)
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize


# ---------------------------------------------------------------- checking


def as_model(model: str | Path | ModelProto) -> ModelProto:
    """The model itself, or the one in that file.

    Raises:
        ModelError: see ``load``.
        UsageError: it is neither.
    """
    if isinstance(model, ModelProto):
        return model
    if not isinstance(model, str | os.PathLike):
        raise UsageError(f"a model is a path or an onnx.ModelProto, not {type(model).__name__}")
    return load(model)


def check(model: ModelProto, parent: ModelProto | None = None) -> None:
    """The ONNX checker, and strict shape and type inference. Ops of unknown domains are passed over.

    Where ``parent`` itself fails strict inference, the model can't be held to it: the checker alone counts.

    Raises:
        VerificationError: with the reason.
    """
    try:
        _basic_check(model)
    except Exception as error:
        raise VerificationError(f"the ONNX checker refuses the model: {_first_line(error)}") from error
    reason = _strict(model)
    if reason is None:
        return
    if parent is not None and _strict(parent) is not None:
        log.warning("shapes were not checked: strict inference refuses the parent model, too (%s)", reason)
        return
    raise VerificationError(f"the shapes or types of the model do not fit: {reason}")


def _basic_check(model: ModelProto) -> None:
    onnx.checker.check_model(model if fits_a_message(model) else without_large_weights(model))


def _strict(model: ModelProto) -> str | None:
    """Why strict inference refuses the model, or None."""
    light = without_large_weights(model)
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


# ---------------------------------------------------------------- describing


def inputs(model: ModelProto) -> list[TensorSpec]:
    """The model's inputs; initialisers, which older IR versions list among them, are none."""
    names = GraphIndex.of(model).inputs
    return [_spec(item) for item in model.graph.input if item.name in names]


def outputs(model: ModelProto) -> list[TensorSpec]:
    """The model's outputs."""
    return [_spec(item) for item in model.graph.output]


def _spec(item: ValueInfoProto) -> TensorSpec:
    dtype = ""
    if item.type.HasField("tensor_type"):
        elem_type = item.type.tensor_type.elem_type
        if elem_type not in (TensorProto.UNDEFINED, TensorProto.STRING):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
    return TensorSpec(item.name, dtype, type_shape(item.type))


_FLOATING = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))


def parameter_count(model: ModelProto) -> int:
    """Elements in floating-point initialisers and Constant nodes (scalar Constants are no parameters)."""
    count = sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in _FLOATING)
    for node in nodes_within(model.graph):
        if not is_op(node, "Constant"):
            continue
        for item in node.attribute:
            size = math.prod(item.t.dims) if item.name == "value" else len(item.floats)
            if size > 1 and (item.name == "value_floats" or item.t.data_type in _FLOATING):
                count += size
    return int(count)


def sha256(model: str | Path | ModelProto) -> str:
    """The SHA-256 of a file's bytes (without external data), or of a model's deterministic serialisation."""
    digest = hashlib.sha256()
    if isinstance(model, ModelProto):
        if fits_a_message(model):
            digest.update(model.SerializeToString(deterministic=True))
        else:
            digest.update(without_large_weights(model).SerializeToString(deterministic=True))
            for tensor in model.graph.initializer:
                digest.update(tensor.SerializeToString(deterministic=True))
        return digest.hexdigest()
    try:
        with Path(model).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"'{model}' can't be read ({error.strerror}); check the path") from error
    return digest.hexdigest()
