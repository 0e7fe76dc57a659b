"""onnx-compnet info: the provenance that grow and finetune wrote into a model."""

from __future__ import annotations

import argparse
from typing import Any

from onnx_compnet_cli.options import add_command, add_json, add_model, check_json, write_json


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "info",
        "show how a model was grown",
        "Show what grow and finetune wrote into a model: sites, method, widths, errors, accuracy, data, seed.",
        "onnx-compnet info child.onnx",
    )
    add_model(command, "child", "the ONNX model")
    add_json(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the provenance."""
    from onnx_compnet.graph import model_io, provenance
    from onnx_compnet.report import finetunes_text, provenance_text

    check_json(options, options.child)
    model = model_io.load(options.child)
    growths, finetunes = provenance.read(model), provenance.read_finetunes(model)
    if options.json != "-":
        print(provenance_text(growths) if growths else f"{options.child} was not grown by onnx-compnet")
        if finetunes:
            print(finetunes_text(finetunes))
    if options.json:
        write_json({"schema": 1, "growths": growths, "finetunes": finetunes}, options.json)
    return 0
