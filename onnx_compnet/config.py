"""The options of a growth, checked once, with a reason for each default."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from onnx_compnet.errors import UsageError
from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation

WITHOUT_WIDTH = ("obs", "forward", "random")
"""methods that choose no width by themselves"""
CONSTRUCTED = ("exact", "net2deeper", "netmorph")
"""methods that make the layer from the model's weights alone, without fitting"""
METHODS = ("alg1", "alg2", "alg3", "obs", "forward", "random", *CONSTRUCTED)
FLOAT64_BELOW = (
    0.03  # of max_error: float32 products err by 1e-7 of the squares that cancel in the error's square
)
MODES = ("auto", "replace", "block")
LINEAR, PRINCIPAL = "linear", "principal"
INITS = ("auto", "he", "glorot", "xavier", "kumar", LINEAR, PRINCIPAL)
ACTIVATION_ALIASES = {
    "relu6": Activation("clip", (0.0, 6.0)),
    "swish": Activation("silu"),
    "hard_swish": Activation("hardswish"),
    "hard_sigmoid": Activation("hardsigmoid"),
    "leakyrelu": Activation("leaky_relu"),
}
ACTIVATION_NAMES = ("auto", *ACTIVATION_PARAMETERS, *ACTIVATION_ALIASES)

Method = Literal["alg1", "alg2", "alg3", "obs", "forward", "random", "exact", "net2deeper", "netmorph"]
Normalisation = float | Sequence[float] | Mapping[str, float | Sequence[float]] | None


