"""The module paths that exporters leave in node names and metadata."""

from __future__ import annotations

import ast
import re

from onnx import NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"


def scope(node: NodeProto) -> str:
    """The dotted path of the module that a node comes from ("layer1.0.conv1"), or "".

    TorchScript's exporter writes it into the name ("/layer1/layer1.0/conv1/Conv"), dynamo's into metadata.
    """
    for item in node.metadata_props:
        if item.key == _SCOPES:
            return _from_scopes(item.value)
    for item in node.metadata_props:
        if item.key == "namespace":
            return _from_namespace(item.value)
    return _from_name(node.name)


def enclosing(path: str) -> list[str]:
    """A path and those around it: a.b.c, a.b, a."""
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def last_component(name: str) -> str:
    """What stands behind the last "/" or "."."""
    return re.split(r"[/.]", name)[-1]


def _from_scopes(text: str) -> str:
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ""
    return str(scopes[-2])  # the last entry is the operation itself


def _from_namespace(text: str) -> str:
    parts = [part.split(":", 1)[0].strip() for part in text.split("/")]
    return parts[-2] if len(parts) > 1 else ""


def _from_name(name: str) -> str:
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for part in name.split("/")[1:-1]:
        if path and part.startswith(path[-1] + "."):  # "layer1", "layer1.0": the second spells out the first
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
