"""onnx-compnet sites: what can be grown, where, how, and what can't and why."""

from __future__ import annotations

import argparse
from typing import Any

from onnx_compnet_cli.options import add_command, add_json, add_model, check_json, write_json


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "sites",
        "list where a model can be grown",
        "List every place where a layer can be inserted, and every linear node that has none, with the reason.",
        "onnx-compnet sites model.onnx",
    )
    add_model(command, "model", "the ONNX model")
    add_json(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the sites."""
    from onnx_compnet.graph import model_io
    from onnx_compnet.graph.sites import find_sites, refusals
    from onnx_compnet.report import sites_report, sites_text

    check_json(options, options.model)
    model = model_io.load(options.model)
    found, refused = find_sites(model), refusals(model)
    if options.json != "-":
        print(sites_text(found, refused))
    if options.json:
        write_json(sites_report(found, refused), options.json)
    return 0
