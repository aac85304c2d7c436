from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = """
from serving.launch.ending_signals import ending_signals
print(*(number.name for number in ending_signals()))
"""


@pytest.mark.parametrize(
    ("before", "found"), [([], "SIGINT SIGTERM SIGHUP"), (["nohup"], "SIGINT SIGTERM")], ids=["alone", "nohup"]
)
def test_a_terminal_that_closes_ends_what_is_not_to_outlive_it(before: list[str], found: str) -> None:
    command = [*before, sys.executable, "-c", ASKED]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == found
