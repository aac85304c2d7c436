from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.errors import InvalidRequest, LimitReached, ServingError, SessionError, TimelineError
from serving.media.chunk import AccessUnit, Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import handle
from serving.protocol.convert import (
    read_blend,
    read_cue,
    read_cues,
    read_pace,
    read_transition,
    write_applied,
    write_cue,
    write_receipt,
)
from serving.protocol.events import read_chunk, write_chunk
from serving.session.pacing import Pace
from serving.session.state_machine import Applied, CommandKind, Receipt, Session, Stage, State
from serving.session.types import Waiting
from serving.timeline.cue import MAX_BLENDED_PROMPTS, MAX_PROMPT_CHARACTERS, Blend, Cue, Restyling, Transition

texts = st.from_regex(r"[a-z][ -~]{0,30}", fullmatch=True)
weights = st.floats(1e-3, 1e6)
blends = st.builds(lambda parts: Blend(tuple(parts)), st.lists(st.tuples(texts, weights), min_size=1, max_size=4))
transitions = st.builds(Transition, st.integers(1, 1000), st.sampled_from(["linear", "slerp"]))
restylings = st.none() | st.builds(
    Restyling, st.none() | st.floats(0.001, 1), st.none() | st.booleans(), st.booleans(), st.booleans()
)
later_cues = st.builds(Cue, st.integers(1, 1 << 50), blends, st.none() | transitions, restylings)
cues = later_cues | st.builds(Cue, st.just(0), blends)
receipts = st.builds(
    Receipt, st.text(max_size=9), st.sampled_from(CommandKind), st.sampled_from(Stage), st.integers(-1, 1 << 50),
    st.integers(0, 1 << 50),
)  # fmt: skip


def prompt(text: str = "a red balloon", weight: float = 1.0) -> pb.WeightedPrompt:
    return pb.WeightedPrompt(text=text, weight=weight)


@given(cues)
def test_a_cue_comes_back_as_it_was(cue: Cue) -> None:
    assert read_cue(pb.Cue.FromString(write_cue(cue).SerializeToString())) == cue


@given(cues, st.integers(0, 1 << 40))
def test_an_applied_cue_has_both_of_its_frames(cue: Cue, frame: int) -> None:
    message = write_applied(Applied(cue, 3, frame, "id"))
    assert (read_cue(message.cue), message.frame) == (cue, frame)


@given(receipts)
def test_a_receipt_says_the_same_in_the_protocol(receipt: Receipt) -> None:
    message = write_receipt(receipt)
    assert (message.command_id, message.command, message.stage, message.frame, message.cue_frame) == (
        receipt.command_id, receipt.command.value, receipt.stage.value, receipt.frame, receipt.cue_frame,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (State, pb.SessionState, "SESSION_STATE_"),
        (CommandKind, pb.CommandKind, "COMMAND_KIND_"),
        (Stage, pb.ReceiptStage, "RECEIPT_STAGE_"),
    ],
)
def test_enumerations_have_the_names_and_numbers_of_the_protocol(ours: Any, theirs: Any, prefix: str) -> None:
    named = {f"{prefix}{one.name}": one.value for one in ours}
    assert {f"{prefix}UNSPECIFIED": 0, **named} == dict(theirs.items())


@given(st.integers(0, 1 << 40), st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=12))
def test_a_chunk_comes_back_and_numbers_its_frames(first_frame: int, data: list[bytes]) -> None:
    chunk = Chunk(7, first_frame, tuple(AccessUnit(unit, n == 0) for n, unit in enumerate(data)))
    message = write_chunk(chunk)
    assert read_chunk(message) == chunk
    frames = list(range(first_frame, first_frame + len(data)))
    assert [unit.frame for unit in message.units] == [unit.pts for unit in message.units] == frames


