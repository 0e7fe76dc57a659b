"""The rows of a comparison: one line here is one more method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx_compnet.config import METHODS, WITHOUT_WIDTH, GrowOptions
from onnx_compnet.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """A row: what users call it, the method of ``grow`` that makes it (None: none does), and its width.

    ``width``: "own", the method decides, and ``--keep`` is a cap; "all", every candidate; "none", the method has one
    width only; or the row whose width is taken (``--keep`` where that is given).
    """

    name: str
    method: str | None
    width: Literal["own", "all", "none"] | str = "own"


PARENT, SCRATCH = "parent", "scratch"
REFERENCE = "alg3"
"""the row whose width (and, from scratch, whose architecture) others take"""

ENTRIES = (
    Entry(PARENT, None, "none"),
    Entry("alg1", "alg1"),
    Entry("alg2", "alg2"),
    Entry("alg3", "alg3"),
    Entry("obs", "obs", REFERENCE),
    Entry("forward", "forward", REFERENCE),
    Entry("exact", "exact", "none"),
    Entry("random", "random", REFERENCE),
    Entry("netmorph", "netmorph", "all"),  # the paper's "Redundant"
    Entry("netmorph-alg2", "netmorph", "alg2"),  # its "Oracle"
    Entry("net2deeper", "net2deeper", "none"),
    Entry(SCRATCH, None, REFERENCE),
)


def known(methods: Sequence[str] = METHODS) -> dict[str, Entry]:
    """name → row, of those whose method ``grow`` has, in the order of the table."""
    return {entry.name: entry for entry in ENTRIES if entry.method is None or entry.method in methods}


def chosen(names: Sequence[str] | None, methods: Sequence[str] = METHODS) -> tuple[Entry, ...]:
    """The rows that were asked for (None: all), the parent always first. Raises UsageError for unknown ones."""
    rows = known(methods)
    for name in names or ():
        if name not in rows:
            raise UsageError(f"--methods: {name!r} is not one of {', '.join(rows)}")
    wanted = set(rows if names is None else names)
    if not wanted - {PARENT}:
        raise UsageError(f"--methods names no method to compare; take some of {', '.join(list(rows)[1:])}")
    return tuple(entry for entry in rows.values() if entry.name in wanted | {PARENT})


def lender(entry: Entry, options: GrowOptions) -> str | None:
    """The row whose width (without a method: whose architecture) a row takes; None where it needs none.

    With ``keep`` that is the width; with ``max_error`` the fitted methods find their own.
    """
    if entry.width in ("own", "all", "none"):
        return None
    if entry.method is None:
        return entry.width
    finds_its_own = options.max_error is not None and entry.method in WITHOUT_WIDTH
    return None if options.keep is not None or finds_its_own else entry.width


def needed(
    entries: Sequence[Entry], options: GrowOptions, methods: Sequence[str] = METHODS
) -> tuple[Entry, ...]:
    """The rows to make, in an order in which those that lend something come first."""
    lending = {name for entry in entries if (name := lender(entry, options)) is not None}
    first = [entry for entry in known(methods).values() if entry.name in lending]
    rest = [entry for entry in entries if entry.name != PARENT and entry.name not in lending]
    return (*(entry for entry in entries if entry.name == PARENT), *first, *rest)
