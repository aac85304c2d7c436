from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import (
    CommandIdReused,
    InvalidRequest,
    MemoryFull,
    ServingError,
    TimelineError,
    TooManyRequests,
    WrongState,
)
from serving.session.receipt_log import MAX_ID_CHARACTERS, MOST_RECEIPTS, ReceiptLog
from serving.session.types import CommandKind, LoggedReceipt, Receipt, Refusal, Stage


def receipt(number: int) -> Receipt:
    return Receipt(f"c{number}", CommandKind.START, Stage.ACCEPTED, number)


def full_log(entries: int) -> ReceiptLog:
    log = ReceiptLog()
    for number in range(entries):
        log.add("ann", f"c{number}", b"start", receipt(number))
    return log


def test_a_command_that_comes_again_has_its_first_answer() -> None:
    log = full_log(3)
    assert log.find("ann", "c1", b"start") == receipt(1)
    assert log.find("ann", "c3", b"start") is None


def test_the_same_id_of_another_client_is_another_command() -> None:
    assert full_log(1).find("bea", "c0", b"start") is None


def test_an_id_that_was_used_for_something_else_is_refused() -> None:
    with pytest.raises(CommandIdReused, match="'c0' was used before"):
        full_log(1).find("ann", "c0", b"reset")


@pytest.mark.parametrize(("client_id", "command_id"), [("", "c"), ("ann", ""), ("", "")])
def test_nothing_is_remembered_without_both_ids(client_id: str, command_id: str) -> None:
    log = ReceiptLog()
    log.add(client_id, command_id, b"start", receipt(0))
    assert log.find(client_id, command_id, b"reset") is None
    assert log.entries == ()


def test_the_oldest_answer_is_forgotten_first() -> None:
    log = full_log(MOST_RECEIPTS + 1)
    assert log.find("ann", "c0", b"start") is None
    assert log.find("ann", "c1", b"start") == receipt(1)
    assert len(log.entries) == MOST_RECEIPTS


@pytest.mark.parametrize("ids", [("x" * (MAX_ID_CHARACTERS + 1), "c"), ("ann", "x" * (MAX_ID_CHARACTERS + 1))])
def test_an_id_is_no_place_to_keep_things(ids: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="201 characters"):
        ReceiptLog().find(*ids, b"")


@pytest.mark.parametrize(
    "error",
    [
        WrongState("it is paused"),
        MemoryFull("4 GiB"),
        TooManyRequests("later", 2.5),
        TimelineError("cues[2].at", "-1 is no frame"),
    ],
)
def test_a_refusal_is_raised_again_as_what_it_was_even_on_another_replica(error: ServingError) -> None:
    again = pickle.loads(pickle.dumps(Refusal.of(error))).error()
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)


ids = st.sampled_from(["", "a", "b"])
asked = st.tuples(ids, st.integers(0, 60).map(str) | st.just(""), st.sampled_from([b"x", b"x", b"x", b"y"]))


@given(st.lists(asked, max_size=600), st.integers(1, 50))
def test_a_copy_that_is_told_what_is_new_answers_as_the_log_itself(
    commands: list[tuple[str, str, bytes]], every: int
) -> None:
    log, copy = ReceiptLog(), ReceiptLog()
    done: dict[tuple[str, str], tuple[bytes, Receipt]] = {}
    for number, (client_id, command_id, content) in enumerate(commands):
        key = (client_id, command_id)
        if key in done and done[key][0] != content:
            with pytest.raises(CommandIdReused):
                log.find(client_id, command_id, content)
            continue
        found = log.find(client_id, command_id, content)
        if found is None:
            log.add(client_id, command_id, content, receipt(number))
            done |= {key: (content, receipt(number))} if client_id and command_id else {}
        else:
            assert (content, found) == done[key]
        if number % every == 0:
            copy.extend(log.since(copy.count))
            assert copy.entries == log.entries
    assert len(log.entries) <= MOST_RECEIPTS
    assert ReceiptLog(log.entries).entries == log.entries


def test_what_a_copy_lacks_is_no_more_than_what_is_kept() -> None:
    log = full_log(3 * MOST_RECEIPTS)
    assert log.since(0) == log.entries
    assert [entry.command_id for entry in log.since(log.count - 2)] == ["c766", "c767"]
    assert log.since(log.count) == ()


def test_an_entry_is_plain_data() -> None:
    entry = LoggedReceipt("ann", "c", b"x", Refusal(WrongState, ("no",)))
    assert pickle.loads(pickle.dumps(entry)) == entry
