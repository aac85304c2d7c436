"""Who follows a session on its replica, and what is kept for those who come late."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serving.errors import FrameOutOfRange, ServingError
from serving.media.chunk import Chunk, RecentChunks
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import write_chunk
from serving.replication.messages import Role
from serving.session.state_machine import Session
from serving.worker.streams.subscriber import Subscriber


class Audience:
    """Sends a session's events to all who have subscribed, each with the number that `logic` counts.

    `describe` says how the session stands. `changed` is called with each new number, before anybody is sent it.
    """

    def __init__(self, logic: Session, describe: Callable[[], pb.Session], changed: Callable[[], None]) -> None:
        self.kept = RecentChunks()
        self.subscribers: list[Subscriber] = []
        self._logic = logic
        self._describe = describe
        self._changed = changed
        self._held: list[pb.Event] | None = None

    @property
    def viewers(self) -> int:
        """How many watch, controllers included."""
        return sum(found.viewers for found in self.subscribers if found.role.watches)

    @property
    def oldest_frame(self) -> int:
        """The oldest frame that a viewer can begin with."""
        return self.kept.oldest_frame(self._logic.delivered_frames)

    # Who is there

    def subscribe(self, role: Role, from_frame: int | None, now: float, viewers: int = 1) -> Subscriber:
        """A new subscriber, who is sent the state and what is kept from `from_frame` on.

        Raises FrameOutOfRange for a frame that is not kept any more.
        """
        self._require_kept(from_frame)
        subscriber = Subscriber(role, self._logic.take, from_frame, viewers)
        self.subscribers.append(subscriber)
        if role.watches:
            self._logic.viewer_came(now)
        subscriber.put_event(self._state_event())
        self._send_kept(subscriber, from_frame)
        return subscriber

    def attach(self, controller: Subscriber, client_id: str, *, reattach: bool, now: float) -> None:
        """A controller has subscribed: it takes over, unless it only comes back and another one has come since.

        Those who steer no more are told.
        """
        steers = self._logic.attach(client_id, reattach=reattach)
        others = [found for found in self.subscribers if found.role is Role.CONTROLLER and found is not controller]
        for replaced in others if steers else [controller]:
            replaced.role = Role.VIEWER
            replaced.put_event(pb.Event(take=self._logic.take, replaced=pb.Replaced()).SerializeToString())
        if steers and others:
            self._logic.reports_ended(now)

    def unsubscribe(self, subscriber: Subscriber, now: float) -> None:
        """A subscriber has gone. That it goes again changes nothing."""
        if subscriber not in self.subscribers:
            return
        self.subscribers.remove(subscriber)
        if subscriber.role.watches:
            self._logic.viewer_left(now)
        controls = any(found.role is Role.CONTROLLER for found in self.subscribers)
        if subscriber.role is Role.CONTROLLER and not controls:
            self._logic.reports_ended(now)

    def finish(self, failure: ServingError | None) -> None:
        """Let all of them go."""
        for subscriber in self.subscribers:
            subscriber.finish(failure)

    # What they are sent

    def publish(self, **event: object) -> None:
        """Send an event, one field of `pb.Event`, to everyone."""
        self._send(pb.Event(take=self._logic.take, **event))  # type: ignore[arg-type]

    def publish_state(self) -> None:
        """Send how the session stands."""
        self.publish(state=self._describe())

    def publish_chunk(self, chunk: Chunk) -> None:
        """Keep a chunk, and send it."""
        self.kept.append(chunk)
        event = pb.Event(take=self._logic.take, chunk=write_chunk(chunk))
        event.seq = self._next_seq(event)
        data, span = event.SerializeToString(), chunk.span(event.take)
        for subscriber in self.subscribers:
            subscriber.put_chunk(data, span)

    def publish_behind(self, events: Iterable[pb.Event]) -> None:
        """Send events; behind the receipts of a command that is being answered."""
        if self._held is not None:
            self._held += events
            return
        for event in events:
            self._send(event)

    def hold(self) -> None:
        """A command is being answered: what is to be behind its receipts waits for `release`."""
        self._held = []

    def release(self, receipts: Iterable[pb.Event]) -> None:
        """Send the receipts, and then what has waited for them."""
        held, self._held = self._held or [], None
        for event in (*receipts, *held):
            self._send(event)

    def kept_events(self, from_frame: int | None) -> list[bytes]:
        """The state, and those chunks that are kept from `from_frame` on (None: none)."""
        take = self._logic.take
        chunks = [] if from_frame is None else [chunk for chunk in self.kept if chunk.end_frame > from_frame]
        events = [pb.Event(take=take, chunk=write_chunk(chunk)) for chunk in chunks]
        return [self._state_event(), *(event.SerializeToString() for event in events)]

    def _require_kept(self, from_frame: int | None) -> None:
        if from_frame is not None and from_frame < self.oldest_frame:
            raise FrameOutOfRange(
                f"frame {from_frame} is not kept any more; the oldest frame is {self.oldest_frame}"
            )

    def _send_kept(self, subscriber: Subscriber, from_frame: int | None) -> None:
        if from_frame is None:
            return
        for chunk in self.kept:
            event = pb.Event(take=self._logic.take, chunk=write_chunk(chunk))
            subscriber.put_backlog(event.SerializeToString(), chunk.span(event.take))

    def _state_event(self) -> bytes:
        event = pb.Event(take=self._logic.take, seq=self._logic.seq, state=self._describe())
        return event.SerializeToString()

    def _send(self, event: pb.Event) -> None:
        event.seq = self._next_seq(event)
        data = event.SerializeToString()
        for subscriber in self.subscribers:
            subscriber.put_event(data)

    def _next_seq(self, event: pb.Event) -> int:
        """Counts what changes the session, of which progress is only told."""
        if not event.HasField("progress"):
            self._logic.seq += 1
            self._changed()
        return self._logic.seq
