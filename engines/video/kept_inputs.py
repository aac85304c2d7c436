"""The inputs of blocks that a video stream keeps, to be played again where its windows have been lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from engines.config.video_stream import VideoStreamConfig
from engines.text.prompt import Prompt
from engines.video.input import BlockInput


class KeptInput(NamedTuple):
    """What a block began with.

    Args:
        input: of the block.
        position: of its first frame.
        prompt: in force when it began.
        renews: whether the sink was renewed right before.

    """

    input: BlockInput
    position: int
    prompt: Prompt
    renews: bool = False

    @property
    def number(self) -> int:
        """Of the block."""
        return self.input.number


class KeptInputs:
    """Those of the blocks that filled the slots that age does not evict, of those that renewed the sink, the last.

    Args:
        config: of the stream.
        inputs: from old to new, as iterating over another one gives them.
        opening: the block with which the stream opened.

    """

    def __init__(self, config: VideoStreamConfig, inputs: Iterable[KeptInput] = (), opening: int = 0) -> None:
        later = config.block_frames
        # The first entry of a window's queue is behind the second block's place: see `RollingWindow.place`.
        fixed = max(config.sink_frames, 2 * config.first_block_frames - later)
        self._config = config
        self._first = opening
        self._opening_blocks = 1 - (config.first_block_frames - fixed) // later
        self._sink_blocks = -(-config.sink_frames // later)
        # Those on their way in a stream batch when a sink is renewed are the first in the later steps' sinks.
        self._before = len(config.steps) - 1
        self._opening: list[KeptInput] = []
        self._renewed: list[KeptInput] = []
        self._renewed_end = 0
        self._last: deque[KeptInput] = deque(maxlen=config.window_frames + len(config.steps))
        for kept in inputs:
            self.append(kept)

    def __iter__(self) -> Iterator[KeptInput]:
        """Each once, from old to new."""
        every = {kept.number: kept for kept in (*self._opening, *self._renewed, *self._last)}
        return iter([every[number] for number in sorted(every)])

    @property
    def is_gapless(self) -> bool:
        """Whether no block's input has gone since the opening."""
        return not self._last or self._last[0].number <= self._opened

    def can_follow(self, entered: int) -> bool:
        """Whether these are what a stream keeps once so many blocks have begun."""
        last = [kept.number for kept in self._last]
        opening = [kept.number for kept in self._opening]
        return (
            last == list(range(entered - len(last), entered))
            and opening == list(range(self._first, min(entered, self._first + self._opening_blocks)))
            and len(last) == min(entered - self._first, self._last.maxlen or 0)
        )

    def append(self, kept: KeptInput) -> None:
        """One more block has begun; what is not needed any more goes."""
        if len(self._opening) < self._opening_blocks:
            self._opening.append(kept)
        if kept.renews:
            self._renewed = [*list(self._last)[max(len(self._last) - self._before, 0) :], kept]
            self._renewed_end = kept.number + self._sink_blocks
        elif kept.number < self._renewed_end:
            self._renewed.append(kept)
        self._last.append(kept)

    def copy(self) -> KeptInputs:
        """The same inputs, to go on by themselves."""
        return KeptInputs(self._config, self, self._first)

    def to_play(self) -> list[KeptInput]:
        """The inputs in the order in which they fill empty windows with what the stream's own hold, nearly.

        A window grows only by blocks that follow each other. Where some are missing the first of the last ones
        stand in for them: they go through twice, and only the second time at their own positions.
        """
        if self.is_gapless:
            return list(self)
        config, last = self._config, list(self._last)
        filled = config.blocks.latent_frames(len(self._opening))
        places = range(filled, config.window_frames, config.block_frames)
        growing = [kept._replace(position=at, renews=False) for at, kept in zip(places, last, strict=False)]
        renewed = [kept for kept in self._renewed if self._opened <= kept.number < last[0].number]
        return [*self._opening, *growing, *renewed, *last]

    @property
    def _opened(self) -> int:
        """The first block behind the opening's."""
        return self._first + len(self._opening)
