from __future__ import annotations

import pytest

from serving.replication.public_address import ARRIVE_S, SAME_ANSWERS, PublicAddress

LONG = [*["own"] * SAME_ANSWERS]


@pytest.mark.parametrize(
    ("answers", "successor"),
    [
        ([], None),
        (["next"] * 10, None),
        (["next"] * 10 + LONG, None),
        (LONG + ["next"] * (SAME_ANSWERS - 1), None),
        (LONG + ["next"] * SAME_ANSWERS, "next"),
        (LONG + ["next", "own"] * 10, None),
        (LONG + ["next", "other"] * 10, None),
        (LONG + ["next"] * SAME_ANSWERS + ["own"] * (SAME_ANSWERS - 1), "next"),
        (LONG + ["next"] * SAME_ANSWERS + ["own"] * SAME_ANSWERS, None),
        (LONG + ["next"] * SAME_ANSWERS + ["other"] * SAME_ANSWERS, "other"),
        (["own", "next"] * 10 + ["next"] * SAME_ANSWERS, None),
    ],
    ids=[
        "nobody", "the old one, seen from the new one", "led here", "too few", "replaced", "in turn", "two others",
        "back, too few", "back", "replaced again", "never led here for long",
    ],
)  # fmt: skip
def test_a_cluster_is_replaced_by_the_one_that_its_address_has_been_led_to(
    answers: list[str], successor: str | None
) -> None:
    address = PublicAddress()
    for answer in answers:
        address.answered(answer, "own")
    assert address.successor == successor


def test_it_is_known_that_an_address_leads_here_once_enough_answers_say_so() -> None:
    address = PublicAddress()
    told = []
    for answer in (*LONG, *["next"] * SAME_ANSWERS):
        address.answered(answer, "own")
        told.append(address.leads_here)
    assert told == [False] * (SAME_ANSWERS - 1) + [True] * SAME_ANSWERS + [False]


def test_sessions_may_arrive_until_a_while_after_another_cluster_has_answered_for_the_last_time() -> None:
    now = 0.0
    address = PublicAddress(lambda: now)
    address.answered("own", "own")
    assert not address.sessions_may_arrive
    address.answered("old", "own")
    now = ARRIVE_S - 1
    address.answered("own", "own")
    assert address.sessions_may_arrive
    now = ARRIVE_S
    assert not address.sessions_may_arrive
