"""A controller's stream: its commands carried out in order, its session's events and the refusals sent back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from serving.errors import InvalidRequest, LimitReached, ReplicaLost, ServingError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import check_picture, check_size
from serving.protocol.events import SerializedEvent
from serving.protocol.picture_queue import Batch, PictureQueue
from serving.protocol.status import foreseen, write_error
from serving.session.receipt_log import MAX_ID_CHARACTERS

HEARTBEAT_S = 1.0

MOST_EVENTS = 64
"""Events that wait for the controller; then its session is not read any further."""

MOST_COMMANDS = 64
"""Commands that wait to be carried out; then nothing is read any further."""

MOST_REFUSALS = 1024
"""Refusals and repeated answers that wait as well; a controller that lets more pile up is let go."""

MISSED_S = 2.0
"""A receipt that has not come with the session's events by then was published where nobody read them."""

KEPT_IDS = 1024

PICTURES = ("picture", "end_input")
"""Commands that are no command of the timeline."""

Apply = Callable[[pb.Command], Awaitable[pb.Receipt]]
PassOn = Callable[[Batch], Awaitable[None]]

REPORT_EVERY_S = 0.02
"""From one report of what was shown that is passed on to the next: of those in between the newest counts."""

REFUSED_AGAIN_S = 1.0
"""Pictures that are refused for the same reason are refused in silence for so long."""


