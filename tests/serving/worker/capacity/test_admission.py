from __future__ import annotations

import pytest

from serving.worker.capacity.admission import Demand, shortage


def paced(denoise_s: float, deliver_s: float = 0.0, period_s: float = 0.75, ahead: int = 1) -> Demand:
    return Demand(denoise_s, deliver_s, period_s, ahead * period_s)


def test_whoever_is_alone_is_let_in() -> None:
    assert shortage(paced(5.0), []) is None
    assert shortage(Demand(46.0, 3.0), []) is None


@pytest.mark.parametrize(("present", "fits"), [(1, True), (2, True), (3, False), (7, False)])
def test_as_many_are_let_in_as_can_be_served_in_time(present: int, fits: bool) -> None:
    assert (shortage(paced(0.2), [paced(0.2)] * present) is None) == fits


def test_decoding_counts_as_denoising_does() -> None:
    assert "to decode a block takes 0.40 s of the 0.75 s" in str(shortage(paced(0.01, 0.4), [paced(0.01, 0.4)]))


def test_the_refusal_says_how_much_of_the_time_is_taken() -> None:
    words = shortage(paced(0.3), [paced(0.3), paced(0.15)])
    assert words == (
        "to generate a block takes 0.30 s of the 0.75 s that it lasts, "
        "and those that are here need 60% of the time"
    )


def test_an_unpaced_session_is_let_in_where_its_longest_call_fits_between_the_others() -> None:
    assert shortage(Demand(0.4, 0.05), [paced(0.2, 0.05)]) is None
    assert shortage(Demand(44.0, 2.0), [paced(0.2, 0.05)]) == (
        "a block of another one would wait 45.45 s longer than the 0.75 s that it may; "
        "the longest call that cannot be interrupted takes 44.00 s"
    )


def test_a_paced_session_is_not_let_in_where_it_would_hold_up_the_others() -> None:
    """Half a frame a second of a large picture takes a fifth of the time, and 5 s of it at once."""
    assert shortage(paced(5.0, period_s=24.0), [paced(0.2)]) is not None
    assert shortage(paced(5.0, period_s=24.0), [paced(0.2, ahead=8)]) is None


def test_nobody_is_let_in_whom_one_that_is_there_would_hold_up() -> None:
    assert "a block of this one would wait" in str(shortage(paced(0.1), [Demand(46.0, 2.0)]))


def test_any_number_of_unpaced_sessions_is_let_in() -> None:
    assert shortage(Demand(0.3, 0.0), [paced(0.2), *[Demand(0.3, 0.0)] * 9]) is None
