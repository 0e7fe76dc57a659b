"""The stages of a run: how long each took, and what is said when memory ends in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_compnet.errors import ResourceError


@contextmanager
def out_of_memory_said(advice: str) -> Iterator[None]:
    """ResourceError with the advice; torch says it by bare RuntimeErrors."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise ResourceError(f"out of memory: {advice}") from error


class Stopwatch:
    """Seconds by stage, in order; a stage that comes again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what happens within, as part of ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
