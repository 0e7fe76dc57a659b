"""A network of a few hundred weights, and pictures of three shapes that it can learn in a second."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 1, 6, 6] x) => (float[N, 3] logits)
<float ratio = {0.2}, bool on = {0}>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, conv_weight, conv_bias)
  b = Relu (a)
  c = Flatten (b)
  d = Gemm <transB = 1> (c, fc1_weight, fc1_bias)
  e = Relu (d)
  f = Dropout (e, ratio, on)
  logits = Gemm <transB = 1> (f, fc2_weight, fc2_bias)
}
"""


def small_model(dropout: bool = True, last: str = "") -> onnx.ModelProto:
    text = TEXT if dropout else TEXT.replace("f = Dropout (e, ratio, on)", "f = Identity (e)")
    if last:
        text = text.replace("logits = Gemm", "scores = Gemm").replace(
            "\n}", f"\n  logits = {last} (scores)\n}}"
        )
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:  # the text format has no dots in names
        node.input[:] = [name.replace("_weight", ".weight").replace("_bias", ".bias") for name in node.input]
    rng = np.random.default_rng(0)
    shapes = {
        "conv.weight": (4, 1, 3, 3), "conv.bias": (4,), "fc1.weight": (8, 144), "fc1.bias": (8,),
        "fc2.weight": (3, 8), "fc2.bias": (3,),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3 / np.sqrt(max(1, np.prod(shape[1:]) / 4)), shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    return model


def normalised_model() -> onnx.ModelProto:
    """The small one with a BatchNormalization behind its convolution, whose statistics are far from the data's."""
    model = small_model()
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    names = ["bn.weight", "bn.bias", "bn.mean", "bn.var"]
    node = onnx.helper.make_node("BatchNormalization", [relu.input[0], *names], ["normal"], momentum=0.5)
    relu.input[0] = "normal"
    model.graph.node.insert(1, node)
    for name, value in zip(names, (1, 0, 1, 4), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.full(4, value, np.float32), name))
    onnx.checker.check_model(model)
    return model


def pictures(n: int, seed: int) -> dict[str, np.ndarray]:
    """Rows, columns or a diagonal, as bytes with noise, and which of them it is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    shapes = np.zeros((3, 6, 6))
    shapes[0, 2:4], shapes[1, :, 2:4], shapes[2] = 150, 150, 150 * np.eye(6)
    x = np.clip(shapes[y] + rng.normal(50, 40, (n, 6, 6)), 0, 255).astype(np.uint8)
    return {"x": x[:, None], "y": y}


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
