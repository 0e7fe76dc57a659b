"""Do the scores of `suggest` tell where growing gains? Grow at every place of two networks, train, and correlate.

    python benchmarks/suggest.py           # runs what is missing, then prints and writes the table
    python benchmarks/suggest.py --write   # also docs/suggest.md

LeNet4 with a quarter of its channels and VGG15 with an eighth, on Fashion-MNIST. Each place is grown by all of grow's
default candidates, which begin with the data's principal directions, so that next to nothing is lost; then parent and
children are trained for the same epochs. The gain is how much lower the child's test loss ends than the parent's, and
how much higher its accuracy. Spearman's rank correlation over the places.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from scipy.stats import spearmanr

import onnx_compnet as oc
from benchmarks.corpus import cache_folder
from benchmarks.paper_rows import ROWS, Row, settings_of
from benchmarks.paper_run import Bench, machine, write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "suggest"
DOCUMENT = ROOT / "docs" / "suggest.md"
SCORES = {
    "bottleneck": "expressivity bottleneck (TINY)",
    "unexpressed": "its share of the gradient",
    "used": "effective rank / channels",
    "effective_rank": "effective rank",
    "parameters": "parameters added by default",
    "flops": "FLOPs added by default",
}
GAINS = {"loss": "test loss", "accuracy": "test accuracy"}
FORMAT = 1


@dataclass(frozen=True)
class Network:
    """One network: a row of the paper whose parent it is, and the settings that differ."""

    name: str
    title: str
    row: Row
    changes: dict[str, Any]


NETWORKS = {
    network.name: network
    for network in (
        Network("lenet4-quarter", "LeNet4, 5 and 12 channels", ROWS["lenet5"], {
            "width_multiplier": 0.25, "samples": 20_000, "epochs": 2, "parent_epochs": 8, "lr": 5e-3,
            "schedule": "cosine"}),
        Network("vgg15-eighth", "VGG15, an eighth of its channels", ROWS["vgg16-relu"], {
            "width_multiplier": 0.125, "samples": 10_000, "test_samples": 5_000, "epochs": 1, "parent_epochs": 20,
            "lr": 5e-3, "parent_lr": 0.05, "dropout": 0.1, "batch_size": 64, "schedule": "cosine"}),
    )
}  # fmt: skip


def bench_of(network: Network, work: Path) -> Bench:
    """The data and the parent are those of the paper's experiments."""
    settings = settings_of(network.row.family, "fashion-mnist", **network.changes)
    return Bench(settings, network.row.family, RESULTS, work)


def measure(network: Network, seed: int, work: Path) -> dict[str, Any]:
    """All places of one network: scores, and what came of growing there. Resumable place by place."""
    path = RESULTS / f"{network.name}.seed{seed}.json"
    record: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    bench = bench_of(network, work)
    if not record:
        parent = bench.parent(network.row, seed)
        record = {
            "format": FORMAT, "network": network.name, "seed": seed, "settings": network.changes,
            "machine": machine(), "parent": trained(bench, parent, seed), "sites": {},
            "scores": scores(bench, parent, seed),
        }  # fmt: skip
        write(path, record)
    parent = bench.parent(network.row, seed)
    for site in record["scores"]:
        if site in record["sites"]:
            continue
        try:
            whole = record["scores"][site]["neurons"]
            growth = oc.grow(
                parent, site, {"x": bench._calibration(seed)}, init="principal", method="random", candidates=whole,
                keep=whole, seed=seed, **bench.pixels,
            )  # fmt: skip
        except oc.CompnetError as error:
            record["sites"][site] = {"refused": str(error)}
        else:
            figures = {"kept": len(growth.kept), "site_error": growth.site_error}
            record["sites"][site] = figures | trained(bench, growth.model, seed)
        write(path, record)
        print(f"{network.name} seed {seed} {site}: {record['sites'][site]}", flush=True)
    return record


def scores(bench: Bench, parent: Any, seed: int) -> dict[str, dict[str, Any]]:
    """site → its scores, on the images that grow is given, with their labels."""
    images = bench.images
    rows = np.sort(
        np.random.default_rng([seed, 1]).permutation(len(images.train_x))[: bench.settings.calibration]
    )
    data = {"x": images.train_x[rows], "y": images.train_y[rows]}
    found = oc.suggest(parent, data, **bench.pixels)
    return {
        score.site.name: {name: getattr(score, name) for name in (*SCORES, "neurons")}
        | {"mode": score.site.mode}
        for score in found.sites
    }


