"""Small models from text, and new layers that must not change what a model computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented

from onnx_compnet.graph import model_io, prune
from onnx_compnet.graph.index import GraphIndex, nodes_within
from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.readers import LINEAR_OPS
from onnx_compnet.graph.sites import Site, find_sites, refusals
from onnx_compnet.graph.splice import splice
from onnx_compnet.graph.weights import find_constant, reader_weights
from onnx_compnet.layers import Activation, CandidateLayer, ConvGeometry, NewLayers, ReaderWeights

# h(z) − h(−z) = κ·z
PAIRS = {
    "relu": 1.0,
    "leaky_relu": 1.01,
    "prelu": 1.25,
    "gelu": 1.0,
    "gelu_tanh": 1.0,
    "silu": 1.0,
    "hardswish": 1.0,
    "softplus": 1.0,
}


def build(
    text: str, *, opset: int = 17, ir: int = 8, seed: int = 0, **weights: tuple[int, ...]
) -> ModelProto:
    """A model from ``g (…) => (…) { … }``; ``weights`` become random float32 initialisers of these shapes."""
    head = f'<ir_version: {ir}, opset_import: ["": {opset}, "com.microsoft": 1]>\n'
    return with_weights(parser.parse_model(head + text), seed=seed, **weights)


def with_weights(model: ModelProto, seed: int = 0, **weights: tuple[int, ...]) -> ModelProto:
    """Add random float32 initialisers of these shapes; edits and returns ``model``."""
    rng = np.random.default_rng(seed)
    for name, shape in weights.items():
        values = (rng.standard_normal(shape) * 0.5).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        if model.ir_version < 4:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, list(shape)))
    return model


def rename(model: ModelProto, **names: str) -> ModelProto:
    """Give nodes and tensors names that the text format can't write; edits and returns ``model``."""
    graph = model.graph
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        for part in (node.input, node.output):
            part[:] = [names.get(item, item) for item in part]
    for items in (graph.initializer, graph.input, graph.output, graph.value_info):
        for item in items:
            item.name = names.get(item.name, item.name)
    return model


def as_type(model: ModelProto, elem_type: int) -> ModelProto:
    """A copy with every float32 of the model in another float type."""
    copy = ModelProto()
    copy.CopyFrom(model)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for items in (copy.graph.input, copy.graph.output, copy.graph.value_info):
        for item in items:
            if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                item.type.tensor_type.elem_type = elem_type
    return copy


