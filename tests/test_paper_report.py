"""docs/results.md from result files: means and spreads, missing cells, the paper's numbers, and the figures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks import paper_report, paper_run
from benchmarks.paper_results import Figure, best, epochs_to, final, gather, reached
from benchmarks.paper_rows import METHODS, ROWS, settings_of, stored

SETTINGS = settings_of("lenet", "fashion-mnist", epochs=2, parent_epochs=3, schedule="cosine")
PLAN = [
    {
        "rows": ["lenet5"],
        "methods": ["alg1", "alg2", "alg3", "random", "net2deeper", "parent", "scratch"],
        "seeds": 2,
        "dataset": "fashion-mnist",
        "epochs": 2,
        "parent_epochs": 3,
        "schedule": "cosine",
    }
]


def record(method, seed, accuracies, **more):
    history = [
        {"epoch": k, "accuracy": a, "loss": 1.0, "train_loss": 1.0, "seconds": 1.0}
        for k, a in enumerate(accuracies)
    ]
    return {
        "format": 1,
        "row": "lenet5",
        "method": method,
        "seed": seed,
        "settings": stored(SETTINGS),
        "versions": {"onnx-compnet": "0.1.0", "torch": "2.15.0"},
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 1,
            "gpu": None,
            "system": "Linux",
            "python": "3.11.7",
        },
        "digest": f"{method}{seed}",
        "parameters": {"before": 1000, "after": 1500},
        "flops": {"before": 1_000_000, "after": 2_000_000},
        "history": history,
        "best_epoch": accuracies.index(max(accuracies)),
        "accuracy": max(accuracies),
        "train_seconds": 12.0,
        "seconds": {"grow": 3.0},
        "images": {"train": 60000, "test": 10000},
        **more,
    }


@pytest.fixture
def results(tmp_path):
    """Two seeds of some methods; Alg2 has one, Scratch none, Net2DeeperNet is refused."""
    folder = tmp_path / f"lenet5.{SETTINGS.tag}"
    grown = {"candidates": 100, "site_error": 0.1, "agreement": 0.98}
    made = [
        record("alg1", 0, [0.900, 0.912, 0.910], kept=100, **grown),
        record("alg1", 1, [0.902, 0.908, 0.914], kept=100, **grown),
        record("alg2", 0, [0.900, 0.912, 0.910], kept=100, **grown, same_as="alg1"),
        record("alg3", 0, [0.905, 0.920, 0.918], kept=50, **{**grown, "site_error": 0.2}),
        record("alg3", 1, [0.903, 0.916, 0.910], kept=54, **{**grown, "site_error": 0.3}),
        record("random", 0, [0.900, 0.901, 0.902], kept=50, **grown),
        record("random", 1, [0.900, 0.901, 0.899], kept=54, **grown),
        record("parent", 0, [0.910, 0.911, 0.912]),
        record("parent", 1, [0.910, 0.909, 0.908]),
    ]
    refused = {k: v for k, v in record("net2deeper", 0, [0.1]).items() if k not in ("history", "accuracy")}
    made += [{**refused, "seed": seed, "refused": "tanh is not linear"} for seed in (0, 1)]
    for each in made:
        paper_run.write(folder / f"{each['method']}.seed{each['seed']}.json", each)
    (folder / "scratch.seed0.json").write_text('{"format": 1, "ro')  # half written
    trained = {**record("trained", 0, [0.1, 0.8, 0.9, 0.910]), "row": "lenet4"}
    paper_run.write(tmp_path / f"lenet4.{SETTINGS.tag}" / "trained.seed0.json", trained)
    return tmp_path


def rows_of(text, heading):
    """The cells of the tables below a heading, by the first cell."""
    part = text.split(f"\n## {heading}")[1].split("\n## ")[0]
    lines = [line[1:-1].split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def test_figures_have_mean_spread_and_how_many():
    assert Figure((0.5, 0.7), 2).text(".2f") == "0.60 ± 0.14"
    assert Figure((0.5,), 1).text(".2f") == "0.50"
    assert Figure((0.5, 0.7), 3).text(".2f") == "0.60 ± 0.14 (2 of 3)"
    assert Figure((), 3).text() == "not run"
    assert Figure((), 0).text() == "–"
    assert Figure((0.01,), 1).text(".2f", sign=True) == "+0.01"


def test_quantities_of_a_run():
    run = record("alg3", 0, [0.90, 0.92, 0.91])
    assert (best(run), final(run)) == (0.92, 0.91)
    assert [epochs_to(run, goal) for goal in (0.90, 0.915, 0.93)] == [0, 1, None]


def test_the_tables_say_what_the_files_say(results):
    (each,) = gather(results, PLAN)
    text = paper_report.document([each], "A sentence by hand.")
    assert "A sentence by hand." in text
    widths = next(row for row in rows_of(text, "Table 1") if row[1] == "here, Fashion-MNIST")
    assert widths[2:] == ["100", "100", "100 (1 of 2)", "52 ± 3", "84.0 %"]
    accuracy = next(row for row in rows_of(text, "Table 2") if row[1] == "here, Fashion-MNIST")
    columns = rows_of(text, "Table 2")[0]
    cells = dict(zip(columns[2:], accuracy[2:], strict=True))
    assert cells["Alg1"] == "91.30 ± 0.14"
    assert cells["Alg2"] == "91.20 (1 of 2)"
    assert cells["Alg3"] == "91.80 ± 0.28"
    assert cells["Scratch"] == cells["NetMorph-Oracle"].replace("–", "not run") == "not run"
    assert cells["Net2DeeperNet"] == "refused"
    assert "Refused: tanh is not linear." in text
    details = {row[0]: row for row in rows_of(text, "LeNet4 to LeNet5 (ReLU): Fashion-MNIST")}
    assert details["Alg3"][5] == "0.250 ± 0.071"
    assert details["Alg3"][8:10] == ["0.9180 ± 0.0028", "0.9140 ± 0.0057"]
    assert details["Alg3"][10] == "+0.0070 ± 0.0014"  # .920 - .912 and .916 - .910
    assert details["Alg3"][11:13] == ["1", "3 + 3"]
    assert details["Alg1"][11] == "1, 2"
    assert details["Alg2"][1:3] == ["1 of 2", "100"]
    assert details["random"][11] == "never"
    assert details["parent trained on"][2:7] == ["–", "1,500", "2.00", "–", "–"]
    assert set(details["Scratch"][2:]) == {"not run"}
    assert details["*the parent*"][7:10] == ["0.1000", "0.9100", "0.9100"]
    assert "Alg2 began with the very network of Alg1 (seed 0)" in text
    assert "60,000 / 10,000" in text
    assert "Some CPU, 1 thread, Python 3.11.7" in text
    assert "onnx-compnet 0.1.0, torch 2.15.0" in text


def test_numbers_in_the_conclusions_are_filled_in(results):
    sets = gather(results, PLAN)
    name = sets[0].name
    text = f"it kept {{{{{name} alg3 kept}}}} and won {{{{{name} alg3 over}}}}; {{{{{name} scratch best}}}}"
    assert paper_report.filled(text, sets) == "it kept 52 ± 3 and won +0.0070 ± 0.0014; not run"
    for wrong in ("other alg3 best", f"{name} alg4 best", f"{name} alg3 worst"):
        with pytest.raises(ValueError, match="names no set"):
            paper_report.filled(f"{{{{{wrong}}}}}", sets)


def test_what_is_missing_is_named(results):
    text = paper_report.document(gather(results, PLAN), "")
    missing = text.split("## Not run")[1]
    assert "- LeNet4 to LeNet5 (ReLU), Fashion-MNIST: Alg2 (seed 1); Scratch (seeds 0, 1)." in missing
    assert "VGG18 to VGG19 (ReLU) on CIFAR-10" in missing
    assert "LeNet4 to LeNet5 (ReLU) on MNIST" in missing


def test_without_any_result_every_cell_is_not_run(tmp_path):
    text = paper_report.document(gather(tmp_path, PLAN), "")
    for heading in ("Table 1", "Table 2"):
        for row in rows_of(text, heading)[2:]:
            assert "paper" in row[1] or set(row[2:]) <= {"not run", "100", "–"}
    assert "![" not in text


def test_the_papers_own_numbers_are_in_it(tmp_path):
    text = paper_report.document(gather(tmp_path), "")
    first, second = (rows_of(text, heading) for heading in ("Table 1", "Table 2"))
    assert ["paper, CIFAR-10", "512", "196", "162", "105", "30.1 %"] in [row[1:] for row in first]
    sigmoid = next(row for row in second if row[0] == "**VGG15 to VGG16 (Sigmoid)**")
    assert sigmoid[2:8] == ["83.63", "83.71", "83.08", "83.25", "82.54", "69.97"]
    assert [row[0] for row in second if row[0].startswith("**")] == [f"**{r.title}**" for r in ROWS.values()]


def test_the_table_has_a_cell_for_every_column(results):
    text = paper_report.document(gather(results, PLAN), "")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {line.count("|") for line in block.splitlines()}
        assert len(counts) == 1, block


def test_sets_that_no_plan_names_are_there_too(results):
    (each,) = gather(results)
    assert each.name == f"lenet5.{SETTINGS.tag}"
    assert each.seeds == 2
    assert list(each.methods) == [m for m in METHODS if any(method == m for method, _ in each.records)]
    assert each.missing() == [("alg2", 1)]
    assert reached(each, "alg3") == "1"


def test_the_figures_are_svg_and_the_same_again(results, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import paper_figures

    sets = gather(results, PLAN)
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "of_old.svg").write_text("<svg/>")
    (path,) = paper_figures.draw_all(sets, folder)
    first = path.read_bytes()
    assert [each.name for each in folder.iterdir()] == [path.name]
    told = "".join(ET.fromstring(first).itertext())
    assert "Alg3" in told
    assert "LeNet4 to LeNet5" in told
    paper_figures.draw_all(sets, folder)
    assert path.read_bytes() == first
    assert f"(results/{path.name})" in paper_report.document(sets, "")


def test_the_document_is_that_of_the_results():
    sets = paper_report.planned(paper_report.RESULTS, paper_report.PLAN)
    text = paper_report.document(sets, paper_report.CONCLUSIONS.read_text("utf-8"))
    assert paper_report.DOCUMENT.read_text("utf-8") == text
    for name in re.findall(r"\]\((results/[^)]*\.svg)\)", text):
        assert (paper_report.DOCUMENT.parent / name).is_file()
