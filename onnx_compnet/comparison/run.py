"""compare(): the order of the steps.

For each seed: the parent, then each method at the same place, on the same samples, by the same seed; each trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import onnx

from onnx_compnet.baselines.scratch import scratch
from onnx_compnet.comparison.entries import PARENT, Entry, chosen, lender, needed
from onnx_compnet.comparison.folder import Folder
from onnx_compnet.comparison.result import MethodComparison, MethodRow, MethodRun, Training
from onnx_compnet.config import CONSTRUCTED, GrowOptions, whole
from onnx_compnet.cost import forward_flops
from onnx_compnet.errors import CompnetError, UnsupportedError, UsageError, VerificationError
from onnx_compnet.graph import model_io
from onnx_compnet.graph.sites import Site
from onnx_compnet.growth import Growth
from onnx_compnet.numerics.rows import output_channel_axis
from onnx_compnet.pipeline import grow
from onnx_compnet.planning import Job, prepare
from onnx_compnet.runtime.base import SampleSource
from onnx_compnet.runtime.batches import Batch
from onnx_compnet.runtime.split import split
from onnx_compnet.training.finetune import finetune
from onnx_compnet.training.options import FinetuneOptions
from onnx_compnet.verification import Target, Verdict
from onnx_compnet.verification import compare as measure

SEEDS_WITH_TRAINING = 3
_GROWING = {item.name for item in fields(GrowOptions)}
_TRAINING = {item.name for item in fields(FinetuneOptions)}
_NOT_HERE = {
    "method": "methods=[…] (--methods)",
    "seed": "seeds (--seeds)",
    "max_rel_error": "the figures of the table",
    "min_agreement": "the figures of the table",
    "teacher": "labels",
    "parent": "the row of the parent, which is always there",
    "checkpoint": "output (-o)",
    "checkpoint_every": "output (-o)",
}


def compare(
    model: onnx.ModelProto | str | Path,
    after: str | Site,
    data: Any,
    val: Any = None,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    epochs: int | None = None,
    output: str | Path | None = None,
    force: bool = False,
    **changes: Any,
) -> MethodComparison:
    """Run every method at one site, on the same samples.

    Parameters
    ----------
    model, after, data
        As :func:`onnx_compnet.grow` takes them; ``after`` is one place.
    methods
        The rows (see ``comparison.entries``); all by default. The parent is always the first one.
    seeds
        How many (0, 1, 2 …) or which ones. A seed is that of the split, of the candidates, of the fresh weights and
        of training. One by default, three with ``epochs``.
    epochs, val
        With ``epochs`` every row is trained so long on ``data`` with its labels, by :func:`onnx_compnet.finetune`,
        and measured on ``val``, or on a share of the data.
    output, force
        A folder for the children: ROW.onnx, ROW-seedN.onnx for several seeds, with ``-tuned`` behind it after
        training.
    **changes
        The options of ``grow`` and of ``finetune`` by name; those that both have are given to both.

    A method that fails is a row with the reason.

    Raises
    ------
    UnsupportedError
        Every method failed; gives the reasons. (Where all errors are of one class, it is of that class.)
    UsageError, UnsupportedError, ModelError, DataError, ResourceError
        As ``grow`` and ``finetune``: what is wrong with the arguments, the model, the site or the samples.
    """
    entries = chosen(methods)
    which = counted(seeds, epochs)
    growing, training = _options(changes, epochs)
    batch_norm = bool(changes.get("batch_norm"))
    make = needed(entries, growing)
    folder = Folder(
        output, force=force, names=[e.name for e in entries], seeds=which, used=(model, data, val)
    )
    parent = model_io.as_model(model)
    job = prepare(model, after, data, growing.changed({"seed": which[0]}))
    if len(job.sites) != 1:
        raise UsageError(f"compare works at one place, and --after names {len(job.sites)}; name one of them")
    shown, lending = {entry.name for entry in entries}, {lender(entry, growing) for entry in entries}
    bench = _Bench(model, parent, after, data, val, growing, training, batch_norm, folder, shown, lending)
    done = [bench.run(seed, make) for seed in which]
    rows = tuple(
        MethodRow(
            name=entry.name,
            method=entry.method,
            runs=tuple(each.runs[entry.name] for each in done if entry.name in each.runs),
            failures={each.seed: str(each.errors[entry.name]) for each in done if entry.name in each.errors},
        )
        for entry in entries
    )
    _refuse_if_all_failed(rows, done)
    return MethodComparison(
        rows=rows,
        site=job.sites[0],
        seeds=which,
        epochs=epochs,
        data=job.data,
        random_data=job.random_data,
        samples_fitted=max(each.fitted for each in done),
        samples_held_out=max(each.held_out for each in done),
        device=job.device.name,
        parent_sha256=job.parent_sha256,
        options={name: value for name, value in changes.items() if name != "progress" and value is not None},
    )


def counted(seeds: int | Sequence[int] | None, epochs: int | None, first: int = 0) -> tuple[int, ...]:
    """The seeds: ``first`` and those after it where a number is given, or those that are given. Raises UsageError."""
    if seeds is None or isinstance(seeds, int):
        default = 1 if epochs is None else SEEDS_WITH_TRAINING
        count = whole("seeds", default if seeds is None else seeds, 1) or 0
        start = whole("seed", first, 0) or 0
        return tuple(range(start, start + count))
    found = tuple(whole("seeds", seed, 0) or 0 for seed in seeds)
    if not found or len(set(found)) < len(found):
        raise UsageError("--seeds must be a number of seeds, or different ones: 3, or 0,1,2")
    return found


def _options(changes: dict[str, Any], epochs: int | None) -> tuple[GrowOptions, FinetuneOptions | None]:
    for name in changes:
        if name in _NOT_HERE:
            raise UsageError(f"compare has no option {name!r}; it has {_NOT_HERE[name]} instead")
        if name not in _GROWING | _TRAINING:
            raise UsageError(f"neither grow nor finetune has an option {name!r}")
        if epochs is None and name not in _GROWING and changes[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for training: say --epochs N, too")
    own = _GROWING - {"batch_norm"}  # net2deeper's alone
    growing = GrowOptions().changed({n: v for n, v in changes.items() if n in own and v is not None})
    if epochs is None:
        return growing, None
    found = {n: v for n, v in changes.items() if n in _TRAINING and v is not None}
    return growing, FinetuneOptions().changed({**found, "epochs": epochs})


class _NoWidthError(UnsupportedError):
    """The row whose width another one takes has failed."""


def _refuse_if_all_failed(rows: Sequence[MethodRow], done: Sequence[_Done]) -> None:
    if any(row.runs for row in rows if row.name != PARENT):
        return
    errors = {name: error for each in reversed(done) for name, error in each.errors.items()}
    own = {name: error for name, error in errors.items() if not isinstance(error, _NoWidthError)}
    reasons, kinds = {str(error) for error in own.values()}, {type(error) for error in own.values()}
    if len(reasons) == 1:
        raise next(iter(own.values()))
    kind = kinds.pop() if len(kinds) == 1 else UnsupportedError
    raise kind("no method can grow there. " + "; ".join(f"{name}: {error}" for name, error in own.items()))


@dataclass
class _Done:
    """What came of one seed."""

    seed: int
    runs: dict[str, MethodRun] = field(default_factory=dict)
    errors: dict[str, CompnetError] = field(default_factory=dict)
    lenders: dict[str, Growth] = field(default_factory=dict)
    """those whose width or architecture other rows take"""
    candidates: int | None = None
    """how many the first method had"""
    fitted: int = 0
    held_out: int = 0
    """samples, as far as a growth counted them"""


@dataclass(frozen=True)
class _Bench:
    """Everything that all rows have in common.

    ``shown`` are the rows that are wanted; those that are ``lending`` a width or an architecture are made, too.
    """

    model: Any
    parent: onnx.ModelProto
    after: str | Site
    data: Any
    val: Any
    growing: GrowOptions
    training: FinetuneOptions | None
    batch_norm: bool
    folder: Folder
    shown: set[str]
    lending: set[str | None]

    def run(self, seed: int, entries: Sequence[Entry]) -> _Done:
        """Make all rows with one seed."""
        done = _Done(seed)
        job = prepare(self.model, self.after, self.data, self.growing.changed({"seed": seed}))
        sample = _one_sample(job, self.growing, seed)
        for entry in entries:
            try:
                child, run = self._child(entry, job, sample, done)
            except CompnetError as error:
                if entry.name == PARENT:
                    raise
                done.errors[entry.name] = error
                continue
            if entry.name not in self.shown:
                continue
            kept = None if entry.name == PARENT else self.folder.save(child, entry.name, seed)
            done.runs[entry.name] = run = replace(run, path=kept)
            if self.training is not None:
                self._train(entry, child, run, done)
        return done

    def _child(self, entry: Entry, job: Job, sample: Batch, done: _Done) -> tuple[onnx.ModelProto, MethodRun]:
        def counted(model: onnx.ModelProto, **figures: Any) -> tuple[onnx.ModelProto, MethodRun]:
            flops = forward_flops(model, sample.feeds, job.device) // sample.size
            return model, MethodRun(
                done.seed, parameters=model_io.parameter_count(model), flops=flops, **figures
            )

        if entry.name == PARENT:
            return counted(self.parent, width=None, candidates=None)
        if entry.method is None:
            start = time.perf_counter()
            lender = _lender(entry, done)
            child = scratch(lender.model, seed=done.seed)
            seconds = time.perf_counter() - start
            verdict = _measured(job, child, lender)
            site_error = max(found.rel_error for found in verdict.targets.values())
            return counted(
                child, width=len(lender.kept), candidates=None, seconds=seconds, site_error=site_error,
                **_worst(verdict),
            )  # fmt: skip
        growth = grow(self.model, self.after, self.data, options=self._grow_options(entry, done))
        done.candidates = done.candidates or growth.candidates
        done.fitted = max(done.fitted, growth.samples_fitted)
        done.held_out = max(done.held_out, growth.samples_held_out)
        if entry.name in self.lending:
            done.lenders[entry.name] = growth
        return counted(
            growth.model, width=len(growth.kept), candidates=growth.candidates, site_error=growth.site_error,
            seconds=sum(growth.seconds.values()), warnings=growth.warnings, **_worst(growth.verdict),
        )  # fmt: skip

    def _grow_options(self, entry: Entry, done: _Done) -> GrowOptions:
        changes: dict[str, Any] = {"method": entry.method, "seed": done.seed}
        if entry.method in CONSTRUCTED:
            changes |= {"max_error": None, "batch_norm": self.batch_norm and entry.method == "net2deeper"}
        if entry.width in ("all", "none"):
            changes["keep"] = None
        elif lender(entry, self.growing) is not None:
            changes |= {"keep": len(_lender(entry, done).kept), "max_error": None}
        if entry.width == "none":
            changes["candidates"] = None
        elif self.growing.candidates is None:  # as many as the first one had
            changes["candidates"] = done.candidates
        return self.growing.changed(changes)

    def _train(self, entry: Entry, child: onnx.ModelProto, run: MethodRun, done: _Done) -> None:
        assert self.training is not None
        options = self.training.changed({"seed": done.seed})
        try:
            tuned = finetune(child, self.data, self.val, options=options)
        except VerificationError as error:  # it diverged
            done.errors[entry.name] = type(error)(f"training: {error}")
            return
        except CompnetError as error:
            if entry.name == PARENT:  # the labels, the options or the ops: no row could be trained
                raise
            done.errors[entry.name] = type(error)(f"training: {error}")
            return
        path = self.folder.save(tuned.model, entry.name, done.seed, tuned=True)
        training = Training(
            before=tuned.scores["child"].accuracy,
            accuracy=tuned.accuracy,
            loss=tuned.scores["tuned"].loss,
            best_epoch=tuned.best_epoch,
            samples=tuned.samples,
            val_samples=tuned.scores["tuned"].samples,
            data=tuned.data,
            val=tuned.val,
            loss_kind=tuned.loss,
            seconds=sum(tuned.seconds.values()),
            warnings=tuned.warnings,
            path=path,
        )
        done.runs[entry.name] = replace(run, training=training)


def _lender(entry: Entry, done: _Done) -> Growth:
    """The growth whose width or architecture a row takes."""
    found = done.lenders.get(entry.width)
    if found is None:
        raise _NoWidthError(
            f"it takes its width from {entry.width}, which failed: {done.errors[entry.width]}"
        )
    return found


def _one_sample(job: Job, options: GrowOptions, seed: int) -> Batch:
    """The first held-out sample alone (a whole batch where the model fixes its size)."""
    fixed = isinstance(job.source, SampleSource) and job.source.fixed_batch is not None
    parts = split(
        job.source,
        holdout=options.holdout,
        held_out_source=None if job.held_out_source is job.source else job.held_out_source,
        seed=seed,
        max_samples=options.max_samples,
        batch_size=None if fixed else 1,
    )
    return next(iter(parts.held_out))


def _measured(job: Job, child: onnx.ModelProto, like: Growth) -> Verdict:
    """How far a child with the architecture of ``like`` is from the parent."""
    targets = [
        Target(parent, name, output_channel_axis(reader.geometry))
        for reader, (parent, name) in zip(like.site.linear, like.targets, strict=True)
    ]
    return measure(job.parent, child, job.split.held_out, job.device, targets=targets)


def _worst(verdict: Verdict) -> dict[str, float | None]:
    """The largest relative error and the smallest agreement of a model's outputs."""
    found = verdict.outputs.values()
    agreements = [each.agreement for each in found if each.agreement is not None]
    return {
        "rel_error": max((each.rel_error for each in found), default=None),
        "agreement": min(agreements, default=None),
    }
