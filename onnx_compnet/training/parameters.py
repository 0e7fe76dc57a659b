"""Which parameters learn, and how fast: those of new layers by themselves, frozen ones not at all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx
import torch
from torch import nn

from onnx_compnet.errors import NameNotFoundError, UsageError
from onnx_compnet.graph import provenance
from onnx_compnet.training.options import FinetuneOptions

_PREFIX = "compnet/"


@dataclass(frozen=True)
class Trained:
    """``old`` and ``new``: the names of the parameters that learn; ``frozen``: of those that do not."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]


def new_names(model: onnx.ModelProto, names: Sequence[str]) -> set[str]:
    """Those of ``names`` that growing made or solved anew: "compnet/…", and what replaced readers read."""
    makers = {output: node for node in model.graph.node for output in node.output}
    solved: set[str] = set()
    for growth in provenance.read(model):
        for entry in growth.get("sites", []):
            for target in entry.get("targets", []) if entry.get("mode") == "replace" else []:
                solved |= _weights_of(str(target[-1]), makers)
    return {name for name in names if name.startswith(_PREFIX) or name in solved}


def _weights_of(output: str, makers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """What the node that makes ``output`` reads; where it adds a bias, also what the product before it reads."""
    node = makers.get(output)
    if node is None:
        return set()
    read = set(node.input)
    if node.op_type == "Add":
        read |= {name for each in node.input if each in makers for name in makers[each].input}
    return read


def choose(names: Sequence[str], new: set[str], freeze: Sequence[str]) -> Trained:
    """Sort the parameters' names.

    Raises NameNotFoundError for a pattern that matches none of them, UsageError where none is left.
    """
    if not names:
        raise UsageError("the model has no float weights: there is nothing to train")
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*"), names, n=5, cutoff=0.0)
            raise NameNotFoundError(
                f"--freeze {pattern!r} matches no weight; the nearest are {', '.join(near)}", near
            )
    frozen = tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in freeze))
    left = [name for name in names if name not in set(frozen)]
    if not left:
        raise UsageError(f"--freeze leaves nothing to train: all {len(names)} weights are frozen")
    return Trained(
        tuple(name for name in left if name not in new), tuple(name for name in left if name in new), frozen
    )


def optimiser(module: nn.Module, trained: Trained, options: FinetuneOptions) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over two groups, old and new; each keeps its peak rate as ``peak``."""
    parameters = dict(module.named_parameters())
    for name in trained.frozen:
        parameters[name].requires_grad_(False)
    groups = [
        {"params": [parameters[name] for name in names], "lr": lr, "peak": lr}
        for names, lr in ((trained.old, options.lr), (trained.new, options.lr_new or options.lr))
        if names
    ]
    decay = options.weight_decay or 0.0
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, weight_decay=decay)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group learns at its peak rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
