"""The experiments of the CompNet paper (arXiv:1804.10316, section 3, Tables 1 and 2), one result file a run.

    python benchmarks/paper.py                                      # the paper's rows and settings (needs a GPU)
    python benchmarks/paper.py --rows lenet5 --dataset fashion-mnist --epochs 3 --parent-epochs 10
    python benchmarks/paper.py --rows vgg16-relu --width-multiplier 0.125 --samples 10000 --epochs 4 …
    python benchmarks/paper.py --plan benchmarks/paper_plan.toml    # the runs of docs/results.md, in their order
    python benchmarks/paper_report.py                               # then docs/results.md from the result files

Resumable: a run that has its file is not repeated, one that was interrupted goes on from its last epoch. Runs of
other settings go into folders of their own. MNIST, Fashion-MNIST and CIFAR-10 are read from local files (--data);
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository, and be no module called paper
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import onnx_compnet as oc
from benchmarks import datasets, paper_run
from benchmarks.corpus import cache_folder
from benchmarks.paper_plan import CHOICES, SETTINGS, read_plan
from benchmarks.paper_rows import METHODS, ROWS, Row, image_shape, settings_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "paper"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    made.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)} (all)"
    )
    made.add_argument("--seeds", type=int, help="seeds 0 to N-1 (3)")
    made.add_argument("--plan", type=Path, help="a TOML file of sets of runs, in place of the options above")
    made.add_argument("--data", type=Path, help="the folder of the data set's files")
    made.add_argument("--out", type=Path, default=RESULTS, help="the folder of results (%(default)s)")
    made.add_argument("--work", type=Path, help="networks and checkpoints (~/.cache/onnx-compnet/paper)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    made.add_argument("--threads", type=int, help="of torch")
    made.add_argument("--list", action="store_true", help="run nothing; say what is missing")
    settings = made.add_argument_group("settings, the paper's by default")
    settings.add_argument("--dataset", choices=datasets.NAMES, help="mnist for LeNet, cifar10 for VGG")
    for name, kind, told in (
        ("width-multiplier", float, "of every layer (1)"),
        ("samples", int, "training images (all)"),
        ("test-samples", int, "test images (all)"),
        ("epochs", int, "of each child (LeNet 200, VGG 1000)"),
        ("parent-epochs", int, "of each parent (LeNet 200, VGG 1000)"),
        ("lr", float, "of the children (LeNet 5e-3, VGG 3e-4)"),
        ("parent-lr", float, "highest rate of the parents (LeNet 5e-2, VGG 2e-2)"),
        ("schedule", str, "of the children (constant)"),
        ("batch-size", int, "(128)"),
        ("dropout", float, "between VGG's dense layers (0.5)"),
        ("calibration", int, "training images that grow is given (LeNet 2000, VGG 5000)"),
    ):
        settings.add_argument(f"--{name}", type=kind, help=told)
    return made


def sets(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The sets of runs that are asked for: rows, methods, seeds and settings that differ from the paper's.

    Raises ValueError for a plan with names that mean nothing.
    """
    if options.plan is None:
        given = {name: getattr(options, name, None) for name in (*CHOICES, *SETTINGS)}
        return [{name: value for name, value in given.items() if value is not None}]
    return read_plan(options.plan)


def cells(
    chosen: Mapping[str, Any], options: argparse.Namespace
) -> Iterator[tuple[paper_run.Bench, Row, str, int]]:
    """The runs of a set, seed by seed, so that an interruption leaves whole seeds."""
    rows = [ROWS[name] for name in chosen.get("rows", ROWS)]
    changes = {name: value for name, value in chosen.items() if name in SETTINGS and name != "dataset"}
    benches = {}
    for family in dict.fromkeys(row.family for row in rows):
        settings = settings_of(family, chosen.get("dataset"), **changes)
        image_shape(family, settings)
        work = options.work or cache_folder() / "paper"
        benches[family] = paper_run.Bench(settings, family, options.out, work, options.data, options.device)
    for seed in range(chosen.get("seeds", 3)):
        for row in rows:
            for method in chosen.get("methods", METHODS):
                yield benches[row.family], row, method, seed


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 if nothing is missing then, 1 if a method is not available, else as the tool."""
    options = parser().parse_args(argv)
    logging.getLogger("onnx_compnet").setLevel(logging.ERROR)  # its warnings are in the figures
    if options.threads:
        torch.set_num_threads(options.threads)
    absent: dict[str, None] = {}
    missing: dict[Path, None] = {}
    try:
        for chosen in sets(options):
            for bench, row, method, seed in cells(chosen, options):
                if options.list:
                    path = bench.path(row.name, method, seed)
                    if paper_run.read(path) is None:
                        missing[path.relative_to(options.out)] = None
                    continue
                try:
                    bench.run(row, method, seed)
                except paper_run.NotAvailableError as error:
                    absent[str(error)] = None
    except (datasets.DatasetError, oc.CompnetError, paper_run.OtherSettingsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4 if isinstance(error, datasets.DatasetError) else getattr(error, "exit_code", 2)
    for path in missing:
        print(path)
    for text in absent:
        print(f"not run: {text}", file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    raise SystemExit(main())
