"""What `longtake evacuate` asks a server for, and what it says of the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.cli import evacuate
from serving.cli.main import main
from serving.client.operator import OperatorCalls
from serving.errors import ReplicaLost
from serving.pb.longtake.v1 import sessions_pb2 as pb


def left(sessions: int, held: int = 0) -> pb.EvacuateServerResponse:
    return pb.EvacuateServerResponse(sessions=sessions, held=held)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[pb.EvacuateServerRequest]:
    """What the command asks a server that has two sessions left, is out of reach once, and then has none."""
    requests: list[pb.EvacuateServerRequest] = []
    answers = iter([left(2, 1), None, left(0)])

    async def answer(_: OperatorCalls, request: pb.EvacuateServerRequest) -> pb.EvacuateServerResponse:
        requests.append(request)
        if (found := next(answers)) is None:
            raise ReplicaLost("away")
        return found

    monkeypatch.setattr(OperatorCalls, "evacuate", answer)
    monkeypatch.setattr(evacuate, "ASK_EVERY_S", 0.0)
    return requests


def command(tmp_path: Path, *options: str) -> list[str]:
    (tmp_path / "operator").write_text("secret\n")
    return ["evacuate", "--from", "localhost:1", "--operator-token", str(tmp_path / "operator"), *options]


@pytest.mark.parametrize(
    ("options", "public"), [((), "b:2"), (("--public", "c:3"), "c:3"), (("--same-address",), "")]
)
def test_an_evacuation_is_followed_to_its_end(
    asked: list[pb.EvacuateServerRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...], public: str,
) -> None:  # fmt: skip
    assert main(command(tmp_path, "--to", "b:2", *options)) == 0
    assert asked == [pb.EvacuateServerRequest(to="b:2", public=public)] * 3
    said = capsys.readouterr().out
    assert said == "2 sessions left, 1 of them on their way\n0 sessions left, 0 of them on their way\n"


def test_browsers_are_told_another_page(asked: list[pb.EvacuateServerRequest], tmp_path: Path) -> None:
    assert main(command(tmp_path, "--to", "b:2", "--page", "https://films.example")) == 0
    assert asked[0] == pb.EvacuateServerRequest(to="b:2", public="b:2", page="https://films.example")


def test_an_evacuation_is_called_off(asked: list[pb.EvacuateServerRequest], tmp_path: Path) -> None:
    assert main(command(tmp_path, "--stop", "--gone")) == 0
    assert asked == [pb.EvacuateServerRequest(gone=True)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stop", "--same-address"), "goes with --to"),
        (("--stop", "--page", "https://films.example"), "--page goes with --to"),
        (("--to", "b:2", "--gone"), "goes with --stop"),
        (("--to", "b:2", "--operator-token", "/nowhere"), "'/nowhere' cannot be read"),
        (("--to", "b:2", "--from", "other.example:1"), "would go to other.example:1 in the clear"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert main(command(tmp_path, *options)) == 2
    assert words in capsys.readouterr().err
