"""What a session streams is what `longtake generate` makes of its log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from serving.cli.main import main
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.footage import played
from tests.serving.live.scenes import NIGHT, NOON, SNOW, chunks, create, cue, pictures, start, watch

END = 81


def film(folder: Path, session: pb.Session) -> np.ndarray:
    """The pictures of a film made offline from a session's log."""
    cues = [{"frame": entry.cue.frame, "prompt": entry.cue.prompts[0].text} for entry in session.applied]
    timeline = {"version": 1, "seed": session.options.seed, "frames": END, "cues": cues}
    (folder / "log.yaml").write_text(yaml.safe_dump(timeline))
    arguments = ["generate", str(folder / "log.yaml"), "-o", str(folder / "log.mp4"), "--threads", "1"]
    assert main(arguments) == 0
    return played(str(folder / "log.mp4")).pictures


def test_a_session_among_others_equals_the_film_of_its_log(
    stub: sessions_pb2_grpc.SessionsStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [create(stub, cue(text, 0), seed=seed) for seed, text in ((1, SNOW), (2, NOON))]
    session = create(stub, cue(NOON, 0), cue(SNOW, 40), seed=11)
    for other in (*others, session):
        start(stub, other)
    streams = [watch(stub, other) for other in others]
    events = watch(stub, session)
    found = chunks(events, 21)
    stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT)))
    found += chunks(events, END)
    for stream in streams:
        chunks(stream, 33)
    log = stub.GetSession(pb.GetSessionRequest(session_id=session.id))
    assert len(log.applied) == 3
    assert (pictures(found) == film(tmp_path, log)).all()
