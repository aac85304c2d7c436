"""A stand-in for CUDA graphs: what the engine does around a capture, without a GPU."""

from __future__ import annotations

from collections.abc import Callable


class Again:
    """Stands for a captured graph: does the same on the same memory."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.replay = run


class Recordings:
    """A recorder that runs once to warm up, as on a GPU, and counts what it recorded."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, run: Callable[[], None]) -> Again:
        """Run, and return what runs again."""
        self.made += 1
        run()
        return Again(run)
