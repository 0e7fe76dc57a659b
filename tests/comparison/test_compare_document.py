"""docs/compare.md names every row, and its command is one that the parser takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from onnx_compnet_cli.main import parser

from onnx_compnet.comparison.entries import chosen, known

TEXT = (Path(__file__).parents[2] / "docs" / "compare.md").read_text("utf-8")


def test_every_row_is_described():
    rows = set(re.findall(r"`([\w-]+)`", "\n".join(re.findall(r"^\| (.*?) \|", TEXT, re.MULTILINE))))
    assert set(known()) <= rows


def test_the_command_is_one_and_has_the_rows_that_are_shown():
    command = re.search(r"^    onnx-compnet (compare .*?[^\\])$", TEXT, re.MULTILINE | re.DOTALL)
    options = parser().parse_args(shlex.split(command[1].replace("\\\n", " ")))
    table = re.search(r"^method .*?seconds\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)[1]
    assert [line.split()[0] for line in table.splitlines()] == [
        entry.name for entry in chosen(options.methods)
    ]
    assert options.epochs == 2
