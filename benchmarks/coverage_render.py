"""The results of coverage.py as a Markdown document."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.coverage_run import kind_of

Record = dict[str, Any]
GROUPS = {
    "corpus": "Trained models out of public packages",
    "own": "This project's own model",
    "torchvision": "torchvision's networks, random weights, through both of torch's exporters",
    "light": "onnx's light models (IR 3), random weights",
    "constructed": "Constructed models, random weights",
}
LABELS = (  # of a refusal, the first that fits
    (r"it lies in a body", "in a body of If, Loop or Scan"),
    (r"is read in a body", "tensor read in a body of If, Loop or Scan"),
    (r"local function", "in a local function"),
    (r"is read by (\w+) .*not a linear layer", r"tensor read by \1, too"),
    (r"is an output of the model", "tensor is an output of the model"),
    (r"product of two tensors", "product of two computed tensors"),
    (r"is a batch of \d+ matrices", "batch of matrices as weight"),
    (r"is a vector, so", "vector as weight"),
    (r"quantised", "quantised layer"),
    (r"weight is computed by (\w+)", r"weight computed by \1"),
    (r"does not flatten", "Reshape that is no Flatten"),
    (r"is read by (\w+) '", r"tensor read by \1 otherwise"),
)
NOTES = """\
## What this says, and what it does not

- **Mechanics only.** It says where the tool works, not how good a child is. Few candidates (at most 24, fewer where
  rows are few) and few samples keep the runs short; real growths take twice as many neurons as the tensor has
  channels, and far more data. The errors here are therefore large, and no example of what the tool reaches.
- **Random weights and random data say nothing about quality.** Only the models of the first two groups are
  trained. Where no real data suits a model, its inputs are drawn at random, as the column *data* says; real data
  fed to random weights says no more.
- *Photographs* are patches of eight pictures, a smoke test. *Digits* are lines of three MNIST digits. *Source
  files* are bytes of this project's own files.
- **Measured anew.** The child's check (onnx's full checker, strict shape inference, onnxruntime), the errors on
  held-out data, and the comparison of the protobufs outside the edit come from a script of its own, which shares
  no code with the tool. Where its site error is not the tool's, the site counts as failed.
- A block with an activation that allows an exact core fails here if its error is above 1e-4 (5e-3 in float16), as
  does a site in front of a grouped Conv.
