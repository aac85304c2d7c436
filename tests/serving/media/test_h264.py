from __future__ import annotations

from pathlib import Path

import av
import pytest

from serving.media.chunk import AccessUnit
from serving.media.h264 import ParameterSets, join_units, sample, split_units
from tests.serving.footage import chunks


@pytest.mark.parametrize(
    "data",
    [b"\x00\x00\x01\x67ab\x00\x00\x01\x68c", b"\x00\x00\x00\x01\x67ab\x00\x00\x00\x00\x01\x68c\x00\x00"],
    ids=["short start codes", "zeros around"],
)
def test_a_byte_stream_is_taken_apart_at_its_start_codes(data: bytes) -> None:
    assert split_units(data) == [b"\x67ab", b"\x68c"]


def test_units_can_be_joined_and_taken_apart_again() -> None:
    units = [unit for chunk in chunks() for access in chunk.units for unit in split_units(access.data)]
    assert split_units(join_units(units)) == units


def test_a_sample_has_lengths_and_no_parameter_sets() -> None:
    unit = AccessUnit(join_units([b"\x67sps", b"\x68pps", b"\x65picture", b"\x65rest"]), key=True)
    assert sample(unit) == b"\x00\x00\x00\x08\x65picture\x00\x00\x00\x05\x65rest"


def test_the_record_of_parameter_sets_is_the_one_that_ffmpeg_writes(tmp_path: Path) -> None:
    first = chunks()[0]
    stream, film = tmp_path / "film.h264", tmp_path / "film.mp4"
    # FFmpeg takes the first byte of a long start code for a part of the set before it.
    stream.write_bytes(b"".join(unit.data for unit in first.units).replace(b"\0\0\0\1", b"\0\0\1"))
    with av.open(str(stream), "r") as read, av.open(str(film), "w") as copy:
        video = copy.add_stream_from_template(read.streams.video[0], opaque=True)
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            packet.stream, packet.pts, packet.dts = video, number, number
            copy.mux(packet)
    with av.open(str(film), "r") as written:
        assert written.streams.video[0].codec_context.extradata == ParameterSets.of(first).record
