"""What the choice of slots on the device is told of a batch's rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache
from engines.cache.rolling_window import RollingWindow
from engines.runner.rows import Row
from kernels.slot_choice.slot_queue import FIELDS, QueueStep, SinkRule, SlotQueues


def queue_steps(rows: Sequence[Row]) -> Tensor:
    """What the rows do to the queues of their windows: int32 [rows, FIELDS], empty where slots are known."""
    steps = [_step(row) for row in rows if row.write is not None]
    return torch.tensor(steps, dtype=torch.int32).view(-1, FIELDS)


def slot_queues(cache: KVCache, rule: RollingWindow, steps: Tensor) -> SlotQueues:
    """The pool's, for a batch's steps."""
    records, means = cache.records.planes["records"].tensor, cache.means.planes["sink_means"].tensor
    return SlotQueues(records, means, steps, SinkRule(rule.sink, rule.threshold))


def _step(row: Row) -> list[int]:
    write, records, means = row.write, row.kv.records, row.kv.means
    assert write is not None
    assert records is not None
    step = QueueStep(
        records.start + write.read, records.start + write.write, write.stamp, write.full, write.pop, write.end,
        write.append, write.test, 0 if means is None else means.start,
    )  # fmt: skip
    return list(map(int, step))