def trained(bench: Bench, model: Any, seed: int) -> dict[str, Any]:
    """Test loss and accuracy of the last epoch."""
    s, images = bench.settings, bench.images
    tuned = oc.finetune(
        model,
        {"x": images.train_x, "y": images.train_y},
        {"x": images.test_x, "y": images.test_y},
        epochs=s.epochs, batch_size=s.batch_size, optimizer="sgd", momentum=s.momentum, lr=s.lr, warmup=0.0,
        weight_decay=s.weight_decay, schedule=s.schedule, clip_norm=s.clip_norm, augment=s.augment,
        crop_padding=s.crop_padding, best_by="last", seed=seed, **bench.pixels,
    )  # fmt: skip
    last = tuned.history[-1].val
    return {"loss": last.loss, "accuracy": last.accuracy, "before": tuned.history[0].val.accuracy}


def correlations(record: dict[str, Any]) -> dict[str, dict[str, tuple[float, int]]]:
    """score → gain → (Spearman's ρ, places)."""
    parent = record["parent"]
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for score in SCORES:
        for gain in GAINS:
            pairs = []
            for site, result in record["sites"].items():
                value = record["scores"][site][score]
                if "refused" not in result and value is not None:
                    sign = 1 if gain == "accuracy" else -1
                    pairs.append((value, sign * (result[gain] - parent[gain])))
            rho = float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 else float("nan")
            found.setdefault(score, {})[gain] = rho, len(pairs)
    return found


def document(records: Sequence[dict[str, Any]]) -> str:
    """docs/suggest.md."""
    lines = [
        "# Do the scores of `suggest` tell where growing gains?", "",
        "Each place of a trained network is grown by all of grow's default candidates, which begin with the data's",
        "principal directions (`--init principal`), so that next to nothing is lost. Parent and children are then",
        "trained for the same epochs on Fashion-MNIST. ρ is Spearman's rank correlation between a score before",
        "growing and the gain after training, over the places of one network; 1: the score ranks the places as the",
        "gains do, 0: it says nothing, −1: the wrong way round. `python benchmarks/suggest.py --write` makes this",
        "page.", "",
    ]  # fmt: skip
    for name, network in NETWORKS.items():
        mine = [record for record in records if record["network"] == name]
        if not mine:
            continue
        s = network.changes
        lines += [
            f"## {network.title}", "",
            f"{s['samples']:,} training images, {s['epochs']} epochs after growing, {len(mine)} seeds; the parent, "
            f"trained on as long, ends at test accuracy {_mean([r['parent']['accuracy'] for r in mine], 4)}.", "",
            "| score | ρ with the gain in test loss | ρ with the gain in accuracy |",
            "|---|---:|---:|",
        ]  # fmt: skip
        tables = [correlations(record) for record in mine]
        for score, text in SCORES.items():
            cells = [_mean([table[score][gain][0] for table in tables], 2) for gain in GAINS]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        lines += [
            "",
            "| place | mode | bottleneck | used | kept | loss gain | accuracy gain |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for site in mine[0]["scores"]:
            lines.append(_site_row(site, mine))
        lines.append("")
    return "\n".join(lines)


def _site_row(site: str, records: Sequence[dict[str, Any]]) -> str:
    grown = [
        (r, r["sites"][site]) for r in records if site in r["sites"] and "refused" not in r["sites"][site]
    ]
    told = [r["scores"][site] for r in records if site in r["scores"]]
    psi = [each["bottleneck"] for each in told if each["bottleneck"] is not None]
    cells = [
        f"`{site}`", told[0]["mode"], _mean(psi, 3) if psi else "-", _mean([each["used"] for each in told], 2),
        _mean([each["kept"] for _, each in grown], 0) if grown else "refused",
        _mean([r["parent"]["loss"] - each["loss"] for r, each in grown], 4) if grown else "-",
        _mean([each["accuracy"] - r["parent"]["accuracy"] for r, each in grown], 4) if grown else "-",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=cache_folder() / "paper", help="trained parents")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="write docs/suggest.md")
    parser.add_argument("--only-document", action="store_true", help="run nothing")
    options = parser.parse_args(argv)
    logging.getLogger("onnx_compnet").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.only_document:
        for seed in range(options.seeds):
            for name in options.networks:
                measure(NETWORKS[name], seed, options.work)
    records = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.seed*.json"))]
    text = document(records)
    print(text)
    if options.write:
        DOCUMENT.write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
