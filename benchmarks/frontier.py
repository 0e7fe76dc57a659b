"""Width against error for every method of selection, from the same candidates: docs/frontier.md and its figures.

    python benchmarks/frontier.py                 # runs what is missing, then writes the document and its figures
    python benchmarks/frontier.py --sites lenet4-relu --seeds 1 --no-document
    python benchmarks/frontier.py --report        # the document alone, from the result files

Each (site, init, seed) has a result file, written whole or not at all; one that is there is not run again. All
methods of a cell choose from the same candidates and the same moments. The networks that are trained for it are kept
in ~/.cache/onnx-compnet/frontier, or in the folder that --work names.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import onnx_compnet as oc
from benchmarks import frontier_run, frontier_training
from benchmarks.corpus import CorpusError, cache_folder
from benchmarks.frontier_sites import SITES
from benchmarks.image_files import DatasetError
from benchmarks.paper_run import OtherSettingsError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "frontier"
DOCUMENT = ROOT / "docs" / "frontier.md"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sites", nargs="+", choices=SITES, default=list(SITES), help="(all)")
    made.add_argument("--seeds", type=int, default=3, help="from 0 (%(default)s)")
    made.add_argument("--out", type=Path, default=RESULTS, help="the folder of results (%(default)s)")
    made.add_argument("--work", type=Path, help="trained networks (~/.cache/onnx-compnet/frontier)")
    made.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    made.add_argument("--no-training", action="store_true", help="leave out the check by training")
    made.add_argument("--no-document", action="store_true", help="leave the document as it is")
    made.add_argument("--report", action="store_true", help="run nothing")
    made.add_argument("--write", type=Path, default=DOCUMENT, help="the document (%(default)s)")
    made.add_argument("--no-figures", action="store_true", help="the text alone")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the document; exit codes are those of the tool."""
    options = parser().parse_args(argv)
    logging.getLogger("onnx_compnet").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    work = options.work or cache_folder() / "frontier"
    say = lambda text: print(text, flush=True)  # noqa: E731
    try:
        if not options.report:
            for cell in frontier_run.cells(options.sites, options.seeds):
                frontier_run.run(cell, options.out, work, say)
            for run in [] if options.no_training else frontier_training.runs(options.seeds):
                frontier_training.run(run, options.out / "training", work, say)
        if not options.no_document:
            from benchmarks import frontier_report

            frontier_report.write_document(options.out, options.write, figures=not options.no_figures)
    except (CorpusError, DatasetError, OtherSettingsError, oc.CompnetError) as error:
        print(f"error: {error}", file=sys.stderr)
        missing = isinstance(error, CorpusError | DatasetError)
        return 4 if missing else getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
