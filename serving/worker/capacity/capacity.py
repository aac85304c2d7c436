"""What the sessions of a replica need of its time, and who is let in beside them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import NamedTuple

from engines.config.geometry import PATCH, SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.config.networks import TransformerConfig
from engines.config.video_stream import LOOPS, AnyStreamConfig, Loop, LoopSetting, VideoStreamConfig, as_run
from engines.config.work import decoding_work, denoising_work
from serving.errors import SlotsFull
from serving.session.pacing import Pace
from serving.worker.capacity.admission import Demand, shortage
from serving.worker.capacity.loop_choice import needs_batch
from serving.worker.capacity.stage_costs import StageCosts

TOKEN_PIXELS = SPATIAL_FACTOR * PATCH
"""Heights and widths are multiples of it."""


class Load(NamedTuple):
    """A session as a device has to do with it."""

    stream: AnyStreamConfig
    pace: Pace

    def in_loop(self, loop: Loop) -> Load:
        """The same where videos are made in a loop."""
        return self._replace(stream=as_run(self.stream, loop))


Demands = Mapping[Loop, Sequence[Demand]]
"""What sessions need in each of the loops that their videos may be made in."""


class Capacity:
    """Knows what blocks cost on one replica, and refuses whom it has no time for.

    `together` says that blocks are decoded by what denoises them, so that one has to wait for the other;
    `encodes_too`, that the pictures of those that restyle a video are encoded by it. `loop` is how the blocks of
    those are made. Where sessions may only have pictures of certain `sizes`, only those are proposed. Times are of
    one clock.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        own: AnyStreamConfig,
        *,
        together: bool = False,
        encodes_too: bool = False,
        sizes: Sequence[tuple[int, int]] = (),
        loop: LoopSetting = "auto",
    ) -> None:
        self.denoising = StageCosts(own, lambda stream: denoising_work(transformer, stream))
        self.delivering = StageCosts(own, decoding_work)
        self.encoding = StageCosts(own, decoding_work)
        self._own = own
        self._together = together
        self._encodes_too = encodes_too
        self._loop = loop
        self._sizes = sizes

    def require_time(self, newcomer: Load, present: Iterable[Load], now: float) -> None:
        """Raise SlotsFull, with the reason and what would fit, unless all can be served in time."""
        there = self._demands(present, now)
        why = self._shortage(newcomer, there, now)
        if why is None:
            return
        fitting = [_words(load) for load in self._alternatives(newcomer, there, now)]
        remedy = f"{' or '.join(fitting)} would fit" if fitting else "nothing fits until one of them ends"
        raise SlotsFull(f"this replica has no time for {_words(newcomer)}: {why}; {remedy}")

    def more(self, present: Iterable[Load], most: int, now: float) -> int:
        """How many sessions of the model's own size and pace fit beside those present, up to `most`."""
        one = Load(self._own, Pace())
        there, more = self._demands(present, now), self._demands([one], now)

        def is_late(count: int) -> bool:
            crowd = {loop: [*there[loop], *repeat(more[loop][0], count)] for loop in there}
            return self._shortage(one, crowd, now) is not None

        return bisect_left(range(most), True, key=is_late)

    def demand(self, load: Load, now: float) -> Demand:
        """What a session needs."""
        denoise, deliver = self._generate_s(load.stream, now), self.delivering.expect(load.stream, now)
        if self._together:
            denoise, deliver = denoise + deliver, 0.0
        if load.pace.fps == 0:
            return Demand(denoise, deliver)
        period = TEMPORAL_FACTOR * load.stream.blocks.later / load.pace.fps
        return Demand(denoise, deliver, period, load.pace.ahead * period)

    def busy(self, loads: Iterable[Load], now: float) -> float:
        """What part of the device's time paced sessions take to generate."""
        return _busy(self.demand(load, now) for load in loads)

    def block_s(self, stream: AnyStreamConfig, now: float) -> float:
        """How long the device is taken by a block; where it is decoded meanwhile, by what takes longer."""
        denoise, deliver = self._generate_s(stream, now), self.delivering.expect(stream, now)
        return denoise + deliver if self._together else max(denoise, deliver)

    def opening_s(self, stream: VideoStreamConfig, now: float) -> float:
        """The same of a block that opens a video: more frames go through its passes, one after the other."""
        longer = stream.first_block_frames / stream.block_frames
        return longer * self.block_s(as_run(stream, "plain"), now)

    def _generate_s(self, stream: AnyStreamConfig, now: float) -> float:
        """How long the device is taken by a block's passes, and by its pictures where it encodes them."""
        encodes = self._encodes_too and isinstance(stream, VideoStreamConfig)
        return self.denoising.expect(stream, now) + (self.encoding.expect(stream, now) if encodes else 0.0)

    def _demands(self, loads: Iterable[Load], now: float) -> Demands:
        """Of sessions in every loop that their videos may be made in."""
        present, loops = tuple(loads), LOOPS if self._loop == "auto" else (self._loop,)
        return {loop: [self.demand(load.in_loop(loop), now) for load in present] for loop in loops}

    def _shortage(self, newcomer: Load, there: Demands, now: float) -> str | None:
        """Why there is no time for one more in the loop that videos would be in; None where there is."""
        ones = {loop: self.demand(newcomer.in_loop(loop), now) for loop in there}
        loop = self._loop
        if loop == "auto":
            plain, batch = (_busy([*there[loop], ones[loop]]) for loop in LOOPS)
            loop = "batch" if needs_batch(plain, batch) else "plain"
        return shortage(ones[loop], there[loop])

    def _alternatives(self, asked: Load, there: Demands, now: float) -> Iterator[Load]:
        """The quickest pace at which the same picture fits, and the largest picture that fits at the same pace.

        What restyles a video has the pace of its pictures.
        """
        slowest = asked.pace.fps if isinstance(asked.stream, VideoStreamConfig) else 1
        paces = (replace(asked.pace, fps=fps) for fps in range(asked.pace.fps - 1, slowest - 1, -1))
        slower = (asked._replace(pace=pace) for pace in paces)
        smaller = (asked._replace(stream=stream) for stream in self._smaller(asked.stream))
        for loads in (slower, smaller):
            fits = (load for load in loads if self._shortage(load, there, now) is None)
            if (first := next(fits, None)) is not None:
                yield first

    def _smaller(self, stream: AnyStreamConfig) -> Iterator[AnyStreamConfig]:
        """The same stream with smaller pictures, the largest first."""
        rows, columns = stream.rows, stream.columns
        scaled = [(TOKEN_PIXELS * less, TOKEN_PIXELS * max(1, columns * less // rows)) for less in range(1, rows)]
        for height, width in sorted(self._sizes or scaled, key=lambda size: size[0] * size[1], reverse=True):
            if height * width < stream.height * stream.width:
                yield replace(stream, height=height, width=width)


def _busy(demands: Iterable[Demand]) -> float:
    return sum(demand.denoise_s / demand.period_s for demand in demands if demand.paced)


def _words(load: Load) -> str:
    pace = f"{load.pace.fps} frames/s" if load.pace.fps else "an unpaced session"
    return f"{pace} of {load.stream.height}x{load.stream.width}"
