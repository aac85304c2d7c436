"""What a standby adds up; `test_denoiser.py` opens a session from it."""

from __future__ import annotations

import pytest
import torch

from engines.config.geometry import BlockLengths
from engines.config.stream import StreamConfig
from engines.streaming.generator import Generator
from engines.streaming.replica_log import ReplicaLog
from engines.streaming.snapshot import restore, take_light
from engines.text.prompt import Prompt
from serving.errors import ReplicaLost
from serving.media.chunk import AccessUnit, Chunk
from serving.replication.messages import ReplicationDelta, SessionSpec
from serving.replication.standby import KEPT_CHUNKS, StandbyCopy, oldest_frame
from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import Blend


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


def test_what_was_never_known_cannot_be_opened_again() -> None:
    with pytest.raises(ReplicaLost, match="before anything of it was known"):
        StandbyCopy().resume_state("lost")


def test_a_session_is_opened_again_as_it_was_known_last(session: Session, spec: SessionSpec) -> None:
    mirror = StandbyCopy()
    mirror.apply(ReplicationDelta(session.record(0.0), spec=spec))
    session.schedule(Blend.of("night"), 50, None, "night", 0.0)
    mirror.apply(ReplicationDelta(session.record(0.0), recording="film"))
    again = mirror.resume_state("lost")
    assert mirror.spec is spec
    assert (again.epoch, again.recording, again.reason) == (1, "film", "lost")
    assert again.record == session.record(0.0)
    assert again.snapshot is None


def test_the_snapshot_is_the_one_that_the_stream_itself_would_give(
    session: Session, spec: SessionSpec, generator: Generator, prompts: list[Prompt]
) -> None:
    stream = generator.open(spec.stream)
    generator.set_prompt(stream, prompts[0])
    mirror, source = StandbyCopy(), ReplicaLog(generator, stream)
    mirror.apply(ReplicationDelta(session.record(0.0), spec=spec))
    for block in range(6):
        generator.decode(stream, generator.generate([stream])[0])
        mirror.apply(ReplicationDelta(session.record(0.0), source.changes().update(), (chunk(block),)))
    again = mirror.resume_state("lost")
    assert again.snapshot is not None
    copies = [restore(generator, data).stream for data in (again.snapshot, take_light(generator, stream))]
    pictures = [generator.generate([copy])[0].latents for copy in copies]
    assert torch.equal(*pictures)
    assert [kept.block for kept in again.chunks] == list(range(6))


def test_a_reset_forgets_the_take_before(session: Session, spec: SessionSpec) -> None:
    mirror = StandbyCopy()
    mirror.apply(ReplicationDelta(session.record(0.0), spec=spec))
    mirror.apply(ReplicationDelta(session.record(0.0), chunks=(chunk(0),)))
    session.reset("", 0.0)
    mirror.apply(ReplicationDelta(session.record(0.0)))
    assert mirror.resume_state("lost").chunks == ()


def test_what_is_kept_for_late_viewers_is_bounded(session: Session, spec: SessionSpec) -> None:
    mirror = StandbyCopy()
    mirror.apply(ReplicationDelta(session.record(0.0), spec=spec))
    for block in range(KEPT_CHUNKS + 5):
        mirror.apply(ReplicationDelta(session.record(0.0), chunks=(chunk(block),)))
    kept = mirror.resume_state("lost").chunks
    assert (len(kept), oldest_frame(kept, 0)) == (KEPT_CHUNKS, 57)


def test_a_session_of_any_length_is_opened_again_with_all_that_has_applied(spec: SessionSpec) -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    mirror = StandbyCopy()
    for block in range(700):
        session.schedule(Blend.of(f"prompt {block}"), None, None, "", 0.0)
        session.begin_block(0.0)
        if block == 300:
            past = session.applied.past()
            mirror.apply(ReplicationDelta(session.record(0.0), spec=spec, past=past))
        elif block > 300:
            mirror.apply(ReplicationDelta(session.record(0.0)))
    again = mirror.resume_state("lost")
    assert [*AppliedLog.of(again.record.applied, again.past)] == [*session.applied]


def test_where_nothing_is_kept_the_oldest_frame_is_the_next() -> None:
    assert oldest_frame((), 33) == 33
