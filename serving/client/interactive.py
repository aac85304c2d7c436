"""The controller of a session at a client: sends commands, takes events, and survives the loss of its stream."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, get_args

from serving.client.event_queue import EventQueue
from serving.client.event_stream import Describe, EventStream, Moved
from serving.client.pending_commands import PendingCommands
from serving.errors import ControllerReplaced, SessionError, SessionNotFound, WrongState
from serving.media.playout_clock import PlayerClock
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import message, new_cue, require_one_of, write_restyling
from serving.timeline.cue import Blend, Restyling, Transition

logger = logging.getLogger(__name__)

Reports = Literal["received", "played", "none"]
"""Which frames the server is told were shown: those that were taken, those that a player shows, or none."""

PictureFormat = Literal["jpeg", "png", "h264"]

FORMATS: dict[PictureFormat, pb.PictureFormat] = {
    "jpeg": pb.PICTURE_FORMAT_JPEG,
    "png": pb.PICTURE_FORMAT_PNG,
    "h264": pb.PICTURE_FORMAT_H264,
}

MOST_COMMANDS = 64
"""Commands that wait to be written; then those who send them wait."""

MOST_PICTURES = 2
"""The same of pictures, which are large: what waits behind them is seen late."""

Outgoing = asyncio.Queue[tuple[Any, pb.Command]]
"""Calls, and what is to be written to them."""

TICK_S = 0.02

REPORT_S = 0.5
"""How often a report is made again while the session runs: the one before may have been lost on its way."""


class InteractiveSession:
    """Steers one session; to be entered, and then iterated over for the session's events.

    Commands return when they are accepted, and raise the SessionError with which they are refused; that a
    scheduled cue has applied, or was dropped, is an event. They are answered whether or not anybody takes the
    events, and are sent again with their ids over a new stream, so that each is done once. Events that came while
    there was no stream are not repeated: the `state` that comes first on every stream has what they did.

    Once another controller has attached, of which `replaced` tells, this one is a spectator whose commands raise
    ControllerReplaced. Another `control` of the session takes it over again.
    """

    def __init__(
        self, call: Any, describe: Describe, moved: Moved, session: pb.Session, from_frame: int | None,
        patience_s: float, reports: Reports | None,
    ) -> None:  # fmt: skip
        if reports is not None:
            require_one_of("reports", reports, get_args(Reports))
        self.session = session
        self.client_id = uuid.uuid4().hex
        self.replaced = False
        self._interact = call
        self._call: Any = None
        self._stream = EventStream(self._attach, describe, moved, from_frame, patience_s)
        self._events = EventQueue()
        self._pending = PendingCommands(patience_s)
        self._names = (f"{uuid.uuid4().hex[:8]}-{number}" for number in itertools.count())
        self._outgoing = Outgoing(MOST_COMMANDS)
        self._pictures = Outgoing(MOST_PICTURES)
        self._writing = asyncio.Lock()
        self._picture_ids = itertools.count()
        self._end_of_input: pb.Command | None = None
        self._attached = self._was_attached = False
        self._ending: BaseException | None = None
        self._reports: Reports = reports or ("played" if session.options.fps else "received")
        self._clock = PlayerClock(session.options.fps or 1)
        self._reported: int | None = None
        self._report_at = 0.0
        self._chunk_reported: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._resending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        attached = asyncio.get_running_loop().create_future()
        work = (self._follow(attached), self._write(self._outgoing), self._write(self._pictures), self._tick())
        self._tasks = [asyncio.create_task(task) for task in work]
        for task in self._tasks:
            task.add_done_callback(partial(self._look_at_end, attached))
        try:
            await attached
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the stream; the session goes on to its run-ahead, and waits."""
        tasks = [*self._tasks, *self._resending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[pb.Event]:
        return self

    async def __anext__(self) -> pb.Event:
        event = await self._events.get()
        if event is None:
            if self._ending is not None:
                raise self._ending
            raise StopAsyncIteration
        if event.HasField("chunk") and self._reports == "received":
            await self._report(event.chunk.first_frame + len(event.chunk.units) - 1)
        return event

    # Commands

    async def schedule(
        self,
        prompt: str | Blend,
        frame: int | None = None,
        transition: Transition | None = None,
        restyling: Restyling | None = None,
    ) -> pb.Receipt:
        """Schedule a cue at `frame`, over one that is there already; None is now."""
        return await self._do(schedule_prompt=new_cue(prompt, frame, transition, restyling))

    async def remove(self, frame: int) -> pb.Receipt:
        """Take the pending cue at `frame` away."""
        return await self._do(remove_prompt=message(pb.RemovePrompt, frame=frame))

    async def move(self, frame: int, to_frame: int) -> pb.Receipt:
        """Move the pending cue at `frame`."""
        return await self._do(move_prompt=message(pb.MovePrompt, frame=frame, to_frame=to_frame))

    async def start(self) -> pb.Receipt:
        """Start generation; a cue must be at frame 0."""
        return await self._do(start=pb.Start())

    async def pause(self, frame: int | None = None) -> pb.Receipt:
        """Stop at `frame`, the last that was seen; None is the one that was reported or is played now."""
        if frame is None and self._reports == "played":
            frame = self._clock.shown(asyncio.get_running_loop().time())
        return await self._do(pause=message(pb.Pause, frame=frame))

    async def resume(self) -> pb.Receipt:
        """Go on where `pause` stopped."""
        return await self._do(resume=pb.Resume())

    async def reset(self) -> pb.Receipt:
        """Go back to an empty timeline and frame 0."""
        return await self._do(reset=pb.Reset())

    async def cut(self) -> pb.Receipt:
        """Open a restyled video anew with the next pictures."""
        return await self._do(cut=pb.Cut())

    async def restyle(self, restyling: Restyling) -> pb.Receipt:
        """Restyle the next pictures otherwise, under the prompt in force."""
        return await self._do(restyle=write_restyling(restyling))

    async def send_picture(self, data: bytes, format: PictureFormat, time_us: int | None = None) -> int:
        """Send a picture to be restyled, and return its id, which the frame has that is made of it.

        `time_us` is when it was taken, on any clock; this one's, if nothing is said. Waits while the connection
        takes no more: a camera goes on without. While there is no stream it is lost. An "h264" picture is one
        access unit, without B frames.
        """
        require_one_of("format", format, FORMATS)
        self._require_steering()
        number = next(self._picture_ids)
        at = round(1e6 * asyncio.get_running_loop().time()) if time_us is None else time_us
        picture = message(pb.Picture, id=number, time_us=at, format=FORMATS[format], data=data)
        self._end_of_input = None
        await self._send(pb.Command(picture=picture), self._pictures)
        return number

    async def end_input(self) -> None:
        """Say that no more pictures come for now: the last one fills its block."""
        self._require_steering()
        self._end_of_input = pb.Command(end_input=pb.EndInput())
        await self._send(self._end_of_input, self._pictures)

    async def shown(self, frame: int) -> None:
        """Report the last frame that was shown, where `reports` is "none"."""
        await self._report(frame)

    def _require_steering(self) -> None:
        if not self._tasks:
            raise WrongState("there is no stream yet; enter this first, with `async with`")
        if any(task.done() for task in self._tasks):
            raise self._ending or SessionNotFound(f"the session {self.session.id} has ended")
        if self.replaced:
            raise ControllerReplaced(f"another controller steers the session {self.session.id} now")

    async def _do(self, **action: Any) -> pb.Receipt:
        self._require_steering()
        command = pb.Command(id=next(self._names), client_id=self.client_id, **action)
        answer = self._pending.add(command)
        try:
            await self._send(command)
            return await answer
        finally:
            self._pending.remove(command)

    async def _send(self, command: pb.Command, waiting: Outgoing | None = None) -> None:
        """Where there is no stream, it is sent over the next one; a picture is not."""
        if self._attached:
            await (waiting or self._outgoing).put((self._call, command))

    async def _send_after(self, seconds: float, command_id: str) -> None:
        await asyncio.sleep(seconds)
        for command in self._pending.unanswered:
            if command.id == command_id:
                await self._send(command)

    async def _report(self, frame: int) -> None:
        shown = message(pb.Shown, frame=frame)
        self._reported, self._report_at = frame, asyncio.get_running_loop().time() + REPORT_S
        if not self.replaced:
            await self._send(pb.Command(shown=shown))

    async def _write(self, outgoing: Outgoing) -> None:
        """Send commands, one after the other. That a stream is lost is found out where it is read."""
        while True:
            call, command = await outgoing.get()
            async with self._writing:
                writing = asyncio.ensure_future(call.write(command))
                await asyncio.wait({writing})
            if not writing.cancelled() and (error := writing.exception()) is not None:
                logger.debug("a command was not sent: %s", error)

    # Events

    async def _attach(self, from_frame: int | None) -> Any:
        self._attached = False
        self._call = self._interact()
        attach = message(pb.Attach, session_id=self.session.id, from_frame=from_frame, reattach=self._was_attached)
        command = pb.Command(id=next(self._names), client_id=self.client_id, attach=attach)
        await self._outgoing.put((self._call, command))
        return self._call

    async def _follow(self, attached: asyncio.Future[None]) -> None:
        try:
            async for event in self._stream.events():
                if await self._take(event):
                    self._events.put(event)
                if not attached.done():
                    attached.set_result(None)
        except SessionError as error:
            self._ending = error
        self._end(attached)

    def _look_at_end(self, attached: asyncio.Future[None], task: asyncio.Task[None]) -> None:
        """An error that nobody foresaw is told to whoever waits for anything."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ending = self._ending or error
            self._end(attached)

    def _end(self, attached: asyncio.Future[None]) -> None:
        ended = self._ending or SessionNotFound(f"the session {self.session.id} has ended")
        if not attached.done():
            attached.set_exception(ended)
        self._pending.fail(ended)
        self._events.finish()

    async def _take(self, event: pb.Event) -> bool:
        """Note what an event says; False if it is nobody else's business."""
        now = asyncio.get_running_loop().time()
        match event.WhichOneof("event"):
            case "state":
                self._note_state(event.state, now)
                if not self._attached:
                    self._attached = self._was_attached = True
                    await self._send_again()
            case "replaced":
                self.replaced = True
            case "chunk":
                end = event.chunk.first_frame + len(event.chunk.units)
                self._clock.received(event.chunk.first_frame, end, now)
            case "receipt":
                return self._answer(event.receipt, now)
        return True

    def _note_state(self, session: pb.Session, now: float) -> None:
        if session.take != self.session.take:
            self._clock.rewind()
            self._reported = self._chunk_reported = None
        self.session = session
        if session.state == pb.SESSION_STATE_PAUSED:
            self._clock.pause(session.shown_frame if session.shown_frame >= 0 else None, now)
        elif session.state == pb.SESSION_STATE_RUNNING:
            self._clock.resume(now)

    async def _send_again(self) -> None:
        """A stream is there, perhaps in place of a lost one: what has no answer may have been lost with that."""
        for command in self._pending.unanswered:
            await self._send(command)
        if self._reported is not None:
            await self._report(self._reported)
        if self._end_of_input is not None:
            self._spawn(self._end_again(self._end_of_input))

    async def _end_again(self, end: pb.Command) -> None:
        """Unless a picture has been sent meanwhile."""
        if end is self._end_of_input:
            await self._send(end, self._pictures)

    def _answer(self, receipt: pb.Receipt, now: float) -> bool:
        """Whether a receipt is an event for who takes them; that one has to ask again is not."""
        refused = receipt.stage == pb.RECEIPT_STAGE_REFUSED
        if refused and not self._pending.knows(receipt):
            logger.info("refused: %s", receipt.error.message)
        wait_s = self._pending.settle(receipt, now)
        if wait_s is not None:
            self._spawn(self._send_after(wait_s, receipt.command_id))
            return False
        return not refused or receipt.command_id != ""

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._resending.add(task)
        task.add_done_callback(self._resending.discard)

    async def _tick(self) -> None:
        """Report what a player shows whenever it comes to another chunk; and what was reported, now and then."""
        while True:
            now = asyncio.get_running_loop().time()
            if self.session.state == pb.SESSION_STATE_RUNNING:
                if self._reports == "played":
                    await self._report_played(now)
                elif self._reported is not None and now >= self._report_at:
                    await self._report(self._reported)
            await asyncio.sleep(TICK_S)

    async def _report_played(self, now: float) -> None:
        chunk, frame = self._clock.chunk_shown(now), self._clock.shown(now)
        if frame is not None and (chunk != self._chunk_reported or now >= self._report_at):
            self._chunk_reported = chunk
            await self._report(frame)
