"""A film gets the audio of the clip that it was made of, and stays what it was."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from serving.errors import ClipError
from serving.media.clips.audio_track import add_audio
from serving.media.clips.clip_reader import open_clip
from serving.media.film_file import FilmFile
from serving.offline.film_writer import read_facts
from tests.serving import footage
from tests.serving.media.clips.clips import gray, write_clip


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A film of 33 frames, 2.0625 s."""
    path = tmp_path / "film.mp4"
    with FilmFile(path, footage.HEIGHT, footage.WIDTH, footage.MadeOf("noon")) as file:
        for chunk in footage.chunks():
            file.append(chunk)
    return path


@pytest.mark.parametrize(
    ("ending", "codec", "kept"),
    [("mp4", "aac", "aac"), ("mkv", "libmp3lame", "mp3"), ("mkv", "ac3", "ac3"), ("mkv", "libopus", "opus"),
     ("mkv", "flac", "aac"), ("ts", "aac", "aac")],
)  # fmt: skip
def test_audio_is_kept_as_long_as_the_film(tmp_path: Path, film: Path, ending: str, codec: str, kept: str) -> None:
    clip = write_clip(tmp_path / f"clip.{ending}", gray(72), audio_s=3, audio_codec=codec)
    before, facts = footage.played(str(film)), read_facts(film)
    with open_clip(clip, 64, 96) as opened:
        add_audio(film, clip, opened.facts.start_s)
    after = footage.played(str(film))
    assert np.array_equal(after.pictures, before.pictures)
    assert after.times == before.times
    assert json.loads(read_facts(film)) == json.loads(facts)
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(film)) as made:
        assert made.streams.audio[0].codec_context.codec.canonical_name == kept
        heard = [(frame.time, frame.samples / frame.sample_rate) for frame in made.decode(audio=0)]
    assert heard[0][0] == pytest.approx(0, abs=0.06)
    assert sum(length for _, length in heard) == pytest.approx(33 / 16, abs=0.1)


def test_a_clip_without_audio_leaves_the_film_as_it_was(tmp_path: Path, film: Path) -> None:
    before = film.read_bytes()
    with pytest.raises(ClipError, match="has no audio; leave out --keep-audio"):
        add_audio(film, write_clip(tmp_path / "mute.mp4", gray(3)), Fraction(0))
    assert film.read_bytes() == before
