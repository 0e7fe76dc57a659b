"""onnx-compnet suggest: where growing may pay."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from onnx_compnet.errors import UsageError
from onnx_compnet_cli.options import (
    add_command,
    add_data,
    add_json,
    add_model,
    check_json,
    data_options,
    only_results_on_stdout,
    write_json,
)

_OPTIONS = ("labels", "loss", "output_name", "class_axis", "kernel")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "suggest",
        "rank the places where a layer may be inserted",
        "Score every place of MODEL: how much of its width each tensor uses and, where the data has labels, how\n"
        "much of the loss's gradient the next layer can't express from it. And what a layer there would cost.",
        "onnx-compnet suggest model.onnx --data train.npz --scale 1/255",
    )
    add_model(command, "model", "the trained ONNX model; nothing is changed or written")
    goal = command.add_argument_group("the loss, where the data has labels")
    goal.add_argument("--labels", metavar="NAME", help="the array of the labels (default y, if it is there)")
    goal.add_argument("--loss", metavar="L", help="cross-entropy (integer labels), mse (others), bce")
    goal.add_argument("--output-name", metavar="NAME", help="the output that counts, where there are several")
    goal.add_argument("--class-axis", type=int, metavar="K", help="the axis of the classes in that output")
    command.add_argument(
        "--kernel", type=int, metavar="K", help="of the layers whose cost is told (default 3)"
    )
    add_data(command)
    add_json(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    if options.data is None:
        raise UsageError("suggest needs samples: --data FILE.npz (or a folder, FILE.py:function, random:N)")
    check_json(options, options.model, options.data)

    from onnx_compnet.suggestion.report import suggestion_report, suggestion_text
    from onnx_compnet.suggestion.run import suggest

    keywords = {
        **{name: value for name in _OPTIONS if (value := getattr(options, name)) is not None},
        **data_options(options),
    }
    with only_results_on_stdout():
        suggestion = suggest(options.model, options.data, **keywords)
    for warning in suggestion.warnings:
        logging.getLogger("onnx_compnet").warning(warning)
    if options.json != "-":
        print(suggestion_text(suggestion))
    if options.json:
        write_json(suggestion_report(suggestion), options.json)
    return 0
