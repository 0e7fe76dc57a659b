"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import Any

import shtab

from onnx_compnet.errors import ResourceError, UsageError

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


def add_file(
    command: argparse.ArgumentParser | argparse._ArgumentGroup, *names: str, **keywords: Any
) -> None:
    """Add an argument that the shell completes to files."""
    action = command.add_argument(*names, **keywords)
    action.complete = shtab.FILE  # type: ignore[attr-defined]


def add_model(command: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a positional model path."""
    add_file(command, name, metavar=name.upper(), help=text)


def add_json(command: argparse.ArgumentParser) -> None:
    """Add --json FILE|-."""
    add_file(command, "--json", metavar="FILE", help="write the figures as JSON; - for stdout")


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the options that say where samples come from and how they are fed."""
    group = command.add_argument_group("data")
    add_file(
        group,
        "--data",
        metavar="D",
        help="FILE.npz, FILE.npy, a folder of either, FILE.py:function, or random[:N]",
    )
    group.add_argument(
        "--max-samples",
        type=int,
        metavar="N",
        help="use at most N samples, held-out ones included (N of each with --holdout-data)",
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
        "scale": options.scale,
        "mean": options.mean,
        "std": options.std,
        "batch_axis": _by_input(options.batch_axis, "--batch-axis"),
        "shape": _by_input(options.shape, "--shape"),
        "seed": options.seed,
        "device": options.device,
    }


def _by_input(entries: Sequence[tuple[str, Any]] | None, option: str) -> dict[str, Any] | None:
    """{input: value}; UsageError where an input comes twice."""
    if not entries:
        return None
    found = dict(entries)
    if len(found) < len(entries):
        raise UsageError(f"{option} is given twice for one input: {', '.join(name for name, _ in entries)}")
    return found


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


def check_json(options: argparse.Namespace, *used: str | Path | None) -> None:
    """Refuse --json, before any work, where it can't be written or would replace one of the ``used`` files.

    Raises UsageError, or ResourceError for a folder that can't be written to.
    """
    if options.json is None or options.json == "-":
        return
    path = Path(options.json)
    if not options.json or path.is_dir():
        raise UsageError(f"--json {options.json!r} is no file; name a file, or - for stdout")
    for other in used:
        if other is not None and same_file(path, Path(other)):
            raise UsageError(f"--json {path} would replace {other}; name another file")
    check_folder(path, "--json")


def check_folder(path: Path, option: str) -> None:
    """Raise UsageError or ResourceError where no file of that name can be written."""
    try:
        exists = path.parent.is_dir()
        if exists and not os.access(path.parent, os.W_OK | os.X_OK):
            raise ResourceError(f"the folder {path.parent} of {option} can't be written to; name another")
        path.is_file()  # a name that is too long shows here
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; name another file") from error
    if not exists:
        raise UsageError(f"the folder {path.parent} of {option} does not exist; make it first")


def same_file(path: Path, other: Path) -> bool:
    """Whether both names mean one file, or would."""
    try:
        return path.samefile(other)
    except OSError:
        return path.resolve() == other.resolve()


def write_json(report: dict[str, Any], destination: str) -> None:
    """Write a report to a file, whole or not at all, or for ``-`` to stdout; into a device, pipe or link as it is.

    Raises ResourceError where the file can't be written.
    """
    from onnx_compnet.report import dumps

    text = dumps(report) + "\n"
    if destination == "-":
        print(text, end="")
        return
    path = Path(destination)
    aside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/null must not become a file
            path.write_text(text, encoding="utf-8")
            return
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ResourceError(f"--json {path} could not be written: {error.strerror}") from error


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send to stderr what a user's data function prints, so that stdout holds the results alone."""
    with redirect_stdout(sys.stderr):
        yield
