"""The stages of a run: how long each took, and what is said when memory ends in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_compnet.errors import ResourceError


@contextmanager
def out_of_memory_said() -> Iterator[None]:
    """torch's CPU allocator raises a bare RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise ResourceError("out of memory: lower --candidates, --batch-size or --kernel") from error


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
