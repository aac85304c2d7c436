from __future__ import annotations

from pathlib import Path

import pytest

from serving.media.whole_file import whole_file, write_whole


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "earlier")
    with whole_file(path) as place:
        place.write_text("later")
        assert path.read_text() == "earlier"
        assert place.suffix == ".json"
    assert path.read_text() == "later"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_finished_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "earlier")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as place:
        place.write_text("lat\ud800", encoding="utf-8")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
