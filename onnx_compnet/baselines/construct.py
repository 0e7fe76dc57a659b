"""The layers that need no fitting: one function for all methods that make them of the model's weights."""

from __future__ import annotations

from onnx_compnet.baselines.exact import exact
from onnx_compnet.baselines.net2net import net2deeper, require_normalisable
from onnx_compnet.baselines.netmorph import enough, memory_needed, netmorph
from onnx_compnet.config import GrowOptions
from onnx_compnet.errors import ResourceError
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.layers import Activation, NewLayers
from onnx_compnet.numerics.morph import ZERO
from onnx_compnet.runtime.device import available_memory, select


def construct(
    index: GraphIndex,
    site: Site,
    width: int,
    kernel: tuple[int, ...],
    activation: Activation,
    options: GrowOptions,
    t_scale: float = 1.0,
) -> tuple[NewLayers, tuple[str, ...]]:
    """The layer of a method in CONSTRUCTED, and what the user should be told of it; ``t_scale`` as for ``exact``.

    Raises UnsupportedError where the method has no such layer, ResourceError where memory does not suffice.
    """
    if options.method == "net2deeper":
        if options.batch_norm:
            require_normalisable(site)
        return net2deeper(index, site, kernel, activation), ()
    if options.method == "exact":
        return exact(index, site, kernel, activation, t_scale), ()
    needed, available = memory_needed(site, width, kernel), available_memory(select("cpu"))
    if needed > available:
        raise ResourceError(
            f"site {site.name}: NetMorph's least squares for {width} neurons need {needed / 2**30:.1f} GiB of memory "
            f"and {available / 2**30:.1f} GiB are available; lower --candidates or --kernel"
        )
    layers, found = netmorph(index, site, width, kernel, activation, seed=options.seed)
    if found.loss <= ZERO:
        return layers, ()
    return layers, (
        f"{width} neurons can't hold the readers' filters: NetMorph misses them by {found.loss:.3g} of their norm; "
        f"{enough(site, kernel)} neurons are enough",
    )
