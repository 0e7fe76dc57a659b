"""What the graph room hands out: plain frozen data, no live graph objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx_compnet.layers import Activation, DenseGeometry, Dimension, Geometry, LayerKind


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a site, and where it stands in the graph (a "Block": where its site comes from).

    ``node`` is its name (its output's name when it has none), ``index`` its position in ``graph.node``,
    ``input`` the tensor it reads itself (the site, or behind a Flatten). ``output`` is the tensor y that is
    compared: for a MatMul with a bias that of the Add at ``add_index``. ``features`` is D2. ``between`` holds
    the positions of the Flatten, Reshape or Squeeze nodes from the site to the reader, the site's side first.
    """

    node: str
    op_type: str
    index: int
    input: str
    output: str
    features: int
    geometry: Geometry
    add_index: int | None = None
    between: tuple[int, ...] = ()

    @property
    def weight_slot(self) -> int:
        """Which input is the weight: 0 for a Gemm or MatMul with the weight on the left."""
        return 0 if isinstance(self.geometry, DenseGeometry) and self.geometry.output_axis != -1 else 1


@dataclass(frozen=True)
class Site:
    """A tensor behind which a new layer can be put.

    In mode "replace" all that read its values are linear layers, ``linear``, which are solved anew. In mode
    "block" anything may read it: ``linear`` is then one reader that does not exist yet, the linear layer
    behind the new one, whose target is the tensor itself. ``readers`` are the nodes that read the tensor.

    ``channels`` is D1, on axis ``channel_axis``; ``kind`` that of the new layer. ``activation`` is the one in
    front of the tensor, behind pooling and normalisation (relu where there is none). ``spatial`` holds the
    dimensions after the channels of a "conv" site, () otherwise. ``name`` always resolves to this site.
    """

    name: str
    tensor: str
    kind: LayerKind
    channels: int
    linear: tuple[Reader, ...]
    activation: Activation
    spatial: tuple[Dimension, ...]
    rank: int | None
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    channel_axis: int
    mode: Literal["replace", "block"] = "replace"
    read_by: tuple[str, ...] = ()
    """what reads a block; see ``readers``"""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """between which the ops in front keep the tensor, whatever the model's inputs are"""
    why_block: str = ""
    """why mode "replace" is impossible, as the rest of a sentence that starts with the tensor; "" where it is not"""

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the nodes that read the site."""
        return self.read_by if self.mode == "block" else tuple(reader.node for reader in self.linear)

    @property
    def read_by_text(self) -> str:
        """The readers, for people."""
        return ", ".join(self.readers) or "the model's caller"

    @property
    def groups(self) -> int:
        """Into how many groups of equal size the new neurons must fall, so that every reader's groups are met."""
        return math.lcm(*(reader.geometry.groups for reader in self.linear))

    @property
    def max_taps(self) -> int:
        """The largest q among the readers: columns that one channel takes in a row."""
        return max(reader.geometry.taps for reader in self.linear)


@dataclass(frozen=True)
class Refusal:
    """A linear node in front of which nothing can be grown, and why."""

    name: str
    op_type: str
    reason: str
