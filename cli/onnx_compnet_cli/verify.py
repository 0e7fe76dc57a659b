"""onnx-compnet verify: the function-preservation check for CI."""

from __future__ import annotations

import argparse
import sys
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


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "verify",
        "check that a child computes what its parent computes",
        "Run both models over the data and compare their outputs; exit 1 when a bound does not hold.",
        "onnx-compnet verify model.onnx child.onnx --data test.npz --min-agreement 0.98",
    )
    add_model(command, "parent", "the model before")
    add_model(command, "child", "the model after")
    bounds = command.add_argument_group("bounds, on every output")
    bounds.add_argument("--max-rel-error", type=float, default=0.05, metavar="E", help="default 0.05")
    bounds.add_argument(
        "--min-agreement", type=float, default=0.99, metavar="A", help="equal argmax; default 0.99"
    )
    bounds.add_argument("--rtol", type=float, metavar="R", help="every value within atol + rtol·|parent|")
    bounds.add_argument("--atol", type=float, metavar="A", help="see --rtol")
    add_data(command)
    add_json(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare the two models."""
    from onnx_compnet.report import verdict_report, verdict_text
    from onnx_compnet.verification import verify

    if options.data is None:
        raise UsageError("verify needs data to compare on: --data D")
    check_json(options, options.parent, options.child, options.data)
    with only_results_on_stdout():
        verdict = verify(
            options.parent,
            options.child,
            options.data,
            max_rel_error=options.max_rel_error,
            min_agreement=options.min_agreement,
            rtol=options.rtol,
            atol=options.atol,
            progress=not options.quiet and sys.stderr.isatty(),
            **data_options(options),
        )
    if options.json != "-":
        print(verdict_text(verdict))
    if options.json:
        write_json(verdict_report(verdict), options.json)
    return 0 if verdict else 1
