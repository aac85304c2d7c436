"""The denoiser: a replica's sessions and the one generator that makes their blocks; the authority on both."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from engines.config import StreamConfig
from engines.errors import ConfigError, SlabsFull, SnapshotError
from engines.generator import Generator
from engines.mirror import MirrorSource
from engines.prompt import Prompt
from engines.snapshot import restore, take_light
from engines.stream import Stream
from engines.wan.tokenizer import clean_prompt
from serving.command_dispatch import obey
from serving.errors import FrameOutOfRange, InvalidRequest, ServingError, SessionNotFound, SlotsFull, WrongState
from serving.follower import Follower, Item, Role
from serving.live_session import LiveSession
from serving.metrics import Metrics
from serving.mirrored import MirrorItem, Opening
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.production import Production, place_before
from serving.prompt_track import PromptTrack
from serving.saved import Saved
from serving.session import Receipt, Session, SessionRecord
from serving.stages import PictureStage, TextStage, in_thread
from serving.timeline import Cue, Schedule, Timeline, block_at, schedule
from serving.wire import write_receipt

logger = logging.getLogger(__name__)

BEAT_S = 0.5
"""How often a stream without news says that its replica lives."""

REAP_EVERY_S = 1.0


class Denoiser:
    """Holds up to `slots` sessions; everything but the making of blocks happens on the event loop.

    Args:
        generator: without a codec; it keeps as many latents as the decoders need.
        text: encodes prompts.
        pictures: decodes and encodes.
        slots: sessions at a time.
        replica: the name of this replica, which goes with every session.
        model: the name of the model.
        stream: how streams are generated unless a session says otherwise.
        metrics: where to count.

    """

    def __init__(
        self,
        generator: Generator,
        text: TextStage,
        pictures: PictureStage,
        *,
        slots: int,
        replica: str,
        model: str,
        stream: StreamConfig,
        metrics: Metrics,
    ) -> None:
        self._generator = generator
        self._text = text
        self._pictures = pictures
        self._slots = slots
        self._replica = replica
        self._model = model
        self._stream = stream
        self._metrics = metrics
        self._sessions: dict[str, LiveSession] = {}
        self._opening = 0
        self._executor = ThreadPoolExecutor(1, "denoise")
        self._endings: set[asyncio.Task[None]] = set()
        self._production = Production(
            generator, text, pictures, self._executor, self._sessions.values, self._end, metrics
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to make blocks; to be called on the event loop."""
        self._tasks = [asyncio.create_task(self._production.run()), asyncio.create_task(self._reap())]

    async def stop(self) -> None:
        """End all sessions and stop."""
        for task in self._tasks:
            task.cancel()
        for session in list(self._sessions.values()):
            self._end(session, None)
        await asyncio.gather(*self._tasks, *self._endings, return_exceptions=True)
        self._executor.shutdown()

    def check(self) -> None:
        """Raise RuntimeError if nothing makes blocks any more."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"the denoiser has stopped: {task.exception()!r}")

    @property
    def free(self) -> int:
        """Sessions that can still be opened."""
        return self._slots - len(self._sessions) - self._opening

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the sessions that are here."""
        return tuple(self._sessions)

    # Opening and closing

    async def open(self, opening: Opening, cues: Sequence[Cue] = ()) -> pb.Session:
        """Open a session, new or from where it was elsewhere. Raises SlotsFull at once if there is no slot.

        Opening one that is here already, at the same or a later incarnation, changes nothing.
        """
        here = self._sessions.get(opening.session_id)
        if here is not None and here.opening.incarnation >= opening.incarnation:
            return here.describe()
        self._require_slot()
        self._opening += 1
        try:
            session = await self._opened(opening)
        finally:
            self._opening -= 1
        now = asyncio.get_running_loop().time()
        for cue in cues:
            session.logic.schedule(cue.blend, cue.frame, cue.transition, "", now)
        self._admit(session)
        return session.describe()

    async def close(self, session_id: str) -> None:
        """End a session. Raises SessionNotFound."""
        session = self._session(session_id)
        self._end(session, None)
        await asyncio.gather(*self._endings)

    def holds(self, session_id: str) -> int:
        """The incarnation of a session that is here, -1 for one that is not."""
        session = self._sessions.get(session_id)
        return -1 if session is None else session.opening.incarnation

    def describe(self, session_id: str) -> pb.Session:
        """How a session stands. Raises SessionNotFound."""
        return self._session(session_id).describe()

    def sessions_of(self, caller: str) -> list[pb.Session]:
        """The caller's sessions, without their cues."""
        mine = [session for session in self._sessions.values() if session.opening.caller == caller]
        return [session.describe(cues=False) for session in mine]

    def caller_of(self, session_id: str) -> str:
        """Whose session it is. Raises SessionNotFound."""
        return self._session(session_id).opening.caller

    def _admit(self, session: LiveSession) -> None:
        self._sessions[session.id] = session
        self._metrics.slots(len(self._sessions), self.free)
        if session.opening.reason:
            self._metrics.resumed("session")
        logger.info("session opened", extra={"session": session.id, "incarnation": session.opening.incarnation})
        self._production.wake()

    def _require_slot(self) -> None:
        if self.free <= 0:
            self._metrics.refused("slots")
            raise SlotsFull(f"all {self._slots} sessions of this replica are taken; end one, or try again later")

    async def _opened(self, opening: Opening) -> LiveSession:
        """A session as `opening` has it, with a decoder where its next block begins."""
        stream = await self._take_stream(opening)
        try:
            now = asyncio.get_running_loop().time()
            logic = self._logic(opening, stream, now)
            track, prompts = await self._track(logic)
            session = LiveSession(
                opening, logic, stream, track, prompts, self._replica, recording=opening.recording
            )
            session.kept.extend(opening.chunks)
            await self._pictures.open(session.picture_key, place_before(session, stream.blocks))
        except BaseException:
            await in_thread(self._executor, partial(self._generator.close, stream))
            raise
        return session

    def _logic(self, opening: Opening, stream: Stream, now: float) -> Session:
        size = opening.stream.block_frames
        if opening.record is None:
            return Session(opening.pace, size, now)
        before = Session.of(opening.record, size, now)
        return Session.of(before.rewound(stream.blocks, now), size, now)

    async def _take_stream(self, opening: Opening) -> Stream:
        try:
            if opening.snapshot is None:
                return await in_thread(self._executor, partial(self._generator.open, opening.stream))
            return (await in_thread(self._executor, partial(restore, self._generator, opening.snapshot))).stream
        except SlabsFull as error:
            self._metrics.refused("slabs")
            raise SlotsFull(str(error)) from error
        except (ConfigError, SnapshotError) as error:
            raise InvalidRequest(str(error)) from error

    async def _track(self, logic: Session) -> tuple[PromptTrack, dict[str, Prompt]]:
        """The prompts in force where a session goes on, from the last cue that came at once."""
        prompts: dict[str, Prompt] = {}
        track = PromptTrack(prompts)
        if not logic.applied:
            return track, prompts
        steps = [step for step in _schedule_of(logic).steps if step.block < logic.next_block]
        first = max(number for number, step in enumerate(steps) if step.source is None)
        for step in steps[first:]:
            for text, _ in step.target.parts:
                if text not in prompts:
                    prompts[text] = await self._text.encode(text)
            track.take(step)
        return track, prompts

    def _end(self, session: LiveSession, failure: ServingError | None) -> None:
        """Take a session away at once; its memory follows when nothing works on it any more."""
        if session.closed:
            return
        self._sessions.pop(session.id, None)
        session.logic.end()
        session.publish_state()
        session.finish(failure)
        self._metrics.slots(len(self._sessions), self.free)
        logger.info("session ended", extra={"session": session.id, "why": str(failure or "closed")})
        ending = asyncio.create_task(self._free(session))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _free(self, session: LiveSession) -> None:
        if session.encoding is not None:
            session.encoding.cancel()
        await in_thread(self._executor, partial(self._generator.close, session.stream))
        await self._pictures.close(session.picture_key)

    async def _reap(self) -> None:
        """End the sessions whose lease is over."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            now = asyncio.get_running_loop().time()
            for session in list(self._sessions.values()):
                if session.logic.lease_ends() <= now:
                    lease = session.opening.pace.lease_s
                    self._end(session, SessionNotFound(f"the session ended: nobody came for {lease:g} s"))

    # Commands

    async def command(self, session_id: str, command: pb.Command) -> pb.Receipt:
        """Obey a command, answer it, and tell all followers. Raises a SessionError if it is refused."""
        session = self._session(session_id)
        now = asyncio.get_running_loop().time()
        if command.WhichOneof("action") == "shown":
            session.logic.shown(command.shown.frame, now)
            self._production.wake()
            return pb.Receipt()
        async with session.commands:
            self._check_prompts(command)
            state = session.logic.state
            if command.WhichOneof("action") == "reset":
                receipts = await self._reset(session, command)
            else:
                receipts = obey(session.logic, command, now)
            session.publish_receipts(receipts)
            if session.logic.state is not state:
                session.publish_state()
            session.remember()
        self._production.wake()
        return write_receipt(receipts[0])

    def _check_prompts(self, command: pb.Command) -> None:
        """Refuse a prompt of which nothing is left once it is cleaned, before it is too late to say so."""
        for part in command.schedule_prompt.prompts:
            if part.text and not clean_prompt(part.text):
                raise InvalidRequest(f"prompt {part.text!r} is empty; a prompt has at least one visible character")

    async def _reset(self, session: LiveSession, command: pb.Command) -> tuple[Receipt, ...]:
        """A new stream in place of the one that is reset; the state is sent before the receipts."""
        async with self._resting(session):
            before = session.picture_key
            receipts = obey(session.logic, command, asyncio.get_running_loop().time())
            await self._pictures.close(before)
            await in_thread(self._executor, partial(self._restart, session))
            session.kept.clear()
            session.prompts = {}
            session.track = PromptTrack(session.prompts)
            await self._pictures.open(session.picture_key, place_before(session, 0))
            session.publish_state()
        return receipts

    def _restart(self, session: LiveSession) -> None:
        """In the executor: the slab changes hands from the old stream to the new one."""
        self._generator.close(session.stream)
        session.stream = self._generator.open(session.config)
        if session.source is not None:
            session.source = MirrorSource(self._generator, session.stream)

    # Following

    async def follow(
        self, session_id: str, role: Role, from_frame: int | None, *, may_keep: bool
    ) -> AsyncGenerator[Item]:
        """A session's events, beginning with its state.

        A follower that may keep is given the mirror if nobody has it. Raises SessionNotFound, and FrameOutOfRange
        for a frame that is not kept any more.
        """
        session, loop = self._session(session_id), asyncio.get_running_loop()
        follower = session.follow(role, from_frame, loop.time())
        keepers = [follower] if may_keep else []
        try:
            if keepers and session.keeper is None:
                self._appoint(session, follower)
            self._production.wake()
            async for item in follower.items(BEAT_S):
                if keepers and session.keeper is None and not session.closed:
                    self._appoint(session, follower)
                yield item
        finally:
            session.leave(follower, loop.time())
            self._production.wake()

    def _appoint(self, session: LiveSession, follower: Follower) -> None:
        """Make a follower the keeper, and tell it all there is so far."""
        session.keeper = follower
        session.source = MirrorSource(self._generator, session.stream)
        chunks = tuple(session.kept)
        opening = replace(session.opening, record=None, snapshot=None, chunks=chunks, reason="")
        record = session.logic.record(asyncio.get_running_loop().time())
        follower.put_mirror(MirrorItem(record, opening=opening, recording=session.recording))

    def set_recording(self, session_id: str, name: str) -> None:
        """Note that a recording is being written, or (empty) is not. Raises WrongState if one already is."""
        session = self._session(session_id)
        if name and session.recording:
            raise WrongState(f"the session is being recorded as {session.recording}; stop that first")
        session.recording = name
        session.publish_state()
        session.remember()

    # Copies

    async def save(self, session_id: str) -> Saved:
        """The session at its present block."""
        session = self._session(session_id)
        async with session.commands, self._resting(session):
            stream = None
            if session.stream.blocks:
                stream = await in_thread(self._executor, partial(take_light, self._generator, session.stream))
            return Saved(session.describe(), stream)

    async def fork(self, session_id: str, caller: str, frame: int | None) -> pb.Session:
        """A second session with the same past, up to the present block or the one that contains `frame`."""
        session = self._session(session_id)
        self._require_slot()
        opening = replace(
            session.opening, session_id=str(uuid.uuid4()), caller=caller, created=time.time(), recording="",
            incarnation=0, reason="",
        )  # fmt: skip
        if frame is None:
            return await self._fork_here(session, opening)
        return await self._fork_back(session, opening, frame)

    async def _fork_here(self, session: LiveSession, opening: Opening) -> pb.Session:
        async with session.commands, self._resting(session):
            now = asyncio.get_running_loop().time()
            record, size = session.logic.rewound(session.stream.blocks, now), session.config.block_frames
            try:
                stream = await in_thread(self._executor, partial(self._generator.fork, session.stream))
            except SlabsFull as error:
                raise SlotsFull(str(error)) from error
            prompts = dict(session.prompts)
            fork = LiveSession(
                opening, Session.of(record, size, now), stream, session.track.copy(prompts), prompts, self._replica
            )
            fork.kept.extend(session.kept)
        await self._pictures.open(fork.picture_key, place_before(fork, stream.blocks))
        self._admit(fork)
        return fork.describe()

    async def _fork_back(self, session: LiveSession, opening: Opening, frame: int) -> pb.Session:
        """Generate a session's past again, up to the block that contains `frame`."""
        now, size = asyncio.get_running_loop().time(), session.config.block_frames
        if not 0 <= frame < session.logic.earliest_frame:
            raise FrameOutOfRange(
                f"frame {frame} is not in the past; the last one is {session.logic.earliest_frame - 1}"
            )
        block = block_at(frame + 1, size) - 1
        record = session.logic.rewound(block, now)
        restores = {entry.block for entry in session.stream.log if entry.event == "restore"}
        stream = await self._take_stream(replace(opening, snapshot=None))
        try:
            await self._replay(stream, record, size, block, restores)
            logic = Session.of(record, size, asyncio.get_running_loop().time())
            track, prompts = await self._track(logic)
            fork = LiveSession(opening, logic, stream, track, prompts, self._replica)
            await self._pictures.open(fork.picture_key, place_before(fork, block))
        except BaseException:
            await in_thread(self._executor, partial(self._generator.close, stream))
            raise
        fork.kept.extend(chunk for chunk in session.kept if chunk.block < block)
        self._admit(fork)
        return fork.describe()

    async def _replay(
        self, stream: Stream, record: SessionRecord, size: int, blocks: int, restores: set[int]
    ) -> None:
        """Generate `blocks` blocks under the cues of `record`, one at a time, so that others take their turns."""
        logic = Session.of(record, size, asyncio.get_running_loop().time())
        steps = {step.block: step for step in _schedule_of(logic).steps} if logic.applied else {}
        prompts: dict[str, Prompt] = {}
        track = PromptTrack(prompts)
        for block in range(blocks):
            prompt = None
            if step := steps.get(block):
                for text, _ in step.target.parts:
                    prompts[text] = await self._text.encode(text)
                prompt = track.take(step)
            work = partial(self._replay_block, stream, prompt, rebuilt=block in restores)
            await in_thread(self._executor, work)

    def _replay_block(self, stream: Stream, prompt: Prompt | None, *, rebuilt: bool) -> None:
        if rebuilt:
            self._generator.rebuild(stream)
        if prompt is not None and (stream.prompt is None or stream.prompt.text != prompt.text):
            self._generator.set_prompt(stream, prompt)
        self._generator.generate([stream])

    @asynccontextmanager
    async def _resting(self, session: LiveSession) -> AsyncIterator[None]:
        """Nothing of the session is on its way: its logic and its stream stand at the same block."""
        session.held += 1
        try:
            while session.making or session.undelivered:
                await asyncio.sleep(0.005)
            yield
        finally:
            session.held -= 1
            self._production.wake()

    def _session(self, session_id: str) -> LiveSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(f"no session {session_id!r} is here; it may have ended")
        return session


def _schedule_of(logic: Session) -> Schedule:
    """When the cues that have applied did so."""
    return schedule(Timeline(tuple(applied.cue for applied in logic.applied)), logic.block_frames)
