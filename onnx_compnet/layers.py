"""What graph, runtime and numerics all speak of: plain frozen data, no dependency but numpy.

The letters are the paper's. ``t`` is the tensor in front of the new layer (D1 channels), ``x = W1·t + b1`` the
new layer's output with Dn neurons, ``A = h(x)`` its activation, and a *reader* (the paper's L2) turns A into
``y = W2ᵀu + b2``, where ``u`` is a row of A under the reader's geometry, its columns grouped by neuron.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating]
Dimension: TypeAlias = int | str | None  # fixed, symbolic, unknown


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: its name, numpy dtype name ("float32", "int64", …) and declared shape.

    ``shape`` is None where the rank is not declared; ``dtype`` is "" where it is not a numeric tensor.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True)
class LabelSpec(TensorSpec):
    """Labels that are read beside a model's inputs: an array of any numbers, its first axis the samples."""


ACTIVATION_PARAMETERS: dict[str, dict[str, float]] = {
    # name: {parameter: ONNX default}; the order is that of Activation.parameters
    "relu": {},
    "leaky_relu": {"alpha": 0.01},
    "prelu": {"slope": 0.25},
    "sigmoid": {},
    "tanh": {},
    "elu": {"alpha": 1.0},
    "selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "celu": {"alpha": 1.0},
    "gelu": {},
    "gelu_tanh": {},
    "silu": {},
    "hardswish": {},
    "hardsigmoid": {"alpha": 0.2, "beta": 0.5},
    "clip": {"min": 0.0, "max": 6.0},
    "softplus": {},
    "softsign": {},
    "mish": {},
    "thresholded_relu": {"alpha": 1.0},
}


@dataclass(frozen=True)
class Activation:
    """An elementwise function h: a key of ACTIVATION_PARAMETERS and its parameters' values, in that order.

    With a ``share`` other than 1 it is NetMorph's parametric activation share·h(z) + (1 − share)·z, its share a
    weight of each neuron, to be learned.
    """

    name: str
    parameters: tuple[float, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ACTIVATION_PARAMETERS:
            raise ValueError(f"unknown activation {self.name!r}; known: {', '.join(ACTIVATION_PARAMETERS)}")
        if not self.parameters:
            object.__setattr__(self, "parameters", tuple(ACTIVATION_PARAMETERS[self.name].values()))
        if len(self.parameters) != len(ACTIVATION_PARAMETERS[self.name]):
            raise ValueError(f"{self.name} takes the parameters {list(ACTIVATION_PARAMETERS[self.name])}")

    def __str__(self) -> str:
        values = zip(ACTIVATION_PARAMETERS[self.name], self.parameters, strict=True)
        inside = [f"{key}={value:g}" for key, value in values]
        inside += [f"share={self.share:g}"] if self.share != 1 else []
        return f"{self.name}({', '.join(inside)})" if inside else self.name

    @property
    def as_identity(self) -> Activation:
        """The parametric activation that starts as the identity: a PRelu of slope 1 for the rectifiers."""
        if self.name in ("relu", "leaky_relu", "prelu"):
            return Activation("prelu", (1.0,))
        return Activation(self.name, self.parameters, 0.0)


@dataclass(frozen=True)
class ConvGeometry:
    """How a Conv or ConvTranspose reads a tensor (N, C, *spatial); lengths equal the spatial rank (1, 2 or 3).

    ``pads`` in ONNX order (all begins, then all ends); ignored unless ``auto_pad`` is "NOTSET". With ``groups``
    each output reads only the channels of its group, as many in each: C for a depthwise Conv. With ``transposed``
    it is a ConvTranspose; ``output_padding`` and ``output_shape`` (spatial, it replaces the pads) are its own, ()
    where they are not given.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"  # NOTSET | VALID | SAME_UPPER | SAME_LOWER
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    groups: int = 1

    @property
    def taps(self) -> int:
        """q, the columns that one neuron takes in a row."""
        return math.prod(self.kernel)


@dataclass(frozen=True)
class DenseGeometry:
    """How a Gemm or MatMul contracts one axis of a tensor.

    ``channel_axis`` is the axis of the tensor that is contracted, ``output_axis`` that of the output with D2.
    Both are -1 for y = t·W. A Gemm with transA contracts axis 0. A weight on the left, y = W·t, has D2 on axis
    0 (Gemm) or -2 (MatMul, which then contracts axis -2). With ``flattened`` the tensor is (N, C, *spatial), a
    Flatten, Reshape or Squeeze to (N, C·taps) lies in between, and ``taps`` = H·W….
    """

    channel_axis: int = -1
    taps: int = 1
    flattened: bool = False
    output_axis: int = -1

    @property
    def groups(self) -> int:
        """1: every output reads every channel."""
        return 1


Geometry: TypeAlias = ConvGeometry | DenseGeometry
LayerKind: TypeAlias = Literal["conv", "gemm", "matmul"]


@dataclass(frozen=True)
class BatchNorm:
    """(x − mean)/√(variance + epsilon)·scale + bias; each array (Dn,), in the model's dtype."""

    scale: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float = 1e-5


@dataclass(frozen=True)
class CandidateLayer:
    """The new layer before selection: ``x = W1·t + b1``, ``A = h(x)``.

    kind "conv": W1 is (Dn, D1, *kernel), stride 1, same padding (begin = (k-1)//2, the rest at the end), on
    t (N, D1, *spatial). kind "gemm" (t is 2-D) and "matmul" (any rank): W1 is (Dn, D1), acting on the axis
    ``channel_axis`` of t, where x has Dn: -1, or with W1 on the left 0 ("gemm") or -2 ("matmul"). b1 is (Dn,).
    Arrays have the model's dtype (what is fitted is what is written).

    The baselines alone have more: other ``pads`` (ONNX order) and ``dilations`` of a "conv", and a ``norm`` between
    W1 and h (only where the channels are on axis 1).
    """

    kind: LayerKind
    activation: Activation
    W1: Array
    b1: Array
    channel_axis: int = -1
    pads: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    norm: BatchNorm | None = None


@dataclass(frozen=True)
class ReaderWeights:
    """A reader's new weights in canonical form: y = W2ᵀu + b2, W2 (kept·taps, D2) grouped by neuron, b2 (D2,).

    Of a reader with groups, W2 is (kept/groups·taps, D2): each column belongs to the neurons of its output's group.
    With ``unpadded`` a Conv loses its pads, which the new layer has taken over.
    """

    W2: Array
    b2: Array
    unpadded: bool = False


@dataclass(frozen=True)
class NewLayers:
    """What the splice writes: the surviving rows of the candidate layer, and each reader's new weights."""

    layer: CandidateLayer
    readers: tuple[ReaderWeights, ...]
