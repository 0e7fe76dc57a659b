"""How a model was grown and trained, kept in the model itself: JSON in its metadata, under ``onnx_compnet.*``."""

from __future__ import annotations

import json
from typing import Any

from onnx import ModelProto

from onnx_compnet.errors import ModelError
from onnx_compnet.version import __version__

VERSION_KEY = "onnx_compnet.version"
GROWTHS_KEY = "onnx_compnet.growths"
FINETUNES_KEY = "onnx_compnet.finetunes"


def read(model: ModelProto) -> list[dict[str, Any]]:
    """What was written about each growth, the oldest first; [] for a model that was never grown.

    Raises:
        ModelError: the metadata is there, but is not what ``write`` wrote.
    """
    growths = _read(model, GROWTHS_KEY)
    if not all(map(_is_growth, growths)):
        raise ModelError(
            f"the model's metadata '{GROWTHS_KEY}' is no list of growths; remove it or take the original file"
        )
    return growths


def read_finetunes(model: ModelProto) -> list[dict[str, Any]]:
    """What was written about each fine-tuning, the oldest first. Raises ModelError as ``read`` does."""
    finetunes = _read(model, FINETUNES_KEY)
    if not all(isinstance(item, dict) and isinstance(item.get("scores", {}), dict) for item in finetunes):
        raise ModelError(
            f"the model's metadata '{FINETUNES_KEY}' is no list of trainings; remove it or take the original file"
        )
    return finetunes


def _read(model: ModelProto, key: str) -> list[Any]:
    text = next((item.value for item in model.metadata_props if item.key == key), None)
    if text is None:
        return []
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"the model's metadata '{key}' is not JSON ({error}); remove it or take the original file"
        ) from None
    if not isinstance(found, list):
        raise ModelError(f"the model's metadata '{key}' is no list; remove it or take the original file")
    return found


def _is_growth(item: object) -> bool:
    """Whether it has the form that readers of the provenance count on."""
    if not isinstance(item, dict):
        return False
    sites, parts = item.get("sites", []), [item.get("samples", {}), item.get("outputs", {})]
    return (
        isinstance(sites, list)
        and all(isinstance(entry, dict) for entry in (*sites, *parts))
        and all(isinstance(measures, dict) for measures in parts[1].values())
    )


def write(model: ModelProto, growths: list[dict[str, Any]]) -> None:
    """Append ``growths`` to what the model says of its growths. Edits ``model``: pass a copy of one's own.

    Raises:
        ModelError: see ``read``.
        ValueError: a value is not JSON (NaN and infinity are not).
    """
    _append(model, GROWTHS_KEY, [*read(model), *growths])


def write_finetune(model: ModelProto, finetune: dict[str, Any]) -> None:
    """Append one training to what the model says of its trainings. Edits ``model``, raises as ``write`` does."""
    _append(model, FINETUNES_KEY, [*read_finetunes(model), finetune])


def _append(model: ModelProto, key: str, entries: list[dict[str, Any]]) -> None:
    text = json.dumps(entries, ensure_ascii=False, allow_nan=False, sort_keys=True)
    _set(model, VERSION_KEY, __version__)
    _set(model, key, text)


def _set(model: ModelProto, key: str, value: str) -> None:
    for item in model.metadata_props:
        if item.key == key:
            item.value = value
            return
    model.metadata_props.add(key=key, value=value)
