"""Where a model can be grown, and where not and why."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from onnx_compnet.graph.model_io import as_model
from onnx_compnet.graph.names import Names
from onnx_compnet.graph.structures import Reader, Refusal, Site
from onnx_compnet.graph.survey import survey

__all__ = ["Reader", "Refusal", "Site", "find_sites", "refusals"]


def find_sites(model: ModelProto | str | Path) -> list[Site]:
    """The places where a layer can be grown, in graph order.

    Mode "replace" where all that reads a tensor can be solved anew, mode "block" in front of the other linear
    nodes of the model (or of the one in that file) and behind linear layers that lead to no such place. Every
    linear node reads one of them, or is among the ``refusals``.
    """
    return list(Names(survey(as_model(model))).sites.values())


def refusals(model: ModelProto | str | Path) -> list[Refusal]:
    """The linear nodes in front of which nothing can be grown, in graph order, each with its reason."""
    return list(Names(survey(as_model(model))).refusals)
