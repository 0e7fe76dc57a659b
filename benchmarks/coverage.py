"""Over which exported models the tool works: lists their places, grows at some, measures each child anew.

    python benchmarks/coverage.py                    # everything that benchmarks/results/coverage.jsonl lacks
    python benchmarks/coverage.py --only mtcnn_pnet  # some models (an ending * takes all that start so)
    python benchmarks/coverage.py --again --only …   # forget their results first
    python benchmarks/coverage.py --write            # then render docs/coverage.md

Resumable: one line of JSON a model, and one a site. Each model runs in a process of its own, so that a crash
is a result like any other. Models are fetched or exported once, into a folder outside the repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository, and be no module called coverage
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import coverage_render, coverage_run
from benchmarks.corpus import CorpusError
from benchmarks.coverage_cases import Case, cases

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "coverage.jsonl"
BRIDGE = ROOT / "benchmarks" / "results" / "bridge.jsonl"
DOCUMENT = ROOT / "docs" / "coverage.md"
Record = dict[str, Any]


def main() -> None:
    """Run what is missing, and render the document if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models only")
    parser.add_argument("--max-sites", type=int, default=6, help="sites that are grown a model (6)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results, added to")
    parser.add_argument("--again", action="store_true", help="forget the results of these models first")
    parser.add_argument("--write", action="store_true", help="render docs/coverage.md afterwards")
    parser.add_argument("--no-run", action="store_true", help="run nothing")
    options = parser.parse_args()
    logging.getLogger("onnx_compnet").setLevel(logging.ERROR)  # its warnings are in the figures
    chosen = [case for case in cases() if options.only is None or _matches(case.name, options.only)]
    if not chosen:
        sys.exit(f"no model is called {' or '.join(options.only)}")
    if options.again:
        names = {case.name for case in chosen}
        write(options.results, [item for item in read(options.results) if item["model"] not in names])
    for case in [] if options.no_run else chosen:
        run(case, options.results, options.max_sites)
    if options.write:
        DOCUMENT.write_text(coverage_render.document(read(options.results), read(BRIDGE)), "utf-8")


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return any(name == item or (item.endswith("*") and name.startswith(item[:-1])) for item in wanted)


# ---------------------------------------------------------------- results


def read(path: Path) -> list[Record]:
    """The records so far; a line that was cut off is passed over."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def write(path: Path, records: Sequence[Record]) -> None:
    """All records anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_line(record) for record in records), "utf-8")


def append(path: Path, record: Record) -> None:
    """One record more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- one model


def run(case: Case, results: Path, most_sites: int) -> None:
    """List and grow one model, as far as there are no results; again after a crash, at the next site."""
    while missing(case, results, most_sites):
        print(f"{case.name} …", flush=True)
        process = multiprocessing.get_context("fork").Process(target=work, args=(case, results, most_sites))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        died = f"the process ended with {process.exitcode}"
        model = _model_record(case, results, most_sites)
        if model is None:
            append(results, {"kind": "model", "model": case.name, "group": case.group, "failed": died})
            return
        site = missing(case, results, most_sites)[0]
        append(
            results, {"kind": "site", "model": case.name, "site": site, "status": "failed", "reason": died}
        )


def missing(case: Case, results: Path, most_sites: int) -> list[str]:
    """What there is no result for: the sites, or the model itself ("")."""
    model = _model_record(case, results, most_sites)
    if model is None:
        return [""]
    done = {r["site"] for r in read(results) if r["kind"] == "site" and r["model"] == case.name}
    return [name for name in model.get("tried", []) if name not in done]


def _model_record(case: Case, results: Path, most_sites: int) -> Record | None:
    for record in read(results):
        if (record["kind"], record["model"]) != ("model", case.name):
            continue
        if "failed" in record or record["most_sites"] >= most_sites:
            return record
    return None


def work(case: Case, results: Path, most_sites: int) -> None:
    """What the model's own process does."""
    known = {r["site"] for r in read(results) if r["kind"] == "site" and r["model"] == case.name}
    try:
        record, model, sites = coverage_run.survey(case, most_sites)
    except CorpusError as error:
        print(f"{case.name}: skipped, {error}", flush=True)
        return
    except Exception as error:
        reason = coverage_run.measure.short(error)
        append(results, {"kind": "model", "model": case.name, "group": case.group, "failed": reason})
        print(f"{case.name}: FAILED {reason}", flush=True)
        return
    if _model_record(case, results, most_sites) is None:
        write(results, [r for r in read(results) if (r["kind"], r["model"]) != ("model", case.name)])
        append(results, record)
    print(
        f"{case.name}: {record['sites']} sites, {record['read']}/{record['linear']} linear nodes", flush=True
    )
    again = not any(r.get("same_bytes") for r in read(results) if r["model"] == case.name)
    for site in sites:
        if coverage_run.key(site) in known:
            continue
        found = coverage_run.grow(case, model, site, again=again)
        append(results, found)
        again = again and "same_bytes" not in found
        told = found.get("reason") or f"{found['kept']}/{found['candidates']}, error {found['site_error']}"
        print(f"  {found['site']}: {found['status']}, {told}, {found['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
