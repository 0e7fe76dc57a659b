"""When growing pays: equal cost, the order of the runs, resumability, and a real run on a few made-up images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import onnx_compnet as oc
from benchmarks import pay, pay_run
from benchmarks.datasets import Images
from benchmarks.networks import LeNet4, to_onnx
from benchmarks.paper_run import OtherSettingsError, write
from benchmarks.pay_plan import (
    CORE,
    EXPERIMENTS,
    MORE,
    NEXT,
    RATES,
    STEPS,
    TEST,
    TITLES,
    VALIDATION,
    Experiment,
    Plan,
    Recipe,
    Task,
)

TINY = Experiment("small", "Tiny", 2, None, 600, 3000, 1.0, calibration=30, calibration_dense=290)
PARENT = Recipe(0.1)


def made_up(n, test=40):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n + test)
    images = rng.integers(0, 60, (n + test, 1, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 6, 8:20] += 150  # where the bar is says the class
    return Images("made up", images[:n], labels[:n], images[n:], labels[n:])


@pytest.fixture
def bench(tmp_path):
    made = pay_run.Bench(
        pay_run.Setting(batch_size=32), tmp_path / "out", tmp_path / "work", say=lambda _: None
    )
    made.__dict__["images"] = made_up(300)  # in place of the files
    return made


# ---------------------------------------------------------------- equal cost


@pytest.mark.parametrize(("n", "batch"), [(100, 10), (100, 32), (7, 32), (64, 64)])
def test_steps_never_cost_more_than_the_budget_and_one_more_would(n, batch):
    for images in range(batch, 5 * n):
        steps = pay_run.steps_within(images, n, batch)
        assert pay_run.images_after(steps, n, batch) <= images or steps == 1
        assert pay_run.images_after(steps + 1, n, batch) > images


def test_images_seen_count_the_smaller_last_batch():
    assert [pay_run.images_after(steps, 70, 32) for steps in range(6)] == [0, 32, 64, 70, 102, 134]


def test_a_larger_network_sees_fewer_images():
    assert pay_run.images_within(3 * 440 * 1000, 440) == 1000
    assert pay_run.images_within(3 * 440 * 1000, 880) == 500
    assert pay_run.images_within(-1.0, 440) == 0


def test_growing_costs_what_its_steps_cost(bench):
    parent = to_onnx(LeNet4(2), (1, 28, 28))
    data = {"x": bench.images.train_x[:50]}
    growth = oc.grow(parent, "conv1", data, candidates=6, keep=3, mode="replace", lam=0.01, **bench.pixels)
    grown = growth.sites[0]
    assert (growth.samples_fitted, growth.samples_held_out, len(grown.kept)) == (40, 10, 3)
    assert (grown.rows, grown.columns) == (40 * 8 * 8, 3 * 25)
    capture, check = 50 * (1000 + 2 * 1500), 10 * (1000 + 1500)
    gram = 2 * (50 * 8 * 8) * (6 * 25) ** 2 + (6 * 25) ** 3 / 3
    assert pay_run.growth_flops(1000, 1500, growth) == capture + check + gram
    copied = oc.grow(parent, "conv1", data, method="net2deeper", mode="replace", **bench.pixels)
    assert pay_run.growth_flops(1000, 1500, copied) == check


# ---------------------------------------------------------------- the plan


def plan(name="small", best=None, **kwargs):
    return Plan(EXPERIMENTS[name], best or (lambda tasks: tasks[-1]), **kwargs)


def of(groups):
    return [task for group in groups for task in group]


def test_each_competitor_has_a_grid_and_only_validation_images_choose():
    made = plan()
    searched = of(made.search())
    assert {task.split for task in searched} == {VALIDATION}
    assert {task.seed for task in searched} == {0}
    for method in ("trained-on", "alg3"):
        assert set(RATES) <= {task.recipe.lr for task in searched if task.method == method}
    final = of(made.final(CORE + NEXT + MORE))
    assert {task.split for task in final} == {TEST}
    assert len({(task.method, task.seed) for task in final}) == len(final)
    assert {task.method for task in final} <= set(TITLES)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_grown_networks_have_one_recipe_and_scratch_their_shape(name):
    made = plan(name)
    of(made.search())
    of(made.explore())
    final = {task.method: task for task in of(made.final(CORE + NEXT + MORE)) if task.seed == 2}
    grown = final["alg3"]
    for method in ("random", "obs", "net2deeper", "netmorph"):
        assert final[method] == replace(grown, method=method)
    for method in ("scratch", "scratch-total"):
        recipe = final[method].recipe
        assert (recipe.sites, recipe.width) == (grown.recipe.sites, grown.recipe.width)
        assert final[method].begins is None
    assert final["trained-on"].begins == final["parent"]
    assert grown.begins == final["parent"]
    if name == "longer":
        assert len(final["thrice"].recipe.sites) == len(final["twice"].recipe.sites) + 1 == 3
        assert final["alg3-early"].begins != final["parent"]


def test_every_part_of_every_experiment_is_run_once_and_after_its_search():
    assert len(set(STEPS)) == len(STEPS) == 4 * len(EXPERIMENTS)
    plans = [plan(name) for name in EXPERIMENTS]
    found = of(pay.tasks(plans))
    assert len(set(found)) == len(found)
    for made in plans:
        assert set(of(made.final(CORE + NEXT + MORE))) <= set(found)


def test_names_of_runs_differ():
    made = plan("longer")
    tasks = set(of(made.search())) | set(of(made.explore())) | set(of(made.final(CORE + NEXT + MORE)))
    assert len({(task.folder, task.name) for task in tasks}) == len(tasks)


def test_the_best_run_is_that_with_the_highest_last_accuracy(bench):
    tasks = [Task(TINY, VALIDATION, "trained-on", Recipe(lr), PARENT) for lr in RATES]
    with pytest.raises(pay_run.NoRunError):
        bench.best(tasks)
    for task, final in zip(tasks, ((0.8, 0.5), (0.8, 0.4), None), strict=True):
        record = {"format": 1, "setting": bench.setting.stored(TINY)}
        told = (
            {"diverged": "so"}
            if final is None
            else {"final": dict(zip(("accuracy", "loss"), final, strict=True))}
        )
        write(bench.path(task), record | told)
    assert bench.best(tasks) == tasks[1]


# ---------------------------------------------------------------- runs


def task(method, **changes):
    recipe = Recipe(0.05, "cosine", sites=("conv2",), width=2.0)
    return Task(TINY, TEST, method, replace(recipe, **changes), PARENT)


def test_runs_cost_the_same_and_are_not_repeated(bench, monkeypatch):
    grown = bench.run(task("alg3"))
    on = bench.run(task("trained-on"))
    scratch = bench.run(replace(task("scratch-total"), parent=None))
    parent = bench.done(task("alg3").begins)
    unit = 3 * parent["forward_flops"]
    assert grown["flops"]["budget"] == on["flops"]["budget"] == 3000 * unit
    assert scratch["flops"]["budget"] == 3600 * unit
    for record in (grown, on, scratch):
        spent, budget = record["flops"]["spent"], record["flops"]["budget"]
        assert budget - 32 * 3 * record["forward_flops"] < spent <= budget
        assert record["final"] == {key: record["curve"][-1][key] for key in ("accuracy", "loss")}
    assert on["curve"][0]["accuracy"] == parent["final"]["accuracy"]  # begins where the parent ended
    assert (on["growths"], on["flops"]["growth"], on["curve"][-1]["images"]) == ([], 0, 3000)
    assert grown["growths"][0]["flops"] == grown["flops"]["growth"] == grown["curve"][0]["flops"] > 0
    assert grown["forward_flops"] == scratch["forward_flops"] > parent["forward_flops"]
    assert grown["parameters"] == scratch["parameters"]
    assert not list((bench.work / "checkpoints").iterdir())
    monkeypatch.setattr(oc, "finetune", None)  # nothing is trained again
    assert bench.run(task("alg3")) == json.loads(bench.path(task("alg3")).read_text())


def test_as_many_images_cost_more(bench):
    record = bench.run(task("alg3-images"))
    grown, on = bench.run(task("alg3")), bench.run(task("trained-on"))
    assert record["curve"][-1]["images"] == on["curve"][-1]["images"] > grown["curve"][-1]["images"]
    assert record["growths"][0]["kept"] == grown["growths"][0]["kept"]
    assert record["flops"]["spent"] > grown["flops"]["budget"]


def test_growing_twice_divides_the_budget(bench):
    record = bench.run(task("twice", sites=("conv2", "fc1"), width=1.0))
    assert [growth["site"] for growth in record["growths"]] == ["conv2", "fc1"]
    second = next(point for point in record["curve"] if point["stage"] == 1)
    assert second["flops"] - record["growths"][1]["flops"] <= record["flops"]["budget"] / 2
    assert record["flops"]["spent"] <= record["flops"]["budget"]


def test_an_interrupted_run_goes_on_and_a_cut_file_is_none(bench, monkeypatch, tmp_path):
    whole = bench.run(task("trained-on"))
    path = bench.path(task("trained-on"))
    path.write_text(path.read_text()[:100])
    assert bench.done(task("trained-on")) is None
    write_, calls = pay_run.write, []
    monkeypatch.setattr(pay_run, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # after training, before the file
        bench.run(task("trained-on"))
    monkeypatch.setattr(pay_run, "write", write_)
    from onnx_compnet.training.loop import Trainer

    monkeypatch.setattr(Trainer, "_step", lambda *args: calls.append(args))
    again = bench.run(task("trained-on"))
    assert not calls  # the checkpoint had it all
    assert (again["curve"], again["digest"]) == (whole["curve"], whole["digest"])


def test_a_file_of_another_setting_is_refused(bench):
    bench.run(task("trained-on"))
    other = replace(bench, setting=replace(bench.setting, weight_decay=0.0))
    with pytest.raises(OtherSettingsError, match="another --out"):
        other.run(task("trained-on"))


def test_the_command_lists_what_is_missing(tmp_path, capsys):
    assert pay.main(["--list", "--out", str(tmp_path), "--experiments", "small"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "small.validation/parent.one-cycle.lr0.03.seed0.json",
        "small.validation/parent.one-cycle.lr0.1.seed0.json",
        "… and what depends on these",
    ]
    assert pay.main(["--out", str(tmp_path), "--data", str(tmp_path), "--work", str(tmp_path / "work")]) == 4
    assert "dataset-fashion-mnist" in capsys.readouterr().err
