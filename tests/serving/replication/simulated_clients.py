"""Who uses the sessions of the simulated cluster: a viewer and a client each. Their messages are lost, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.protocol.events import SerializedEvent
from serving.protocol.stream_cursor import RelayCursor, StreamCursor, Verdict
from serving.replication.register import Owner
from tests.serving.replication.simulated_log import Frame
from tests.serving.replication.simulated_processes import Process

if TYPE_CHECKING:
    from tests.serving.replication.simulation import World

SILENCE_S = 2.0
REPEAT_S = 1.0


class Viewer(Process):
    """Follows a session from its first frame on, wherever that goes: the client with the relay in its manager.

    It reads the owner's stream from the frame that it needs next. One that is silent is lost, and its manager asks
    the register for the owner. Where something is missing in what comes, it comes back by another manager, which
    may remember an earlier owner.
    """

    def __init__(self, world: World, name: str, session: str) -> None:
        super().__init__(world, name)
        self.session = session
        self.frames: list[Frame] = []
        self._cursor: StreamCursor = world.rules.cursor(0)
        self._relay = RelayCursor(0)
        self._stream = 0
        self._heard_at = 0.0

    def on_time(self) -> None:
        if self.world.now - self._heard_at > SILENCE_S:
            self._ask_for_owner(anew=True)

    def on_events(self, stream: int, events: Sequence[SerializedEvent]) -> None:
        for sent in events:
            if stream == self._stream:
                self._heard_at = self.world.now
                if self._relay.accept(sent):
                    self._take(sent)

    def _take(self, sent: SerializedEvent) -> None:
        match self._cursor.judge(sent.event):
            case Verdict.HOLE:
                self._relay = RelayCursor(self._cursor.reopen())
                self._ask_for_owner(anew=False)
            case Verdict.NEWS if sent.span is not None:
                unit = sent.event.chunk.units[0]
                self._see(Frame(unit.frame, unit.data.decode()))

    def _see(self, frame: Frame) -> None:
        self.world.check_seen(self.session, self.frames, frame)
        self.frames.append(frame)

    def _ask_for_owner(self, *, anew: bool) -> None:
        self._heard_at = self.world.now
        self._stream += 1
        if managers := self.world.managers():
            manager = self.world.rnd.choice(managers).name
            self.world.send(self.name, manager, "on_where", self.name, self.session, self._stream, anew)

    def on_owner(self, stream: int, owner: Owner) -> None:
        if stream == self._stream:
            frame = self._relay.next_frame
            self.world.send(self.name, owner.replica, "on_subscribe", self.name, owner.attempt, stream, frame)


class Client(Process):
    """Gives a session one command after the other, and repeats each until it has a receipt.

    A command is applied at most once in what the session is at last, however often it comes. One whose receipt
    says `replicated` outlives each of the two processes that have it, and goes only with both. Any other one is
    as safe as the copy that has applied it: the session keeps it for as long as that copy is the owner, and when
    that hands over; whether it outlives the loss of that copy nobody has said.
    """

    def __init__(self, world: World, name: str, session: str) -> None:
        super().__init__(world, name)
        self.session = session
        self.answered = 0
        self.waits_since = 0.0
        self._ask_at = 0.0

    def on_time(self) -> None:
        if self.world.now >= self._ask_at and (managers := self.world.managers()):
            self._ask_at = self.world.now + REPEAT_S
            manager = self.world.rnd.choice(managers).name
            self.world.send(self.name, manager, "on_command", self.name, self.session, self._id)

    def on_receipt(self, command: str) -> None:
        if command == self._id:
            self.answered += 1
            self.waits_since = self.world.now
            self._ask_at = self.world.now + self.world.rnd.uniform(0, 2)

    @property
    def _id(self) -> str:
        return f"c{self.answered}"
