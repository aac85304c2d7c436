from __future__ import annotations

from serving.media.chunk import RECENT_CHUNKS, AccessUnit, Chunk, RecentChunks


def chunk(block: int, nbytes: int = 100) -> Chunk:
    return Chunk(block, 12 * block, (AccessUnit(bytes(nbytes), key=True),))


def test_as_many_of_the_last_chunks_stay_as_may() -> None:
    recent = RecentChunks()
    recent.extend(map(chunk, range(RECENT_CHUNKS + 5)))
    assert [one.block for one in recent] == list(range(5, RECENT_CHUNKS + 5))
    assert recent.oldest_frame(0) == 60


def test_large_chunks_are_fewer() -> None:
    recent = RecentChunks(most_bytes=1000)
    recent.extend(chunk(block, 300) for block in range(5))
    assert [one.block for one in recent] == [2, 3, 4]
    recent.append(chunk(5, 5000))
    assert [one.block for one in recent] == [5]
    recent.extend(chunk(block, 300) for block in range(6, 10))
    assert [one.block for one in recent] == [7, 8, 9]


def test_where_none_is_left_the_oldest_frame_is_the_next() -> None:
    recent = RecentChunks(most_bytes=1000)
    recent.append(chunk(3, 900))
    recent.clear()
    assert (len(recent), recent.oldest_frame(48)) == (0, 48)
    recent.extend(chunk(block, 450) for block in (4, 5))
    assert [one.block for one in recent] == [4, 5]
