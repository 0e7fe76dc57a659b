"""One look at a whole model: which tensors are sites, which are not, and which linear nodes are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import ModelProto

from onnx_compnet.graph.activations import match_backward
from onnx_compnet.graph.blocks import block_site
from onnx_compnet.graph.bounds import bounds
from onnx_compnet.graph.flatten import RESHAPING
from onnx_compnet.graph.index import GraphIndex, describe, is_op, label, nodes_within, subgraphs
from onnx_compnet.graph.readers import Candidate, NotAReaderError, candidates, is_linear
from onnx_compnet.graph.structures import Refusal, Site
from onnx_compnet.graph.weights import find_constant
from onnx_compnet.layers import Activation, ConvGeometry, Dimension, LayerKind

# What may stand between an activation and the site it belongs to.
_IN_FRONT = frozenset(
    (
        *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
        *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "Dropout", "Identity"),
        *("ReduceMean", "ReduceMax", "Pad"),
        *RESHAPING,
    )
)


@dataclass(frozen=True)
class Survey:
    """Where the readers of a tensor can be solved anew: the sites by tensor (without names as yet), and why not."""

    index: GraphIndex
    linear: tuple[int, ...]
    """positions of the linear nodes of the main graph"""
    sites: dict[str, Site]
    blocked: dict[str, str]
    reasons: dict[int, str]
    """position of a linear node that can't be a reader anywhere → why"""
    unread: dict[int, str]
    """position of a linear node that is no site's reader → why"""
    inside: tuple[Refusal, ...]
    """linear nodes in bodies and local functions"""

    def why_not(self, tensor: str) -> str:
        """Why a tensor is not a site, as the rest of a sentence that starts with the tensor."""
        if tensor in self.blocked:
            return self.blocked[tensor]
        obstacle = _obstacle(self.index, tensor, frozenset(), self.reasons)
        return obstacle or "is not read by a linear layer"

    def block(self, tensor: str) -> Site:
        """The block site at any tensor. Raises NotABlockError."""
        site = block_site(self.index, tensor, _activation_in_front(self.index, tensor))
        return site if tensor in self.sites else replace(site, why_block=self.why_not(tensor))


def survey(model: ModelProto) -> Survey:
    """Look at every linear node of the model, and at every tensor that one reads."""
    index = GraphIndex.of(model)
    found: dict[str, list[Candidate]] = {}
    reasons: dict[int, str] = {}
    linear = [i for i, node in enumerate(index.nodes) if is_linear(node)]
    tensors_of: dict[int, list[str]] = {}
    for position in linear:
        try:
            reads = candidates(index, position)
        except NotAReaderError as error:
            reasons[position] = str(error)
            continue
        tensors_of[position] = [candidate.tensor for candidate in reads]
        for candidate in reads:
            found.setdefault(candidate.tensor, []).append(candidate)
    sites: dict[str, Site] = {}
    blocked: dict[str, str] = {}
    for tensor, reads in found.items():
        reason = _why_blocked(index, tensor, reads, reasons)
        if reason is None:
            sites[tensor] = _site(index, tensor, reads)
        else:
            blocked[tensor] = reason
    order = graph_order(index)
    sites = {tensor: sites[tensor] for tensor in sorted(sites, key=lambda name: order.get(name, -1))}
    unread = dict(reasons)
    for position, tensors in tensors_of.items():
        if not any(tensor in sites for tensor in tensors):
            unread[position] = f"its input '{tensors[0]}' {blocked[tensors[0]]}"
    return Survey(
        index=index,
        linear=tuple(linear),
        sites=sites,
        blocked=blocked,
        reasons=reasons,
        unread=dict(sorted(unread.items())),
        inside=tuple(_refused_inside(model)),
    )


def _refused_inside(model: ModelProto) -> Iterator[Refusal]:
    """Linear nodes in bodies and local functions."""
    functions = {(item.domain, item.name) for item in model.functions}
    for outer in model.graph.node:
        for body in subgraphs(outer):
            for node in nodes_within(body):
                if is_linear(node):
                    reason = f"it lies in a body of {describe(outer)}, where nothing can be grown"
                    yield Refusal(label(node), node.op_type, reason)
    for function in model.functions:
        called = f"the local function {function.domain}:{function.name}"
        for top in function.node:
            inner = [top, *(node for body in subgraphs(top) for node in nodes_within(body))]
            for node in inner:
                if is_linear(node) and (node.domain, node.op_type) not in functions:
                    reason = f"it lies in {called}; inline the model first (onnx.inliner)"
                    yield Refusal(label(node), node.op_type, reason)