class ControllerStream:
    """Sends `events` and carries out commands by `apply`, neither of which waits for the other.

    A command waits until the session is `followed`: receipts come with its events, and would be missed. One that
    is refused, or fails, is answered and ends nothing. Commands go on while nobody reads. Where `events` go on
    from another stream or replica, receipts that were published in between are missing: those are answered here.
    The end of the commands ends nothing either: `commands_ended` is called, since no report of what was shown
    comes any more.

    Pictures wait for no command, nor do commands for them: they go by `pass_on`, as many at a time as have come.
    A report of what was shown goes before the commands that came after it, or gives way to a newer one.
    """

    def __init__(
        self, client_id: str, events: AsyncGenerator[SerializedEvent], followed: asyncio.Event, apply: Apply,
        commands_ended: Callable[[], Awaitable[None]], pass_on: PassOn,
    ) -> None:  # fmt: skip
        self._client_id = client_id
        self._events = events
        self._followed = followed
        self._apply = apply
        self._commands_ended = commands_ended
        self._pass_on = pass_on
        self._pictures = PictureQueue()
        self._asked: asyncio.Queue[pb.Command | None] = asyncio.Queue(MOST_COMMANDS)
        self._report: pb.Command | None = None
        self._reported, self._reporting = asyncio.Event(), asyncio.Lock()
        self._refused_picture: tuple[float, str] = 0.0, ""
        self._waiting: asyncio.Queue[SerializedEvent | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MOST_EVENTS)
        self._refusals = 0
        self._waiting_for = pb.WAIT_REASON_UNSPECIFIED
        self._passed: deque[str] = deque(maxlen=KEPT_IDS)
        self._expected: deque[tuple[float, pb.Receipt]] = deque(maxlen=KEPT_IDS)

    async def run(self, commands: AsyncIterator[pb.Command]) -> AsyncGenerator[SerializedEvent]:
        """What the controller is sent, until the session's events end. Raises what ends them, or its commands."""
        work = (
            self._watch(), self._read(commands), self._carry_out(), self._pass_pictures(), self._pass_reports(),
        )  # fmt: skip
        tasks = [asyncio.create_task(task) for task in work]
        try:
            while (sent := await self._next()) is not None:
                yield sent
            for task in tasks:
                if task.done() and (failure := task.exception()):
                    raise failure
            yield session_ended()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()

    async def _next(self) -> SerializedEvent | None:
        """What comes next; a heartbeat where nothing does for a second."""
        if (missed := self._missed()) is not None:
            return SerializedEvent.of(pb.Event(receipt=missed))
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                sent = await self._waiting.get()
        except TimeoutError:
            waiting = self._waiting_for if self._followed.is_set() else pb.WAIT_REASON_REPLICA
            return SerializedEvent.of(pb.Event(heartbeat=pb.Heartbeat(waiting=waiting)))
        if sent is not None and sent.span is None and sent.event.seq == 0 and sent.event.HasField("receipt"):
            self._refusals -= 1
        else:
            self._room.release()
        return sent

    async def _watch(self) -> None:
        try:
            async for sent in self._events:
                if sent.span is None:
                    self._note(sent.event)
                await self._room.acquire()
                self._waiting.put_nowait(sent)
        finally:
            self._waiting.put_nowait(None)

    def _note(self, event: pb.Event) -> None:
        if event.HasField("state"):
            self._waiting_for = event.state.waiting
        if event.HasField("resumed"):
            self._pictures.repeat_end()
        if event.receipt.stage == pb.RECEIPT_STAGE_ACCEPTED:
            self._passed.append(event.receipt.command_id)

    async def _read(self, commands: AsyncIterator[pb.Command]) -> None:
        try:
            async for command in commands:
                await self._take(command)
            await self._asked.put(None)
        except BaseException:
            self._waiting.put_nowait(None)
            raise

    async def _take(self, command: pb.Command) -> None:
        """Have it wait for its turn; one that is too large, or no picture at all, is refused at once."""
        is_picture = command.WhichOneof("action") in PICTURES
        try:
            check_size(command)
            if command.HasField("picture"):
                check_picture(command.picture)
        except InvalidRequest as error:
            if is_picture:
                self._pictures.count_dropped()
                self._refuse_picture(command, error)
            else:
                self._answer(refusal(command, error))
            return
        if is_picture:
            self._pictures.put(command)
        elif command.HasField("shown"):
            self._report = command
            self._reported.set()
        else:
            await self._asked.put(command)

    async def _carry_out(self) -> None:
        try:
            while (command := await self._asked.get()) is not None:
                await self._followed.wait()
                await self._pass_report()
                command.client_id = command.client_id or self._client_id
                try:
                    receipt = await self._apply(command)
                except Exception as error:
                    self._answer(refusal(command, foreseen(error, "a command")))
                else:
                    if receipt.repeated:
                        self._answer(receipt)
                    elif receipt.command_id:
                        self._expected.append((_now() + MISSED_S, receipt))
            await self._pass_report()
            await self._commands_ended()
        except BaseException:
            self._waiting.put_nowait(None)
            raise

    async def _pass_reports(self) -> None:
        try:
            while True:
                await self._reported.wait()
                await self._followed.wait()
                await self._pass_report()
                await asyncio.sleep(REPORT_EVERY_S)
        except BaseException:
            self._waiting.put_nowait(None)
            raise

    async def _pass_report(self) -> None:
        async with self._reporting:
            command, self._report = self._report, None
            self._reported.clear()
            if command is None:
                return
            command.client_id = command.client_id or self._client_id
            try:
                await self._apply(command)
            except Exception as error:
                self._answer(refusal(command, foreseen(error, "a report")))

    async def _pass_pictures(self) -> None:
        try:
            while True:
                await self._followed.wait()
                batch = await self._pictures.take()
                try:
                    await self._pass_on(batch)
                except ReplicaLost as error:
                    self._pictures.lost(batch)
                    self._refuse_picture(batch.commands[0], error)
                    await asyncio.sleep(REFUSED_AGAIN_S)
                    self._pictures.repeat_end()
                except Exception as error:
                    self._pictures.lost(batch)
                    self._refuse_picture(batch.commands[0], error)
        except BaseException:
            self._waiting.put_nowait(None)
            raise

    def _refuse_picture(self, command: pb.Command, error: Exception) -> None:
        told_at, told = self._refused_picture
        if str(error) != told or _now() - told_at > REFUSED_AGAIN_S:
            self._refused_picture = _now(), str(error)
            self._answer(refusal(command, foreseen(error, "a picture")))

    def _missed(self) -> pb.Receipt | None:
        """A receipt that did not come."""
        while self._expected and self._expected[0][0] <= _now():
            _, receipt = self._expected.popleft()
            if receipt.command_id not in self._passed:
                receipt.repeated = True
                return receipt
        return None

    def _answer(self, receipt: pb.Receipt) -> None:
        """Send what is for this controller alone: such answers have no number of the session's changes."""
        self._refusals += 1
        if self._refusals > MOST_REFUSALS:
            raise LimitReached(f"{MOST_REFUSALS} refused commands wait for this stream; read it faster")
        self._waiting.put_nowait(SerializedEvent.of(pb.Event(receipt=receipt)))


def session_ended() -> SerializedEvent:
    """The last event of a stream whose session is over."""
    end = pb.StreamEnd(reason=pb.STREAM_END_REASON_SESSION_ENDED, message="the session has ended")
    return SerializedEvent.of(pb.Event(end=end))


def refusal(command: pb.Command, error: ServingError) -> pb.Receipt:
    """The receipt of a refused command."""
    action = (command.WhichOneof("action") or "unspecified").upper()
    known = pb.CommandKind.DESCRIPTOR.values_by_name.get(f"COMMAND_KIND_{action}")
    kind = pb.CommandKind.Name(0 if known is None else known.number)
    stage = pb.RECEIPT_STAGE_REFUSED
    # Of an id that is too long, enough to know it by.
    return pb.Receipt(
        command_id=command.id[:MAX_ID_CHARACTERS], command=kind, stage=stage, error=write_error(error)
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
