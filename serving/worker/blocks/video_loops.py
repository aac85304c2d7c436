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

    def look(self, sessions: Sequence[ActiveSession], now: float) -> None:
        """Choose the loop by what the `sessions` of a device take of its time."""
        if now >= self._look_at and any(session.input is not None for session in sessions):
            self._look_at = now + LOOK_S
            running = [session for session in sessions if session.logic.state is State.RUNNING]
            self._choice.look(self._busy(running, "plain", now), self._busy(running, "batch", now), now)

    def tell(self, session: ActiveSession) -> None:
        """Have a session's video made in it, and tell all who follow."""
        if session.input is not None and session.loop != self._choice.loop:
            session.loop = self._choice.loop
            session.audience.publish_state()

    def _busy(self, sessions: Sequence[ActiveSession], loop: Loop, now: float) -> float:
        """What part of the device's time they take whose videos are made in a loop."""
        loads = [Load(session.config, session.spec.pace).in_loop(loop) for session in sessions]
        return self._capacity.busy(loads, now)
