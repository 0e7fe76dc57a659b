"""NetMorph's depth morph: one convolution's filters as the composition of two (Wei et al. 2016, section 3).

G (Co, Ci, *K) becomes F2 (Co, Cm, *K2) behind F1 (Cm, Ci, *K1), with no bend in between:

    G̃[o, i, c] = Σ_m Σ_(a+b=c) F2[o, m, b]·F1[m, i, a],     G̃ = G, zero-padded to K̃ = K1 + K2 − 1 taps

where G begins at tap (K̃ − K)//2 of G̃. A dense layer has no taps: kernels ().
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onnx_compnet.errors import UsageError

ZERO = 1e-7  # a relative loss below this is the rounding of the solve
MAX_ITR = 20
_LEAST_GAIN = 0.01  # a round that lowers the loss by less ends the general algorithm

Algorithm = Literal["practical", "general"]


@dataclass(frozen=True, eq=False)
class Morph:
    """F1 (Cm, Ci, *K1) and F2 (Co, Cm, *K2) of equal standard deviation, float64.

    ``offset``: where G begins in G̃, in taps. ``loss``: ‖G̃ − F1∗F2‖/‖G‖. ``algorithm``: which of the two found it.
    """

    F1: Tensor
    F2: Tensor
    offset: tuple[int, ...]
    loss: float
    algorithm: Algorithm


def netmorph(
    G: Tensor, width: int, K1: Sequence[int], K2: Sequence[int], *, seed: int = 0, max_itr: int = MAX_ITR
) -> Morph:
    """The practical algorithm; where it finds no exact morph, the better of it and the general one.

    ``width`` is Cm. Raises UsageError where the kernels can't hold G's.
    """
    found = practical(G, width, K1, K2, seed=seed)
    if found is not None and found.loss <= ZERO:
        return found
    other = general(G, width, K1, K2, seed=seed, max_itr=max_itr)
    return other if found is None or other.loss < found.loss else found


def general(
    G: Tensor, width: int, K1: Sequence[int], K2: Sequence[int], *, seed: int = 0, max_itr: int = MAX_ITR
) -> Morph:
    """Algorithm 1 of Wei et al.: from noise, least squares for F2 and for F1 in turn.

    Ends at loss 0 (to rounding), after ``max_itr`` rounds, or when a round gains next to nothing. Zero loss needs
    max(Cm·Ci·ΠK1, Co·Cm·ΠK2) ≥ Co·Ci·ΠK̃, which is necessary and not always sufficient.
    """
    G = G.to(torch.float64)
    F1, _ = _noise(G, width, tuple(K1), tuple(K2), seed)
    return _alternate(G, F1, None, tuple(K1), tuple(K2), max_itr)


def practical(G: Tensor, width: int, K1: Sequence[int], K2: Sequence[int], *, seed: int = 0) -> Morph | None:
    """Algorithm 2 of Wei et al.: one round at each smaller F2, and then at each smaller F1; zeros fill it up.

    The first exact morph is returned, else the one of the smallest loss; None where no smaller kernel holds G's.
    """
    G = G.to(torch.float64)
    K1, K2 = tuple(K1), tuple(K2)
    best: Morph | None = None
    for small, other, second in ((K2, K1, True), (K1, K2, False)):
        for less in range(max(small, default=1)):
            size = tuple(max(1, k - less) for k in small)
            kernels = (other, size) if second else (size, other)
            if any(a + b - 1 < k for a, b, k in zip(*kernels, G.shape[2:], strict=True)):
                continue
            F1, F2 = _noise(G, width, *kernels, seed)
            found = _alternate(G, F1 if second else None, None if second else F2, *kernels, 1)
            found = _filled_up(found, K1, K2)
            if best is None or found.loss < best.loss:
                best = found
            if best.loss <= ZERO:
                return best
    return best


def composed(F1: Tensor, F2: Tensor) -> Tensor:
    """The filters (Co, Ci, *K̃) that F2 behind F1 is."""
    K1, K2 = F1.shape[2:], F2.shape[2:]
    total = F1.new_zeros(F2.shape[0], F1.shape[1], *(a + b - 1 for a, b in zip(K1, K2, strict=True)))
    for number, tap in enumerate(itertools.product(*map(range, K2))):
        total[_window(tap, K1, 2)] += torch.einsum(
            "om,mi...->oi...", F2.flatten(2)[..., number] if tap else F2, F1
        )
    return total


def _alternate(
    G: Tensor, F1: Tensor | None, F2: Tensor | None, K1: tuple[int, ...], K2: tuple[int, ...], rounds: int
) -> Morph:
    """From the noise that is given, solve for the other one first; the state of the smallest loss."""
    padded, offset = _padded(G, K1, K2)
    scale = float(G.norm()) or 1.0
    best: tuple[float, Tensor, Tensor] | None = None
    for _ in range(rounds):
        before = math.inf if best is None else best[0]
        for solve_second in (True, False) if F1 is not None else (False, True):
            if solve_second:
                assert F1 is not None
                F2 = _second(F1, padded)
            else:
                assert F2 is not None
                F1 = _first(F2, padded)
            if F1 is None or F2 is None:
                continue
            loss = float((padded - composed(F1, F2)).norm()) / scale
            if best is None or loss < best[0]:
                best = loss, F1, F2
            if loss <= ZERO:
                break
        assert best is not None
        if best[0] <= ZERO or best[0] > (1 - _LEAST_GAIN) * before:
            break
    assert best is not None
    loss, F1, F2 = best
    return Morph(*_balanced(F1, F2), offset, loss, "practical" if rounds == 1 else "general")


def _second(F1: Tensor, G: Tensor) -> Tensor:
    """argmin over F2 of ‖G − F1∗F2‖: the same matrix (Ci·ΠK̃, Cm·ΠK2) for every output."""
    K1, K = F1.shape[2:], G.shape[2:]
    K2 = tuple(k - a + 1 for k, a in zip(K, K1, strict=True))
    matrix = F1.new_zeros(G.shape[1], *K, F1.shape[0], math.prod(K2))
    for column, tap in enumerate(itertools.product(*map(range, K2))):
        matrix[..., column][_window(tap, K1, 1)] = F1.movedim(0, -1)
    rows = math.prod(matrix.shape[: 1 + len(K)])
    solved = _least_squares(matrix.reshape(rows, -1), G.reshape(len(G), -1).T)
    return solved.T.reshape(len(G), F1.shape[0], *K2)


def _first(F2: Tensor, G: Tensor) -> Tensor:
    """argmin over F1: ``_second`` with the channels' roles exchanged."""
    return _second(F2.transpose(0, 1), G.transpose(0, 1)).transpose(0, 1)


