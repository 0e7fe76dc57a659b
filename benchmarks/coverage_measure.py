"""Checks and figures of a grown model by onnx, onnxruntime and numpy alone: nothing of the tool is used here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
NEW = "compnet/"
OWN_METADATA = "onnx_compnet."
LINEAR = ("Conv", "Gemm", "MatMul", "ConvTranspose")
OTHER_LINEAR = (
    *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv"),
    *("FusedConv", "FusedGemm", "FusedMatMul", "QGemm", "MatMulNBits", "DynamicQuantizeMatMul"),
)

INTEGER = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits")

# ---------------------------------------------------------------- running


class Runner:
    """A model in onnxruntime on the CPU, with inner tensors among its outputs."""

    def __init__(self, model: ModelProto, inner: Iterable[str] = (), threads: int = 2) -> None:
        self.names = [item.name for item in model.graph.output]
        extra = [name for name in dict.fromkeys(inner) if name not in self.names]
        shown = ModelProto()
        shown.CopyFrom(model)
        for name in extra:
            shown.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            shown.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["GemmTransposeFusion"],  # it loses a Transpose whose output is wanted
        )
        self.all = [*self.names, *extra]

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs and inner tensors for one feed."""
        return dict(zip(self.all, self.session.run(self.all, dict(feed)), strict=True))


def compare(
    parent: ModelProto,
    child: ModelProto,
    feeds: Feeds,
    targets: Sequence[tuple[str, str, int]],
) -> tuple[list[float], dict[str, dict[str, float | None]], bool]:
    """Errors at ``targets`` (parent tensor, child tensor, channel axis), at the outputs, and whether all is finite.

    The error is ‖a − b‖ / ‖b − mean(b)‖, the mean a channel at a target, one mean for an output.
    """
    old, new = Runner(parent, [t[0] for t in targets]), Runner(child, [t[1] for t in targets])
    pairs = [(old(feed), new(feed)) for feed in feeds]
    sites = [
        relative_error([p[a] for p, _ in pairs], [c[b] for _, c in pairs], axis) for a, b, axis in targets
    ]
    outputs: dict[str, dict[str, float | None]] = {}
    finite = True
    for name in old.names:
        a, b = [p[name] for p, _ in pairs], [c[name] for _, c in pairs]
        if a[0].dtype.kind not in "fiub" and a[0].dtype.name != "bfloat16":
            continue
        finite = finite and all(np.isfinite(x.astype(np.float64)).all() for x in b)
        outputs[name] = {"rel_error": relative_error(a, b, None), "agreement": _agreement(a, b)}
    return sites, outputs, finite and bool(np.isfinite(sites).all())


def with_axes(
    parent: ModelProto, site: Any, targets: Iterable[tuple[str, str]]
) -> list[tuple[str, str, int]]:
    """The targets of a growth at ``site`` with their channel axes."""
    block = site.mode == "block"
    return [(a, b, site.channel_axis if block else feature_axis(parent.graph, a)) for a, b in targets]


def relative_error(old: Sequence[Array], new: Sequence[Array], axis: int | None) -> float:
    """‖new − old‖ / ‖old − mean(old)‖ over all arrays; a mean each along ``axis``, one where that is None."""
    a, b = (np.concatenate([_rows(x, axis) for x in arrays]) for arrays in (old, new))
    off, spread = float(np.linalg.norm(b - a)), float(np.linalg.norm(a - a.mean(axis=0)))
    if spread == 0.0:
        return 0.0 if off == 0.0 else float("inf")
    return off / spread


def _rows(array: Array, axis: int | None) -> Array:
    wide = array.astype(np.float64)
    return wide.reshape(-1, 1) if axis is None else np.moveaxis(wide, axis, -1).reshape(-1, wide.shape[axis])


def _agreement(old: Sequence[Array], new: Sequence[Array]) -> float | None:
    if old[0].ndim < 2 or old[0].shape[-1] < 2 or old[0].dtype.kind != "f":
        return None
    same = [x.argmax(-1) == y.argmax(-1) for x, y in zip(old, new, strict=True)]
    return float(np.mean(np.concatenate([each.ravel() for each in same])))


