"""Where a model goes that a command makes, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx_compnet.errors import CompnetError, OutputExistsError, UsageError
from onnx_compnet_cli.options import check_folder, same_file


def rejected_path(output: Path) -> Path:
    """Where a model goes that did not pass."""
    return Path(f"{output}.rejected.onnx")


def checked_output(
    name: str | None, model: str, used: Sequence[str | None], *, force: bool, more: str = ""
) -> Path:
    """Return the path ``name`` (of -o), refused where it can't be written or would replace ``model`` or ``used``.

    Raises UsageError, OutputExistsError, ResourceError.
    """
    if not name:
        raise UsageError(f"say where the new model goes: -o FILE.onnx {more}".rstrip())
    output = Path(name)
    check_folder(output, "-o")
    if same_file(output, Path(model)):
        raise OutputExistsError(
            f"-o {output} is the model itself, which is never overwritten; name another file"
        )
    if output.is_dir():
        raise OutputExistsError(f"-o {output} is a folder; name a file in it")
    if output.exists() and not output.is_file():
        raise OutputExistsError(f"-o {output} is a device or a pipe, which no model can replace; name a file")
    if output.exists() and not force:
        raise OutputExistsError(f"-o {output} exists; name another file or add --force")
    rejected = rejected_path(output)
    check_folder(rejected, "a rejected model")
    for each in (model, *used):
        if each is not None and (same_file(rejected, Path(each)) or same_file(output, Path(each))):
            raise OutputExistsError(f"-o {output} (or {rejected}) would replace {each}; name another file")
    if rejected.is_dir() or (rejected.exists() and not force and not _was_made_here(rejected)):
        raise OutputExistsError(
            f"{rejected}, where a rejected model goes, exists; name another -o or add --force"
        )
    return output


def _was_made_here(path: Path) -> bool:
    """Whether the file is an earlier result, which may be replaced by another rejected one."""
    from onnx_compnet.graph import model_io, provenance

    try:
        model = model_io.load(path)
        return bool(provenance.read(model) or provenance.read_finetunes(model))
    except CompnetError:
        return False
