"""Writing a model so that the file is either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    StringStringEntryProto,
    TensorProto,
    numpy_helper,
)

from onnx_compnet.errors import CompnetError, OutputExistsError, ResourceError, UsageError

PROTOBUF_LIMIT = 2**31 - 2**20  # protobuf's 2 GiB, less room for what surrounds the graph
_EXTERNAL = 1024  # bytes; smaller tensors stay in the model's own file
_ALIGNMENT = 4096  # so that a runtime can map the file into memory


def save(model: ModelProto, path: str | Path, *, force: bool = False) -> None:
    """Write a model into a file beside its place, then rename that. The same model gives the same bytes.

    A model over 2 GiB has its large weights in ``<name>.data`` beside it. ``model`` is not changed.

    Raises:
        OutputExistsError: the file exists, and ``force`` is not set.
        UsageError: the folder does not exist, or the path is a folder.
        ResourceError: no space, no permission, or the system refuses for another reason.
    """
    path = Path(path)
    _check_target(path, force)
    if fits_a_message(model):
        data = model.SerializeToString(deterministic=True)
        _write(path, lambda stream: _write_all(stream, data), force)
        return
    beside = path.with_name(path.name + ".data")
    _check_target(beside, force)
    light, large = _externalised(model, beside.name)
    _write(beside, lambda stream: _write_tensors(stream, large), force)
    try:
        data = light.SerializeToString(deterministic=True)
        _write(path, lambda stream: _write_all(stream, data), force)
    except CompnetError:
        if not force:
            beside.unlink(missing_ok=True)
        raise


def _check_target(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"the folder '{path.parent}' for '{path.name}' does not exist; make it first")
    if path.is_dir():
        raise UsageError(f"'{path}' is a directory; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(
            f"'{path}' is a device or a pipe, which no model can replace; give the name of a file"
        )
    if path.exists() and not force:
        raise OutputExistsError(
            f"'{path}' exists; choose another name, or --force (force=True) to replace it"
        )


def _write(path: Path, fill: Callable[[BinaryIO], None], force: bool) -> None:
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(_mode(path))
        _check_target(path, force)  # someone may have written it meanwhile
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _resource_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be opened; the file itself is synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _resource_error(path: Path, error: OSError) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full, '{path}' was not written; free some space or write elsewhere"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(f"no permission to write '{path}'; choose a folder that you may write to")
    return ResourceError(f"'{path}' was not written ({error.strerror or error}); check the path and the disk")


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


# ---------------------------------------------------------------- more than 2 GiB


def fits_a_message(model: ModelProto) -> bool:
    """Whether protobuf can hold the model in one message."""
    try:
        return int(model.ByteSize()) < PROTOBUF_LIMIT
    except Exception:  # the EncodeError of a protobuf that counts by encoding, and can't beyond 2 GiB
        return False


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is held anywhere in the model: initialisers, attributes, bodies, functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for item in node.attribute:
        if item.type == AttributeProto.TENSOR:
            yield item.t
        yield from item.tensors
        if item.type == AttributeProto.GRAPH:
            yield from _graph_tensors(item.g)
        for body in item.graphs:
            yield from _graph_tensors(body)


def _externalised(model: ModelProto, location: str) -> tuple[ModelProto, list[tuple[int, TensorProto]]]:
    """The model without the bytes of its large initialisers, and these with their offsets in the file."""
    light = ModelProto()
    large: list[tuple[int, TensorProto]] = []
    offset = 0
    initializers: list[TensorProto] = []
    for tensor in model.graph.initializer:
        size = tensor.ByteSize()
        if size < _EXTERNAL or tensor.data_type == TensorProto.STRING:
            initializers.append(tensor)
            continue
        length = len(_raw(tensor))
        outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if tensor.doc_string:
            outside.doc_string = tensor.doc_string
        outside.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            outside.external_data.append(StringStringEntryProto(key=key, value=value))
        initializers.append(outside)
        large.append((offset, tensor))
        offset += -(-length // _ALIGNMENT) * _ALIGNMENT
    for target, source, skipped in ((light, model, "graph"), (light.graph, model.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name != skipped:
                _copy_field(target, field.name, value)
    light.graph.initializer.extend(initializers)
    return light, large


def _copy_field(target: ModelProto | GraphProto, name: str, value: object) -> None:
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    else:
        getattr(target, name).MergeFrom(value)


def _raw(tensor: TensorProto) -> bytes:
    return tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()


def _write_tensors(stream: BinaryIO, tensors: list[tuple[int, TensorProto]]) -> None:
    for offset, tensor in tensors:
        stream.seek(offset)
        stream.write(_raw(tensor))
