"""What a standby adds up; `test_denoiser.py` opens a session from it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from engines.config.geometry import BlockLengths
from engines.config.stream import StreamConfig
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_light
from engines.text.prompt import Prompt
from engines.video.stream_engine import StreamEngine
from serving.errors import InvalidRequest, ReplicaLost
from serving.media.chunk import RECENT_CHUNKS, AccessUnit, Chunk
from serving.replication.messages import FullState, ReplicationDelta, SessionSpec
from serving.replication.standby import (
    BlockDeaths,
    BlockInWork,
    MissedDelta,
    StandbyCopy,
)
from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.record_delta import RecordDelta
from serving.session.recording_mark import NO_RECORDING
from serving.session.state_machine import Session
from serving.timeline.cue import Blend

FILM = NO_RECORDING.begun("film", "")


def chunk(block: int) -> Chunk:
    first, frames = (0, 9) if block == 0 else (12 * block - 3, 12)
    return Chunk(block, first, tuple(AccessUnit(b"x", n == 0) for n in range(frames)))


@pytest.fixture
def session() -> Session:
    session = Session(Pace(), BlockLengths(), 0.0)
    session.schedule(Blend.of("noon"), 0, None, "noon", 0.0)
    session.start("", 0.0)
    return session


@pytest.fixture
def spec(small: StreamConfig) -> SessionSpec:
    return SessionSpec("id", "anna", "tiny", small, Pace(), 5.0)


class Feed:
    """The deltas of a session, numbered, each from the one before it."""

    def __init__(self, session: Session, spec: SessionSpec) -> None:
        self._session, self._spec = session, spec
        self._number = 0
        self._sent = session.record(0.0)

    def full(self, **what: Any) -> ReplicationDelta:
        self._number, self._sent = 0, self._session.record(0.0)
        full = FullState(self._spec, self._sent, self._session.applied.past())
        return ReplicationDelta(0, full, **what)

    def delta(self, **what: Any) -> ReplicationDelta:
        before, self._sent = self._sent, self._session.record(0.0)
        self._number += 1
        return ReplicationDelta(self._number, RecordDelta.between(before, self._sent), **what)


@pytest.fixture
def feed(session: Session, spec: SessionSpec) -> Feed:
    return Feed(session, spec)


def test_what_was_never_known_cannot_be_opened_again() -> None:
    with pytest.raises(ReplicaLost, match="nothing of the session has come here"):
        StandbyCopy().resume_state("lost")


def test_a_session_is_opened_again_as_it_was_known_last(session: Session, spec: SessionSpec, feed: Feed) -> None:
    copy = StandbyCopy()
    copy.apply(feed.full())
    session.schedule(Blend.of("night"), 50, None, "night", 0.0)
    copy.apply(feed.delta(recording=FILM))
    again = copy.resume_state("lost")
    assert copy.spec is spec
    assert (copy.number, again.recording, again.reason) == (1, FILM, "lost")
    assert again.record == session.record(0.0)
    assert again.snapshot is None


def test_the_snapshot_is_the_one_that_the_stream_itself_would_give(
    feed: Feed, spec: SessionSpec, generator: Generator, prompts: list[Prompt]
) -> None:
    assert isinstance(spec.stream, StreamConfig)
    stream = generator.open(spec.stream)
    generator.set_prompt(stream, prompts[0])
    copy, source = StandbyCopy(), StreamEngine(generator).replica_log(stream)
    copy.apply(feed.full())
    for block in range(6):
        generator.decode(stream, generator.generate([stream])[0])
        copy.apply(feed.delta(update=source.changes().update(), chunks=(chunk(block),)))
    again = copy.resume_state("lost")
    assert again.snapshot is not None
    copies = [restore(generator, data).stream for data in (again.snapshot, take_light(generator, stream))]
    pictures = [generator.generate([found])[0].latents for found in copies]
    assert torch.equal(*pictures)
    assert [kept.block for kept in again.chunks] == list(range(6))


def test_a_reset_forgets_the_take_before(session: Session, feed: Feed) -> None:
    copy = StandbyCopy()
    copy.apply(feed.full())
    copy.apply(feed.delta(chunks=(chunk(0),)))
    session.reset("", 0.0)
    copy.apply(feed.delta())
    assert copy.resume_state("lost").chunks == ()


def test_what_is_kept_for_late_viewers_is_bounded(feed: Feed) -> None:
    copy = StandbyCopy()
    copy.apply(feed.full())
    for block in range(RECENT_CHUNKS + 5):
        copy.apply(feed.delta(chunks=(chunk(block),)))
    kept = copy.resume_state("lost").chunks
    assert (len(kept), kept[0].first_frame) == (RECENT_CHUNKS, 57)


def test_a_delta_after_one_that_did_not_come_is_refused_and_changes_nothing(feed: Feed) -> None:
    copy, full, lost, late = StandbyCopy(), feed.full(), feed.delta(), feed.delta(recording=FILM)
    with pytest.raises(MissedDelta):
        copy.apply(lost)
    copy.apply(full)
    with pytest.raises(MissedDelta, match="delta 2 came after 0"):
        copy.apply(late)
    assert (copy.number, copy.resume_state("lost").recording) == (0, NO_RECORDING)
    copy.apply(feed.full(recording=FILM))
    assert copy.resume_state("lost").recording == FILM


def test_blocks_without_a_snapshot_are_refused(session: Session, feed: Feed) -> None:
    copy = StandbyCopy()
    session.delivered(session.begin_block(0.0), 0.0)
    copy.apply(feed.full(chunks=(chunk(0),)))
    with pytest.raises(InvalidRequest, match="9 frames and no snapshot"):
        copy.resume_state("lost")


def test_a_session_of_any_length_is_opened_again_with_all_that_has_applied(spec: SessionSpec) -> None:
    session, copy = Session(Pace(), BlockLengths(), 0.0), StandbyCopy()
    feed = Feed(session, spec)
    for block in range(700):
        session.schedule(Blend.of(f"prompt {block}"), None, None, "", 0.0)
        session.begin_block(0.0)
        if block == 300:
            copy.apply(feed.full())
        elif block > 300:
            copy.apply(feed.delta())
    again = copy.resume_state("lost")
    assert [*AppliedLog.of(again.record.applied, again.past)] == [*session.applied]


FIVE, SIX = BlockInWork(0, 5), BlockInWork(0, 6)


def test_the_second_replica_that_dies_of_a_block_is_one_too_many() -> None:
    deaths = BlockDeaths()
    assert [deaths.one_too_many(replica, FIVE, 0.0) for replica in "aab"] == [None, None, 5]


@pytest.mark.parametrize("making", [SIX, BlockInWork(1, 5), None])
def test_replicas_that_die_of_different_blocks_or_of_none_are_nobodys_fault(making: BlockInWork | None) -> None:
    deaths = BlockDeaths()
    assert [deaths.one_too_many(*death, 0.0) for death in (("a", FIVE), ("b", making), ("c", None))] == [None] * 3


def deaths_before(due: BlockInWork, lived_s: float) -> list[int | None]:
    """What becomes of five replicas that die before the same block, each so long after it got the session."""
    deaths, found = BlockDeaths(), []
    for number, (replica, following) in enumerate(pairwise("abcdef")):
        now = number * lived_s
        found.append(deaths.one_too_many(replica, due, now))
        deaths.moved(replica, due, following, now)
    return found


def test_three_replicas_that_die_before_the_same_block_as_soon_as_they_have_it_have_died_of_it() -> None:
    assert deaths_before(BlockInWork(0, 5, is_next=True), lived_s=2.0)[:4] == [None, None, None, 5]


def test_replicas_that_die_of_something_else_before_a_block_that_waits_are_nobodys_fault() -> None:
    assert deaths_before(BlockInWork(0, 5, is_next=True), lived_s=60.0) == [None] * 5


def test_a_replica_that_fell_silent_and_dies_later_died_of_what_it_was_making() -> None:
    deaths = BlockDeaths()
    deaths.moved("a", FIVE, "b", 0.0)
    deaths.moved("b", FIVE, "c", 0.0)
    assert [deaths.one_too_many("a", None, 60.0), deaths.one_too_many("b", None, 60.0)] == [None, 5]


def test_a_replica_that_has_the_session_again_dies_of_what_it_makes_now() -> None:
    deaths = BlockDeaths()
    deaths.moved("a", FIVE, "b", 0.0)
    deaths.moved("b", FIVE, "a", 0.0)
    assert [deaths.one_too_many("a", SIX, 0.0), deaths.one_too_many("b", None, 0.0)] == [None, None]
