"""Where a model can be grown, and where not and why."""

from __future__ import annotations

from onnx import ModelProto

from onnx_compnet.graph.names import Names
from onnx_compnet.graph.structures import Reader, Refusal, Site
from onnx_compnet.graph.survey import survey

__all__ = ["Reader", "Refusal", "Site", "find_sites", "refusals"]


def find_sites(model: ModelProto) -> list[Site]:
    """The tensors in front of which a layer can be grown, in graph order.

    Every linear node of the model is a reader of one of them, or among the ``refusals``.
    """
    return list(Names(survey(model)).sites.values())


def refusals(model: ModelProto) -> list[Refusal]:
    """The linear nodes in front of which nothing can be grown, in graph order, each with its reason."""
    return list(survey(model).refusals)
