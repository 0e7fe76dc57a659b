"""Candidate weights W1 for the new layer: He, Glorot and Kumar (step 1 of Algorithms 1-3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import UsageError
from onnx_compnet.layers import Activation, CandidateLayer, LayerKind
from onnx_compnet.numerics.activations import value_and_slope_at_zero

RULES = ("he", "glorot", "kumar")

AUTO_RULES: dict[str, str] = {
    "relu": "he",
    "leaky_relu": "he",
    "prelu": "he",
    "elu": "he",
    "celu": "he",  # equal to elu at alpha = 1
    "selu": "he",
    "clip": "he",
    "thresholded_relu": "he",  # flat at 0, where Kumar's rule has no answer
    "tanh": "glorot",
    "softsign": "glorot",
    "sigmoid": "kumar",
    "hardsigmoid": "kumar",
    "gelu": "kumar",
    "gelu_tanh": "kumar",
    "silu": "kumar",
    "hardswish": "kumar",
    "softplus": "kumar",
    "mish": "kumar",
}
"""The rule that ``init="auto"`` takes for each activation."""


def variance(init: str, activation: Activation, fan_in: int, fan_out: int) -> float:
    """The variance of one weight of W1.

    =================  =======================================  ============================================
    rule               variance                                 ``auto`` takes it for
    =================  =======================================  ============================================
    he                 2 / fan_in                               relu, leaky_relu, prelu, elu, celu, selu,
                                                                clip, thresholded_relu
    glorot (xavier)    2 / (fan_in + fan_out)                   tanh, softsign
    kumar              1 / (fan_in · h'(0)² · (1 + h(0)²))      sigmoid (standard deviation 3.6/√fan_in),
                                                                hardsigmoid, gelu, gelu_tanh, silu,
                                                                hardswish, softplus, mish
    =================  =======================================  ============================================

    Raises UsageError for an unknown rule, and for kumar where h is flat at 0.
    """
    rule = {"auto": AUTO_RULES[activation.name], "xavier": "glorot"}.get(init, init)
    if rule == "he":
        return 2 / fan_in
    if rule == "glorot":
        return 2 / (fan_in + fan_out)
    if rule == "kumar":
        h0, h1 = value_and_slope_at_zero(activation)
        try:
            return 1 / (fan_in * h1**2 * (1 + h0**2))
        except ZeroDivisionError:
            raise UsageError(
                f"init 'kumar' divides by h'(0)², and {activation} is flat at 0; use init 'he' or 'glorot'"
            ) from None
    raise UsageError(f"unknown init {init!r}; use auto, he, glorot (also called xavier) or kumar")


# h(z) − h(−z) = κz: neurons with U and with −U, read by a linear layer, are exactly U. (Clip and relu are also
# the identity on what a clip or relu has left: then the second half is dead and drops out.)
EXACT_PAIRS = frozenset(
    ("relu", "leaky_relu", "prelu", "gelu", "gelu_tanh", "silu", "hardswish", "softplus", "clip")
)
LINEAR_RANGE = (
    0.02  # of the other activations' argument: bends them by 1e-4 or so, and is far above the ridge
)


def exact_core(
    D1: int, kernel: tuple[int, ...], activation: Activation, t_scale: float = 1.0
) -> NDArray[np.float64]:
    """W1 (n, D1, *kernel) of neurons from which a linear layer can make t again: the core of a block.

    ± Dirac pairs (n = 2·D1) for the activations in EXACT_PAIRS, exact to rounding. Otherwise the pairs are
    scaled by LINEAR_RANGE/``t_scale``, the root mean square of t, so that h is nearly linear on them: exact to
    about 1e-3 for tanh, and the layer starts with small gradients.
    """
    taps = math.prod(kernel)
    centre = int(np.ravel_multi_index([(k - 1) // 2 for k in kernel], kernel)) if kernel else 0
    core = np.zeros((2 * D1, D1, taps))
    gain = 1.0 if activation.name in EXACT_PAIRS else LINEAR_RANGE / t_scale
    for sign, first in ((gain, 0), (-gain, D1)):
        core[first + np.arange(D1), np.arange(D1), centre] = sign
    return core.reshape(2 * D1, D1, *kernel)


def core_weights(
    D1: int, Dn: int, activation: Activation, t_scale: float = 1.0
) -> NDArray[np.float64] | None:
    """W2 (Dn, D1) that makes t from the neurons of ``exact_core``, 0 for the others; None where h is flat at 0."""
    name = activation.name
    if name in EXACT_PAIRS:
        weight = 1.0 / (1.0 + activation.parameters[0]) if name in ("leaky_relu", "prelu") else 1.0
    else:
        slope = value_and_slope_at_zero(activation)[1]
        if slope == 0:
            return None
        weight = t_scale / (2 * LINEAR_RANGE * slope)
    W2 = np.zeros((Dn, D1))
    W2[np.arange(D1), np.arange(D1)] = weight
    W2[D1 + np.arange(D1), np.arange(D1)] = -weight
    return W2


def candidates(
    kind: LayerKind,
    D1: int,
    Dn: int,
    kernel: tuple[int, ...],
    activation: Activation,
    *,
    init: str = "auto",
    seed: int,
    dtype: np.dtype,
    channel_axis: int = -1,
    core: NDArray[np.float64] | None = None,
) -> CandidateLayer:
    """Dn candidate neurons with normally distributed W1 (see ``variance``) and b1 = 0.

    W1 is (Dn, D1, *kernel) for kind "conv", (Dn, D1) for "gemm" and "matmul" (``kernel`` is then ``()``),
    and fan_in = D1·taps, fan_out = Dn·taps. The numbers are drawn in float64 on the CPU from ``seed`` in
    the order (Dn, D1, *kernel) and then cast to ``dtype``: every device gets the same ones, and so do an
    MLP and the 1×1 convolution that equals it. The rows of ``core`` (see ``exact_core``) come first, random
    ones after them. Raises UsageError for sizes, a kernel, a seed or an ``init``
    that make no sense.
    """
    if D1 < 1 or Dn < 1:
        raise UsageError(f"a layer needs at least one input and one neuron, not D1 = {D1} and Dn = {Dn}")
    if any(k < 1 for k in kernel) or (len(kernel) not in (1, 2, 3) if kind == "conv" else kernel != ()):
        raise UsageError(f"kernel {kernel} does not fit a {kind} layer: conv takes 1 to 3 sizes, others ()")
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is out of range; use 0 <= seed < 2**63")
    taps = math.prod(kernel)
    scale = math.sqrt(variance(init, activation, D1 * taps, Dn * taps))
    generator = torch.Generator("cpu").manual_seed(seed)
    given = np.zeros((0, D1, *kernel)) if core is None else core
    if len(given) > Dn:
        raise UsageError(
            f"{Dn} candidates are too few: a block of {D1} channels begins with {len(given)} that keep the "
            f"function; give --candidates {len(given)} or more, and --keep for fewer neurons in the end"
        )
    drawn = torch.randn((Dn - len(given), D1, *kernel), dtype=torch.float64, generator=generator).numpy()
    W1 = np.concatenate([given, scale * drawn])
    return CandidateLayer(
        kind=kind,
        activation=activation,
        W1=W1.astype(dtype),
        b1=np.zeros(Dn, dtype=dtype),
        channel_axis=1 if kind == "conv" else channel_axis,
    )
