"""Random small models: what exporters write, in any order. Drawn by hypothesis, which makes failing ones smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSETS = (11, 13, 14, 16, 17, 18, 20, 21, 23, min(onnx.defs.onnx_opset_version(), 26))
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model: ``shape`` without the samples' axis, which comes first; ``last``: channels there."""

    name: str
    shape: tuple[int, ...]
    last: bool = False

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.last else self.shape[0]


@dataclass
class Builder:
    """One model in the making; ``draw`` is hypothesis's."""

    draw: Any
    opset: int
    named: bool
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.whole(0, 2**16))

    # ------------------------------------------------------------ choices

    def whole(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pick(self, *items: Any) -> Any:
        return self.draw(st.sampled_from(items))

    # ------------------------------------------------------------ nodes and constants

    def node(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        number = len(self.nodes)
        name = f"/block{number}/{op}" if self.named else ""
        node = helper.make_node(op, inputs, [f"t{number}"], name, domain=domain, **attributes)
        self.nodes.append(node)
        return str(node.output[0])

    def held(self, values: Array) -> str:
        """A constant as an initialiser."""
        name = f"layer{len(self.weights)}.weight"
        self.weights[name] = values
        return name

    def integers(self, *values: int) -> str:
        return self.held(np.array(values, np.int64))

    def weight(self, *shape: int, fan_in: int) -> str:
        """A weight in one of the ways that models hold one."""
        values = (self.random.standard_normal(shape) * math.sqrt(1.5 / fan_in)).astype(np.float32)
        how = self.pick(*["initialiser"] * 4, "constant", "identity", "transpose", "cast", "reshape")
        if how == "constant":
            return self.node("Constant", [], value=numpy_helper.from_array(values))
        if how == "identity":
            return self.node("Identity", [self.held(values)])
        if how == "transpose":
            order = list(reversed(range(len(shape))))
            return self.node("Transpose", [self.held(values.T.copy())], perm=order)
        if how == "cast":
            return self.node("Cast", [self.held(values.astype(np.float16))], to=TensorProto.FLOAT)
        if how == "reshape":
            return self.node("Reshape", [self.held(values.reshape(-1)), self.integers(*shape)])
        return self.held(values)

    def bias(self, features: int) -> str:
        return self.held((self.random.standard_normal(features) * 0.2).astype(np.float32))

    # ------------------------------------------------------------ any tensor

    def activation(self, t: Tensor) -> Tensor:
        known = [
            "Relu",
            "Relu",
            "LeakyRelu",
            "Tanh",
            "Sigmoid",
            "Softplus",
            "Elu",
            "Clip",
            "PRelu",
            "silu",
            "gelu",
        ]
        known += ["HardSwish"] if self.opset >= 14 else []
        known += ["Gelu"] if self.opset >= 20 else []
        op = self.pick(*known)
        if op == "silu":
            y = self.node("Mul", [t.name, self.node("Sigmoid", [t.name])])
        elif op == "gelu":
            root, one, half = (self.held(np.array(v, np.float32)) for v in (math.sqrt(2), 1, 0.5))
            inner = self.node("Add", [self.node("Erf", [self.node("Div", [t.name, root])]), one])
            y = self.node("Mul", [self.node("Mul", [t.name, inner]), half])
        elif op == "Clip":
            y = self.node(op, [t.name, *(self.held(np.array(v, np.float32)) for v in (0, 6))])
        elif op == "PRelu":
            y = self.node(op, [t.name, self.held(np.array([0.2], np.float32))])
        else:
            y = self.node(op, [t.name])
        return Tensor(y, t.shape, t.last)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return Tensor(self.node("Add", [a.name, b.name]), a.shape, a.last)

    def residual(self, t: Tensor) -> Tensor:
        inner = self.linear(self.activation(t) if self.pick(True, False) else t, t.channels, keep=True)
        return self.add(inner, t)

    def branches(self, t: Tensor) -> Tensor:
        parts = [self.linear(t, self.whole(2, 3), keep=True) for _ in range(self.whole(2, 3))]
        parts = [self.activation(part) if self.pick(True, False) else part for part in parts]
        axis = -1 if t.last else 1
        wide = sum(part.channels for part in parts)
        shape = (*t.shape[:-1], wide) if t.last else (wide, *t.shape[1:])
        return Tensor(self.node("Concat", [part.name for part in parts], axis=axis), shape, t.last)

    def linear(self, t: Tensor, features: int, *, keep: bool = False) -> Tensor:
        """A linear layer to so many channels; with ``keep`` the other sizes stay."""
        if not t.last:
            return self.conv(t, features, keep=keep)
        return (
            self.gemm(t, features)
            if len(t.shape) == 1 and self.pick(True, False)
            else self.matmul(t, features)
        )

    def layer(self, t: Tensor) -> Tensor:
        return self.linear(t, self.whole(2, 6))

    def shared(self, t: Tensor) -> Tensor:
        """Two linear layers of one weight, one behind the other."""
        C, axes = t.channels, len(t.shape) - 1
        shape = (C, C) if t.last else (C, C, *[1] * axes)
        weight = self.weight(*shape, fan_in=C)
        op = "MatMul" if t.last else "Conv"
        first = self.activation(Tensor(self.node(op, [t.name, weight]), t.shape, t.last))
        return Tensor(self.node(op, [first.name, weight]), t.shape, t.last)

    # ------------------------------------------------------------ images

    def conv(self, t: Tensor, features: int, *, keep: bool = False) -> Tensor:
        C, *sizes = t.shape
        axes = len(sizes)
        groups = self.pick(1, 1, 1, *[g for g in (2, C) if C % g == 0])
        features = C if groups != 1 and not keep else features
        if features % groups:
            groups = 1
        size = self.pick(1, 3) if keep else self.pick(1, 2, 3)
        stride = 1 if keep else self.pick(1, 1, 2)
        pad = (size - 1) // 2 if keep else self.pick(0, 1)
        if min(sizes) + 2 * pad < size:
            size, pad = 1, 0
        attributes: dict[str, Any] = {"strides": [stride] * axes} if stride > 1 else {}
        if pad:
            attributes["pads"] = [pad] * (2 * axes)
        if size == 3 and pad == 1 and stride == 1 and self.pick(False, False, True):
            attributes = {"auto_pad": "SAME_UPPER"}
        if groups > 1:
            attributes["group"] = groups
        weight = self.weight(features, C // groups, *[size] * axes, fan_in=C // groups * size**axes)
        bias = [self.bias(features)] if self.pick(True, False) else []
        new = [(n + 2 * pad - size) // stride + 1 for n in sizes]
        return Tensor(self.node("Conv", [t.name, weight, *bias], **attributes), (features, *new))

    def conv_transpose(self, t: Tensor) -> Tensor:
        C, *sizes = t.shape
        axes = len(sizes)
        if max(sizes) > 3:
            return self.conv(t, 3)
        groups = 2 if C % 2 == 0 and self.pick(True, False) else 1
        features, size, stride = 2 * groups, self.pick(1, 2), self.pick(1, 2)
        weight = self.weight(C, features // groups, *[size] * axes, fan_in=C // groups)
        attributes = {"strides": [stride] * axes, "group": groups}
        y = self.node("ConvTranspose", [t.name, weight], **attributes)
        return Tensor(y, (features, *[(n - 1) * stride + size for n in sizes]))

    def normalise(self, t: Tensor) -> Tensor:
        C = t.channels
        scale, mean = (self.random.uniform(low, 1.5, C).astype(np.float32) for low in (0.5, -1.0))
        if t.last:
            y = self.node("Mul", [t.name, self.held(scale)])
            return Tensor(self.node("Add", [y, self.held(mean)]), t.shape, True)
        rest = [self.held(v) for v in (scale, mean, mean, scale)]
        return Tensor(self.node("BatchNormalization", [t.name, *rest]), t.shape)

    def pool(self, t: Tensor) -> Tensor:
        C, *sizes = t.shape
        if min(sizes) < 2:
            return t
        twos = [2] * len(sizes)
        y = self.node(self.pick("MaxPool", "AveragePool"), [t.name], kernel_shape=twos, strides=twos)
        return Tensor(y, (C, *[n // 2 for n in sizes]))

    def channels_last(self, t: Tensor) -> Tensor:
        """An activation between two Transposes, or a MatMul where the channels are last."""
        rank = len(t.shape) + 1
        there, back = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
        moved = Tensor(self.node("Transpose", [t.name], perm=there), (*t.shape[1:], t.shape[0]), True)
        inner = self.matmul(moved, self.whole(2, 4)) if self.pick(True, False) else self.activation(moved)
        return Tensor(self.node("Transpose", [inner.name], perm=back), (inner.shape[-1], *inner.shape[:-1]))

    def to_vector(self, t: Tensor) -> Tensor:
        how = self.pick("pool", "flatten", "reshape")
        if math.prod(t.shape[1:]) > 12:
            how = "pool"
        if how == "pool":
            t = Tensor(self.node("GlobalAveragePool", [t.name]), (t.shape[0], *[1] * (len(t.shape) - 1)))
        wide = math.prod(t.shape)
        if how == "reshape":
            return Tensor(self.node("Reshape", [t.name, self.integers(-1, wide)]), (wide,), True)
        return Tensor(self.node("Flatten", [t.name]), (wide,), True)

    # ------------------------------------------------------------ tokens and vectors

    def matmul(self, t: Tensor, features: int) -> Tensor:
        C = t.channels
        batch = (1,) if len(t.shape) > 1 and self.pick(False, False, True) else ()
        y = self.node("MatMul", [t.name, self.weight(*batch, C, features, fan_in=C)])
        if self.pick(True, False):
            y = self.node("Add", [y, self.bias(features)][:: self.pick(1, -1)])
        return Tensor(y, (*t.shape[:-1], features), True)

    def gemm(self, t: Tensor, features: int) -> Tensor:
        C, flipped, data = t.channels, self.pick(True, False), t.name
        weight = self.weight(*((features, C) if flipped else (C, features)), fan_in=C)
        attributes: dict[str, Any] = {"transB": 1} if flipped else {}
        if self.pick(False, False, True):
            attributes["alpha"] = 0.5
        if self.pick(False, False, True):
            data, attributes["transA"] = self.node("Transpose", [data], perm=[1, 0]), 1
        bias = [self.bias(features)] if self.pick(True, False) else []
        return Tensor(self.node("Gemm", [data, weight, *bias], **attributes), (features,), True)

    def attention(self, t: Tensor) -> Tensor:
        if len(t.shape) != 2:
            return self.layer(t)
        q, k, v = (self.matmul(t, 3) for _ in range(3))
        scores = self.node("MatMul", [q.name, self.node("Transpose", [k.name], perm=[0, 2, 1])])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), v.name])
        return Tensor(mixed, (t.shape[0], 3), True)

    # ------------------------------------------------------------ the whole

    def start(self) -> Tensor:
        """One more input, with what leads from it to something that layers read."""
        name = f"x{len(self.inputs)}"
        kind = self.pick("image", "image", "series", "volume", "photo", "tokens", "heads", "vector", "words")
        if kind == "words":
            self.inputs[name] = (TensorProto.INT64, (3,))
            table = self.held(self.random.standard_normal((10, 4)).astype(np.float32))
            return Tensor(self.node("Gather", [table, name]), (3, 4), True)
        shapes = {"image": (3, 5, 6), "series": (3, 9), "volume": (2, 4, 3, 4), "photo": (5, 6, 3), "tokens": (4, 5),
                  "heads": (2, 3, 5), "vector": (6,)}  # fmt: skip
        shape = shapes[kind]
        self.inputs[name] = (TensorProto.FLOAT, shape)
        if kind == "photo":
            return Tensor(self.node("Transpose", [name], perm=[0, 3, 1, 2]), (3, 5, 6))
        return Tensor(name, shape, kind in ("tokens", "heads", "vector"))

    def trunk(self, t: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            do = [self.layer, self.layer, self.activation, self.activation, self.residual, self.branches]
            do += [self.shared, self.normalise]
            do += [self.attention] if t.last else [self.conv_transpose, self.pool, self.channels_last]
            t = self.pick(*do)(t)
            if self.pick(*[False] * 9, True):
                self.outputs.append(t)
        return t

    def build(self) -> ModelProto:
        ends = [self.trunk(self.start(), self.whole(1, 4)) for _ in range(self.pick(1, 1, 2))]
        vectors = [self.to_vector(t) if not t.last else t for t in ends]
        if len(vectors) == 2 and all(len(v.shape) == 1 for v in vectors):
            wide = sum(v.channels for v in vectors)
            joined = self.node("Concat", [v.name for v in vectors], axis=-1)
            vectors = [Tensor(joined, (wide,), True)]
        self.outputs += [self.layer(self.trunk(v, self.whole(0, 2))) for v in vectors]
        infos = [
            helper.make_tensor_value_info(name, elem_type, ["N", *shape])
            for name, (elem_type, shape) in self.inputs.items()
        ]
        wanted = dict.fromkeys(t for t in self.outputs if t.name not in self.inputs)
        results = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, ["N", *t.shape]) for t in wanted]
        held = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", infos, results, held)
        ir = 8 if self.opset < 21 else 10 if self.opset < 24 else 11
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir)


@st.composite
def models(draw: Any) -> ModelProto:
    """A valid model whose nodes all have something to do."""
    return Builder(draw, draw(st.sampled_from(OPSETS)), draw(st.booleans())).build()


def feed(model: ModelProto, samples: int, seed: int) -> dict[str, Array]:
    """Random samples for every input."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for item in model.graph.input:
        kind = item.type.tensor_type
        shape = (samples, *(size.dim_value for size in kind.shape.dim[1:]))
        words = kind.elem_type == TensorProto.INT64
        arrays[item.name] = (
            random.integers(0, 10, shape) if words else random.standard_normal(shape, np.float32)
        )
    return arrays
