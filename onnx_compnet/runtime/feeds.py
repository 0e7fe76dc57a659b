"""Complete feeds from Python: a function's, a callable's, any iterable's that can be gone over again."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnx_compnet.errors import CompnetError, DataError, UsageError
from onnx_compnet.layers import LabelSpec, TensorSpec
from onnx_compnet.runtime.base import FeedSource
from onnx_compnet.runtime.layout import match_names, require_fit
from onnx_compnet.runtime.options import DataOptions
from onnx_compnet.runtime.prepare import AnyArray, check_dtype

ONE_SHOT = (
    "the data is a generator or iterator that can be gone over only once: pass a function that returns a "
    "fresh iterator, e.g. lambda: batches()"
)


class CallableSource(FeedSource):
    """``fresh()`` gives the feeds of one pass, from the first one.

    ``wrap`` turns what the user's code raises into DataError (for the command line; Python callers see their
    own exceptions).
    """

    def __init__(
        self,
        fresh: Callable[[], Iterable[Any]],
        inputs: Sequence[TensorSpec],
        options: DataOptions,
        name: str,
        wrap: bool = False,
    ) -> None:
        super().__init__(inputs, options, name)
        self._fresh, self._wrap = fresh, wrap

    @property
    def description(self) -> str:
        """The name, and after a pass how many samples."""
        count = "" if self.n_samples is None else f", {self.n_samples} samples"
        return f"{self.name}{count}"

    def raw_feeds(self) -> Iterator[dict[str, AnyArray]]:
        """What the function gives, by input name. Raises DataError where that doesn't fit the model."""
        for number, item in enumerate(self._items()):
            where = f"feed {number} of {self.name}"
            arrays = as_arrays(item, self.inputs, where)
            for spec in self.inputs:
                check_dtype(arrays[spec.name].dtype, spec, self.transforms.get(spec.name), where)
                require_fit(arrays[spec.name].shape, spec, None, where)
            yield arrays

    def _items(self) -> Iterator[Any]:
        number = -1
        try:
            given = self._fresh()
            if isinstance(given, (Mapping, np.ndarray, torch.Tensor, str)) or not isinstance(given, Iterable):
                raise DataError(
                    f"{self.name} gives {type(given).__name__}: it must yield feeds (or return a list of "
                    "them), each a dict of arrays by input name"
                )
            for number, item in enumerate(given):  # noqa: B007  (the message below counts)
                yield item
        except CompnetError:
            raise
        except (Exception, SystemExit) as error:
            if not self._wrap:
                raise
            told = " ".join(str(error).split())
            raise DataError(
                f"{self.name} raised {type(error).__name__} at feed {number + 1}: {told}; repair the function"
            ) from error


def as_numpy(value: Any, name: str, where: str) -> AnyArray:
    """One array or tensor as numpy. Raises DataError for Python objects."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    try:
        array = np.asarray(value)
    except ValueError as error:  # nested lists of different lengths
        raise DataError(f"input {name!r} of {where} is no array: {' '.join(str(error).split())}") from error
    if array.dtype.hasobject and not all(isinstance(each, str) for each in array.flat):
        raise DataError(
            f"input {name!r} of {where} holds Python objects ({type(value).__name__}), not numbers"
        )
    return array


def as_arrays(item: Any, inputs: Sequence[TensorSpec], where: str) -> dict[str, AnyArray]:
    """One feed by input name: a dict, a tuple or list in the order of the inputs, or one array.

    A label after the inputs is ignored unless ``inputs`` has one: (x, y), and ((a, b), y). Raises DataError.
    """
    if isinstance(item, Mapping):
        keys = match_names(item, inputs, where)
        return {name: as_numpy(item[key], name, where) for name, key in keys.items()}
    if isinstance(item, (tuple, list)):
        if len(item) in (1, 2) and isinstance(item[0], (Mapping, tuple, list)):
            labels = [spec.name for spec in inputs if isinstance(spec, LabelSpec)]
            if not labels or len(item) == 1:
                return as_arrays(item[0], inputs, where)
            own = [spec for spec in inputs if not isinstance(spec, LabelSpec)]
            return {**as_arrays(item[0], own, where), labels[0]: as_numpy(item[1], labels[0], where)}
        if len(item) not in (len(inputs), len(inputs) + 1):
            expected = ", ".join(repr(spec.name) for spec in inputs)
            raise DataError(
                f"{where} is a {type(item).__name__} of {len(item)} and the model takes {expected}: yield "
                "dicts by input name, or the inputs in this order (a label may follow)"
            )
        return {spec.name: as_numpy(item[k], spec.name, where) for k, spec in enumerate(inputs)}
    if isinstance(item, (np.ndarray, np.generic, torch.Tensor)):
        return as_arrays((item,), inputs, where)
    raise DataError(f"{where} is {type(item).__name__}: it must be a dict of arrays by input name")


def load_function(text: str) -> Callable[[], Iterable[Any]]:
    """The function that ``FILE.py:function`` names; FILE.py is executed, its folder importable.

    Raises UsageError without a function name, DataError for a file or function that fails or is missing.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not name:
        raise UsageError(f"--data {text}: say which function yields the feeds, FILE.py:function")
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{path} does not exist: --data FILE.py:function needs that file")
    module_name = f"_onnx_compnet_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[module_name] = module  # pickling (worker processes) looks it up
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing appears beside the user's file
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        told = " ".join(str(error).split())
        raise DataError(f"{path} can't be imported, {type(error).__name__}: {told}") from error
    finally:
        sys.dont_write_bytecode = writes
    function = vars(module).get(name)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise DataError(f"{path} has no function {name!r}: it has {known}")
    return lambda: function()
