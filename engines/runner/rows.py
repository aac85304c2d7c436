"""What a pass is told of each stream in it: one row of integers, and the levels of its noise.

Where slots are chosen on the device, a row's frames are staged first, and its placement's slots are those of the
staging row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engines.cache.kv_cache import StreamKV
from engines.cache.prompt_kv import PromptKV
from engines.cache.rolling_window import LaneWrite, RollingWindow
from engines.cache.window import NOT_WRITTEN, Placement
from engines.sampling.flow_schedule import Level


class TokenGrid(NamedTuple):
    """Tokens of a latent frame, along its height and along its width."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Row:
    """One row of a batch: a run of the KV pool, slots and positions in it, a prompt, and noise levels.

    With a `write` the slots are chosen on the device.
    """

    kv: StreamKV
    prompt: PromptKV
    placement: Placement
    grid: TokenGrid
    level: Level
    write: LaneWrite | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """Tokens of the pool from which, and up to which, the row attends."""
        tokens, start = self.kv.frame_tokens, self.kv.window.start
        return start + self.placement.first * tokens, start + self.placement.used * tokens

    @property
    def max_tokens(self) -> int:
        """That the row's window can hold."""
        return self.kv.size.frames * self.kv.frame_tokens

    def slots(self, layer: int) -> tuple[int, ...]:
        """Of the row's frames in a layer."""
        slots = self.placement.slots
        return slots[0] if len(slots) == 1 else slots[layer]

    def raw_slots(self, layer: int) -> tuple[int, ...]:
        """Where the raw keys of those frames are kept, if they are."""
        kept = self.kv.size.raw_frames
        return tuple(slot if slot < kept else NOT_WRITTEN for slot in self.slots(layer))


class Shape(NamedTuple):
    """What rows have in common that can be one batch, and what a recorded graph is launched with."""

    rows: int
    frames: int
    grid: TokenGrid
    max_tokens: int
    layered: bool
    """Whether slots differ by layer."""
    raw: bool
    """Whether raw keys are kept."""
    rolling: RollingWindow | None
    """The rule by which slots are chosen on the device; None where they are known."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Shape:
        """That of a batch."""
        return cls(
            rows=len(rows),
            frames=rows[0].placement.frames,
            grid=rows[0].grid,
            max_tokens=max(row.max_tokens for row in rows),
            layered=any(len(row.placement.slots) > 1 for row in rows),
            raw=any(row.kv.raw is not None for row in rows),
            rolling=_rolling(rows),
        )


def _rolling(rows: Sequence[Row]) -> RollingWindow | None:
    """The rule that all rows have in common."""
    rules = {row.kv.size if row.write is not None else None for row in rows}
    assert len(rules) == 1, "rows of one batch choose their slots by one rule"
    (rule,) = rules
    assert rule is None or isinstance(rule, RollingWindow)
    return rule
