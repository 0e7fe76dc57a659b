"""An onnxruntime session whose outputs are torch tensors on the session's device."""

from __future__ import annotations

import errno
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch

from onnx_compnet.errors import DataError, ModelError, ResourceError, UnsupportedError
from onnx_compnet.runtime.device import CUDA_PROVIDER, Device, preload, quiet

log = logging.getLogger(__name__)

Feeds: TypeAlias = Mapping[str, np.ndarray[Any, Any]]

_DISABLED = ["GemmTransposeFusion"]  # drops a Transpose that a Gemm reads even where it makes an output
_PROTOBUF_LIMIT = 2**31 - 1  # bytes; a larger model can't be one message
_EXTERNAL_FROM = 1024  # bytes; smaller initialisers (shapes, scalars) stay in the message
_OUT_OF_MEMORY = ("failed to allocate", "bad_alloc", "bad allocation", "out of memory", "cuda failure 2:")
_CUDA_BROKEN = ("cuda failure", "cudnn failure", "cublas failure", "cudnn_status", "cublas_status")


class Session:
    """A model made ready to run on ``device``; the model is read, never changed.

    ``threads`` is the number of CPU threads within an operator (default: torch's). ``providers`` are the
    onnxruntime providers that really run, ``inputs`` and ``outputs`` the names of the model's.

    Raises ModelError for a model that onnxruntime refuses (with its reason), ResourceError where the device,
    memory or (models above 2 GB) disk space is missing.
    """

    def __init__(self, model: onnx.ModelProto, device: Device, threads: int | None = None) -> None:
        self.device = device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, once
        # An explicit count also keeps onnxruntime from pinning threads to cores outside our cgroup.
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch works in between
        if device.kind == "cuda":
            preload()
        with quiet():
            self._session = _create(model, options, device)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if device.kind == "cuda" and CUDA_PROVIDER not in self.providers:
            raise ResourceError(
                f"onnxruntime runs on {', '.join(self.providers)} and not on {device.name}: its CUDA or "
                "cuDNN libraries don't load; run with --device cpu, or repair them"
            )
        self._input_types = {value.name: str(value.type) for value in self._session.get_inputs()}
        self._output_types = {value.name: str(value.type) for value in self._session.get_outputs()}
        self.inputs: tuple[str, ...] = tuple(self._input_types)
        self.outputs: tuple[str, ...] = tuple(self._output_types)
        self._bindable = all(t.startswith("tensor(") for t in self._output_types.values()) and all(
            t.startswith("tensor(") and t != "tensor(string)" for t in self._input_types.values()
        )

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Run the model once; the results by output name, in the model's order.

        Numeric and boolean outputs are torch tensors on the device that own (or keep alive) their memory:
        neither a later run nor the end of the session changes them. String tensors are numpy object arrays,
        sequences and maps the Python objects that onnxruntime makes of them. ``feeds`` may hold more than
        the model takes.

        Raises DataError for a missing feed and for data that the model fails on (with onnxruntime's reason),
        ResourceError when memory runs out.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise DataError(
                f"the model's input {missing[0]!r} is missing from the data: it has {sorted(feeds)}"
            )
        # np.ascontiguousarray would give scalars an axis
        ready = {name: np.asarray(feeds[name], order="C") for name in self.inputs}
        try:
            return self._run_bound(ready) if self._bindable else self._run_plain(ready)
        except (DataError, UnsupportedError):
            raise
        except Exception as error:  # onnxruntime raises RuntimeError and bare subclasses of Exception
            _refuse_run(error)

    def _run_bound(self, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        cuda = self.device.kind == "cuda"
        if cuda:
            # onnxruntime may reuse memory of tensors that were dropped while torch's kernels still read them.
            torch.cuda.current_stream(self.device.torch_device).synchronize()
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, kind in self._output_types.items():
            if cuda and kind != "tensor(string)":
                binding.bind_output(name, "cuda", self.device.index)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        values = binding.get_outputs()
        return {name: self._result(name, value) for name, value in zip(self.outputs, values, strict=True)}

    def _result(self, name: str, value: Any) -> Any:
        kind = self._output_types[name]
        if kind == "tensor(string)":
            return value.numpy()
        try:
            tensor = torch.utils.dlpack.from_dlpack(value._get_c_value().to_dlpack())
        except (RuntimeError, AttributeError, BufferError):
            return self._from_numpy(name, value.numpy())
        if kind == "tensor(bool)" and tensor.dtype != torch.bool:
            tensor = tensor.view(torch.bool)  # older DLPack has no boolean
        # An input that is also an output is not copied by onnxruntime: its memory is the caller's.
        return tensor.clone() if name in self._input_types else tensor

    def _run_plain(self, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        strings = {name for name, kind in self._input_types.items() if kind == "tensor(string)"}
        typed = {name: a.astype(object) if name in strings else a for name, a in feeds.items()}
        values = self._session.run(None, typed)
        return {
            name: self._from_numpy(name, value) if isinstance(value, np.ndarray) else value
            for name, value in zip(self.outputs, values, strict=True)
        }

    def _from_numpy(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        if self._output_types[name] == "tensor(string)":
            return array
        if array.dtype.kind not in "biuf" or "float8" in self._output_types[name]:
            raise UnsupportedError(
                f"output {name!r} has the type {self._output_types[name]}, unknown to torch"
            )
        return torch.from_numpy(np.array(array)).to(self.device.torch_device)


def require_runnable(layer: onnx.ModelProto, dtype: str, device: Device) -> None:
    """Raise UnsupportedError where onnxruntime can't run ``layer``, a small model of that dtype, on ``device``.

    A provider has kernels for some dtypes of an operator: none for a float64 Conv on the CPU, for one.
    """
    try:
        Session(layer, device)
    except ModelError as error:
        named = re.search(r"implementation for (\w+)\(|of operator \((\w+)\)", str(error))
        if named is None:
            raise
        op = named[1] or named[2]
        advice = [] if op in ("Conv", "Gemm", "MatMul") else ["take another activation"]
        advice += [] if dtype == "float32" else ["grow the model in float32 and convert the child"]
        raise UnsupportedError(
            f"onnxruntime's {device.kind.upper()} provider can't run {op} in {dtype}; {', or '.join(advice)}"
        ) from error


def _reason(error: BaseException) -> str:
    """onnxruntime's words in one line, without its error codes and source positions."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    text = text.removeprefix("Error in execution: ")
    return text if len(text) <= 500 else text[:497] + "..."


def _refuse_run(error: Exception) -> NoReturn:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        raise ResourceError(f"out of memory in onnxruntime: lower --batch-size ({_reason(error)})") from error
    if any(sign in text for sign in _CUDA_BROKEN):
        raise ResourceError(f"CUDA failed in onnxruntime: {_reason(error)}") from error
    raise DataError(f"onnxruntime can't run the model on this data: {_reason(error)}") from error


def _create(model: onnx.ModelProto, options: Any, device: Device) -> Any:
    providers = device.session_providers()
    try:
        if _size(model) < _PROTOBUF_LIMIT:
            content = model.SerializeToString()
            return onnxruntime.InferenceSession(
                content, options, providers=providers, disabled_optimizers=_DISABLED
            )
        with tempfile.TemporaryDirectory(prefix="onnx_compnet_") as folder:
            path = _write_external(model, Path(folder))
            return onnxruntime.InferenceSession(
                str(path), options, providers=providers, disabled_optimizers=_DISABLED
            )
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ResourceError(
            f"a model above 2 GB passes through {tempfile.gettempdir()}, and {what}: set TMPDIR to a larger "
            "place"
        ) from error
    except Exception as error:  # onnxruntime raises bare subclasses of Exception
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
            raise ResourceError(
                f"out of memory while onnxruntime loads the model ({_reason(error)})"
            ) from error
        if any(sign in text for sign in _CUDA_BROKEN):
            raise ResourceError(f"CUDA failed while the model was loaded: {_reason(error)}") from error
        raise ModelError(f"onnxruntime refuses the model: {_reason(error)}") from error


def _size(model: onnx.ModelProto) -> int:
    """The bytes of the message, or at least the limit where protobuf can't count that far."""
    try:
        return int(model.ByteSize())
    except Exception:  # an EncodeError of whichever protobuf implementation is in use
        return _PROTOBUF_LIMIT


def _write_external(model: onnx.ModelProto, folder: Path) -> Path:
    """Write ``model`` with its large initialisers beside it, without copying or changing it as a whole."""
    small = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(small, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(small.graph, field.name, value)
    with (folder / "weights").open("wb") as weights:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < _EXTERNAL_FROM:
                small.graph.initializer.append(tensor)
                continue
            outside = small.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            outside.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "weights", "offset": weights.tell(), "length": len(tensor.raw_data)}
            for key, entry in place.items():
                outside.external_data.add(key=key, value=str(entry))
            weights.write(tensor.raw_data)
    path = folder / "model.onnx"
    path.write_bytes(small.SerializeToString())
    return path


def _copy_field(target: Any, name: str, value: Any) -> None:
    place = getattr(target, name)
    if isinstance(value, (str, int, bytes, float)):
        setattr(target, name, value)
    elif isinstance(value, onnx.GraphProto):
        place.CopyFrom(value)
    else:
        place.extend(value)