def _least_squares(M: Tensor, Y: Tensor) -> Tensor:
    """argmin ‖MX − Y‖ (of least norm where there are several), by Cholesky of the smaller Gram matrix."""
    wide = M.shape[1] > M.shape[0]
    gram = M @ M.T if wide else M.T @ M
    gram.diagonal().add_(1e-13 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        solution: Tensor = torch.linalg.lstsq(M, Y, driver="gelsd").solution
        return solution

    def solve(right: Tensor) -> Tensor:
        if wide:
            return M.T @ torch.cholesky_solve(right, factor)
        return torch.cholesky_solve(M.T @ right, factor)

    X = solve(Y)
    return X + solve(Y - M @ X)  # one step of refinement: the Gram matrix squares the condition


def _padded(G: Tensor, K1: tuple[int, ...], K2: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    K = tuple(G.shape[2:])
    size = tuple(a + b - 1 for a, b in zip(K1, K2, strict=True))
    if len(K1) != len(K) or len(K2) != len(K) or any(s < k for s, k in zip(size, K, strict=True)):
        raise UsageError(f"filters of {K} don't fit into those of {K1} and {K2} together")
    offset = tuple((s - k) // 2 for s, k in zip(size, K, strict=True))
    padded = G.new_zeros(*G.shape[:2], *size)
    padded[_window(offset, K, 2)] = G
    return padded, offset


def _window(begin: Sequence[int], size: Sequence[int], first: int) -> tuple[slice, ...]:
    """The taps from ``begin`` on, behind ``first`` whole axes."""
    return (slice(None),) * first + tuple(slice(b, b + k) for b, k in zip(begin, size, strict=True))


def _noise(
    G: Tensor, width: int, K1: tuple[int, ...], K2: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor]:
    if width < 1:
        raise UsageError(f"a layer needs at least one neuron, not {width}")
    generator = torch.Generator("cpu").manual_seed(seed)
    Co, Ci = G.shape[:2]
    F1 = torch.randn((width, Ci, *K1), dtype=torch.float64, generator=generator)
    F2 = torch.randn((Co, width, *K2), dtype=torch.float64, generator=generator)
    return F1 / math.sqrt(Ci * math.prod(K1)), F2 / math.sqrt(width * math.prod(K2))


def _filled_up(found: Morph, K1: tuple[int, ...], K2: tuple[int, ...]) -> Morph:
    """Zeros around the smaller kernel, up to the size that was asked for."""
    F1, at1 = _padded(found.F1, K1, (1,) * len(K1))
    F2, at2 = _padded(found.F2, K2, (1,) * len(K2))
    offset = tuple(sum(each) for each in zip(found.offset, at1, at2, strict=True))
    return Morph(*_balanced(F1, F2), offset, found.loss, "practical")


def _balanced(F1: Tensor, F2: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with equal standard deviations."""
    first, second = float(F1.std(correction=0)), float(F2.std(correction=0))
    if not first or not second:
        return F1, F2
    scale = math.sqrt(second / first)
    return F1 * scale, F2 / scale
