"""Pictures that a client sends over the WebSocket, as binary messages."""

from __future__ import annotations

import struct

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb

HEAD = struct.Struct(">IQQ")
"""What comes before a picture: how it is encoded, its id, and when it was taken, in microseconds."""

MOST = (1 << 53) - 1
"""Of an id and of a time: more is rounded where they are read as JSON."""


def read_picture(message: bytes) -> pb.Command:
    """The picture in a message; what it shows is looked at where it is restyled.

    Raises InvalidRequest for a message that cannot be one.
    """
    if len(message) <= HEAD.size:
        raise InvalidRequest(
            f"the binary message has {len(message)} bytes; a picture comes behind a head of {HEAD.size}"
        )
    encoding, id, time_us = HEAD.unpack_from(message)
    if encoding not in pb.PictureFormat.values() or encoding == pb.PICTURE_FORMAT_UNSPECIFIED:
        raise InvalidRequest(f"picture format {encoding} is unknown; known: 1 (JPEG), 2 (PNG), 3 (H.264)")
    for name, number in (("id", id), ("time", time_us)):
        if number > MOST:
            raise InvalidRequest(f"the picture's {name} is {number}; it must be at most {MOST}")
    data = message[HEAD.size :]
    return pb.Command(picture=pb.Picture(id=id, time_us=time_us, format=encoding, data=data))
