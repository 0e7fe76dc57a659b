from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_tools import build, feeds_for, run
from graph_zoo import OTHERS, WITH_SITES, conv, gemm
from onnx import numpy_helper

from onnx_compnet.errors import ModelError, OutputExistsError, ResourceError, UsageError, VerificationError
from onnx_compnet.graph import model_files, model_io
from onnx_compnet.layers import TensorSpec


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- load


def test_what_was_saved_is_loaded(tmp_path):
    model = conv(2)
    model_io.save(model, tmp_path / "m.onnx")
    assert model_io.load(tmp_path / "m.onnx") == model
    assert model_io.load(str(tmp_path / "m.onnx")) == model
    assert model_io.as_model(tmp_path / "m.onnx") == model
    assert model_io.as_model(model) is model


def _broken(folder: Path) -> dict[str, tuple[Path, str]]:
    data = conv(2).SerializeToString()
    no_graph = onnx.ModelProto(ir_version=8)
    empty = conv(2)
    del empty.graph.node[:]
    no_output = conv(2)
    del no_output.graph.output[:]
    bad_op = conv(2)
    bad_op.graph.node[1].op_type = "NoSuchOp"
    unsorted = conv(2)
    unsorted.graph.node[0].input[0] = "y"
    contents = {
        "empty": (b"", "is empty"),
        "text": (b"this is a text file\nof two lines\n", "text file"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        "truncated": (data[: len(data) // 2], "truncated"),
        "zeros": (bytes(100), "truncated or is no ONNX"),
        "other": (b"\x89PNG\r\n\x1a\n" + bytes(range(100)), "no ONNX"),
        "no_graph": (no_graph.SerializeToString(), "no graph"),
        "no_nodes": (empty.SerializeToString(), "without nodes"),
        "no_output": (no_output.SerializeToString(), "no outputs"),
        "bad_op": (bad_op.SerializeToString(), "checker refuses.*NoSuchOp"),
        "unsorted": (unsorted.SerializeToString(), "checker refuses"),
    }
    found = {}
    for name, (content, words) in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
        found[name] = (folder / f"{name}.onnx", words)
    (folder / "folder.onnx").mkdir()
    return {
        **found,
        "missing": (folder / "missing.onnx", "no file"),
        "folder": (folder / "folder.onnx", "directory"),
    }


def test_broken_files_are_refused_in_a_sentence(tmp_path):
    for path, words in _broken(tmp_path).values():
        with pytest.raises(ModelError, match=words) as caught:
            model_io.load(path)
        assert path.name in str(caught.value)
        assert ";" in str(caught.value)


def _external(folder: Path) -> Path:
    onnx.save(
        conv(2),
        folder / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "m.onnx"


def test_external_data_is_loaded(tmp_path):
    model = model_io.load(_external(tmp_path))
    (tmp_path / "weights.bin").unlink()
    feeds = feeds_for(conv(2))
    np.testing.assert_array_equal(run(model, feeds)["y"], run(conv(2), feeds)["y"])
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_missing_and_truncated_external_data_are_refused(tmp_path):
    path = _external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-8])
    with pytest.raises(ModelError, match=r"weights\.bin"):
        model_io.load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        model_io.load(path)


def test_external_data_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (tmp_path / "sub").mkdir()
    model = conv(2)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "sub" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="secret"):
        model_io.load(tmp_path / "sub" / "m.onnx")


# ---------------------------------------------------------------- save


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    model_io.save(gemm(), tmp_path / "a.onnx")
    model_io.save(gemm(), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert _names(tmp_path) == ["a.onnx", "b.onnx"]


def test_a_file_is_not_overwritten_without_force(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    with pytest.raises(OutputExistsError, match="exists"):
        model_io.save(gemm(), path)
    assert path.read_bytes() == b"precious"
    model_io.save(gemm(), path, force=True)
    assert model_io.load(path) == gemm()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    model_io.save(gemm(), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_paths_that_can_not_be_written(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        model_io.save(gemm(), tmp_path / "no" / "a.onnx")
    with pytest.raises(UsageError, match="is a directory"):
        model_io.save(gemm(), tmp_path, force=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "not written")],
)
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, code, words):
    path = tmp_path / "a.onnx"
    model_io.save(gemm(), path)
    before = path.read_bytes()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(model_files.os, "fsync", fail)
    with pytest.raises(ResourceError, match=words):
        model_io.save(conv(2), path, force=True)
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["a.onnx"]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model_io.save(gemm(), tmp_path / "a.onnx")
    assert _names(tmp_path) == []


def test_a_large_model_has_its_weights_beside_it(tmp_path, monkeypatch):
    model = build(
        "g (float[N,64] x) => (float[N,64] y) { t = MatMul(x, w) y = Add(t, b) }", w=(64, 64), b=(64,)
    )
    model.doc_string = "kept"
    values = np.ones((32, 32), np.float32)
    model.graph.initializer.append(onnx.helper.make_tensor("typed", 1, (32, 32), values.reshape(-1).tolist()))
    before = model.SerializeToString(deterministic=True)
    monkeypatch.setattr(model_files, "PROTOBUF_LIMIT", 1000)
    path = tmp_path / "m.onnx"
    model_io.save(model, path)
    assert _names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 1500
    assert model.SerializeToString(deterministic=True) == before
    loaded = model_io.load(path)
    onnx.checker.check_model(str(path))
    assert loaded.doc_string == "kept"
    for was, now in zip(model.graph.initializer, loaded.graph.initializer, strict=True):
        assert was.name == now.name
        np.testing.assert_array_equal(numpy_helper.to_array(was), numpy_helper.to_array(now))
    with pytest.raises(OutputExistsError):
        model_io.save(model, path)
    path.unlink()
    with pytest.raises(OutputExistsError, match="data"):
        model_io.save(model, path)
    model_io.save(model, path, force=True)


# ---------------------------------------------------------------- check and describe


def test_the_check_passes_over_ops_of_other_domains():
    model = build(
        'g (float[N,4] x) => (float[N,4] y) { a = com.microsoft.Gelu(x) b = ai.onnx.ml.Normalizer<norm="L2">(a)'
        " y = Relu(b) }"
    )
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    model_io.check(model)


def test_the_check_finds_wrong_shapes_types_and_nodes():
    wrong = gemm()
    wrong.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.ones((7, 3), np.float32), "w"))
    with pytest.raises(VerificationError, match="shapes"):
        model_io.check(wrong)
    with pytest.raises(VerificationError, match="shapes"):
        model_io.check(wrong, gemm())
    model_io.check(wrong, wrong)  # the parent is as wrong: what can be checked holds
    wrong_type = gemm()
    wrong_type.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.ones((4, 3), np.float64), "w"))
    with pytest.raises(VerificationError, match="type"):
        model_io.check(wrong_type)
    dangling = gemm()
    dangling.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(VerificationError, match="checker"):
        model_io.check(dangling)


