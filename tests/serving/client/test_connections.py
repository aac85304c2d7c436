from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from serving.client.connections import Connections, require_private
from serving.errors import InsecureToken, SessionMoved

MOVED_TO_B = SessionMoved("it moved", "b:9000")
MOVED_HERE = SessionMoved("it moved")


@dataclass
class Channels:
    """Opens channels that nothing is sent over."""

    opened: list[str] = field(default_factory=list)

    def __call__(self, server: str) -> Any:
        self.opened.append(server)
        return self

    def __getattr__(self, name: str) -> Any:
        """Of a channel: what makes methods of it."""
        return lambda *_, **__: None


def test_a_session_that_moves_is_asked_for_over_a_connection_to_its_server_which_others_share() -> None:
    channels = Channels()
    connections = Connections("a:9000", channels)
    for session in ("one", "two"):
        connections.follow(session, MOVED_TO_B)
    assert [connections.of(name).server for name in ("one", "two", "three", "")] == [
        *["b:9000"] * 2,
        *["a:9000"] * 2,
    ]
    assert channels.opened == ["a:9000", "b:9000"]


def test_a_session_that_moves_behind_its_address_is_asked_for_over_a_new_connection() -> None:
    channels = Channels()
    connections = Connections("a:9000", channels)
    for session in ("one", "two", "one"):
        connections.follow(session, MOVED_HERE)
    assert channels.opened == ["a:9000"] * 3
    assert connections.of("one") is not connections.of("two") is not connections.first


def test_a_session_may_move_there_and_back() -> None:
    channels = Channels()
    connections = Connections("a:9000", channels)
    connections.follow("one", MOVED_TO_B)
    connections.follow("one", SessionMoved("it moved", "a:9000"))
    assert connections.of("one").server == "a:9000"
    assert connections.of("one") is not connections.first


def test_a_token_stays_on_this_machine_unless_it_is_said_that_others_may_read_it() -> None:
    for server, tls, insecure in (("localhost:1", False, False), ("b:1", True, False), ("b:1", False, True)):
        require_private(server, tls=tls, insecure=insecure)
    with pytest.raises(InsecureToken, match="would go to b:1 in the clear"):
        require_private("b:1", tls=False, insecure=False)
