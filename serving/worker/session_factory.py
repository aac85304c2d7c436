"""How a session comes to be on a replica: new, out of what is left of it elsewhere, or out of another one here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import TypeVar

from engines.config.video_stream import AnyStreamConfig
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.video.input import InputEncoder
from engines.video.input_snapshot import restore_input
from engines.video.snapshot import VideoSnapshot
from engines.video.stream import VideoStream
from engines.video.stream_engine import AnySnapshot, AnyStream, StreamEngine, read_snapshot
from serving.background_tasks import wait_without_cancelling
from serving.errors import FrameOutOfRange, InvalidRequest, ReplicaLost
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.engine_errors import refused
from serving.pipeline.prompts import PromptTrack
from serving.pipeline.stages import DecoderStage, TextEncoderStage, in_thread
from serving.protocol.convert import lora_marks
from serving.replication.messages import ResumeState, SessionSpec
from serving.session.applied_log import AppliedLog
from serving.session.state_machine import BlockPlan, Session
from serving.session.transitions import last_settled, steps_of, steps_since
from serving.session.types import Applied
from serving.timeline.cue import Cue
from serving.timeline.schedule import Step
from serving.tracing.tracer import UNTRACED_BLOCK
from serving.worker.blocks.delivery import decoder_start
from serving.worker.capacity.replay_budget import ReplayBudget, RestoreBudget
from serving.worker.pictures.session_input import new_input, require_restylable
from serving.worker.state.active_session import ActiveSession, BegunBlock

T = TypeVar("T")

SPARE_S = 2.0
"""How long a client's snapshot waits for time that no paced session needs, before it is rebuilt all the same."""


