from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.cache.kv_pool import KVPool, KVRun, Plane
from engines.errors import ConfigError, PoolFull


def pool(tokens: int = 20) -> KVPool:
    """Keys [layers, tokens, heads] and scales [layers, heads, tokens] of two layers."""
    keys, scales = torch.full((2, tokens, 3), -1.0), torch.full((2, 3, tokens), -1.0)
    return KVPool("a test", {"keys": Plane(keys), "scales": Plane(scales, token_dim=2)})


def write(runs: KVPool, run: KVRun, value: float) -> None:
    for plane in runs.state(run, run.tokens).values():
        plane.copy_(value + torch.arange(plane.numel()).view(plane.shape) / 1000)


def read(runs: KVPool, run: KVRun) -> list[torch.Tensor]:
    return [plane.clone() for plane in runs.state(run, run.tokens).values()]


def test_a_run_is_taken_where_it_first_fits() -> None:
    runs = pool()
    first, second, third = (runs.take(tokens) for tokens in (5, 3, 6))
    assert [first.start, second.start, third.start] == [0, 5, 8]
    runs.give_back(second)
    assert runs.take(4).start == 14
    assert runs.take(2).start == 5
    assert runs.free == 3


def test_runs_move_together_when_tokens_suffice_but_no_gap_does() -> None:
    runs = pool()
    first, second, third = (runs.take(6) for _ in range(3))
    for value, run in enumerate((first, second, third)):
        write(runs, run, value)
    kept = [read(runs, run) for run in (second, third)]
    runs.give_back(first)
    fourth = runs.take(8)
    assert [second.start, third.start, fourth.start] == [0, 6, 12]
    for run, before in zip((second, third), kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(read(runs, run), before, strict=True))


def test_runs_stay_where_they_are_if_there_is_no_memory_to_move_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    runs = pool()
    first, second = runs.take(2), runs.take(15)
    write(runs, second, 7)
    before = read(runs, second)
    runs.give_back(first)
    with monkeypatch.context() as patch:
        for allocating in ("empty_like", "empty", "clone"):
            patch.setattr(torch, allocating, fail)
        patch.setattr(torch.Tensor, "clone", fail)
        with pytest.raises(torch.OutOfMemoryError):
            runs.take(5)
    assert (second.start, runs.free) == (2, 5)
    assert all(torch.equal(a, b) for a, b in zip(read(runs, second), before, strict=True))
    assert runs.take(5).start == 15


def test_a_run_that_moves_by_less_than_its_length_arrives_whole() -> None:
    runs = pool()
    first, second = runs.take(2), runs.take(15)
    write(runs, second, 7)
    before = read(runs, second)
    runs.give_back(first)
    runs.take(5)
    assert second.start == 0
    assert all(torch.equal(a, b) for a, b in zip(read(runs, second), before, strict=True))


def test_a_full_pool_says_what_is_missing() -> None:
    runs = pool()
    runs.take(15)
    with pytest.raises(PoolFull, match=r"a test needs 6 tokens, 288 bytes; of 20 there are 5 left"):
        runs.take(6)


def test_what_will_never_fit_is_told_from_what_does_not_fit_now() -> None:
    runs = pool()
    runs.take(15)
    told = "a test needs 21 tokens, and there is memory for 20 in all: ask for a smaller picture .* --sizes"
    with pytest.raises(ConfigError, match=told):
        runs.take(21)


def test_a_copy_is_a_run_of_its_own() -> None:
    runs = pool()
    first, second = runs.take(4), runs.take(4)
    write(runs, first, 1)
    runs.copy(first, second)
    before = read(runs, second)
    write(runs, first, 2)
    assert all(torch.equal(a, b) for a, b in zip(read(runs, second), before, strict=True))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=40))
def test_runs_never_overlap_and_nothing_leaks(steps: list[tuple[bool, int]]) -> None:
    runs, held = pool(), dict[KVRun, float]()
    for number, (takes, tokens) in enumerate(steps):
        if takes and tokens <= runs.free:
            run = runs.take(tokens)
            held[run] = float(number)
            write(runs, run, number)
        elif held:
            run = list(held)[tokens % len(held)]
            del held[run]
            runs.give_back(run)
        assert runs.free == 20 - sum(run.tokens for run in held)
        for run, value in held.items():
            assert int(read(runs, run)[0].min()) == int(read(runs, run)[1].min()) == int(value)
