"""Random choices as functions of the seed and the place in the run: no generator has a state to save."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_ORDER, _AUGMENT, _DROPOUT, _HOLDOUT, _SUBSET = range(5)


def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The permutation of n samples in which an epoch takes them."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(n)


def augmentation(seed: int, epoch: int, step: int) -> np.random.Generator:
    """What draws the augmentation of a step's whole batch, whichever process has which part of it."""
    return np.random.default_rng([seed, _AUGMENT, epoch, step])


def seed_torch(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step (dropout)."""
    state = np.random.SeedSequence([seed, _DROPOUT, epoch, step, rank]).generate_state(2)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))


def held_out(seed: int, n: int) -> NDArray[np.int64]:
    """The permutation of n samples whose first ones are held out for validation."""
    return np.random.default_rng([seed, _HOLDOUT, n]).permutation(n)


def subset(seed: int, n: int, most: int | None) -> NDArray[np.int64]:
    """At most ``most`` of n samples at random, ascending."""
    if most is None or most >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, _SUBSET, n]).permutation(n)[:most])
