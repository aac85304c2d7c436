"""Since when an owner does not answer."""

from serving.gateway.failover.absences import FORGOTTEN_S, Absences
from serving.replication.register import Owner

OWNER, NEXT = Owner("a", "attempt 1", "m"), Owner("b", "attempt 2", "m")


def test_an_absence_goes_on_from_one_question_to_the_next_until_there_is_an_answer() -> None:
    absences = Absences()
    assert [absences.note(OWNER, now) for now in (100.0, 105.0, 117.0)] == [100.0] * 3
    absences.end(OWNER)
    assert absences.note(OWNER, 118.0) == 118.0


def test_what_nobody_asked_for_a_while_begins_anew_and_so_does_another_owner() -> None:
    absences = Absences()
    absences.note(OWNER, 100.0)
    assert absences.note(NEXT, 105.0) == 105.0
    assert absences.note(OWNER, 100.0 + FORGOTTEN_S) == 100.0 + FORGOTTEN_S
