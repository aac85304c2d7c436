"""The ledger of a soak's client notices whatever goes wrong with frames and prompts."""

from __future__ import annotations

from benchmarks.soak.ledger import Ledger, Reread
from serving.pb.longtake.v1 import sessions_pb2 as pb


def chunk(first: int, end: int, data: bytes = b"picture") -> pb.Chunk:
    return pb.Chunk(
        first_frame=first, units=[pb.AccessUnit(frame=frame, data=data) for frame in range(first, end)]
    )


def receipt(cue_frame: int, *, replicated: bool = True) -> pb.Receipt:
    return pb.Receipt(cue_frame=cue_frame, replicated=replicated)


def shown(*chunks: pb.Chunk) -> Ledger:
    ledger = Ledger()
    for number, one in enumerate(chunks):
        ledger.show(one, float(number))
    return ledger


def test_frames_that_follow_each_other_are_neither_lost_nor_doubled() -> None:
    ledger = shown(chunk(0, 9), chunk(9, 21))
    assert (ledger.lost, ledger.doubled, ledger.next_frame) == (0, 0, 21)


def test_a_missing_chunk_and_a_repeated_one_are_counted_frame_by_frame() -> None:
    ledger = shown(chunk(0, 9), chunk(21, 33), chunk(21, 33))
    assert (ledger.lost, ledger.doubled) == (12, 12)


def test_what_the_server_says_that_it_does_not_send_is_lost() -> None:
    ledger = shown(chunk(0, 9))
    ledger.skip(pb.Gap(first_frame=9, frames=12))
    ledger.show(chunk(21, 33), 2.0)
    assert (ledger.lost, ledger.doubled) == (12, 0)


def test_a_second_look_finds_other_pictures_and_another_order() -> None:
    ledger = shown(chunk(0, 9), chunk(9, 21))
    assert ledger.compare([chunk(0, 9), chunk(9, 21)]) == Reread(21, 0, 0)
    assert ledger.compare([chunk(0, 9, b"other")]) == Reread(9, 9, 0)
    assert ledger.compare([chunk(0, 9), chunk(0, 9)]) == Reread(18, 0, 1)


def test_no_chunk_is_waited_for_in_a_pause() -> None:
    ledger = shown(chunk(0, 9), chunk(9, 21))
    ledger.halt(1.5)
    ledger.expect(10.0)
    ledger.show(chunk(21, 33), 11.0)
    assert ledger.gaps == [(1.0, 1.0), (1.5, 0.5), (11.0, 1.0)]


def test_a_pause_does_not_hide_that_a_session_stood_still() -> None:
    ledger = shown(chunk(0, 9))
    ledger.halt(60.0)
    assert ledger.gaps == [(60.0, 60.0)]


def test_a_prompt_with_a_receipt_must_be_known_unless_another_took_its_place() -> None:
    ledger = Ledger()
    ledger.accept("replaced", receipt(9))
    ledger.accept("kept", receipt(9))
    ledger.accept("lost", receipt(21))
    ledger.accept("perhaps", receipt(33, replicated=False))
    assert ledger.lost_prompts([(9, "kept")], replicated=True) == ["lost"]
    assert ledger.lost_prompts([(9, "kept")], replicated=False) == ["perhaps"]


def test_a_prompt_whose_place_one_without_an_answer_took_is_not_lost() -> None:
    ledger = Ledger()
    ledger.accept("replaced", receipt(9))
    ledger.ask("heard, not answered")
    assert ledger.lost_prompts([(9, "heard, not answered")], replicated=True) == []
    assert ledger.lost_prompts([(9, "an earlier one")], replicated=True) == ["replaced"]
