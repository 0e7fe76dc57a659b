"""The coverage benchmark's own measuring: it must find what is wrong with a child."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import constructed, coverage, coverage_measure, coverage_render, coverage_run
from benchmarks.coverage_cases import cases


def grown(parent: onnx.ModelProto) -> onnx.ModelProto:
    """A child by hand: two new nodes at r, and another weight for the layer behind."""
    child = onnx.ModelProto()
    child.CopyFrom(parent)
    weight = onnx.numpy_helper.from_array(np.eye(12, dtype=np.float32), "compnet/r/weight")
    child.graph.initializer.append(weight)
    child.graph.node.insert(
        2, onnx.helper.make_node("MatMul", ["r", weight.name], ["compnet/r/a"], "compnet/r/M")
    )
    child.graph.node.insert(3, onnx.helper.make_node("Relu", ["compnet/r/a"], ["compnet/r/h"], "compnet/r/R"))
    child.graph.node[4].input[0] = "compnet/r/h"
    return child


@pytest.fixture
def parent() -> onnx.ModelProto:
    return constructed.build("mlp", *constructed.MLP)


def differences(parent, child):
    return coverage_measure.differences(parent, child, "r", ["b"])


def test_an_edit_within_bounds_is_none_of_the_differences(parent):
    child = grown(parent)
    (w2,) = (tensor for tensor in child.graph.initializer if tensor.name == "w2")
    w2.CopyFrom(onnx.numpy_helper.from_array(np.zeros((12, 12), np.float32), "w2"))
    assert differences(parent, child) == []
    assert coverage_measure.invalid(child) is None


def test_whatever_else_changes_is_found(parent):
    def changed(edit):
        child = grown(parent)
        edit(child)
        return " ".join(differences(parent, child))

    assert "w3" in changed(lambda m: m.graph.initializer[2].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((12, 4), np.float32), "w3")))  # fmt: skip
    assert "doc_string" in changed(lambda m: setattr(m, "doc_string", "another"))
    assert "nodes became" in changed(lambda m: m.graph.node.pop())
    assert "node 4" in changed(lambda m: setattr(m.graph.node[-1], "doc_string", "another"))
    assert "beside its edges" in changed(lambda m: setattr(m.graph.node[4], "name", "another"))
    assert "beside its edges" in changed(lambda m: setattr(m.graph.node[4].attribute.add(), "name", "transA"))
    assert "output" in changed(lambda m: setattr(m.graph.output[0], "doc_string", "another"))
    assert "opset_import" in changed(lambda m: setattr(m.opset_import[0], "version", 19))
    assert "initializer" in changed(lambda m: m.graph.initializer.pop(2))


def test_constants_of_the_reader_alone_may_go():
    parent = constructed.model("weight_behind_reshape")  # w2, wt = Transpose(w2), b = MatMul(r, wt)
    child = onnx.ModelProto()
    child.CopyFrom(parent)
    (wt,) = (node for node in child.graph.node if node.output[0] == "wt")
    child.graph.node.remove(wt)
    (w2,) = (tensor for tensor in child.graph.initializer if tensor.name == "w2")
    w2.name = "compnet/r/reader"
    (b,) = (node for node in child.graph.node if node.output[0] == "b")
    b.input[1] = w2.name
    assert coverage_measure.differences(parent, child, "r", ["b"]) == []
    assert "nodes became" in coverage_measure.differences(parent, child, "x", ["a"])[0]
    parent.graph.output.append(onnx.helper.make_tensor_value_info("wt", 1, (12, 12)))
    child.graph.output.append(parent.graph.output[-1])
    assert "nodes became" in coverage_measure.differences(parent, child, "r", ["b"])[0]


def test_a_shared_weight_stays_as_it_was():
    parent = constructed.model("shared_weights")  # r1 → c2 and r2 → c3 by w2
    child = onnx.ModelProto()
    child.CopyFrom(parent)
    (c2,) = (node for node in child.graph.node if node.output[0] == "c2")
    c2.input[1] = "compnet/r1/reader"
    weight = onnx.numpy_helper.from_array(np.ones((8, 5, 3, 3), np.float32), "compnet/r1/reader")
    child.graph.initializer.append(weight)
    assert coverage_measure.differences(parent, child, "r1", ["c2"]) == []
    child.graph.initializer[1].raw_data = bytes(len(child.graph.initializer[1].raw_data))
    assert coverage_measure.differences(parent, child, "r1", ["c2"]) == ["initializer: w2 differs"]


def test_a_block_renames_its_tensor_and_nothing_else(parent):
    child = onnx.ModelProto()
    child.CopyFrom(parent)
    child.graph.node[1].output[0] = "compnet/r/input"
    child.graph.node.insert(2, onnx.helper.make_node("Gelu", ["compnet/r/input"], ["r"], "compnet/r/G"))
    assert coverage_measure.differences(parent, child, "r", ["r"]) == []
    child.graph.node[3].input[1] = "w3"
    assert coverage_measure.differences(parent, child, "r", ["r"]) == ["node 2 (Gemm b) differs"]


def test_errors_are_measured_from_the_mean_of_each_channel():
    old = [np.array([[1.0, 100.0], [3.0, 104.0]])]
    new = [np.array([[2.0, 100.0], [3.0, 104.0]])]
    assert coverage_measure.relative_error(old, new, -1) == pytest.approx(1 / np.sqrt(1 + 1 + 4 + 4))
    assert coverage_measure.relative_error(old, new, None) == pytest.approx(1 / (np.std(old[0]) * 2))
    assert coverage_measure.relative_error(old, old, -1) == 0.0
    assert coverage_measure.relative_error([np.ones((2, 2))], [np.zeros((2, 2))], -1) == np.inf


def test_a_model_is_listed_grown_and_rendered(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNX_COMPNET_CACHE", str(tmp_path / "cache"))
    results = tmp_path / "results.jsonl"
    (case,) = (case for case in cases() if case.name == "residual")
    assert coverage.missing(case, results, 2) == [""]
    coverage.work(case, results, 2)
    assert coverage.missing(case, results, 2) == []
    records = coverage.read(results)
    coverage.work(case, results, 2)
    assert coverage.read(results) == records
    assert {record.get("status") for record in records} == {None, "ok"}
    text = coverage_render.document(records)
    assert "| residual | 10 | 3 + 1 / 4 | 7 | – | " in text
    with results.open("a") as stream:
        stream.write('{"kind": "site", "mod')  # cut off
    assert coverage.read(results) == records


def test_the_document_is_that_of_the_results():
    records = coverage.read(coverage.RESULTS)
    assert records
    torch = coverage.read(coverage.BRIDGE)
    assert torch
    assert coverage.DOCUMENT.read_text("utf-8") == coverage_render.document(records, torch)


def model_record(name):
    return {
        "kind": "model", "model": name, "group": "own", "nodes": 5, "linear": 2, "read": 2, "block": 0, "refused": 0,
        "integer": 0, "neither_or_both": [], "sites": 1, "reasons": [], "parent_run": None, "parent_check": None,
        "data": "random", "seconds": {"load": 0.0, "sites": 0.0, "refusals": 0.0},
    }  # fmt: skip


def test_what_torch_makes_of_each_model_stands_beside_it():
    measured = {"status": "ok", "parameters": 20, "with_nonzero_gradient": 19, "rel_error": 1.5e-6}
    measured |= {"rel_error_tuned": 2.5e-6, "round_trip": True}
    torch = [
        {"model": "good", **measured}, {"model": "if", "status": "refused", "reason": "If"},
        {"model": "odd", "status": "failed", "reason": "Fail"}, {"model": "elsewhere", **measured},
    ]  # fmt: skip
    text = coverage_render.document([model_record(name) for name in ("good", "if", "odd", "none")], torch)
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ")[8:11]
        for line in text.splitlines()
        if "| random |" in line
    }
    assert rows == {
        "good": ["1.5e-06", "19 / 20", "2.5e-06"], "if": ["refused", "–", "–"], "odd": ["not measured", "–", "–"],
        "none": ["–", "–", "–"],
    }  # fmt: skip
    assert "| models tried | 3 |" in text
    assert "| … converted by `to_torch` and measured | 1 |" in text
    assert "| floating-point weights that a gradient reaches | 19 of 20 (95.0 %) |" in text
    assert "In PyTorch" not in coverage_render.document([model_record("good")])


@pytest.mark.parametrize("name", constructed.names())
def test_constructed_models_are_valid(name):
    reason = coverage_measure.invalid(constructed.model(name))
    assert reason is None or name == "sparse_weight"


def test_reasons_are_counted_without_their_names():
    a = coverage_run.kind_of("its input 'a' has the shape (3, 4); a matrix is needed")
    b = coverage_run.kind_of("its input 'b/c' has the shape (7,); a matrix is needed")
    assert a == b
