"""benchmarks/frontier.py: cells that go on, widths, verdicts and tables from made-up results, and a tiny real run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import (
    frontier,
    frontier_report,
    frontier_run,
    frontier_sites,
    frontier_texts,
    frontier_training,
)
from benchmarks.corpus import CorpusError
from benchmarks.frontier_results import Frontiers, first
from benchmarks.frontier_run import METHODS, Cell
from benchmarks.image_files import DatasetError
from benchmarks.paper_run import OtherSettingsError, write

NEEDED = {"obs": 10, "forward": 11, "alg3": 12, "alg1": 20, "alg2": 20, "random": 20}


def curve(needed: int, widths: int = 40) -> dict[str, list[float]]:
    """An error of 1/(10·m/needed) at width m: 0.1 is reached at ``needed``, 0.05 at twice as many."""
    return {
        "widths": list(range(1, widths + 1)),
        "errors": [0.0999999 * needed / width for width in range(1, widths + 1)],
    }


def record(cell: Cell, needed: dict[str, int], *, widths: int = 40, stop: tuple[int, float] | None = None):
    site = frontier_sites.SITES[cell.site]
    return {
        "format": 1, "site": cell.site, "init": cell.init, "seed": cell.seed,
        "settings": frontier_run.settings(site), "candidates": widths, "channels": 20,
        "activation": "tanh" if "tanh" in cell.site else "relu", "readers": [{"outputs": 50, "taps": 25}],
        "rows": 1000, "samples": {"fitted": 80, "held_out": 20},
        "curves": {method: curve(needed[method], widths) for method in METHODS},
        "stop": dict(zip(("width", "error"), stop or (15, 0.08), strict=True)),
        "seconds": {"moments": 30.0}, "machine": {"cpu": "a CPU", "threads": 1}, "versions": {"torch": "1"},
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for seed in range(3):
        for site in ("lenet4-relu", "lenet4-tanh"):
            for init, share in (("auto", 1.0), ("principal", 0.2)):
                needed = {method: round(width * share) for method, width in NEEDED.items()}
                cell = Cell(site, init, seed)
                write(tmp_path / cell.file, record(cell, needed))
    return tmp_path


def held(found: Frontiers, name: str):
    return next(target for target in found.targets() if target.name == name)


def test_a_width_is_the_first_of_the_path_that_is_small_enough():
    path = {"widths": [1, 2, 4, 8], "errors": [0.5, 0.2, 0.3, 0.1]}
    assert [first(path, error) for error in (0.6, 0.3, 0.2, 0.1, 0.05)] == [1, 2, 2, 8, None]


def test_targets_that_hold(results):
    found = Frontiers.read(results)
    assert found.mean_width("lenet4-relu", "auto", "obs", 0.1) == 10
    assert found.mean_width("lenet4-relu", "auto", "alg1", 0.03) is None
    assert found.best_init("lenet4-relu", 0.1) == "principal"
    verdicts = {target.name: target.holds for target in found.targets()}
    assert verdicts["Never more"] is True
    assert verdicts["Against Algorithm 3"] is True  # 10 against 12
    assert verdicts["Against a random subset"] is True  # 10 against 20
    assert verdicts["Best candidates, ReLU and its kin"] is True  # 2 against 12
    assert verdicts["Best candidates, all sites"] is True
    assert verdicts["At Algorithm 3's own width"] is True
    assert not list(found.out_of_reach())  # alg3 needs 40 of 40 candidates for 0.03


def test_an_error_out_of_reach_counts_as_all_candidates(results):
    for seed in range(3):
        cell = Cell("lenet4-relu", "auto", seed)
        write(results / cell.file, record(cell, {**NEEDED, "alg3": 30}))
    found = Frontiers.read(results)
    points = {(point.error, point.ours, point.theirs) for point in found.out_of_reach()}
    assert points == {(0.05, 4, 40), (0.03, 7, 40)}
    figures = held(found, "Best candidates, ReLU and its kin").figures
    assert figures.startswith(
        "median 0.067 (0.067 to 0.100) of 9; at most 0.100 with the 6 where all He candidates"
    )
    text = frontier_report.document(found, [])
    assert "too few): LeNet4, Fashion-MNIST, ReLU (0.05, 0.03)." in text


def test_targets_that_do_not_hold_say_where_and_guess_why(results):
    cell = Cell("lenet4-relu", "auto", 1)
    bad = record(cell, {**NEEDED, "obs": 20, "alg3": 10, "random": 20}, stop=(15, 0.05))
    write(results / cell.file, bad)
    found = Frontiers.read(results)
    never = held(found, "Never more")
    assert never.holds is False
    assert "lenet4-relu, auto, seed 1, ε = 0.1: 20 against 10" in never.where
    text = frontier_report.sentence(never)
    assert text.startswith("**Never more** does not hold (")
    assert "20 against 10" in text
    assert "A guess why: " in text
    assert held(found, "At Algorithm 3's own width").where == (
        "lenet4-relu, auto, seed 1, 15 neurons: 0.1333 against 0.05",
    )


def test_a_median_above_its_limit_is_told_by_site(results):
    for seed in range(3):
        cell = Cell("lenet4-tanh", "auto", seed)
        write(results / cell.file, record(cell, {**NEEDED, "obs": 12}))
        cell = Cell("lenet4-relu", "auto", seed)
        write(results / cell.file, record(cell, {**NEEDED, "obs": 12}))
    target = held(Frontiers.read(results), "Against Algorithm 3")
    assert target.holds is False
    assert target.figures.startswith("median 1.000")
    assert "lenet4-relu, ε = 0.1: 1.000" in target.where


def test_without_results_nothing_holds(tmp_path):
    assert {target.holds for target in Frontiers.read(tmp_path).targets()} == {None}


def test_an_algorithm_3_that_drops_nothing_is_not_counted(results):
    cell = Cell("lenet4-relu", "auto", 0)
    write(results / cell.file, record(cell, NEEDED, stop=(40, 0.03)))
    target = held(Frontiers.read(results), "At Algorithm 3's own width")
    assert target.holds is True
    assert target.figures == (
        "lower in 11, equal in 0, higher in 0 cells (He candidates: lower in 5 of 5); in 1 more it drops nothing"
    )


def test_the_document_has_the_widths_and_what_is_missing(results, tmp_path):
    write(results / "training" / "a.json", trained("obs-auto", 0, 0.9))
    frontier_report.write_document(results, tmp_path / "docs" / "frontier.md", figures=False)
    text = (tmp_path / "docs" / "frontier.md").read_text("utf-8")
    assert "| `auto` | `obs` | 4.0 | 5.0 | 10.0 | 20.0 | 34.0 | 0.025 |" in text
    assert "| `auto` | `random` | 7.0 | 10.0 | 20.0 | 40.0 | – | 0.050 |" in text
    assert "Seeds: 3 (linear 0)." in text
    assert "Not run: LeNet4, Fashion-MNIST, GELU" in text
    assert "| obs, `auto` | 0.0 | 0.50 | 0.100 | 0.5000 | 0.9000 | – |" in text


def trained(child: str, seed: int, accuracy: float, rate: float = 5e-3):
    return {
        "format": 1, "child": child, "seed": seed, "rate": rate, "settings": frontier_training.settings(),
        "accuracies": [0.5, accuracy], "principal": 0, "site_error": 0.1, "activation": 0.5,
        "machine": {"cpu": "a CPU", "threads": 1},
        "versions": {"torch": "1"},
    }  # fmt: skip


def test_differences_of_children_are_taken_seed_by_seed(tmp_path):
    for seed, luck in enumerate((0.0, 0.1, -0.1)):
        write(tmp_path / f"a{seed}.json", trained("obs-auto", seed, 0.8 + luck))
        write(tmp_path / f"b{seed}.json", trained("obs-principal", seed, 0.79 + luck))
    lines = frontier_report._training(frontier_report.trained(tmp_path))
    assert (
        "- obs, `principal` over obs, `auto`, rate 0.005: -1.00 points, of the same sign in all seeds"
        in lines
    )


def test_a_training_that_diverged_is_told(tmp_path):
    bad = trained("obs-principal", 0, 0.0) | {"accuracies": [], "diverged": "the loss is nan"}
    write(tmp_path / "a.json", bad)
    lines = frontier_report._training(frontier_report.trained(tmp_path))
    assert "obs, `principal`, rate 0.005, seed 0 diverged: the loss is nan.\n" in lines
    assert "| obs, `principal` | 0.0 | 0.50 | 0.100 | – | – | – |" in lines


def test_figures_are_the_same_bytes(results, tmp_path):
    figures = pytest.importorskip("benchmarks.frontier_figures")
    paths = [figures.draw(Frontiers.read(results), "lenet4-relu", tmp_path / name) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"He candidates" in paths[0].read_bytes()


def tiny(monkeypatch) -> str:
    site = frontier_sites.SITES["lenet4-relu"]
    small = replace(site, candidates=8, samples=150)
    monkeypatch.setitem(frontier_sites.SITES, "lenet4-relu", small)
    monkeypatch.setattr(frontier_training, "runs", lambda _: [])
    return site.name


def test_a_tiny_run_is_not_repeated_and_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    name = tiny(monkeypatch)
    arguments = ["--sites", name, "--seeds", "1", "--out", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    arguments += ["--write", str(tmp_path / "frontier.md"), "--no-figures"]
    assert frontier.main(arguments) == 0
    files = sorted((tmp_path / "r").glob("*.json"))
    assert [path.name for path in files] == [
        f"{name}.{init}.seed0.json" for init in ("auto", "linear", "principal")
    ]
    found = json.loads(files[0].read_text("utf-8"))
    assert set(found["curves"]) == set(METHODS)
    everything = [found["curves"][method]["errors"][-1] for method in METHODS]
    assert everything == pytest.approx(
        [everything[0]] * len(METHODS), rel=1e-3
    )  # the same candidates, all of them
    assert found["curves"]["obs"]["errors"][3] <= found["curves"]["random"]["errors"][3]
    assert f"## {frontier_sites.SITES[name].title}" in (tmp_path / "frontier.md").read_text("utf-8")

    before = {path: path.read_bytes() for path in files}
    files[1].unlink()
    files[2].write_text(files[2].read_text("utf-8")[:100], "utf-8")  # as of a process that was killed
    monkeypatch.setattr(frontier_run, "machine", lambda: {"cpu": "another", "threads": 1})
    assert frontier.main(arguments) == 0
    assert files[0].read_bytes() == before[files[0]]
    for path in files[1:]:
        again = json.loads(path.read_text("utf-8"))
        assert again["machine"]["cpu"] == "another"
        assert again["curves"] == json.loads(before[path])["curves"]
    capsys.readouterr()

    site = frontier_sites.SITES[name]
    monkeypatch.setitem(frontier_sites.SITES, name, replace(site, candidates=9))
    assert frontier.main(arguments) != 0
    assert "take another --out" in capsys.readouterr().err


def test_a_training_run_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier_training, "IMAGES", {"train": 100, "test": 50})
    monkeypatch.setattr(frontier_training, "CALIBRATION", 90)
    monkeypatch.setattr(frontier_training, "HOW", {**frontier_training.HOW, "epochs": 1})
    try:
        frontier_training.load("fashion-mnist")
    except DatasetError as error:
        pytest.skip(str(error))
    said: list[str] = []
    scaled = frontier_training.run(
        frontier_training.Run("scaled-principal", 5e-3, 0), tmp_path, tmp_path, said.append
    )
    plain = frontier_training.run(
        frontier_training.Run("obs-principal", 5e-3, 0), tmp_path, tmp_path, said.append
    )
    assert scaled["accuracies"][0] == plain["accuracies"][0]  # the same function
    assert scaled["activation"] < 1 < plain["activation"]
    said.clear()
    run = frontier_training.Run("half-principal", 5e-3, 0)
    found = frontier_training.run(run, tmp_path, tmp_path, said.append)
    assert found["width"] == 20
    assert 0 < found["principal"] < 20
    assert len(found["accuracies"]) == 2  # before, and after one epoch
    assert frontier_training.run(run, tmp_path, tmp_path, said.append) == found
    assert len(said) == 1
    monkeypatch.setattr(frontier_training, "CALIBRATION", 80)
    with pytest.raises(OtherSettingsError, match="take another --out"):
        frontier_training.run(run, tmp_path, tmp_path, said.append)


def test_word_pieces_are_the_longest_from_the_left():
    known = {
        piece: n for n, piece in enumerate(["[UNK]", "▁grow", "ing", "▁growing", "s", "▁.", "▁cafe", "▁_"])
    }
    assert frontier_texts.word_pieces("Growings .", known) == [3, 4, 5]
    assert frontier_texts.word_pieces("Café_xyz", known) == [6, 7, 0]


def test_thai_syllables_are_the_longest_that_are_known():
    assert list(frontier_texts._syllables("กขคabcก", {"กข": 1, "ก": 2, "": 3})) == ["กข", "ค", "abc", "ก"]
    letters, syllables = {"<UNK>": 0, "ก": 1, "<PUNC>": 2}, {"<UNK>": 0, "ก": 5, "<ENGLISH>": 6}
    assert list(frontier_texts._numbered("กa.", letters, syllables)) == [(1, 5), (0, 6), (2, 0)]


def test_missing_messages_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"dpkg\.mo is missing"):
        frontier_texts.thai_messages(tmp_path)


def test_sentences_come_from_the_documentation():
    sentences = frontier_texts.english_sentences()
    assert len(sentences) > 1000
    assert all(len(sentence.split()) >= 12 for sentence in sentences)
    assert np.mean([sentence[0].isupper() for sentence in sentences]) > 0.6
