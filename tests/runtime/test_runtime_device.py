import logging

import pytest
import torch

from onnx_compnet.errors import ResourceError, UsageError
from onnx_compnet.runtime import device as devices
from onnx_compnet.runtime.device import (
    _host_memory,
    available_memory,
    peak_device_memory,
    peak_memory,
    select,
)

HAS_GPU = torch.cuda.is_available()
GIB = 2**30


def test_cpu():
    cpu = select("cpu")
    assert (cpu.name, cpu.kind, cpu.index, cpu.torch_device) == ("cpu", "cpu", 0, torch.device("cpu"))
    assert cpu.session_providers() == [("CPUExecutionProvider", {})]
    assert hash(cpu) == hash(select("cpu"))


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda 0", "mps"])
def test_unknown_names(name):
    with pytest.raises(UsageError, match="unknown device"):
        select(name)


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_strict(name):
    with pytest.raises(ResourceError, match=r"device cuda.* can't be used: torch"):
        select(name)


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without CUDA")
def test_auto_says_what_it_took_and_why(caplog):
    with caplog.at_level(logging.INFO, logger="onnx_compnet"):
        assert select("auto").kind == "cpu"
    assert "device: cpu (torch" in caplog.text


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ResourceError, match="built without CUDA"):
        select("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ResourceError, match="index 3 is out of range, there is 1"):
        select("cuda:3")
    monkeypatch.setattr(devices.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match="install onnxruntime-gpu"):
        select("cuda")


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without CUDA")
def test_provider_that_does_not_load_is_found_and_quiet(monkeypatch, capfd):
    if devices.CUDA_PROVIDER not in devices.onnxruntime.get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    devices._provider_missing.cache_clear()
    with pytest.raises(ResourceError, match="can't start its CUDAExecutionProvider"):
        select("cuda")
    assert select("auto").kind == "cpu"
    devices._provider_missing.cache_clear()
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs CUDA")
def test_cuda():
    cuda = select("cuda")
    assert (cuda.name, cuda.kind, cuda.index) == ("cuda:0", "cuda", 0)
    assert select("auto") == cuda
    assert available_memory(cuda) > 0
    assert peak_device_memory(cuda) is not None


def test_memory_of_this_machine():
    assert 0 < available_memory(select("cpu")) < 2**50
    assert 2**20 < peak_memory() < 2**42
    assert peak_device_memory(select("cpu")) is None


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_meminfo_bounds_memory(tmp_path):
    _write(tmp_path / "proc/meminfo", "MemTotal: 100 kB\nMemAvailable:    1048576 kB\n")
    assert _host_memory(tmp_path / "proc", tmp_path / "cgroup") == GIB


def test_cgroup_v2_limit_above_the_process(tmp_path):
    _write(tmp_path / "proc/meminfo", f"MemAvailable: {64 * 2**20} kB\n")
    _write(tmp_path / "proc/self/cgroup", "0::/pod/box\n")
    _write(tmp_path / "cgroup/pod/memory.max", f"{4 * GIB}\n")
    _write(tmp_path / "cgroup/pod/memory.current", f"{3 * GIB}\n")
    _write(tmp_path / "cgroup/pod/memory.stat", f"anon 5\ninactive_file {GIB}\n")
    _write(tmp_path / "cgroup/pod/box/memory.max", "max\n")
    assert _host_memory(tmp_path / "proc", tmp_path / "cgroup") == 2 * GIB


def test_cgroup_v1_limit(tmp_path):
    _write(tmp_path / "proc/meminfo", f"MemAvailable: {64 * 2**20} kB\n")
    _write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/box\n")
    _write(tmp_path / "cgroup/memory/box/memory.limit_in_bytes", f"{4 * GIB}\n")
    _write(tmp_path / "cgroup/memory/box/memory.usage_in_bytes", f"{GIB}\n")
    assert _host_memory(tmp_path / "proc", tmp_path / "cgroup") == 3 * GIB


def test_unknown_machine_has_some_memory(tmp_path):
    assert _host_memory(tmp_path, tmp_path) > 0
