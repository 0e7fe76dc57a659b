"""Every bad input: its exit code, one clear sentence on stderr, nothing written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_compnet_cli.main import main

import onnx_compnet as oc
from onnx_compnet.graph import model_io

MODELS = Path(__file__).parents[2] / "models"
LENET, IMAGES = MODELS / "lenet4.onnx", MODELS / "fashion_mnist_calibration.npz"


@pytest.fixture
def attempt(tmp_path, capsys):
    """Run the command in an empty folder; give back code and stderr, and check that nothing was left behind."""

    def attempt(*arguments, output=None):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        child = out / "child.onnx" if output is None else output
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code = main([str(argument) for argument in (*arguments, "-o", child)])
        captured = capsys.readouterr()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert "Traceback" not in captured.err
        errors = [line for line in captured.err.splitlines() if "error:" in line]
        assert len(errors) == 1
        return code, errors[0]

    return attempt


@pytest.fixture
def lenet(attempt):
    """Grow LeNet in a few seconds, with some options changed."""

    def lenet(*extra, model=LENET, after="conv1", data=IMAGES, scale="1/255", output=None):
        scaling = () if scale is None else ("--scale", scale)
        small = ("--max-samples", "200", "--candidates", "8")
        return attempt(
            "grow", model, "--after", after, "--data", data, *scaling, *small, *extra, output=output
        )

    return lenet


def says(text, *parts):
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"


def test_missing_model(lenet, tmp_path):
    code, error = lenet(model=tmp_path / "absent.onnx")
    assert code == 4
    says(error, "absent.onnx")


def test_text_file_named_onnx(lenet, tmp_path):
    (tmp_path / "text.onnx").write_text("this is not a model\n" * 20)
    code, error = lenet(model=tmp_path / "text.onnx")
    assert code == 4
    says(error, "text.onnx")


def test_truncated_model(lenet, tmp_path):
    (tmp_path / "half.onnx").write_bytes(LENET.read_bytes()[:400_000])
    code, error = lenet(model=tmp_path / "half.onnx")
    assert code == 4
    says(error, "half.onnx")


def test_model_that_the_checker_refuses(lenet, tmp_path):
    model = onnx.load(LENET)
    model.graph.node[0].input[0] = "nobody"
    onnx.save(model, tmp_path / "bad.onnx")
    code, error = lenet(model=tmp_path / "bad.onnx")
    assert code == 4
    says(error, "bad.onnx", "nobody")


def test_unknown_name_lists_the_nearest_first(lenet):
    code, error = lenet(after="cnov1")
    assert code == 2
    says(error, "cnov1", "conv1", "conv2")
    assert error.rindex("conv1") < error.index("conv2")


def test_ambiguous_name_lists_candidates(attempt, tmp_path):
    weights = [
        helper.make_tensor(f"{n}.conv.weight", TensorProto.FLOAT, (2, 2, 1, 1), [1.0] * 4) for n in "abc"
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a.conv.weight"], ["p"], "/a/conv/Conv"),
        helper.make_node("Relu", ["p"], ["q"], "/a/relu"),
        helper.make_node("Conv", ["q", "b.conv.weight"], ["r"], "/b/conv/Conv"),
        helper.make_node("Relu", ["r"], ["s"], "/b/relu"),
        helper.make_node("Conv", ["s", "c.conv.weight"], ["y"], "/c/conv/Conv"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 2, 4, 4))  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    code, error = attempt("grow", tmp_path / "m.onnx", "--after", "conv", "--data", "random:50")
    assert code == 2
    says(error, "conv", "a.conv", "b.conv")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": np.zeros((40, 1, 28, 28), np.float32)}, ["images", "x"]),
        ({"x": np.zeros((40, 3, 28, 28), np.float32)}, ["x", "3"]),
        ({"x": np.zeros((40, 28, 28), np.float32)}, ["x"]),
        ({"x": np.zeros((0, 1, 28, 28), np.float32)}, ["x", "zero samples"]),
        ({"x": np.zeros((40, 1, 28, 28), np.uint8)}, ["x", "uint8", "--scale 1/255"]),
        ({"x": np.full((40, 1, 28, 28), np.nan, np.float32)}, ["x", "NaN"]),
        ({"x": np.array([None] * 40, object)}, ["x", "pickle"]),
        ({"x": np.full((40, 1, 28, 28), "a")}, ["x"]),
    ],
    ids=["key", "channels", "rank", "empty", "dtype", "nan", "pickled", "strings"],
)
def test_unfit_data(lenet, tmp_path, arrays, expected):
    np.savez(tmp_path / "d.npz", **arrays)
    code, error = lenet(data=tmp_path / "d.npz", scale=None)
    assert code == 4
    says(error, *expected)


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", IMAGES.read_bytes()[:200_000]], ids=["empty", "text", "cut"]
)
def test_corrupt_data(lenet, tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    code, error = lenet(data=tmp_path / "d.npz")
    assert code == 4
    says(error, "d.npz")


def test_missing_data(lenet, tmp_path):
    code, error = lenet(data=tmp_path / "absent.npz")
    assert code == 4
    says(error, "absent.npz")


def test_a_pickled_npy_is_not_opened(lenet, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    with (tmp_path / "d.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": (40, 1, 28, 28)}
        )
        pickle.dump(Bomb(), file)
    code, error = lenet(data=tmp_path / "d.npy")
    assert code == 4
    says(error, "pickle")


def test_no_data_option(attempt):
    code, error = attempt("grow", LENET, "--after", "conv1")
    assert code == 2
    says(error, "--data")


def test_fewer_rows_than_unknowns_names_both_numbers(attempt):
    options = ("--data", IMAGES, "--scale", "1/255", "--max-samples", "50", "--candidates", "60")
    code, error = attempt("grow", LENET, "--after", "fc1", *options)
    assert code == 4
    says(error, "40 rows", "59 columns")  # one of the 60 candidates never varies


def test_few_rows_are_a_warning(tmp_path, capsys):
    options = ("--data", IMAGES, "--scale", "1/255", "--max-samples", "200", "--candidates", "60")
    child = tmp_path / "c.onnx"
    assert main([str(a) for a in ("grow", LENET, "--after", "fc1", *options, "-o", child)]) == 0
    says(capsys.readouterr().err, "WARNING", "160", "60")
    assert child.exists()


def test_lambda_that_kills_every_neuron_names_one_that_does_not(lenet):
    code, error = lenet("--lam", "1.5")
    assert code == 2
    says(error, "λ_max", "--lam")


@pytest.mark.parametrize("method", ["alg1", "alg2"])
def test_lambda_that_kills_every_neuron_of_algorithms_1_and_2(lenet, method):
    code, error = lenet("--lam", "1.5", "--method", method)
    assert code == 2
    says(error, "λ_max")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--keep", "0"),
        ("--keep", "-3"),
        ("--keep", "9"),
        ("--lam", "0"),
        ("--lam", "-0.1"),
        ("--lam", "nan"),
        ("--alpha", "-1"),
        ("--candidates", "0"),
        ("--kernel", "0"),
        ("--holdout", "0"),
        ("--holdout", "1"),
        ("--max-samples", "1"),
        ("--batch-size", "0"),
        ("--seed", "-1"),
        ("--max-rel-error", "-1"),
        ("--min-agreement", "2"),
    ],
)
def test_value_out_of_range(lenet, option, value):
    code, error = lenet(option, value)
    assert code == 2
    says(error, option)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--method", "magic"), ("--activation", "cube"), ("--init", "zeros"), ("--scale", "1/0"), ("--keep", "few"),
     ("--shape", "x=1,two"), ("--batch-axis", "x"), ("--nonsense", "1")],
)  # fmt: skip
def test_value_that_does_not_parse(lenet, option, value):
    code, error = lenet(option, value)
    assert code == 2
    says(error, option)


def test_unknown_device(lenet):
    code, error = lenet("--device", "tpu")
    assert code == 2
    says(error, "device 'tpu'", "cuda")


@pytest.mark.parametrize("method", ["random", "obs", "forward"])
def test_some_methods_need_a_width(lenet, method):
    code, error = lenet("--method", method)
    assert code == 2
    says(error, "--keep", "--max-error")


def test_output_exists(lenet, tmp_path):
    (tmp_path / "there.onnx").write_bytes(b"precious")
    code, error = lenet(output=tmp_path / "there.onnx")
    assert code == 2
    says(error, "there.onnx", "--force")
    assert (tmp_path / "there.onnx").read_bytes() == b"precious"


def test_output_is_the_model_even_with_force(lenet, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(LENET.read_bytes())
    (tmp_path / "link.onnx").symlink_to(model)
    for output in (model, tmp_path / "link.onnx"):
        code, error = lenet("--force", model=model, output=output)
        assert code == 2
        says(error, "the model itself")


def test_output_in_no_folder(lenet, tmp_path):
    code, error = lenet(output=tmp_path / "nowhere" / "c.onnx")
    assert code == 2
    says(error, "nowhere")


def test_reader_with_a_weight_that_is_no_constant(attempt, tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("RandomNormal", [], ["v"], "draw", shape=[4, 4]),
        helper.make_node("Gemm", ["b", "v"], ["y"], "second"),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 4))  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    code, error = attempt(
        "grow", tmp_path / "m.onnx", "--after", "first", "--data", "random:100", "--mode", "replace"
    )
    assert code == 3
    says(error, "second", "RandomNormal")


def test_gram_that_does_not_fit_says_how_much_memory_it_needs(attempt, tmp_path):
    w = [np.zeros(s, np.float32) for s in ((8, 3, 3, 3), (4, 8 * 64 * 64))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Flatten", ["b"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "fc.weight"], ["y"], "fc", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 64, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 4))],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip(w, ("conv.weight", "fc.weight"), strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    options = ("--data", "random:100", "--candidates", "200")
    code, error = attempt("grow", tmp_path / "m.onnx", "--after", "conv", *options)
    assert code == 5
    says(error, "GiB", f"{200 * 4096:,}", "--candidates", "--after flat")


def test_cuda_where_there_is_none(lenet):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, error = lenet("--device", "cuda")
    assert code == 5
    says(error, "CUDA")


def test_place_that_can_not_be_grown_gives_the_reason(attempt, tmp_path):
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 4))  # noqa: E731
    w = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Softmax", ["a"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    options = ("--after", "first", "--data", "random:100", "--mode", "replace")
    code, error = attempt("grow", tmp_path / "m.onnx", *options)
    assert code == 3
    says(error, "first", "Softmax", "mode block")


def test_json_never_replaces_what_is_in_use(lenet, tmp_path):
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(LENET.read_bytes())
    data.write_bytes(IMAGES.read_bytes())
    for path in (model, data, tmp_path / "out" / "child.onnx", tmp_path / "out" / "child.onnx.rejected.onnx"):
        code, error = lenet("--json", path, model=model, data=data)
        assert code == 2
        says(error, "--json", "would replace")


@pytest.mark.parametrize("command", ["sites", "info"])
def test_listing_never_replaces_the_model(command, tmp_path, capsys):
    model = tmp_path / "m.onnx"
    model.write_bytes(LENET.read_bytes())
    assert main([command, str(model), "--json", str(model)]) == 2
    assert model.read_bytes() == LENET.read_bytes()
    says(capsys.readouterr().err, "would replace")


def test_json_into_a_pipe_leaves_it_one(tmp_path):
    """As root a report would else replace /dev/null or /dev/stdout themselves."""
    pipe, link, behind = tmp_path / "pipe", tmp_path / "link", tmp_path / "behind.json"
    os.mkfifo(pipe)
    link.symlink_to(behind)
    reader = os.open(pipe, os.O_RDWR)
    assert main(["sites", str(LENET), "--json", str(pipe)]) == 0
    assert pipe.is_fifo()
    assert json.loads(os.read(reader, 1 << 16))["sites"]
    os.close(reader)
    assert main(["sites", str(LENET), "--json", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(behind.read_text())["sites"]


def test_output_is_no_device_even_with_force(lenet, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, error = lenet("--force", output=pipe)
    assert code == 2
    says(error, "a device or a pipe")
    assert pipe.is_fifo()
    with pytest.raises(oc.UsageError, match="a device or a pipe"):
        model_io.save(oc.load(LENET), pipe, force=True)


def test_json_in_no_folder_is_refused_before_the_work(lenet, tmp_path):
    code, error = lenet("--json", tmp_path / "nowhere" / "r.json")
    assert code == 2
    says(error, "--json", "nowhere")


def test_a_rejected_child_replaces_neither_the_model_nor_another_file(lenet, tmp_path):
    model = tmp_path / "c.onnx.rejected.onnx"
    model.write_bytes(LENET.read_bytes())
    code, error = lenet("--min-agreement", "1", model=model, output=tmp_path / "c.onnx")
    assert code == 2
    says(error, "would replace")
    (tmp_path / "d.onnx.rejected.onnx").write_text("a letter")
    code, error = lenet("--min-agreement", "1", output=tmp_path / "d.onnx")
    assert code == 2
    says(error, "d.onnx.rejected.onnx", "--force")


def test_a_rejected_child_replaces_an_earlier_one(tmp_path, capsys):
    arguments = [
        "grow",
        LENET,
        "--after",
        "conv1",
        "--data",
        IMAGES,
        "--scale",
        "1/255",
        "--max-samples",
        "200",
    ]
    arguments += ["--candidates", "8", "--max-rel-error", "1e-6", "-o", tmp_path / "c.onnx"]
    for _ in range(2):
        assert main([str(argument) for argument in arguments]) == 1
        says(capsys.readouterr().err, "put aside")


def test_output_name_that_is_too_long(lenet, tmp_path):
    code, error = lenet(output=tmp_path / ("a" * 300 + ".onnx"))
    assert code == 2
    says(error, "-o")


def test_data_function_that_exits(lenet, tmp_path):
    (tmp_path / "feeds.py").write_text("import sys\n\ndef now():\n    sys.exit(0)\n")
    code, error = lenet(data=f"{tmp_path / 'feeds.py'}:now", scale=None)
    assert code == 4
    says(error, "feeds.py", "SystemExit")


def test_constant_data(lenet, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((100, 1, 28, 28), np.float32))
    code, error = lenet(data=tmp_path / "d.npz", scale=None)
    assert code == 4
    says(error, "site conv1", "varies")


def test_an_option_given_twice(lenet):
    code, error = lenet("--scale", "1")
    assert code == 2
    says(error, "--scale", "twice")


def test_damaged_provenance(attempt, tmp_path, capsys):
    model = onnx.load(LENET)
    model.metadata_props.add(key="onnx_compnet.growths", value='[{"sites": 3}]')
    onnx.save(model, tmp_path / "m.onnx")
    code, error = attempt("grow", tmp_path / "m.onnx", "--after", "conv1", "--data", "random:50")
    assert code == 4
    says(error, "onnx_compnet.growths")
    assert main(["info", str(tmp_path / "m.onnx")]) == 4


def test_more_candidates_than_memory(lenet):
    code, error = lenet("--candidates", "1000000000000")
    assert code == 5
    says(error, "GiB", "--candidates")