- Only the sites that `sites` lists are tried, by the name it gives them and otherwise by default options; at most
  six of mode replace and three blocks a model (four and two of onnx's light models), spread over the graph, and no
  block of more than 512 channels where there are narrower ones.
- A model that strict shape inference refuses, or onnxruntime can't run, can't hold its child to more; it is
  marked.
- Linear nodes are Conv, Gemm, MatMul, ConvTranspose and their quantised and fused kin in the main graph. Those in
  bodies are listed by the tool as well, but not counted.
- The three columns of *torch* are those of [bridge.md](bridge.md), where the measures are described and the reasons
  given: the largest error of `to_torch`'s outputs against onnxruntime's, how many floating-point weights a gradient
  reaches that is not 0, and the error of the model that `write_back` made after a step of SGD. They come from runs of
  their own (`python benchmarks/bridge.py`). Measures against onnxruntime need a model that it runs.
- Times are of one machine with two cores; only their growth with the number of nodes means something.
"""


def document(records: Sequence[Record], bridge: Sequence[Record] = ()) -> str:
    """The whole document; ``bridge`` are the records of benchmarks/bridge.py."""
    torch = {record["model"]: record for record in bridge}
    models = [record for record in records if record["kind"] == "model"]
    sites: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "site":
            sites[record["model"]].append(record)
    parts = [_head(models, sites), _torch_head(models, torch)]
    for group, title in GROUPS.items():
        members = [model for model in models if model["group"] == group]
        if members:
            parts.append(_table(title, members, sites, torch))
    parts += [
        _failures(models, sites),
        _blocks(models),
        _refusals(models),
        _not_grown(sites),
        _times(models),
        NOTES,
    ]
    return "\n".join(part for part in parts if part)


def _head(models: Sequence[Record], sites: dict[str, list[Record]]) -> str:
    good = [model for model in models if "failed" not in model]
    tried = [site for each in sites.values() for site in each]
    count = Counter(site["status"] for site in tried)
    linear, read, block = (sum(model[key] for model in good) for key in ("linear", "read", "block"))
    refused, integer = (sum(model[key] for model in good) for key in ("refused", "integer"))
    lost = sum(len(model["neither_or_both"]) for model in good)
    bytes_ = [site["same_bytes"] for site in tried if "same_bytes" in site]
    versions = next((model["versions"] for model in reversed(good) if "versions" in model), {})
    return f"""\
# Coverage

Over which exported models the tool works, and where it does not and why.

Rendered from [benchmarks/results/coverage.jsonl](../benchmarks/results/coverage.jsonl) by
`python benchmarks/coverage.py --write`, which first runs what is missing there. Versions: {_versions(versions)}.

| | |
|---|---:|
| models | {len(models)} |
| models that failed to load or list | {len(models) - len(good)} |
| linear nodes in their main graphs | {linear:,} |
| … in front of which a new layer can go and the node be solved anew | {read:,} ({_share(read, linear)}) |
| … otherwise, in front of which a block can go | {block:,} |
| … growable by one or the other | {read + block:,} ({_share(read + block, linear)}) |
| … the same of those in floating point | {_share(read + block, linear - integer)} |
| … refused with a reason | {refused:,} |
| … neither listed nor refused, or both | {lost} |
| sites that the tool lists | {sum(model["sites"] for model in good):,} |
| sites grown for this document | {len(tried)} |
| … with a valid child, unchanged outside the edit, measured | {count["ok"]} |
| … refused while growing | {count["refused"]} |
| … failed | {count["failed"]} |
| models grown twice with one seed | {len(bytes_)} |
| … with the same bytes | {sum(bytes_)} |
"""


def _torch_head(models: Sequence[Record], torch: dict[str, Record]) -> str:
    tried = [torch[model["model"]] for model in models if model["model"] in torch]
    good = [record for record in tried if record["status"] == "ok"]
    if not good:
        return ""
    weights = sum(record["parameters"] for record in good)
    reached = sum(record["with_nonzero_gradient"] for record in good)
    errors = [max(record[key] for record in good) for key in ("rel_error", "rel_error_tuned")]
    return f"""\
In PyTorch, of the same models ([bridge.md](bridge.md)):

| | |
|---|---:|
| models tried | {len(tried)} |
| … converted by `to_torch` and measured | {len(good)} |
| … refused, with the ops that have no conversion | {sum(record["status"] == "refused" for record in tried)} |
| … that onnxruntime can't run | {sum(record["status"] == "failed" for record in tried)} |
| largest error of the module's outputs against onnxruntime | {_figure(errors[0])} |
| floating-point weights that a gradient reaches | {reached:,} of {weights:,} ({_share(reached, weights)}) |
| largest error after training and `write_back` | {_figure(errors[1])} |
| models that `write_back` gives byte for byte without training | {sum(r["round_trip"] for r in good)} |
"""


def _torch_cells(record: Record | None) -> tuple[str, str, str]:
    """Error of the outputs, weights that a gradient reaches, error after write-back."""
    if record is None:
        return "–", "–", "–"
    if record["status"] != "ok":
        return ("refused" if record["status"] == "refused" else "not measured"), "–", "–"
    reached = f"{record['with_nonzero_gradient']} / {record['parameters']}"
    return _figure(record["rel_error"]), reached, _figure(record["rel_error_tuned"])


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _table(
    title: str, models: Sequence[Record], sites: dict[str, list[Record]], torch: dict[str, Record]
) -> str:
    lines = [
        f"## {title}\n",
        "| model | nodes | linear nodes: by a site + by a block / all | sites | refused by `sites`, by reason "
        "| grown / tried | site error: median, worst | block error: worst "
        "| torch: output error | torch: weights with a gradient | torch: error after write-back | data |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for model in models:
        if "failed" in model:
            lines.append(f"| {model['model']} | | | | **failed** | | | | | | | |")
            continue
        tried = sites[model["model"]]
        good = [site for site in tried if site["status"] == "ok"]
        measured = [site for site in good if site["site_error"] is not None]
        errors = [site["site_error"] for site in measured if site["mode"] != "block"]
        blocks = [site["site_error"] for site in measured if site["mode"] == "block"]
        error = f"{_figure(statistics.median(errors))}, {_figure(max(errors))}" if errors else "–"
        growable = f"{model['read']} + {model['block']} / {model['linear']}"
        cells = [
            model["model"], f"{model['nodes']:,}", growable, str(model["sites"]),
            _counted(label(reason) for _, _, reason in model["reasons"]) or "–",
            f"{len(good)} / {len(tried)}" if tried else "–", error,
            _figure(max(blocks)) if blocks else "–", *_torch_cells(torch.get(model["model"])), _data(model),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _data(model: Record) -> str:
    marks = []
    if model["parent_run"] is not None:
        listed = model["parent_run"].startswith("not run")
        marks.append("listed only" if listed else "onnxruntime can't run it")
    elif model["parent_check"] is not None:
        marks.append("the parent fails strict inference")
    names = {"colour-patches": "photographs", "mnist-5k": "digits"}
    return "; ".join([*([] if model["parent_run"] else [names.get(model["data"], model["data"])]), *marks])


def _counted(items: Iterable[str]) -> str:
    return "; ".join(f"{count} {item}" for item, count in Counter(items).most_common())


def _figure(value: float) -> str:
    return f"{value:.2g}"


def label(reason: str) -> str:
    """The kind of a refusal in a few words."""
    for pattern, text in LABELS:
        match = re.search(pattern, reason)
        if match:
            return match.expand(text)
    return kind_of(reason)


def _failures(models: Sequence[Record], sites: dict[str, list[Record]]) -> str:
    lines = [f"- **{model['model']}**: {model['failed']}" for model in models if "failed" in model]
    for model in models:
        for name in model.get("neither_or_both", []):
            lines.append(
                f"- **{model['model']}**, node `{name}`: neither a reader of a site nor refused, or both"
            )
    for name, tried in sites.items():
        lines += [
            f"- **{name}**, `{site['site']}`: {site['reason']}{_fit(site)}"
            for site in tried
            if site["status"] == "failed"
        ]
    return "## Failures\n\n" + ("\n".join(lines) if lines else "None.") + "\n"


def _fit(site: Record) -> str:
    if "kept" not in site:
        return ""
    rows = site["rows"] / site["columns"]
    return f" ({site['channels']} channels, {site['kept']} of {site['candidates']} kept, {rows:.0f} rows a column)"


def _blocks(models: Sequence[Record]) -> str:
    count = Counter(label(reason) for model in models for reason in model.get("why_block", []))
    lines = [
        "## Blocks in front of linear nodes, by reason\n",
        "Why the nodes that read the tensor can't be solved anew.\n",
        "| reason | blocks |",
        "|---|---:|",
        *(f"| {reason} | {number} |" for reason, number in count.most_common()),
    ]
    return "\n".join(lines) + "\n"


def _refusals(models: Sequence[Record]) -> str:
    count: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    example: dict[str, tuple[str, str, str, str]] = {}
    for model in models:
        for op_type, name, reason in model.get("reasons", []):
            kind = label(reason)
            count[kind] += 1
            where[kind].add(model["model"])
            example.setdefault(kind, (model["model"], op_type, name, reason))
    lines = [
        "## Refused linear nodes, by reason\n",
        "Nodes in bodies and local functions are among them.\n",
        "| reason | nodes | models | example |",
        "|---|---:|---:|---|",
    ]
    for kind, number in count.most_common():
        model, op_type, name, reason = example[kind]
        lines.append(
            f"| {kind} | {number} | {len(where[kind])} | {model}, {op_type} `{name}`: {_cell(reason)} |"
        )
    return "\n".join(lines) + "\n"


def _not_grown(sites: dict[str, list[Record]]) -> str:
    lines = [
        f"- **{name}**, `{site['site']}`: {site['reason']}"
        for name, tried in sites.items()
        for site in tried
        if site["status"] == "refused"
    ]
    return "## Refused while growing\n\n" + ("\n".join(lines) if lines else "None.") + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _times(models: Sequence[Record]) -> str:
    good = sorted((m for m in models if "failed" not in m), key=lambda model: -model["nodes"])
    lines = [
        "## Time to list\n",
        "The models with the most nodes; `find_sites` and `refusals` should take time linear in their number.\n",
        "| model | nodes | load, s | find_sites, s | refusals, s | find_sites, ms a node |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in good[:10]:
        seconds = model["seconds"]
        lines.append(
            f"| {model['model']} | {model['nodes']:,} | {seconds['load']:.2f} | {seconds['sites']:.2f} "
            f"| {seconds['refusals']:.2f} | {1000 * seconds['sites'] / model['nodes']:.2f} |"
        )
    return "\n".join(lines) + "\n"
