"""The pictures that controllers send to a replica's sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from serving.errors import ControllerReplaced
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.session.state_machine import State
from serving.worker.pictures.input_stage import InputStage
from serving.worker.pictures.picture_decoder import read_picture
from serving.worker.pictures.session_input import SessionInput, require_pictures
from serving.worker.session_copies import SessionCopies
from serving.worker.state.active_session import ActiveSession
from serving.worker.state.session_guard import SessionGuard


class PictureIntake:
    """Hands them to the sessions; `stage` encodes them, and is None where there are no sessions that take any."""

    def __init__(
        self, copies: SessionCopies, stage: InputStage | None, wake: Callable[[], None], guard: SessionGuard
    ) -> None:
        self._copies = copies
        self._stage = stage
        self._wake = wake
        self._guard = guard

    def take(self, attempt: str, client_id: str, sent: Sequence[pb.Command], dropped: int) -> None:
        """Pictures that the session's controller has sent, and how many more got lost on their way.

        Those that come while it does not run are dropped. Raises InvalidRequest for a session that takes none, and
        for what is none; ControllerReplaced.
        """
        session = self._copies.leased(attempt)
        pictures, now = require_pictures(session.input), asyncio.get_running_loop().time()
        if session.logic.controller != client_id:
            raise ControllerReplaced("another controller steers the session now; attach again to take it over")
        read = [read_picture(command, now) for command in sent]
        session.logic.renew(now)
        pictures.set_sender(client_id)
        pictures.received += dropped
        pictures.lost(dropped)
        for picture in read:
            if picture is None:
                pictures.end()
            elif session.logic.state is State.RUNNING:
                pictures.put(picture)
            else:
                pictures.refuse()
        self._advance(session)

    def encode_more(self, session: ActiveSession) -> None:
        """Do what there is to do with the pictures of a session, one thing after the other, until it ends."""
        if session.input is not None and self._stage is not None and not session.closed:
            again, failed = partial(self._advance, session), partial(self._failed, session, session.input)
            self._stage.begin(session.input, session.logic, self._wake, again, failed)

    def _advance(self, session: ActiveSession) -> None:
        """Something has come, or has been done; once there is nothing more, blocks on their way come out."""
        self.encode_more(session)
        if session.input is not None and session.input.is_over:
            self._wake()

    def _failed(self, session: ActiveSession, pictures: SessionInput, doing: str, error: Exception) -> None:
        """End a session whose pictures cannot be encoded; a reset may have begun anew without them."""
        if session.input is not pictures:
            raise error
        with self._guard.working(session, doing):
            raise error

    def check(self) -> None:
        """Raise RuntimeError if no pictures are encoded any more."""
        if self._stage is not None:
            self._stage.check()

    def stop(self) -> None:
        """Encode nothing more."""
        if self._stage is not None:
            self._stage.stop()
