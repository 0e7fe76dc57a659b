"""Random crops and flips of images as they are stored (before scaling, where 0 is black)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Augmentation:
    """``kinds`` of "crop" and "flip"; ``padding`` in pixels; ``inputs``: the names of the (N, C, H, W) inputs."""

    kinds: Sequence[str]
    padding: int
    inputs: tuple[str, ...]

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """What happens to each of n samples: shift down, shift right (in ±padding), flip (0 or 1); int64 (n, 3)."""
        shifts = rng.integers(-self.padding, self.padding + 1, (n, 2))
        flips = rng.integers(0, 2, (n, 1))
        return np.hstack([shifts * ("crop" in self.kinds), flips * ("flip" in self.kinds)])

    def apply(self, images: Array, drawn: Array) -> Array:
        """Images (n, C, H, W), each shifted (zeros come in) and flipped as its row of ``drawn`` (n, 3) says.

        A shift beyond the image's own size is cut to it. All inputs of a sample move together.
        """
        n, _, height, width = images.shape
        pad = min(self.padding, height, width)
        padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        shifts = np.clip(drawn[:, :2], -pad, pad)
        rows = np.arange(height) + pad - shifts[:, :1]
        columns = np.arange(width) + pad - shifts[:, 1:]
        columns = np.where(drawn[:, 2:] == 1, columns[:, ::-1], columns)
        moved = padded[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return np.ascontiguousarray(np.moveaxis(moved, -1, 1))
