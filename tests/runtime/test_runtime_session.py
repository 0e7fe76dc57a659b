import gc

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_compnet.errors import DataError, ModelError, ResourceError, UnsupportedError
from onnx_compnet.runtime import session as sessions
from onnx_compnet.runtime.device import _cuda, select
from onnx_compnet.runtime.session import Session

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
CPU = select("cpu")
RELU = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
TYPES = ["float16", "float", "double", "int8", "uint8", "int32", "int64", "bool"]


def model(text):
    return onnx.parser.parse_model(HEADER + text)


def session(text, **options):
    return Session(model(text), CPU, **options)


def x(n=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)


def test_same_as_plain_onnxruntime():
    text = """g (float[N,3] x, int64[M] i) => (float[N,3] y, float[M,3] z, float s)
        { y = Relu(x)  z = Gather(x, i)  s = ReduceSum<keepdims=0>(x) }"""
    feeds = {"x": x(), "i": np.array([2, 0])}
    ours = session(text)
    plain = onnxruntime.InferenceSession(model(text).SerializeToString(), providers=["CPUExecutionProvider"])
    got = ours.run(feeds)
    assert ours.inputs == ("x", "i")
    assert ours.outputs == tuple(got) == ("y", "z", "s")
    assert ours.providers == ("CPUExecutionProvider",)
    for name, expected in zip(got, plain.run(None, feeds), strict=True):
        np.testing.assert_array_equal(got[name].numpy(), expected)
        assert got[name].shape == expected.shape


@pytest.mark.parametrize("dtype", TYPES)
def test_dtypes(dtype):
    number = TensorProto.DataType.Value(dtype.upper())
    text = f"g (float[N,3] x) => ({dtype}[N,3] y) {{ y = Cast<to={number}>(x) }}"
    values = np.array([[0, 1, 2], [3, 0, 1]], dtype=np.float32)
    y = session(text).run({"x": values})["y"]
    expected = values.astype(helper.tensor_dtype_to_np_dtype(number))
    assert y.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(y.numpy(), expected)


def test_bfloat16_and_float8():
    text = "g (float[N,3] x) => (bfloat16[N,3] y) { y = Cast<to=16>(x) }"
    assert session(text).run({"x": x()})["y"].dtype == torch.bfloat16
    text = "g (float[N,3] x) => (float8e4m3fn[N,3] y) { y = Cast<to=17>(x) }"
    with pytest.raises(UnsupportedError, match="float8"):
        session(text).run({"x": x()})


def test_empty_batch_and_extra_feeds():
    y = session(RELU).run({"x": x(0), "unused": x()})["y"]
    assert y.shape == (0, 3)


def test_input_layouts():
    data = np.asfortranarray(x())[::-1]
    np.testing.assert_array_equal(session(RELU).run({"x": data})["y"].numpy(), np.maximum(data, 0))
    scalar = session("g (float x) => (float y) { y = Relu(x) }").run({"x": np.array(2.0, np.float32)})["y"]
    assert scalar.shape == ()


