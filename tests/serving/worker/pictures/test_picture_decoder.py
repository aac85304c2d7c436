from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import MOST_PICTURE_BYTES
from serving.worker.pictures import picture_decoder
from serving.worker.pictures.picture_decoder import PictureDecoder, SentPicture, read_picture
from tests.serving.worker.pictures.clips import encoded, h264, picture, png


def sent(number: int, data: bytes, *, is_behind_loss: bool = False) -> SentPicture:
    return SentPicture(number, 0, "h264", data, 0.0, is_behind_loss)


@pytest.mark.parametrize(("kind", "error"), [("PNG", 0.0), ("JPEG", 3.0)])
def test_a_picture_becomes_a_frame(kind: str, error: float) -> None:
    data = encoded(picture(5), kind)
    unit = SentPicture(7, 0, "png" if kind == "PNG" else "jpeg", data, 0.0)
    (made,) = PictureDecoder().decode(unit)
    shown = made.shown.frame.to_ndarray(format="rgb24").astype(float)
    assert made.sent.id == 7
    assert abs(shown - picture(5)).mean() <= error


def test_every_unit_of_a_stream_becomes_a_frame_of_its_own() -> None:
    decoder, units = PictureDecoder(), h264(20)
    made = [decoder.decode(sent(number, unit)) for number, unit in enumerate(units)]
    assert [[one.sent.id for one in frames] for frames in made] == [[number] for number in range(20)]
    last = made[-1][0].shown.frame.to_ndarray(format="rgb24").astype(float)
    assert np.abs(last - picture(19)).mean() < 6


def test_a_stream_is_shown_as_wide_as_its_pixels_are() -> None:
    decoder, sizes = PictureDecoder(), list[tuple[int, int]]()
    streams = [h264(3, pixel_aspect=aspect) for aspect in (Fraction(1), Fraction(64, 45), Fraction(1, 2))]
    for number, unit in enumerate(unit for stream in [*streams, h264(3, height=96, width=48)] for unit in stream):
        sizes += [made.shown.size for made in decoder.decode(sent(number, unit))]
    assert sizes == [(96, 160)] * 3 + [(96, 228)] * 3 + [(96, 80)] * 3 + [(96, 48)] * 3


def test_a_stream_is_turned_from_where_it_says_so() -> None:
    display_orientation = b"\x00\x00\x00\x01\x06\x2f\x03" + bytes([0b00001000, 0, 0b00010100]) + b"\x80"
    decoder, units = PictureDecoder(), h264(4, key_every=2)
    units[2] = display_orientation + units[2]
    made = [one for number, unit in enumerate(units) for one in decoder.decode(sent(number, unit))]
    assert [one.shown.size for one in made][:3] == [(96, 160), (96, 160), (160, 96)]


@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(8, 0, 0, 0), (2, 4, 6, 8), (40, 10, 0, 0)])
def test_what_a_stream_crops_is_not_shown(left: int, top: int, right: int, bottom: int) -> None:
    (unit,) = h264(1, crop=f"{left},{top},{right},{bottom}")
    (made,) = PictureDecoder().decode(sent(0, unit))
    kept = picture(0)[top : 96 - bottom, left : 160 - right].astype(float)
    assert np.abs(made.shown.frame.to_ndarray(format="rgb24") - kept).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photograph_is_turned_as_its_exif_says(kind: str) -> None:
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture(0)).save(data, kind, exif=exif)
    (made,) = PictureDecoder().decode(SentPicture(1, 0, "png" if kind == "PNG" else "jpeg", data.getvalue(), 0.0))
    assert made.shown.size == (160, 96)


def test_behind_a_loss_nothing_is_shown_before_the_next_key() -> None:
    decoder, units = PictureDecoder(), h264(20, key_every=10)
    for number in range(3):
        decoder.decode(sent(number, units[number]))
    ids = []
    for number in range(5, 20):
        made = decoder.decode(sent(number, units[number], is_behind_loss=number == 5))
        ids += [one.sent.id for one in made]
    assert ids == list(range(10, 20))


@pytest.mark.parametrize("repeated", [False, True], ids=["sent once", "sent with each unit"])
def test_units_without_a_key_frame_are_not_kept(repeated: bool) -> None:
    decoder, units = PictureDecoder(), h264(200, key_every=1000)
    sets = parameter_sets(units[0])
    for number, unit in enumerate(units[1:]):
        with_sets = repeated or number == 0
        assert decoder.decode(sent(number, sets + unit if with_sets else unit)) == []
    assert len(decoder._waiting) <= 17
    assert not any(waiting.data for waiting in decoder._waiting.values())
    shown = decoder.decode(sent(200, units[0]))
    assert [one.sent.id for one in shown] == [200]


def parameter_sets(key: bytes) -> bytes:
    """Those at the head of a key frame."""
    start = b"\x00\x00\x01"
    found = [unit.rstrip(b"\x00") for unit in key.split(start)[1:]]
    return b"".join(b"\x00" + start + unit for unit in found if unit[0] & 31 in (7, 8))


@pytest.mark.parametrize("data", [b"x", b"\xff\xd8\xff\xe0" + bytes(50), encoded(picture(1))[:200], bytes(5000)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "h264"])
def test_rubbish_gives_no_frame(kind: str, data: bytes) -> None:
    decoder = PictureDecoder()
    assert decoder.decode(SentPicture(1, 0, kind, data, 0.0)) == []  # type: ignore[arg-type]
    assert decoder.problem.startswith("a picture cannot be decoded as ")
    assert decoder.decode(SentPicture(2, 0, "png", encoded(picture(2)), 0.0))
    assert decoder.problem == ""


def test_a_picture_of_too_many_pixels_gives_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_decoder, "MOST_PIXELS", 96 * 160 - 1)
    assert PictureDecoder().decode(SentPicture(1, 0, "png", encoded(picture(1)), 0.0)) == []


@pytest.mark.parametrize(
    ("height", "width", "frames"), [(96, 6, 1), (96, 5, 0), (1, 17, 0), (17, 1, 0), (1, 1, 1)]
)
def test_a_picture_that_is_a_ribbon_gives_no_frame(height: int, width: int, frames: int) -> None:
    data = encoded(np.zeros((height, width, 3), np.uint8))
    assert len(PictureDecoder().decode(SentPicture(1, 0, "png", data, 0.0))) == frames


def test_what_cannot_be_a_picture_is_refused() -> None:
    assert read_picture(pb.Command(end_input=pb.EndInput()), 0.0) is None
    wrong = png(1)
    wrong.picture.format = 9  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="picture format 9 is unknown"):
        read_picture(wrong, 0.0)
    for data in (b"", bytes(MOST_PICTURE_BYTES + 1)):
        with pytest.raises(InvalidRequest, match=f"a picture has {len(data)} bytes"):
            read_picture(pb.Command(picture=pb.Picture(format=pb.PICTURE_FORMAT_PNG, data=data)), 0.0)
