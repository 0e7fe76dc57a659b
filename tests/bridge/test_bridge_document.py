"""docs/bridge.md is what benchmarks/bridge.py renders of its results, and these hold what the project promises."""

from __future__ import annotations

from benchmarks import bridge


def test_document_is_rendered_from_the_results():
    assert bridge.DOCUMENT.read_text("utf-8") == bridge.document(bridge.read())


def test_every_torchvision_export_is_trainable_and_exact():
    items = [item for item in bridge.read() if item["group"] == "torchvision"]
    assert len(items) == 24
    for item in items:
        assert item["status"] == "ok"
        assert item["round_trip"]
        assert max(item["rel_error"], item["rel_error_tuned"]) <= 1e-4
        assert item["with_nonzero_gradient"] == item["parameters"]
