"""The audio of a clip, put into the film that was made of it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from serving.errors import ClipError
from serving.media.film_file import FACTS_TAG
from serving.media.ordinary_mp4 import new_mp4, writing
from serving.media.whole_file import whole_file

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus"})
"""Codecs that an MP4 takes as they are."""

ENCODED_RATE_HZ = 48000


def add_audio(film: Path, clip: Path, start_s: Fraction) -> None:
    """Put the first audio of `clip` into the finished `film`, from `start_s` on and no longer than the film.

    What an MP4 takes is copied, the rest becomes AAC. The film's frames and facts stay as they are. Raises
    ClipError if the clip has no audio that can be read, FilmError if the film cannot be written; the film is
    then as it was.
    """
    with (
        _opened(clip) as source,
        writing(film),
        av.open(str(film), "r") as made,
        whole_file(film) as copy,
        new_mp4(copy) as container,
    ):
        facts = made.metadata.get(FACTS_TAG)
        container.metadata.update({} if facts is None else {FACTS_TAG: facts})
        video = made.streams.video[0]
        length_s = (video.duration or 0) * (video.time_base or Fraction(0))
        frames, sound = _copied(made, video, container, Fraction(0)), _audio(source, container, start_s)
        heard = takewhile(lambda packet: _time_s(packet) < length_s, sound)
        for packet in heapq.merge(frames, heard, key=_time_s):
            if _time_s(packet) >= 0:
                container.mux(packet)


def _opened(clip: Path) -> InputContainer:
    try:
        container = av.open(f"file:{clip}", "r", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{clip} cannot be read as a video: {error.strerror}; name a video file") from error
    if not container.streams.audio:
        container.close()
        raise ClipError(f"{clip} has no audio; leave out --keep-audio")
    return container


def _audio(source: InputContainer, target: OutputContainer, start_s: Fraction) -> Iterator[Packet[Any]]:
    """The clip's audio from `start_s` on, as packets of a new stream."""
    audio = source.streams.audio[0]
    codec = audio.codec_context
    # AAC without this header is framed in another way than in an MP4.
    name = codec.codec.canonical_name
    if name in COPIED and (name != "aac" or codec.extradata):
        return _copied(source, audio, target, start_s)
    stream = target.add_stream("aac", rate=ENCODED_RATE_HZ, layout="mono" if codec.channels == 1 else "stereo")
    return _encoded(source, audio, stream, start_s)


def _copied(
    source: InputContainer, stream: AudioStream | VideoStream, target: OutputContainer, start_s: Fraction
) -> Iterator[Packet[Any]]:
    """The packets of a stream as they are, with times from `start_s` on."""
    copy = target.add_stream_from_template(stream, opaque=True)
    time_base = stream.time_base or Fraction(1, ENCODED_RATE_HZ)
    copy.time_base = time_base
    return _moved(source, stream, copy, round(start_s / time_base))


def _moved(
    source: InputContainer, stream: AudioStream | VideoStream, copy: Stream, ticks: int
) -> Iterator[Packet[Any]]:
    for packet in _packets(source, stream):
        if packet.size and packet.pts is not None and packet.dts is not None:
            packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copy
            yield packet


def _packets(source: InputContainer, stream: AudioStream | VideoStream) -> Iterator[Packet[Any]]:
    """The packets of a stream; those behind where its file is cut off are not missed."""
    try:
        yield from source.demux(stream)
    except av.InvalidDataError:
        return


def _encoded(
    source: InputContainer, audio: AudioStream, stream: AudioStream, start_s: Fraction
) -> Iterator[Packet[Any]]:
    """The audio from `start_s` on in another codec."""
    resampler = av.AudioResampler("fltp", stream.layout, ENCODED_RATE_HZ)
    for frame in chain.from_iterable(map(_decoded, _packets(source, audio))):
        if frame.pts is None or frame.time_base is None or frame.pts * frame.time_base < start_s:
            continue
        frame.pts -= round(start_s / frame.time_base)
        for part in resampler.resample(frame):
            yield from stream.encode(part)
    for part in resampler.resample(None):
        yield from stream.encode(part)
    yield from stream.encode(None)


def _decoded(packet: Packet[Any]) -> list[AudioFrame]:
    """The audio in a packet; none in a broken one."""
    try:
        decoded: Sequence[object] = packet.decode()
        return [frame for frame in decoded if isinstance(frame, AudioFrame)]
    except av.InvalidDataError:
        return []


def _time_s(packet: Packet[Any]) -> Fraction:
    """When a packet is decoded, in seconds."""
    return (packet.dts or 0) * (packet.time_base or Fraction(0))
