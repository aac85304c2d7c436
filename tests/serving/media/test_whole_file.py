from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.media import whole_file as whole_file_names
from serving.media.whole_file import folder_beside, whole_file, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from serving.media.whole_file import whole_file
with whole_file(Path(sys.argv[1])) as place:
    place.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


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


def test_what_killed_processes_left_goes_and_what_somebody_writes_stays(tmp_path: Path) -> None:
    left = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "left.bin")], check=False)
    assert left.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("left.bin"))) == 1
    with folder_beside(tmp_path / "being written.bin") as folder:
        write_whole(tmp_path / "result.json", "whole")
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, "result.json"}


def test_a_file_that_only_looks_like_one_of_ours_stays(tmp_path: Path) -> None:
    foreign = tmp_path / ".result.1.json"
    foreign.write_text("somebody's")
    write_whole(tmp_path / "result.json", "whole")
    assert foreign.exists()


def test_threads_that_write_one_file_do_so_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They look so often that some find the folder while it is being emptied.
    monkeypatch.setattr(whole_file_names, "WAIT_S", 0.0005)
    texts = [str(number) * 1000 for number in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_whole(tmp_path / "result.json", text), texts))
    assert (tmp_path / "result.json").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_behind_a_link_is_written_beside_it(tmp_path: Path) -> None:
    link, folder = tmp_path / "link.json", tmp_path / "folder"
    folder.mkdir()
    link.symlink_to(folder / "result.json")
    with whole_file(link) as place:
        assert place.parent.parent == folder
        place.write_text("whole")
    assert (link.is_symlink(), link.read_text()) == (True, "whole")
