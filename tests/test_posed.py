"""A posed site: every method selects from it as grow does, without another look at the samples."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_compnet as oc
from onnx_compnet.config import GrowOptions
from onnx_compnet.planning import prepare
from onnx_compnet.posed import pose

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(200, 6, 5, 5)).astype(np.float32)}


def parent(groups: int = 1) -> onnx.ModelProto:
    text = f"t = Relu(x) y = Conv<group={groups}>(t, w)"
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N,6,5,5] x) => (float[N,C,H,W] y) {{ {text} }}'
    )
    weight = RNG.normal(size=(4, 6 // groups, 2, 2)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def posed(model: onnx.ModelProto, options: GrowOptions):
    job = prepare(model, "tensor:t", DATA, options)
    return pose(job.parent, job.sites[0], job, options)


@pytest.mark.parametrize("groups", [1, 2])
def test_all_methods_select_from_one_posing_as_grow_does(groups: int) -> None:
    model, options = parent(groups), GrowOptions(candidates=16)
    site = posed(model, options)
    assert len(site.candidate.b1) == 16
    assert site.rows == 160 * 16
    assert len(site.problems) == groups
    for method in ("alg1", "alg2", "alg3", "obs", "forward", "random"):
        chosen = site.select(options.changed({"method": method, "keep": 14}))
        grown = oc.grow(model, "tensor:t", DATA, method=method, keep=14, candidates=16)
        assert chosen.kept == grown.kept, method
        assert chosen.held_out_error == grown.sites[0].predicted_error, method


def test_the_path_of_lambda_can_be_left_out() -> None:
    options = GrowOptions(candidates=16)
    site = posed(parent(), options)
    assert site.select(options).curve
    assert not site.select(options, path_points=0).curve


def test_more_kept_than_candidates_is_refused() -> None:
    with pytest.raises(oc.UsageError, match="--keep 13 is more than the 12 candidates at "):
        posed(parent(), GrowOptions(keep=13))