@pytest.mark.parametrize("name", WITH_SITES)
def test_sound_models_pass(name):
    model_io.check(WITH_SITES[name]())


def test_inputs_and_outputs():
    model = build("g (float[N,4] x, int64[2] i, string[1] s) => (float[N,?] y) { y = Relu(x) }")
    assert model_io.inputs(model) == [
        TensorSpec("x", "float32", ("N", 4)),
        TensorSpec("i", "int64", (2,)),
        TensorSpec("s", "", (1,)),
    ]
    assert model_io.outputs(model) == [TensorSpec("y", "float32", ("N", None))]
    assert [spec.name for spec in model_io.inputs(OTHERS["ir3"]())] == ["x"]
    assert model_io.opset(conv(1, opset=11)) == 11


def test_parameters_are_counted():
    assert model_io.parameter_count(conv(2)) == 4 * 2 * 9 + 3 * 4 * 9 + 3
    assert model_io.parameter_count(OTHERS["constants"]()) == 12 + 3 + 6 + 2


def test_a_model_that_protobuf_cannot_count_fits_no_message():
    class Large:
        def ByteSize(self):  # noqa: N802
            raise ValueError("Failed to serialize proto")

    assert not model_files.fits_a_message(Large())
    assert model_files.fits_a_message(gemm())


def test_sha256(tmp_path, monkeypatch):
    model = gemm()
    model_io.save(model, tmp_path / "m.onnx")
    expected = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert model_io.sha256(tmp_path / "m.onnx") == expected
    assert model_io.sha256(model) == expected
    with pytest.raises(ModelError, match="can't be read"):
        model_io.sha256(tmp_path / "no.onnx")
    monkeypatch.setattr(model_files, "PROTOBUF_LIMIT", 10)
    assert model_io.sha256(model) == model_io.sha256(gemm())
    model_io.check(model)


def test_an_unreadable_folder_gives_no_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="no permission"):
        model_io.save(gemm(), tmp_path / "a.onnx")
