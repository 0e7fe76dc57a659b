"""What a growth hands back: plain results, and the saving of the child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnx_compnet.graph import model_io
from onnx_compnet.graph.sites import Refusal, Site
from onnx_compnet.layers import Activation
from onnx_compnet.verification import Verdict


@dataclass(frozen=True)
class CurvePoint:
    """One width on a path: λ as a fraction of λ_max, neurons kept, error on held-out moments (worst reader).

    ``lam`` is None where the path is not one of λ; ``fitted_error`` is that on fitted moments.
    """

    lam: float | None
    kept: int
    error: float | None
    fitted_error: float | None = None


@dataclass(frozen=True)
class SiteGrowth:
    """One new layer: where, how wide, how well.

    ``beta`` has one value a candidate, unstandardised, 0 where dropped. ``site_error`` is the worst reader's
    relative error between parent and finished child on held-out samples, from a forward pass in onnxruntime;
    ``fitted_error`` and ``predicted_error`` are the least-squares problem's own figures on fitted and held-out
    moments. ``lam`` and ``lam_max`` are absolute; ``max_error`` is the option. ``rows`` were
    fitted with ``columns`` unknowns an output.
    """

    site: Site
    method: str
    activation: Activation
    kernel: tuple[int, ...]
    candidates: int
    kept: tuple[int, ...]
    beta: NDArray[Any]
    lam: float | None
    lam_max: float | None
    alpha: float | None
    status: str | None
    kkt_violation: float | None
    convex: bool | None
    dropped_dead: int
    rows: int
    columns: int
    site_error: float
    fitted_error: float
    predicted_error: float | None
    reader_errors: Mapping[str, float]
    targets: tuple[tuple[str, str], ...]
    curve: tuple[CurvePoint, ...] = ()
    max_error: float | None = None


@dataclass(frozen=True)
class Growth:
    """A grown model and what is known about it. With one site its figures are attributes here, too."""

    model: onnx.ModelProto
    sites: tuple[SiteGrowth, ...]
    verdict: Verdict
    seed: int
    samples_fitted: int
    samples_held_out: int
    data: str
    random_data: bool
    device: str
    providers: tuple[str, ...]
    parent_sha256: str
    parameters_before: int
    parameters_after: int
    seconds: Mapping[str, float]
    peak_memory: int
    warnings: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    @property
    def site(self) -> Site:
        """The site that was grown (the last one, of several)."""
        return self.sites[-1].site

    @property
    def candidates(self) -> int:
        """N_redundant, the neurons before selection."""
        return self.sites[-1].candidates

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the surviving candidates, ascending."""
        return self.sites[-1].kept

    @property
    def beta(self) -> NDArray[Any]:
        """β, one value a candidate, 0 where dropped."""
        return self.sites[-1].beta

    @property
    def site_error(self) -> float:
        """Relative error at the readers' outputs on held-out samples, worst reader."""
        return self.sites[-1].site_error

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """(parent tensor, child tensor) pairs that the least squares made equal, one a reader."""
        return self.sites[-1].targets

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the child atomically; OutputExistsError if ``path`` exists and not ``force``."""
        model_io.save(self.model, path, force=force)
