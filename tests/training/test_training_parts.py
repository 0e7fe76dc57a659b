"""The parts by themselves: schedules in closed form, losses by torch's definitions, augmentation, parameters."""

from __future__ import annotations

import warnings

import numpy as np
import onnx.parser
import pytest
import torch
from torch.nn import functional
from training_zoo import small_model

import onnx_compnet as oc
from onnx_compnet.training import chance
from onnx_compnet.training.augment import Augmentation
from onnx_compnet.training.losses import Objective, makers
from onnx_compnet.training.options import FinetuneOptions
from onnx_compnet.training.parallel import Group
from onnx_compnet.training.parameters import choose, optimiser, set_rate
from onnx_compnet.training.schedule import Schedule

# ---------------------------------------------------------------- schedules


def rates(schedule):
    return [schedule.factor(step) for step in range(schedule.total)]


def of_torch(make, total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
        found = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


def test_schedules_are_those_of_torch():
    lr = torch.optim.lr_scheduler
    cosine = of_torch(lambda o: lr.CosineAnnealingLR(o, 40), 40)
    assert rates(Schedule("cosine", 4, 10)) == pytest.approx(cosine, abs=1e-12)
    cycle = of_torch(lambda o: lr.OneCycleLR(o, 1.0, 40, cycle_momentum=False), 40)
    assert rates(Schedule("one-cycle", 4, 10)) == pytest.approx(cycle, abs=1e-12)
    steps = of_torch(lambda o: lr.StepLR(o, 20, 0.5), 40)
    assert rates(Schedule("step", 4, 10, step_epochs=2, gamma=0.5)) == pytest.approx(steps)
    assert rates(Schedule("constant", 4, 10)) == [1.0] * 40


def test_warm_up_rises_linearly_to_what_follows():
    found = rates(Schedule("cosine", 4, 10, warmup=0.1))
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4] == 1.0
    assert found[5:] == sorted(found[5:], reverse=True)
    assert rates(Schedule("step", 3, 4))[::4] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize("kind", ["cosine", "one-cycle"])
def test_a_schedule_runs_over_max_steps(kind):
    cut = Schedule(kind, None, 10, max_steps=24)
    assert rates(cut) == pytest.approx(rates(Schedule(kind, 1, 24)))
    assert (cut.passes, [cut.steps_of(epoch) for epoch in (1, 2, 3)]) == (3, [10, 10, 4])
    assert rates(Schedule(kind, 2, 10, max_steps=24)) == rates(Schedule(kind, 2, 10))  # the epochs end first
    assert Schedule(kind, 9, 10, max_steps=20).passes == 2
    assert rates(Schedule("step", None, 10, max_steps=24))[::10] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize("kind", ["constant", "cosine", "one-cycle", "step"])
def test_one_step_alone(kind):
    assert 0 < Schedule(kind, 1, 1, warmup=0.05).factor(0) <= 1


# ---------------------------------------------------------------- losses


def mean(objective, output, labels=None, teacher=None):
    total, count = objective({"y": output}, labels, None if teacher is None else {"y": teacher})
    return float(total / count)


@pytest.mark.parametrize(
    ("shape", "labels", "axis"), [((5, 4), (5,), 1), ((5, 4, 3, 2), (5, 3, 2), 1), ((5, 7, 4), (5, 7), 2)]
)
def test_cross_entropy(shape, labels, axis):
    output, target = torch.randn(shape), torch.randint(0, 4, labels)
    target.view(-1)[0] = -100
    objective = Objective("cross-entropy", ("y",), {})
    expected = functional.cross_entropy(output.movedim(axis, 1), target)
    assert mean(objective, output, target) == pytest.approx(float(expected), rel=1e-5)
    hits, of = objective.correct({"y": output}, target)
    assert of == target.numel() - 1
    assert hits == int((output.argmax(axis) == target).sum())


def test_cross_entropy_of_probabilities():
    output, target = torch.randn(6, 3), torch.randint(0, 3, (6,))
    found = mean(Objective("cross-entropy", ("y",), {"y": "Softmax"}), output.softmax(1), target)
    assert found == pytest.approx(float(functional.cross_entropy(output, target)), rel=1e-5)


def test_bce_and_mse():
    output, target = torch.randn(6, 3), torch.rand(6, 3)
    bce = float(functional.binary_cross_entropy_with_logits(output, target))
    assert mean(Objective("bce", ("y",), {}), output, target) == pytest.approx(bce, rel=1e-5)
    assert mean(Objective("bce", ("y",), {"y": "Sigmoid"}), output.sigmoid(), target) == pytest.approx(
        bce, rel=1e-4
    )
    mse = float(functional.mse_loss(output, target))
    assert mean(Objective("mse", ("y",), {}), output, target) == pytest.approx(mse, rel=1e-5)


def test_scores_of_any_probability():
    output, target = torch.randn(6, 3), torch.rand(6, 3)
    p = output.softmax(1)
    bce = Objective("bce", ("y",), {"y": "Softmax"})
    assert mean(bce, p, target) == pytest.approx(float(functional.binary_cross_entropy(p, target)), rel=1e-4)
    hits, of = bce.correct({"y": p}, target)
    assert (hits, of) == (int(((p > 0.5) == (target > 0.5)).sum()), 18)
    labels = torch.randint(0, 3, (6,))
    found = mean(Objective("cross-entropy", ("y",), {"y": "Sigmoid"}), output.sigmoid(), labels)
    assert found == pytest.approx(float(functional.cross_entropy(output, labels)), rel=1e-4)


