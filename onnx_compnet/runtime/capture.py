"""Running batches through a session: (batch, named tensors), one at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from onnx_compnet.errors import DataError, ResourceError
from onnx_compnet.runtime.batches import Batch, Batches
from onnx_compnet.runtime.session import Session


def capture(
    session: Session,
    batches: Batches,
    progress: bool | str | Callable[[int], object] | None = None,
    *,
    finite: bool = True,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each batch and the session's outputs for it (see Session.run), in order; nothing is kept.

    ``progress``: True or a text for a bar on stderr (none unless that is a terminal), or a function that is
    told the samples of each batch. With ``finite``, raises DataError when a float output has NaN or
    infinite values; what Session.run and the batches raise passes through, torch's out-of-memory as
    ResourceError.
    """
    bar: Any = None
    if progress and not callable(progress) and sys.stderr.isatty():
        from tqdm import tqdm

        text = progress if isinstance(progress, str) else None
        bar = tqdm(total=batches.length_hint, desc=text, unit="sample", file=sys.stderr, leave=False)
        progress = bar.update
    try:
        for batch in batches:
            try:
                outputs = session.run(batch.feeds)
                if finite:
                    require_finite(outputs, batch)
            except torch.cuda.OutOfMemoryError as error:
                raise ResourceError(f"out of memory on {session.device.name}: lower --batch-size") from error
            yield batch, outputs
            del outputs  # before the next run asks for memory
            if callable(progress):
                progress(batch.size)
    finally:
        if bar is not None:
            bar.close()


def require_finite(outputs: dict[str, Any], batch: Batch) -> None:
    """Raise DataError that names the first float tensor with NaN or infinite values, and the sample."""
    for name, value in outputs.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.numel() == 0:
            continue
        low, high = torch.aminmax(value)  # NaN passes through both: two numbers instead of a mask
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            where = ""
            if value.ndim and value.shape[0] == batch.size:
                rows = (~torch.isfinite(value)).reshape(batch.size, -1).any(dim=1)
                where = f", first for sample {int(batch.indices[int(rows.nonzero()[0, 0])])}"
            raise DataError(
                f"the model's tensor {name!r} has NaN or infinite values{where}: it overflows on this data; "
                "check its scaling"
            )
