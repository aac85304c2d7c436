from __future__ import annotations

import pytest

from engines.config.video_stream import Loop, LoopSetting
from serving.worker.capacity.loop_choice import CHANGED_AFTER_S, LoopChoice


def chosen(*looks: tuple[float, float, float], setting: LoopSetting = "auto") -> list[Loop]:
    choice = LoopChoice(setting)
    return [choice.look(*look) for look in looks]


def test_a_plain_loop_is_kept_while_there_is_time_for_it() -> None:
    assert chosen((0.2, 0.1, 0.0), (0.9, 0.4, 20.0)) == ["plain", "plain"]


def test_where_its_time_does_not_suffice_blocks_go_through_stream_batch() -> None:
    assert chosen((0.95, 0.5, 0.0)) == ["batch"]


def test_a_stream_batch_that_takes_as_long_is_worth_no_delay() -> None:
    assert chosen((1.4, 1.3, 0.0)) == ["plain"]


def test_a_loop_is_kept_for_a_while_and_left_only_when_there_is_time_to_spare() -> None:
    looks = [(0.95, 0.5, 0.0), (0.2, 0.1, CHANGED_AFTER_S - 1), (0.85, 0.4, CHANGED_AFTER_S), (0.7, 0.4, 30.0)]
    assert chosen(*looks) == ["batch", "batch", "batch", "plain"]


@pytest.mark.parametrize("setting", ["plain", "batch"])
def test_what_is_set_stays(setting: LoopSetting) -> None:
    assert chosen((2.0, 0.1, 0.0), (0.1, 0.2, 100.0), setting=setting) == [setting, setting]
