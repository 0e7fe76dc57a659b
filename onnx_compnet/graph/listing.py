"""All places that are offered: where the readers can be solved anew, and blocks where they can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from onnx_compnet.graph.blocks import NotABlockError
from onnx_compnet.graph.forward import Forward
from onnx_compnet.graph.index import label
from onnx_compnet.graph.structures import Refusal, Site
from onnx_compnet.graph.survey import Survey, graph_order


@dataclass(frozen=True)
class Listing:
    """The sites by tensor, in graph order (without names as yet), and the linear nodes in front of which none is."""

    sites: dict[str, Site]
    refusals: tuple[Refusal, ...]


def list_places(survey: Survey, forward: Forward) -> Listing:
    """A block in front of each linear node that no other site feeds, and behind each linear layer that leads to none.

    Blocks could stand at many more tensors; these are the ones that a user would ask for by a layer's name.
    """
    index = survey.index
    found = dict(survey.sites)
    refused = []
    for position, reason in survey.unread.items():
        node = index.nodes[position]
        failures = []
        for tensor in _data(survey, node):
            if found.get(tensor) is None:
                try:
                    found[tensor] = survey.block(tensor)
                except NotABlockError as error:
                    failures.append(f"'{tensor}' {error}")
                    continue
            break
        else:
            no_block = f"; nor can a block: {'; '.join(failures)}" if failures else ""
            refused.append(Refusal(label(node), node.op_type, reason + no_block))
    for place in dict.fromkeys(_behind(survey, forward)):
        if place not in found:
            try:
                found[place] = survey.block(place)
            except NotABlockError:
                continue
    order = graph_order(index)
    sites = {tensor: found[tensor] for tensor in sorted(found, key=lambda name: order.get(name, -1))}
    return Listing(sites, (*refused, *survey.inside))


def _data(survey: Survey, node: NodeProto) -> list[str]:
    """The inputs of a linear node that are not computed from constants alone."""
    return [name for name in node.input[:2] if name and name not in survey.index.constants]


def _behind(survey: Survey, forward: Forward) -> Iterator[str]:
    """Where the linear layers with a weight lead; a product of two tensors is no layer."""
    for position in survey.linear:
        if len(_data(survey, survey.index.nodes[position])) == 1:
            yield from forward.places(position)
