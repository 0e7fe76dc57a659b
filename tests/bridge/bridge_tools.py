from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import helper, numpy_helper, parser

from onnx_compnet.bridge.tensors import to_tensor


def build(body, weights=None, *, x="float[N,3,8,8]", y="float", opset=20, ir=8, seed=0, others=""):
    """A model of text with random weights: {name: shape or array}."""
    rng = np.random.default_rng(seed)
    y = "float[] y" if y == "float" else y
    text = (
        f'<ir_version: {ir}, opset_import: ["": {opset}, "com.microsoft": 1]> net ({x} x{others}) => ({y}) '
    )
    model = parser.parse_model(text + "{" + body + "}")
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    for name, value in (weights or {}).items():
        array = value if isinstance(value, np.ndarray) else rng.uniform(0.2, 0.9, value).astype(np.float32)
        array = (
            array * rng.choice([-1, 1], array.shape).astype(array.dtype)
            if isinstance(value, tuple)
            else array
        )
        tensor = numpy_helper.from_array(np.asarray(array), name)
        model.graph.initializer.append(tensor)
        if ir < 4:
            model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
    return model


def run(model, *arrays):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # no lossy fusions
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def compute(module, *arrays):
    result = module(*(to_tensor(array) for array in arrays))
    return list(result) if isinstance(result, tuple) else [result]


def assert_equal(module, model, *arrays, rtol=1e-5):
    expected = run(model, *arrays)
    with torch.no_grad():
        found = compute(module, *arrays)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert tuple(a.shape) == b.shape
        assert a.dtype == to_tensor(b).dtype
        a, b = a.double().numpy(), b.astype(np.float64)
        assert np.linalg.norm(a - b) <= rtol * max(np.linalg.norm(b), 1e-6)


def sgd_step(module, *arrays, length=0.05):
    """One step on a random projection of the outputs. Every Parameter must get a gradient that is not 0."""
    torch.manual_seed(0)
    outputs = [item for item in compute(module, *arrays) if item.is_floating_point()]
    loss = sum((item * torch.randn_like(item)).sum() for item in outputs)
    loss.backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    weights = list(module.parameters())
    slope = max(weight.grad.float().norm() for weight in weights)
    torch.optim.SGD(weights, lr=length / float(slope)).step()


def image(n=2, seed=1, shape=(3, 8, 8)):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def weight_names(module):
    return {name for name, _ in module.named_parameters()}


def values(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
