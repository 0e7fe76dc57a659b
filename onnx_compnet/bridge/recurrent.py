"""LSTM, GRU and RNN layers: ONNX's weights in torch's order of gates, at each call, so that gradients reach them."""

from __future__ import annotations

import torch
from torch import Tensor

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's gates, by their places in ONNX


def lstm(
    x: Tensor, W: Tensor, R: Tensor, B: Tensor | None = None, _lengths: Tensor | None = None,
    h: Tensor | None = None, c: Tensor | None = None, *, hidden_size: int, direction: str = "forward",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x (T, N, I), W (D, 4H, I), R (D, 4H, H), B (D, 8H) → Y (T, D, N, H), Y_h and Y_c (D, N, H)."""
    x, both = _towards(x, direction)
    start = [_start(x, W, hidden_size, item) for item in (h, c)]
    weights = _weights("LSTM", W, R, B)
    y, last, cell = torch.lstm(x, start, weights, B is not None, 1, 0.0, False, both, False)
    return _back(y, direction, len(W)), last, cell


def gru(
    x: Tensor, W: Tensor, R: Tensor, B: Tensor | None = None, _lengths: Tensor | None = None,
    h: Tensor | None = None, *, hidden_size: int, direction: str = "forward",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x (T, N, I), W (D, 3H, I), R (D, 3H, H), B (D, 6H) → Y (T, D, N, H) and Y_h (D, N, H)."""
    x, both = _towards(x, direction)
    weights = _weights("GRU", W, R, B)
    y, last = torch.gru(x, _start(x, W, hidden_size, h), weights, B is not None, 1, 0.0, False, both, False)
    return _back(y, direction, len(W)), last


def rnn(
    x: Tensor, W: Tensor, R: Tensor, B: Tensor | None = None, _lengths: Tensor | None = None,
    h: Tensor | None = None, *, hidden_size: int, direction: str = "forward",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x (T, N, I), W (D, H, I), R (D, H, H), B (D, 2H) → Y (T, D, N, H) and Y_h (D, N, H); tanh."""
    x, both = _towards(x, direction)
    weights = _weights("RNN", W, R, B)
    y, last = torch.rnn_tanh(
        x, _start(x, W, hidden_size, h), weights, B is not None, 1, 0.0, False, both, False
    )
    return _back(y, direction, len(W)), last


def _towards(x: Tensor, direction: str) -> tuple[Tensor, bool]:
    return (x.flip(0) if direction == "reverse" else x), direction == "bidirectional"


def _back(y: Tensor, direction: str, directions: int) -> Tensor:
    y = y.flip(0) if direction == "reverse" else y
    return y.reshape(*y.shape[:2], directions, -1).transpose(1, 2)


def _start(x: Tensor, W: Tensor, hidden: int, given: Tensor | None) -> Tensor:
    return x.new_zeros(len(W), x.shape[1], hidden) if given is None else given


def _weights(op: str, W: Tensor, R: Tensor, B: Tensor | None) -> list[Tensor]:
    """For each direction W, R and the two biases, the gates in torch's order."""
    found = []
    for number in range(len(W)):
        parts = [W[number], R[number]]
        if B is not None:
            parts += list(B[number].chunk(2))
        found += [_ordered(op, part) for part in parts]
    return found


def _ordered(op: str, part: Tensor) -> Tensor:
    gates = part.chunk(len(_GATES[op]))
    return torch.cat([gates[place] for place in _GATES[op]])
