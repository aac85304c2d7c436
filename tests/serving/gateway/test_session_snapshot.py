from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from engines.config.stream import StreamConfig
from serving.errors import InvalidRequest, LimitReached
from serving.gateway import session_snapshot
from serving.gateway.session_snapshot import HEADER, MAGIC, pack, restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import SavedSession, SessionSpec
from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.state_machine import Session, State


def cue(frame: int, text: str = "a red balloon over the hills") -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=text)])


def applied(frame: int) -> pb.AppliedCue:
    return pb.AppliedCue(cue=cue(frame), frame=frame)


WHOLE = pb.Session(next_frame=33, applied=[applied(0), applied(21)], pending=[cue(40)])
MOST = 1 << 20
SPEC = SessionSpec("id", "", "tiny", StreamConfig(), Pace(), 0.0)


@given(st.integers(0, 1 << 40), st.text(max_size=20), st.none() | st.binary(min_size=1, max_size=200))
def test_what_is_packed_comes_out_again(next_frame: int, prompt: str, stream: bytes | None) -> None:
    saved = SavedSession(pb.Session(next_frame=next_frame, prompt=prompt), stream)
    assert unpack(pack(saved, MOST)) == saved


@given(st.data())
def test_one_changed_byte_anywhere_is_found(data: st.DataObject) -> None:
    packed = bytearray(pack(SavedSession(WHOLE, b"stream"), MOST))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRequest):
        unpack(bytes(packed))


def test_every_beginning_of_a_snapshot_is_refused() -> None:
    packed = pack(SavedSession(WHOLE, b"stream"), MOST)
    for length in range(len(packed)):
        with pytest.raises(InvalidRequest, match=r"not a session's snapshot|damaged"):
            unpack(packed[:length])


def test_a_snapshot_that_could_not_be_restored_is_not_made() -> None:
    size = len(pack(SavedSession(WHOLE, b"stream"), MOST))
    assert len(pack(SavedSession(WHOLE, b"stream"), size)) == size
    with pytest.raises(LimitReached, match=f"{size} bytes, with 2 applied cues; at most {size - 1}"):
        pack(SavedSession(WHOLE, b"stream"), size - 1)


def test_a_snapshot_has_more_applied_cues_than_may_be_pending() -> None:
    saved = pb.Session(next_frame=12 * 12_000 - 3, applied=map(applied, [0, *range(9, 12 * 11_999, 12)]))
    resume = restored(unpack(pack(SavedSession(saved, b"stream"), MOST)), SPEC)
    log = AppliedLog.of(resume.record.applied, resume.past)
    assert [entry.block for entry in log] == list(range(12_000))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack(data)


def test_another_version_is_refused() -> None:
    packed = pack(SavedSession(WHOLE, None), MOST)
    with pytest.raises(InvalidRequest, match="send what SnapshotSession returned"):
        unpack(b"longtks9" + packed[len(MAGIC) :])


@given(st.binary(max_size=100))
def test_bytes_that_only_have_the_right_checksum_are_refused_or_read(body: bytes) -> None:
    packed = MAGIC + hashlib.sha256(body).digest() + body
    if len(packed) < HEADER:
        with pytest.raises(InvalidRequest):
            unpack(packed)
        return
    with contextlib.suppress(InvalidRequest):
        unpack(packed)


def test_a_length_beyond_the_end_is_refused() -> None:
    body = (1 << 60).to_bytes(8, "little") + WHOLE.SerializeToString()
    with pytest.raises(InvalidRequest, match="ends within its session"):
        unpack(MAGIC + hashlib.sha256(body).digest() + body)


def test_a_restored_session_is_paused_where_it_was_with_its_cues() -> None:
    session = Session.of(restored(SavedSession(WHOLE, b"stream"), SPEC).record, BlockLengths(), 0.0)
    assert (session.state, session.next_block, session.shown_frame(0.0)) == (State.PAUSED, 3, 32)
    assert [(entry.block, entry.frame) for entry in session.applied] == [(0, 0), (2, 21)]
    assert [pending.cue.frame for pending in session.pending] == [40]


@pytest.mark.parametrize(("cues", "state"), [([0, 40], State.READY), ([40], State.CREATED)])
def test_a_session_saved_before_its_start_can_be_started_if_it_could(cues: list[int], state: State) -> None:
    saved = pb.Session(pending=[cue(frame) for frame in cues])
    assert restored(SavedSession(saved, None), SPEC).record.state is state


