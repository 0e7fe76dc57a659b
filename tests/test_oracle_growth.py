"""Whole growths against a slow way to compute them: samples in memory, explicit matrices, plain numpy.

Of the tool only its candidates W1 and its choice of samples are used.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnx_compnet as oc
from onnx_compnet.graph import model_io
from onnx_compnet.numerics.initialise import candidates
from onnx_compnet.runtime.sources import DataOptions, open_data
from onnx_compnet.runtime.split import split

RHO = 1e-4  # well above the noise of float32, so that two ways can agree
ACTIVATIONS = {"Relu": lambda x: np.maximum(x, 0), "Tanh": np.tanh, "Sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def run(model, x, outputs):
    """t and the named outputs of a model, in float64."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.append(onnx.ValueInfoProto(name="t"))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.float64(array) for array in session.run(["t", *outputs], {"x": x})]


def patches(t, kernel, strides, dilations, pads):
    """Rows (N·positions, C·taps) of an image tensor, copied patch by patch."""
    s = len(kernel)
    t = np.pad(t, [(0, 0), (0, 0), *zip(pads[:s], pads[s:], strict=True)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = list(zip(t.shape[2:], reach, strides, dilations, strict=True))
    rows = []
    for place in itertools.product(*(range((size - r) // stride + 1) for size, r, stride, _ in axes)):
        cut = tuple(slice(i * st, i * st + r, d) for i, (_, r, st, d) in zip(place, axes, strict=True))
        rows.append(t[(slice(None), slice(None), *cut)].reshape(len(t), -1))
    return np.stack(rows, 1).reshape(-1, rows[0].shape[1])


def new_layer(t, W1):
    """x of the new layer (b1 = 0), same padding."""
    if W1.ndim == 2:
        return t @ W1.T
    kernel = W1.shape[2:]
    ones, pads = [1] * len(kernel), [(k - 1) // 2 for k in kernel] + [k // 2 for k in kernel]
    x = patches(t, kernel, ones, ones, pads) @ W1.reshape(len(W1), -1).T
    return np.moveaxis(x.reshape(len(t), *t.shape[2:], len(W1)), -1, 1)


def rows_of(tensor):
    """All positions of a tensor with channels on axis 1 as rows."""
    return np.moveaxis(tensor, 1, -1).reshape(-1, tensor.shape[1])


def reader_rows(A, node):
    """u of a Conv, or of a Gemm (behind a Flatten if A is an image)."""
    have = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = ("kernel_shape", "strides", "dilations", "pads")
    return patches(A, *map(have.get, names)) if node.op_type == "Conv" else A.reshape(len(A), -1)


def least_squares(u, y):
    """W2 and b2 of Eq. 11 with intercept and ridge, by orthogonal factors of the stacked matrix."""
    uc, yc, (n, p) = u - u.mean(0), y - y.mean(0), u.shape
    ridge = np.sqrt(RHO * (uc**2).sum() / n / p) * np.eye(p)
    stacked = np.r_[uc / np.sqrt(n), ridge], np.r_[yc / np.sqrt(n), np.zeros((p, y.shape[1]))]
    W2 = np.linalg.lstsq(*stacked, rcond=None)[0]
    return W2, y.mean(0) - u.mean(0) @ W2


def similarity(r):
    """Eq. 7."""
    return (r := np.minimum(abs(r), 1 - 1e-6)) / (1 - r) * (1 - np.eye(len(r)))


def iilasso(X, y, R, lam, alpha, start):
    """Eqs. 8-10 on the samples themselves, from ``start`` and from 0; the β of the lower loss (Eq. 6)."""

    def descend(beta):
        beta, residual = beta.copy(), y - X @ beta
        for _ in range(20000):
            before = beta.copy()
            for j in range(len(beta)):
                a = X[:, j] @ residual + beta[j]
                b = lam * (1 + alpha * (R[j] @ abs(beta)))
                new = np.sign(a) * max(abs(a) - b, 0)
                residual -= X[:, j] * (new - beta[j])
                beta[j] = new
            if abs(beta - before).max() < 1e-9:
                break
        penalty = abs(beta).sum() + alpha / 2 * abs(beta) @ R @ abs(beta)
        return residual @ residual / 2 + lam * penalty, beta

    found = [descend(start), descend(np.zeros(len(start)))]
    return min(found, key=lambda pair: pair[0])[1]


def resemblance(x, lam, alpha, start):
    """Step 5 of Algorithm 1 (5.1 of Algorithm 2), each x_j against itself: K = I and c = 1."""
    return iilasso(np.eye(len(start)), np.ones(len(start)), similarity(np.corrcoef(x.T)), lam, alpha, start)


def contributions(readers, W2s, Dn, lam, alpha):
    """Step 6 of Algorithm 3 with the explicit matrix of Eq. 4, the readers one above the other: β and λ_max."""
    T, target = [], []  # of each reader
    for (u, y), W2 in zip(readers, W2s, strict=True):
        q = len(W2) // Dn
        uc, yc = u - u.mean(0), y - y.mean(0)
        vec = [(uc[:, i : i + q] @ W2[i : i + q]).reshape(-1) for i in range(0, len(W2), q)]
        T.append(np.stack(vec, 1) / np.linalg.norm(yc))
        target.append(yc.reshape(-1) / np.linalg.norm(yc))
    T, target = np.concatenate(T), np.concatenate(target)
    d, s = np.linalg.norm(T, axis=0), np.linalg.norm(target)
    X, y = T / d, target / s
    lam_max = abs(X.T @ y).max()
    return iilasso(X, y, similarity(X.T @ X), lam * lam_max, alpha, d / s) * s / d, lam_max


def slow_growth(model, readers, W1, x, fold, method, lam, alpha, refit=True):
    """β, [(W2, b2)] of the survivors, λ_max, and the errors of the readers on the held-out samples."""
    Dn, fitted, held_out, lam_max = len(W1), fold >= 0, fold < 0, 1.0
    t, *ys = run(model, x, [node.output[0] for node in readers])
    pre = new_layer(t, np.float64(W1))
    A = ACTIVATIONS[model.graph.node[1].op_type](pre)
    fit = [(reader_rows(A[fitted], node), rows_of(y[fitted])) for node, y in zip(readers, ys, strict=True)]
    if method == "alg3":
        full = [least_squares(u, y) for u, y in fit]
        beta, lam_max = contributions(fit, [W2 for W2, _ in full], Dn, lam, alpha)
    elif method == "alg1":
        beta = resemblance(rows_of(pre[fitted]), lam, alpha, np.ones(Dn))
    else:
        beta, rested = np.ones(Dn), 0
        for k in itertools.count():
            alive = np.flatnonzero(beta)
            x_k = rows_of(pre[fold == k % 5])[:, alive]
            beta[alive] = resemblance(x_k, lam, alpha, beta[alive])
            rested = rested + 1 if beta[alive].all() else 1
            if rested == 5:
                break
    kept = np.flatnonzero(beta)
    weights, errors = [], []
    for number, (node, y, (u, y_fit)) in enumerate(zip(readers, ys, fit, strict=True)):
        q = u.shape[1] // Dn
        columns = (kept[:, None] * q + np.arange(q)).reshape(-1)
        W2, b2 = least_squares(u[:, columns], y_fit)
        if not refit:
            W2 = full[number][0][columns] * np.repeat(beta[kept], q)[:, None]
            b2 = y_fit.mean(0) - u[:, columns].mean(0) @ W2
        weights.append((W2, b2))
        u_h, y_h = reader_rows(A[held_out], node)[:, columns], rows_of(y[held_out])
        errors.append(np.linalg.norm(u_h @ W2 + b2 - y_h) / np.linalg.norm(y_h - y_h.mean(0)))
    return beta, weights, lam_max, errors


def network(shape, activation, first, *readers):
    """x → ``first`` → activation → t → the readers: (op, shape of the weight, attributes) each."""
    rng = np.random.default_rng(0)
    ops = [(first, "a", "x"), *((reader, f"y{i}", "t") for i, reader in enumerate(readers))]
    weights, nodes = [], []
    for (op, size, attributes), y, source in ops:
        weights.append(numpy_helper.from_array(rng.normal(size=size).astype(np.float32), f"w{y}"))
        nodes.append(helper.make_node(op, [source, f"w{y}"], [y], f"reader {y}", **attributes))
    nodes.insert(1, helper.make_node(activation, ["a"], ["t"], "act"))
    if len(shape) > 1 and readers[0][0] == "Gemm":
        nodes[2].input[0] = "flat"
        nodes.insert(2, helper.make_node("Flatten", ["t"], ["flat"]))
    dims = {"x": ["N", *shape], **{y: [None] * len(size) for (_, size, _), y, _ in ops[1:]}}
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, d) for name, d in dims.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), shape


def mlp():
    """Two readers of one geometry."""
    readers = ("Gemm", (6, 4), {}), ("Gemm", (6, 3), {"alpha": 20.0})
    return network((5,), "Tanh", ("Gemm", (5, 6), {}), *readers)


def conv_net():
    """Three readers, two of them of one geometry, strided, dilated and padded."""
    wide = {"kernel_shape": [2, 3], "strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 0, 1]}
    narrow = {"kernel_shape": [1, 1], "strides": [2, 2], "dilations": [1, 1], "pads": [0] * 4}
    readers = (("Conv", (2, 3, 2, 3), wide), ("Conv", (3, 3, 1, 1), narrow), ("Conv", (4, 3, 2, 3), wide))
    return network((2, 6, 7), "Relu", ("Conv", (3, 2, 3, 3), {"pads": [1] * 4}), *readers)


def flat_net():
    """A Conv in one dimension in front of a Flatten."""
    return network((2, 8), "Sigmoid", ("Conv", (2, 2, 3), {}), ("Gemm", (12, 3), {"alpha": 0.5}))


def read_back(child, readers):
    """W1 of the child, and W2, b2 of its readers in canonical form."""
    have = {tensor.name: np.float64(numpy_helper.to_array(tensor)) for tensor in child.graph.initializer}
    (W1,) = (value for name, value in have.items() if name.startswith("compnet/") and ".weight" in name)
    found = []
    for node in (node for reader in readers for node in child.graph.node if node.name == reader.name):
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        weight, bias = have[node.input[1]] * alpha, have[node.input[2]]
        found.append((weight.reshape(len(weight), -1).T if node.op_type == "Conv" else weight, bias))
    return W1, found


CASES = [
    ("alg1", {"lam": 0.5, "alpha": 2.0}),
    ("alg2", {"lam": 0.5, "alpha": 2.0}),
    ("alg3", {"lam": 0.1, "alpha": 0.1}),
    ("alg3", {"lam": 0.03, "alpha": 1.0, "refit": False}),
    ("alg3", {"lam": 0.05, "alpha": 0.0}),
    ("alg3", {"lam": 0.01, "alpha": 0.1, "keep": 5}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("make", [mlp, conv_net, flat_net])
def test_a_growth_is_what_the_slow_way_gives(make, method, options):
    (model, shape), options = make(), dict(options)
    x = np.random.default_rng(3).normal(size=(700, *shape)).astype(np.float32)
    grown = oc.grow(model, "act", {"x": x}, method=method, candidates=12, seed=4, ridge=RHO, **options)
    found = grown.sites[0]
    layer = (found.site.kind, found.site.channels, 12, found.kernel, found.activation)
    W1 = candidates(*layer, seed=4, dtype=np.dtype(np.float32)).W1
    parts = split(open_data({"x": x}, model_io.inputs(model), DataOptions()), seed=4)
    fold = np.full(len(x), -1)
    for batch in parts.fit:
        fold[batch.indices] = batch.fold
    readers = [node for node in model.graph.node if node.name in found.site.readers]
    if options.pop("keep", None):  # the penalty that a cap ended at is told
        options |= {"lam": found.lam / found.lam_max, "alpha": found.alpha}
    beta, weights, lam_max, errors = slow_growth(model, readers, W1, x, fold, method, **options)

    assert found.kept == tuple(np.flatnonzero(beta))
    assert len(found.kept) > 2
    np.testing.assert_allclose(found.beta, beta, rtol=1e-3, atol=3e-3)
    assert found.lam_max == pytest.approx(lam_max, rel=1e-3)
    W1_child, weights_child = read_back(grown.model, readers)
    np.testing.assert_array_equal(W1_child, W1[list(found.kept)])
    for (W2, b2), (W2_child, b2_child) in zip(weights, weights_child, strict=True):
        np.testing.assert_allclose(W2_child, W2, rtol=1e-3, atol=1e-3 * abs(W2).max())
        np.testing.assert_allclose(b2_child, b2, rtol=1e-3, atol=1e-3 * (abs(b2).max() + abs(W2).max()))
    assert list(found.reader_errors.values()) == pytest.approx(errors, rel=1e-3, abs=1e-6)
    assert found.site_error == max(found.reader_errors.values())
