"""One cell of the frontier: the moments of a site's candidates, every method's path of widths, one JSON file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.frontier_sites import SITES, Frontier
from benchmarks.paper_run import OtherSettingsError, Record, machine, read, write
from onnx_compnet.config import GrowOptions
from onnx_compnet.planning import prepare
from onnx_compnet.posed import PosedSite, pose
from onnx_compnet.version import __version__, library_versions

METHODS = ("obs", "forward", "alg3", "alg1", "alg2", "random")
FORMAT = 1
ANY = 1e9  # an error that every width keeps to: the whole path is priced
STOP = {"lam": 0.1, "alpha": 0.1}  # at which Algorithm 3 chooses a width by itself


@dataclass(frozen=True)
class Cell:
    """A site, an init and a seed; the seed draws candidates, split and the random order."""

    site: str
    init: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.site}.{self.init}.seed{self.seed}.json"


def cells(sites: list[str], seeds: int) -> list[Cell]:
    """Seed by seed, so that every site has a figure early."""
    return [Cell(name, init, seed) for seed in range(seeds) for name in sites for init in SITES[name].inits]


def run(cell: Cell, out: Path, work: Path, say: Callable[[str], None] = print) -> Record:
    """The record of one cell, from its file or made now and written whole. Raises OtherSettingsError."""
    path, site = out / cell.file, SITES[cell.site]
    found = read(path)
    if found is not None:
        if found["settings"] != settings(site):
            raise OtherSettingsError(
                f"{path} was made with {found['settings']}, not with {settings(site)}: take another --out"
            )
        return found
    record = measured(site, cell, work)
    write(path, record)
    say(f"{cell.file}: {record['seconds']}")
    return record


def settings(site: Frontier) -> dict[str, Any]:
    """What must be the same for results to be comparable."""
    return {"candidates": site.candidates, "samples": site.samples, "activation": site.activation, **STOP}


def measured(site: Frontier, cell: Cell, work: Path) -> Record:
    """Collect the moments once, then let every method choose from them."""
    start = time.process_time()
    asked = site.options(cell.init, cell.seed) | {"max_samples": site.samples, "mode": "replace"}
    options = GrowOptions(**asked, **site.normalisation(work))
    job = prepare(site.model(work), site.after, site.data(work), options)
    place = job.sites[0]
    posed = pose(job.parent, place, job, options)
    seconds = {"moments": round(time.process_time() - start, 2)}
    curves = {}
    for method in METHODS:
        start = time.process_time()
        curves[method] = path_of(posed, options, method)
        seconds[method] = round(time.process_time() - start, 2)
    stop = posed.select(options.changed({"method": "alg3", **STOP}), path_points=0)
    return {
        "format": FORMAT,
        "site": site.name,
        "init": cell.init,
        "seed": cell.seed,
        "settings": settings(site),
        "candidates": len(posed.candidate.b1),
        "channels": place.channels,
        "activation": str(posed.candidate.activation),
        "readers": [{"outputs": reader.features, "taps": reader.geometry.taps} for reader in place.linear],
        "rows": posed.rows,
        "samples": {"fitted": job.split.fit.samples, "held_out": job.split.held_out.samples},
        "curves": curves,
        "stop": {"width": len(stop.kept), "error": short(stop.held_out_error)},
        "seconds": seconds,
        "machine": machine(),
        "versions": {"onnx-compnet": __version__, **library_versions()},
    }


def path_of(posed: PosedSite, options: GrowOptions, method: str) -> dict[str, list[Any]]:
    """The widths on a method's path, and the worst reader's error at each, on held-out rows."""
    chosen = posed.select(options.changed({"method": method, "max_error": ANY}))
    points = [(width, error) for _, width, error, _ in chosen.curve if error is not None]
    return {"widths": [width for width, _ in points], "errors": [short(error) for _, error in points]}


def short(value: float | None) -> float | None:
    """Five significant digits."""
    return None if value is None else float(f"{value:.5g}")