@pytest.mark.parametrize(
    ("session", "words"),
    [
        (pb.Session(next_frame=34, applied=[applied(0)]), "no block begins at its next frame, 34"),
        (pb.Session(next_frame=-9), "no block begins at its next frame, -9"),
        (pb.Session(next_frame=(1 << 62) - 3), "none is behind"),
        (pb.Session(next_frame=0), "a stream goes with blocks, and it has 0 of them"),
        (pb.Session(next_frame=33), "of 3 blocks the first has the first cue"),
        (pb.Session(next_frame=33, applied=[applied(21)]), "of 3 blocks the first has the first cue"),
        (pb.Session(next_frame=33, applied=[applied(0), applied(33)]), "a cue has applied behind its 3 blocks"),
        (pb.Session(next_frame=33, applied=[applied(0), applied(20), applied(21)]), "two cues have applied"),
        (pb.Session(next_frame=33, applied=[applied(0), applied(0)]), "not in order"),
        (pb.Session(next_frame=33, applied=[applied(0)], pending=[cue(21)]), "pending in its past"),
        (pb.Session(next_frame=33, applied=[applied(0)], pending=[cue(50), cue(40)]), "not in order"),
        (pb.Session(next_frame=33, applied=[applied(0)], pending=[cue(1 << 60)]), "a cue lies behind frame"),
        (pb.Session(next_frame=33, applied=[applied(0)], pending=[cue(40, " ")]), "empty"),
    ],
)
def test_a_snapshot_of_what_cannot_have_been_is_refused(session: pb.Session, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        restored(SavedSession(session, b"stream"), SPEC)


def test_a_session_with_more_cues_than_are_ever_restored_is_neither_saved_nor_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_snapshot, "MOST_APPLIED", 1)
    with pytest.raises(LimitReached, match="2 cues have applied in the session; at most 1 are saved"):
        pack(SavedSession(WHOLE, b"stream"), MOST)
    monkeypatch.undo()
    packed = pack(SavedSession(WHOLE, b"stream"), MOST)
    monkeypatch.setattr(session_snapshot, "MOST_APPLIED", 1)
    with pytest.raises(LimitReached, match="2 cues have applied"):
        unpack(packed)


def test_a_session_with_more_cues_than_may_be_pending_is_neither_saved_nor_restored() -> None:
    session = pb.Session(next_frame=9, applied=[applied(0)], pending=map(cue, range(9, 10_010)))
    with pytest.raises(LimitReached, match="10001 cues are pending in the session; at most 10000 are saved"):
        pack(SavedSession(session, b"stream"), MOST)
    with pytest.raises(LimitReached, match="10001 cues are pending"):
        unpack(written(session.SerializeToString()))


def written(session: bytes) -> bytes:
    """A snapshot with these bytes for its session."""
    body = len(session).to_bytes(8, "little") + session
    return MAGIC + hashlib.sha256(body).digest() + body


EMPTY = {
    "applied": pb.Session(applied=[pb.AppliedCue()] * 1001),
    "prompts": pb.Session(applied=[pb.AppliedCue(cue=pb.Cue(prompts=[pb.WeightedPrompt()] * 999))]),
    "loras": pb.Session(provenance=pb.Provenance(loras=[pb.Lora()] * 1000)),
}


@pytest.mark.parametrize("empty", EMPTY)
def test_a_session_of_more_messages_than_are_held_is_refused(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = written(EMPTY[empty].SerializeToString())
    monkeypatch.setattr(session_snapshot, "MOST_MESSAGES", 1001)
    unpack(packed)
    monkeypatch.setattr(session_snapshot, "MOST_MESSAGES", 1000)
    with pytest.raises(LimitReached, match="has too many parts; at most 1000 are read"):
        unpack(packed)


@pytest.mark.parametrize(
    "session", [b"\x52", b"\x52" + b"\x80" * 1000, b"\x08" + b"\xff" * 20, b"\x0b\x0c", b"\x52\xff\x01"]
)
def test_a_session_that_is_no_message_is_refused(session: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the snapshot's session cannot be read"):
        unpack(written(session))
