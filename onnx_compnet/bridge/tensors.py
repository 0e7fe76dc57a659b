"""numpy arrays as torch tensors and back, bfloat16 included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(array: NDArray[Any]) -> Tensor:
    """A copy of an array of ONNX values."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: Tensor, like: NDArray[Any]) -> NDArray[Any]:
    """A tensor's values in the type of ``like``."""
    held = tensor.detach().cpu().contiguous()
    if like.dtype.name == "bfloat16":
        return held.to(torch.bfloat16).view(torch.uint16).numpy().view(like.dtype)
    return held.to(torch.from_numpy(np.empty(0, like.dtype)).dtype).numpy()
