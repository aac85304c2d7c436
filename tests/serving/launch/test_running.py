from __future__ import annotations

import json
from pathlib import Path

from serving.launch.running import Running


def test_a_running_server_is_told_of_in_json() -> None:
    running = Running(Path("/tmp/logs"), "http://127.0.0.1:9090/metrics", "127.0.0.1:6379")
    assert Running.of(json.loads(json.dumps(running.message))) == running