@dataclass(frozen=True)
class GrowOptions:
    """What ``grow`` takes besides model, place and data; the command line's options with underscores.

    Parameters
    ----------
    method
        ``alg1``, ``alg2``, ``alg3`` (the paper's Algorithms 1 to 3), ``obs`` (backward elimination: drop what costs
        least, again and again), ``forward`` (add what helps most) or ``random`` (a random subset, the floor that
        every method must beat). Algorithm 3 is the default; ``obs`` comes closest at a given width.
        ``exact`` keeps the function to rounding with as few neurons as the readers' weights allow, and fits nothing.
        Two baselines see no data: ``net2deeper`` (D1 neurons that hand their channel on) and
        ``netmorph`` (the readers' filters taken apart; ``keep`` or ``candidates`` is its width, 2·D1 by default).
    candidates
        N_redundant, the neurons (channels) before selection. Where None 2·D1, about as wide as in the paper's
        experiments. For a block, and in front of a grouped Conv, the pool begins with a core that keeps the function
        by itself (D1 neurons where the activation is linear on the tensor, else 2·D1), and has D1 random ones by
        default; never fewer than the core, and as many in each group.
    keep
        At most this many neurons survive; the width for ``obs``, ``forward`` and ``random``, which need it or
        ``max_error``. A core stays as a whole, unless ``keep`` is smaller.
    max_error
        The site error that is allowed: the narrowest layer on the method's path that keeps to it on held-out samples,
        with at most ``keep`` neurons. A core is then no more than other candidates. Below 0.03 all products are taken
        in float64, as those of float32 lose so small an error. Each of several sites keeps to it by itself.
    lam, alpha
        λ and α of iiLasso, the paper's 0.1. For Algorithm 3 λ is a fraction of the site's λ_max.
    activation
        ``auto`` takes the one in front of the site, else relu.
    init
        ``auto`` follows the activation (He for the rectifiers, Glorot for tanh and softsign, Kumar's rule else).
        ``linear``: the candidates begin with a core that hands every channel on, exactly where the activation allows
        that, else where it is nearly linear (tanh to about 1e-5, sigmoid 5e-5; it starts with tiny gradients).
        ``principal`` begins with up to D1 neurons (2·D1 in front of padding) that carry the directions which the
        readers need most of the data, where h is next to linear, and draws the others as ``auto`` does.
    kernel
        Kernel of a new spatial layer; 3 as in VGG.
    mode
        ``replace``: the layer goes in front of linear readers, which are solved anew. ``block``: it gets a linear
        layer of its own, so that anything may read the result. ``auto``: replace where that is possible, else block.
    holdout
        Share of the samples that is never fitted; every printed error is measured there.
    refit
        Algorithm 3 only: solve W(new2) again for the survivors (False: the paper's rows scaled by β).
    ridge
        ρ, relative to the mean diagonal of the Gram matrix; 1e-6 lies just above the noise of float32 products.
    max_rel_error, min_agreement
        Gates on the model's outputs on held-out samples, unset by default.
    scale, mean, std
        (x·scale - mean)/std for the float inputs read from arrays; numbers, one a channel, or {input: …}.
    batch_axis, shape
        {input: axis of the samples, None for a constant}; {input: shape} for random data.
    batch_norm
        net2deeper only: a BatchNormalization in front of the activation, the identity at the fitted samples' moments.
    progress
        A bar on stderr while samples are captured.
    """

    method: Method = "alg3"
    candidates: int | None = None
    keep: int | None = None
    max_error: float | None = None
    lam: float = 0.1
    alpha: float = 0.1
    activation: str = "auto"
    init: str = "auto"
    kernel: int = 3
    mode: str = "auto"
    max_samples: int | None = None
    batch_size: int | None = None
    holdout: float = 0.2
    holdout_data: Any = None
    seed: int = 0
    device: str = "auto"
    max_rel_error: float | None = None
    min_agreement: float | None = None
    refit: bool = True
    ridge: float = 1e-6
    scale: Normalisation = None
    mean: Normalisation = None
    std: Normalisation = None
    batch_axis: Mapping[str, int | None] | None = None
    shape: Mapping[str, Sequence[int]] | None = None
    batch_norm: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("mode", self.mode, MODES)
        _choice("init", self.init, INITS)
        _choice("activation", self.activation, ACTIVATION_NAMES)
        checked = {
            "candidates": whole("candidates", self.candidates, 1, optional=True),
            "keep": whole("keep", self.keep, 1, optional=True),
            "kernel": whole("kernel", self.kernel, 1),
            "max_samples": whole("max_samples", self.max_samples, 2, optional=True),
            "batch_size": whole("batch_size", self.batch_size, 1, optional=True),
            "seed": whole("seed", self.seed, 0),
            "lam": real("lam", self.lam, above=0.0),
            "alpha": real("alpha", self.alpha, least=0.0),
            "ridge": real("ridge", self.ridge, least=0.0, below=1.0),
            "holdout": real("holdout", self.holdout, above=0.0, below=1.0),
            "max_error": real("max_error", self.max_error, above=0.0, optional=True),
            "max_rel_error": real("max_rel_error", self.max_rel_error, above=0.0, optional=True),
            "min_agreement": real("min_agreement", self.min_agreement, least=0.0, most=1.0, optional=True),
        }
        for name, value in checked.items():  # plain numbers, whatever kind of number was given
            object.__setattr__(self, name, value)
        check_mappings(self.batch_axis, self.shape)
        if self.method in WITHOUT_WIDTH and self.keep is None and self.max_error is None:
            raise UsageError(
                f"method {self.method} has no width of its own: give --keep C (keep=C) or --max-error E"
            )
        if self.max_error is not None and not self.refit:
            raise UsageError(
                "--max-error is met by solving again, so it can't be had together with --no-refit"
            )
        fixed = {"exact": "it needs", "net2deeper": "there are channels"}.get(self.method)
        if fixed is not None and (self.candidates is not None or self.keep is not None):
            raise UsageError(
                f"method {self.method} has as many neurons as {fixed}: leave out --candidates, --keep"
            )
        if self.batch_norm and self.method != "net2deeper":
            raise UsageError(f"--batch-norm is for method net2deeper, not for {self.method}")
        if self.candidates is not None and self.keep is not None and self.keep > self.candidates:
            raise UsageError(f"--keep {self.keep} is more than the {self.candidates} candidates")

    @property
    def precise_sums(self) -> bool:
        """Whether the sums over the samples need products in float64."""
        return self.max_error is not None and self.max_error < FLOAT64_BELOW

    def changed(self, changes: Mapping[str, Any]) -> GrowOptions:
        """Return these options with some replaced; UsageError names an option that does not exist."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"grow has no option {name!r}; it has {', '.join(known)}")
        return replace(self, **changes)


def activation_named(name: str) -> Activation:
    """Return the activation that a user calls ``name`` (not "auto"), with its default parameters."""
    return ACTIVATION_ALIASES.get(name) or Activation(name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{_flag(name)} {value!r} is not one of {', '.join(known)}")


def whole(name: str, value: object, least: int, *, optional: bool = False) -> int | None:
    """``value`` as an int of at least ``least``; None stays None where ``optional``. Raises UsageError."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"{_flag(name)} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    optional: bool = False,
) -> float | None:
    """``value`` as a finite float within the bounds; None stays None where ``optional``. Raises UsageError."""
    if value is None and optional:
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and above < number < below and least <= number <= most:
            return number
    bounds = [
        f"above {above:g}" if above > -math.inf else "",
        f"at least {least:g}" if least > -math.inf else "",
        f"below {below:g}" if below < math.inf else "",
        f"at most {most:g}" if most < math.inf else "",
    ]
    raise UsageError(f"{_flag(name)} must be a number {' and '.join(b for b in bounds if b)}, not {value!r}")


def check_mappings(batch_axis: object, shape: object) -> None:
    """Raise UsageError unless both are {input name: …} of the right kind, or None."""
    if batch_axis is not None and not (
        isinstance(batch_axis, Mapping)
        and all(k is None or isinstance(k, str | numbers.Integral) for k in batch_axis.values())
    ):
        raise UsageError(f"--batch-axis must map inputs to axes (or None), not be {batch_axis!r}")
    if shape is not None and not (
        isinstance(shape, Mapping)
        and all(isinstance(sizes, Sequence) and not isinstance(sizes, str) for sizes in shape.values())
        and all(isinstance(size, numbers.Integral) for sizes in shape.values() for size in sizes)
    ):
        raise UsageError(f"--shape must map inputs to their sizes, not be {shape!r}")
