"""Several processes that train one model: each has a part of every batch, gradients are averaged over all of it.

``torchrun --standalone --nproc-per-node 2 -m onnx_compnet finetune …`` starts them; a process group that a caller
has set up is taken as it is. gloo on CPUs, NCCL on CUDA devices, one for each process of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from onnx_compnet.errors import ResourceError, UsageError


@dataclass(frozen=True)
class Group:
    """This process's place among ``world`` ones; ``device`` is where its tensors lie."""

    rank: int
    world: int
    device: torch.device

    def share(self, n: int) -> slice:
        """The part of a batch of n samples that is this process's (it may be empty)."""
        ends = np.linspace(0, n, self.world + 1).astype(int)
        return slice(int(ends[self.rank]), int(ends[self.rank + 1]))

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def average(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Make every gradient the sum over the processes of ``share`` times it; what none has stays None."""
        if self.world == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(has)
        used = [p for p, count in zip(parameters, has.tolist(), strict=True) if count]
        if not used:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad * share).flatten() for p in used]
        )
        dist.all_reduce(flat)
        for p, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's values (running statistics)."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of ``rows``."""
        return rows[self.share(len(rows))]


def world_size() -> int:
    """How many processes there are, or are to be, before any group is made."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(name: str) -> str:
    """The device called ``name`` for this process: where there are several, each has a CUDA device of its own."""
    if world_size() == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device {name}: with several processes say cuda, cpu or auto; each takes its own")
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def group(device: torch.device) -> Iterator[Group]:
    """The Group of this process, made from torchrun's environment where none is there. Raises ResourceError."""
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size(), device)
        return
    if world_size() == 1:
        yield Group(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the processes can't find each other ({error}): start them by torchrun"
        ) from error
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
