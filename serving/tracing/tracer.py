"""What was done for each block, and when: a span for the block, and one below it for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from typing_extensions import override

Attributes = Mapping[str, str | int | float | bool]


class BlockSpan(Protocol):
    """The span of a block, a trace of its own; it lasts until `end`."""

    @property
    def traceparent(self) -> str | None:
        """How its stages name it, in any process: as W3C has it; None for one that is not traced."""

    def end(self, error: str | None = None) -> None:
        """The block has been sent, or there will be none because of an `error`."""


class Tracer(Protocol):
    """Takes the spans of one process. Times are those of its `time.monotonic()`, in seconds."""

    def block(self, attributes: Attributes) -> BlockSpan:
        """A block is begun now."""

    def stage(
        self, parent: str | None, name: str, began: float, ended: float, attributes: Attributes | None = None
    ) -> None:
        """A stage has worked for the block that `parent` names; nothing is told where that is None."""


class _UntracedBlock(BlockSpan):
    @property
    @override
    def traceparent(self) -> None:
        return None

    @override
    def end(self, error: str | None = None) -> None:
        pass


class _Untraced(Tracer):
    @override
    def block(self, attributes: Attributes) -> BlockSpan:
        return UNTRACED_BLOCK

    @override
    def stage(
        self, parent: str | None, name: str, began: float, ended: float, attributes: Attributes | None = None
    ) -> None:
        pass


UNTRACED_BLOCK = _UntracedBlock()
UNTRACED = _Untraced()
"""Where no exporter is set."""
