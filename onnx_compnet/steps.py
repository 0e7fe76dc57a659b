"""A grown site before the child is finished, and what is checked and told of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_compnet.baselines.exact import TOLERANCE
from onnx_compnet.config import LINEAR, PRINCIPAL, GrowOptions
from onnx_compnet.graph.index import GraphIndex, draws_random_numbers
from onnx_compnet.graph.sites import Site
from onnx_compnet.graph.weights import weight_names
from onnx_compnet.layers import CandidateLayer
from onnx_compnet.numerics import initialise
from onnx_compnet.numerics.pool import Selection
from onnx_compnet.numerics.rows import output_channel_axis
from onnx_compnet.planning import Job, has_core
from onnx_compnet.verification import MAX_REL_ERROR, MIN_AGREEMENT, Verdict


@dataclass(frozen=True)
class Step:
    """One site, solved; what is still missing for a SiteGrowth is measured in the finished child."""

    site: Site
    candidate: CandidateLayer
    selection: Selection
    targets: tuple[tuple[str, str], ...]
    rows: int
    columns: int


def reader_errors(step: Step, verdict: Verdict) -> dict[str, float]:
    """The relative error at each reader's output, in the finished child on held-out samples."""
    errors: dict[str, float] = {}
    for reader, (_, child) in zip(step.site.linear, step.targets, strict=True):
        measured = verdict.targets.get((child, output_channel_axis(reader.geometry)))
        if measured is not None:  # readers may have the same name: the worst of them counts
            errors[reader.node] = max(measured.rel_error, errors.get(reader.node, 0.0))
    return errors


def above_bound(steps: Sequence[Step], verdict: Verdict, options: GrowOptions) -> list[str]:
    """Where the finished child errs more than was promised: by method exact, or with ``max_error``.

    The width for ``max_error`` was chosen by sums, which may err. Of several sites each is solved by itself; what
    those before it add to its error is told by ``warnings``.
    """
    found = []
    for step in steps:
        error = max(reader_errors(step, verdict).values(), default=0.0)
        said = f"{step.site.name}: the site error, held-out, is {error:.4g}, above"
        if options.method == "exact" and not error <= (bound := TOLERANCE[step.site.dtype]):
            found.append(
                f"{said} the {bound:g} of an exact layer; values far apart in size are lost to rounding there"
            )
        if options.max_error is not None and len(steps) == 1 and not error <= options.max_error:
            found.append(f"{said} --max-error {options.max_error:g}")
    return found


def warnings(steps: Sequence[Step], verdict: Verdict, job: Job, options: GrowOptions) -> tuple[str, ...]:
    """What a growth warns of."""
    found = [f"{step.site.name}: {warning}" for step in steps for warning in step.selection.warnings]
    for name, c in verdict.outputs.items():
        if c.agreement is not None and c.agreement < MIN_AGREEMENT:
            found.append(f"{name}: agreement on held-out samples is {c.agreement:.4f}, below {MIN_AGREEMENT}")
        if not c.rel_error <= MAX_REL_ERROR:
            found.append(
                f"{name}: relative error on held-out samples is {c.rel_error:.3g}, above {MAX_REL_ERROR}"
            )
    if verdict.not_compared:
        found.append(f"not compared, as no numeric tensor: {', '.join(verdict.not_compared)}")
    for step in steps:
        if has_core(step.site, options) and initialise.is_flat(step.candidate.activation, step.site.bounds):
            found.append(
                f"{step.site.name}: {step.candidate.activation} is flat at 0, so that no neurons of it keep the "
                "function; take another activation"
            )
        if options.init == PRINCIPAL and step.site.groups > 1:
            found.append(
                f"{step.site.name}: principal directions are not for grouped readers; the candidates are random"
            )
        if options.init == LINEAR and not initialise.is_exact(step.candidate.activation, step.site.bounds):
            found.append(
                f"{step.site.name}: {step.candidate.activation} hands the channels on where it is nearly linear: its "
                "weights are small, the readers' large, and training starts with tiny gradients"
            )
        if options.candidates is not None and options.candidates < len(step.candidate.b1):
            found.append(
                f"{step.site.name}: {len(step.candidate.b1)} candidates instead of {options.candidates}, "
                "the fewest that keep the function there"
            )
        used = step.candidate.W1.shape[2:]
        if any(size < options.kernel for size in used):
            size = "×".join(map(str, used))
            found.append(
                f"{step.site.name}: a kernel of {size} reaches every position, {options.kernel} is not needed"
            )
        error = max(reader_errors(step, verdict).values(), default=0.0)
        if options.max_error is not None and len(steps) > 1 and not error <= options.max_error:
            found.append(
                f"{step.site.name}: the site error is {error:.3g} with what the other sites add to it, above "
                f"--max-error {options.max_error:g}, which it keeps to by itself"
            )
    found += job.skipped
    index = GraphIndex.of(job.parent)
    for name in dict.fromkeys(name for step in steps for name in weight_names(index, step.site)):
        if name in index.swayed:
            found.append(
                f"'{name}' is an input that callers may replace: the grown layers no longer follow it"
            )
    drawn = draws_random_numbers(job.parent)
    if drawn:
        found.append(
            f"the model draws random numbers itself ({drawn[0]}), so that two runs of it differ as well: "
            "the figures of its outputs are too bad by that much"
        )
    if job.random_data:
        found.append("fitted and measured on random data: no figure here says anything about real inputs")
    return tuple(found)
