"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import shtab

Values = float | list[float]


def add_command(
    commands: Any, name: str, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand with the options that every command has."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv shows tracebacks")
    command.add_argument("-q", "--quiet", action="count", default=0, help="say less")
    return command


def add_model(command: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a positional model path that completes to .onnx files."""
    action = command.add_argument(name, metavar=name.upper(), help=text)
    action.complete = shtab.FILE  # type: ignore[attr-defined]


def add_json(command: argparse.ArgumentParser) -> None:
    """Add --json FILE|-."""
    action = command.add_argument("--json", metavar="FILE", help="write the figures as JSON; - for stdout")
    action.complete = shtab.FILE  # type: ignore[attr-defined]


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the options that say where samples come from and how they are fed."""
    group = command.add_argument_group("data")
    action = group.add_argument(
        "--data",
        metavar="D",
        help="FILE.npz, FILE.npy, a folder of either, FILE.py:function, or random[:N]",
    )
    action.complete = shtab.FILE  # type: ignore[attr-defined]
    group.add_argument(
        "--max-samples", type=int, metavar="N", help="use at most N samples, drawn with --seed"
    )
    group.add_argument("--batch-size", type=int, metavar="B", help="samples a forward pass (default 64)")
    for name, text in (
        ("scale", "multiply float inputs by S, e.g. 1/255"),
        ("mean", "then subtract; a number or one a channel: 0.48,0.46,0.41"),
        ("std", "then divide; a number or one a channel"),
    ):
        group.add_argument(
            f"--{name}",
            action="append",
            type=named_values,
            metavar="[NAME=]S",
            help=f"{text}; NAME: one input",
        )
    group.add_argument(
        "--batch-axis",
        action="append",
        type=named_axis,
        metavar="NAME=K",
        help="the samples of input NAME lie on axis K; NAME=none: a constant",
    )
    group.add_argument(
        "--shape",
        action="append",
        type=named_shape,
        metavar="NAME=2,3,224,224",
        help="shape of input NAME for random data, where the model leaves it open",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of every random choice (default 0)"
    )
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda[:i]", help="where models run (default auto)"
    )


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of oc.grow and oc.verify that ``add_data`` parsed."""
    return {
        "max_samples": options.max_samples,
        "batch_size": options.batch_size,
        "scale": joined(options.scale),
        "mean": joined(options.mean),
        "std": joined(options.std),
        "batch_axis": dict(options.batch_axis) if options.batch_axis else None,
        "shape": dict(options.shape) if options.shape else None,
        "seed": options.seed,
        "device": options.device,
    }


def joined(entries: Sequence[tuple[str | None, Values]] | None) -> Values | dict[str, Values] | None:
    """One value for all inputs, or {input: value}; "" stands for the inputs that are not named."""
    if not entries:
        return None
    if len(entries) == 1 and entries[0][0] is None:
        return entries[0][1]
    return {name or "": value for name, value in entries}


def named_values(text: str) -> tuple[str | None, Values]:
    """Parse ``1/255``, ``0.5,0.4``, ``image=1/255``."""
    name, _, values = text.rpartition("=")
    try:
        numbers = [float(Fraction(part.strip())) for part in values.split(",")]
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, a fraction or a list of them") from None
    return name or None, numbers[0] if len(numbers) == 1 else numbers


def named_axis(text: str) -> tuple[str, int | None]:
    """Parse ``state=1`` and ``state=none``."""
    name, found, axis = text.rpartition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=K or NAME=none")
    if axis.lower() == "none":
        return name, None
    try:
        return name, int(axis)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{axis!r} is not the number of an axis, nor none") from None


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse ``image=2,3,224,224``."""
    name, found, shape = text.rpartition("=")
    try:
        sizes = tuple(int(size) for size in shape.split(",")) if shape else ()
    except ValueError:
        sizes = (0,)
    if not found or not name or any(size < 1 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SIZE,SIZE,…")
    return name, sizes


def write_json(report: dict[str, Any], destination: str) -> None:
    """Write a report to a file or, for ``-``, to stdout."""
    from onnx_compnet.report import dumps

    text = dumps(report) + "\n"
    if destination == "-":
        print(text, end="")
    else:
        Path(destination).write_text(text, encoding="utf-8")
