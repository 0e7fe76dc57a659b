"""The plan of runs: a TOML file of sets, each with rows, methods, seeds and what differs from the paper's settings.

[settings.small]           # settings that several sets share, by a name
epochs = 3

[[set]]
settings = "small"
rows = ["lenet5"]          # all rows, methods and three seeds where they are not given
seeds = 1
"""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.paper_rows import METHODS, ROWS, Settings

SETTINGS = tuple(field.name for field in fields(Settings))
CHOICES = ("rows", "methods", "seeds")


def read_plan(path: Path) -> list[dict[str, Any]]:
    """The sets of a plan, each with its settings put in. Raises ValueError for names that mean nothing."""
    try:
        plan = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the plan {path} can't be read: {error}") from error
    shared: dict[str, dict[str, Any]] = plan.get("settings", {})
    found = []
    for each in plan.get("set", []):
        name = each.pop("settings", None)
        if name is not None and name not in shared:
            raise ValueError(f"the plan {path} has no [settings.{name}]")
        made = {**shared.get(name, {}), **each}
        unknown = [name for name in made if name not in (*CHOICES, *SETTINGS)]
        unknown += [name for name in made.get("rows", []) if name not in ROWS]
        unknown += [name for name in made.get("methods", []) if name not in METHODS]
        if unknown:
            raise ValueError(f"the plan {path} has {unknown[0]!r}, which means nothing here")
        found.append(made)
    if not found:
        raise ValueError(f"the plan {path} has no [[set]]")
    return found
