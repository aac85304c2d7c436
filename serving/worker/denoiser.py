"""The denoiser: a replica's sessions and the one generator that makes their blocks; the authority on both."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from engines.config.video_stream import LoopSetting
from engines.streaming.snapshot import machine_of
from engines.video.stream_engine import StreamEngine
from serving.background_tasks import BackgroundTasks, within
from serving.errors import LimitReached, ReplicaLost, SessionNotFound, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import DecoderStage, TextEncoderStage, in_thread
from serving.pipeline.work_watch import WatchedExecutor, WorkWatch
from serving.protocol.cue_pages import applied_page, pending_page
from serving.replication.leases import LeaseConfig, RenewAnswer, RenewRequest, ReplicaLeases
from serving.replication.messages import (
    Departure,
    FeedItem,
    HandedOver,
    Item,
    Joined,
    Prepared,
    ResumeState,
    Role,
    SavedSession,
    SessionSpec,
)
from serving.replication.register import Register
from serving.timeline.cue import Cue
from serving.tracing.tracer import UNTRACED, Tracer
from serving.worker.blocks.block_loop import BlockLoop
from serving.worker.blocks.delivery import Delivery
from serving.worker.blocks.passes import Passes
from serving.worker.blocks.prompt_prefetch import PromptPrefetch
from serving.worker.blocks.video_loops import VideoLoops
from serving.worker.capacity.capacity import Capacity
from serving.worker.capacity.loop_choice import LoopChoice
from serving.worker.capacity.slot_report import SlotReport
from serving.worker.command_handler import CommandHandler
from serving.worker.picture_intake import PictureIntake
from serving.worker.pictures.input_stage import InputStage
from serving.worker.session_copies import SessionCopies
from serving.worker.session_factory import SessionFactory
from serving.worker.session_saver import SessionSaver
from serving.worker.session_streams import SessionStreams
from serving.worker.state.active_session import ActiveSession, at_rest
from serving.worker.state.metrics import Metrics
from serving.worker.state.session_guard import SessionGuard
from serving.worker.suspension import Suspension

logger = logging.getLogger(__name__)

REAP_EVERY_S = 0.5


class Denoiser:
    """Holds up to `slots` sessions; everything but the making of blocks happens on the event loop.

    Callers name a copy of a session by its attempt. Until a manager renews its lease a copy makes and sends
    nothing, and raises NoLease where it is asked for anything but `prepare`, `renew` and what ends it.

    Args:
        engine: without a codec; it keeps as many latents as the decoders need.
        text: encodes prompts.
        decoder: decodes and encodes.
        executor: the one thread that uses the engine, in which it was warmed up; it ends with the denoiser.
        slots: sessions at a time.
        replica: the name of this replica, which is never used again.
        metrics: where to count.
        register: who owns which session.
        leases: how long a lease is.
        capacity: what the device has time for.
        viewers: of one session, at most.
        restart_s: how long a session waits for a decoder that is being started.
        replay_s: how long the past of a session may be generated again, or rebuilt, for a client.
        provenance: what the videos are made with.
        tracer: where the spans of blocks go.
        pictures: encodes those of sessions that restyle a video; None where there are none.
        video_loop: how the blocks of those are made.
        suspend_after_s: after how long a paused session gives its slot back; 0: never.

    """

    def __init__(
        self,
        engine: StreamEngine,
        text: TextEncoderStage,
        decoder: DecoderStage,
        executor: Executor,
        *,
        slots: int,
        replica: str,
        metrics: Metrics,
        register: Register,
        capacity: Capacity,
        leases: LeaseConfig | None = None,
        replay_s: float = 20.0,
        viewers: int = 1000,
        restart_s: float = 180.0,
        provenance: pb.Provenance | None = None,
        tracer: Tracer = UNTRACED,
        pictures: InputStage | None = None,
        video_loop: LoopSetting = "auto",
        suspend_after_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._text = text
        self._decoder = decoder
        self._watch = WorkWatch("a pass")
        self._executor = executor = WatchedExecutor(executor, self._watch)
        self._replica = replica
        self._metrics = metrics
        self._replay_s = replay_s
        leases = leases or LeaseConfig()
        self._copies = SessionCopies(slots, ReplicaLeases(leases), register, self._free, metrics, capacity)
        self._guard = SessionGuard(self._copies.end)
        self._pictures = PictureIntake(self._copies, pictures, self._wake, self._guard)
        self._passes = Passes(engine, executor, capacity, self._watch)
        self._loop = BlockLoop(
            self._passes, lambda: self._copies.all, self._copies.has_lease, self._guard,
            self._pictures.encode_more, capacity, VideoLoops(LoopChoice(video_loop), capacity), tracer,
        )  # fmt: skip
        self._prompts = PromptPrefetch(text, self._guard, self._loop.wake)
        self._delivery = Delivery(
            decoder, executor, self._copies.wait_for_lease, self._guard, self._loop.wake, metrics, capacity,
            restart_s, tracer,
        )  # fmt: skip
        encoder = None if pictures is None else pictures.encoder
        self._factory = SessionFactory(
            engine, text, decoder, executor, replica, self._loop.spare_time, provenance, encoder
        )
        self._saver = SessionSaver(self._copies, engine, executor, self._loop.wake, leases.prepare_timeout_s)
        self._suspension = Suspension(
            self._copies, engine, decoder, executor, self._loop.wake, self._guard, slots, suspend_after_s
        )
        self._commands = CommandHandler(
            self._copies, engine, decoder, executor, self._loop.wake, self._suspension, self._guard
        )
        beat_s = leases.beat_every_s
        self._streams = SessionStreams(
            self._copies, engine, executor, self._loop.wake, viewers, beat_s, self._guard
        )
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Begin to make blocks; to be called on the event loop."""
        blocks = self._loop.run(self._prompts, self._delivery)
        self._background.start("making blocks", blocks, vital=True)
        self._background.start("looking after sessions", self._reap(), vital=True)

    async def stop(self) -> None:
        """Let all sessions go, to be taken over elsewhere, and stop."""
        self._copies.close()
        await self._background.stop()
        await self._commands.stop()
        await self._copies.settled()
        self._executor.shutdown()
        self._pictures.stop()

    async def end_sessions(self) -> int:
        """End all sessions for good, as the server is to stop; returns how many."""
        sessions = self._copies.all
        for session in sessions:
            self._copies.end(session, None)
        await self._copies.settled()
        return len(sessions)

    def check(self) -> None:
        """Raise RuntimeError if nothing makes blocks any more, or what they need."""
        for part in (self._background, self._guard, self._watch, self._text, self._decoder, self._pictures):
            part.check()

    def _wake(self) -> None:
        self._loop.wake()

    @property
    def free(self) -> int:
        """Sessions that can still be opened."""
        return self._copies.free

    @property
    def slot_report(self) -> SlotReport:
        """What is used of the slots, and of how many there is time for."""
        return self._copies.report

    # Copies

    async def prepare(
        self,
        attempt: str,
        spec: SessionSpec,
        cues: Sequence[Cue] = (),
        resume: ResumeState | None = None,
        *,
        epoch: int = 0,
        owner: str | None = None,
        within_s: float | None = None,
    ) -> Prepared:
        """Make a copy of a session, new or from where it was elsewhere, which waits for its lease.

        `owner` is the attempt that owns the session at `epoch`: copies from before it end, and leave their slot to
        this one, which needs none where the session is suspended. Raises SlotsFull at once if there is none, or no
        time for a new session, LimitReached for a session out of a client's bytes that is not rebuilt within
        `replay_s`, and ReplicaLost for any that is not made `within_s`.
        """

        async def make() -> ActiveSession:
            await self._copies.make_way(spec.session_id, epoch, owner)
            is_suspended = resume is not None and resume.record.suspended
            with nullcontext() if is_suspended else self._copies.slot(spec, moves=epoch > 0):
                if any(copy.attempt == owner for copy in self._copies.all):
                    raise WrongState("the session's owner is here: its lease can be renewed")
                is_clients = resume is not None and epoch == 0
                seconds = self._replay_s if is_clients else None
                opening = self._factory.open(attempt, spec, cues, resume, seconds)
                return self._copies.admit(await within(seconds, opening, self._rebuilt_too_late))

        return self._prepared(await self._copies.made(attempt, make, within_s))

    async def fork(
        self, attempt: str, new_attempt: str, session_id: str, caller: str, frame: int | None
    ) -> Prepared:
        """A second session with the same past, up to the present block or the one that contains `frame`.

        Raises LimitReached where that takes longer than `replay_s`, and says what would fit.
        """
        session = self._copies.leased(attempt)
        spec = replace(session.spec, session_id=session_id, caller=caller, created=time.time())

        async def make() -> ActiveSession:
            with self._copies.slot(spec):
                if frame is None:
                    making = self._fork_here(session, new_attempt, spec)
                else:
                    making = self._factory.fork_back(session, new_attempt, spec, frame, self._replay_s)
                return self._copies.admit(await making)

        return self._prepared(await self._copies.made(new_attempt, make))

    async def _fork_here(self, session: ActiveSession, attempt: str, spec: SessionSpec) -> ActiveSession:
        async with session.commands, at_rest(session, self._loop.wake):
            return await self._factory.fork_here(session, attempt, spec)

    def _rebuilt_too_late(self) -> LimitReached:
        return LimitReached(
            f"the session was not rebuilt within {self._replay_s:g} s: its text encoder or denoiser has too much "
            "to do; try again later"
        )

    def renew(self, request: RenewRequest) -> RenewAnswer:
        """Renew the leases of a manager's copies and streams. Raises ReplicaLost if another replica was meant."""
        if request.replica != self._replica:
            raise ReplicaLost(f"this is replica {self._replica}, not {request.replica}")
        answer = self._copies.renew(request)
        self._loop.wake()
        return answer

    def cancel(self, attempt: str) -> None:
        """The copy will not be committed: it goes."""
        self._copies.cancel(attempt)

    def drop(self, attempt: str, epoch: int) -> None:
        """At `epoch` the copy is not its session's owner: it goes."""
        self._copies.drop(attempt, epoch)

    def session_ended(self, session_id: str, epoch: int) -> None:
        """The register says at `epoch` that the session is over."""
        self._copies.session_ended(session_id, epoch)

    def _prepared(self, session: ActiveSession) -> Prepared:
        description = session.describe().SerializeToString()
        return Prepared(self._replica, session.attempt, _now(), description, self.free)

    async def _free(self, session: ActiveSession) -> None:
        if session.encoding is not None:
            session.encoding.cancel()
        # A reset on its way may still change the stream: its last one is closed.
        try:
            await in_thread(self._executor, partial(self._close, session))
        finally:
            await self._decoder.close(session.decoder_key)

    def _close(self, session: ActiveSession) -> None:
        if lost := self._engine.lost_slots(session.stream):
            logger.warning("slots lost: full queues", extra={"session": session.id, "lost": lost})
        self._engine.close(session.stream)

    async def _reap(self) -> None:
        """End the sessions that nobody comes to, and the streams that nobody reads."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            now = _now()
            self._guard.each(self._copies.all, "looking after it", partial(self._look_after, now=now))
            self._streams.close_expired(now)
            self._metrics.following(self._copies.following(now))

    def _look_after(self, session: ActiveSession, now: float) -> None:
        """Raises SessionNotFound for one that nobody comes to."""
        if self._copies.has_lease(session):
            if session.logic.lease_ends() <= now:
                raise SessionNotFound(f"the session ended: nobody came for {session.spec.pace.lease_s:g} s")
            session.look_at_waiting(now)
        self._suspension.look(session, now)

    # Questions

    def describe(self, attempt: str) -> pb.Session:
        """How a session stands."""
        return self._copies.leased(attempt).describe()

    def applied_cues(self, attempt: str, token: str, size: int) -> pb.ListAppliedCuesResponse:
        """A page of the cues that have applied, as `applied_page`."""
        return applied_page(self._copies.leased(attempt).logic, token, size)

    def pending_cues(self, attempt: str, token: str, size: int) -> pb.ListPendingCuesResponse:
        """A page of the cues that are to come, as `pending_page`."""
        return pending_page(self._copies.leased(attempt).logic, token, size)

    def sessions_of(self, caller: str) -> list[pb.Session]:
        """The caller's sessions, without their cues."""
        mine = [session for session in self._copies.all if session.spec.caller == caller]
        return [session.describe(cues=False) for session in mine if self._copies.has_lease(session)]

    def caller_of(self, attempt: str) -> str:
        """Whose session it is."""
        return self._copies.get(attempt).spec.caller

    async def command(self, attempt: str, command: pb.Command, *, steers: bool = False) -> pb.Receipt:
        """Apply a command, and answer once the standby has it. It `steers` if it comes from the controller."""
        return await self._commands.handle(attempt, command, steers=steers)

    def take_pictures(self, attempt: str, client_id: str, sent: Sequence[pb.Command], dropped: int) -> None:
        """Take pictures that a controller has sent; so many before them were `dropped` on the way."""
        self._pictures.take(attempt, client_id, sent, dropped)

    def reports_ended(self, attempt: str, client_id: str) -> None:
        """A controller will report no more of what was shown: if it steers, the clock goes on in its place."""
        session = self._copies.leased(attempt)
        if session.logic.controller == client_id:
            session.logic.reports_ended(_now())
            self._loop.wake()

    # Streams

    def subscribe(
        self,
        attempt: str,
        role: Role,
        from_frame: int | None,
        stream: str,
        client_id: str = "",
        reattach: bool = False,
        viewers: int = 1,
        take: int | None = None,
    ) -> AsyncGenerator[Item]:
        """The events of a session for a viewer or for a manager with several. Begins with the state."""
        return self._streams.subscribe(attempt, role, from_frame, stream, client_id, reattach, viewers, take)

    def join_viewers(self, attempt: str, stream: str, viewers: int, from_frame: int | None) -> Joined:
        """A stream of the copy is to be shared by so many: by how many it may, and what new ones begin with."""
        events = self._copies.leased(attempt).audience.kept_events(from_frame)
        return Joined(self._streams.set_viewers(stream, viewers), events)

    def set_viewers(self, attempt: str, stream: str, viewers: int) -> None:
        """A stream of the copy is shared by so many viewers now."""
        self._copies.get(attempt)
        self._streams.set_viewers(stream, viewers)

    def feed(self, attempt: str, manager: str) -> AsyncGenerator[FeedItem]:
        """What a manager that is appointed as standby is sent: the full state, then what changes."""
        return self._streams.feed(attempt, manager)

    def acknowledge(self, attempt: str, number: int) -> None:
        """The standby has every delta up to `number`."""
        if (feed := self._copies.get(attempt).feed) is not None:
            feed.acknowledge(number)

    async def begin_recording(self, attempt: str, name: str, asked_by: str) -> str:
        """A recording is to be written. Gives the name of the one that is, which may be an earlier one."""
        session = self._copies.leased(attempt)
        return await self._commands.mark_recording(session, session.recording.begun(name, asked_by))

    async def stop_recording(self, attempt: str, asked_by: str) -> str:
        """Stop the recording that is written, and give its name."""
        session = self._copies.leased(attempt)
        return await self._commands.mark_recording(session, session.recording.stopped(asked_by))

    async def end_recording(self, attempt: str, ended: pb.Recording) -> None:
        """A recording has ended by itself, which all are told; of one that was stopped only that it failed."""
        session = self._copies.leased(attempt)
        mark = session.recording.ended(ended.name, ended.error.message)
        if mark != session.recording or ended.HasField("error"):
            session.audience.publish(recording=ended)
            await self._commands.mark_recording(session, mark)

    # What goes on elsewhere

    async def save(self, attempt: str, max_bytes: int) -> SavedSession:
        """The session as it stands, to be restored later. Raises LimitReached for more than `max_bytes`."""
        return await self._saver.save(attempt, max_bytes)

    async def hand_over(self, attempt: str, epoch: int, move: int, machine: dict[str, Any]) -> HandedOver:
        """Stop the session between blocks, and give what another replica goes on with."""
        return await self._saver.hand_over(attempt, epoch, move, machine)

    async def depart(self, attempt: str, epoch: int, move: int, max_bytes: int) -> Departure:
        """Stop the session between blocks, and give what another server goes on with."""
        return await self._saver.depart(attempt, epoch, move, max_bytes)

    def machine(self) -> dict[str, Any]:
        """Device, torch and threads, which must be the same where a session goes on exactly as it was."""
        return machine_of(self._engine.text)


def _now() -> float:
    return asyncio.get_running_loop().time()
