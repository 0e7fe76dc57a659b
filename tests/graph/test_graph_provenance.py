from __future__ import annotations

import json

import pytest
from graph_zoo import conv

from onnx_compnet.errors import ModelError
from onnx_compnet.graph import provenance
from onnx_compnet.version import __version__


def test_growths_are_appended_and_read_back():
    model = conv(1)
    assert provenance.read(model) == []
    model.metadata_props.add(key="mine", value="kept")
    provenance.write(model, [{"site": "conv1", "lam": 0.1}])
    provenance.write(model, [{"site": "größe", "kept": [1, 2]}])
    assert provenance.read(model) == [{"site": "conv1", "lam": 0.1}, {"site": "größe", "kept": [1, 2]}]
    found = {item.key: item.value for item in model.metadata_props}
    assert found["mine"] == "kept"
    assert found["onnx_compnet.version"] == __version__
    assert len(json.loads(found["onnx_compnet.growths"])) == 2
    assert len(found) == len(model.metadata_props) == 3


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "null"])
def test_damaged_provenance_is_an_error(text):
    model = conv(1)
    model.metadata_props.add(key="onnx_compnet.growths", value=text)
    with pytest.raises(ModelError, match=r"onnx_compnet\.growths"):
        provenance.read(model)


def test_nan_is_not_json():
    model = conv(1)
    with pytest.raises(ValueError, match="JSON"):
        provenance.write(model, [{"error": float("nan")}])
    assert not model.metadata_props
