"""Putting a block behind a tensor: a new layer, and a linear layer whose output takes over the tensor's name.

So nothing that reads the tensor is touched, whatever it is: a node, a body, the model's caller.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from onnx_compnet.graph.edits import Edits
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.layer_writer import LayerWriter
from onnx_compnet.graph.structures import Site
from onnx_compnet.layers import CandidateLayer, ReaderWeights


def insert_block(
    index: GraphIndex, site: Site, layer: CandidateLayer, weights: ReaderWeights, label: str
) -> tuple[ModelProto, str]:
    """The child with a block at ``site``, and the tensor that stands in for the site's.

    Arrays in the model's dtype: W2 (Dn, D1), b2 (D1,). A graph input keeps its name; then what reads it reads
    the new tensor instead.
    """
    edits = Edits(index, label)
    writer = LayerWriter(edits, index.opset, site)
    producer = index.producers.get(site.tensor)
    fed = producer is None
    source = gs.Variable(site.tensor if fed else edits.fresh("input"))
    result = edits.fresh("output") if fed else site.tensor
    hidden = writer.layer(source, layer)
    write = {"conv": writer.conv, "gemm": writer.gemm, "matmul": writer.matmul}[site.kind]
    W2 = weights.W2.T
    output = write(hidden, W2.reshape(*W2.shape, *[1] * len(site.spatial)), weights.b2, result)
    region = gs.Graph(nodes=writer.nodes, inputs=[source], outputs=[output], opset=index.opset)
    exported = gs.export_onnx(region, do_type_check=False).graph
    edges = {}
    if producer is None:
        for position in index.consumers.get(site.tensor, ()):
            node = index.nodes[position]
            edges[position] = _renamed(node.input, node.output, site.tensor, result)
    else:
        node = index.nodes[producer]
        edges[producer] = _renamed(node.input, node.output, site.tensor, source.name)
    child = edits.apply(
        before=0 if producer is None else producer + 1,
        new=list(exported.node),
        behind={},
        edges=edges,
        initializers=list(exported.initializer),
    )
    return child, result


def _renamed(inputs: Iterable[str], outputs: Iterable[str], old: str, new: str) -> NodeProto:
    """A node's edges with another name for one tensor."""
    edges = NodeProto()
    edges.input.extend(new if name == old else name for name in inputs)
    edges.output.extend(new if name == old else name for name in outputs)
    return edges
