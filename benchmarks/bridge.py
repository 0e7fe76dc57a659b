"""Which models become torch modules, how exactly, and whether training reaches all of their weights.

    python benchmarks/bridge.py                       # everything that benchmarks/results/bridge.jsonl lacks
    python benchmarks/bridge.py --only resnet18_dynamo light_resnet50
    python benchmarks/bridge.py --again --only …      # forget their results first
    python benchmarks/bridge.py --write               # then render docs/bridge.md

Resumable: one line of JSON a model. Each model is converted and compared with onnxruntime; trained by one SGD
step, written back, and compared with onnxruntime on the written model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import onnx
import onnxruntime
import torch

import onnx_compnet as oc
from benchmarks.coverage_cases import Case, cases
from onnx_compnet.bridge.tensors import to_tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bridge.jsonl"
DOCUMENT = ROOT / "docs" / "bridge.md"
STEP = 0.001  # an SGD step's length, as a share of the length of all weights together
GROUPS = {
    "torchvision": "torchvision 0.29: 12 families, each by both of torch's exporters, random weights",
    "corpus": "public models of the corpus",
    "light": "onnx's light models (IR 3, opset 9), random weights, compared in front of the last Softmax",
    "own": "this project's own",
    "constructed": "constructed, one for each special case",
}
Record = dict[str, Any]


def main() -> None:
    """Run what is missing, and render the document if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models only")
    parser.add_argument("--again", action="store_true", help="forget the results of these models first")
    parser.add_argument("--write", action="store_true", help="render docs/bridge.md afterwards")
    parser.add_argument("--no-run", action="store_true", help="run nothing")
    options = parser.parse_args()
    chosen = [
        case for case in cases() if not case.listing_only and (not options.only or case.name in options.only)
    ]
    names = {case.name for case in chosen}
    records = [item for item in read() if not (options.again and item["model"] in names)]
    RESULTS.write_text("".join(json.dumps(item) + "\n" for item in records), "utf-8")
    for case in [] if options.no_run else chosen:
        if case.name in {item["model"] for item in records}:
            continue
        record = {"model": case.name, "group": case.group, "versions": versions(), **measure(case)}
        print(json.dumps(record), flush=True)
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
    if options.write:
        DOCUMENT.write_text(document(read()), "utf-8")


def read() -> list[Record]:
    """The records so far."""
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {name: metadata.version(name) for name in ("onnx2torch", "onnx", "torch", "torchvision")} | {
        "onnxruntime": onnxruntime.__version__
    }


# ---------------------------------------------------------------- measuring


def measure(case: Case) -> Record:
    """All figures of a model, or why there are none."""
    torch.manual_seed(0)
    try:
        model = oc.load(case.path())
        if case.group == "light":
            model = before_softmax(model)
        return _measure(case, model)
    except oc.UnsupportedError as error:
        return {"status": "refused", "reason": str(error)}
    except Exception as error:  # a benchmark counts failures, whatever they are
        return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _measure(case: Case, model: onnx.ModelProto) -> Record:
    started = time.perf_counter()
    module = oc.to_torch(model)
    seconds = time.perf_counter() - started
    same = oc.write_back(module, model).SerializeToString() == model.SerializeToString()
    model = without_zeros(module, model)
    feed = case.feed(1 if case.fixed else 2, np.random.default_rng(0), held_out=False)
    feed = {
        item.name: feed[item.name].astype(type_of(item)) for item in model.graph.input if item.name in feed
    }
    tensors = {name: to_tensor(array) for name, array in feed.items()}
    found: Record = {
        "status": "ok",
        "parameters": sum(1 for _ in module.parameters()),
        "elements": sum(item.numel() for item in module.parameters()),
        "frozen": dict(module.frozen),
        "seconds": round(seconds, 3),
        "round_trip": same,
    }
    with torch.no_grad():
        before = outputs(module, tensors)
    found["rel_error"] = error(before, run(model, feed))
    found["mode"] = "eval" if case.fixed else "train"
    found |= step(module, tensors, train=not case.fixed)
    tuned = oc.write_back(module.eval(), model)
    with torch.no_grad():
        after = outputs(module, tensors)
    found["moved"] = error(after, [item.numpy() for item in before])
    found["rel_error_tuned"] = error(after, run(tuned, feed))
    return found


def type_of(item: onnx.ValueInfoProto) -> np.dtype[Any]:
    """The type in which an input is declared."""
    return onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)


