"""Entry point: the parser, logging, and one place where an error becomes an exit code.

Heavy imports (torch, onnxruntime) happen inside the commands, so that ``--help`` and completion are quick.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import shtab

from onnx_compnet.errors import CompnetError
from onnx_compnet.version import __version__
from onnx_compnet_cli import compare, finetune, grow, info, sites, suggest, verify

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    top = argparse.ArgumentParser(
        prog="onnx-compnet",
        description="Insert a compact new layer into a trained ONNX model; its function stays (CompNet).",
        epilog="example: onnx-compnet grow model.onnx --after conv3 -o child.onnx --data train.npz",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shtab.add_argument_to(top, help="print a script for tab completion in your shell")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (sites, suggest, grow, compare, finetune, verify, info):
        command.add_to(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see ``onnx_compnet.errors``)."""
    _open_streams()
    try:
        options = parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed help, version or a usage error
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        return _reader_gone()
    _log_to_stderr(options.verbose - options.quiet)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except CompnetError as error:
        return _fail(str(error), error.exit_code, options.verbose)
    except KeyboardInterrupt:
        return _fail("interrupted; no result was written", INTERRUPTED, 0)
    except BrokenPipeError:
        return _reader_gone()
    except MemoryError:
        return _fail("out of memory: lower --batch-size, --candidates or --max-samples", 5, options.verbose)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"no space left on the disk ({error.filename or 'output'})", 5, options.verbose)
        return _fail(f"{error.strerror or error} ({error.filename})", 4, options.verbose)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}; run again with -vv and report the traceback"
        return _fail(text, 1, options.verbose)
    return code


def _open_streams() -> None:
    """A closed stream swallows what is written; a stream that can't write λ or × writes something else."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (for good)
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _reader_gone() -> int:
    """The reader of stdout went away (… | head): not an error, and nothing may be flushed to it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int, verbose: int) -> int:
    if verbose >= 2:
        traceback.print_exc()
    print(f"onnx-compnet: error: {message}", file=sys.stderr)
    return code


def _log_to_stderr(verbosity: int) -> None:
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    if verbosity < -1:
        level = logging.CRITICAL
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("onnx-compnet: %(levelname)s: %(message)s"))
    logger = logging.getLogger("onnx_compnet")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)
    if verbosity < 2:  # warnings of other libraries are for developers
        warnings.simplefilter("ignore")