def test_a_weight_that_is_not_said_is_1_and_one_of_0_is_0() -> None:
    blend = read_blend(pb.Cue(prompts=[pb.WeightedPrompt(text="noon"), prompt("dusk", 0), prompt("night", 2)]))
    assert blend.parts == (("noon", 1.0), ("dusk", 0.0), ("night", 2.0))


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "prompts: the list is empty"),
        ([prompt("")], r"prompts\[0\].text: the prompt is empty"),
        ([prompt("noon"), prompt(" \n")], "empty"),
        ([prompt("&nbsp;")], "the prompt is empty once '&nbsp;' is cleaned; say who or what is seen"),
        ([prompt("noon", 0), prompt("night", 0)], "prompts: all weights are 0; one must be positive"),
        ([prompt("\u200b\u00ad")], "empty"),
        ([prompt("x" * (MAX_PROMPT_CHARACTERS + 1))], "the prompt has 10001 characters"),
        ([prompt("noon", float("nan"))], r"prompts\[0\].weight: nan is not a finite number"),
        ([prompt("noon", float("inf"))], "inf is not a finite number"),
        ([prompt("noon", -1)], "-1 is outside 0..1000000"),
        ([prompt("noon", 1e7)], "10000000 is outside"),
        ([prompt("noon", 1)] * (MAX_BLENDED_PROMPTS + 1), "17 prompts are blended; at most 16 can be"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_by_name(prompts: list[pb.WeightedPrompt], words: str) -> None:
    with pytest.raises((TimelineError, InvalidRequest), match=words):
        read_blend(pb.Cue(prompts=prompts))


@pytest.mark.parametrize(
    ("transition", "words"),
    [
        (pb.Transition(), "0 blocks are outside 1..1000"),
        (pb.Transition(blocks=-3), "-3 blocks are outside"),
        (pb.Transition(blocks=1001), "1001 blocks are outside"),
        (pb.Transition.FromString(b"\x08\x01\x10\x63"), r"transition.method: 99 is unknown; known: 1 \(linear\)"),
    ],
)
def test_a_transition_that_cannot_be_is_refused_by_name(transition: pb.Transition, words: str) -> None:
    with pytest.raises((TimelineError, InvalidRequest), match=words):
        read_transition(pb.Cue(transition=transition))


def test_cues_of_a_request_are_named_by_their_number() -> None:
    whole = pb.Cue(frame=0, prompts=[prompt()])
    with pytest.raises(InvalidRequest, match=r"cues\[1\] has no frame"):
        read_cues([whole, pb.Cue(prompts=[prompt()])])
    with pytest.raises(TimelineError, match=r"cues\[1\].frame: frame -4 is before the beginning"):
        read_cues([whole, pb.Cue(frame=-4, prompts=[prompt()])])
    with pytest.raises((TimelineError, InvalidRequest), match=r"cues\[1\]"):
        read_cues([whole, pb.Cue(frame=4, prompts=[prompt(" ")])])


def test_more_cues_than_may_be_pending_are_refused_before_one_of_them_is_read() -> None:
    with pytest.raises(LimitReached, match="10001 cues come with the request; at most 10000 can be pending"):
        read_cues([pb.Cue(frame=0)] * 10_001)


def test_what_is_not_said_of_the_pace_is_the_servers() -> None:
    assert read_pace(pb.SessionOptions(), 33.0) == Pace(16, 1, 33.0)
    options = pb.SessionOptions(fps=0, ahead=3, lease=Duration(seconds=9, nanos=500_000_000))
    assert read_pace(options, 33.0) == Pace(0, 3, 9.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (pb.SessionOptions(fps=-1), "fps is -1"),
        (pb.SessionOptions(ahead=0), "ahead is 0"),
        (pb.SessionOptions(lease=Duration()), "lease is 0 s"),
        (pb.SessionOptions(lease=Duration(seconds=-5)), "lease is -5 s"),
        (pb.SessionOptions(lease=Duration(seconds=1 << 62)), "lease is 4.61169e.18 s"),
    ],
)
def test_a_pace_that_cannot_be_is_refused_by_name(options: pb.SessionOptions, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_pace(options, 60.0)


frames = st.integers(-5, 50) | st.sampled_from([-(1 << 63), (1 << 63) - 1, 1 << 53])
wild_cues = st.builds(
    pb.Cue,
    frame=st.none() | frames,
    prompts=st.lists(st.builds(prompt, st.text(max_size=4), st.floats(width=64)), max_size=3),
    transition=st.none() | st.builds(pb.Transition, blocks=st.integers(-2, 4), method=st.integers(0, 9)),
)
commands = st.one_of(
    st.builds(pb.Command, schedule_prompt=wild_cues),
    st.builds(pb.Command, remove_prompt=st.builds(pb.RemovePrompt, frame=frames)),
    st.builds(pb.Command, move_prompt=st.builds(pb.MovePrompt, frame=frames, to_frame=frames)),
    st.builds(pb.Command, pause=st.builds(pb.Pause, frame=st.none() | frames)),
    st.builds(pb.Command, restyle=st.builds(pb.Restyling, noise_scale=st.none() | st.floats(width=64))),
    st.sampled_from([
        pb.Command(), pb.Command(start=pb.Start()), pb.Command(resume=pb.Resume()), pb.Command(reset=pb.Reset()),
        pb.Command(cut=pb.Cut()), pb.Command(attach=pb.Attach()), pb.Command(shown=pb.Shown()),
    ]),
)  # fmt: skip


def answered(session: Session, command: pb.Command) -> tuple[Receipt, ...] | ServingError:
    try:
        return handle(session, command, 0.0).receipts
    except (SessionError, TimelineError) as error:
        return error


@given(st.lists(commands, max_size=30))
def test_whatever_is_sent_is_answered_or_refused_with_words(sent: list[pb.Command]) -> None:
    session = Session(Pace(), BlockLengths(), 0.0)
    session.schedule(Blend.of("noon"), 0, None, "", 0.0)
    for number, command in enumerate(sent):
        before = session.record(0.0)
        answer = answered(session, command)
        if isinstance(answer, ServingError):
            assert str(answer)
            assert session.record(0.0) == before
        else:
            assert all(write_receipt(receipt).ByteSize() > 0 for receipt in answer)
        if number % 3 == 0 and session.due(0.0) is not None:
            session.delivered(session.begin_block(0.0), 0.0)


def test_what_a_session_waits_for_has_the_names_and_numbers_of_the_protocol() -> None:
    of_streams = {"WAIT_REASON_REPLICA": pb.WAIT_REASON_REPLICA}
    assert {f"WAIT_REASON_{one.name}": one.value for one in Waiting} | of_streams == dict(pb.WaitReason.items())
