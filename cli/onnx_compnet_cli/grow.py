"""onnx-compnet grow: insert one compact new layer, or several."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from onnx_compnet.config import ACTIVATION_NAMES, INITS, METHODS, MODES
from onnx_compnet.errors import ResourceError, UsageError, VerificationError
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
        "grow",
        "insert a compact new layer",
        "Insert a new layer behind NAME and solve for its weights so that the model's function stays.\n"
        "Everything outside the place of growth is left as it is; figures are measured on held-out samples.",
        "onnx-compnet grow model.onnx --after conv3 -o child.onnx --data train.npz --scale 1/255",
    )
    add_model(command, "model", "the trained ONNX model; it is never changed")
    command.add_argument(
        "--after",
        action="append",
        required=True,
        metavar="NAME",
        help="node, output tensor, weight prefix (conv3) or scope; repeat it for several; all-convs: each Conv",
    )
    add_file(command, "-o", "--output", metavar="CHILD", help="where the grown model goes")
    command.add_argument("--force", action="store_true", help="overwrite CHILD")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    add_layer_options(command.add_argument_group("the new layer"))
    selection = command.add_argument_group("selection")
    selection.add_argument(
        "--method",
        choices=METHODS,
        default="alg3",
        help="how neurons are chosen: the paper's alg1, alg2, alg3 (default); obs (drop the cheapest, again and "
        "again), forward (add the best) and random need --keep or --max-error; exact (as narrow as the function "
        "stays), net2deeper and netmorph fit nothing",
    )
    add_selection_options(selection)
    gates = command.add_argument_group(
        "gates on the model's outputs, held-out (exit 1; the child goes aside)"
    )
    gates.add_argument("--max-rel-error", type=float, metavar="E", help="unset by default")
    gates.add_argument("--min-agreement", type=float, metavar="A", help="unset by default")
    add_data(command)
    holdout = command.add_argument_group("held-out samples")
    holdout.add_argument(
        "--holdout", type=float, default=0.2, metavar="F", help="share not fitted (default 0.2)"
    )
    add_file(holdout, "--holdout-data", metavar="D", help="measure on this data, fit on all of --data")
    add_json(command)
    command.set_defaults(run=run)


def add_layer_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say what the new layer is like."""
    group.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="neurons before selection (default: twice the channels; more for a block)",
    )
    group.add_argument(
        "--activation",
        choices=ACTIVATION_NAMES,
        default="auto",
        metavar="H",
        help="auto (the one in front, else relu), " + ", ".join(ACTIVATION_NAMES[1:]),
    )
    group.add_argument(
        "--init",
        choices=INITS,
        default="auto",
        help="initial weights (default by activation); linear: begin with neurons that hand every channel on",
    )
    group.add_argument(
        "--batch-norm",
        action="store_true",
        help="net2deeper: a BatchNormalization in front of the activation",
    )
    group.add_argument("--kernel", type=int, default=3, metavar="K", help="kernel of a new Conv (default 3)")
    group.add_argument(
        "--mode",
        choices=MODES,
        default="auto",
        help="replace: solve the readers anew; block: add a linear layer instead; auto: the first that is possible",
    )


def add_selection_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how many neurons stay."""
    group.add_argument(
        "--keep",
        type=int,
        metavar="C",
        help="at most C neurons (the width for obs, forward, random and netmorph)",
    )
    group.add_argument(
        "--max-error",
        type=float,
        metavar="E",
        help="as few neurons as keep the site error on held-out samples within E (exit 1 if none do)",
    )
    group.add_argument(
        "--lam", type=float, default=0.1, metavar="L", help="λ, for alg3 a fraction of λ_max (default 0.1)"
    )
    group.add_argument("--alpha", type=float, default=0.1, metavar="A", help="α of iiLasso (default 0.1)")
    group.add_argument(
        "--no-refit",
        dest="refit",
        action="store_false",
        help="alg3: scale the surviving rows by β, as the paper prints it, instead of solving again",
    )


def run(options: argparse.Namespace) -> int:
    """Grow, save, report."""
    if options.data is None:
        raise UsageError(
            "grow needs samples to fit on: --data FILE.npz (or a folder, FILE.py:function, random:N for a trial)"
        )
    if options.dry_run and options.json:
        raise UsageError("--dry-run measures nothing, so there is nothing for --json; leave one of them away")
    output = None
    if not options.dry_run:
        used = (options.data, options.holdout_data)
        output = checked_output(
            options.output, options.model, used, force=options.force, more="(or --dry-run)"
        )
        check_json(options, options.model, *used, output, rejected_path(output))

    from onnx_compnet.graph import model_io
    from onnx_compnet.pipeline import grow
    from onnx_compnet.planning import plan
    from onnx_compnet.report import growth_report, growth_text

    keywords = {
        **{name: getattr(options, name) for name in _GROW_OPTIONS},
        **data_options(options),
        "progress": not options.quiet and sys.stderr.isatty(),
    }
    if output is None:
        with only_results_on_stdout():
            text = plan(options.model, options.after, options.data, **keywords)
        print(text)
        return 0
    try:
        with only_results_on_stdout():
            growth = grow(options.model, options.after, options.data, **keywords)
    except VerificationError as error:
        if error.growth is None:
            raise
        rejected = rejected_path(output)
        model_io.save(error.growth.model, rejected, force=True)
        text = f"{error}; the child was put aside at {rejected}"
        if options.json:
            try:
                write_json(growth_report(error.growth, model_io.sha256(rejected)), options.json)
            except ResourceError as failure:
                text += f"; {failure}"
        raise VerificationError(text, error.growth) from error
    growth.save(output, force=options.force)
    if options.json != "-":
        print(growth_text(growth, f"{output} ({output.stat().st_size / 1e6:.2f} MB)"))
    if options.json:
        try:
            write_json(growth_report(growth, model_io.sha256(output)), options.json)
        except ResourceError as failure:
            raise ResourceError(f"{failure}; the child is at {output}") from failure
    return 0


_GROW_OPTIONS = (
    "method", "candidates", "keep", "max_error", "lam", "alpha", "activation", "init", "kernel", "mode", "holdout",
    "holdout_data", "max_rel_error", "min_agreement", "refit", "batch_norm",
)  # fmt: skip
