"""Shows that a session of a day has no weight: time, memory and bytes of a block with a prompt, early and late.

    python -m benchmarks.endless_session --blocks 115200

The session's logic, what its standby is sent after each block, and the standby's copy, with an engine that makes
nothing: what is left is what grows if anything does.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.endless import memory_gauge
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import BlockLengths
from serving.media.whole_file import write_whole
from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.record_delta import RecordCopy, RecordDelta
from serving.session.state_machine import Session
from serving.session.types import PAGE
from serving.timeline.cue import Blend, Transition

DAY = 115_200
WINDOW = 5_000
"""Blocks at either end that are compared, after as many to warm up."""

SUBJECTS = ("a red balloon over the hills", "a blue sailboat off the harbour", "an old tram in the rain")
LIGHTS = ("at dawn", "at noon", "at dusk", "by night", "in falling snow")


Values = NDArray[np.int64]


@dataclass
class BlockSamples:
    """One value a block. All of their memory is there from the beginning."""

    ns: Values
    delta_bytes: Values
    memory_bytes: Values

    @classmethod
    def of(cls, blocks: int) -> Self:
        """Of so many blocks."""
        return cls(*(np.ones(blocks, dtype=np.int64) for _ in fields(cls)))

    def early_and_late(self) -> dict[str, dict[str, float]]:
        """What a block takes, at either end."""
        return {
            "us_per_block_median": compared(self.ns // 1000, np.median),
            "us_per_block_p99": compared(self.ns // 1000, lambda ns: float(np.quantile(ns, 0.99))),
            "delta_bytes_max": compared(self.delta_bytes, np.max),
            "memory_bytes_median": compared(self.memory_bytes, np.median),
        }


@dataclass
class Samples(BlockSamples):
    """Of the log as well: its entries in memory, and the bytes of its file."""

    held: Values
    spool_bytes: Values


class Day(NamedTuple):
    """A session that has been made, its standby's copy, and what each block took."""

    session: Session
    copy: RecordCopy
    samples: Samples


def prompt(block: int) -> tuple[Blend, Transition | None]:
    """One that was not there before; every seventh comes in over three blocks, and the next cuts it short."""
    text = f"{SUBJECTS[block // 5 % 3]} {LIGHTS[block % 5]}, seen from the harbour wall, take {block}"
    return Blend.of(text), Transition(3) if block % 7 == 6 else None


def play(blocks: int) -> Day:
    """Make a session of `blocks` blocks, each with a prompt, its standby told after each."""
    session = Session(Pace(), BlockLengths(), 0.0)
    session.viewer_came(0.0)
    session.schedule(prompt(0)[0], 0, None, "c0", 0.0)
    session.start("start", 0.0)
    record, samples, used = session.record(0.0), Samples.of(blocks), memory_gauge(torch.device("cpu"))
    copy = RecordCopy(record, b"")
    gc.collect()
    for block in range(blocks):
        now = 0.75 * block
        began = time.perf_counter_ns()
        if block:
            blend, transition = prompt(block)
            session.schedule(blend, None, transition, f"command-{block}", now)
        plan = session.begin_block(now)
        session.delivered(plan, now)
        before, record = record, session.record(now)
        sent = pickle.dumps(RecordDelta.between(before, record))
        copy.apply(pickle.loads(sent))
        samples.ns[block] = time.perf_counter_ns() - began
        samples.delta_bytes[block] = len(sent)
        samples.held[block] = session.applied.held + copy.log.held
        samples.spool_bytes[block] = session.applied.spooled_bytes
        samples.memory_bytes[block] = used()
    return Day(session, copy, samples)


def compared(values: Values, reduce: Callable[[Values], float]) -> dict[str, float]:
    """A value early and late."""
    early, late = values[WINDOW : 2 * WINDOW], values[-WINDOW:]
    return {"early": float(reduce(early)), "late": float(reduce(late))}


def growth(values: Values) -> dict[str, float]:
    """How much a count grows per block, early and late; over whole pages, in which the log is written."""
    span = WINDOW // PAGE * PAGE
    return {
        "early": float(values[WINDOW + span] - values[WINDOW]) / span,
        "late": float(values[-1] - values[-1 - span]) / span,
    }


def once(day: Day) -> dict[str, float]:
    """What is done once at the end, in milliseconds: none of it is done per block."""
    session, copy, now, half = day.session, day.copy, 0.0, len(day.session.applied) // 2
    work: dict[str, Callable[[], object]] = {
        "record": lambda: session.record(now),
        "page_of_100_in_the_middle": lambda: session.applied.page(half, 100),
        "all_entries_read": lambda: sum(1 for _ in session.applied),
        "session_from_the_copy": lambda: Session.of(
            copy.record, session.blocks, now, AppliedLog.of(copy.record.applied, copy.log.past())
        ),
        "fork_in_the_middle": lambda: session.copy(half, now),
    }
    return {name: _ms(done) for name, done in work.items()}


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round((time.perf_counter() - began) * 1e3, 3)


def result(day: Day, machine: Machine) -> dict[str, object]:
    """All that was found out."""
    samples = day.samples
    if [*day.copy.log] != [*day.session.applied]:
        raise RuntimeError("the standby's copy is not the session's log")
    return {
        "machine": asdict(machine),
        "blocks": len(samples.ns),
        "window": WINDOW,
        "applied": len(day.session.applied),
        **samples.early_and_late(),
        "entries_in_memory_max": compared(samples.held, np.max),
        "file_bytes_per_entry": growth(samples.spool_bytes),
        "file_bytes": int(samples.spool_bytes[-1]),
        "ms_once_at_the_end": once(day),
        "memory_bytes_every_1000": samples.memory_bytes[::1000].tolist(),
        "us_per_block_median_of_1000": [
            float(np.median(samples.ns[at : at + 1000])) / 1000 for at in range(0, len(samples.ns), 1000)
        ],
    }


def blocks_asked(program: str) -> int:
    """How many blocks the command line asks for."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.add_argument("--blocks", type=int, default=DAY)
    blocks: int = parser.parse_args().blocks
    if blocks < 3 * WINDOW:
        parser.error(f"--blocks is {blocks}; early and late blocks need {3 * WINDOW}")
    return blocks


def keep(found: dict[str, object], program: str) -> None:
    """Write what a program found out among the results, and show it without its long lists."""
    file = RESULTS / f"{program}_cpu.json"
    write_whole(file, json.dumps(found, indent=1) + "\n")
    shown = {name: value for name, value in found.items() if not name.endswith("000") and name != "machine"}
    print(json.dumps(shown, indent=1))
    print(file)


def main() -> None:
    """Measure what the command line asks for."""
    day = play(blocks_asked("endless_session"))
    keep(result(day, Machine.here(torch.device("cpu"))), "endless_session")


if __name__ == "__main__":
    main()
