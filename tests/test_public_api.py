"""The public names, pinned: a change here is a change for users."""

from __future__ import annotations

import pytest

import onnx_compnet as oc


def test_public_names():
    assert oc.__all__ == [
        "AmbiguousNameError", "Comparison", "CompnetError", "DataError", "DivergedError", "FinetuneOptions",
        "GrowOptions", "Growth", "InputError", "MethodComparison", "MethodRow", "MethodRun", "ModelError",
        "NameNotFoundError", "OutputExistsError", "Refusal", "ResourceError", "Site", "SiteGrowth", "SiteScore",
        "Solution", "SuggestOptions", "Suggestion", "Tuned", "UnsupportedError", "UsageError", "Verdict",
        "VerificationError", "__version__", "compare", "find_sites", "finetune", "grow", "iilasso", "load",
        "refusals", "suggest", "to_torch", "verify", "write_back",
    ]  # fmt: skip
    for name in oc.__all__:
        assert getattr(oc, name) is not None
    assert callable(oc.verify)
    assert callable(oc.iilasso)
    assert set(oc.__all__) <= set(dir(oc))


def test_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = oc.nonsense


def test_exit_codes():
    codes = {
        oc.VerificationError: 1, oc.DivergedError: 1, oc.UsageError: 2,
        oc.NameNotFoundError: 2, oc.AmbiguousNameError: 2,
        oc.OutputExistsError: 2, oc.UnsupportedError: 3, oc.ModelError: 4, oc.DataError: 4, oc.ResourceError: 5,
    }  # fmt: skip
    for error, code in codes.items():
        assert error.exit_code == code
        assert issubclass(error, oc.CompnetError)
    assert issubclass(oc.UsageError, ValueError)
