"""Training as a whole: the written ONNX model is better, and is what it is said to be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper
from training_zoo import normalised_model, pictures, small_model, weights

import onnx_compnet as oc
from onnx_compnet.graph import provenance
from onnx_compnet.training.loop import Trainer
from onnx_compnet.training.result import tuned_report, tuned_text

QUICK = {"scale": 1 / 255, "epochs": 6, "batch_size": 16, "lr": 0.02, "device": "cpu"}


def accuracy(model, data):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": data["x"].astype(np.float32) / 255})
    return float((logits.argmax(1) == data["y"]).mean())


def test_the_written_model_is_better(model, train, val, tmp_path):
    before = model.SerializeToString(deterministic=True)
    tuned = oc.finetune(model, train, val, parent=model, **QUICK)
    assert model.SerializeToString(deterministic=True) == before
    assert accuracy(model, val) == pytest.approx(tuned.scores["child"].accuracy)
    assert tuned.accuracy > 0.9 > 0.6 > tuned.scores["child"].accuracy
    tuned.save(tmp_path / "tuned.onnx")
    assert accuracy(onnx.load(tmp_path / "tuned.onnx"), val) == pytest.approx(tuned.accuracy)
    assert [epoch.number for epoch in tuned.history] == list(range(7))
    best = max(tuned.history, key=lambda epoch: (epoch.val.accuracy, -epoch.val.loss))
    assert best.number == tuned.best_epoch
    assert best.val.loss == pytest.approx(tuned.scores["tuned"].loss, rel=1e-4)
    assert tuned.scores["parent"] == tuned.scores["child"]
    (record,) = provenance.read_finetunes(tuned.model)
    assert record["scores"]["tuned"]["accuracy"] == tuned.accuracy
    assert record["child_sha256"] == tuned.child_sha256
    assert tuned_report(tuned, "0")["history"][0]["train_loss"] is None
    assert "← kept" in tuned_text(tuned, "nowhere")


def test_max_steps_end_a_run_within_an_epoch(model, train, val, monkeypatch):
    taken, step = [], Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, *args: (taken.append(args[1:]), step(self, *args))[1])
    steps = -(-len(train["y"]) // 16)
    tuned = oc.finetune(model, train, val, max_steps=steps + 2, **{**QUICK, "epochs": None})
    assert taken == [(1, number) for number in range(steps)] + [(2, 0), (2, 1)]
    assert [epoch.number for epoch in tuned.history] == [
        0,
        1,
        2,
    ]  # what is left of an epoch is validated, too
    assert tuned.history[2].val != tuned.history[1].val
    (record,) = provenance.read_finetunes(tuned.model)
    assert (record["epochs"], record["max_steps"], record["epochs_run"]) == (None, steps + 2, 2)
    taken.clear()
    oc.finetune(model, train, val, max_steps=10 * steps, **{**QUICK, "epochs": 1})
    assert len(taken) == steps  # what is reached first counts


def test_the_last_epoch_is_kept_where_validation_must_not_choose(model, train, val):
    wrong = {**val, "y": (val["y"] + 1) % 3}  # training makes it worse here, epoch by epoch
    last = oc.finetune(model, train, wrong, best_by="last", **QUICK)
    assert (last.best_epoch, oc.finetune(model, train, wrong, **QUICK).best_epoch < 6) == (6, True)
    assert last.accuracy == last.history[-1].val.accuracy
    right = oc.finetune(model, train, val, best_by="last", **QUICK)
    assert right.model.graph == last.model.graph


def test_the_same_seed_gives_the_same_bytes(model, train, val):
    runs = [
        oc.finetune(model, train, val, **{**QUICK, "epochs": 2, "augment": "crop,flip"}) for _ in range(2)
    ]
    assert runs[0].model.SerializeToString(deterministic=True) == runs[1].model.SerializeToString(
        deterministic=True
    )
    other = oc.finetune(model, train, val, seed=1, **{**QUICK, "epochs": 2, "augment": "crop,flip"})
    assert not np.array_equal(weights(other.model)["fc1.weight"], weights(runs[0].model)["fc1.weight"])


def test_a_second_training_is_recorded_behind_the_first(model, train, val):
    once = oc.finetune(model, train, val, **{**QUICK, "epochs": 1})
    twice = oc.finetune(once.model, train, val, **{**QUICK, "epochs": 1})
    assert [each["child_sha256"] for each in provenance.read_finetunes(twice.model)] == [
        once.child_sha256,
        twice.child_sha256,
    ]


def test_frozen_weights_keep_their_bytes(model, train, val):
    tuned = oc.finetune(model, train, val, freeze=["conv.*", "fc1.bias"], **{**QUICK, "epochs": 2})
    before, after = weights(model), weights(tuned.model)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {"conv.weight", "conv.bias", "fc1.bias"} <= same
    assert not {"fc1.weight", "fc2.weight"} & same
    assert set(tuned.trained.frozen) == {"conv.weight", "conv.bias", "fc1.bias"}


def test_new_layers_learn_at_a_rate_of_their_own(train, val):
    parent = small_model(dropout=False)
    growth = oc.grow(parent, "fc1", {"x": train["x"]}, scale=1 / 255, candidates=8, holdout=0.1, seed=0)
    tuned = oc.finetune(growth.model, train, val, lr_new=1e-2, **{**QUICK, "epochs": 1, "lr": 1e-9})
    before, after = weights(growth.model), weights(tuned.model)
    moved = {
        name
        for name in before
        if before[name].dtype.kind == "f" and np.abs(after[name] - before[name]).max() > 1e-4
    }
    assert moved == set(tuned.trained.new)
    assert {"fc2.weight", "fc2.bias"} < moved  # the reader that was solved anew
    assert any(name.startswith("compnet/") for name in moved)


def test_a_teacher_needs_no_labels(train, val):
    teacher = oc.finetune(small_model(), train, val, **QUICK).model
    child = small_model()
    tuned = oc.finetune(child, {"x": train["x"]}, {"x": val["x"]}, teacher=teacher, **QUICK)
    assert tuned.loss == "distill"
    assert tuned.accuracy is None
    assert tuned.scores["tuned"].agreement > 0.85 > tuned.scores["child"].agreement
    measured = oc.finetune(child, train, val, teacher=teacher, labels="y", **{**QUICK, "epochs": 2})
    assert measured.accuracy == pytest.approx(accuracy(measured.model, val))


@pytest.mark.parametrize(("last", "loss"), [("Softmax", "cross-entropy"), ("Sigmoid", "bce")])
def test_an_output_that_is_a_probability(train, val, last, loss):
    one_hot = np.eye(3)
    data, held = ({**d, "y": one_hot[d["y"]] if loss == "bce" else d["y"]} for d in (train, val))
    tuned = oc.finetune(small_model(last=last), data, held, loss=loss, **{**QUICK, "epochs": 20})
    assert tuned.accuracy > 0.9
    assert tuned.scores["tuned"].loss < 0.3


def test_mse_learns_numbers(train, val):
    data, held = ({**d, "y": np.eye(3, dtype=np.float32)[d["y"]]} for d in (train, val))
    tuned = oc.finetune(small_model(), data, held, loss="mse", **{**QUICK, "epochs": 20})
    assert tuned.accuracy is None
    assert tuned.scores["tuned"].loss < 0.5 * tuned.scores["child"].loss


@pytest.mark.parametrize("form", ["loader", "function"])
def test_loaders_and_functions_yield_labels(model, train, form):
    pairs = [(train["x"][k : k + 30], train["y"][k : k + 30]) for k in range(0, 90, 30)]
    if form == "loader":
        import torch

        tensors = torch.utils.data.TensorDataset(torch.tensor(train["x"]), torch.tensor(train["y"]))
        data = torch.utils.data.DataLoader(tensors, batch_size=16, shuffle=True)
    else:
        data = lambda: iter([((x,), y) for x, y in pairs])  # noqa: E731
    plain = oc.finetune(model, train, None, holdout=0.3, **{**QUICK, "epochs": 1})
    tuned = oc.finetune(model, data, None, holdout=0.3, **{**QUICK, "epochs": 1})
    assert tuned.scores["tuned"].samples == 27
    for name, values in weights(plain.model).items():
        assert np.array_equal(values, weights(tuned.model)[name])


def test_a_model_of_a_fixed_batch_size(train, val):
    fixed = small_model()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 20
    tuned = oc.finetune(fixed, train, val, **{**QUICK, "batch_size": None, "epochs": 1})
    assert tuned.batch_size == 20
    assert tuned.scores["tuned"].samples == 60


def test_early_stopping_and_the_child_as_the_best_epoch(model, train, val):
    tuned = oc.finetune(model, train, val, **QUICK)
    worse = oc.finetune(
        tuned.model, train, {**val, "y": (val["y"] + 1) % 3}, patience=2, best_by="loss", **QUICK
    )
    assert worse.best_epoch < worse.history[-1].number < 6
    assert worse.history[-1].number - worse.best_epoch == 2


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(model, train, val, monkeypatch):
    loss, calls = Trainer._loss, []

    def broken(self, rows, part, epoch, step):
        calls.append(step)
        total, terms = loss(self, rows, part, epoch, step)
        return (total * float("nan") if epoch == 2 and step == 3 else total), terms

    monkeypatch.setattr(Trainer, "_loss", broken)
    with pytest.raises(oc.DivergedError, match="step 4 of epoch 2") as caught:
        oc.finetune(model, train, val, **QUICK)
    tuned = caught.value.tuned
    assert len(calls) == 6 + 4
    assert tuned.best_epoch == 1
    assert tuned.scores["tuned"].loss < tuned.scores["child"].loss
    assert all(np.isfinite(values).all() for values in weights(tuned.model).values())


def test_an_absurd_rate_diverges_by_itself(model, train, val):
    with pytest.raises(oc.DivergedError, match="lower --lr"):
        oc.finetune(model, train, val, **{**QUICK, "optimizer": "sgd", "lr": 1e30})


def test_callers_random_state_is_left_alone(model, train, val):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    oc.finetune(model, train, val, **{**QUICK, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)


def test_fewer_samples(model, val):
    tuned = oc.finetune(model, pictures(90, 1), val, max_samples=33, **{**QUICK, "epochs": 1})
    assert tuned.samples == 33


def test_half_precision_is_refused(train, val):
    half = small_model(dropout=False)
    for item in half.graph.initializer:
        if item.name.startswith(("conv", "fc")):
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(oc.UnsupportedError, match="float16"):
        oc.finetune(half, train, val, **QUICK)


def test_messages_count_samples_as_the_file_does(model, train):
    train["y"][70] = 9
    with pytest.raises(oc.DataError, match="value 9 at sample 70"):
        oc.finetune(model, train, holdout=0.5, **QUICK)


def test_labels_of_any_integer_type(model, train, val):
    plain = oc.finetune(model, train, val, **{**QUICK, "epochs": 1})
    for dtype in (np.uint8, np.uint16, np.int32):
        data, held = ({**d, "y": d["y"].astype(dtype)} for d in (train, val))
        assert oc.finetune(model, data, held, **{**QUICK, "epochs": 1}).scores == plain.scores


def test_running_statistics_are_learned_and_written(train, val):
    child = normalised_model()
    tuned = oc.finetune(child, train, val, **QUICK)
    assert tuned.accuracy > 0.9
    assert not [warning for warning in tuned.warnings if "in onnxruntime, and" in warning]
    before, after = weights(child), weights(tuned.model)
    for name in ("bn.mean", "bn.var", "bn.weight"):
        assert not np.array_equal(before[name], after[name])


@pytest.mark.parametrize("axis", [1.0, "1", -1000])
def test_a_class_axis_is_a_whole_number(model, train, val, axis):
    with pytest.raises(oc.UsageError, match="--class-axis must be a whole number"):
        oc.finetune(model, train, val, class_axis=axis, **QUICK)


def test_a_class_axis_that_the_output_has_not(model, train, val):
    for teacher in (None, small_model()):
        with pytest.raises(oc.UsageError, match="--class-axis 2: the output 'logits' has"):
            oc.finetune(model, train, val, class_axis=2, teacher=teacher, **QUICK)


@pytest.mark.parametrize("last", ["ReduceMean <keepdims = 0>", "ReduceMean", "Transpose"])
def test_an_output_without_samples_has_no_labels(train, last):
    with pytest.raises(
        oc.UnsupportedError, match=r"'logits' has the shape .* first axis must be the samples"
    ):
        oc.finetune(small_model(last=last), {**train, "y": train["y"] / 2}, loss="mse", **QUICK)


@pytest.mark.parametrize("role", ["teacher", "parent"])
def test_another_model_has_the_same_outputs(model, train, val, role):
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N,1,6,6] x) => (float[N,classes] logits)
        { f = Flatten(x) logits = MatMul(f, w) }"""
    for classes in (1, 2, 5):
        other = onnx.parser.parse_model(text)
        other.graph.initializer.append(numpy_helper.from_array(np.zeros((36, classes), np.float32), "w"))
        with pytest.raises(
            oc.ModelError, match=rf"of the {role} has the shape \[16, {classes}\].* \[16, 3\]"
        ):
            oc.finetune(model, train, val, **{role: other}, **QUICK)
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(oc.ModelError, match=f"the {role} can't take the samples"):
        oc.finetune(model, train, val, **{role: other}, **QUICK)


def test_a_last_batch_of_one_sample(val):
    """It has no variance where a channel has one value, behind a Gemm for one."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N,1,6,6] x) => (float[N,3] logits)
        { f = Flatten(x) a = Gemm(f, w) n = BatchNormalization(a, s, b, m, v) logits = Relu(n) }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    held = {
        "w": rng.normal(0, 0.2, (36, 3)),
        "s": np.ones(3),
        "b": np.zeros(3),
        "m": np.zeros(3),
        "v": np.ones(3),
    }
    for name, values in held.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    tuned = oc.finetune(model, pictures(65, 1), val, **QUICK)
    assert tuned.scores["tuned"].loss < tuned.scores["child"].loss


def test_a_preset_by_keyword(model, train, val):
    tuned = oc.finetune(model, train, val, preset="paper", epochs=1, scale=1 / 255, device="cpu")
    assert (tuned.options.optimizer, tuned.options.lr, tuned.options.schedule) == ("sgd", 5e-3, "constant")
    (record,) = provenance.read_finetunes(tuned.model)
    assert (record["preset"], record["lr"], record["weight_decay"]) == ("paper", 5e-3, 1e-6)
