"""What a suggestion hands back."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_compnet.graph.sites import Site


@dataclass(frozen=True)
class SiteScore:
    """One place. ``effective_rank`` is that of the tensor's channels over all positions, at most ``channels``.

    ``bottleneck``: Σ‖∂L/∂y‖² a sample at the readers' outputs y that no linear map of their own input expresses;
    ``unexpressed`` its share of all of Σ‖∂L/∂y‖². Both None without labels, or for the reason ``unscored``.
    ``neurons``, ``parameters`` and ``flops`` (a sample): what a layer of grow's default candidates would add before
    selection.
    """

    site: Site
    effective_rank: float
    bottleneck: float | None
    unexpressed: float | None
    neurons: int
    parameters: int
    flops: int
    unscored: str = ""

    @property
    def used(self) -> float:
        """The effective rank as a share of the channels."""
        return self.effective_rank / self.site.channels


@dataclass(frozen=True)
class Suggestion:
    """All places, the most promising first: by ``bottleneck`` where there are labels, else by ``used``."""

    sites: tuple[SiteScore, ...]
    loss: str | None
    samples: int
    data: str
    random_data: bool
    device: str
    warnings: tuple[str, ...]
