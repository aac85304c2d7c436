"""How long work may take before it counts as one that does not come back."""

from __future__ import annotations

import pytest

from serving.pipeline.work_watch import FIRST_S, SHORTEST_S, TIMES_USUAL, WorkWatch


@pytest.mark.parametrize(
    ("before", "usual_s", "most_s"),
    [(0, 0.01, FIRST_S), (0, 60.0, 60.0 * TIMES_USUAL), (1, 0.01, SHORTEST_S), (1, 2.0, 2.0 * TIMES_USUAL)],
    ids=["the first", "a first one that takes long", "a short one", "a long one"],
)
def test_work_may_take_twenty_times_as_long_as_usual_and_ten_seconds_at_least(
    before: int, usual_s: float, most_s: float
) -> None:
    clock = [0.0]
    watch = WorkWatch("a pass", lambda: clock[0])
    for _ in range(before):
        watch.run(lambda: None)
    with watch.running(usual_s):
        clock[0] = most_s
        watch.check()
        clock[0] = most_s + 1
        with pytest.raises(RuntimeError, match=f"a pass has not come back for {most_s + 1:.0f} s"):
            watch.check()
    watch.check()
