"""The steps of cues that have applied, block by block, as `timeline.schedule` has them.

Which step falls on a block follows from the last cue alone: its entry in the log knows how many came before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from engines.config.geometry import BlockLengths
from serving.session.applied_log import AppliedLog
from serving.session.types import PAGE, Applied
from serving.timeline.cue import Cue, Transition
from serving.timeline.schedule import Step


def steps_before(last: Applied | None, block: int) -> int:
    """How many steps have been made before `block`, where `last` is the cue in force."""
    return 0 if last is None else last.step + min(_step_count(last.cue), block - last.block)


def step_at(last: Applied | None, block: int, frame: int) -> Step | None:
    """The step of `block`, whose first frame is `frame`; None where the prompt stays as it is."""
    if last is None or block - last.block >= _step_count(last.cue):
        return None
    cue, transition = last.cue, last.cue.transition
    if transition is None:
        return Step(block, frame, cue.frame, cue.blend, restyling=cue.restyling)
    fraction = (block - last.block + 1) / transition.blocks
    restyling = cue.restyling if block == last.block else None
    return Step(block, frame, cue.frame, cue.blend, last.step - 1, fraction, transition.method, restyling)


def rest_of_transition(last: Applied, block: int) -> Transition | None:
    """What is left at `block` of the transition to the cue in force: begun there, it makes the same steps."""
    transition = last.cue.transition
    left = 0 if transition is None else transition.blocks - (block - last.block)
    return None if transition is None or left <= 0 else replace(transition, blocks=left)


def steps_of(entries: Iterable[Applied], end: int, blocks: BlockLengths) -> Iterator[Step]:
    """The steps of `entries`, which follow each other, before the block `end`."""
    following = iter(entries)
    entry = next(following, None)
    while entry is not None:
        after = next(following, None)
        until = end if after is None else after.block
        for block in range(entry.block, min(entry.block + _step_count(entry.cue), until)):
            if (step := step_at(entry, block, blocks.pixel_frames(block))) is not None:
                yield step
        entry = after


def steps_since(log: AppliedLog, number: int, next_block: int) -> int:
    """How many steps the entries from `number` on have had before `next_block`."""
    first = next(log.entries(number), None)
    return 0 if first is None else steps_before(log.last, next_block) - first.step


def last_settled(log: AppliedLog, next_block: int) -> int:
    """The number of the last cue that came into force whole: what was before it does not show any more."""
    end, after = len(log), next_block
    while end > 0:
        start = (end - 1) // PAGE * PAGE
        page = log.page(start, end - start)
        for number in range(end - 1, start - 1, -1):
            entry = page[number - start]
            if entry.cue.transition is None or after - entry.block >= entry.cue.transition.blocks:
                return number
            after = entry.block
        end = start
    return 0


def applied_as(cues: Iterable[Cue], blocks: BlockLengths) -> Iterator[Applied]:
    """The entries of cues that have applied, each with the first block at or after its frame."""
    last: Applied | None = None
    for cue in cues:
        block = blocks.block_at(cue.frame)
        last = Applied(cue, block, blocks.pixel_frames(block), "", steps_before(last, block))
        yield last


def _step_count(cue: Cue) -> int:
    return 1 if cue.transition is None else cue.transition.blocks
