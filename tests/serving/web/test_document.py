"""The protocol of the WebSocket, as it is written down beside the .proto."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.inbound import RequestKind, open_envelope, read_message
from serving.web.json_format import receipt_json
from serving.web.query import OPTIONS, PLACES

DOCUMENT = (Path(__file__).parents[3] / "proto/longtake/v1/websocket.md").read_text()


def known_to(message: str) -> list[str]:
    """What the server names to who sends something else."""
    with pytest.raises(Exception, match="known: ") as refused:
        read_message(open_envelope(message))
    return str(refused.value).partition("known: ")[2].split(", ")


def known_types() -> list[str]:
    return known_to('{"type": "?"}')


@pytest.mark.parametrize("name", [*PLACES, *OPTIONS])
def test_every_parameter_of_the_address_is_written_down(name: str) -> None:
    assert f"`{name}`" in DOCUMENT or f"`{name}=1`" in DOCUMENT


def test_every_message_of_a_client_is_written_down() -> None:
    assert set(get_args(RequestKind)) < set(known_types())
    assert [name for name in known_types() if f"`{name}`" not in DOCUMENT] == []


@pytest.mark.parametrize("type", known_types())
def test_every_field_of_a_clients_messages_is_written_down(type: str) -> None:
    fields = known_to(f'{{"type": "{type}", "data": {{"?": 1}}}}')
    assert [name for name in fields if name and f"`{name}`" not in DOCUMENT] == []


def test_every_event_and_every_field_of_a_receipt_is_written_down() -> None:
    events = {field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["event"].fields} - {"chunk"}
    fields = receipt_json(pb.Receipt(error=pb.Error()))
    assert [name for name in (*events, *fields) if f"`{name}`" not in DOCUMENT] == []
