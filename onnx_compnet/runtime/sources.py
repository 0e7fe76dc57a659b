"""``open_data``: whatever a user calls data → a Source."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from onnx_compnet.errors import DataError, UsageError
from onnx_compnet.layers import TensorSpec
from onnx_compnet.runtime.base import FeedSource, SampleSource, Source
from onnx_compnet.runtime.feeds import ONE_SHOT, CallableSource, load_function
from onnx_compnet.runtime.files import FileSource, shard_paths
from onnx_compnet.runtime.memory import DictSource, LoaderSource, RandomSource, sequential
from onnx_compnet.runtime.options import DataOptions

__all__ = ["DataOptions", "FeedSource", "SampleSource", "Source", "open_data"]


def open_data(data: Any, inputs: Sequence[TensorSpec], options: DataOptions | None = None) -> Source:
    """The Source of ``data`` for a model with these ``inputs``.

    ``data``: the path of an .npz, an .npy or a folder of either; "FILE.py:function"; "random" or "random:N";
    a dict of arrays (one array for a single-input model); a torch DataLoader; a callable that returns a fresh
    iterator of feeds; any other iterable that can be gone over again. A Source is returned as it is.

    Headers, names, shapes and dtypes are checked here; content is checked as it is read. Raises DataError
    for data that is missing or unfit, UsageError for arguments (one-shot iterators among them).
    """
    options = options or DataOptions()
    if not inputs:
        raise DataError("the model has no inputs: no data can be run through it")
    if isinstance(data, Source):
        return data
    if isinstance(data, str) and re.match(r"random(:|$)", data):
        return RandomSource(inputs, options, _random_count(data))
    if isinstance(data, str) and re.search(r"\.py(:[^/\\]*)?$", data) and not Path(data).exists():
        return CallableSource(load_function(data), inputs, options, data, wrap=True)
    if isinstance(data, (str, os.PathLike)):
        return _open_path(Path(data), inputs, options)
    if isinstance(data, Mapping):
        return DictSource(data, inputs, options)
    if isinstance(data, (np.ndarray, torch.Tensor)):
        return DictSource({"x": data}, inputs, options)
    if isinstance(data, DataLoader):
        dataset = sequential(data)
        if dataset is not None:
            return LoaderSource(data, dataset, inputs, options)
        return CallableSource(lambda: iter(data), inputs, options, "the DataLoader")
    if isinstance(data, Iterator):
        raise UsageError(ONE_SHOT)
    if callable(data):
        return CallableSource(_fresh(data), inputs, options, "the data function")
    if isinstance(data, Iterable):
        return CallableSource(lambda: iter(data), inputs, options, f"the {type(data).__name__} of feeds")
    raise UsageError(
        f"data is {type(data).__name__}: pass a path, a dict of arrays, a DataLoader, or a function that "
        "returns a fresh iterator of feeds"
    )


def _fresh(function: Callable[[], Any]) -> Callable[[], Iterable[Any]]:
    return lambda: function()


def _random_count(data: str) -> int | None:
    if data == "random":
        return None
    match = re.fullmatch(r"random:(\d{1,12})", data)
    if match is None or int(match[1]) < 1:
        raise UsageError(f"--data {data}: say random, or random:N with a number of samples N ≥ 1")
    return int(match[1])


def _open_path(path: Path, inputs: Sequence[TensorSpec], options: DataOptions) -> Source:
    if path.is_dir():
        try:
            shards = shard_paths(path)
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror}") from error
        return FileSource(shards, inputs, options, str(path), f"folder {path.name} of {len(shards)} files")
    if not path.exists():
        raise DataError(
            f"{path} does not exist: --data takes an .npz, .npy, a folder, FILE.py:function or random"
        )
    kind = path.suffix.lower().lstrip(".")
    if kind == "py":
        raise UsageError(f"--data {path}: say which function yields the feeds, {path}:function")
    if kind not in ("npz", "npy"):
        raise DataError(
            f"{path} has an unknown suffix: --data takes an .npz, .npy, a folder, FILE.py:function or random"
        )
    return FileSource([path], inputs, options, path.name, f"{kind} {path.name}")