def step(module: torch.nn.Module, tensors: dict[str, torch.Tensor], *, train: bool) -> Record:
    """One SGD step on a random projection of the outputs; how many weights got a gradient, and one that is not 0."""
    module.train(train)
    weights = list(module.parameters())
    found = [item for item in outputs(module, tensors) if item.is_floating_point()]
    loss = sum(
        ((item / item.detach().abs().max().clamp(min=1e-30)) * torch.randn_like(item)).sum() for item in found
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    reached = [item for item in weights if item.grad is not None]
    length = torch.stack([item.detach().double().norm() for item in weights]).norm()
    slope = torch.stack([item.grad.double().norm() for item in reached if item.grad is not None]).norm()
    torch.optim.SGD(weights, lr=float(STEP * length / slope)).step()
    nonzero = sum(1 for item in reached if item.grad is not None and bool(item.grad.any()))
    return {"with_gradient": len(reached), "with_nonzero_gradient": nonzero}


def outputs(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The module's outputs as a list."""
    result = module(**tensors) if all(name.isidentifier() for name in tensors) else module(*tensors.values())
    return list(result) if isinstance(result, tuple) else [result]


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """The model's outputs by onnxruntime on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


def error(found: Sequence[torch.Tensor], expected: Sequence[Any]) -> float:
    """The largest ‖a − b‖ / ‖b − mean(b)‖ of the outputs."""
    worst = 0.0
    for tensor, right in zip(found, expected, strict=True):
        a, b = tensor.double().numpy(), np.asarray(right, np.float64)
        worst = max(worst, float(np.linalg.norm(a - b) / max(np.linalg.norm(b - b.mean()), 1e-30)))
    return worst


def without_zeros(module: torch.nn.Module, model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of all zeros (a head that is not trained yet) at random: else there is nothing to compare."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0.0, 0.02)
    return oc.write_back(module, model)


def before_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what a last Softmax reads as its output."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for item in model.graph.output:
        node = makers.get(item.name)
        if node is not None and node.op_type == "Softmax":
            item.name = node.input[0]
            item.type.tensor_type.ClearField("shape")
            model.graph.node.remove(node)
    return model


# ---------------------------------------------------------------- rendering


def document(records: Sequence[Record]) -> str:
    """docs/bridge.md."""
    latest = {item["model"]: item for item in records}
    items = {group: [item for item in latest.values() if item["group"] == group] for group in GROUPS}
    refused = [item for item in latest.values() if item["status"] != "ok"]
    named = ", ".join(f"{name} {version}" for name, version in records[-1]["versions"].items())
    parts = [
        _HEAD.format(versions=named),
        table(
            ["models", "number", "converted", "error", "error after a step", "weights with a gradient",
             "same bytes"],
            [_summary(GROUPS[group], found) for group, found in items.items() if found],
        ),
        "## Each model",
        table(
            ["model", "weights", "frozen", "gradient", "error", "error after a step", "moved", "seconds"],
            [_row(item) for found in items.values() for item in found],
        ),
        "## Not converted, or not measured",
        "\n".join(f"- `{item['model']}` ({item['status']}): {item['reason']}" for item in refused),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose first column is text."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in (head, rule, *rows))


def _summary(title: str, items: Sequence[Record]) -> list[object]:
    good = [item for item in items if item["status"] == "ok"]
    reached = sum(item["with_nonzero_gradient"] for item in good)
    return [
        title,
        len(items),
        len(good),
        f"{max(item['rel_error'] for item in good):.1e}",
        f"{max(item['rel_error_tuned'] for item in good):.1e}",
        f"{reached} of {sum(item['parameters'] for item in good)}",
        sum(item["round_trip"] for item in good),
    ]


def _row(item: Record) -> list[object]:
    if item["status"] != "ok":
        return [item["model"], item["status"], *[""] * 6]
    return [
        item["model"],
        item["parameters"],
        len(item["frozen"]) or "",
        item["with_nonzero_gradient"],
        f"{item['rel_error']:.1e}",
        f"{item['rel_error_tuned']:.1e}",
        f"{item['moved']:.2g}",
        f"{item['seconds']:.1f}",
    ]


_HEAD = """
# Training in PyTorch: what converts, and how exactly

Rendered from [benchmarks/results/bridge.jsonl](../benchmarks/results/bridge.jsonl) by
`python benchmarks/bridge.py --write`, which first runs what is missing there. Versions: {versions}.

`oc.to_torch(model)` makes a torch module of a model, and `oc.write_back(module, model)` puts its weights back into
the same graph. For each model:

- *error*: the largest relative error of the module's outputs against onnxruntime's, on two samples (one, where the
  model has that batch size).
- *gradient*: how many of the weights got a gradient that is not 0 from a random projection of the outputs.
- *error after a step*: the same after an SGD step by 0.1 % of the length of all weights and `write_back`, against
  onnxruntime on the written model. The step was taken in `train()` mode (with one sample: `eval()`), so running
  statistics have moved, too. *moved* is how far the step took the outputs.
- *same bytes*: `write_back` without a step gives the model byte for byte.

A head whose weights are all 0 was drawn at random first (ViT's). Errors of 1e-6 are float32's rounding; the largest
of the constructed models is float16's.

What is a weight: every floating-point initialiser, Constant node or sparse tensor of the main graph, except the
settings of ops (clip bounds, scales, exponents), what only comparisons read or Where and Scatter make masks of, and
numbers with one element that no layer holds (√2, 0.5). Running statistics are buffers, and are written back.

*frozen* tensors are buffers that are not written back: what is computed from constants (a mask), dequantised weights
(integers can't follow a gradient), what lies inside a local function, tensors with infinities, and a tensor that is a
running statistic and a weight at once, which the exporters make of equal ones; such a BatchNormalization keeps its
statistics in training, too. `module.frozen` names them.
BatchNormalization in training moves its statistics as PyTorch's does (with the unbiased variance).
"""

if __name__ == "__main__":
    main()
