from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.measure.counts import Work
from benchmarks.measure.machine import COMMIT, Floor, Machine, Rates
from serving.config import ServerConfig
from serving.launch.settings import SettingsFlags

RATES = Rates(flops_per_s=1e12, bytes_per_s=1e9)


@pytest.mark.parametrize(
    ("work", "floor"),
    [(Work(5 * 10**9, 10**6), Floor(5.0, "compute")), (Work(10**6, 3 * 10**6), Floor(3.0, "memory"))],
    ids=["compute", "memory"],
)
def test_the_floor_is_the_longer_of_computing_and_moving(work: Work, floor: Floor) -> None:
    assert RATES.floor(work) == floor


def test_work_of_8_bits_has_a_rate_of_its_own() -> None:
    work = Work(10**9, 10**6, eight_bit_ops=8 * 10**9)
    assert replace(RATES, eight_bit_ops_per_s=2e12).floor(work) == Floor(5.0, "compute")
    with pytest.raises(ValueError, match="operations of 8 bits, whose rate was not measured"):
        RATES.floor(work)


def test_a_machine_tells_what_ran_but_not_where() -> None:
    machine = str(Machine.here(torch.device("cpu")))
    assert torch.__version__ in machine
    assert platform.node() not in machine


def test_a_machine_without_git_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    here = Machine.here(torch.device("cpu"))
    assert (here.commit, here.dirty) == (None, None)


def test_what_is_no_checkout_of_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr("benchmarks.measure.machine.ROOT", tmp_path)
    assert Machine.here(torch.device("cpu")).commit is None


def test_a_commit_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT, "0123456789ab")
    assert Machine.here(torch.device("cpu")).commit == "0123456789ab"
    # A benchmark may start servers, which take no variable of theirs that they do not know.
    parser = argparse.ArgumentParser()
    flags = SettingsFlags(parser)
    assert flags.read(parser.parse_args([])).config == ServerConfig(preset="none")
