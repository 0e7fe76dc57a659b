"""What a selection at one site starts from: drawn candidates, their moments on the samples, what must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import onnx
import torch

from onnx_compnet.candidates import draw
from onnx_compnet.collect import ReaderGroup, Statistics, collect, reader_groups
from onnx_compnet.config import GrowOptions
from onnx_compnet.core import Known, by_group, known_weights
from onnx_compnet.errors import UsageError
from onnx_compnet.graph import prune
from onnx_compnet.graph.index import GraphIndex
from onnx_compnet.graph.sites import Site
from onnx_compnet.layers import CandidateLayer
from onnx_compnet.numerics.algorithms import Problem, Selection, select
from onnx_compnet.numerics.moments import Covariance
from onnx_compnet.numerics.pool import Constraints
from onnx_compnet.planning import FOLDS, Job, neurons, refuse_large
from onnx_compnet.runtime.session import Session


@dataclass(frozen=True, eq=False)
class PosedSite:
    """A site's least-squares problems, from which every method selects; no sample is needed any more.

    ``candidate``: the N_redundant neurons. ``problems``: the moments (fitted, held-out) of each group of readers.
    ``covariances``: those of the pre-activations, one a fold (Algorithms 1 and 2). ``constraints``: what must stay.
    """

    candidate: CandidateLayer
    problems: tuple[Problem, ...]
    covariances: tuple[Covariance, ...]
    constraints: Constraints

    @property
    def rows(self) -> int:
        """How many rows each problem was fitted on, at least."""
        return min(problem.fit.n for problem in self.problems)

    def select(self, options: GrowOptions, *, path_points: int | None = None) -> Selection:
        """Choose among the candidates by the method, width or error of ``options``; errors as ``select``'s."""
        points = {} if path_points is None else {"path_points": path_points}
        return select(
            options.method,
            self.problems,
            self.covariances,
            lam=options.lam,
            alpha=options.alpha,
            keep=options.keep,
            max_error=options.max_error,
            rho=options.ridge,
            refit=options.refit,
            seed=options.seed,
            constraints=self.constraints,
            **points,
        )


def pose(model: onnx.ModelProto, site: Site, job: Job, options: GrowOptions) -> PosedSite:
    """Draw the candidates of ``site`` in ``model`` and sum up their moments over the samples of ``job``.

    Raises UsageError for ``keep`` above the number of candidates, ResourceError where the moments do not fit into
    the memory, DataError as ``collect``.
    """
    Dn = neurons(site, options)
    if options.keep is not None and options.keep > Dn:
        raise UsageError(f"--keep {options.keep} is more than the {Dn} candidates at {site.name}")
    refuse_large(site, Dn, options.kernel, job.device)
    groups = reader_groups(site)
    outputs = dict.fromkeys([site.tensor, *(reader.output for reader in site.linear)])
    session = Session(prune.prefix(model, list(outputs)), job.device)
    index = GraphIndex.of(model)
    drawn = draw(index, session, job.split.fit, site, options)
    candidate, core = drawn.candidate, drawn.core
    bar = f"{site.name}: " if options.progress else None
    sums = partial(
        collect, session, site=site, candidate=candidate, groups=groups, precise=options.precise_sums
    )
    fitted = sums(job.split.fit, folds=FOLDS, progress=bar and bar + "fit")
    held_out = sums(job.split.held_out, folds=1, progress=bar and bar + "held-out")
    return PosedSite(
        candidate=candidate,
        problems=_problems(groups, site, fitted, held_out, Dn, known_weights(index, site, Dn, drawn.known)),
        covariances=fitted.covariances,
        constraints=Constraints(() if core is None else tuple(core.places.tolist()), site.groups),
    )


def _problems(
    groups: Sequence[ReaderGroup],
    site: Site,
    fitted: Statistics,
    held_out: Statistics,
    Dn: int,
    known: Sequence[Known] | None,
) -> tuple[Problem, ...]:
    """Every group of a grouped convolution is a problem of its own, over its share of the neurons."""
    problems = []
    for group, fit, held in zip(groups, fitted.moments, held_out.moments, strict=True):
        parts = group.geometry.groups
        ends = accumulate(site.linear[member].features // parts for member in group.members)
        slices = tuple(slice(start, end) for start, end in pairwise([0, *ends]))
        priors = by_group([known[member] for member in group.members], parts) if known else [None] * parts
        shares = [None] if parts == 1 else torch.arange(Dn).chunk(parts)
        for mine, others, prior, share in zip(fit, held, priors, shares, strict=True):
            problem = Problem(mine, others, group.geometry.taps, slices, group.members, among=share)
            if prior is not None:
                problem = replace(problem, prior=prior.W2, exact_b2=prior.b2 if prior.exact else None)
            problems.append(problem)
    return tuple(problems)
