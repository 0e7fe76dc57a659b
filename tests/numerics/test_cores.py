from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onnx_compnet.errors import UsageError
from onnx_compnet.layers import ACTIVATION_PARAMETERS, Activation
from onnx_compnet.numerics.activations import apply
from onnx_compnet.numerics.initialise import (
    EXACT_PAIRS,
    candidates,
    core_size,
    exact_core,
    fine_range,
    is_exact,
    slope_on,
)

ANYWHERE = (-math.inf, math.inf)
FLAT = ("thresholded_relu",)  # no linear layer makes t again of what is 0 around 0


def rebuilt(
    activation: Activation, t: torch.Tensor, bounds: tuple[float, float], **options: float
) -> torch.Tensor:
    """t as a linear layer makes it of the core's neurons, less what is constant."""
    D1 = t.shape[1]
    core = exact_core(D1, 2 * D1 + 3, (), activation, bounds=bounds, **options)
    assert core.W2 is not None
    A = apply(activation, t @ torch.from_numpy(core.W1).T)
    made = A @ torch.from_numpy(core.W2)
    return made - made.mean(0)


@pytest.mark.parametrize("name", sorted(set(ACTIVATION_PARAMETERS) - set(FLAT)))
def test_a_linear_layer_makes_t_again(name: str) -> None:
    h = Activation(name)
    t = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = float(t.square().mean().sqrt())
    error = (rebuilt(h, t, ANYWHERE, t_scale=scale) - (t - t.mean(0))).norm() / t.norm()
    assert float(error) < (1e-12 if name in EXACT_PAIRS else 1e-3 if name in ("tanh", "sigmoid") else 0.02)
    assert is_exact(h, ANYWHERE) == (name in EXACT_PAIRS)


@pytest.mark.parametrize(
    ("h", "bounds"),
    [
        (Activation("relu"), (0.0, math.inf)),
        (Activation("elu", (0.7,)), (0.0, math.inf)),
        (Activation("celu"), (0.0, 3.0)),
        (Activation("selu"), (0.0, math.inf)),
        (Activation("prelu", (0.3,)), (0.5, 2.0)),
        (Activation("clip", (0.0, 6.0)), (0.0, 6.0)),
        (Activation("clip", (-1.0, 1.0)), (-0.5, 1.0)),
    ],
)
def test_one_neuron_a_channel_is_enough_where_h_is_linear(h: Activation, bounds: tuple[float, float]) -> None:
    low, high = bounds[0], min(bounds[1], 9.0)
    t = low + (high - low) * torch.rand(
        100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    assert core_size(4, h, bounds) == 4
    torch.testing.assert_close(rebuilt(h, t, bounds), t - t.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("h", "bounds"),
    [
        (Activation("relu"), (-0.1, 1.0)),
        (Activation("gelu"), (0.0, 1.0)),
        (Activation("clip", (0.0, 6.0)), (0.0, 7.0)),
        (Activation("thresholded_relu"), (0.0, 1.0)),
        (Activation("hardswish"), (0.0, 9.0)),
    ],
)
def test_where_it_may_not_be_linear_pairs_are_needed(h: Activation, bounds: tuple[float, float]) -> None:
    assert slope_on(h, *bounds) is None
    assert core_size(4, h, bounds) == 8


@pytest.mark.parametrize(("groups", "bounds"), [(1, ANYWHERE), (3, ANYWHERE), (6, ANYWHERE), (3, (0.0, 1.0))])
def test_every_group_begins_with_its_own_channels(groups: int, bounds: tuple[float, float]) -> None:
    D1, Dn = 6, 18
    core = exact_core(D1, Dn, (3, 3), Activation("relu"), bounds=bounds, groups=groups)
    assert core.W1.shape == (core_size(D1, Activation("relu"), bounds), D1, 3, 3)
    assert core.W2 is not None
    for row, place in enumerate(core.places):
        (channel,), sign = np.flatnonzero(core.W2[row]), core.W2[row].sum()
        assert channel * groups // D1 == place * groups // Dn
        expected = np.zeros((D1, 3, 3))
        expected[channel, 1, 1] = sign
        np.testing.assert_array_equal(core.W1[row], expected)
    firsts = [place * groups % Dn // groups for place in core.places]
    assert max(firsts) + 1 == len(core.places) // groups
    assert len(set(core.places.tolist())) == len(core.places)


def test_random_candidates_fill_the_places_between() -> None:
    core = exact_core(4, 12, (), Activation("gelu"), groups=2)
    layer = candidates("gemm", 4, 12, (), Activation("gelu"), seed=0, dtype=np.dtype(np.float64), core=core)
    plain = candidates("gemm", 4, 12, (), Activation("gelu"), seed=0, dtype=np.dtype(np.float64))
    np.testing.assert_array_equal(layer.W1[core.places], core.W1)
    others = np.setdiff1d(np.arange(12), core.places)
    np.testing.assert_array_equal(layer.W1[others], plain.W1[:4])


def test_a_flat_activation_has_no_known_weights() -> None:
    assert exact_core(3, 6, (), Activation("thresholded_relu")).W2 is None


@pytest.mark.parametrize(("Dn", "groups"), [(7, 1), (9, 2)])
def test_too_few_places_are_refused(Dn: int, groups: int) -> None:
    with pytest.raises(UsageError, match="keep the function"):
        exact_core(4, Dn, (), Activation("relu"), groups=groups)


@pytest.mark.parametrize(
    ("name", "error"), [("tanh", 2e-6), ("sigmoid", 2e-5), ("mish", 1e-4), ("hardsigmoid", 1e-5)]
)
def test_the_range_of_init_linear_is_far_inside_the_bend(name: str, error: float) -> None:
    """In float32, as the child computes: nearer to 0 rounding would drown it, farther the bend."""
    h = Activation(name)
    t = torch.randn(500, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = float(t.square().mean().sqrt())
    core = exact_core(5, 12, (), h, t_scale=scale, linear_range=fine_range(h))
    assert core.W2 is not None
    A = apply(h, t.float() @ torch.from_numpy(core.W1).float().T).double()
    made = A @ torch.from_numpy(core.W2)
    assert float((made - made.mean(0) - t + t.mean(0)).norm() / t.norm()) < error


def test_a_basis_takes_the_place_of_the_channels() -> None:
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0].T[None]
    core = exact_core(6, 4, (3, 3), Activation("relu"), basis=U)
    assert core.W1.shape == (4, 6, 3, 3)
    t = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert core.W2 is not None
    made = torch.relu(t @ torch.from_numpy(core.W1[:, :, 1, 1]).T) @ torch.from_numpy(core.W2)
    torch.testing.assert_close(made, t @ torch.from_numpy(U[0].T @ U[0]))
