"""Random models from a seed: nothing crashes, every linear node is accounted for, an exact layer changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graph_tools import PAIRS, agree, check_accounted, check_site, pair_layers, run
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_compnet.graph.sites import find_sites
from onnx_compnet.graph.splice import splice

OPSETS, MODELS, BLOCK = (7, 9, 11, 13, 15, 18, 21, 23), 160, 40


class Generator:
    """One random model; ``shapes`` has the tensors' sizes."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.opset, self.ir = self.pick(*OPSETS), self.pick(3, 8, 10)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.outputs: list[str] = []
        self.given = 0

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, *items: Any) -> Any:
        return items[int(self.random.integers(len(items)))]

    def name(self) -> str:
        self.given += 1
        form = self.pick("t{}", "t{}", "/mod/t.{}", "compnet/t{}", "λ {}", "layer.{}.weight", "x" * 99 + "{}")
        return str(form).format(self.given)

    def node(self, op: str, inputs: list[str], outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        names = [self.name() for _ in range(outputs)]
        own = self.pick("", f"n{len(self.nodes)}", names[0])
        node = helper.make_node(op, inputs, names, own, domain=domain, **attributes)
        node.doc_string = self.pick("", "doc")
        self.nodes.append(node)
        return names[0]

    def add(self, tensor: str, shape: tuple[int, ...]) -> None:
        self.shapes[tensor] = tuple(shape)

    def weight(self, *shape: int) -> str:
        """A constant in one of the ways that a model can hold it, or one that is there already."""
        same = [name for name, values in self.weights.items() if values.shape == shape]
        if same and self.chance(0.1):
            return str(self.pick(*same))
        values = (self.random.standard_normal(shape) * 0.5).astype(np.float32)
        if self.chance(0.2):
            return self.node("Constant", [], value=numpy_helper.from_array(values))
        name = self.name()
        self.weights[name] = values
        if self.chance(0.03):
            self.outputs.append(name)
        for alias in ("Identity", "Identity", "Abs"):
            if self.chance(0.08):
                name = self.node(alias, [name])
        return name

    def integers(self, *values: int) -> str:
        name = self.node("Constant", [], value=numpy_helper.from_array(np.array(values, np.int64)))
        return self.node("Identity", [name]) if self.chance(0.2) else name

    def activation(self, t: str) -> None:
        op = self.pick("Relu", "Relu", "Tanh", "LeakyRelu", "Softplus", "PRelu", "silu", "Gelu", "Neg")
        shape = self.shapes[t]
        if op == "silu":
            y = self.node("Mul", [self.node("Sigmoid", [t]), t])
        elif op == "PRelu":
            y = self.node(op, [t, self.weight(1)])
        else:
            y = self.node(op, [t], domain="com.microsoft" if op == "Gelu" else "")
        self.add(y, shape)

    def conv(self, t: str) -> None:
        batch, channels, *sizes = self.shapes[t]
        groups = channels if self.chance(0.1) else 1
        features = groups * int(self.random.integers(1, 4))
        kernel = [int(self.random.integers(1, 4)) for _ in sizes]
        strides, dilations = ([self.pick(1, 1, 2) for _ in sizes] for _ in range(2))
        pads = [int(self.random.integers(0, 3)) for _ in (*sizes, *sizes)]
        padding = self.pick("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
        pads = pads if padding == "NOTSET" else [0] * len(pads)
        if padding.startswith("SAME"):
            dilations = [1 for _ in sizes]  # onnxruntime has no other
            new = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        else:
            room = [
                size + first + last - (k - 1) * d - 1
                for size, first, last, k, d in zip(
                    sizes, pads[: len(sizes)], pads[len(sizes) :], kernel, dilations, strict=True
                )
            ]
            if min(room) < 0:
                return
            new = [free // stride + 1 for free, stride in zip(room, strides, strict=True)]
        attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "auto_pad": padding}
        attributes |= {"pads": pads} if padding == "NOTSET" else {}
        attributes |= {"group": groups} if groups != 1 else {}
        inputs = [t, self.weight(features, channels // groups, *kernel)]
        inputs += self.pick([], [""], [self.weight(features)])
        self.add(self.node("Conv", inputs, **attributes), (batch, features, *new))

    def gemm(self, t: str) -> None:
        trans_a, trans_b, features = self.chance(0.15), self.chance(0.5), int(self.random.integers(1, 5))
        rows, channels = self.shapes[t][::-1] if trans_a else self.shapes[t]
        inputs = [t, self.weight(features, channels) if trans_b else self.weight(channels, features)]
        if self.opset < 11 or self.chance(0.7):
            shape = self.pick((features,), (1, features), (1,), (), (1, 1), (rows, 1), (rows, features))
            inputs.append(self.weight(*shape))
        attributes = {"transA": int(trans_a), "transB": int(trans_b)}
        attributes |= {key: self.pick(0.5, 0.0, -2.0) for key in ("alpha", "beta") if self.chance(0.3)}
        self.add(self.node("Gemm", inputs, **attributes), (rows, features))

    def matmul(self, t: str) -> None:
        shape, features = self.shapes[t], int(self.random.integers(1, 5))
        if self.chance(0.15):
            y = self.node("MatMul", [self.weight(features, shape[-2]), t])
            self.add(y, (*shape[:-2], features, shape[-1]))
            return
        batch = (1,) if len(shape) > 2 and self.chance(0.1) else ()
        y, shape = self.node("MatMul", [t, self.weight(*batch, shape[-1], features)]), (*shape[:-1], features)
        self.add(y, shape)
        if self.chance(0.6):
            bias = self.weight(*self.pick((features,), (features,), (1, features), (), shape, (shape[-2], 1)))
            self.add(self.node("Add", self.pick([y, bias], [bias, y])), shape)

    def flatten(self, t: str) -> None:
        shape = self.shapes[t]
        rest = int(np.prod(shape[1:]))
        how = self.pick("flatten", "axis", "reshape", "computed", "squeeze")
        if how == "flatten":
            self.add(self.node("Flatten", [t]), (shape[0], rest))
        elif how == "axis":
            axis = int(self.random.integers(0, len(shape) + 1))
            y = self.node("Flatten", [t], axis=axis)
            self.add(y, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))
        elif how == "reshape":
            target = self.pick((0, -1), (-1, rest), (0, rest), (shape[0], rest), (shape[0], -1))
            self.add(self.node("Reshape", [t, self.integers(*target)]), (shape[0], rest))
        elif how == "computed" and self.opset >= 15:
            size = self.node("Shape", [t], start=0, end=1)
            target = self.node("Concat", [size, self.integers(-1)], axis=0)
            self.add(self.node("Reshape", [t, target]), (shape[0], rest))
        elif 1 in shape[2:]:
            axes = [axis for axis, size in enumerate(shape) if size == 1 and axis > 1]
            inputs, attributes = ([t], {"axes": axes}) if self.opset < 13 else ([t, self.integers(*axes)], {})
            y = self.node("Squeeze", inputs, **attributes)
            self.add(y, tuple(size for axis, size in enumerate(shape) if axis not in axes))

    def other(self, t: str) -> None:
        shape = self.shapes[t]
        what = self.pick("Identity", "Dropout", "Add", "GlobalAveragePool", "Transpose", "output", "If")
        if what in ("Identity", "Dropout"):
            self.add(self.node(what, [t], outputs=1 + (what == "Dropout" and self.chance(0.5))), shape)
        elif what == "Add":
            self.add(
                self.node(what, [t, self.pick(*(o for o in self.shapes if self.shapes[o] == shape))]), shape
            )
        elif what == "GlobalAveragePool" and 3 <= len(shape) <= 5:
            self.add(self.node(what, [t]), (*shape[:2], *[1] * (len(shape) - 2)))
        elif what == "Transpose":
            order = [int(axis) for axis in self.random.permutation(len(shape))]
            self.add(self.node(what, [t], perm=order), tuple(shape[axis] for axis in order))
        elif what == "output":
            self.outputs.append(t)
        elif what == "If" and self.opset >= 11:
            condition = self.node("Constant", [], value=numpy_helper.from_array(np.array(True)))
            bodies = {}
            for branch, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
                result = helper.make_tensor_value_info(self.name(), 1, [None] * len(shape))
                node = helper.make_node(op, [t], [result.name])
                bodies[branch] = helper.make_graph([node], "body", [], [result])
            self.add(self.node(what, [condition], **bodies), shape)

    def build(self) -> tuple[ModelProto, dict[str, np.ndarray]]:
        shape = self.pick((3, 6), (3, 6), (3, 3, 7), (3, 2, 6, 5), (3, 2, 4, 3, 4), (3, 2, 1, 2, 1, 2))
        self.add("x", shape)
        for _ in range(int(self.random.integers(4, 12))):
            t = list(self.shapes)[-1] if self.chance(0.7) else str(self.pick(*self.shapes))
            rank = len(self.shapes[t])
            fitting = [self.activation, self.other]
            fitting += [self.conv] * 4 if 3 <= rank <= 5 else []
            fitting += [self.flatten] * 2 if rank > 2 else [self.gemm] * 3
            fitting += [self.matmul] * 2 if rank > 1 else []
            self.pick(*fitting)(t)
        read = {name for node in self.nodes for name in node.input}
        ends = [t for t in self.shapes if t not in read and t != "x"]
        wanted = dict.fromkeys(name for name in (*ends, *self.outputs) if name != "x")
        ranks = {name: len(values.shape) for name, values in self.weights.items()}
        ranks |= {name: len(sizes) for name, sizes in self.shapes.items()}
        initializers = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        inputs = [helper.make_tensor_value_info("x", 1, shape)]
        for tensor in initializers:
            if self.ir < 4 or self.chance(0.1):
                inputs.append(helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
        results = [helper.make_tensor_value_info(name, 1, [None] * ranks[name]) for name in wanted]
        graph = helper.make_graph(self.nodes, "g", inputs, results, initializers)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir)
        model.metadata_props.add(key="k", value="v")
        if self.chance(0.4):
            model = onnx.shape_inference.infer_shapes(model)
        return model, {"x": self.random.standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("first", range(0, MODELS, BLOCK))
def test_random_models(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gs.logger.G_LOGGER, "severity", 50)  # it warns of equal names
    sites = 0
    for seed in range(first, first + BLOCK):
        generator = Generator(seed)
        model, feeds = generator.build()
        onnx.checker.check_model(model)
        whole = model.SerializeToString(deterministic=True)
        check_accounted(model)
        for site in find_sites(model):
            sites += 1
            child = check_site(model, feeds, site, generator.pick(*PAIRS) if generator.opset > 8 else "relu")
            behind = generator.pick(*find_sites(child))
            again = splice(child, behind, pair_layers(child, behind), behind.name).model
            agree(run(model, feeds), run(again, feeds), 1e-4)
        assert model.SerializeToString(deterministic=True) == whole
    assert sites > BLOCK / 2
