"""--init linear: a core in front of any reader, exact or where the activation is nearly linear."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_compnet as oc

RNG = np.random.default_rng(0)


def model(act, body, x, y, **weights):
    text = f'<ir_version: 9, opset_import: ["": 20]> g ({x}) => ({y}) {{ t = {act}(x) {body} }}'
    parsed = parser.parse_model(text)
    for name, shape in weights.items():
        parsed.graph.initializer.append(
            numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
        )
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


IMAGE = "float[N,4,8,7] x"
READERS = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(t, w, b)", IMAGE, "float[N,C,H,W] y", {"w": (5, 4, 3, 3), "b": (5,)}),
    "strides": ("y = Conv<strides=[2,2]>(t, w)", IMAGE, "float[N,C,H,W] y", {"w": (5, 4, 3, 3)}),
    "grouped": ("y = Conv<group=2, pads=[1,1,1,1]>(t, w)", IMAGE, "float[N,C,H,W] y", {"w": (6, 2, 3, 3)}),
    "1-D": ("y = Conv<pads=[2,2]>(t, w)", "float[N,4,12] x", "float[N,C,L] y", {"w": (5, 4, 3)}),
    "gemm": ("y = Gemm(t, w, b)", "float[N,6] x", "float[N,M] y", {"w": (6, 4), "b": (4,)}),
    "flattened": ("f = Flatten(t) y = Gemm(f, w)", "float[N,3,2,2] x", "float[N,M] y", {"w": (12, 4)}),
    "matmul": ("y = MatMul(t, w)", "float[N,5,6] x", "float[N,5,M] y", {"w": (6, 4)}),
}  # fmt: skip


def data(parent):
    dims = [each.dim_value for each in parent.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"x": RNG.normal(size=(400, *dims)).astype(np.float32)}


@pytest.mark.parametrize("method", ["alg3", "obs"])
@pytest.mark.parametrize("act", ["Tanh", "Sigmoid"])
@pytest.mark.parametrize("name", READERS)
def test_the_core_keeps_the_function(name, act, method):
    body, x, y, weights = READERS[name]
    parent = model(act, body, x, y, **weights)
    channels = weights["w"][0] if name in ("gemm", "matmul") else 3 if name == "flattened" else 4
    core = channels * (1 if act == "Tanh" else 2)
    options = {"keep": core + 2} if method == "obs" else {}
    grown = oc.grow(parent, "tensor:t", data(parent), method=method, init="linear", **options)
    assert grown.candidates == core + channels
    groups = grown.site.groups
    assert {k for g in range(groups) for k in range(g * grown.candidates // groups,
            g * grown.candidates // groups + core // groups)} <= set(grown.kept)  # fmt: skip
    assert grown.site_error < (1e-5 if act == "Tanh" else 1e-4)
    assert any("starts with tiny gradients" in warning for warning in grown.warnings)


def test_an_exact_core_is_no_reason_for_a_warning():
    body, x, y, weights = READERS["conv"]
    parent = model("Relu", body, x, y, **weights)
    grown = oc.grow(parent, "tensor:t", data(parent), init="linear", candidates=20)
    assert set(range(4)) <= set(grown.kept)
    assert grown.site_error < 1e-6
    assert not any("gradients" in warning for warning in grown.warnings)
    plain = oc.grow(parent, "tensor:t", data(parent), candidates=20)
    assert plain.site_error > 0.01


def test_random_candidates_behind_the_core_follow_the_usual_rule():
    body, x, y, weights = READERS["gemm"]
    parent = model("Tanh", body, x, y, **weights)
    few = oc.grow(parent, "tensor:t", data(parent), init="linear", candidates=3)
    assert few.candidates == 6
    assert any("6 candidates instead of 3" in warning for warning in few.warnings)
    narrow = oc.grow(
        parent, "tensor:t", data(parent), init="linear", method="obs", candidates=40, max_error=0.3
    )
    assert narrow.site_error <= 0.3
    assert len(narrow.kept) <= 6
