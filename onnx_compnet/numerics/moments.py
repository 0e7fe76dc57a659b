"""Sufficient statistics: means and centred co-moments, merged batch by batch (Chan, Golub, LeVeque 1979).

Nothing here has the size of the data. Merging is associative and commutative up to rounding, so streams,
shards, processes and machines give the same moments to about 1e-12 (float64 rows).

On CUDA, torch computes float32 matrix products in full precision unless
``torch.backends.cuda.matmul.allow_tf32`` is set; with TF32 the sums err by 5e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_compnet.errors import DataError, UsageError

_PRODUCT_ROWS = 4096  # a float32 product over more rows loses accuracy
_BUFFER_ROWS = 1024  # fewer rows than this are collected first: every product costs a pass over p × p sums


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of n pairs (u, y), u of p columns and y of D2; all tensors float64 on one device.

    ``uu`` = Σ(u−ū)(u−ū)ᵀ (p, p), ``uy`` = Σ(u−ū)(y−ȳ)ᵀ (p, D2) and ``yy`` = Σ(y−ȳ)² (D2,) are sums;
    ``G``, ``C`` and ``v`` are the same divided by n.
    """

    n: int
    mean_u: Tensor
    mean_y: Tensor
    uu: Tensor
    uy: Tensor
    yy: Tensor

    @classmethod
    def zero(cls, p: int, D2: int, device: torch.device | str = "cpu") -> Moments:
        """The moments of no data: the neutral element of ``merge``."""
        sizes = ((p,), (D2,), (p, p), (p, D2), (D2,))
        return cls(0, *(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    @classmethod
    def from_rows(cls, u: Tensor, y: Tensor) -> Moments:
        """The moments of rows u (n, p) and y (n, D2), every product in float64."""
        accumulator = MomentsAccumulator(u.shape[1], y.shape[1], u.device, torch.float64)
        accumulator.update(u, y)
        return accumulator.result()

    @property
    def G(self) -> Tensor:  # noqa: N802
        """Cov(u, u), (p, p)."""
        return self.uu / max(self.n, 1)

    @property
    def C(self) -> Tensor:  # noqa: N802
        """Cov(u, y), (p, D2)."""
        return self.uy / max(self.n, 1)

    @property
    def v(self) -> Tensor:
        """Var(y), (D2,)."""
        return self.yy / max(self.n, 1)

    def subset(self, columns: Tensor) -> Moments:
        """The moments of some columns of u, in the order given (see ``columns_of``)."""
        columns = columns.to(self.uu.device)
        return Moments(
            self.n,
            self.mean_u[columns],
            self.mean_y,
            self.uu[columns[:, None], columns],
            self.uy[columns],
            self.yy,
        )

    def to(self, device: torch.device | str) -> Moments:
        """The same moments on another device."""
        tensors = (self.mean_u, self.mean_y, self.uu, self.uy, self.yy)
        return Moments(self.n, *(tensor.to(device) for tensor in tensors))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of rows. Raises UsageError when their sizes differ."""
    if a.uy.shape != b.uy.shape:
        raise UsageError(f"moments of (p, D2) = {tuple(a.uy.shape)} and {tuple(b.uy.shape)} can't be merged")
    n = a.n + b.n
    share = b.n / max(n, 1)
    weight = a.n * share
    du, dy = b.mean_u - a.mean_u, b.mean_y - a.mean_y
    return Moments(
        n,
        a.mean_u + share * du,
        a.mean_y + share * dy,
        (a.uu + b.uu).addr_(du, du, alpha=weight),
        (a.uy + b.uy).addr_(du, dy, alpha=weight),
        a.yy + b.yy + weight * dy**2,
    )


class MomentsAccumulator:
    """Moments of a stream of rows, updated in place.

    Rows are collected up to 1,024, then centred on their own mean, multiplied at most 4,096 at a time in
    ``dtype`` (by default float64 if the first rows are float64, else float32), and added to float64 sums.
    Memory: the p·p sums, one product, the buffer; ``result`` copies the sums. Float32 products are good to
    about 1e-7 of the co-moments.
    """

    def __init__(
        self, p: int, D2: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise UsageError(f"products are computed in float32 or float64, not in {dtype}")
        self._dtype = dtype
        self._sums = Moments.zero(p, D2, device)
        self._n = 0
        self._buffer: tuple[Tensor, Tensor] | None = None
        self._filled = 0

    def update(self, u: Tensor, y: Tensor) -> None:
        """Take in rows u (n_i, p) and y (n_i, D2) of any floating dtype.

        Raises UsageError when the shapes do not fit.
        """
        if u.ndim != 2 or y.ndim != 2 or len(u) != len(y) or (u.shape[1], y.shape[1]) != self._sums.uy.shape:
            p, D2 = self._sums.uy.shape
            raise UsageError(f"rows are (n, {p}) and (n, {D2}), not {tuple(u.shape)} and {tuple(y.shape)}")
        n = len(u)
        self._dtype = self._dtype or (torch.float64 if u.dtype == torch.float64 else torch.float32)
        if self._filled + n > _BUFFER_ROWS:
            self._flush()
        if n > _BUFFER_ROWS:
            for first in range(0, n, _PRODUCT_ROWS):
                part = slice(first, first + _PRODUCT_ROWS)
                self._absorb(u[part].to(self._sums.uu.device, self._dtype), y[part].to(self._sums.uu.device))
        elif n:
            if self._buffer is None:
                p, D2 = self._sums.uy.shape
                device = self._sums.uu.device
                self._buffer = (
                    torch.empty(_BUFFER_ROWS, p, dtype=self._dtype, device=device),
                    torch.empty(
                        _BUFFER_ROWS, D2, dtype=torch.promote_types(y.dtype, self._dtype), device=device
                    ),
                )
            span = slice(self._filled, self._filled + n)
            self._buffer[0][span] = u
            self._buffer[1][span] = y
            self._filled += n

    def result(self) -> Moments:
        """The moments so far, as a copy; the accumulator may go on.

        Raises DataError when a row held NaN or an infinity, or a product overflowed.
        """
        self._flush()
        sums = self._sums
        for name, tensor in (
            ("activations", sums.uu.diagonal()),
            ("targets", sums.yy),
            ("products", sums.uy),
        ):
            if not bool(torch.isfinite(tensor).all()):
                raise DataError(f"the {name} are not finite; look for NaN and infinities in the data")
        return Moments(
            self._n,
            sums.mean_u.clone(),
            sums.mean_y.clone(),
            (sums.uu + sums.uu.T).mul_(0.5),  # a product AᵀA need not be symmetric to the last bit
            sums.uy.clone(),
            sums.yy.clone(),
        )

    def _flush(self) -> None:
        if self._buffer is not None and self._filled:
            self._absorb(self._buffer[0][: self._filled], self._buffer[1][: self._filled])
            self._filled = 0

    def _absorb(self, u: Tensor, y: Tensor) -> None:
        """``merge`` in place with the moments of u (in the dtype of products) and y."""
        sums, m, n = self._sums, len(u), self._n + len(u)
        mean_u, mean_y = u.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
        pilot = mean_u.to(u.dtype)
        centred = u - pilot
        residual = y.double() - mean_y
        slip = mean_u - pilot.double()  # what rounding the mean to float32 left uncentred
        du, dy = mean_u - sums.mean_u, mean_y - sums.mean_y
        weight = self._n * m / n
        sums.uu.add_(centred.T @ centred)
        sums.uu.addr_(slip, slip, alpha=-m).addr_(du, du, alpha=weight)
        sums.uy.add_(centred.T @ residual.to(u.dtype)).addr_(du, dy, alpha=weight)
        sums.yy.add_(residual.square().sum(0)).add_(dy.square(), alpha=weight)
        sums.mean_u.add_(du, alpha=m / n)
        sums.mean_y.add_(dy, alpha=m / n)
        self._n = n


@dataclass(frozen=True, eq=False)
class Covariance:
    """Moments of n rows x of Dn columns: ``xx`` = Σ(x−x̄)(x−x̄)ᵀ (Dn, Dn), float64 on one device."""

    n: int
    mean: Tensor
    xx: Tensor

    @classmethod
    def zero(cls, Dn: int, device: torch.device | str = "cpu") -> Covariance:
        """The moments of no data."""
        moments = Moments.zero(Dn, 0, device)
        return cls(0, moments.mean_u, moments.uu)

    @classmethod
    def from_rows(cls, x: Tensor) -> Covariance:
        """The moments of rows x (n, Dn), every product in float64."""
        accumulator = CovarianceAccumulator(x.shape[1], x.device, torch.float64)
        accumulator.update(x)
        return accumulator.result()

    def correlation(self) -> Tensor:
        """r (Dn, Dn), 1 on the diagonal; a column without variance correlates with nothing."""
        d = self.xx.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(d > 0, 1 / d, torch.zeros_like(d))
        return (self.xx * inverse * inverse[:, None]).clamp_(-1, 1).fill_diagonal_(1.0)

    def subset(self, neurons: Tensor) -> Covariance:
        """The moments of some columns of x, in the order given."""
        neurons = neurons.to(self.xx.device)
        return Covariance(self.n, self.mean[neurons], self.xx[neurons[:, None], neurons])

    def to(self, device: torch.device | str) -> Covariance:
        """The same moments on another device."""
        return Covariance(self.n, self.mean.to(device), self.xx.to(device))


def merge_covariances(a: Covariance, b: Covariance) -> Covariance:
    """The moments of both sets of rows. Raises UsageError when their sizes differ."""
    merged = merge(_without_targets(a), _without_targets(b))
    return Covariance(merged.n, merged.mean_u, merged.uu)


class CovarianceAccumulator:
    """Covariance of a stream of rows, updated in place; precision and memory as MomentsAccumulator."""

    def __init__(self, Dn: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        self._moments = MomentsAccumulator(Dn, 0, device, dtype)

    def update(self, x: Tensor) -> None:
        """Take in rows x (n_i, Dn). Raises UsageError when the shape does not fit."""
        self._moments.update(x, x[:, :0])

    def result(self) -> Covariance:
        """The moments so far, as a copy. Raises DataError when they are not finite."""
        moments = self._moments.result()
        return Covariance(moments.n, moments.mean_u, moments.uu)


def columns_of(
    neurons: Sequence[int] | Tensor, taps: int, device: torch.device | str | None = None
) -> Tensor:
    """The columns of u that belong to some neurons, taps of one neuron side by side (int64)."""
    first = torch.as_tensor(neurons, dtype=torch.int64, device=device).reshape(-1, 1) * taps
    return (first + torch.arange(taps, device=first.device)).reshape(-1)


def _without_targets(covariance: Covariance) -> Moments:
    empty = covariance.mean[:0]
    return Moments(covariance.n, covariance.mean, empty, covariance.xx, covariance.xx[:, :0], empty)