# ---------------------------------------------------------------- is it a site?


def _why_blocked(
    index: GraphIndex, tensor: str, reads: list[Candidate], reasons: dict[int, str]
) -> str | None:
    covered = frozenset(position for item in reads for position in (item.reader.index, *item.reader.between))
    obstacle = _obstacle(index, tensor, covered, reasons)
    if obstacle is not None:
        return obstacle
    if 0 in (index.shape(tensor) or ()):
        return "has no elements"
    for item in reads:
        for position in item.reader.between:
            inner = index.nodes[position].output[0]
            shapes = [i for i in index.consumers.get(inner, ()) if is_op(index.nodes[i], "Shape")]
            obstacle = _obstacle(index, inner, covered, reasons)
            if shapes:
                obstacle = f"is read by {describe(index.nodes[shapes[0]])}"
            if obstacle is not None:
                return f"leads to '{inner}', which {obstacle}"
    first = reads[0]
    rank = len(index.shape(tensor) or ()) or 2 * any(item.reader.op_type == "Gemm" for item in reads)
    for other in reads[1:]:
        for what in ("channel_axis", "channels", "dtype"):
            mine, theirs = getattr(first, what), getattr(other, what)
            if mine != theirs and not (what == "channel_axis" and rank and mine % rank == theirs % rank):
                return (
                    f"is read by '{first.reader.node}' and '{other.reader.node}', "
                    f"which disagree on its {what.replace('_', ' ')} ({mine} and {theirs})"
                )
    return None


def _obstacle(index: GraphIndex, tensor: str, covered: frozenset[int], reasons: dict[int, str]) -> str | None:
    """What keeps a tensor from being read by the ``covered`` nodes alone."""
    if tensor in index.outputs:
        return "is an output of the model"
    if tensor in index.captured:
        return f"is read in a body of {describe(index.nodes[index.captured[tensor]])}"
    if find_constant(index, tensor) is not None:
        return "is a constant"
    reading = index.readers(tensor)
    if not reading:
        return "is read by nothing"
    for position in reading:
        if position in covered:
            continue
        node = index.nodes[position]
        if is_linear(node):
            reason = reasons.get(position)
            return f"is read by {describe(node)}" + (f": {reason}" if reason else ", not as its data")
        if is_op(node, *RESHAPING):
            return f"is read by {describe(node)}, which does not flatten it for linear layers alone"
        return f"is read by {describe(node)}, which is not a linear layer"
    return None


# ---------------------------------------------------------------- what the site is like


def _site(index: GraphIndex, tensor: str, reads: list[Candidate]) -> Site:
    first = next((item for item in reads if item.spatial), reads[0])
    axis = first.channel_axis
    shape = index.shape(tensor)
    rank = None if shape is None else len(shape)
    spatial: tuple[Dimension, ...] = ()
    kind: LayerKind = "matmul"
    if first.spatial:
        kind = "conv"
        convs = [item.reader.geometry for item in reads if isinstance(item.reader.geometry, ConvGeometry)]
        spatial = shape[2:] if shape is not None else (None,) * len(convs[0].kernel)
        rank = 2 + len(spatial)
    elif rank == 2 or any(item.reader.op_type == "Gemm" for item in reads):
        kind, rank = "gemm", 2
        axis = 0 if axis == -2 else axis
    return Site(
        name="",
        tensor=tensor,
        kind=kind,
        channels=first.channels,
        linear=tuple(item.reader for item in reads),
        activation=_activation_in_front(index, tensor),
        spatial=spatial,
        rank=rank,
        dtype=first.dtype,
        channel_axis=axis,
        bounds=bounds(index, tensor),
    )


def _activation_in_front(index: GraphIndex, tensor: str) -> Activation:
    while True:
        match = match_backward(index, tensor)
        if match is not None:
            return match.activation
        node = index.producer(tensor)
        if node is None or not is_op(node, *_IN_FRONT, "Transpose") or not node.input:
            return Activation("relu")
        tensor = node.input[0]


def graph_order(index: GraphIndex) -> dict[str, int]:
    """Where each tensor arises: the graph's inputs first, then by the position of the node."""
    inputs = {item.name: slot for slot, item in enumerate(index.model.graph.input)}
    offset = len(inputs)
    order = dict(inputs)
    for position, node in enumerate(index.nodes):
        for name in node.output:
            if name:
                order[name] = offset + position
    return order
