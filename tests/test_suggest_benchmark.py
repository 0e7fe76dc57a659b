"""The document on suggest's scores, from results that are made up."""

from __future__ import annotations

import math

import pytest

from benchmarks.suggest import NETWORKS, correlations, document


def record(seed: int, order: list[float]) -> dict:
    """Four places whose gains follow ``order``; the last was refused."""
    sites = {
        f"conv{i}": {"kept": 10, "site_error": 0.1, "loss": 0.5 - gain, "accuracy": 0.8 + gain}
        for i, gain in enumerate(order)
    }
    score = {name: {"bottleneck": float(i), "unexpressed": 1.0, "used": 1 - i / 10, "effective_rank": 3.0 * i,
                    "parameters": 100, "flops": i, "mode": "replace"} for i, name in enumerate(sites)}  # fmt: skip
    sites["dead"] = {"refused": "no reason"}
    score["dead"] = score["conv0"]
    parent = {"loss": 0.5, "accuracy": 0.8}
    return {"network": "lenet4-quarter", "seed": seed, "parent": parent, "sites": sites, "scores": score}


def test_correlations_are_those_of_the_ranks() -> None:
    found = correlations(record(0, [0.01, 0.02, 0.04, 0.03]))
    assert found["bottleneck"]["loss"] == (pytest.approx(0.8), 4)
    assert found["bottleneck"]["accuracy"] == (pytest.approx(0.8), 4)
    assert found["used"]["loss"][0] == pytest.approx(-0.8)
    assert math.isnan(found["unexpressed"]["loss"][0])


def test_places_without_a_score_do_not_count() -> None:
    one = record(0, [0.01, 0.02, 0.04, 0.03])
    one["scores"]["conv3"]["bottleneck"] = None
    assert correlations(one)["bottleneck"]["loss"] == (pytest.approx(1.0), 3)


def test_the_document_has_mean_and_spread_over_seeds() -> None:
    text = document([record(0, [0.01, 0.02, 0.04, 0.03]), record(1, [0.01, 0.02, 0.03, 0.04])])
    assert "| expressivity bottleneck (TINY) | 0.90 ± 0.14 | 0.90 ± 0.14 |" in text
    assert (
        "| `conv2` | replace | 2.000 ± 0.000 | 0.80 ± 0.00 | 10 ± 0 | 0.0350 ± 0.0071 | 0.0350 ± 0.0071 |"
        in text
    )
    assert "| `dead` |" in text
    assert "refused" in text
    assert "2 seeds" in text
    missing = [network.title for name, network in NETWORKS.items() if name != "lenet4-quarter"]
    assert not any(title in text for title in missing)
