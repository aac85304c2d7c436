"""A session that is paused for long lets others have its slot, and goes on where one is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.browser import CHROMIUM, DRIVER, browsing
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.conftest import serving
from tests.serving.live.scenes import NOON, chunks, described, playing, watch

TWO = ("--stages", "separate", "--denoisers", "2", "--slots", "1", "--suspend-after", "1")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium: `make .venv/browser`")
def test_a_page_resumes_its_session_on_another_replica(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "recordings", *TWO) as server,
        browsing(f"http://127.0.0.1:{server.http_port}", tmp_path / "profile") as page,
    ):
        page.open()
        page.start(NOON)
        page.press("go")
        page.until(lambda: "its place is free for others" in page.part("state").text)
        session = described(server.stub, pb.Session(id=page.session))
        assert session.suspended
        others = [playing(server.stub, fps=2) for _ in range(2)]
        for other in others:
            chunks(watch(server.stub, other), 9)
        page.press("go")
        page.until(lambda: "taken" in page.part("notices").text)
        away = next(other for other in others if described(server.stub, other).replica != session.replica)
        server.stub.DeleteSession(pb.DeleteSessionRequest(session_id=away.id))
        page.press("go")
        page.until_frame(page.frame + 24)
        assert described(server.stub, session).replica == away.replica
