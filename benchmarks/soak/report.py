"""What a soak says: the numbers with marks, and which of them were missed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness.holdings import Holdings, average
from benchmarks.soak.run import Soak
from benchmarks.soak.viewer import FPS, HEIGHT, WIDTH

PEACE = "in peace"


def summary(soak: Soak) -> dict[str, Any]:
    """Everything but the samples."""
    tally, by_kind = soak.tally, Counter(hit.fault.kind for hit in soak.injected)
    at_risk = {session for hit in soak.injected for session in hit.at_risk}
    return {
        "seed": soak.seed,
        "seconds": round(soak.seconds),
        "sessions": {"paced": soak.sessions, "opened": tally.sessions},
        "pictures": {"fps": FPS, "height": HEIGHT, "width": WIDTH},
        "faults": {"count": len(soak.injected), "by_kind": dict(sorted(by_kind.items()))},
        "frames": {"shown": tally.frames, "lost": tally.lost, "doubled": tally.doubled},
        "second_look": asdict(tally.reread),
        "sessions_lost": {
            "at_risk": len(at_risk),
            "told": len(tally.told_lost),
            "told_but_not_at_risk": sorted(set(tally.told_lost) - at_risk),
            "silently": tally.silently_lost,
        },
        "prompts": {
            "with_receipt": tally.prompts,
            "lost": tally.prompts_lost,
            "lost_of_those_said_not_to_be_replicated": tally.unreplicated_prompts_lost,
        },
        "done": dict(sorted(tally.done.items())),
        "refused": dict(sorted(tally.refused.items())),
        "films_wrong": tally.films_wrong,
        "longest_wait_for_a_chunk_s": gaps(soak),
        "without_standby_s": _by_kind(soak.standby_back),
        "whole_again_s": _by_kind(
            (hit.fault.kind, hit.whole_at - hit.at) for hit in soak.injected if hit.whole_at is not None
        ),
        "never_whole": list(soak.never_whole),
        "left": {
            "sessions": soak.sessions_left,
            "copies_and_decoders": [room._asdict() for room in soak.rooms if room.free != room.of],
        },
        "held": held(soak.before, soak.after),
    }  # fmt: skip


def violations(soak: Soak) -> list[str]:
    """What must not be, in words."""
    found = summary(soak)
    lost = found["sessions_lost"]
    wrong = {
        **soak.tally.wrong(),
        "sessions lost silently": lost["silently"],
        "sessions lost though a copy was there": lost["told_but_not_at_risk"],
        "never whole again": found["never_whole"],
        "sessions left": found["left"]["sessions"],
        "copies or decoder sessions left": found["left"]["copies_and_decoders"],
    }
    return [f"{name}: {value}" for name, value in wrong.items() if value]


def gaps(soak: Soak) -> dict[str, dict[str, float]]:
    """By kind of fault, over its faults: the longest wait of any session from one until all was whole again."""
    samples: defaultdict[str, list[float]] = defaultdict(list)
    in_fault: set[tuple[float, float]] = set()
    for hit in soak.injected:
        until = hit.at + 60.0 if hit.whole_at is None else hit.whole_at
        during = [gap for gap in soak.tally.gaps if hit.at <= gap[0] <= until]
        in_fault.update(during)
        samples[hit.fault.kind].append(max((seconds for _, seconds in during), default=0.0))
    samples[PEACE] = [seconds for at, seconds in soak.tally.gaps if (at, seconds) not in in_fault]
    samples["all faults"] = [seconds for kind, waits in samples.items() if kind != PEACE for seconds in waits]
    return {kind: _quantiles(waits) for kind, waits in sorted(samples.items()) if waits}


def held(before: Sequence[Holdings], after: Sequence[Holdings]) -> dict[str, Any]:
    """On average of a kind of process before and after; and of each process that was there at both times."""
    names = sorted({one.name for one in before})
    old = {one.pid: one for one in before}
    return {
        "by_kind": {name: {"before": average(before, name), "after": average(after, name)} for name in names},
        "survivors": [
            {"name": one.name, "before": asdict(old[one.pid]), "after": asdict(one)}
            for one in after
            if one.pid in old
        ],
    }


def _by_kind(samples: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for kind, seconds in samples:
        kinds[kind].append(seconds)
    return {kind: _quantiles(found) for kind, found in sorted(kinds.items())}


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "n": len(seconds),
        "p50": round(float(np.percentile(seconds, 50)), 2),
        "p95": round(float(np.percentile(seconds, 95)), 2),
        "max": round(max(seconds), 2),
    }
