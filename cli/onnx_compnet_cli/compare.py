"""onnx-compnet compare: every method at one site."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from onnx_compnet.comparison.entries import known
from onnx_compnet.errors import UsageError
from onnx_compnet_cli.finetune import add_criterion, add_optimiser, add_targets
from onnx_compnet_cli.grow import add_layer_options, add_selection_options
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


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "compare",
        "run every method at one site",
        "Grow MODEL behind NAME by every method, on the same samples, and print what comes out: width, parameters,\n"
        "operations, error, agreement, seconds. With --epochs each child is trained as well, and the parent, too.",
        "onnx-compnet compare model.onnx --after conv3 --data train.npz --scale 1/255 --epochs 3",
    )
    add_model(command, "model", "the trained ONNX model; it is never changed")
    command.add_argument(
        "--after", required=True, metavar="NAME", help="node, output tensor, weight prefix (conv3) or scope"
    )
    rows = ", ".join(known())
    command.add_argument("--methods", type=_names, metavar="LIST", help=f"the rows (default all): {rows}")
    command.add_argument(
        "--seeds", type=_seeds, metavar="N|LIST",
        help="how many, from --seed on, or which: 0,1,2 (default 1, with --epochs 3)",
    )  # fmt: skip
    add_file(command, "-o", "--output", metavar="FOLDER", help="keep the children here, named by row")
    command.add_argument("--force", action="store_true", help="overwrite children in FOLDER")
    add_layer_options(command.add_argument_group("the new layer"))
    add_selection_options(command.add_argument_group("selection"))
    training = command.add_argument_group("training (needs labels)")
    training.add_argument("--epochs", type=int, metavar="N", help="train every row so long on --data")
    add_file(training, "--val", metavar="D", help="validation samples, as --data; default: a share of --data")
    add_targets(training)
    add_optimiser(training)
    add_criterion(training)
    add_data(command)
    holdout = command.add_argument_group("held-out samples")
    holdout.add_argument(
        "--holdout", type=float, metavar="F", help="share not fitted (default 0.2; of training 0.1)"
    )
    add_file(holdout, "--holdout-data", metavar="D", help="measure on this data, fit on all of --data")
    add_json(command)
    command.set_defaults(run=run)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> int | list[int]:
    """Parse ``3`` (so many) and ``0,1,2`` (these)."""
    try:
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a list of them: 3, or 0,1,2"
        ) from None


_OPTIONS = (
    "candidates", "activation", "init", "kernel", "mode", "batch_norm", "keep", "max_error", "lam", "alpha",
    "refit", "holdout", "holdout_data", "labels", "output_name", "class_axis", "augment", "crop_padding",
    "preset", "optimizer", "lr", "weight_decay", "schedule", "warmup", "lr_new", "momentum", "step_epochs",
    "gamma", "clip_norm", "freeze", "amp", "max_steps", "patience", "best_by",
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Compare, print."""
    if options.data is None:
        raise UsageError("compare needs samples: --data FILE.npz (or a folder, FILE.py:function, random:N)")
    if options.val is not None and options.epochs is None:
        raise UsageError("--val is for training: say --epochs N, too")
    check_json(options, options.model, options.data, options.val, options.holdout_data)

    from onnx_compnet.comparison.report import comparison_report, comparison_text
    from onnx_compnet.comparison.run import compare, counted

    keywords = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    shared = data_options(options)
    seeds = counted(options.seeds, options.epochs, first=shared.pop("seed"))
    if not options.verbose:  # what a single growth would warn of stands in the table
        logger = logging.getLogger("onnx_compnet")
        logger.setLevel(max(logger.level, logging.ERROR))
    with only_results_on_stdout():
        found = compare(
            options.model, options.after, options.data, options.val, methods=options.methods, seeds=seeds,
            epochs=options.epochs, output=options.output, force=options.force, **keywords, **shared,
            progress=not options.quiet and sys.stderr.isatty(),
        )  # fmt: skip
    if options.json != "-":
        print(comparison_text(found))
    if options.json:
        write_json(comparison_report(found), options.json)
    return 0
