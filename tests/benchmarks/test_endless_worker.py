from __future__ import annotations

import asyncio

import pytest
import torch

from benchmarks import endless_session, endless_worker
from benchmarks.measure.machine import Machine

BLOCKS = 150


def played() -> endless_worker.Played:
    return asyncio.run(endless_worker.play(BLOCKS))


def test_every_block_has_its_prompt_and_its_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless_session, "WINDOW", 50)
    found = endless_worker.result(made := played(), Machine.here(torch.device("cpu")))
    assert (found["frames"], found["prompts_applied"]) == (12 * BLOCKS - 3, BLOCKS)
    assert min(made.samples.delta_bytes) > 1000
    assert [cue.cue.prompts[0].text.split()[-1] for cue in made.applied] == [*map(str, range(BLOCKS))]


def test_a_prompt_that_did_not_reach_the_standby_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = played()
    with pytest.raises(RuntimeError, match="the standby's copy is not the session's log"):
        endless_worker.result(made._replace(at_standby=made.at_standby[:-1]), Machine.here(torch.device("cpu")))
