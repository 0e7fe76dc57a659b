"""Grow a trained ONNX model by a compact new layer that keeps its function (CompNet).

>>> import onnx_compnet as oc                                        # doctest: +SKIP
>>> growth = oc.grow("model.onnx", after="conv3", data="train.npz")  # doctest: +SKIP
>>> growth.save("child.onnx")                                        # doctest: +SKIP

Heavy modules are imported when their first name is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_compnet.bridge.module import to_torch
    from onnx_compnet.bridge.write_back import write_back
    from onnx_compnet.comparison.result import MethodComparison, MethodRow, MethodRun
    from onnx_compnet.comparison.run import compare
    from onnx_compnet.config import GrowOptions
    from onnx_compnet.errors import (
        AmbiguousNameError,
        CompnetError,
        DataError,
        DivergedError,
        InputError,
        ModelError,
        NameNotFoundError,
        OutputExistsError,
        ResourceError,
        UnsupportedError,
        UsageError,
        VerificationError,
    )
    from onnx_compnet.graph.model_io import load
    from onnx_compnet.graph.sites import Refusal, Site, find_sites, refusals
    from onnx_compnet.growth import Growth, SiteGrowth
    from onnx_compnet.numerics.iilasso import Solution, iilasso
    from onnx_compnet.pipeline import grow
    from onnx_compnet.suggestion.options import SuggestOptions
    from onnx_compnet.suggestion.result import SiteScore, Suggestion
    from onnx_compnet.suggestion.run import suggest
    from onnx_compnet.training.finetune import finetune
    from onnx_compnet.training.options import FinetuneOptions
    from onnx_compnet.training.result import Tuned
    from onnx_compnet.verification import Comparison, Verdict, verify
    from onnx_compnet.version import __version__

__all__ = [
    "AmbiguousNameError",
    "Comparison",
    "CompnetError",
    "DataError",
    "DivergedError",
    "FinetuneOptions",
    "GrowOptions",
    "Growth",
    "InputError",
    "MethodComparison",
    "MethodRow",
    "MethodRun",
    "ModelError",
    "NameNotFoundError",
    "OutputExistsError",
    "Refusal",
    "ResourceError",
    "Site",
    "SiteGrowth",
    "SiteScore",
    "Solution",
    "SuggestOptions",
    "Suggestion",
    "Tuned",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "VerificationError",
    "__version__",
    "compare",
    "find_sites",
    "finetune",
    "grow",
    "iilasso",
    "load",
    "refusals",
    "suggest",
    "to_torch",
    "verify",
    "write_back",
]

_HOME = {
    "MethodComparison": "comparison.result",
    "MethodRow": "comparison.result",
    "MethodRun": "comparison.result",
    "compare": "comparison.run",
    "GrowOptions": "config",
    "Refusal": "graph.sites",
    "Site": "graph.sites",
    "find_sites": "graph.sites",
    "refusals": "graph.sites",
    "load": "graph.model_io",
    "Growth": "growth",
    "SiteGrowth": "growth",
    "Solution": "numerics.iilasso",
    "iilasso": "numerics.iilasso",
    "grow": "pipeline",
    "SiteScore": "suggestion.result",
    "SuggestOptions": "suggestion.options",
    "Suggestion": "suggestion.result",
    "suggest": "suggestion.run",
    "finetune": "training.finetune",
    "FinetuneOptions": "training.options",
    "Tuned": "training.result",
    "to_torch": "bridge.module",
    "write_back": "bridge.write_back",
    "Comparison": "verification",
    "Verdict": "verification",
    "verify": "verification",
    "__version__": "version",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
