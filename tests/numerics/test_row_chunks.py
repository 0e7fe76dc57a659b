"""Rows times W2 against the operators of onnxruntime; small integers make float32 exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import Activation, CandidateLayer, ConvGeometry, DenseGeometry, Geometry
from onnx_compnet.numerics.rows import channel_rows, new_layer, output_channel_axis, row_chunks, target_rows

FAST = settings(derandomize=True, deadline=None, max_examples=120)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


def run(
    op: str,
    x: np.ndarray,
    weight: np.ndarray,
    flatten: bool = False,
    left: bool = False,
    **attributes: Any,
) -> np.ndarray:
    nodes = [helper.make_node("Flatten", ["x"], ["f"], axis=1)] if flatten else []
    data = "f" if flatten else "x"
    nodes.append(helper.make_node(op, ["w", data] if left else [data, "w"], ["y"], **attributes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def check(A: np.ndarray, geometry: Geometry, W2: np.ndarray, y: np.ndarray, max_rows: int) -> None:
    chunks = list(row_chunks(torch.from_numpy(A), geometry, max_rows=max_rows))
    assert all(0 < len(chunk) <= max_rows and chunk.dtype == torch.float32 for chunk in chunks)
    u = torch.cat(chunks)
    expected = target_rows(torch.from_numpy(y), geometry)
    assert u.shape == (len(expected), len(W2))
    np.testing.assert_array_equal((u @ torch.from_numpy(W2)).numpy(), expected.numpy())


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ConvGeometry, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))

    def sizes(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    kernel, dilations = sizes(1, 4), sizes(1, 1 if "SAME" in auto_pad else 2)  # all that onnxruntime takes
    pads = sizes(0, 2, 2 * rank) if auto_pad == "NOTSET" else (0,) * (2 * rank)
    geometry = ConvGeometry(kernel, sizes(1, 3), dilations, pads, auto_pad)
    spatial = sizes(1, 9 if rank < 3 else 6)
    if auto_pad in ("NOTSET", "VALID"):
        for i in range(rank):
            assume(spatial[i] + pads[i] + pads[rank + i] >= (kernel[i] - 1) * dilations[i] + 1)
    return geometry, spatial


@FAST
@given(
    convolutions(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_conv(
    case: tuple[ConvGeometry, tuple[int, ...]], N: int, C: int, D2: int, max_rows: int, seed: int
) -> None:
    geometry, spatial = case
    rng = np.random.default_rng(seed)
    A, weight = integers(rng, N, C, *spatial), integers(rng, D2, C, *geometry.kernel)
    attributes: dict[str, Any] = {"strides": geometry.strides, "dilations": geometry.dilations}
    attributes |= (
        {"pads": geometry.pads} if geometry.auto_pad == "NOTSET" else {"auto_pad": geometry.auto_pad}
    )
    y = run("Conv", A, weight, kernel_shape=geometry.kernel, **attributes)
    assert output_channel_axis(geometry) == 1
    check(A, geometry, weight.reshape(D2, -1).T.copy(), y, max_rows)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[ConvGeometry, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))

    def sizes(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    kernel, strides, dilations = sizes(1, 4), sizes(1, 3), sizes(1, 2)
    pads = sizes(0, 3, 2 * rank) if auto_pad == "NOTSET" else (0,) * (2 * rank)
    extra = draw(st.sampled_from([(), tuple(draw(st.integers(0, stride - 1)) for stride in strides)]))
    spatial = sizes(1, 6 if rank < 3 else 4)
    extras = extra or (0,) * rank
    full = [
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
    ]
    shape: tuple[int, ...] = ()
    if auto_pad != "VALID" and draw(st.booleans()):
        largest = [size + more for size, more in zip(full, extras, strict=True)]
        shape = tuple(draw(st.integers(max(1, size - 3), size)) for size in largest)
        pads = (0,) * (2 * rank)
    for i in range(rank):
        assume(shape or full[i] + extras[i] - pads[i] - pads[rank + i] >= 1)
    return ConvGeometry(kernel, strides, dilations, pads, auto_pad, True, extra, shape), spatial


@FAST
@given(
    transposed_convolutions(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_conv_transpose(
    case: tuple[ConvGeometry, tuple[int, ...]], N: int, C: int, D2: int, max_rows: int, seed: int
) -> None:
    geometry, spatial = case
    rng = np.random.default_rng(seed)
    A, weight = integers(rng, N, C, *spatial), integers(rng, C, D2, *geometry.kernel)
    attributes: dict[str, Any] = {"strides": geometry.strides, "dilations": geometry.dilations}
    if geometry.auto_pad != "NOTSET":
        attributes["auto_pad"] = geometry.auto_pad
    elif not geometry.output_shape:
        attributes["pads"] = geometry.pads
    for key in ("output_padding", "output_shape"):
        if getattr(geometry, key):
            attributes[key] = getattr(geometry, key)
    y = run("ConvTranspose", A, weight, kernel_shape=geometry.kernel, **attributes)
    as_conv = np.flip(weight.swapaxes(0, 1), range(2, weight.ndim))
    check(A, geometry, as_conv.reshape(D2, -1).T.copy(), y, max_rows)


@FAST
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_matmul_of_any_rank(shape: list[int], D2: int, max_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    A, W2 = integers(rng, *shape), integers(rng, shape[-1], D2)
    check(A, DenseGeometry(), W2, run("MatMul", A, W2), max_rows)
    assert output_channel_axis(DenseGeometry()) == -1


@pytest.mark.parametrize("transA", [0, 1])
@pytest.mark.parametrize("transB", [0, 1])
def test_gemm(transA: int, transB: int) -> None:
    rng = np.random.default_rng(0)
    A, W2 = integers(rng, *((5, 7) if transA else (7, 5))), integers(rng, 5, 3)
    y = run("Gemm", A, W2.T.copy() if transB else W2, transA=transA, transB=transB)
    check(A, DenseGeometry(channel_axis=0 if transA else -1), W2, y, 3)


@pytest.mark.parametrize("transA", [0, 1])
@pytest.mark.parametrize("transB", [0, 1])
def test_gemm_with_the_weight_on_the_left(transA: int, transB: int) -> None:
    rng = np.random.default_rng(0)
    A, W2 = integers(rng, *((7, 5) if transB else (5, 7))), integers(rng, 5, 3)
    y = run("Gemm", A, W2 if transA else W2.T.copy(), left=True, transA=transA, transB=transB)
    check(A, DenseGeometry(channel_axis=-1 if transB else 0, output_axis=0), W2, y, 3)


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (3, 2, 5, 4)])
def test_matmul_with_the_weight_on_the_left(shape: tuple[int, ...], lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    A, W2 = integers(rng, *shape), integers(rng, 5, 3)
    geometry = DenseGeometry(channel_axis=-2, output_axis=-2)
    check(A, geometry, W2, run("MatMul", A, W2.T.reshape(*lead, 3, 5), left=True), 3)
    assert output_channel_axis(geometry) == -2


@pytest.mark.parametrize("spatial", [(), (3,), (2, 3), (2, 1, 3)])
def test_gemm_behind_a_flatten(spatial: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    A, taps = integers(rng, 5, 4, *spatial), math.prod(spatial)
    W2 = integers(rng, 4 * taps, 3)
    y = run("Gemm", A, W2, flatten=True)
    check(A, DenseGeometry(taps=taps, flattened=True, channel_axis=1), W2, y, 2)


def test_another_channel_axis_contracts_that_axis() -> None:
    A = torch.arange(24.0).reshape(2, 3, 4)
    W2 = torch.arange(6.0).reshape(3, 2)
    u = torch.cat(list(row_chunks(A, DenseGeometry(channel_axis=1), max_rows=3)))
    torch.testing.assert_close(u @ W2, torch.einsum("acb,cd->abd", A, W2).reshape(-1, 2), rtol=0, atol=0)


def test_columns_are_grouped_by_neuron() -> None:
    A = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)])[None]
    rows = torch.cat(list(row_chunks(A, ConvGeometry((2, 2), (1, 1), (1, 1), (0, 0, 0, 0)))))
    assert rows[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_single_large_image_is_cut_and_read_lazily() -> None:
    A = torch.zeros(1, 8, 1500, 1500)
    chunks = row_chunks(A, ConvGeometry((9, 9), (1, 1), (1, 1), (4, 4, 4, 4)), max_bytes=1 << 20)
    first = next(chunks)  # the whole patch matrix would take 5.8 GB
    assert first.shape == ((1 << 20) // (8 * 81 * 4), 8 * 81)


def test_no_samples_no_chunks() -> None:
    assert not list(row_chunks(torch.zeros(0, 2, 5), ConvGeometry((3,), (1,), (1,), (1, 1))))


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((2, 3, 4), ConvGeometry((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ((2, 3, 2), ConvGeometry((3,), (1,), (1,), (0, 0))),
        ((2, 3, 2), DenseGeometry(taps=3, flattened=True)),
        ((2, 3), DenseGeometry(channel_axis=2)),
    ],
)
def test_tensors_that_do_not_fit_are_data_errors(shape: tuple[int, ...], geometry: Geometry) -> None:
    with pytest.raises(DataError):
        list(row_chunks(torch.zeros(shape), geometry))


def test_limits_must_be_positive() -> None:
    with pytest.raises(UsageError, match="max_rows"):
        list(row_chunks(torch.zeros(2, 3), DenseGeometry(), max_rows=0))


@pytest.mark.parametrize("kernel", [(1,), (2,), (3,), (4,), (3, 3), (2, 5), (1, 4), (3, 2, 1)])
def test_new_conv_layer_is_onnx_conv_with_same_padding(kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    t, W1 = integers(rng, 2, 3, *(6,) * len(kernel)), integers(rng, 4, 3, *kernel)
    begins = [(k - 1) // 2 for k in kernel]
    ends = [k - 1 - b for k, b in zip(kernel, begins, strict=True)]
    b1 = integers(rng, 4)
    layer = CandidateLayer("conv", Activation("relu"), W1, b1, 1)
    x, A = new_layer(layer, torch.from_numpy(t))
    y = run("Conv", t, W1, pads=[*begins, *ends]) + b1.reshape(-1, *(1,) * len(kernel))
    np.testing.assert_array_equal(x.numpy(), y)
    np.testing.assert_array_equal(A.numpy(), np.maximum(y, 0))
    assert x.shape[2:] == t.shape[2:]


@pytest.mark.parametrize("axis", [-1, 0])
def test_new_dense_layer(axis: int) -> None:
    rng = np.random.default_rng(0)
    t, W1, b1 = integers(rng, 5, 3), integers(rng, 4, 3), integers(rng, 4)
    layer = CandidateLayer("gemm", Activation("relu"), W1, b1, axis)
    x, A = new_layer(layer, torch.from_numpy(t.T.copy() if axis == 0 else t))
    expected = run("Gemm", t, W1, transB=1) + b1
    np.testing.assert_array_equal(channel_rows(x, axis).numpy(), expected)
    assert A.shape == ((4, 5) if axis == 0 else (5, 4))


def test_new_layer_takes_the_dtype_of_its_input() -> None:
    W1 = np.ones((4, 3), np.float32)
    W1.flags.writeable = False  # as arrays out of a model file may be
    layer = CandidateLayer("matmul", Activation("tanh"), W1, np.zeros(4, np.float32))
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, A = new_layer(layer, torch.ones(2, 5, 3, dtype=dtype))
        assert x.dtype == A.dtype == dtype
        assert x.shape == (2, 5, 4)
    with pytest.raises(DataError, match="3 channels"):
        new_layer(layer, torch.ones(2, 5))
