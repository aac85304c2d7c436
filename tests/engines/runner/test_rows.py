"""Rows of one batch, each of them against the same row alone in PyTorch's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from engines.cache.kv_cache import CacheLayout, CacheSize, KVCache, StreamKV
from engines.cache.prompt_kv import PromptKV
from engines.cache.window import FixedSlot, Placement, SinkWindow
from engines.config.presets import preset
from engines.loading.model import Model
from engines.runner.eager import EagerRunner
from engines.runner.fused import FusedRunner
from engines.runner.protocol import ModelRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import Level
from engines.text.prompt import Prompt
from kernels.dispatch import EAGER, KernelBackends, backends_for, parse_backends
from tests.support.fake_capture import Recordings

KERNELS = backends_for(torch.device("cpu"), torch.float32, parse_backends("triton,linear=library"))
REFERENCES = replace(EAGER, layernorm_modulate="triton")
"""With one kernel, so that it is the batched runner."""

GRID, FRAMES, LAYERS, ROWS = TokenGrid(1, 2), 2, 2, 4
WINDOW = SinkWindow(frames=6, sink=2)


@pytest.fixture(scope="module")
def network() -> Model:
    tiny = preset("tiny-taehv")
    return Model.random(replace(tiny, transformer=replace(tiny.transformer, layers=LAYERS)), seed=1)


class Pool:
    """Four runs of one pool with something in their used slots, and NaN everywhere else."""

    def __init__(self, network: Model, runner: ModelRunner, *, gap: int = 0) -> None:
        config = network.config.transformer
        self.runner = runner
        self.cache = KVCache(
            CacheLayout.of(config, torch.float32), CacheSize(window=80, raw=40, prompts=60), torch.device("cpu")
        )
        runner.bind(self.cache)
        for pool in (self.cache.windows, self.cache.raw, self.cache.prompts.pool):
            for plane in pool.planes.values():
                plane.tensor.fill_(torch.nan)
            self.spare = pool.take(gap) if gap else None
        self.held = [self.cache.open(WINDOW, GRID.rows * GRID.columns) for _ in range(ROWS)]
        make = torch.Generator().manual_seed(3)
        for held, place in zip(self.held, PLACES, strict=True):
            for part in self.cache.state(held, place.used).values():
                part.copy_(torch.randn(part.shape, generator=make))
        prompts = [Prompt(f"{n}", torch.randn(n, config.text_dim, generator=make)) for n in (3, 5, 7, 9)]
        with torch.no_grad():
            self.prompts = [
                self.cache.prompts.take(prompt, partial(runner.encode_prompt, prompt)) for prompt in prompts
            ]

    def rows(self) -> list[Row]:
        return [row(held, prompt, n) for n, (held, prompt) in enumerate(zip(self.held, self.prompts, strict=True))]

    def state(self) -> list[dict[str, Tensor]]:
        """What the runs hold."""
        return [
            {name: part.nan_to_num(nan=7.0).clone() for name, part in self.cache.state(held, 6).items()}
            for held in self.held
        ]


PLACES = [
    Placement(((4, 5), (4, 3)), (40, 41), used=6),
    Placement(((2, 0), (3, 2)), (7, 8), used=4, first=1),
    Placement(((-1, 3), (1, -1)), (10_000_000, 10_000_001), used=4),
    Placement(((5, 4), (4, 5)), (3, 4), used=6, fixed=(FixedSlot(0, 900), FixedSlot(1, 901))),
]
"""Slots that differ by layer, some of them not written; windows of other lengths and other beginnings."""

LEVELS = [Level(1000.0, 1.0, 0.9), Level(937.5, 0.9375, 0.5), Level(250.0, 0.25, 0.0), Level(625.0, 0.625, 0.3)]


def row(held: StreamKV, prompt: PromptKV, number: int) -> Row:
    return Row(held, prompt, PLACES[number], GRID, LEVELS[number])


def latents(count: int = ROWS) -> tuple[Tensor, Tensor]:
    """Of every row, and their noise."""
    make = torch.Generator().manual_seed(5)
    x, noise = torch.randn(2, ROWS, FRAMES, 16, 2, 4, generator=make)
    return x[:count], noise[:count]


@torch.inference_mode()
def denoise(pool: Pool, rows: Sequence[Row], x: Tensor, noise: Tensor) -> Tensor:
    bound = pool.runner.prepare(rows)
    bound.rotate_slots()
    return bound.denoise(x, noise).clone()


def alone(network: Model) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """What each row makes by itself, and what it leaves in its run."""
    pool = Pool(network, EagerRunner(network.transformer))
    x, noise = latents()
    made = [denoise(pool, [r], x[i : i + 1], noise[i : i + 1]) for i, r in enumerate(pool.rows())]
    return torch.cat(made), pool.state()


def assert_same(
    made: tuple[Tensor, list[dict[str, Tensor]]], wanted: tuple[Tensor, list[dict[str, Tensor]]]
) -> None:
    torch.testing.assert_close(made[0], wanted[0], rtol=0, atol=1e-5)
    for ours, theirs in zip(made[1], wanted[1], strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("backends", [KERNELS, REFERENCES], ids=["kernels", "references"])
@pytest.mark.parametrize("gap", [0, 5], ids=["from the first token", "from a later one"])
def test_rows_of_a_batch_do_as_each_alone(network: Model, backends: KernelBackends, gap: int) -> None:
    pool = Pool(network, FusedRunner(network.transformer, backends, None), gap=gap)
    made = denoise(pool, pool.rows(), *latents())
    assert_same((made, pool.state()), alone(network))


def test_a_batch_without_kernels_has_the_bits_of_each_alone(network: Model) -> None:
    pool = Pool(network, EagerRunner(network.transformer))
    made = denoise(pool, pool.rows(), *latents())
    wanted, state = alone(network)
    assert torch.equal(made, wanted)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(pool.state(), state, strict=True) for name in b)


@pytest.mark.parametrize("runner", [EagerRunner, lambda network: FusedRunner(network, KERNELS, None)])
def test_a_run_that_was_moved_between_two_passes_goes_on_as_before(
    network: Model, runner: type[EagerRunner]
) -> None:
    made = []
    for moves in (False, True):
        pool = Pool(network, runner(network.transformer), gap=7)
        x, noise = latents()
        first = denoise(pool, pool.rows(), x, noise)
        starts = [held.window.start for held in pool.held]
        if moves:
            _move_together(pool)
        assert (starts == [held.window.start for held in pool.held]) is not moves
        made.append((denoise(pool, pool.rows(), first, noise), pool.state()))
    assert_same(made[1], made[0])


def _move_together(pool: Pool) -> None:
    """Give back what lies before the runs, and ask for more than is left in one piece."""
    windows = pool.cache.windows
    before = min(windows._runs, key=lambda run: run.start)
    windows.give_back(before)
    windows.take(windows.free)


def test_one_recording_serves_other_rows_at_other_places(network: Model) -> None:
    record = Recordings()
    pool = Pool(network, FusedRunner(network.transformer, KERNELS, record))
    x, noise = latents()
    for i, r in enumerate(pool.rows()):
        denoise(pool, [r], x[i : i + 1], noise[i : i + 1])
    assert record.made == 1
    denoise(pool, pool.rows(), x, noise)
    assert record.made == 2


def test_keys_and_values_alone_are_written_as_by_a_whole_pass(network: Model) -> None:
    states = []
    for runner in (EagerRunner(network.transformer), FusedRunner(network.transformer, KERNELS, None)):
        pool = Pool(network, runner)
        with torch.inference_mode():
            pool.runner.prepare(pool.rows()).write_kv(latents()[0])
        states.append(pool.state())
    for ours, theirs in zip(states[1], states[0], strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=name)
