from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import export
from graph_tools import check_accounted, pair_layers, run

from onnx_compnet.graph import model_io
from onnx_compnet.graph.names import resolve
from onnx_compnet.graph.sites import find_sites, refusals
from onnx_compnet.graph.splice import splice

models = pytest.importorskip("torchvision.models")
SIZE = 64

# network: a name, the kind of the site and the activation in front of it
EXPECTED = {
    "resnet18": ("layer1.0.conv1", "conv", "relu"),
    "vgg11": ("features.3", "conv", "relu"),
    "squeezenet1_1": ("features.0", "conv", "relu"),
    "mobilenet_v3_small": ("classifier.0", "gemm", "hardswish"),
}


@pytest.fixture(scope="module")
def exported():
    found = {}
    for name in EXPECTED:
        torch.manual_seed(0)
        net = getattr(models, name)(weights=None)
        if name == "vgg11":  # its first dense layer has 400 MB; a pool to 1x1 keeps its Flatten
            net.avgpool = torch.nn.AdaptiveAvgPool2d(1)
            net.classifier[0] = torch.nn.Linear(512, 64)
            net.classifier[3] = torch.nn.Linear(64, 64)
            net.classifier[6] = torch.nn.Linear(64, 10)
        found[name] = export(net, torch.zeros(1, 3, SIZE, SIZE), dynamo=False)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_networks_as_they_are_exported(exported, name):
    model = exported[name]
    check_accounted(model)
    sites = find_sites(model)
    assert len(sites) >= 4
    for site in sites:
        assert resolve(model, site.name) == site
        assert resolve(model, site.tensor) == site
    path, kind, activation = EXPECTED[name]
    site = resolve(model, path)
    assert (site.name, site.kind, site.activation.name) == (path, kind, activation)
    if name == "mobilenet_v3_small":
        assert not refusals(model)
        assert any(site.groups == site.channels for site in sites)  # depthwise
    child = splice(model, site, pair_layers(model, site), site.name).model
    model_io.check(child, model)
    x = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    (expected,), (got,) = run(model, {"x": x}).values(), run(child, {"x": x}).values()
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
