from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch
from torch import nn


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 5)
        self.fc1 = nn.Linear(6 * 16, 20)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(self.act(self.fc1(x)))


def export(module: nn.Module, sample: torch.Tensor, *, dynamo: bool) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        if dynamo:
            program = torch.onnx.export(
                module.eval(),
                (sample,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
            program.save(buffer)
        else:
            torch.onnx.export(
                module.eval(),
                (sample,),
                buffer,
                dynamo=False,
                opset_version=17,
                input_names=["x"],
                dynamic_axes={"x": {0: "n"}},
            )
    return onnx.load_from_string(buffer.getvalue())


@pytest.fixture(scope="session")
def lenets() -> dict[str, onnx.ModelProto]:
    """The same network from both of torch's exporters."""
    torch.manual_seed(0)
    net, sample = LeNet(), torch.randn(2, 1, 28, 28)
    return {
        "torchscript": export(net, sample, dynamo=False),
        "dynamo": export(net, sample, dynamo=True),
    }


@pytest.fixture(params=["torchscript", "dynamo"])
def lenet(request: pytest.FixtureRequest, lenets: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    return lenets[request.param]
