"""The rows that a comparison has, and what is printed of made-up figures."""

from __future__ import annotations

import json

import pytest

import onnx_compnet as oc
from onnx_compnet.comparison.entries import ENTRIES, chosen, known, needed
from onnx_compnet.comparison.report import comparison_report, comparison_text
from onnx_compnet.comparison.result import MethodComparison, MethodRow, MethodRun, Training
from onnx_compnet.config import METHODS
from onnx_compnet.graph.sites import Site
from onnx_compnet.layers import Activation, ConvGeometry
from onnx_compnet.report import dumps

# ---------------------------------------------------------------- which rows


def names(entries):
    return [entry.name for entry in entries]


def test_every_method_of_grow_has_a_row():
    assert set(METHODS) <= {entry.method for entry in ENTRIES}
    assert len(set(names(ENTRIES))) == len(ENTRIES)
    lenders = {entry.width for entry in ENTRIES} - {"own", "all", "none"}
    assert lenders <= set(names(ENTRIES))


def test_rows_of_methods_that_grow_does_not_have_are_left_out():
    assert names(known(("alg3", "random")).values()) == ["parent", "alg3", "random", "scratch"]
    assert "netmorph-alg2" in known(("alg2", "netmorph"))


def test_the_parent_comes_first_and_the_order_is_that_of_the_table():
    assert names(chosen(["scratch", "alg1"])) == ["parent", "alg1", "scratch"]
    assert names(chosen(None)) == list(known())
    with pytest.raises(oc.UsageError, match=r"--methods: 'alg9' is not one of parent, alg1"):
        chosen(["alg1", "alg9"])
    for nothing in ([], ["parent"]):
        with pytest.raises(oc.UsageError, match="names no method to compare"):
            chosen(nothing)


def test_rows_that_lend_a_width_are_made_first():
    def made(rows, **options):
        return names(needed(chosen(rows), oc.GrowOptions(**options)))

    rows = ["random", "netmorph-alg2", "net2deeper"]
    assert made(rows) == ["parent", "alg2", "alg3", "random", "netmorph-alg2", "net2deeper"]
    assert made(rows, keep=8) == ["parent", "random", "netmorph-alg2", "net2deeper"]
    assert made(["random", "obs"], max_error=0.1) == ["parent", "obs", "random"]
    assert made(["random", "netmorph-alg2"], max_error=0.1) == ["parent", "alg2", "random", "netmorph-alg2"]
    assert made(["forward", "obs"]) == ["parent", "alg3", "obs", "forward"]
    assert made(["scratch"], keep=8, max_error=0.1) == ["parent", "alg3", "scratch"]
    assert made(["random", "alg1", "alg3"]) == ["parent", "alg3", "alg1", "random"]


# ---------------------------------------------------------------- text and JSON


def site():
    from onnx_compnet.graph.structures import Reader

    reader = Reader(
        "/conv2/Conv", "Conv", 3, "t", "y", 50, ConvGeometry((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))
    )
    return Site("conv1", "t", "conv", 20, (reader,), Activation("relu"), (8, 8), 4, "float32", 1)


def comparison(*rows, seeds=(0,), epochs=None, **others):
    values = {
        "site": site(), "data": "npz d.npz", "random_data": False, "samples_fitted": 80, "samples_held_out": 20,
        "device": "cpu", "parent_sha256": "ab", "options": {"lam": 0.1, "freeze": ("a",), "shape": {"x": (1, 2)}},
    }  # fmt: skip
    return MethodComparison(rows=rows, seeds=seeds, epochs=epochs, **{**values, **others})


def training(before, accuracy, seconds=1.0):
    return Training(before, accuracy, 0.5, 1, 90, 10, "npz d.npz", "npz v.npz", "cross-entropy", seconds)


def run(seed=0, width=31, parameters=252557, **others):
    figures = {"candidates": 40, "flops": 7557760, "site_error": 0.118, "agreement": 0.9875, "seconds": 5.0}
    return MethodRun(seed, width, parameters=parameters, **{**figures, **others})


def parent(*seeds, accuracies=()):
    trained = [training(0.9, accuracy) for accuracy in accuracies] or [None] * len(seeds)
    runs = [
        MethodRun(s, None, None, 233196, 4190720, training=t) for s, t in zip(seeds, trained, strict=True)
    ]
    return MethodRow("parent", None, tuple(runs), {})


