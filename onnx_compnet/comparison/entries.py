"""The rows of a comparison: one line here is one more method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx_compnet.config import METHODS
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


def needed(entries: Sequence[Entry], keep: int | None, methods: Sequence[str] = METHODS) -> tuple[Entry, ...]:
    """The rows to make, in an order in which those that lend a width or an architecture come first."""
    rows = known(methods)
    order: dict[str, Entry] = {}
    for entry in entries:
        lender = rows.get(entry.width)
        if lender is not None and (keep is None or entry.method is None):
            order[lender.name] = lender
    return (*(e for e in entries if e.name == PARENT), *order.values(),
            *(e for e in entries if e.name != PARENT and e.name not in order))  # fmt: skip
