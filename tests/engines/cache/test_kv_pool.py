from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.cache.kv_pool import KVRun
from engines.cache.window import SlotMapping, WindowLayout
from engines.config.presets import preset
from engines.config.stream import StreamConfig

LONGLIVE = WindowLayout.of(preset("longlive-1.3b").transformer, StreamConfig())


def layout(sink: int, ring: int) -> WindowLayout:
    return WindowLayout(layers=1, heads=1, head_dim=8, block_tokens=2, sink_blocks=sink, window_blocks=sink + ring)


def test_a_slab_of_longlive_takes_3_45_gigabytes_in_bf16() -> None:
    assert LONGLIVE.nbytes(torch.bfloat16) == 2 * 30 * 12 * 1560 * 1536 * 2
    assert LONGLIVE.nbytes(torch.bfloat16) / 1e9 == pytest.approx(3.45, abs=0.005)


@given(sink=st.integers(0, 4), ring=st.integers(1, 5), blocks=st.integers(1, 40))
def test_the_sink_and_the_newest_blocks_lie_in_slots_of_their_own(sink: int, ring: int, blocks: int) -> None:
    slab = layout(sink, ring)
    kept = set(range(min(sink, blocks))) | set(range(max(0, blocks - ring), blocks))
    slots = [slab.slot(block) for block in kept]
    assert sorted(slots) == list(range(min(blocks, sink + ring)))


@given(sink=st.integers(0, 4), ring=st.integers(1, 5), block=st.integers(0, 40))
def test_a_block_is_the_last_of_the_window_it_attends(sink: int, ring: int, block: int) -> None:
    place = layout(sink, ring).placement(block, repeat=False)
    assert place.filled == min(block + 1, sink + ring)
    assert place.window_block == place.filled - 1
    assert place.slots[0] < place.filled


@pytest.mark.parametrize(("block", "writes"), [(0, True), (1, False), (2, False), (3, True)])
def test_only_the_first_of_several_sink_blocks_is_rewritten(block: int, writes: bool) -> None:
    assert layout(sink=3, ring=2).placement(block, repeat=True).writes is writes
    assert layout(sink=3, ring=2).placement(block, repeat=False).writes


def test_an_early_recache_covers_everything() -> None:
    for keep_sink in (True, False):
        assert LONGLIVE.recache_placement(4, keep_sink=keep_sink) == SlotMapping(0, (0, 1, 2, 3), 4)


def test_a_recache_that_keeps_the_sink_covers_the_last_nine_frames() -> None:
    assert LONGLIVE.recache_placement(9, keep_sink=True) == SlotMapping(6, (3, 1, 2), 4)


def test_a_recache_that_does_not_keep_it_moves_the_oldest_frames_there() -> None:
    assert LONGLIVE.recache_placement(9, keep_sink=False) == SlotMapping(5, (0, 3, 1, 2), 4)


def test_what_is_written_to_slots_is_read_as_they_lie() -> None:
    slab = KVRun(layout(sink=1, ring=2), torch.device("cpu"), torch.float32)
    keys, values = torch.randn(2, 4, 1, 8)
    slab.write(0, (2, 1), keys, values)
    read_keys, read_values = slab.filled(0, 3)
    assert torch.equal(read_keys[4:], keys[:2])
    assert torch.equal(read_values[2:4], values[2:])


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_a_slab_takes_what_its_layout_says(int8: bool) -> None:
    slab = KVRun(LONGLIVE, torch.device("meta"), torch.bfloat16, int8_keys=int8)
    kept = [x for x in (slab.keys, slab.values, slab.key_scales) if x is not None]
    assert slab.nbytes == LONGLIVE.nbytes(torch.bfloat16, int8_keys=int8) == sum(x.nbytes for x in kept)


def test_reading_copies_nothing() -> None:
    slab = KVRun(layout(sink=1, ring=2), torch.device("cpu"), torch.float32)
    keys, _ = slab.filled(0, 2)
    assert keys.untyped_storage().data_ptr() == slab.keys.untyped_storage().data_ptr()
