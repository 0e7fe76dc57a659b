"""Candidate weights W1 for the new layer: He, Glorot and Kumar (step 1 of Algorithms 1-3), and exact cores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_compnet.errors import UsageError
from onnx_compnet.layers import Activation, CandidateLayer, LayerKind
from onnx_compnet.numerics.activations import apply, value_and_slope_at_zero

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


def variance(init: str, activation: Activation, fan_in: float, fan_out: float) -> float:
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
    if init == "auto" and rule == "kumar" and not value_and_slope_at_zero(activation)[1]:
        rule = "he"  # flat at 0
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


# h(z) − h(−z) = κz: neurons with U and with −U, read by a linear layer, are exactly U.
EXACT_PAIRS = frozenset(("relu", "leaky_relu", "prelu", "gelu", "gelu_tanh", "silu", "hardswish", "softplus"))
LINEAR_RANGE = (
    0.02  # of the other activations' argument: bends them by 1e-4 or so, and is far above the ridge
)
FINE_RANGE = 6e-3  # of init "linear": bending and float32 rounding are about equal
FINE_RANGE_AROUND_0 = 1e-3  # the same where h(0) = 0 drowns no small values
ODD = frozenset(("tanh", "softsign"))  # −U would repeat U
LEAST_RISE = 0.1  # κ below which a pair is no longer exact in float32


@dataclass(frozen=True, eq=False)
class Core:
    """Neurons from which a linear layer can make t again.

    W1 (n, D1, *kernel); ``W2`` (n, D1) makes t of them, None where h is flat at 0, and ``exact`` tells whether to
    rounding; ``places`` (n,) among all Dn candidates: the first ones of each group.
    """

    W1: NDArray[np.float64]
    W2: NDArray[np.float64] | None
    places: NDArray[np.intp]
    exact: bool


def slope_on(activation: Activation, low: float, high: float) -> float | None:
    """κ where h(z) = κz for all z from ``low`` to ``high``, else None."""
    name, parameters = activation.name, activation.parameters
    if name == "clip":
        return 1.0 if parameters[0] <= low and high <= parameters[1] else None
    if low < 0:
        return None
    return parameters[1] if name == "selu" else 1.0 if name in _LINEAR_ABOVE_0 else None


_LINEAR_ABOVE_0 = ("relu", "leaky_relu", "prelu", "elu", "celu")


def is_exact(activation: Activation, bounds: tuple[float, float]) -> bool:
    """Whether the core is exact to rounding for a t within ``bounds``."""
    if slope_on(activation, *bounds) is not None:
        return True
    return activation.name in EXACT_PAIRS and abs(_rise(activation)) >= LEAST_RISE


def is_flat(activation: Activation, bounds: tuple[float, float]) -> bool:
    """Whether h(z) − h(−z) is next to nothing around 0, so that no linear layer makes t of such neurons."""
    return slope_on(activation, *bounds) is None and abs(_rise(activation)) < LEAST_RISE


def needs_scale(activation: Activation, bounds: tuple[float, float]) -> bool:
    """Whether ``exact_core`` depends on the scale of t."""
    return not is_exact(activation, bounds) or (
        activation.name == "softplus" and slope_on(activation, *bounds) is None
    )


def fine_range(activation: Activation) -> float:
    """How far from 0 the core of init "linear" goes: to where bending and float32 rounding are about equal."""
    return FINE_RANGE if value_and_slope_at_zero(activation)[0] else FINE_RANGE_AROUND_0


def _rise(activation: Activation, at: float = LINEAR_RANGE) -> float:
    """(h(z) − h(−z))/z at the end of the nearly linear range."""
    above, below = apply(activation, torch.tensor([at, -at], dtype=torch.float64)).tolist()
    return float(above - below) / at


def core_size(D1: int, activation: Activation, bounds: tuple[float, float]) -> int:
    """How many neurons ``exact_core`` has."""
    return D1 if slope_on(activation, *bounds) is not None or activation.name in ODD else 2 * D1


def exact_core(
    D1: int,
    Dn: int,
    kernel: tuple[int, ...],
    activation: Activation,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    groups: int = 1,
    t_scale: float = 1.0,
    basis: NDArray[np.float64] | None = None,
    linear_range: float = LINEAR_RANGE,
) -> Core:
    """The core of a layer of Dn candidates that is to keep its function.

    Where h is linear on ``bounds``, between which t is known to lie: D1 Dirac kernels (Net2DeeperNet), exact.
    Otherwise ± pairs of them (n = 2·D1), exact to rounding for the activations in EXACT_PAIRS. For all others the
    pairs (of an odd h one of each) are scaled by ``linear_range``/``t_scale``, the root mean square of t, so that h
    is nearly linear on them: exact to about 1e-3 for tanh, and the layer starts with small gradients. (Softplus pairs
    are scaled to about 1, as h(0) would drown smaller ones.) With ``groups`` each has those of its own channels.

    With ``basis`` (groups, r, D1/groups), orthonormal rows U, U t takes the place of t: r·groups for D1 above, and
    what a linear layer makes again is UᵀU t. Where h is linear on ``bounds`` these must be rows of the identity.

    Raises UsageError where Dn is no multiple of ``groups`` or too small.
    """
    slope = slope_on(activation, *bounds)
    signs = (1.0,) if slope is not None or activation.name in ODD else (1.0, -1.0)
    each = D1 // groups
    basis = np.tile(np.eye(each), (groups, 1, 1)) if basis is None else basis
    of_a_group = len(signs) * basis.shape[1]
    if Dn % groups or groups * of_a_group > Dn:
        raise UsageError(
            f"{Dn} candidates in {groups} groups can't begin with the {groups * of_a_group} that keep the function"
        )
    gain = 1.0
    if not is_exact(activation, bounds):
        gain = linear_range / t_scale
    elif needs_scale(activation, bounds):
        gain = 1 / t_scale
    rise = _rise(activation, linear_range) * len(signs) / 2 if slope is None else slope
    if activation.name in EXACT_PAIRS and slope is None:
        rise = 1 + activation.parameters[0] if activation.name in ("leaky_relu", "prelu") else 1.0
    weight = None if is_flat(activation, bounds) else 1 / (gain * rise)
    by_group = np.zeros((groups, len(signs), basis.shape[1], groups, each))
    for group, rows in enumerate(basis):
        by_group[group, :, :, group] = np.multiply.outer(signs, rows)
    directions = by_group.reshape(-1, D1)
    centre = int(np.ravel_multi_index([(k - 1) // 2 for k in kernel], kernel)) if kernel else 0
    n = np.arange(len(directions))
    W1 = np.zeros((len(n), D1, math.prod(kernel)))
    W1[:, :, centre] = gain * directions
    W2 = None if weight is None else weight * directions
    places = n // of_a_group * (Dn // groups) + n % of_a_group
    return Core(W1.reshape(len(n), D1, *kernel), W2, places, is_exact(activation, bounds))


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
    core: Core | None = None,
) -> CandidateLayer:
    """Dn candidate neurons with normally distributed W1 (see ``variance``) and b1 = 0.

    W1 is (Dn, D1, *kernel) for kind "conv", (Dn, D1) for "gemm" and "matmul" (``kernel`` is then ``()``),
    and fan_in = D1·taps, fan_out = Dn·taps. The numbers are drawn in float64 on the CPU from ``seed`` in
    the order (Dn, D1, *kernel) and then cast to ``dtype``: every device gets the same ones, and so do an
    MLP and the 1×1 convolution that equals it. The neurons of ``core`` stand in their places, random ones in all
    others. Raises UsageError for sizes, a kernel, a seed or an ``init`` that make no sense.
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
    W1 = np.empty((Dn, D1, *kernel))
    random = np.ones(Dn, bool)
    if core is not None:
        random[core.places] = False
        W1[core.places] = core.W1
    drawn = torch.randn((int(random.sum()), D1, *kernel), dtype=torch.float64, generator=generator)
    W1[random] = scale * drawn.numpy()
    return CandidateLayer(
        kind=kind,
        activation=activation,
        W1=W1.astype(dtype),
        b1=np.zeros(Dn, dtype=dtype),
        channel_axis=1 if kind == "conv" else channel_axis,
    )
