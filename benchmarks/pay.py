"""When does growing pay? Grown networks against their parents trained on and against new ones, at equal cost.

    python benchmarks/pay.py                        # all runs, in the order of information (hours on one core)
    python benchmarks/pay.py --experiments longer   # of longer, small (small parents), data, wide (data grows)
    python benchmarks/pay.py --methods alg3 random  # methods of growing in the final runs
    python benchmarks/pay.py --list                 # what is missing
    python benchmarks/pay_report.py                 # then docs/when-growing-pays.md from the result files

Resumable: a run that has its file is not repeated, one that was interrupted goes on from its last epoch. The recipes
are searched on 10,000 of the training images; the final runs, of three seeds, are measured on the test images.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import onnx_compnet as oc
from benchmarks import datasets, pay_run
from benchmarks.corpus import cache_folder
from benchmarks.paper_run import OtherSettingsError
from benchmarks.pay_plan import EXPERIMENTS, GROWN, STEPS, VALIDATION, Plan, Task
from onnx_compnet.config import METHODS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pay"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="(all)"
    )
    made.add_argument("--methods", nargs="+", choices=GROWN, default=[m for m in GROWN if m in METHODS])
    made.add_argument("--seeds", type=int, default=3, help="of the final runs, from 0 (%(default)s)")
    made.add_argument("--data", type=Path, help="the folder of Fashion-MNIST's files")
    made.add_argument("--out", type=Path, default=RESULTS, help="the folder of results (%(default)s)")
    made.add_argument("--work", type=Path, help="networks and checkpoints (~/.cache/onnx-compnet/pay)")
    made.add_argument("--threads", type=int, help="of torch")
    made.add_argument("--list", action="store_true", help="run nothing; say what is missing")
    return made


def tasks(plans: Sequence[Plan]) -> Iterator[list[Task]]:
    """All runs of these experiments, in the order of STEPS."""
    known = {plan.experiment.name: plan for plan in plans}
    for name, part in STEPS:
        if name in known:
            yield from known[name].part(part)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; exit codes are those of the tool."""
    options = parser().parse_args(argv)
    logging.getLogger("onnx_compnet").setLevel(logging.ERROR)  # its warnings are in the figures
    if options.threads:
        torch.set_num_threads(options.threads)
    work = options.work or cache_folder() / "pay"
    bench = pay_run.Bench(pay_run.Setting(), options.out, work, options.data)
    plans = [
        Plan(EXPERIMENTS[name], bench.best, range(options.seeds), options.methods)
        for name in options.experiments
    ]
    try:
        for group in tasks(plans):
            missing = [task for task in group if bench.done(task) is None]
            for task in missing:
                if options.list:
                    print(bench.path(task).relative_to(options.out))
                else:
                    bench.run(task)
            if options.list and missing and group[0].split == VALIDATION:
                print("… and what depends on these")
                break
    except (datasets.DatasetError, oc.CompnetError, OtherSettingsError, pay_run.NoRunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4 if isinstance(error, datasets.DatasetError) else getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
