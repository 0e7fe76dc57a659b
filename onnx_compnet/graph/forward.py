"""From a node forward to the place of a new layer behind it: in front of the layers that read it."""

from __future__ import annotations

from onnx import NodeProto

from onnx_compnet.graph.activations import match_forward
from onnx_compnet.graph.flatten import RESHAPING
from onnx_compnet.graph.index import STANDARD_DOMAINS, GraphIndex, is_op
from onnx_compnet.graph.readers import is_linear
from onnx_compnet.graph.survey import Survey
from onnx_compnet.graph.weights import axes_of, find_constant

# Ops that keep the channels apart and in place, so that what follows them is still the layer's output.
_PASSED = frozenset(
    (
        *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
        *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"),
        *("RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization", "MeanVarianceNormalization"),
        *("LRN", "Dropout", "Identity", "Pad", "Resize", "Upsample", "Cast"),
    )
)
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")


class Forward:
    """Follows chains of activations, pooling and normalisation; remembers where they lead."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._index: GraphIndex = survey.index
        self._known: dict[str, str] = {}

    def places(self, position: int) -> list[str]:
        """The tensors directly in front of whatever reads the node at ``position``; one for most nodes."""
        node = self._index.nodes[position]
        first = node.output[:1] if is_op(node, *_PASSED) else node.output
        outputs = [
            name for name in first if name and (name in self._index.consumers or len(node.output) == 1)
        ]
        return list(dict.fromkeys(self.follow(name) for name in outputs or node.output[:1]))

    def follow(self, tensor: str) -> str:
        """The last tensor that ``tensor`` becomes before a site, a branch or another kind of op."""
        trail: list[str] = []
        while tensor not in self._known and tensor not in trail:
            trail.append(tensor)
            following = self._step(tensor)
            if following is None:
                break
            tensor = following
        end = self._known.get(tensor, tensor)
        self._known.update(dict.fromkeys(trail, end))
        return end

    def _step(self, tensor: str) -> str | None:
        index = self._index
        if tensor in self._survey.sites or tensor in index.outputs or tensor in index.captured:
            return None
        reading = index.readers(tensor)
        if any(is_linear(index.nodes[position]) for position in reading):
            return None
        match = match_forward(index, tensor)
        if match is not None:
            return match.result
        if len(reading) != 1:
            return None
        node = index.nodes[reading[0]]
        return node.output[0] if self._passes(node, tensor) else None

    def _passes(self, node: NodeProto, tensor: str) -> bool:
        if node.domain not in STANDARD_DOMAINS:
            return False
        if node.op_type in _WITH_CONSTANT:
            return any(name != tensor and find_constant(self._index, name) for name in node.input)
        if node.input[0] != tensor:
            return False
        if node.op_type in ("ReduceMean", "ReduceMax"):
            axes = axes_of(self._index, node)
            shape = self._index.shape(tensor)
            if axes is None or shape is None or len(shape) < 3:
                return False
            return not {axis % len(shape) for axis in axes} & {0, 1}
        # A Flatten in front of the readers is a stop (the tensor is then a site); any other may be passed, and
        # so may a Transpose, as where the channels come last between two Convs, on the way to a site.
        return node.op_type in _PASSED or (
            node.op_type in (*RESHAPING, "Transpose") and self.follow(node.output[0]) in self._survey.sites
        )
