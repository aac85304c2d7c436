"""The passes of sessions, in the one thread that uses the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, TypeVar

from engines.device.event_timer import Lap
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.video.stream import VideoStream
from engines.video.stream_engine import StreamEngine
from serving.pipeline.restyling import restyle
from serving.pipeline.stages import in_thread
from serving.pipeline.work_watch import WorkWatch
from serving.worker.blocks.delivery import Pass
from serving.worker.capacity.capacity import Capacity
from serving.worker.pictures.session_input import EncodedInput
from serving.worker.state.active_session import ActiveSession, BegunBlock

T = TypeVar("T")


class Begun(NamedTuple):
    """A session's next block, and the input that it is made from, if it is."""

    session: ActiveSession
    block: BegunBlock
    made_from: EncodedInput | None = None


class Out(NamedTuple):
    """What has come out of a session's passes."""

    blocks: Sequence[Block]
    made_by: Pass


class Passes:
    """Runs them, and has `watch` see how long they take. What goes wrong is raised as it is."""

    def __init__(self, engine: StreamEngine, executor: Executor, capacity: Capacity, watch: WorkWatch) -> None:
        self._engine = engine
        self._executor = executor
        self._capacity = capacity
        self._watch = watch

    @property
    def batch(self) -> int:
        """Streams that go through the network together, at most."""
        return self._engine.text.batch

    @property
    def are_queued(self) -> bool:
        """Whether they are only begun when a call returns; on a CPU they are done."""
        return self._engine.device.type == "cuda"

    @property
    def are_running(self) -> bool:
        """Whether the engine is at work for a session."""
        return self._watch.is_running

    async def generate(self, begun: Sequence[Begun]) -> list[Out]:
        """A block of each session, all of one kind, or what else comes out."""
        usual = sum(self._usual(one.session) for one in begun)
        return await self._run(usual, partial(self._generated, begun))

    async def flush(self, session: ActiveSession) -> Out:
        """The blocks that are on their way in a stream batch."""
        return await self._run(len(session.on_way) * self._usual(session), partial(self._flushed, session))

    async def write_context(self, session: ActiveSession) -> Lap:
        """The clean pass of a session's last block."""
        return await self._run(self._usual(session), partial(self._context_written, session))

    async def _run(self, usual_s: float, work: Callable[[], T]) -> T:
        with self._watch.running(usual_s):
            return await in_thread(self._executor, work)

    def _usual(self, session: ActiveSession) -> float:
        return self._capacity.denoising.expect(session.cost_config, asyncio.get_running_loop().time())

    # In the executor

    def _generated(self, begun: Sequence[Begun]) -> list[Out]:
        """Prompts, passes, and what is new for the standbys."""
        for session, block, _ in begun:
            self._prepare(session, block)
        submitted = time.monotonic()
        lap = Lap(self._engine.device)
        blocks = self._blocks(begun)
        lap.stop()
        made = []
        for (session, _, made_from), out in zip(begun, blocks, strict=True):
            pictures = None if made_from is None else made_from.pictures
            made_by = Pass(session.changes(out), lap, submitted, len(begun), pictures)
            made.append(Out([] if out is None else [out], made_by))
        return made

    def _prepare(self, session: ActiveSession, block: BegunBlock) -> None:
        """Put in force what comes with a block."""
        stream, step = session.stream, block.plan.step
        self._engine.use_loop(stream, session.loop)
        if step is None:
            return
        prompt = session.track.take(step)
        if step.restyling is not None and isinstance(stream, VideoStream):
            restyle(self._engine.video, stream, step.restyling)
        if stream.prompt is None or stream.prompt.text != prompt.text:
            self._engine.set_prompt(stream, prompt)

    def _blocks(self, begun: Sequence[Begun]) -> Sequence[Block | None]:
        inputs = [one.made_from.block for one in begun if one.made_from is not None]
        streams = [one.session.stream for one in begun]
        if not inputs:
            return self._engine.text.generate([stream for stream in streams if isinstance(stream, Stream)])
        return self._engine.video.generate([s for s in streams if isinstance(s, VideoStream)], inputs)

    def _flushed(self, session: ActiveSession) -> Out:
        lap, submitted = Lap(self._engine.device), time.monotonic()
        blocks = self._engine.flush(session.stream)
        lap.stop()
        changes = session.changes(blocks[-1] if blocks else None)
        return Out(blocks, Pass(changes, lap, submitted, max(1, len(blocks))))

    def _context_written(self, session: ActiveSession) -> Lap:
        lap = Lap(self._engine.device)
        if isinstance(session.stream, Stream):
            self._engine.text.write_context([session.stream])
        lap.stop()
        return lap
