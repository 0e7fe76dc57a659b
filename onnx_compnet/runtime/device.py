"""Where things run: ``auto | cpu | cuda[:i]`` → a torch device and onnxruntime providers, strictly."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime
import torch
from onnx import TensorProto, helper

from onnx_compnet.errors import ResourceError, UsageError

log = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"

Provider: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Device:
    """One place to compute on.

    ``name`` is "cpu" or "cuda:i"; ``providers`` are onnxruntime's, best first, each with its options as
    (key, value) pairs.
    """

    name: str
    torch_device: torch.device
    providers: tuple[Provider, ...]
    kind: Literal["cpu", "cuda"]
    index: int

    def session_providers(self) -> list[tuple[str, dict[str, str]]]:
        """The providers in the form that onnxruntime takes."""
        return [(name, dict(options)) for name, options in self.providers]


CPU = Device("cpu", torch.device("cpu"), ((CPU_PROVIDER, ()),), "cpu", 0)


def select(name: str | torch.device) -> Device:
    """The device called ``name``: "auto", "cpu", "cuda" (the first one) or "cuda:i".

    "auto" takes CUDA only where torch and onnxruntime can both use it, and logs what it took and why. "cuda"
    never falls back. Raises UsageError for any other string, ResourceError for a CUDA device that is absent.
    """
    name = str(name)
    if name == "cpu":
        return CPU
    if name == "auto":
        reason = _cuda_missing(0)
        if reason is None:
            log.info("device: cuda:0 (torch and onnxruntime can both use it)")
            return _cuda(0)
        log.info("device: cpu (%s)", reason)
        return CPU
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise UsageError(f"unknown device {name!r}: say auto, cpu, cuda or cuda:i (i counts from 0)")
    index = int(match[1] or 0)
    reason = _cuda_missing(index)
    if reason is not None:
        raise ResourceError(f"device {name} can't be used: {reason}; run with --device cpu, or auto")
    return _cuda(index)


def _cuda(index: int) -> Device:
    options = (
        ("device_id", str(index)),
        ("use_tf32", "0"),  # TF32's 10 bits would drown the errors that are measured here
        ("cudnn_conv_algo_search", "HEURISTIC"),  # EXHAUSTIVE picks by timing: not the same bytes twice
        ("arena_extend_strategy", "kSameAsRequested"),  # torch needs the rest of the device's memory
    )
    providers: tuple[Provider, ...] = ((CUDA_PROVIDER, options), (CPU_PROVIDER, ()))
    return Device(f"cuda:{index}", torch.device("cuda", index), providers, "cuda", index)


def _cuda_missing(index: int) -> str | None:
    """What keeps ``cuda:index`` from being used, in words; None when nothing does."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # an old driver is only a warning to torch
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        why = " ".join(str(caught[0].message).split()) if caught else "no NVIDIA GPU with a working driver"
        return f"torch finds no CUDA device ({why})"
    count = torch.cuda.device_count()
    if index >= count:
        return f"index {index} is out of range, there {'is' if count == 1 else 'are'} {count} CUDA device(s)"
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no {CUDA_PROVIDER}: install onnxruntime-gpu"
    return _provider_missing(index)


def preload() -> None:
    """Let onnxruntime load the CUDA libraries that torch's wheels carry (a no-op for old versions)."""
    load: Any = getattr(onnxruntime, "preload_dlls", None)
    if load is not None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # it prints its failures, and stdout is for results
            load()
        if said.getvalue():
            log.debug("onnxruntime.preload_dlls: %s", " ".join(said.getvalue().split()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep onnxruntime from saying on stderr that a provider doesn't load: callers raise that."""
    onnxruntime.set_default_logger_severity(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)


@functools.lru_cache(maxsize=16)
def _provider_missing(index: int) -> str | None:
    """Try the CUDA provider on a model of one node: a missing library shows only then."""
    preload()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    try:
        with quiet():
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=_cuda(index).session_providers()
            )
        if CUDA_PROVIDER in session.get_providers():
            return None
        why = "its CUDA or cuDNN libraries don't load"
    except Exception as error:  # onnxruntime raises bare subclasses of Exception
        why = " ".join(str(error).split())[:300]
    return (
        f"onnxruntime {onnxruntime.__version__} can't start its {CUDA_PROVIDER} ({why}); it needs the CUDA "
        f"version it was built for, torch here brings {torch.version.cuda}"
    )


def available_memory(device: Device) -> int:
    """Bytes that can still be allocated on ``device``: of the host, within its cgroup, or of the GPU."""
    if device.kind == "cuda":
        return int(torch.cuda.mem_get_info(device.torch_device)[0])
    return _host_memory(Path("/proc"), Path("/sys/fs/cgroup"))


def _host_memory(proc: Path, cgroup: Path) -> int:
    limits = [value for value in (_mem_available(proc), *_cgroup_room(proc, cgroup)) if value is not None]
    return max(0, min(limits)) if limits else 2**33


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _fields(text: str) -> dict[str, int]:
    """``key value`` lines (meminfo, memory.stat) as integers."""
    pairs = (line.replace(":", " ").split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) >= 2 and pair[1].isdigit()}


def _mem_available(proc: Path) -> int | None:
    kilobytes = _fields(_read(proc / "meminfo")).get("MemAvailable")
    return None if kilobytes is None else kilobytes * 1024


def _cgroup_room(proc: Path, root: Path) -> list[int]:
    """What each memory limit above this process leaves, page cache that can be dropped not counted."""
    rooms = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            base, limit, usage, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        here = base / group.strip("/")
        for folder in (here, *here.parents):
            if not folder.is_relative_to(base):
                break
            bound, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if bound.isdigit() and used.isdigit():  # "max" means none
                rooms.append(int(bound) - int(used) + _fields(_read(folder / "memory.stat")).get(cache, 0))
    return rooms


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes (host memory)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory(device: Device) -> int | None:
    """The most bytes that torch held on a CUDA device so far; None for the CPU (see peak_memory)."""
    if device.kind == "cpu":
        return None
    return int(torch.cuda.max_memory_allocated(device.torch_device))
