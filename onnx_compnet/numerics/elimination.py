"""Schur complements of a matrix, block by block, with the large products put off and done together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnx_compnet.numerics import ridge
from onnx_compnet.numerics.moments import columns_of
from onnx_compnet.numerics.problems import Problem

PENDING = 256  # rows of a downdate that are put off: enough for a fast product, little beside p² numbers
REFRESH = (
    0.75  # of the neurons are left since the last factorisation: a new one wins back what downdates lost
)


class BlockElimination:
    """A symmetric A (p, p) and B (p, D2), from which blocks of ``taps`` rows are eliminated one after the other.

    Eliminating block j, with A_jj = L Lᵀ, S = L⁻¹ A_j: and Z = L⁻¹ B_j, leaves

        A ← A − SᵀS,    B ← B − SᵀZ,    and was worth  ‖Z‖² = tr(B_jᵀ A_jj⁻¹ B_j)

    With A = G + ρI and B = C this is a step of pivoted block Cholesky: the worth is what the neuron takes off
    the squared error when it is added. With A = (G + ρI)⁻¹ and B = W2 it is the removal of a neuron from the
    fit: the worth is what the squared error gains, B the W2 of those that are left.

    The diagonal blocks and B are always up to date; the rest of A is brought up to date where a row is needed,
    and as a whole by ``settle``: one product for many eliminations. A and B are changed in place.
    """

    def __init__(self, A: Tensor, B: Tensor, taps: int) -> None:
        self._taps = taps
        self._A, self._B = A, B
        self._S, self._filled = A.new_empty(0, len(A)), 0
        blocks = A.view(self._count, taps, self._count, taps).diagonal(dim1=0, dim2=2)
        self._blocks = blocks.permute(2, 0, 1).contiguous()
        self._gone = torch.zeros(self._count, dtype=torch.bool, device=A.device)

    @property
    def _count(self) -> int:
        return len(self._A) // self._taps

    @property
    def pending(self) -> int:
        """Rows of S that A is not yet rid of."""
        return self._filled

    @property
    def left(self) -> int:
        """Blocks that are not gone."""
        return self._count - int(self._gone.sum())

    def staying(self) -> Tensor:
        """The blocks that are not gone (int64, ascending)."""
        return (~self._gone).nonzero().reshape(-1)

    def worths(self) -> tuple[Tensor, bool]:
        """What each block is worth (count,), 0 for those gone, and whether every block was definite.

        A block that is not is worth 0.
        """
        L, info = torch.linalg.cholesky_ex(self._blocks)
        Z = torch.linalg.solve_triangular(
            L, self._B.view(self._count, self._taps, self._B.shape[1]), upper=False
        )
        worths = Z.square().sum((1, 2))
        return torch.where((info == 0) & ~self._gone, worths, torch.zeros_like(worths)), not bool(info.any())

    def eliminate(self, block: int) -> bool:
        """Eliminate a block; False, and nothing is changed, where it is not definite."""
        q = self._taps
        mine = slice(block * q, (block + 1) * q)
        done = self._S[: self._filled]
        row = torch.addmm(self._A[mine], done[:, mine].T, done, alpha=-1)
        L, info = torch.linalg.cholesky_ex(row[:, mine])
        if int(info):
            return False
        S = torch.linalg.solve_triangular(L, row, upper=False)
        S.view(q, -1, q)[:, self._gone] = 0.0
        Z = torch.linalg.solve_triangular(L, self._B[mine], upper=False)
        self._B.addmm_(S.T, Z, alpha=-1)
        parts = S.view(q, -1, q).transpose(0, 1)
        self._blocks.baddbmm_(parts.transpose(1, 2), parts, alpha=-1)
        self._put_off(S)
        self._gone[block] = True
        self._B[mine] = 0.0
        self._blocks[block] = torch.eye(q, dtype=S.dtype, device=S.device)
        return True

    def settle(self) -> Tensor:
        """Bring A up to date and forget the blocks that are gone; returns those that stay (int64, ascending)."""
        done = self._S[: self._filled]
        self._A.addmm_(done.T, done, alpha=-1)
        stay = self.staying()
        columns = columns_of(stay, self._taps)
        self._A, self._B = self._A[columns[:, None], columns], self._B[columns]
        self._blocks, self._gone = self._blocks[stay], self._gone[stay]
        self._S, self._filled = self._A.new_empty(0, len(self._A)), 0
        return stay

    def _put_off(self, S: Tensor) -> None:
        end = self._filled + len(S)
        if end > len(self._S):  # a buffer that doubles
            larger = self._S.new_empty(min(max(2 * end, 16 * len(S)), len(self._A)), len(self._A))
            larger[: self._filled] = self._S[: self._filled]
            self._S = larger
        self._S[self._filled : end] = S
        self._filled = end


class Backward:
    """The neurons of one problem, and what the squared error gains where one of them is dropped.

    ``own``: the neurons' places among all; ``weights`` (D2,) of the outputs' squared errors.
    """

    def __init__(self, problem: Problem, weights: Tensor, rho: float) -> None:
        self.own, self._position = _own(problem)
        self.warnings = rows_note(problem)
        self._moments, self._taps = problem.fit, problem.taps
        factor = ridge.factorise(problem.fit, rho)
        if factor is None:
            factor = ridge.Factor(torch.eye(len(problem.fit.mean_u)).to(problem.fit.uu), 1.0, rho)
        self.warnings += tuple(f"all candidates: {note}" for note in factor.warnings)
        self._shift = factor.shift
        self._target = _target(problem, weights, factor.shift)
        self._left = torch.arange(len(self.own), device=self._target.device)
        self._factored(factor.L)

    def worths(self) -> NDArray[np.float64]:
        """tr(W_jᵀ (H_jj)⁻¹ W_j) of each own neuron, 0 of those that were taken."""
        worths, definite = self._state.worths()
        if not definite:
            self._refresh()
            worths, _ = self._state.worths()
        full = np.zeros(len(self.own))
        full[self._left.cpu().numpy()] = worths.cpu().numpy()
        return full

    def take(self, place: int) -> None:
        """Drop a neuron."""
        block = int((self._left == self._position[place]).nonzero())
        if not self._state.eliminate(block):
            self._refresh()
            block = int((self._left == self._position[place]).nonzero())
            self._state.eliminate(block)
        if self._state.left <= REFRESH * self._since:
            self._refresh()
        elif self._state.pending + self._taps > max(PENDING, self._taps):
            self._left = self._left[self._state.settle()]

    def _refresh(self) -> None:
        self._left = self._left[self._state.staying()]
        columns = columns_of(self._left, self._taps)
        factor = ridge.cholesky(self._moments.uu[columns[:, None], columns] / self._moments.n, self._shift)
        while factor is None:
            self._shift *= 10
            factor = ridge.cholesky(
                self._moments.uu[columns[:, None], columns] / self._moments.n, self._shift
            )
        self._factored(factor)

    def _factored(self, L: Tensor) -> None:
        self._since = len(self._left)
        W = torch.cholesky_solve(self._target[columns_of(self._left, self._taps)], L)
        self._state = BlockElimination(torch.cholesky_inverse(L), W, self._taps)


class Forward:
    """The neurons of one problem, and what the squared error loses where one of them is added.

    Arguments as ``Backward``. A neuron that those before make up to rounding is worth nothing.
    """

    def __init__(self, problem: Problem, weights: Tensor, rho: float) -> None:
        self.own, self._position = _own(problem)
        moments = problem.fit
        G = moments.G
        shift = rho * float(G.diagonal().mean()) if len(G) else 0.0
        G.diagonal().add_(shift)
        self._state = BlockElimination(G, _target(problem, weights, shift), problem.taps)

    def worths(self) -> NDArray[np.float64]:
        """tr(R_jᵀ (S_jj)⁻¹ R_j) of each own neuron, 0 of those that were taken."""
        worths: NDArray[np.float64] = self._state.worths()[0].cpu().numpy()
        return worths

    def take(self, place: int) -> None:
        """Add a neuron."""
        self._state.eliminate(self._position[place])


def rows_note(problem: Problem) -> tuple[str, ...]:
    """What ``ridge.row_notes`` says of all candidates together; nothing where the prior is known to be good."""
    moments, prior = problem.fit, problem.prior
    few = moments.n <= len(moments.mean_u)
    if few and problem.exact_b2 is not None:
        return ()
    if few and prior is not None and ridge.no_better_is_known(moments, prior.to(moments.uy)):
        return ()
    return tuple(f"all candidates: {note}" for note in ridge.row_notes(moments.n, len(moments.mean_u)))


def _own(problem: Problem) -> tuple[NDArray[np.intp], dict[int, int]]:
    count = len(problem.fit.mean_u) // problem.taps
    own = np.arange(count) if problem.among is None else problem.among.cpu().numpy().astype(np.intp)
    return own, {int(place): position for position, place in enumerate(own)}


def _target(problem: Problem, weights: Tensor, shift: float) -> Tensor:
    """C + shift·W⁰ with its columns weighed, as few columns as give the same C Cᵀ."""
    target = problem.fit.C
    if problem.prior is not None:
        target = target + shift * problem.prior.to(target)
    target = target * weights.sqrt()
    if target.shape[1] > target.shape[0]:
        target = torch.linalg.qr(target.T, mode="r").R.T
    return target.contiguous()