def table(text, head="method"):
    """{row: cells} of the table that begins with the column ``head``; the header under its own name."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = {}
    for line in lines[start:]:
        if not line:
            break
        rows[line[:18].split("  ")[0]] = line.split()
    return rows


def test_a_line_a_row():
    found = comparison(parent(0), MethodRow("alg3", "alg3", (run(),), {}))
    rows = table(comparison_text(found))
    assert rows["method"] == ["method", "width", "parameters", "added", "FLOPs", "error", "agree", "seconds"]
    assert rows["parent"] == ["parent", "233,196", "4.19M"]
    assert rows["alg3"] == ["alg3", "31", "252,557", "+19,361", "7.56M", "0.118", "0.9875", "5.0"]
    assert "seed 0; data: npz d.npz" in comparison_text(found)
    assert "RANDOM" not in comparison_text(found)
    assert "RANDOM" in comparison_text(comparison(parent(0), random_data=True))


def test_means_over_seeds_and_the_range_of_widths():
    row = MethodRow("alg3", "alg3", (run(0, 31, 250000), run(1, 35, 260000, site_error=0.122)), {})
    cells = table(comparison_text(comparison(parent(0, 1), row, seeds=(0, 1))))["alg3"]
    assert cells[1:] == ["31–35", "255,000", "+21,804", "7.56M", "0.120", "0.9875", "5.0"]


@pytest.mark.parametrize("wild", [False, True])
def test_eighty_columns_are_enough(wild):
    large = {"width": 16384, "parameters": 138_357_544_123, "flops": 123_456_789_012_345, "seconds": 98765.4}
    figures = {**large, "site_error": float("inf") if wild else 123456.7}
    names = [entry.name for entry in ENTRIES if entry.name != "parent"]
    rows = [MethodRow(name, "m", tuple(run(s, **figures, training=training(0.1, 0.2 * s, 98765.4)) for s in (0, 1)),
                      {}) for name in names]  # fmt: skip
    reason = "the node /features/features.0/Conv is refused " * 9
    failed = MethodRow("alg1", "alg1", (), {0: reason, 1: reason + "again"})
    found = comparison(parent(0, 1, accuracies=(0.1, 0.3)), *rows, failed, seeds=(0, 1), epochs=3)
    text = comparison_text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "138G" in text
    assert "123T" in text
    assert "alg1: seed 1: the node" in text


SHORT = {
    0: "0", 999: "999", 1000: "1.00k", 9_995: "10.0k", 99_950: "100k", 999_499: "999k", 999_500: "1.00M",
    4_190_720: "4.19M", 94_600_000: "94.6M", 1.23e12: "1.23T",
}  # fmt: skip


@pytest.mark.parametrize("value", SHORT)
def test_three_digits(value):
    row = MethodRow("alg3", "alg3", (run(flops=value),), {})
    assert table(comparison_text(comparison(parent(0), row)))["alg3"][4] == SHORT[value]


def test_a_method_that_failed_is_a_row_with_its_reason():
    row = MethodRow("net2deeper", "net2deeper", (), {0: "tanh is not linear", 1: "tanh is not linear"})
    text = comparison_text(comparison(parent(0, 1), row, seeds=(0, 1)))
    assert table(text)["net2deeper"][-1] == "failed"
    assert text.endswith("\nnet2deeper: tanh is not linear")


def test_training_is_compared_with_the_parent_seed_by_seed():
    runs = tuple(run(seed, training=training(0.8, value)) for seed, value in enumerate((0.90, 0.94)))
    alone = MethodRow(
        "random", "random", (run(1, training=training(0.7, 0.91)),), {0: "training: it diverged"}
    )
    found = comparison(
        parent(0, 1, accuracies=(0.89, 0.92)),
        MethodRow("alg3", "alg3", runs, {}),
        alone,
        seeds=(0, 1),
        epochs=2,
    )
    text = comparison_text(found)
    second = table(text[text.index("accuracy after 2 epochs") :])
    assert "on 90 samples of npz d.npz" in text.replace("\n ", "")
    assert "mean ± standard deviation of 2 seeds" in text.replace("\n  ", " ")
    assert second["parent, trained on"][3:] == ["0.9000", "0.9050", "±", "0.0212", "1.0"]
    assert second["alg3"][1:] == ["0.8000", "0.9200", "±", "0.0283", "+0.0150", "±", "0.0071", "1.0"]
    assert second["random"][1:] == ["0.7000", "0.9100", "-0.0100", "1.0"]
    assert "random: seed 0: training: it diverged" in text


def test_the_last_epoch_was_not_chosen():
    row = MethodRow("alg3", "alg3", (run(training=training(0.8, 0.9)),), {})
    for best_by, told in (("auto", True), ("last", False)):
        text = comparison_text(
            comparison(parent(0, accuracies=(0.9,)), row, epochs=1, options={"best_by": best_by})
        )
        assert ("also chose the epoch" in text.replace("\n  ", " ")) == told


def test_labels_that_are_no_classes_are_compared_by_the_loss():
    def lost(loss):
        return Training(None, None, loss, 1, 90, 10, "d", "v", "mse", 1.0)

    row = MethodRow("alg3", "alg3", (run(training=lost(0.25)),), {})
    first = MethodRow("parent", None, (MethodRun(0, None, None, 1, 1, training=lost(0.5)),), {})
    text = comparison_text(comparison(first, row, epochs=1))
    assert "loss after 1 epoch on" in text
    assert table(text[text.index("loss after") :])["alg3"] == ["alg3", "0.2500", "-0.2500", "1.0"]


def test_the_report_is_json():
    rows = (
        MethodRow("alg3", "alg3", (run(0), run(1, site_error=float("inf"))), {}),
        MethodRow("x", "x", (), {0: "no"}),
    )
    found = comparison(parent(0, 1), *rows, seeds=(0, 1))
    report = json.loads(dumps(comparison_report(found)))
    assert {"schema", "version", "libraries", "data", "samples", "seeds", "site", "rows"} <= set(report)
    assert report["schema"] == 1
    assert report["options"] == {"lam": 0.1, "freeze": ["a"], "shape": {"x": [1, 2]}}
    assert [row["row"] for row in report["rows"]] == ["parent", "alg3", "x"]
    alg3 = report["rows"][1]
    assert alg3["width"] == {"mean": 31, "spread": 0}
    assert alg3["site_error"] == {"mean": None, "spread": None}  # JSON has no infinity
    assert [each["added"] for each in alg3["runs"]] == [19361, 19361]
    assert alg3["runs"][0]["site_error"] == 0.118
    assert report["rows"][2]["failures"] == [{"seed": 0, "reason": "no"}]


def test_a_row_by_its_name():
    found = comparison(parent(0), MethodRow("alg3", "alg3", (run(),), {}))
    assert found["alg3"].runs[0].width == 31
    assert "alg3" in found
    with pytest.raises(KeyError):
        found["alg1"]
