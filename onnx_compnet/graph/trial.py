"""The new layer as a model of its own, for a runtime to say beforehand whether it can run it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from onnx_compnet.graph.edits import Edits
from onnx_compnet.graph.index import GraphIndex, opset
from onnx_compnet.graph.layer_writer import LayerWriter
from onnx_compnet.graph.sites import Site
from onnx_compnet.layers import Activation, CandidateLayer, Dimension


def layer_alone(model: ModelProto, site: Site, activation: Activation, kernel: tuple[int, ...]) -> ModelProto:
    """One neuron of the layer that ``site`` of ``model`` would get, with its activation, from "t" to "y"."""
    dtype = np.dtype(site.dtype)
    W1, b1 = np.zeros((1, site.channels, *kernel), dtype), np.zeros(1, dtype)
    layer = CandidateLayer(site.kind, activation, W1, b1, site.channel_axis)
    shape: list[Dimension] = [None] * (site.rank or 3)
    shape[site.channel_axis] = site.channels
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    graph = onnx.helper.make_graph(
        [],
        "layer",
        [onnx.helper.make_tensor_value_info("t", elem_type, shape)],
        [onnx.helper.make_tensor_value_info("y", elem_type, None)],
    )
    imported = [onnx.helper.make_opsetid("", opset(model))]
    alone = onnx.helper.make_model(graph, opset_imports=imported, ir_version=model.ir_version)
    index = GraphIndex.of(alone)
    edits = Edits(index, "trial")
    writer = LayerWriter(edits, index.opset, site)
    result = writer.layer(gs.Variable("t"), layer)
    writer.nodes.append(gs.Node("Identity", "y", {}, [result], [gs.Variable("y")]))
    written = gs.export_onnx(gs.Graph(nodes=writer.nodes, opset=index.opset), do_type_check=False).graph
    return edits.apply(
        before=0, new=list(written.node), behind={}, edges={}, initializers=list(written.initializer)
    )
