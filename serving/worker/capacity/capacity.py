"""What the sessions of a replica need of its time, and who is let in beside them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from engines.config.geometry import PATCH, SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.config.networks import TransformerConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig, as_run
from engines.config.work import decoding_work, denoising_work
from serving.errors import SlotsFull
from serving.session.pacing import Pace
from serving.worker.capacity.admission import Demand, shortage
from serving.worker.capacity.stage_costs import StageCosts

TOKEN_PIXELS = SPATIAL_FACTOR * PATCH
"""Heights and widths are multiples of it."""


class Load(NamedTuple):
    """A session as a device has to do with it."""

    stream: AnyStreamConfig
    pace: Pace


class Capacity:
    """Knows what blocks cost on one replica, and refuses whom it has no time for.

    `together` says that blocks are decoded by what denoises them, so that one has to wait for the other. Where
    sessions may only have pictures of certain `sizes`, only those are proposed. Times are of one clock.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        own: AnyStreamConfig,
        *,
        together: bool = False,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.denoising = StageCosts(own, lambda stream: denoising_work(transformer, stream))
        self.delivering = StageCosts(own, decoding_work)
        self._own = own
        self._together = together
        self._sizes = sizes

    def require_time(self, newcomer: Load, present: Iterable[Load], now: float) -> None:
        """Raise SlotsFull, with the reason and what would fit, unless all can be served in time."""
        there = [self.demand(load, now) for load in present]
        why = shortage(self.demand(newcomer, now), there)
        if why is None:
            return
        fitting = [_words(load) for load in self._alternatives(newcomer, there, now)]
        remedy = f"{' or '.join(fitting)} would fit" if fitting else "nothing fits until one of them ends"
        raise SlotsFull(f"this replica has no time for {_words(newcomer)}: {why}; {remedy}")

    def more(self, present: Iterable[Load], most: int, now: float) -> int:
        """How many sessions of the model's own size and pace fit beside those present, up to `most`."""
        there, one = [self.demand(load, now) for load in present], self.demand(Load(self._own, Pace()), now)

        def is_late(count: int) -> bool:
            return shortage(one, [*there, *[one] * count]) is not None

        return bisect_left(range(most), True, key=is_late)

    def demand(self, load: Load, now: float) -> Demand:
        """What a session needs."""
        denoise, deliver = self.denoising.expect(load.stream, now), self.delivering.expect(load.stream, now)
        if self._together:
            denoise, deliver = denoise + deliver, 0.0
        if load.pace.fps == 0:
            return Demand(denoise, deliver)
        period = TEMPORAL_FACTOR * load.stream.blocks.later / load.pace.fps
        return Demand(denoise, deliver, period, load.pace.ahead * period)

    def busy(self, loads: Iterable[Load], now: float) -> float:
        """What part of the device's time paced sessions take to generate."""
        demands = [self.demand(load, now) for load in loads]
        return sum(demand.denoise_s / demand.period_s for demand in demands if demand.paced)

    def block_s(self, stream: AnyStreamConfig, now: float) -> float:
        """How long the device is taken by a block; where it is decoded meanwhile, by what takes longer."""
        denoise, deliver = self.denoising.expect(stream, now), self.delivering.expect(stream, now)
        return denoise + deliver if self._together else max(denoise, deliver)

    def opening_s(self, stream: VideoStreamConfig, now: float) -> float:
        """The same of a block that opens a video: more frames go through its passes, one after the other."""
        longer = stream.first_block_frames / stream.block_frames
        return longer * self.block_s(as_run(stream, "plain"), now)

    def _alternatives(self, asked: Load, there: Sequence[Demand], now: float) -> Iterator[Load]:
        """The quickest pace at which the same picture fits, and the largest picture that fits at the same pace."""
        paces = (replace(asked.pace, fps=fps) for fps in range(asked.pace.fps - 1, 0, -1))
        slower = (asked._replace(pace=pace) for pace in paces)
        smaller = (asked._replace(stream=stream) for stream in self._smaller(asked.stream))
        for loads in (slower, smaller):
            fits = (load for load in loads if shortage(self.demand(load, now), there) is None)
            if (first := next(fits, None)) is not None:
                yield first

    def _smaller(self, stream: AnyStreamConfig) -> Iterator[AnyStreamConfig]:
        """The same stream with smaller pictures, the largest first."""
        rows, columns = stream.rows, stream.columns
        scaled = [(TOKEN_PIXELS * less, TOKEN_PIXELS * max(1, columns * less // rows)) for less in range(1, rows)]
        for height, width in sorted(self._sizes or scaled, key=lambda size: size[0] * size[1], reverse=True):
            if height * width < stream.height * stream.width:
                yield replace(stream, height=height, width=width)


def _words(load: Load) -> str:
    pace = f"{load.pace.fps} frames/s" if load.pace.fps else "an unpaced session"
    return f"{pace} of {load.stream.height}x{load.stream.width}"