class SessionFactory:
    """Opens sessions on one generator; `executor` has the one thread that may use it.

    `spare_time` waits until a block can be made beside those of the sessions that are there.
    `encoder` is that of the pictures of sessions that restyle a video; None where there are none.

    A session whose opening fails leaves nothing behind. Every method raises SlotsFull where there is no room.
    """

    def __init__(
        self,
        engine: StreamEngine,
        text: TextEncoderStage,
        pictures: DecoderStage,
        executor: Executor,
        replica: str,
        spare_time: Callable[[AnyStreamConfig], Awaitable[None]],
        provenance: pb.Provenance | None = None,
        encoder: InputEncoder | None = None,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._text = text
        self._decoder = pictures
        self._executor = executor
        self._replica = replica
        self._spare_time = spare_time
        self._provenance = provenance or pb.Provenance()

    async def open(
        self,
        attempt: str,
        spec: SessionSpec,
        cues: Sequence[Cue],
        resume: ResumeState | None,
        seconds: float | None = None,
    ) -> ActiveSession:
        """A session with `cues` pending, new or from `resume` on.

        A client's snapshot, for which there are `seconds`, is rebuilt in the time that the paced sessions leave.

        Raises InvalidRequest for what cannot be, and LimitReached where its prompts alone would take longer than
        `seconds`.
        """
        if resume is not None:
            self._require_same_loras(resume)
        snapshot = await self._read(spec, resume)
        if snapshot is not None and seconds is not None:
            await self._spare(spec.stream, min(SPARE_S, seconds))
        async with self._taken(await self._stream(spec, resume, snapshot)) as stream:
            now = _now()
            logic = _logic(spec, resume, stream, now)
            require_restylable(spec, (*cues, *(pending.cue for pending in logic.pending)))
            for cue in cues:
                logic.schedule(cue.blend, cue.frame, cue.transition, "", now, cue.restyling)
            session = await self._session(attempt, spec, logic, stream, seconds)
            if resume is not None:
                session.audience.kept.extend(resume.chunks)
                session.recording = resume.recording
                applied = logic.applied.entries(0)
                session.input = new_input(spec, begun_blocks(stream), resume.pictures, applied)
                if session.input is not None:
                    session.input.lost(resume.lost_pictures)
                await self._restore_input(session, snapshot)
                session.on_way.extend(_on_way(stream, resume, now))
                session.resumed = _resumed(resume, logic)
            if not logic.suspended:
                await self._begin_decoding(session, stream.blocks)
        return session

    async def fork_here(self, session: ActiveSession, attempt: str, spec: SessionSpec) -> ActiveSession:
        """A second session like `session`, which rests meanwhile; it is not suspended, though that may be."""
        logic = session.logic.copy(begun_blocks(session.stream), _now())
        logic.forget_clients()
        async with self._taken(await self._opened(partial(self._forked, session.stream))) as stream:
            prompts = dict(session.prompts)
            track = session.track.copy(prompts)
            fork = ActiveSession(spec, attempt, logic, stream, track, prompts, self._replica, self._provenance)
            fork.audience.kept.extend(session.audience.kept)
            fork.input = None if session.input is None else session.input.copy()
            fork.loop = session.loop
            await self._begin_decoding(fork, stream.blocks)
        return fork

    async def fork_back(
        self, session: ActiveSession, attempt: str, spec: SessionSpec, frame: int, seconds: float
    ) -> ActiveSession:
        """A session whose past is generated again, up to the block that contains `frame`.

        Raises LimitReached where that takes longer than `seconds`.
        """
        if session.input is not None:
            raise InvalidRequest("the pictures of the past are not kept: fork the session at its present block")
        blocks = session.config.blocks
        if not 0 <= frame < session.logic.earliest_frame:
            raise FrameOutOfRange(
                f"frame {frame} is not in the past; the last one is {session.logic.earliest_frame - 1}"
            )
        block = blocks.block_at(frame + 1) - 1
        past = session.logic.copy(block, _now())
        past.forget_clients()
        chunks = [chunk for chunk in session.audience.kept if chunk.block < block]
        restored = set(session.stream.rebuilt_before)
        budget = ReplayBudget(seconds, frame, block, blocks, _now())
        async with self._taken(await self._new(spec)) as stream:
            assert isinstance(stream, Stream)
            await self._replay(stream, past, restored, budget)
            fork = await self._session(attempt, spec, past.copy(block, _now()), stream)
            fork.audience.kept.extend(chunks)
            await self._begin_decoding(fork, block)
        return fork

    def _require_same_loras(self, resume: ResumeState) -> None:
        """The stream's snapshot says it, too; but a session that has not begun has none."""
        here = lora_marks(self._provenance)
        if resume.loras is not None and resume.loras != here:
            there, merged = (", ".join(marks) or "none" for marks in (resume.loras, here))
            raise InvalidRequest(
                f"the snapshot is of a server with the LoRAs {there}, here it is {merged}; "
                "restore it where the same ones are merged"
            )

    # Streams

    @asynccontextmanager
    async def _taken(self, stream: AnyStream) -> AsyncIterator[AnyStream]:
        """A stream that is closed if what is made of it fails."""
        try:
            yield stream
        except BaseException:
            await self._run(partial(self._engine.close, stream))
            raise

    async def _read(self, spec: SessionSpec, resume: ResumeState | None) -> AnySnapshot | None:
        if resume is None or resume.snapshot is None:
            return None
        with refused():
            snapshot = await asyncio.to_thread(read_snapshot, resume.snapshot)
        if snapshot.kind != ("exact" if resume.exact else "light") or snapshot.config != spec.stream:
            raise InvalidRequest("the snapshot's stream does not go with its session: it is set up otherwise")
        return snapshot

    async def _restore_input(self, session: ActiveSession, snapshot: AnySnapshot | None) -> None:
        """Give its encoder's state back to a session that comes exactly as it was."""
        if isinstance(snapshot, VideoSnapshot) and snapshot.kind == "exact":
            assert self._encoder is not None
            assert session.input is not None
            restored = partial(restore_input, self._encoder, snapshot.config, snapshot.parts)
            session.input.state = await self._run(restored)

    async def _stream(
        self, spec: SessionSpec, resume: ResumeState | None, snapshot: AnySnapshot | None
    ) -> AnyStream:
        """New, or out of a snapshot; suspended as the session is."""
        suspended = resume is not None and resume.record.suspended
        if snapshot is None:
            make = self._engine.suspended if suspended else self._engine.open
            return await self._opened(partial(make, spec.stream))
        return await self._opened(partial(self._engine.restore, snapshot, suspended=suspended))

    def _forked(self, stream: AnyStream) -> AnyStream:
        if stream.is_suspended:
            return self._engine.restore(read_snapshot(self._engine.take_light(stream)))
        return self._engine.fork(stream)

    async def _new(self, spec: SessionSpec) -> AnyStream:
        return await self._opened(partial(self._engine.open, spec.stream))

    async def _opened(self, work: Callable[[], AnyStream]) -> AnyStream:
        """The stream that `work` opens; closed again where nobody waits for it any more."""
        opening = self._executor.submit(work)
        try:
            with refused():
                return await wait_without_cancelling(asyncio.wrap_future(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unwanted)
            raise

    def _close_unwanted(self, opening: Future[AnyStream]) -> None:
        if opening.exception() is None:
            self._executor.submit(self._engine.close, opening.result())

    async def _begin_decoding(self, session: ActiveSession, block: int) -> None:
        try:
            await self._decoder.open(session.decoder_key, decoder_start(session, block))
        except asyncio.CancelledError:
            await self._decoder.close(session.decoder_key)
            raise

    async def _replay(self, stream: Stream, logic: Session, restored: set[int], budget: ReplayBudget) -> None:
        """Generate the blocks of `logic` again, one at a time, in the time that the paced sessions leave.

        At the blocks in `restored` the stream had been rebuilt, which is repeated.
        """
        prompts: dict[str, Prompt] = {}
        track = PromptTrack(prompts)
        steps = steps_of(logic.applied, logic.next_block, logic.blocks)
        step = next(steps, None)
        for block in range(logic.next_block):
            # Where there is none, the budget says what would fit.
            await self._spare(stream.config, budget.left_s(_now()))
            budget.check(block, _now())
            prompt = None
            if step is not None and step.block == block:
                prompt, step = await self._take(track, prompts, step), next(steps, None)
            made = await self._run(partial(self._replay_block, stream, prompt, rebuilt=block in restored))
            if made.ready is not None:
                # Others would have to wait for all that is begun here, and a block is begun in no time.
                await asyncio.to_thread(made.ready.synchronize)

    async def _spare(self, stream: AnyStreamConfig, seconds: float) -> None:
        """Wait for the time of a block that makes no paced session late, at most so many `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._spare_time(stream)

    def _replay_block(self, stream: Stream, prompt: Prompt | None, *, rebuilt: bool) -> Block:
        if rebuilt:
            self._engine.text.rebuild(stream)
        if prompt is not None and (stream.prompt is None or stream.prompt.text != prompt.text):
            self._engine.text.set_prompt(stream, prompt)
        return self._engine.text.generate([stream])[0]

    # Prompts

    async def _session(
        self, attempt: str, spec: SessionSpec, logic: Session, stream: AnyStream, seconds: float | None = None
    ) -> ActiveSession:
        """A session whose prompts are in force as its log has them, from the last cue that came in whole."""
        prompts: dict[str, Prompt] = {}
        track = PromptTrack(prompts)
        # A client's snapshot may have a log of any length.
        entries, steps = await asyncio.to_thread(_unsettled, logic)
        budget = RestoreBudget(inf if seconds is None else seconds, steps, _now())
        for done, step in enumerate(steps_of(entries, logic.next_block, logic.blocks)):
            budget.check(done, _now())
            await self._take(track, prompts, step, stream.prompt)
        session = ActiveSession(spec, attempt, logic, stream, track, prompts, self._replica, self._provenance)
        session.input = new_input(spec)
        session.loop = stream.loop if isinstance(stream, VideoStream) else "plain"
        return session

    async def _take(
        self, track: PromptTrack, prompts: dict[str, Prompt], step: Step, in_force: Prompt | None = None
    ) -> Prompt:
        """The prompt of the next step; `prompts`, which the track reads, has no others' texts after it.

        The stream's own, that is `in_force`, does where the text encoder is lost.
        """
        texts = {text for text, _ in step.target.parts}
        for text in prompts.keys() - texts:
            del prompts[text]
        for text in texts - prompts.keys():
            prompts[text] = await self._encoded(text, in_force)
        return track.take(step)

    async def _encoded(self, text: str, in_force: Prompt | None) -> Prompt:
        try:
            return await self._text.encode(text)
        except ReplicaLost:
            if in_force is None or in_force.text != text:
                raise
            return Prompt(text, await self._run(in_force.rows.cpu))

    async def _run(self, work: Callable[[], T]) -> T:
        with refused():
            return await in_thread(self._executor, work)


def _resumed(resume: ResumeState, logic: Session) -> pb.Resumed | None:
    """None for a session out of a client's snapshot, which has not been elsewhere."""
    if not resume.reason:
        return None
    kind = pb.RESUME_KIND_EXACT if resume.exact else pb.RESUME_KIND_REBUILT
    return pb.Resumed(frame=logic.earliest_frame, reason=resume.reason, kind=kind)


def _logic(spec: SessionSpec, resume: ResumeState | None, stream: AnyStream, now: float) -> Session:
    """New, or as it was before the stream's next block."""
    if resume is None:
        return Session(spec.pace, spec.stream.blocks, now)
    record = resume.record
    begun = begun_blocks(stream)
    if begun > record.next_block:
        raise InvalidRequest(f"the snapshot's stream does not go with its session: {begun} blocks of it")
    log = AppliedLog.of(record.applied, resume.past)
    logic = Session.of(record, spec.stream.blocks, now, log).copy(begun, now)
    logic.delivered_frames = min(logic.delivered_frames, spec.stream.blocks.pixel_frames(stream.blocks))
    return logic


def _unsettled(logic: Session) -> tuple[Iterator[Applied], int]:
    """What has applied since a prompt came into force whole, and the steps of that."""
    settled = last_settled(logic.applied, logic.next_block)
    return logic.applied.entries(settled), steps_since(logic.applied, settled, logic.next_block)


def begun_blocks(stream: AnyStream) -> int:
    """How many blocks of a stream have begun, those on their way included."""
    return stream.entered if isinstance(stream, VideoStream) else stream.blocks


def _on_way(stream: AnyStream, resume: ResumeState, now: float) -> list[BegunBlock]:
    """The blocks that have begun elsewhere and not come out; which pictures they are of is known of the last."""
    numbers = range(stream.blocks, begun_blocks(stream))
    pictures = [block.ids for block in resume.pictures][-len(numbers) :] if numbers else []
    ids = [()] * (len(numbers) - len(pictures)) + pictures
    blocks = stream.config.blocks
    return [
        BegunBlock(
            BlockPlan(number, blocks.pixel_frames(number), blocks.pixel_frames(number + 1), None, (), None),
            UNTRACED_BLOCK, now, of, loop="batch",
        )
        for number, of in zip(numbers, ids, strict=True)
    ]  # fmt: skip


def _now() -> float:
    return asyncio.get_running_loop().time()
