"""onnx-compnet finetune: train a model and write the weights back into the same graph."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from onnx_compnet.errors import DivergedError, ResourceError, UsageError
from onnx_compnet_cli.options import (
    add_command,
    add_data,
    add_file,
    add_json,
    add_model,
    check_json,
    data_options,
    only_results_on_stdout,
    write_json,
)
from onnx_compnet_cli.outputs import checked_output, rejected_path


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "finetune",
        "train a grown model",
        "Train CHILD on labelled samples (or on a teacher's outputs) and write the weights of the best epoch into\n"
        "the same graph. Figures are those of the written model in onnxruntime, on the validation samples.\n"
        "Several processes: torchrun --standalone --nproc-per-node N -m onnx_compnet finetune …",
        "onnx-compnet finetune child.onnx --data train.npz --val val.npz -o tuned.onnx --scale 1/255",
    )
    add_model(command, "child", "the ONNX model to train; it is never changed")
    add_file(command, "-o", "--output", metavar="TUNED", help="where the trained model goes")
    command.add_argument("--force", action="store_true", help="overwrite TUNED")
    add_file(command, "--parent", metavar="PARENT", help="a further model to measure beside the two")
    goal = command.add_argument_group("what is learned")
    _add_loss(goal)
    add_targets(goal)
    add_optimiser(command.add_argument_group("how"))
    _add_course(command.add_argument_group("the run"))
    add_data(command)
    add_file(command, "--val", metavar="D", help="validation samples, as --data; default: a share of --data")
    command.add_argument("--holdout", type=float, metavar="H", help="that share, without --val (default 0.1)")
    add_json(command)
    command.set_defaults(run=run)


def _add_loss(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--loss",
        metavar="L",
        help="cross-entropy (default), bce, mse, distill (default with --teacher), distill-mse",
    )
    add_file(group, "--teacher", metavar="PARENT", help="learn this model's outputs; no labels are needed")
    group.add_argument("--temperature", type=float, metavar="T", help="of distill (default 2)")


def add_targets(group: argparse._ArgumentGroup) -> None:
    """Add the options that say which labels and outputs belong together, and how images are varied."""
    group.add_argument("--labels", metavar="NAME", help="the array of the labels (default y)")
    group.add_argument("--output-name", metavar="NAME", help="the output to train, where there are several")
    group.add_argument("--class-axis", type=int, metavar="K", help="the axis of the classes in that output")
    group.add_argument("--augment", metavar="A", help="crop,flip: random shifts and mirror images")
    group.add_argument("--crop-padding", type=int, metavar="P", help="largest shift in pixels (default 4)")


def add_optimiser(group: argparse._ArgumentGroup) -> None:
    """Add the options of the optimiser and its rates."""
    group.add_argument("--preset", metavar="P", help="default, paper (its LeNet), paper-vgg: the five below")
    group.add_argument("--optimizer", metavar="O", help="adamw (default) or sgd")
    group.add_argument("--lr", type=float, metavar="R", help="peak learning rate (default 3e-4)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="default 0.01")
    group.add_argument("--schedule", metavar="S", help="cosine (default), constant, one-cycle, step")
    group.add_argument("--warmup", type=float, metavar="SHARE", help="of all steps (default 0.05)")
    group.add_argument("--lr-new", type=float, metavar="R", help="peak rate of the new layers (default --lr)")
    group.add_argument("--momentum", type=float, metavar="M", help="of sgd (default 0.9)")
    group.add_argument(
        "--step-epochs", type=int, metavar="N", help="epochs between the steps of --schedule step"
    )
    group.add_argument("--gamma", type=float, metavar="G", help="factor of each step (default 0.1)")
    group.add_argument("--clip-norm", type=float, metavar="C", help="largest norm of the gradient")
    group.add_argument(
        "--freeze", action="append", metavar="PATTERN", help="weights to leave alone: 'conv1.*'; repeatable"
    )
    group.add_argument("--amp", action="store_true", default=None, help="bfloat16 mixed precision (CUDA)")


def _add_course(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default 10)")
    add_criterion(group)
    group.add_argument("--checkpoint", metavar="DIR", help="save the run here, and go on from what is here")
    group.add_argument("--checkpoint-every", type=int, metavar="N", help="steps; default: each epoch")


def add_criterion(group: argparse._ArgumentGroup) -> None:
    """Add the options that say which epoch is the best one, and when to stop."""
    group.add_argument(
        "--max-steps", type=int, metavar="N", help="end after N optimiser steps, within an epoch too"
    )
    group.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without a better one")
    group.add_argument(
        "--best-by", metavar="M", help="auto (default), accuracy, loss: what is better; last: no choice"
    )


_OPTIONS = (
    "loss", "teacher", "temperature", "labels", "output_name", "class_axis", "augment", "crop_padding", "preset",
    "optimizer", "lr", "weight_decay", "schedule", "warmup", "lr_new", "momentum", "step_epochs", "gamma",
    "clip_norm", "freeze", "amp", "epochs", "max_steps", "patience", "best_by", "checkpoint", "checkpoint_every",
    "parent", "holdout",
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Train, save, report. Of several processes only the first one writes and prints."""
    if options.data is None:
        raise UsageError("finetune needs samples: --data FILE.npz (or a folder, FILE.py:function)")
    used = (options.data, options.val, options.teacher, options.parent)
    output = checked_output(options.output, options.child, used, force=options.force)
    check_json(options, options.child, *used, output, rejected_path(output))

    from onnx_compnet.graph import model_io
    from onnx_compnet.training.finetune import finetune
    from onnx_compnet.training.result import tuned_report, tuned_text

    first = os.environ.get("RANK", "0") == "0"
    keywords = {
        **{name: value for name in _OPTIONS if (value := getattr(options, name)) is not None},
        **data_options(options),
        "progress": not options.quiet and sys.stderr.isatty(),
    }
    try:
        with only_results_on_stdout():
            tuned = finetune(options.child, options.data, options.val, **keywords)
    except DivergedError as error:
        if error.tuned is None or not first:
            raise
        rejected = rejected_path(output)
        model_io.save(error.tuned.model, rejected, force=True)
        text = f"{error}; they were put aside at {rejected}"
        if options.json:
            text += _json_failure(tuned_report(error.tuned, model_io.sha256(rejected)), options.json)
        raise DivergedError(text, error.tuned) from error
    if not first:
        return 0
    tuned.save(output, force=options.force)
    if options.json != "-":
        print(tuned_text(tuned, f"{output} ({output.stat().st_size / 1e6:.2f} MB)"))
    if options.json and (
        failure := _json_failure(tuned_report(tuned, model_io.sha256(output)), options.json)
    ):
        raise ResourceError(f"{failure.removeprefix('; ')}; the tuned model is at {output}")
    return 0


def _json_failure(report: dict[str, Any], destination: str) -> str:
    """Write the report; "; " and the reason where that fails, else nothing."""
    try:
        write_json(report, destination)
    except ResourceError as failure:
        return f"; {failure}"
    return ""