def feeds_for(model: ModelProto, samples: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    known = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for item in model.graph.input:
        if item.name in known:
            continue
        kind = item.type.tensor_type
        shape = [size.dim_value or samples for size in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[item.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        # fused with a MatMul it becomes a product in integers
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except NotImplemented:  # float64 Conv, for one
        names = [item.name for item in model.graph.output]
        return dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))
    names = [item.name for item in session.get_outputs()]
    read = {item.name: feeds[item.name] for item in session.get_inputs()}
    return dict(zip(names, session.run(names, read), strict=True))


def pair_layers(model: ModelProto, site: Site, activation: str = "relu", kernel: int = 3) -> NewLayers:
    """2·D1 neurons, t and −t, and readers that take them together again: the function must not change."""
    dtype = np.dtype(site.dtype)
    D1, each = site.channels, site.channels // site.groups
    channels = [g * each + i for g in range(site.groups) for _ in "+-" for i in range(each)]
    signs = [sign for _ in range(site.groups) for sign in (1, -1) for _ in range(each)]
    W1 = (np.eye(D1)[channels] * np.array(signs)[:, None]).astype(dtype)
    if site.kind == "conv":
        dirac, axes = W1, len(site.spatial)
        W1 = np.zeros((2 * D1, D1) + (kernel,) * axes, dtype)
        W1[(..., *((kernel - 1) // 2,) * axes)] = dirac
    layer = CandidateLayer(
        site.kind, Activation(activation), W1, np.zeros(2 * D1, dtype), channel_axis=site.channel_axis
    )
    index = GraphIndex.of(model)
    readers = []
    for reader in site.linear:
        groups, taps = reader.geometry.groups, reader.geometry.taps
        present = ReaderWeights(np.eye(D1, dtype=dtype), np.zeros(D1, dtype))
        if site.mode == "replace":
            present = reader_weights(index, reader)
        rows = present.W2.reshape(D1 // groups, taps, -1) / PAIRS[activation]
        first = range(2 * D1 // groups)  # all groups of the reader are alike
        W2 = np.concatenate([signs[i] * rows[channels[i]] for i in first])
        readers.append(ReaderWeights(W2.astype(dtype), present.b2.astype(dtype)))
    return NewLayers(layer, tuple(readers))


def replaced(model: ModelProto) -> list[Site]:
    """The sites of mode "replace"."""
    return [site for site in find_sites(model) if site.mode == "replace"]


def why_not(model: ModelProto) -> list[str]:
    """All reasons: of refusals, and of blocks that stand where the readers can't be solved anew."""
    refused = [item.reason for item in refusals(model)]
    return refused + [site.why_block for site in find_sites(model) if site.mode == "block"]


def linear_nodes(model: ModelProto) -> list[str]:
    """The name (or first output) of every linear node, in bodies and functions too."""
    found = [*nodes_within(model.graph)]
    for function in model.functions:
        for node in function.node:
            found.append(node)
            for item in node.attribute:
                found += nodes_within(item.g)
    return [node.name or node.output[0] for node in found if node.op_type in LINEAR_OPS]


def check_accounted(model: ModelProto) -> None:
    """Every linear node is a reader of a site, or refused with a reason; never both. Blocks say why they are."""
    sites = find_sites(model)
    read = {name for site in sites for name in site.readers}
    refused = {item.name for item in refusals(model)}
    linear = set(linear_nodes(model))
    assert refused <= linear <= read | refused
    assert not read & refused
    assert all(len(item.reason) > 10 for item in refusals(model))
    assert all(bool(site.why_block) == (site.mode == "block") for site in sites)


def check_untouched(parent: ModelProto, child: ModelProto, site: Site) -> None:
    """Everything but the edited nodes' edges, Constants, weights and declared shapes is as it was, in order.

    Constants that nothing reads any more are gone.
    """
    index = GraphIndex.of(parent)
    left = {item.name for item in child.graph.initializer} | {n for p in child.graph.node for n in p.output}
    left |= {item.values.name for item in child.graph.sparse_initializer}
    gone = index.constants - left
    assert not any(name in gone for node in child.graph.node for name in node.input)
    assert not gone & index.outputs
    edited: set[int] = set()
    held: set[str] = set()
    if site.mode == "block":
        made_at = index.producers.get(site.tensor)
        edited.update(index.consumers.get(site.tensor, ()) if made_at is None else [made_at])
    for reader in site.linear if site.mode == "replace" else ():
        own = {p for p in (*reader.between, reader.index, reader.add_index) if p is not None}
        edited |= own
        held.update(name for position in own for name in index.nodes[position].input if name)
    sources = [source for name in held if (source := find_constant(index, name)) is not None]
    held |= {source.tensor for source in sources}
    constants = {source.node for source in sources}
    old_names = {node.name for node in parent.graph.node}
    nodes = [n for n in child.graph.node if not n.name.startswith("compnet/") or n.name in old_names]
    stayed = [i for i, node in enumerate(parent.graph.node) if not gone.issuperset(filter(None, node.output))]
    for position, now in zip(stayed, nodes, strict=True):
        was = parent.graph.node[position]
        if position in edited:
            assert (was.op_type, was.name, was.doc_string) == (now.op_type, now.name, now.doc_string)
        elif position not in constants:
            assert was == now
    old = [item for item in parent.graph.initializer if item.name not in gone]
    for was, now in zip(old, child.graph.initializer, strict=False):
        assert was.name == now.name
        assert was == now or was.name in held
    declared = [item.name for item in parent.graph.value_info if item.name not in gone]
    assert declared == [item.name for item in child.graph.value_info]
    assert (parent.graph.output, parent.metadata_props) == (child.graph.output, child.metadata_props)


def agree(before: dict[str, np.ndarray], after: dict[str, np.ndarray], tolerance: float = 2e-5) -> None:
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        np.testing.assert_allclose(after[name], expected, atol=tolerance * max(1.0, np.abs(expected).max()))


def check_site(model: ModelProto, feeds: dict[str, np.ndarray], site: Site, activation: str) -> ModelProto:
    """An exact layer changes nothing, a moved bias moves each feature by as much; the child is handed back."""
    assert resolve(model, site.name) == site
    layers = pair_layers(model, site, activation)
    child = splice(model, site, layers, site.name).model
    model_io.check(child, model)
    check_accounted(child)
    check_untouched(model, child, site)
    agree(run(model, feeds), run(child, feeds))
    steps = [np.linspace(1, 4, reader.features, dtype=np.float32) for reader in site.linear]
    moved = tuple(replace(r, b2=r.b2 + step) for r, step in zip(layers.readers, steps, strict=True))
    other = splice(model, site, replace(layers, readers=moved), site.name)
    old, new = zip(*other.targets, strict=True)
    before = feeds if set(old) <= set(feeds) else run(prune.prefix(model, old), feeds)
    after = run(prune.prefix(other.model, new), feeds)
    for reader, step, was, now in zip(site.linear, steps, old, new, strict=True):
        geometry = reader.geometry
        behind = len(geometry.kernel) if isinstance(geometry, ConvGeometry) else int(reader.weight_slot == 0)
        agree({"y": before[was] + step.reshape(-1, *[1] * behind)}, {"y": after[now]})
    return child
