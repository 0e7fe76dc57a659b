"""The networks of the CompNet paper in torch, and their export to ONNX.

LeNet4 has two convolutions and two dense layers. VGG16 and VGG19 are configurations D and E of Simonyan and Zisserman
(arXiv:1409.1556) for 32 × 32 pixels, without batch normalisation; the dense layers have 512 neurons, as the last map
has 1 × 1 positions. VGG15 and VGG18 lack the first convolution of 512 filters, VGG17 has one of 256 more.
Their weights are torch's: ``onnx_compnet.baselines.scratch`` draws them anew by He's rule.
"""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict

import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CLASSES = 10
BLOCKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg15": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 2, (512,) * 3),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg17": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 3, (512,) * 3),
    "vgg18": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 3, (512,) * 4),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
INSERTED = {"vgg16": "conv4_1", "vgg17": "conv3_3", "vgg19": "conv4_1"}
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def scaled(channels: int, multiplier: float) -> int:
    """``channels`` times the width multiplier, at least 1."""
    return max(1, round(channels * multiplier))


class LeNet4(nn.Module):
    """Conv 1→C 5×5, pool, Conv C→2.5·C 5×5, pool, dense →256, dense →10, ReLU between, for (n, 1, 28, 28).

    With ``inserted`` channels of 3×3 in front of the second convolution it is LeNet5.
    """

    def __init__(self, channels: int = 20, inserted: int = 0, activation: str = "relu") -> None:
        super().__init__()
        second = channels * 5 // 2
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(1, channels, 5)
        self.inserted = nn.Conv2d(channels, inserted, 3, padding=1) if inserted else None
        self.conv2 = nn.Conv2d(inserted or channels, second, 5)
        self.fc1 = nn.Linear(second * 4 * 4, 256)
        self.fc2 = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        if self.inserted is not None:
            x = self.activation(self.inserted(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


class VGG(nn.Module):
    """A VGG of BLOCKS for (n, C, 32, 32); 3×3 convolutions ``conv<block>_<place>``, a 2×2 pool behind each block.

    ``activation`` is that of the layer INSERTED alone; all others have ReLU.
    """

    def __init__(
        self,
        kind: str,
        width_multiplier: float = 1.0,
        *,
        channels: int = 3,
        dropout: float = 0.5,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.last_of_block = []
        for block, widths in enumerate(BLOCKS[kind], 1):
            for place, width in enumerate(widths, 1):
                wide = scaled(width, width_multiplier)
                layers[f"conv{block}_{place}"] = nn.Conv2d(channels, wide, 3, padding=1)
                channels = wide
            self.last_of_block.append(f"conv{block}_{len(widths)}")
        for name, module in layers.items():
            self.add_module(name, module)
        self.convolutions = tuple(layers)
        self.activations = {INSERTED[kind]: ACTIVATIONS[activation]} if kind in INSERTED else {}
        hidden = scaled(512, width_multiplier)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10)."""
        for name in self.convolutions:
            x = self.activations.get(name, F.relu)(self.get_submodule(name)(x))
            if name in self.last_of_block:
                x = F.max_pool2d(x, 2)
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        logits: Tensor = self.fc3(x)
        return logits


def to_onnx(module: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """``module`` as ONNX: input ``x`` (n, *shape), output ``logits``; Dropout stays, at rest until it is trained."""
    stream = io.BytesIO()
    module.train()  # the exporter leaves Dropout out otherwise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces that it is the older one
        torch.onnx.export(
            module,
            (torch.zeros(2, *shape),),
            stream,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            input_names=["x"],
            output_names=["logits"],
        )
    model = onnx.load_from_string(stream.getvalue())
    modes = {node.input[2] for node in model.graph.node if node.op_type == "Dropout"}
    for node in model.graph.node:
        if node.op_type == "Dropout":
            del node.input[2:]  # training_mode: false where it is not given
    unused = [node for node in model.graph.node if node.output[0] in modes]
    for node in unused:
        model.graph.node.remove(node)
    onnx.checker.check_model(model, full_check=True)
    return model
