"""A run that was interrupted goes on to the same bits; a checkpoint of another run is refused."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import onnx_compnet as oc
from onnx_compnet.training.checkpoints import FILE
from onnx_compnet.training.loop import Trainer

OPTIONS = {
    "scale": 1 / 255, "epochs": 4, "batch_size": 16, "lr": 0.01, "augment": "crop,flip", "clip_norm": 1.0,
    "warmup": 0.2, "device": "cpu",
}  # fmt: skip


def interrupt_at(monkeypatch, count):
    step, calls = Trainer._step, []

    def interrupted(self, rows, epoch, number):
        calls.append((epoch, number))
        if len(calls) > count:
            raise KeyboardInterrupt
        return step(self, rows, epoch, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    return calls


def content(tuned):
    history = [replace(epoch, seconds=0.0) for epoch in tuned.history]
    return tuned.model.SerializeToString(deterministic=True), history


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("count", "every", "resumed"), [(15, 2, (3, 2)), (14, None, (3, 0)), (3, None, (1, 0))]
)
@pytest.mark.parametrize("length", [{"epochs": 4}, {"epochs": None, "max_steps": 17, "best_by": "last"}])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    model, train, val, tmp_path, monkeypatch, optimizer, count, every, resumed, length
):
    options = {**OPTIONS, "optimizer": optimizer, **length}
    whole = oc.finetune(model, train, val, **options)
    folder = {"checkpoint": tmp_path / "run", "checkpoint_every": every}
    with monkeypatch.context() as patch:
        interrupt_at(patch, count)
        with pytest.raises(KeyboardInterrupt):
            oc.finetune(model, train, val, **options, **folder)
    with monkeypatch.context() as patch:
        calls = interrupt_at(patch, 1000)
        again = oc.finetune(model, train, val, **options, **folder)
    assert calls[0] == resumed
    assert content(again) == content(whole)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
    with monkeypatch.context() as patch:
        calls = interrupt_at(patch, 1000)
        assert content(oc.finetune(model, train, val, **options, **folder)) == content(whole)
    assert not calls  # it was complete


def test_a_checkpoint_of_another_run_is_refused(model, train, val, tmp_path):
    options = {**OPTIONS, "epochs": 1, "checkpoint": tmp_path / "run"}
    oc.finetune(model, train, val, **options)
    with pytest.raises(oc.UsageError, match=r"another run.*lr 0\.01 there, 0\.02 here"):
        oc.finetune(model, train, val, **{**options, "lr": 0.02})
    with pytest.raises(oc.UsageError, match=r"another run.*data"):
        oc.finetune(model, {**train, "y": train["y"][::-1].copy()}, val, **options)


def test_a_damaged_checkpoint(model, train, val, tmp_path):
    options = {**OPTIONS, "epochs": 1, "checkpoint": tmp_path}
    oc.finetune(model, train, val, **options)
    for content in ((tmp_path / FILE).read_bytes()[:500], b"", b"no checkpoint"):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(oc.DataError, match="damaged"):
            oc.finetune(model, train, val, **options)


def test_no_room_for_a_checkpoint(model, train, val, tmp_path, monkeypatch):
    oc.finetune(model, train, val, **{**OPTIONS, "epochs": 1, "checkpoint": tmp_path / "other"})
    before = (tmp_path / "other" / FILE).read_bytes()
    fsync = os.fsync

    def full(descriptor):
        fsync(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(oc.ResourceError, match="no space is left"):
        oc.finetune(model, train, val, **OPTIONS, checkpoint=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "other" / FILE).read_bytes() == before


def test_what_a_killed_process_left_is_removed(model, train, val, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (run / f".{FILE}.{dead.pid}").write_bytes(b"half of it")
    (run / f".{FILE}.{os.getppid()}").write_bytes(b"of one that still writes")
    oc.finetune(model, train, val, checkpoint=run, **{**OPTIONS, "epochs": 1})
    assert {path.name for path in run.iterdir()} == {FILE, f".{FILE}.{os.getppid()}"}


def test_a_folder_that_can_not_be_one(model, train, val, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path(tmp_path / "absent" / "run")):
        with pytest.raises(oc.UsageError, match="checkpoint"):
            oc.finetune(model, train, val, **OPTIONS, checkpoint=folder)
