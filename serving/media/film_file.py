"""A film while it is written: beside its name until it is closed, and its facts in a JSON file of their own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from serving.errors import FilmError
from serving.media.chunk import Chunk
from serving.media.fragment_file import FragmentFile, Tag, can_be_played
from serving.media.ordinary_mp4 import finish, writing
from serving.media.whole_file import folder_beside, put_in_place, real_path

FACTS_TAG = "longtake"
"""The metadata tag that holds the facts of a film."""

PART = ".part"
"""What is added to a film's name while it is written. What a killed process leaves there can be played."""

ROOM_FOR_THE_END = 128
"""Bytes by which the facts of a finished film may be longer than those of the one that is begun."""


class Made(NamedTuple):
    """A film that has been written: its frames, and whether those are all that were asked for."""

    frames: int
    complete: bool


class FilmFacts(Protocol):
    """What a film is made of."""

    def document(self, made: Made | None = None) -> Mapping[str, Any]:
        """As JSON has it, while the film is begun or, of what was `made`, when it is closed."""
        ...


class FilmFile:
    """The film `path`: an earlier one of that name stays until this one is closed with a frame or more in it.

    What a process left of one that was killed stays until this one has its first chunk. `facts` go into the film's
    metadata, where `read_facts` finds them, and into a JSON file beside it. Every method raises FilmError
    where a file cannot be written, or is not this film's to write.
    """

    def __init__(self, path: Path, height: int, width: int, facts: FilmFacts | None = None) -> None:
        if facts is not None:
            require_own_facts(path)
        self._path, self._facts = path, facts
        self._height, self._width = height, width
        self._target, self._part = real_path(path), part_path(path)
        self._facts_folder = contextlib.ExitStack()
        self._facts_place: Path | None = None
        self._made: Made | None = None
        if path.is_dir():
            raise FilmError(f"{path} cannot be written: Is a directory; choose another -o")
        with writing(path):
            file = FragmentFile.overwrite(self._part, self._tag(None))
        if file is None:
            raise FilmError(f"another process is writing {self._part}; wait for it, or choose another -o")
        self._file = file
        try:
            self._reserve_facts()
        except BaseException:
            self._discard()
            raise

    @property
    def frames(self) -> int:
        """How many have been written."""
        return self._file.frames

    def append(self, chunk: Chunk) -> None:
        """Write the chunk that follows. Where the disk refuses it, the film is closed with what is whole."""
        if chunk.first_frame != self.frames:
            raise FilmError(
                f"{self._path} goes on with frame {self.frames}; the chunk begins at {chunk.first_frame}"
            )
        try:
            self._file.append(chunk, self._height, self._width)
        except OSError as error:
            raise self._cut_off(error) from error

    def close(self, *, complete: bool = False) -> Made:
        """Give the film its name, and the facts theirs; without a frame, leave everything as it was before."""
        return self._made or self._publish(complete=complete)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What broke the film says more than that it cannot be finished either.
        with contextlib.suppress(FilmError) if error is not None else contextlib.nullcontext():
            self.close()

    def _cut_off(self, error: OSError) -> FilmError:
        """Keep what is whole of a film that the disk has no room for; what to say then."""
        frames = self._publish(complete=False).frames
        kept = f"it has the {frames} frames before that" if frames else "nothing of it could be kept"
        return FilmError(f"{self._path} cannot be written any further: {error.strerror}; {kept}")

    def _publish(self, *, complete: bool) -> Made:
        self._made = made = Made(self._file.frames, complete)
        if made.frames == 0:
            self._discard()
            return made
        with contextlib.closing(self._file):
            tag = self._tag(made)
            finish(self._part, self._target, made.frames, {} if tag is None else {tag.name: tag.text})
            self._write_facts()
        return made

    def _tag(self, made: Made | None) -> Tag | None:
        return None if self._facts is None else Tag(FACTS_TAG, json.dumps(self._facts.document(made)))

    def _reserve_facts(self) -> None:
        """Take the room for the facts on the disk, which may be full in the end."""
        if self._facts is not None:
            with writing(facts_path(self._path)):
                target = real_path(facts_path(self._path))
                self._facts_place = self._facts_folder.enter_context(folder_beside(target)) / target.name
                self._facts_place.write_bytes(self._facts_text(None) + b" " * ROOM_FOR_THE_END)

    def _write_facts(self) -> None:
        if self._facts_place is None:
            return
        path = facts_path(self._path)
        with writing(path), self._facts_folder:
            with self._facts_place.open("r+b") as file:
                file.write(self._facts_text(self._made))
                file.truncate()
            require_own_facts(self._path)
            put_in_place(self._facts_place, real_path(path))

    def _facts_text(self, made: Made | None) -> bytes:
        assert self._facts is not None
        document = {"film": self._path.name, **self._facts.document(made)}
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    def _discard(self) -> None:
        with writing(self._path), self._facts_folder:
            self._file.discard()


def facts_path(film: Path) -> Path:
    """Where the facts of a film lie: beside it."""
    return film.with_suffix(".json")


def require_own_facts(film: Path) -> None:
    """Raise FilmError if something else than the facts of `film` is where they are to be written."""
    path = facts_path(film)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        document = None
    ours = isinstance(document, dict) and {"longtake", "cues", "frames_made"} <= document.keys()
    if not ours or document.get("film", film.name) != film.name:
        raise FilmError(
            f"{path}, where the facts of {film.name} would be written, is there already and is something else; "
            "move it away or choose another -o"
        )


def part_path(film: Path) -> Path:
    """Where a film is while it is written: beside what its name leads to."""
    target = real_path(film)
    return target.with_name(target.name + PART)


def left_behind(film: Path) -> Iterator[str]:
    """A sentence on what a killed process left of a film of this name, if it did."""
    part = part_path(film)
    if part.is_file() and can_be_played(part):
        yield f"{part} is what another run left, and can be played; it goes once this one has its first frames"