# ---------------------------------------------------------------- validity


def invalid(model: ModelProto) -> str | None:
    """Why the full checker (with strict shape inference) refuses the model, or None."""
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return short(error)
    return None


def unsound(model: ModelProto) -> str | None:
    """Why the plain checker refuses the model, or None."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        return short(error)
    return None


def short(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


# ---------------------------------------------------------------- linear nodes


def linear_nodes(graph: GraphProto) -> list[NodeProto]:
    """The linear nodes of the main graph; bodies are not looked into."""
    return [node for node in graph.node if node.op_type in (*LINEAR, *OTHER_LINEAR)]


def linear_inside(graph: GraphProto) -> int:
    """How many linear nodes lie in bodies of If, Loop or Scan."""
    return sum(len(linear_nodes(body)) + linear_inside(body) for body in _bodies(graph))


def feature_axis(graph: GraphProto, tensor: str) -> int:
    """The axis on which a linear layer's output (also behind the Add of a bias) has its features."""
    made = {name: node for node in graph.node for name in node.output}
    node = made[tensor]
    if node.op_type == "Add":
        node = next(made[name] for name in node.input if name in made and made[name].op_type == "MatMul")
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    return -2 if node.input[0] in _constants(graph) else -1


def _constants(graph: GraphProto) -> set[str]:
    """What is made of constants alone."""
    found = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        if found.issuperset(name for name in node.input if name) and not any(_bodies_of(node)):
            found |= {name for name in node.output if name}
    return found


def _bodies(graph: GraphProto) -> Iterator[GraphProto]:
    for node in graph.node:
        yield from _bodies_of(node)


def _bodies_of(node: NodeProto) -> Iterator[GraphProto]:
    for item in node.attribute:
        yield from (item.g, *item.graphs) if item.HasField("g") else item.graphs


# ---------------------------------------------------------------- nothing else has changed


def differences(parent: ModelProto, child: ModelProto, tensor: str, targets: Iterable[str]) -> list[str]:
    """What differs between the protobufs outside the edit of a site.

    A replaced site may change the edges of the nodes from ``tensor`` to ``targets`` and the shapes on the way; the
    constants that only these read may change or go. A block, whose target is ``tensor`` itself, may only
    give another name to the tensor where it arises (where it is read, if it is an input of the graph). Both
    may add whatever is called compnet/….
    """
    goals = set(targets)
    block = goals == {tensor}
    touched = _around(parent.graph, tensor) if block else _between(parent.graph, tensor, goals)
    edited = [parent.graph.node[position] for position in sorted(touched)]
    own = set() if block else _own_constants(parent.graph, touched)
    results = {name for node in edited for name in node.output} | {tensor}
    found = [*_header(parent, child), *_nodes(parent.graph, child.graph, touched, own)]
    for what, loose in (
        ("initializer", own), ("sparse_initializer", own), ("input", own), ("value_info", own | results),
        ("output", set()),
    ):  # fmt: skip
        found += _named(getattr(parent.graph, what), getattr(child.graph, what), what, loose)
    return found


def _around(graph: GraphProto, tensor: str) -> set[int]:
    """Positions of the node that makes the tensor; of those that read it, if none does."""
    made = {position for position, node in enumerate(graph.node) if tensor in node.output}
    return made or {position for position, node in enumerate(graph.node) if tensor in node.input}


def _between(graph: GraphProto, tensor: str, targets: set[str]) -> set[int]:
    """Positions of the nodes on a way from the tensor to the targets."""
    behind = {tensor}
    reached: list[int] = []
    for position, node in enumerate(graph.node):
        if behind & set(node.input):
            behind |= {name for name in node.output if name}
            reached.append(position)
    needed, found = set(targets), set()
    for position in reversed(reached):
        node = graph.node[position]
        if needed & set(node.output):
            found.add(position)
            needed |= set(node.input) & behind
    return found


