"""Putting a new layer into a model: in front of a site's readers, which get new weights.

The nodes around the site are cut out into a small model, edited there with onnx-graphsurgeon, and put back
into a copy of the parent. onnx-graphsurgeon sees no other part of the model, so nothing else can change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from onnx_compnet.errors import UsageError, VerificationError
from onnx_compnet.graph.blocks import NotABlockError
from onnx_compnet.graph.edits import Edits
from onnx_compnet.graph.flatten import resized_target
from onnx_compnet.graph.index import GraphIndex, float_attribute
from onnx_compnet.graph.layer_writer import LayerWriter
from onnx_compnet.graph.splice_block import insert_block
from onnx_compnet.graph.structures import Reader, Site
from onnx_compnet.graph.survey import Survey, survey
from onnx_compnet.graph.weights import bias_slot, can_hold, find_constant, integers, native_weight
from onnx_compnet.layers import Array, BatchNorm, CandidateLayer, NewLayers, ReaderWeights


@dataclass(frozen=True)
class Spliced:
    """The child, and for each reader the parent's and the child's tensor that should agree."""

    model: ModelProto
    targets: tuple[tuple[str, str], ...]


def splice(model: ModelProto, site: Site, layers: NewLayers, label: str) -> Spliced:
    """A copy of ``model`` with ``layers.layer`` at ``site`` and the readers' weights replaced.

    At a block the reader is new, too, and what fed the site's tensor feeds the layer instead. Elsewhere
    readers keep their names, attributes and outputs (only a Gemm whose alpha or beta is 0 gets 1 instead: no
    weight could pass through it). A weight or bias that something else reads, too, or that is computed from
    constants by more than Identity and Transpose, stays as it is, and the reader gets one of its own; what
    nothing reads any more is removed. W1 is (Dn, D1, *kernel) or (Dn, D1); ``layers.readers`` follow
    ``site.linear``, each W2 (Dn·taps, D2). New nodes and tensors are called "compnet/<label>/…".

    Raises:
        UsageError: the site is not one of this model, or the layers do not fit it.
        UnsupportedError: the model's opset can't express the activation.
        VerificationError: the weights are not finite in the model's dtype, or the result is not consistent.
    """
    found = survey(model)
    here = _site_at(found, site)
    if here is None or replace(here, activation=site.activation) != replace(site, name=""):
        raise UsageError(f"the site '{site.name}' is not one of this model; take it from find_sites(model)")
    _check_shapes(site, layers)
    layer = _cast_layer(layers.layer, site)
    if site.mode == "block":
        (weights,) = layers.readers
        weights = ReaderWeights(_cast(weights.W2, site), _cast(weights.b2, site))
        child, result = insert_block(found.index, site, layer, weights, label)
        return Spliced(child, ((site.tensor, result),))
    surgery = _Surgery(found.index, site, label)
    surgery.insert(layer)
    for number, (reader, weights) in enumerate(zip(site.linear, layers.readers, strict=True)):
        surgery.rewire(number, reader, _cast(weights.W2, site), _cast(weights.b2, site))
        if weights.unpadded:
            surgery.edits.set_attribute(reader.index, "auto_pad", None)
            surgery.edits.set_attribute(reader.index, "pads", [0] * 2 * len(site.spatial))
    child = surgery.finish()
    return Spliced(child, tuple((reader.output, reader.output) for reader in site.linear))


def _site_at(found: Survey, site: Site) -> Site | None:
    if site.mode == "replace":
        return found.sites.get(site.tensor)
    try:
        return found.block(site.tensor)
    except NotABlockError:
        return None


# ---------------------------------------------------------------- preconditions


def _check_shapes(site: Site, layers: NewLayers) -> None:
    layer = layers.layer
    wanted: tuple[object, ...] = (site.kind, layer.channel_axis if site.kind == "conv" else site.channel_axis)
    if (layer.kind, layer.channel_axis) != wanted:
        raise UsageError(f"site '{site.name}' needs a layer of kind {wanted[0]}, channel axis {wanted[1]}")
    axes = 2 + (len(site.spatial) if site.kind == "conv" else 0)
    if layer.W1.ndim != axes or layer.W1.shape[1] != site.channels or not layer.W1.shape[0]:
        kernel = ", *kernel" if site.kind == "conv" else ""
        raise UsageError(
            f"W1 has the shape {layer.W1.shape}; site '{site.name}' needs (neurons, {site.channels}{kernel})"
        )
    neurons = layer.W1.shape[0]
    if layer.b1.shape != (neurons,):
        raise UsageError(f"b1 has the shape {layer.b1.shape}; it must be ({neurons},)")
    if len(layers.readers) != len(site.linear):
        raise UsageError(
            f"site '{site.name}' has {len(site.linear)} readers, weights came for {len(layers.readers)}"
        )
    for reader, weights in zip(site.linear, layers.readers, strict=True):
        groups = reader.geometry.groups
        if neurons % groups:
            raise UsageError(
                f"reader '{reader.node}' has {groups} groups, among which {neurons} neurons can't be shared"
            )
        wanted_shape = (neurons // groups * reader.geometry.taps, reader.features)
        if weights.W2.shape != wanted_shape or weights.b2.shape != wanted_shape[1:]:
            raise UsageError(
                f"the weights of reader '{reader.node}' have the shapes {weights.W2.shape} and "
                f"{weights.b2.shape}; they must be {wanted_shape}, {wanted_shape[1:]}"
            )


def _cast(values: Array, site: Site) -> Array:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, np.dtype(site.dtype))
    if not np.isfinite(cast).all():
        raise VerificationError(
            f"the new weights at site '{site.name}' are not finite in {site.dtype}; use more data or ridge"
        )
    return cast


def _cast_layer(layer: CandidateLayer, site: Site) -> CandidateLayer:
    norm = layer.norm
    if norm is not None:
        scale, bias = _cast(norm.scale, site), _cast(norm.bias, site)
        mean, variance = _cast(norm.mean, site), _cast(norm.variance, site)
        norm = BatchNorm(scale, bias, mean, variance, norm.epsilon)
    return replace(layer, W1=_cast(layer.W1, site), b1=_cast(layer.b1, site), norm=norm)


# ---------------------------------------------------------------- the surgery


class _Surgery:
    """One edit: the region as a graphsurgeon graph, and what is to change elsewhere in the child."""

    def __init__(self, index: GraphIndex, site: Site, label: str) -> None:
        self.index, self.site = index, site
        self.edits = Edits(index, label)
        self.base = self.edits.base
        self.dtype = np.dtype(site.dtype)
        self.neurons = 0
        self.resized: set[int] = set()
        self.positions = sorted(
            {
                position
                for reader in site.linear
                for position in (*reader.between, reader.index, reader.add_index)
                if position is not None
            }
        )
        self.region = gs.import_onnx(_cut_out(index, self.positions))
        self.old: dict[int, gs.Node] = dict(zip(self.positions, self.region.nodes, strict=True))
        self.after: dict[int, list[gs.Node]] = {}
        self.writer = LayerWriter(self.edits, index.opset, site)
        self.source = self.region.tensors()[site.tensor]

    # ------------------------------------------------------------ the new layer

    def insert(self, layer: CandidateLayer) -> None:
        """Lnew and its activation; the nodes that read the site read the result."""
        self.neurons = layer.W1.shape[0]
        result = self.writer.layer(self.source, layer)
        for reader in self.site.linear:
            start, slot = (reader.between[0], 0) if reader.between else (reader.index, 1 - reader.weight_slot)
            assert self.old[start].inputs[slot] in (self.source, result)  # readers may share a Flatten
            self.old[start].inputs[slot] = result

    # ------------------------------------------------------------ the readers

    def rewire(self, number: int, reader: Reader, W2: Array, b2: Array) -> None:
        """One reader's new weights, bias, and Reshape targets on the way to it."""
        own = f"reader_{number}"
        node = self.index.nodes[reader.index]
        weight, bias = self._native(reader, node, W2, b2)
        self._set_constant(self.old[reader.index], reader.weight_slot, weight, f"{own}.weight")
        for position in reader.between:
            self._resize(position, reader.geometry.taps, f"{own}.shape_{position}")
        if reader.op_type != "MatMul":
            self._set_constant(self.old[reader.index], 2, bias, f"{own}.bias")
        elif reader.add_index is not None:
            slot = bias_slot(self.index, reader)
            self._set_constant(self.old[reader.add_index], slot, bias, f"{own}.bias")
        else:
            self._add_bias(reader, bias, own)

    def _native(self, reader: Reader, node: NodeProto, W2: Array, b2: Array) -> tuple[Array, Array]:
        """The weights as the node wants them, alpha, beta, transA and transB undone."""
        scales = [self.dtype.type(1.0), self.dtype.type(1.0)]
        for number, key in enumerate(("alpha", "beta") if reader.op_type == "Gemm" else ()):
            scale = float_attribute(node, key, 1.0)
            if scale == 0.0:
                self.edits.set_attribute(reader.index, key, 1.0)
                scale = 1.0
            scales[number] = self.dtype.type(scale)
        present = find_constant(self.index, node.input[reader.weight_slot])
        assert present is not None
        weight = native_weight(node, reader, W2 / scales[0], len(present.dims))
        bias = b2 / scales[1]
        return weight, bias.reshape(-1, 1) if reader.weight_slot == 0 else bias

    def _set_constant(self, node: gs.Node, slot: int, values: Array, name: str) -> None:
        """Other values for a node's constant: in its place where they can be held there, else as a new one."""
        present = node.inputs[slot].name if slot < len(node.inputs) else ""
        source = find_constant(self.index, present) if present else None
        if source is not None:
            if math.prod(source.dims) == values.size and len(source.dims) != values.ndim:
                values = values.reshape(source.dims)  # a bias written as a row, for one
            if can_hold(self.index, source, values.ndim):
                self.edits.set_constant(source, values)
                return
            self.edits.release(present)
        constant = self.writer.constant(name, values)
        if slot < len(node.inputs):
            node.inputs[slot] = constant
        else:
            node.inputs.append(constant)

    def _add_bias(self, reader: Reader, bias: Array, own: str) -> None:
        """A MatMul without bias: an Add behind it takes over the name of its output."""
        product = self.old[reader.index]
        (output,) = product.outputs
        inner = gs.Variable(self.edits.fresh(f"{own}.product"))
        product.outputs = [inner]
        constant = self.writer.constant(f"{own}.bias", bias)
        add = gs.Node("Add", self.edits.fresh(f"{own}.Add"), {}, [inner, constant], [output])
        self.after.setdefault(reader.index, []).append(add)

    def _resize(self, position: int, taps: int, name: str) -> None:
        node = self.index.nodes[position]
        flat = node.op_type != "Squeeze"  # a Squeeze leaves the channels by themselves
        self.edits.resize_axis(node.output[0], 1, self.neurons * taps if flat else self.neurons)
        if node.op_type != "Reshape" or position in self.resized:
            return
        self.resized.add(position)
        target = integers(self.index, node.input[1])
        resized = None if target is None else resized_target(target, self.neurons * taps)
        if resized is not None:
            self.old[position].inputs[1] = self.writer.constant(name, np.array(resized, np.int64))
            self.edits.release(node.input[1])

    # ------------------------------------------------------------ putting it back

    def finish(self) -> ModelProto:
        """The child."""
        behind = [node for nodes in self.after.values() for node in nodes]
        self.region.nodes.extend([*self.writer.nodes, *behind])
        nodes: list[gs.Node] = list(self.region.nodes)
        exported = gs.export_onnx(self.region, do_type_check=False).graph
        proto = {id(node): item for node, item in zip(nodes, exported.node, strict=True)}
        return self.edits.apply(
            before=self.positions[0],
            new=[proto[id(node)] for node in self.writer.nodes],
            behind={position: [proto[id(n)] for n in nodes] for position, nodes in self.after.items()},
            edges={position: proto[id(node)] for position, node in self.old.items()},
            initializers=list(exported.initializer),
        )


def _cut_out(index: GraphIndex, positions: list[int]) -> ModelProto:
    """The nodes at ``positions`` as a model of their own; whatever they read from outside is its input."""
    nodes = []
    for position in positions:
        node = NodeProto()
        node.CopyFrom(index.nodes[position])
        del node.attribute[:]  # attributes are not edited here, and come back untouched with the original
        nodes.append(node)
    produced = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in produced)
    used = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "region",
        [onnx.helper.make_empty_tensor_value_info(name) for name in read],
        [onnx.helper.make_empty_tensor_value_info(n) for n in produced if n not in used],
    )
    opset = onnx.helper.make_opsetid("", index.opset)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=index.model.ir_version)