def test_strings_sequences_and_maps():
    strings = session("g (float[N,3] x) => (string[N,3] y, float[N,3] z) { y = Cast<to=8>(x) z = Relu(x) }")
    out = strings.run({"x": x()})
    assert out["y"].dtype == object
    assert isinstance(out["y"][0, 0], str)
    assert isinstance(out["z"], torch.Tensor)
    sequence = session(
        "g (float[N,3] x) => (seq(float[N,3]) y, float[N,3] z) { y = SequenceConstruct(x, x) z = Relu(x) }"
    )
    out = sequence.run({"x": x()})
    assert isinstance(out["y"], list)
    np.testing.assert_array_equal(out["y"][1], x())
    assert isinstance(out["z"], torch.Tensor)
    echo = session("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    assert echo.run({"x": np.array(["a", "bc"])})["y"].tolist() == ["a", "bc"]


def test_results_survive_later_runs_and_the_session():
    ours = session(
        "g (float[N,3] x) => (float[N,3] y, float[3] c) { y = Relu(x) c = Constant<value=float[3] {1,2,3}>()}"
    )
    data = x()
    first = ours.run({"x": data})
    kept = {name: value.clone() for name, value in first.items()}
    for seed in range(1, 5):
        ours.run({"x": x(seed=seed)})
    del ours
    gc.collect()
    noise = [torch.full((64, 3), 7.0) for _ in range(100)]
    assert all(torch.equal(first[name], kept[name]) for name in kept)
    first["c"].add_(1)  # and they are ours to change
    assert len(noise) == 100


def test_outputs_that_alias_an_input_are_copies():
    ours = session("g (float[N,3] x) => (float[N,3] x, float[N,3] y) { y = Relu(x) }")
    data = x()
    out = ours.run({"x": data})["x"]
    before = out.clone()
    data[:] = 9
    assert torch.equal(out, before)


def test_constant_outputs_are_not_the_sessions_memory():
    ours = session("g (float[N,3] x) => (float[2] w, float[N,3] y) <float[2] w = {1, 2}> { y = Relu(x) }")
    ours.run({"x": x()})["w"].zero_()
    assert ours.run({"x": x()})["w"].tolist() == [1, 2]


def test_the_model_is_not_changed_and_threads():
    proto = model(RELU)
    before = proto.SerializeToString()
    Session(proto, CPU, threads=1).run({"x": x()})
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N,3] x) => (float[N,3] y) { y = Foo(x) }", "No Op registered for Foo"),
        ("g (float[N,3] x) => (float[N,3] y) { y = Relu(q) }", "'q'"),
        (
            "g (float[N,3] x) => (float[N,3] y) { c = Constant<value=float[2] {1,2}>() y = Add(x, c) }",
            "Incompatible dimensions",
        ),
    ],
)
def test_bad_models(text, reason, capfd):
    with pytest.raises(ModelError, match=reason) as caught:
        session(text)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [x()[:, :2], x().astype(np.float64), x()[0]])
def test_bad_data(bad, capfd):
    with pytest.raises(DataError, match="can't run the model on this data") as caught:
        session(RELU).run({"x": bad})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_failure_inside_the_graph(capfd):
    text = "g (float[N,M] x) => (float[2,3] y) { s = Constant<value=int64[2] {2,3}>() y = Reshape(x, s) }"
    with pytest.raises(DataError, match="Reshape"):
        session(text).run({"x": x()})
    with pytest.raises(DataError, match="'x' is missing"):
        session(RELU).run({"y": x()})
    assert capfd.readouterr() == ("", "")


def test_out_of_memory():
    with pytest.raises(ResourceError, match="lower --batch-size"):
        session("g (int64[1] x) => (float[N] y) { y = ConstantOfShape(x) }").run({"x": np.array([10**14])})


def test_large_models_pass_through_files(monkeypatch, tmp_path):
    proto = model("g (float[N,3] x) => (float[N,512] y) { m = MatMul(x, W) y = Add(m, b) }")
    W = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(W, "W"))
    proto.graph.initializer.append(
        helper.make_tensor("b", TensorProto.FLOAT, [512], np.ones(512, np.float32))
    )
    proto.metadata_props.add(key="k", value="v")
    before = proto.SerializeToString()
    monkeypatch.setattr(sessions, "_PROTOBUF_LIMIT", 10)
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path))
    y = Session(proto, CPU).run({"x": x()})["y"]
    np.testing.assert_allclose(y.numpy(), x() @ W + 1, rtol=1e-5, atol=1e-5)
    assert proto.SerializeToString() == before
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(ResourceError, match="TMPDIR"):
        Session(proto, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_silent_fall_back_to_the_cpu(capfd):
    with pytest.raises(ResourceError):
        Session(model(RELU), _cuda(0))
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_outputs_stay_on_the_device():
    ours = Session(
        model(
            "g (float[N,3] x) => (float[N,3] x, float[N,3] y, bool[N,3] b) { y = Relu(x) b = Greater(x, y) }"
        ),
        select("cuda"),
    )
    first = ours.run({"x": x()})
    kept = {name: value.clone() for name, value in first.items()}
    ours.run({"x": x(seed=1)})
    assert ours.providers[0] == "CUDAExecutionProvider"
    assert {value.device.type for value in first.values()} == {"cuda"}
    assert all(torch.equal(first[name], kept[name]) for name in kept)
    np.testing.assert_allclose(first["y"].cpu().numpy(), np.maximum(x(), 0))
