"""In which loop the videos of a replica are restyled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.config.video_stream import Loop
from serving.session.state_machine import State
from serving.worker.capacity.capacity import Capacity, Load
from serving.worker.capacity.loop_choice import LoopChoice
from serving.worker.state.active_session import ActiveSession

LOOK_S = 1.0
"""How often it is looked at what the device has time for."""


class VideoLoops:
    """Has them made in the loop that the device has time for."""

    def __init__(self, choice: LoopChoice, capacity: Capacity) -> None:
        self._choice = choice
        self._capacity = capacity
        self._look_at = -math.inf

    def choose(self, sessions: Sequence[ActiveSession], now: float) -> None:
        """Tell the `sessions` of a device, and all who follow them."""
        videos = [session for session in sessions if session.input is not None]
        if videos and now >= self._look_at:
            self._look_at = now + LOOK_S
            running = [session for session in sessions if session.logic.state is State.RUNNING]
            self._choice.look(self._busy(running, "plain", now), self._busy(running, "batch", now), now)
        for session in videos:
            if session.loop != self._choice.loop:
                session.loop = self._choice.loop
                session.audience.publish_state()

    def _busy(self, sessions: Sequence[ActiveSession], loop: Loop, now: float) -> float:
        """What part of the device's time they take whose videos are made in a loop."""
        loads = [Load(session.config, session.spec.pace).in_loop(loop) for session in sessions]
        return self._capacity.busy(loads, now)
