"""docs/when-growing-pays.md from made-up results: figures, verdicts, and conclusions that must hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import pay_report
from benchmarks.paper_run import write
from benchmarks.pay_plan import CORE, EXPERIMENTS, GROWN, MORE, NEXT, TEST, TITLES, Plan
from benchmarks.pay_results import Figure, gather
from benchmarks.pay_run import Bench, Setting

LEVEL = {"trained-on": 0.90, "alg3": 0.92, "random": 0.92, "scratch": 0.88, "net2deeper": 0.90}
WIGGLE = (0.0, 0.004, -0.004)


def record(bench, task):
    """A run whose accuracy is its method's level, shifted by the parent's luck and, for some, by its own."""
    level = LEVEL.get(task.method, 0.89) + WIGGLE[task.seed]
    level += {"random": (0.002, -0.001, -0.001), "alg3": (0.001, 0.0, -0.001)}.get(task.method, (0, 0, 0))[
        task.seed
    ]
    grown = task.method in (*GROWN, "twice", "thrice", "alg3-early")
    growth = {"site": "conv2", "candidates": 20, "kept": 10, "site_error": 0.2, "agreement": 0.9, "flops": 20}
    curve = [
        {"stage": 0, "epoch": epoch, "images": 1000 * epoch, "flops": 20 * grown + 490 * epoch,
         "accuracy": level - 0.05 * (2 - epoch), "loss": 0.3, "train_loss": None}
        for epoch in range(3)
    ]  # fmt: skip
    return {
        "format": 1, "method": task.method, "seed": task.seed, "split": task.split,
        "parent": task.parent and task.parent.name, "setting": bench.setting.stored(task.experiment),
        "versions": {"torch": "1"}, "machine": {"cpu": "a CPU", "threads": 1}, "parameters": 1234,
        "forward_flops": 500_000, "flops": {"budget": 1000, "spent": 1000, "growth": 20 * grown},
        "growths": [growth] if grown else [], "curve": curve,
        "final": {"accuracy": level, "loss": 0.3}, "train_seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    bench = Bench(Setting(), tmp_path / "results", tmp_path)
    plan = Plan(EXPERIMENTS["longer"], bench.best)
    for groups in (plan.search(), plan.explore(), plan.final(CORE + NEXT + MORE)):
        for task in (task for group in groups for task in group):
            if (task.method, task.seed, task.split) not in (
                ("twice", 2, TEST),
                ("obs", 0, TEST),
                ("obs", 1, TEST),
            ):
                write(bench.path(task), record(bench, task))
    return bench.out


@pytest.fixture
def outcomes(results):
    return pay_report.gathered(results, list(EXPERIMENTS.values()), 3)


def test_a_verdict_needs_an_interval_beside_0():
    assert Figure((0.02, 0.02, 0.021)).verdict == "wins"
    assert Figure((-0.02, -0.02, -0.021)).verdict == "loses"
    assert Figure((0.02, 0.001, -0.01)).verdict == "ties"
    assert Figure((0.02, 0.02)).verdict is None  # too few
    # Student's t of 2 degrees of freedom at 95 %: 2.920
    assert Figure((1.0, 2.0, 3.0)).half_width == pytest.approx(2.920 * 1 / 3**0.5, rel=1e-3)


def test_differences_are_taken_seed_by_seed(outcomes):
    longer = outcomes[0]
    assert longer.figure("alg3", lambda r: r["final"]["accuracy"]).text() == "0.9200 ± 0.0046"
    assert longer.over("alg3", "trained-on").text(sign=True) == "+0.0200 ± 0.0010"
    assert longer.over("alg3", "trained-on").verdict == "wins"
    assert longer.over("alg3", "random").verdict == "ties"
    assert longer.over("scratch", "trained-on").verdict == "loses"


def test_the_document_says_what_the_files_say(outcomes):
    text = pay_report.document(outcomes, "**Grown {{longer alg3 accuracy}}.**")
    assert "**Grown 0.9200 ± 0.0046.**" in text
    (row,) = re.findall(r"\| grown, Algorithm 3 \| 1,234 .*", text)
    assert "| 2.0% |" in row
    assert row.endswith("| wins |")
    assert re.search(r"\| child from scratch \|.*\| loses \|", text)
    assert "| grown, Algorithm 3 | 0.200 ± 0.000 | +0.00 ± 0.10 |" in text  # against random neurons
    assert "Seeds: 3 (grown, OBS 1, grown twice, Algorithm 3 2)." in text
    assert "- the parent is too small, grown, OBS: seed 0, 1." in text
    assert "- data grows: the search, and all that depends on it." in text
    bold = re.findall(r"\*\*0\.\d+\*\*", text)
    assert len(bold) == len(set(outcomes[0].chosen.values()) & set(outcomes[0].searched))
    assert "nan" not in text
    assert "None" not in text


def test_a_claim_that_does_not_hold_stops_the_report(outcomes, results, tmp_path, capsys):
    said = pay_report.filled(
        "It wins{{longer alg3 wins trained-on}} by {{longer alg3 over trained-on}}.", outcomes
    )
    assert said == "It wins by +2.00 ± 0.10."
    for text, part in (
        ("{{longer alg3 loses trained-on}}", "does not hold: it wins"),
        ("{{longer obs wins trained-on}}", "not run often enough"),
        ("{{longer alg3 beats trained-on}}", "nothing that is known"),
        ("{{longer alg4 accuracy}}", "no method"),
        ("{{shorter alg3 accuracy}}", "no experiment"),
    ):
        with pytest.raises(ValueError, match=part):
            pay_report.filled(text, outcomes)
    conclusions = tmp_path / "conclusions.md"
    conclusions.write_text("{{longer alg3 loses trained-on}}")
    arguments = [
        "--results",
        str(results),
        "--conclusions",
        str(conclusions),
        "--write",
        str(tmp_path / "doc.md"),
    ]
    assert pay_report.main([*arguments, "--no-figures"]) == 1
    assert "does not hold" in capsys.readouterr().err
    assert not (tmp_path / "doc.md").exists()


def test_a_search_that_is_not_over_settles_nothing(results):
    bench = Bench(Setting(), results, results)
    for path in (results / "longer.validation").glob("parent.*"):
        path.unlink()
    outcome = gather(bench, EXPERIMENTS["longer"], range(3))
    assert (outcome.complete, outcome.methods, outcome.chosen) == (False, [], {})


def test_figures_have_every_curve(outcomes, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import pay_figures

    path = pay_figures.draw(outcomes[0], tmp_path)
    text = path.read_text()
    for method in ("trained-on", "alg3", "random", "scratch", "scratch-total"):
        assert TITLES[method] in text
    assert pay_figures.draw(outcomes[0], tmp_path / "again").read_text() == text
    assert pay_figures.draw(outcomes[1], tmp_path) is None
    flops, accuracies = outcomes[0].curve("alg3")
    assert flops.tolist() == [1020, 1510, 2000]  # the parent's 1000 and what growing cost come first
    assert accuracies.shape == (3, 3)
    assert outcomes[0].curve("scratch")[0][0] == 0


def test_the_document_in_the_repository_is_that_of_its_results(tmp_path):
    written = Path(pay_report.DOCUMENT)
    assert pay_report.main(["--write", str(tmp_path / "doc.md"), "--no-figures"]) == 0
    assert (tmp_path / "doc.md").read_text("utf-8") == written.read_text("utf-8")
