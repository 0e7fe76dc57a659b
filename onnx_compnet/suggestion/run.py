"""suggest(): samples → effective ranks → gradients through the bridge → bottlenecks → Suggestion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_compnet.bridge.module import OnnxModule, to_torch
from onnx_compnet.collect import computable, reader_groups, targets
from onnx_compnet.config import GrowOptions
from onnx_compnet.errors import DataError, ModelError, UnsupportedError, UsageError
from onnx_compnet.graph import model_io, prune
from onnx_compnet.graph.probes import with_probes
from onnx_compnet.graph.sites import Site, find_sites
from onnx_compnet.numerics.expressivity import LEAST_ROWS_PER_COLUMN, bottleneck, effective_rank
from onnx_compnet.numerics.moments import CovarianceAccumulator, MomentsAccumulator
from onnx_compnet.numerics.rows import channel_rows, row_chunks
from onnx_compnet.planning import kernel_at, neurons
from onnx_compnet.runtime.device import Device, available_memory, select
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.session import Session
from onnx_compnet.suggestion.options import SuggestOptions
from onnx_compnet.suggestion.result import SiteScore, Suggestion
from onnx_compnet.training.losses import Objective
from onnx_compnet.training.samples import Samples, read_samples

BATCH_SIZE = 64


def suggest(
    model: onnx.ModelProto | str | Path, data: Any, *, options: SuggestOptions | None = None, **changes: Any
) -> Suggestion:
    """Score every place where ``model`` can be grown.

    Without labels: how much of its width each tensor uses (effective rank). With labels: TINY's expressivity
    bottleneck, from gradients that flow through the model in torch. Nothing is grown, trained or written.

    Raises
    ------
    UnsupportedError
        The model has no place, or (with labels) an op that can't be converted to torch.
    UsageError, ModelError, DataError, ResourceError
        As in :mod:`onnx_compnet.errors`.
    """
    known = [field.name for field in fields(SuggestOptions)]
    for name in changes:
        if name not in known:
            raise UsageError(f"suggest has no option {name!r}; it has {', '.join(known)}")
    return _Run(model, data, replace(options or SuggestOptions(), **changes)).suggestion()


class _Run:
    def __init__(self, model: Any, data: Any, options: SuggestOptions) -> None:
        self.options = options
        self.model = model_io.as_model(model)
        self.sites = find_sites(self.model)
        if not self.sites:
            raise UnsupportedError(
                "nothing in this model can be grown; see `onnx-compnet sites` for the reasons"
            )
        self.device: Device = select(options.device)
        self.why_no_labels = ""
        self.probes: dict[str, str] = {}
        self.samples = self._samples(data)
        self.objective = self._objective() if self.samples.labels is not None else None
        self.positions: dict[str, float] = {}
        """of each captured tensor: its elements a sample"""
        self.shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        """of the captured tensors, by the first sample of the batch"""

    def suggestion(self) -> Suggestion:
        ranks = self._ranks()
        scores: dict[int, tuple[float | None, float | None, str]] = {}
        if self.objective is not None:
            module = self._module()
            for chunk in self._affordable():
                scores |= self._bottlenecks(module, chunk)
        found = []
        for place, site in enumerate(self.sites):
            psi, share, unscored = scores.get(place, (None, None, ""))
            Dn, parameters, flops = self._cost(site)
            found.append(SiteScore(site, ranks[place], psi, share, Dn, parameters, flops, unscored))
        if self.objective is None:
            found.sort(key=lambda score: -score.used)
        else:
            found.sort(key=lambda score: (score.bottleneck is None, -(score.bottleneck or 0)))
        return Suggestion(
            sites=tuple(found),
            loss=None if self.objective is None else self.objective.kind,
            samples=self.samples.n,
            data=self.samples.source.description,
            random_data=self.samples.source.is_random,
            device=self.device.name,
            warnings=self._warnings(),
        )

    # ------------------------------------------------------------ data

    def _samples(self, data: Any) -> Samples:
        options = self.options
        if data is None:
            raise UsageError(
                "suggest needs samples: --data FILE.npz (or a folder, FILE.py:function, random:N)"
            )
        read = DataOptions.of(
            scale=options.scale, mean=options.mean, std=options.std, batch_axis=options.batch_axis,
            shapes=options.shape, seed=options.seed,
        )  # fmt: skip
        inputs = model_io.inputs(self.model)
        is_random = isinstance(data, str) and data.partition(":")[0] == "random"
        labels = options.labels or (None if is_random else "y")
        if "y" in [spec.name for spec in inputs] and options.labels is None:
            labels = None
        try:
            samples = read_samples(data, inputs, read, labels)
        except DataError as error:
            if options.labels is not None or labels is None:
                raise
            self.why_no_labels = f" ({error})"
            samples = read_samples(data, inputs, read, None)
        if options.max_samples is not None and options.max_samples < samples.n:
            rng = np.random.default_rng(options.seed)
            samples = samples.part(np.sort(rng.permutation(samples.n)[: options.max_samples]))
        return samples

    def _batches(self) -> Iterator[np.ndarray[Any, Any]]:
        size = self.samples.fixed_batch or self.options.batch_size or BATCH_SIZE
        whole_batches = self.samples.n // size * size if self.samples.fixed_batch else self.samples.n
        for first in range(0, whole_batches, size):
            yield np.arange(first, min(first + size, whole_batches))

    def _objective(self) -> Objective:
        options = self.options
        outputs = [s.name for s in model_io.outputs(self.model) if s.dtype.startswith(("float", "bfloat"))]
        if options.output_name is not None and options.output_name not in outputs:
            raise UsageError(f"--output-name {options.output_name!r} is none of the float outputs: {outputs}")
        name = options.output_name or (outputs[0] if len(outputs) == 1 else None)
        if name is None:
            raise UsageError(f"the model's float outputs are {outputs}: say which counts, --output-name NAME")
        kind = options.loss
        if kind == "auto":
            kind = "cross-entropy" if self.samples.all_labels().dtype.kind in "iub" else "mse"
        made_by = {out: node.op_type for node in self.model.graph.node for out in node.output}
        objective = Objective(kind, (name,), {name: made_by.get(name, "")}, options.class_axis)
        session = Session(self.model, self.device)
        shape = session.run(self.samples.batch(next(self._batches()))[0])[name].shape
        label = f"the labels {self.samples.labels!r} of {self.samples.name}"
        objective.check_labels(self.samples.all_labels(), shape, label, self.samples.numbers)
        return objective

    # ------------------------------------------------------------ without labels

    def _ranks(self) -> list[float]:
        """The effective rank of each site's tensor, from one pass in onnxruntime."""
        wanted = dict.fromkeys(
            t for site in self.sites for t in (site.tensor, *(r.output for r in site.linear))
        )
        session = Session(prune.prefix(self.model, list(wanted)), self.device)
        sums = [CovarianceAccumulator(site.channels, self.device.torch_device) for site in self.sites]
        seen = 0
        for rows in self._batches():
            tensors = session.run(self.samples.batch(rows)[0])
            seen += len(rows)
            self.shapes[int(rows[0])] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                self.positions[name] = self.positions.get(name, 0.0) + tensor.numel()
            for site, covariance in zip(self.sites, sums, strict=True):
                covariance.update(channel_rows(computable(tensors[site.tensor]), site.channel_axis))
        self.positions = {name: count / seen for name, count in self.positions.items()}
        return [effective_rank(covariance.result()) for covariance in sums]

    # ------------------------------------------------------------ with labels

    def _module(self) -> OnnxModule:
        """The model with each site's tensor as an output, and a probe on each reader's output."""
        types = {reader.output: site.dtype for site in self.sites for reader in site.linear}
        fed = {spec.name for spec in model_io.inputs(self.model)}
        probed, self.probes = with_probes(self.model, {n: t for n, t in types.items() if n not in fed})
        tensors = dict.fromkeys(site.tensor for site in self.sites if site.tensor not in fed)
        return to_torch(prune.with_outputs(probed, list(tensors))).to(self.device.torch_device)

    def _affordable(self) -> Iterator[list[int]]:
        """The sites in groups whose moments fit into half of the memory; one too large by itself comes alone."""
        budget, used = available_memory(self.device) / 2, 0.0
        group: list[int] = []
        for place, site in enumerate(self.sites):
            needed = 3 * 8.0 * max(site.channels * reader.geometry.taps for reader in site.linear) ** 2
            if group and used + needed > budget:
                yield group
                group, used = [], 0.0
            group.append(place)
            used += needed
        yield group

    def _bottlenecks(
        self, module: OnnxModule, places: list[int]
    ) -> dict[int, tuple[float | None, float | None, str]]:
        assert self.objective is not None
        sums: dict[int, list[list[MomentsAccumulator]]] = {place: [] for place in places}
        silent: set[int] = set()
        for rows in self._batches():
            tensors, gradients = self._gradients(module, rows)
            for place in places:
                site = self.sites[place]
                if any(gradients.get(reader.output) is None for reader in site.linear):
                    silent.add(place)
                    continue
                self._add(site, sums[place], tensors, gradients)
        found: dict[int, tuple[float | None, float | None, str]] = {}
        for place in places:
            if place in silent:
                found[place] = (None, None, "no gradient of the loss reaches it")
                continue
            total = wanted = 0.0
            parts = [[part.result() for part in group] for group in sums[place]]
            measured = [bottleneck(group) for group in parts]
            if any(each is None for each in measured):
                worst = max((part for group in parts for part in group), key=lambda m: len(m.mean_u) / m.n)
                found[place] = (
                    None,
                    None,
                    f"{worst.n} rows are too few for {len(worst.mean_u)} columns: give "
                    f"{math.ceil(self.samples.n * LEAST_ROWS_PER_COLUMN * len(worst.mean_u) / worst.n)} samples",
                )
                continue
            for each in measured:
                assert each is not None
                total, wanted = total + each.unexpressed, wanted + each.wanted
            found[place] = (total / self.samples.n, total / wanted if wanted else 0.0, "")
        return found

    def _gradients(
        self, module: OnnxModule, rows: np.ndarray[Any, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """All tensors of one batch, and −∂L/∂ of the readers' outputs, each sample's loss by itself."""
        assert self.objective is not None
        feeds, labels = self.samples.batch(rows)
        ready = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        ready = {name: tensor.to(self.device.torch_device) for name, tensor in ready.items()}
        for tensor in ready.values():
            tensor.requires_grad_(tensor.is_floating_point())
        types = {reader.output: site.dtype for site in self.sites for reader in site.linear}
        probes = {
            name: torch.zeros(
                self.shapes[int(rows[0])][name],
                dtype=getattr(torch, types[name]),
                device=self.device.torch_device,
                requires_grad=True,
            )
            for name in self.probes
        }
        result = module(**ready, **{self.probes[name]: probe for name, probe in probes.items()})
        results = result if isinstance(result, tuple) else (result,)
        tensors = ready | dict(zip(module.output_names, results, strict=True))
        assert labels is not None
        loss, _ = self.objective(tensors, torch.from_numpy(labels).to(self.device.torch_device), None)
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"the loss is not finite on samples {self.samples.numbers[rows[0]]} to "
                f"{self.samples.numbers[rows[-1]]}: the model or the data can't be used"
            )
        read = probes | {name: tensor for name, tensor in ready.items() if tensor.requires_grad}
        gradients = torch.autograd.grad(loss, list(read.values()), allow_unused=True)
        found: dict[str, Tensor | None] = dict.fromkeys(read)
        found |= {name: -g for name, g in zip(read, gradients, strict=True) if g is not None}
        return {name: tensor.detach() for name, tensor in tensors.items()}, found

    @staticmethod
    def _add(
        site: Site,
        sums: list[list[MomentsAccumulator]],
        tensors: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
    ) -> None:
        """The moments of (u, v) of one batch, group by group."""
        wanted = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        A = computable(tensors[site.tensor])
        for number, group in enumerate(reader_groups(site)):
            parts = group.geometry.groups
            v = targets(site.linear, group, wanted)
            p, D2 = site.channels // parts * group.geometry.taps, v.shape[1] // parts
            if len(sums) <= number:
                sums.append([MomentsAccumulator(p, D2, A.device, A.dtype) for _ in range(parts)])
            first = 0
            for u in row_chunks(A, group.geometry):
                rows = v[first : first + len(u)]
                for part, accumulator in enumerate(sums[number]):
                    accumulator.update(u[:, part * p : (part + 1) * p], rows[:, part * D2 : (part + 1) * D2])
                first += len(u)

    # ------------------------------------------------------------ cost

    def _cost(self, site: Site) -> tuple[int, int, int]:
        """Neurons, parameters and FLOPs a sample of a layer of default width, before selection."""
        Dn = neurons(site, GrowOptions())
        taps = math.prod(kernel_at(site, self.options.kernel))
        here = self.positions[site.tensor] / site.channels
        parameters = Dn * (site.channels * taps + 1)
        flops = 2 * here * Dn * site.channels * taps
        for reader in site.linear:
            geometry = reader.geometry
            if site.mode == "block":
                parameters += site.channels * (Dn + 1)
                flops += 2 * here * Dn * site.channels
                continue
            wider = (Dn - site.channels) // geometry.groups * geometry.taps
            parameters += wider * reader.features
            flops += 2 * self.positions[reader.output] * wider
        return Dn, parameters, round(flops)

    def _warnings(self) -> tuple[str, ...]:
        found = []
        if self.objective is None:
            found.append(
                f"ranked without labels{self.why_no_labels}: the effective rank says how full a layer is, not what "
                "growing gains"
            )
        if self.samples.source.is_random:
            found.append("measured on random data: no figure here says anything about real inputs")
        return tuple(found)