def _own_constants(graph: GraphProto, edited: set[int]) -> set[str]:
    """What is made of constants alone and read by the edited nodes alone, through others like it."""
    constant = _constants(graph)
    read_by: dict[str, set[int]] = {item.name: {-1} for item in graph.output}
    for position, node in enumerate(graph.node):
        for body in _bodies_of(node):
            for name in _names_in(body):
                read_by.setdefault(name, set()).add(-1)
        for name in node.input:
            read_by.setdefault(name, set()).add(position)
    private = set(edited)
    for position in reversed(range(len(graph.node))):
        outputs = {name for name in graph.node[position].output if name}
        if constant >= outputs and all(read_by.get(name, {-1}) <= private for name in outputs):
            private.add(position)
    return {name for name in constant if read_by.get(name, {-1}) <= private}


def _names_in(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
    yield from (item.name for item in graph.output)
    for body in _bodies(graph):
        yield from _names_in(body)


def _header(parent: ModelProto, child: ModelProto) -> list[str]:
    found = []
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(parent, name) != getattr(child, name):
            found.append(f"{name} differs")
    for name in ("opset_import", "functions", "training_info"):
        if [_bytes(x) for x in getattr(parent, name)] != [_bytes(x) for x in getattr(child, name)]:
            found.append(f"{name} differs")
    kept = [item for item in child.metadata_props if not item.key.startswith(OWN_METADATA)]
    if [_bytes(x) for x in parent.metadata_props] != [_bytes(x) for x in kept]:
        found.append("metadata_props differs")
    for name in ("name", "doc_string"):
        if getattr(parent.graph, name) != getattr(child.graph, name):
            found.append(f"graph.{name} differs")
    for name in ("quantization_annotation", "metadata_props"):
        if [_bytes(x) for x in getattr(parent.graph, name)] != [
            _bytes(x) for x in getattr(child.graph, name)
        ]:
            found.append(f"graph.{name} differs")
    return found


def _nodes(parent: GraphProto, child: GraphProto, touched: set[int], own: set[str]) -> list[str]:
    """The parent's nodes in their order, byte for byte but for edges of the touched ones; all others are new."""
    before = {node.name for node in parent.node if node.name}
    kept = [node for node in child.node if not node.name.startswith(NEW) or node.name in before]
    present = {name for node in kept for name in node.output}
    old = [
        (position in touched, node)
        for position, node in enumerate(parent.node)
        if position in touched or not own.issuperset(node.output) or present & set(node.output)
    ]
    if len(kept) != len(old):
        return [f"{len(old)} nodes became {len(kept)} beside the new ones"]
    found = []
    for position, ((edited, was), now) in enumerate(zip(old, kept, strict=True)):
        what = f"{was.op_type} {was.name or was.output[0]}"
        if edited:
            if _without_edges(was) != _without_edges(now):
                found.append(f"the edited node {what} changed beside its edges")
        elif _bytes(was) != _bytes(now) and not (was.op_type == "Constant" and set(was.output) <= own):
            found.append(f"node {position} ({what}) differs")
    return found


def _without_edges(node: NodeProto) -> bytes:
    """The rest of a node. A Gemm whose alpha or beta is 0 may get 1, and groups may go."""
    rest = NodeProto()
    rest.CopyFrom(node)
    del rest.input[:], rest.output[:]
    for position in reversed(range(len(rest.attribute))):
        if rest.attribute[position].name in ("alpha", "beta", "group"):
            del rest.attribute[position]
    return _bytes(rest)


def _named(old: Sequence[Any], new: Sequence[Any], what: str, loose: set[str]) -> list[str]:
    """Named messages: unchanged, in their order, but for the ``loose`` ones and new ones."""
    before = [(_name(x), _bytes(x)) for x in old if _name(x) not in loose]
    after = [(_name(x), _bytes(x)) for x in new if _name(x) not in loose and not _name(x).startswith(NEW)]
    if before == after:
        return []
    changed = {name for name, _ in set(before) ^ set(after)} or {"the order"}
    return [f"{what}: {', '.join(sorted(changed)[:3])} differs"]


def _name(message: Any) -> str:
    return str(message.name if hasattr(message, "name") else message.values.name)


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content
