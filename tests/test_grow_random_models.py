"""Whole growths of random models, at every place that is listed, measured without the tool's own code."""

from __future__ import annotations

import math
from typing import Any

import onnx
from hypothesis import HealthCheck, Phase, event, given, settings
from random_models import feed, models

import onnx_compnet as oc
from benchmarks import coverage_measure as measure
from benchmarks.coverage_run import EXACT

FIT, HELD_OUT = 200, 40
CANDIDATES = 10  # fewer might all be dead


def options(model: onnx.ModelProto, site: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"data": feed(model, FIT, 0), "holdout_data": feed(model, HELD_OUT, 1)}
    return found if site.mode == "block" else found | {"candidates": CANDIDATES}


def check_accounted(model: onnx.ModelProto, sites: list[Any]) -> None:
    """Every linear node reads a site or is refused, and not both."""
    read = {name for site in sites for name in site.readers}
    refused = {item.name for item in oc.refusals(model)}
    for node in measure.linear_nodes(model.graph):
        name = node.name or node.output[0]
        assert (name in read) != (name in refused), name


def check_growth(parent: onnx.ModelProto, site: Any) -> onnx.ModelProto | None:
    """The child after all checks; None where the data does not do for the site."""
    try:
        growth = oc.grow(parent, site.name, **options(parent, site))
    except oc.DataError as error:
        if "rows" not in str(error) and "no candidate's activation varies" not in str(error):
            raise
        event("too few rows, or all candidates dead")
        return None
    child = growth.model
    assert (growth.site.tensor, growth.site.name, growth.site.mode) == (site.tensor, site.name, site.mode)
    assert measure.invalid(child) is None
    targets = measure.with_axes(parent, site, growth.targets)
    errors, _, finite = measure.compare(parent, child, [feed(parent, HELD_OUT, 1)], targets)
    assert finite
    assert math.isclose(growth.site_error, max(errors), rel_tol=1e-3, abs_tol=1e-5)
    assert measure.differences(parent, child, site.tensor, [name for name, _ in growth.targets]) == []
    if site.mode == "block" and site.activation.name in EXACT:
        assert growth.site_error < 1e-4
    event(f"{site.mode} {site.kind}")
    return child


def check(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    assert measure.invalid(model) is None
    sites = oc.find_sites(model)
    check_accounted(model, sites)
    children = [(site, check_growth(model, site)) for site in sites]
    grown = [(site, child) for site, child in children if child is not None]
    for site, child in grown[-1:]:
        again = oc.grow(model, site.name, **options(model, site)).model
        assert again.SerializeToString(deterministic=True) == child.SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # shrinking takes minutes: add Phase.shrink to make a failure smaller
    suppress_health_check=list(HealthCheck),
)
@given(models())
def test_random_models(model: onnx.ModelProto) -> None:
    check(model)
