"""What is at a film's name while it is written, and after whatever can happen to who writes it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from serving.errors import FilmError
from serving.media import ordinary_mp4
from serving.media.film_file import FilmFile, Made, facts_path, left_behind
from serving.offline.film_writer import read_facts
from tests.serving.footage import HEIGHT, WIDTH, MadeOf, chunks, decoded, played

NOON, NIGHT = MadeOf("noon"), MadeOf("night")


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""
"""A program that begins so has no room for longer files."""


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return tmp_path / "film.mp4"


def begun(film: Path, facts: MadeOf = NOON, count: int = 3) -> FilmFile:
    """A film of the first chunks, that is not closed."""
    file = FilmFile(film, HEIGHT, WIDTH, facts)
    for chunk in chunks()[:count]:
        file.append(chunk)
    return file


def other_file_system(folder: Path) -> Path:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other file system at /dev/shm")
    return memory


def refused(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def facts_of(film: Path) -> dict[str, Any]:
    """Those beside it; the same ones must be in it."""
    beside: dict[str, Any] = json.loads(facts_path(film).read_text())
    assert beside.pop("film") == film.name
    assert json.loads(read_facts(film)) == beside
    return beside


def in_a_process(program: str, film: Path) -> str:
    """What a Python program says, with `film` as its only argument, until it ends."""
    head = "import os, sys; from pathlib import Path; from tests.serving.media.test_film_file import *\n"
    command = [sys.executable, "-c", head + program, str(film)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


def test_a_film_is_an_ordinary_one_with_its_index_first(film: Path) -> None:
    assert begun(film).close(complete=True) == Made(33, complete=True)
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    assert np.array_equal(played(str(film)).pictures, decoded(*chunks()))
    assert facts_of(film) == NOON.document(Made(33, complete=True))
    assert len(list(film.parent.iterdir())) == 2


def test_an_earlier_film_stays_until_another_takes_its_place(film: Path) -> None:
    begun(film, NOON, count=1).close()
    later = begun(film, NIGHT)
    assert (len(played(str(film)).times), facts_of(film)["cues"]) == (9, ["noon"])
    later.close()
    assert (len(played(str(film)).times), facts_of(film)["cues"]) == (33, ["night"])


@pytest.mark.parametrize("earlier", [0, 1])
def test_what_made_nothing_leaves_everything_as_it_was(film: Path, earlier: int) -> None:
    begun(film, count=earlier).close()
    before = {path: path.read_bytes() for path in film.parent.iterdir()}
    assert begun(film, NIGHT, count=0).close(complete=True) == Made(0, complete=True)
    with pytest.raises(ZeroDivisionError), FilmFile(film, HEIGHT, WIDTH, NIGHT):
        raise ZeroDivisionError
    assert {path: path.read_bytes() for path in film.parent.iterdir()} == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, FilmError])
def test_a_film_that_breaks_off_is_kept_and_says_so(film: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), begun(film, count=2):
        raise error
    assert np.array_equal(played(str(film)).pictures, decoded(*chunks()[:2]))
    assert facts_of(film) == NOON.document(Made(21, complete=False))


def test_a_full_disk_is_one_sentence_and_costs_only_what_did_not_fit(film: Path) -> None:
    said = in_a_process(
        f"{LIMITED.format(bytes=2300)}"
        "try:\n"
        "    with FilmFile(Path(sys.argv[1]), HEIGHT, WIDTH, NOON) as file: list(map(file.append, chunks()))\n"
        "except FilmError as error: sys.exit(str(error))",
        film,
    )
    assert said == f"{film} cannot be written any further: File too large; it has the 9 frames before that\n"
    assert np.array_equal(played(str(film)).pictures, decoded(chunks()[0]))
    assert json.loads(facts_path(film).read_text()) == {
        "film": "film.mp4", **NOON.document(Made(9, complete=False))
    }  # fmt: skip
    assert len(list(film.parent.iterdir())) == 2


def test_a_disk_without_room_for_a_frame_leaves_the_earlier_film(film: Path) -> None:
    begun(film).close()
    before = film.read_bytes()
    assert "File too large; nothing of it could be kept" in in_a_process(
        f"{LIMITED.format(bytes=1200)}"
        "with FilmFile(Path(sys.argv[1]), HEIGHT, WIDTH, NIGHT) as file: list(map(file.append, chunks()))",
        film,
    )
    assert film.read_bytes() == before
    assert len(list(film.parent.iterdir())) == 2


def test_a_process_that_is_killed_leaves_the_earlier_film_and_is_in_nobodys_way(film: Path) -> None:
    begun(film, count=1).close()
    in_a_process("file = begun(Path(sys.argv[1]), NIGHT); os._exit(1)", film)
    assert (len(played(str(film)).times), facts_of(film)["cues"]) == (9, ["noon"])
    # What it made can be played: whoever wants it gives it a name.
    assert len(played(f"{film}.part").times) == 33
    begun(film, NIGHT).close()
    assert facts_of(film)["cues"] == ["night"]
    assert len(list(film.parent.iterdir())) == 2


KILLED = "file = begun(Path(sys.argv[1]), NIGHT); os._exit(1)"


@pytest.mark.parametrize("end", ["made nothing", "full disk"])
def test_what_a_killed_process_made_stays_until_there_is_more(film: Path, end: str) -> None:
    in_a_process(KILLED, film)
    assert list(left_behind(film)) == [
        f"{film}.part is what another run left, and can be played; it goes once this one has its first frames"
    ]
    if end == "made nothing":
        begun(film, count=0).close()
    else:
        in_a_process(f"{LIMITED.format(bytes=1200)}begun(Path(sys.argv[1]))", film)
    assert len(played(f"{film}.part").times) == 33
    assert [path.name for path in film.parent.iterdir()] == ["film.mp4.part"]
    with begun(film, count=1):
        assert len(played(f"{film}.part").times) == 9
    assert sorted(path.name for path in film.parent.iterdir()) == ["film.json", "film.mp4"]
    assert not list(left_behind(film))


def test_a_process_that_was_killed_before_its_first_chunk_left_nothing(film: Path) -> None:
    in_a_process("begun(Path(sys.argv[1]), NIGHT, count=0); os._exit(1)", film)
    assert film.with_name("film.mp4.part").stat().st_size > 0
    assert not list(left_behind(film))
    begun(film, MadeOf(""), count=0).close()
    assert not film.with_name("film.mp4.part").exists()


def test_what_a_process_left_that_was_killed_as_it_finished_goes_with_the_next_film(film: Path) -> None:
    said = in_a_process(
        "import serving.media.ordinary_mp4 as made\n"
        "made._copy = lambda source, target, tags: (target.write_bytes(source.read_bytes()), os._exit(1))\n"
        "begun(Path(sys.argv[1])).close()",
        film,
    )
    assert said == ""
    assert len(list(film.parent.iterdir())) == 3
    other = film.with_name("other.mp4")
    begun(other).close()
    assert sorted(path.name for path in film.parent.iterdir()) == ["film.mp4.part", "other.json", "other.mp4"]


def test_a_chunk_that_does_not_follow_is_refused_and_ends_nothing(film: Path) -> None:
    file = begun(film, count=1)
    with pytest.raises(FilmError, match=r"film\.mp4 goes on with frame 9; the chunk begins at 21"):
        file.append(chunks()[2])
    file.append(chunks()[1])
    file.close()
    assert played(str(film)).times == list(range(21))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FilmError, match=r"nowhere/film\.mp4 cannot be written: No such file or directory"):
        FilmFile(tmp_path / "nowhere" / "film.mp4", HEIGHT, WIDTH)


def test_two_cannot_write_one_film(film: Path) -> None:
    first = begun(film)
    with pytest.raises(FilmError, match=r"another process is writing .*film\.mp4\.part; wait for it"):
        FilmFile(film, HEIGHT, WIDTH, NIGHT)
    first.close()
    assert facts_of(film)["cues"] == ["noon"]


@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "[]", "{}", '{"cues": []}', json.dumps({**NOON.document(Made(1, True)), "film": "a.mp4"})],
)
def test_a_file_that_is_not_the_films_facts_is_not_written_over(film: Path, content: str) -> None:
    facts_path(film).write_text(content)
    with pytest.raises(FilmError, match=r"film\.json, where the facts of film\.mp4 would be written, is there"):
        FilmFile(film, HEIGHT, WIDTH, NOON)
    assert facts_path(film).read_text() == content
    assert len(list(film.parent.iterdir())) == 1
    # Without facts of its own it is in no film's way.
    with FilmFile(film, HEIGHT, WIDTH) as file:
        file.append(chunks()[0])
    assert facts_path(film).read_text() == content


def test_a_folder_is_no_film(film: Path) -> None:
    film.mkdir()
    with pytest.raises(FilmError, match=r"film\.mp4 cannot be written: Is a directory; choose another -o"):
        FilmFile(film, HEIGHT, WIDTH, NOON)
    assert list(film.parent.iterdir()) == [film]


def test_a_link_goes_on_leading_to_the_film(film: Path) -> None:
    film.parent.joinpath("elsewhere").mkdir()
    film.symlink_to(film.parent / "elsewhere" / "target.mp4")
    begun(film).close()
    assert film.is_symlink()
    assert len(played(str(film)).times) == 33


@pytest.mark.parametrize("copies", [True, False], ids=["as an ordinary film", "in fragments"])
def test_a_link_may_lead_to_another_file_system(film: Path, copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not copies:
        monkeypatch.setattr(ordinary_mp4, "_copy", refused)
    with TemporaryDirectory(dir=other_file_system(film.parent)) as folder:
        film.symlink_to(Path(folder) / "target.mp4")
        facts_path(film).symlink_to(Path(folder) / "facts.json")
        begun(film).close()
        assert len(played(str(film)).times) == 33
        assert json.loads(facts_path(film).read_text())["cues"] == ["noon"]
        assert sorted(path.name for path in Path(folder).iterdir()) == ["facts.json", "target.mp4"]