@pytest.mark.parametrize("behind", ["Identity", "Cast <to = 1>", "Flatten"])
def test_what_makes_an_output(behind):
    model = small_model(last="Softmax")
    model.graph.node[-1].output[0] = "p"
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3] p) => (float[N,3] y) {{ logits = {behind} (p) }}'
    model.graph.node.extend(onnx.parser.parse_model(text).graph.node)
    assert makers(model, ["logits", "d", "x"]) == {"logits": "Softmax", "d": "Gemm", "x": ""}
    model.graph.node[-2].domain = "another"
    assert makers(model, ["logits"]) == {"logits": ""}


def test_a_teacher_that_ends_otherwise():
    s, t = torch.randn(6, 3), torch.randn(6, 3)
    plain = mean(Objective("distill", ("y",), {}), s, teacher=t)
    other = Objective("distill", ("y",), {"y": "Gemm"}, teacher_made_by={"y": "Softmax"})
    assert mean(other, s, teacher=t.softmax(1)) == pytest.approx(plain, rel=1e-4)


def test_distillation():
    s, t, T = torch.randn(6, 3), torch.randn(6, 3), 3.0
    kl = functional.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="batchmean") * T**2
    objective = Objective("distill", ("y",), {}, temperature=T)
    assert mean(objective, s, teacher=t) == pytest.approx(float(kl), rel=1e-4)
    assert mean(objective, t, teacher=t) == pytest.approx(0.0, abs=1e-6)
    for kind, a, b in (("distill-mse", s, t), ("distill", s[:, :1], t[:, :1])):
        found = mean(Objective(kind, ("y",), {}), a, teacher=b)
        assert found == pytest.approx(float(functional.mse_loss(a, b)), rel=1e-5)
    assert objective.agreeing({"y": s}, {"y": t}) == (int((s.argmax(1) == t.argmax(1)).sum()), 6)


def test_an_ambiguous_axis_of_classes():
    objective = Objective("cross-entropy", ("y",), {})
    with pytest.raises(oc.UsageError, match="--class-axis"):
        objective.axis((5, 4, 4), (5, 4))
    assert Objective("cross-entropy", ("y",), {}, class_axis=-1).axis((5, 4, 4), (5, 4)) == 2


# ---------------------------------------------------------------- augmentation


def test_augmentation_moves_and_mirrors():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    both = Augmentation(("crop", "flip"), 2, ("x",))
    still = both.apply(images, np.zeros((2, 3), np.int64))
    assert np.array_equal(still, images)
    assert still.dtype == np.uint8
    moved = both.apply(images, np.array([[1, -2, 0], [0, 0, 1]]))
    assert np.array_equal(moved[0, :, 1:, :3], images[0, :, :-1, 2:])
    assert not moved[0, :, 0].any()
    assert not moved[0, :, :, 3:].any()
    assert np.array_equal(moved[1], images[1, :, :, ::-1])


def test_augmentation_is_a_function_of_the_place():
    both = Augmentation(("crop", "flip"), 2, ("x",))
    draws = [both.draw(chance.augmentation(0, 1, step), 200) for step in (3, 3, 4)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert set(np.unique(draws[0][:, :2])) == {-2, -1, 0, 1, 2}
    assert set(np.unique(draws[0][:, 2])) == {0, 1}
    assert not Augmentation(("flip",), 2, ("x",)).draw(chance.augmentation(0, 1, 3), 20)[:, :2].any()


def test_the_order_is_another_one_each_epoch():
    assert sorted(chance.order(0, 1, 50)) == list(range(50))
    assert not np.array_equal(chance.order(0, 1, 50), chance.order(0, 2, 50))
    assert np.array_equal(chance.subset(0, 50, None), np.arange(50))
    assert len(chance.subset(0, 50, 7)) == 7


# ---------------------------------------------------------------- parameters, groups, shares


def test_groups_of_parameters():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    names = [name for name, _ in module.named_parameters()]
    trained = choose(names, {"b.weight"}, ["a.b*"])
    assert (trained.old, trained.new, trained.frozen) == (("a.weight", "b.bias"), ("b.weight",), ("a.bias",))
    options = FinetuneOptions(preset="paper", lr_new=0.1).resolved()
    optimizer = optimiser(module, trained, options)
    assert isinstance(optimizer, torch.optim.SGD)
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.5e-3, 0.05])
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 1e-6
    assert not module["a"].bias.requires_grad


def test_patterns_that_match_nothing_or_everything():
    with pytest.raises(oc.NameNotFoundError, match=r"conv1\.weight"):
        choose(["conv1.weight", "fc.bias"], set(), ["conv2.*"])
    with pytest.raises(oc.UsageError, match="nothing to train"):
        choose(["conv1.weight"], set(), ["*"])
    with pytest.raises(oc.UsageError, match="nothing to train"):
        choose([], set(), [])


def test_presets_and_what_is_given():
    assert FinetuneOptions().resolved().optimizer == "adamw"
    paper = FinetuneOptions().changed({"preset": "paper", "lr": 0.1}).resolved()
    assert (paper.lr, paper.weight_decay, paper.momentum, paper.optimizer) == (0.1, 1e-6, 0.9, "sgd")
    assert FinetuneOptions(preset="paper-vgg").resolved().lr == 3e-4


def test_shares_cover_a_batch():
    for n in (0, 1, 5, 64):
        parts = [Group(rank, 3, torch.device("cpu")).share(n) for rank in range(3)]
        assert [k for part in parts for k in range(n)[part]] == list(range(n))
