from __future__ import annotations

import asyncio

from engines.config.geometry import BlockLengths
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.replication.messages import Item, Role
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.worker.streams.audience import Audience
from serving.worker.streams.subscriber import Subscriber
from tests.serving.footage import chunks


def audience() -> Audience:
    logic = Session(Pace(), BlockLengths(), 0.0)
    return Audience(logic, lambda: pb.Session(id="one"), lambda: None)


def heard(audience: Audience, subscriber: Subscriber) -> list[tuple[str | None, int]]:
    """What a subscriber was sent until all of them are let go: kinds of events, and their numbers."""

    async def listen() -> list[pb.Event]:
        audience.finish(None)
        return [pb.Event.FromString(item.event) async for item in subscriber.items(1.0) if item.event is not None]

    return [(event.WhichOneof("event"), event.seq) for event in asyncio.run(listen())]


def test_what_changes_the_session_is_counted_and_progress_is_told_with_the_last_number() -> None:
    there = audience()
    viewer = there.subscribe(Role.VIEWER, None, 0.0)
    there.publish(gap=pb.Gap())
    there.publish(progress=pb.Progress())
    there.publish_chunk(chunks()[0])
    assert heard(there, viewer) == [("state", 0), ("gap", 1), ("progress", 1), ("chunk", 2)]


def test_who_comes_late_begins_with_what_is_kept() -> None:
    there = audience()
    for chunk in chunks():
        there.publish_chunk(chunk)
    late = there.subscribe(Role.VIEWER, 9, 0.0)
    assert [kind for kind, _ in heard(there, late)] == ["state", "chunk", "chunk"]


def test_an_item_says_of_a_chunk_where_it_is_as_its_bytes_do() -> None:
    there = audience()
    early = there.subscribe(Role.VIEWER, None, 0.0)
    for chunk in chunks():
        there.publish_chunk(chunk)
    late = there.subscribe(Role.VIEWER, 0, 0.0)
    early.put_event(pb.Event(gap=pb.Gap()).SerializeToString())
    there.finish(None)

    async def items(subscriber: Subscriber) -> list[Item]:
        return [item async for item in subscriber.items(1.0)]

    sent = [item for subscriber in (early, late) for item in asyncio.run(items(subscriber))]
    assert [item.span for item in sent] == [SerializedEvent.read(item.event or b"").span for item in sent]
    assert sum(item.span is not None for item in sent) == 2 * len(chunks())


def test_what_happens_while_a_command_is_answered_comes_behind_its_receipt() -> None:
    there = audience()
    viewer = there.subscribe(Role.VIEWER, None, 0.0)
    there.hold()
    there.publish_behind([pb.Event(applied=pb.AppliedCue())])
    there.release([pb.Event(receipt=pb.Receipt())])
    there.publish_behind([pb.Event(applied=pb.AppliedCue())])
    assert [kind for kind, _ in heard(there, viewer)] == ["state", "receipt", "applied", "applied"]


def test_of_two_controllers_the_later_one_steers_and_the_earlier_one_is_told() -> None:
    there = audience()
    first = there.subscribe(Role.CONTROLLER, None, 0.0)
    there.attach(first, "ann", reattach=False, now=0.0)
    second = there.subscribe(Role.CONTROLLER, None, 0.0)
    there.attach(second, "bob", reattach=False, now=0.0)
    assert (first.role, second.role, there.viewers) == (Role.VIEWER, Role.CONTROLLER, 2)
    assert [kind for kind, _ in heard(there, first)] == ["state", "replaced"]
