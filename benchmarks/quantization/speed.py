"""How long whole blocks take in INT8 and in fp32 on a CPU: generated, decoded, with the clean pass."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.measure.timing import Samples
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.text.prompt import Prompt
from kernels.dispatch import EAGER, KernelBackends

TOGETHER = 4

LIBRARY = KernelBackends(attention="library", batched_attention="library")
"""What takes several streams through the network at once on a CPU."""


class Streams:
    """Streams of one model that go through it together, with windows that have rolled."""

    def __init__(self, model: Model, config: StreamConfig, prompts: Sequence[Prompt]) -> None:
        count = len(prompts)
        backends = EAGER if count == 1 else LIBRARY
        self._generator = build_generator(
            model, EngineConfig(config, sessions=count, batch=count, backends=backends)
        )
        self._streams = [self._generator.open(replace(config, seed=seed)) for seed in range(count)]
        for stream, prompt in zip(self._streams, prompts, strict=True):
            self._generator.set_prompt(stream, prompt)
        while self._streams[0].latent_frames <= config.window_frames:
            self.block_ms()

    def block_ms(self) -> float:
        """Make the next block of each; milliseconds for one."""
        started = time.perf_counter()
        for stream, block in zip(self._streams, self._generator.generate(self._streams), strict=True):
            self._generator.decode(stream, block)
        self._generator.write_context(self._streams)
        return (time.perf_counter() - started) * 1e3 / len(self._streams)

    def close(self) -> None:
        """Give the memory back."""
        self._generator.release()


def measure(
    exact: Model, int8: Model, config: StreamConfig, prompts: Sequence[Prompt], runs: int,
    report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Blocks of one stream and of four together, in turn with those in fp32: a load on the machine meets both."""
    made: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2)}
    for count in (1, TOGETHER):
        report(f"{count} together")
        chosen = [prompts[number % len(prompts)] for number in range(count)]
        pair = {"fp32": Streams(exact, config, chosen), "int8": Streams(int8, config, chosen)}
        laps = {name: Samples(()) for name in pair}
        for _ in range(runs):
            for name, streams in pair.items():
                laps[name] = Samples((*laps[name].ms, streams.block_ms()))
        for streams in pair.values():
            streams.close()
        made[f"{count}_together"] = {
            "times_as_fast": round(laps["fp32"].median_ms / laps["int8"].median_ms, 3),
            **{f"{name}_block_ms": round(lap.median_ms, 2) for name, lap in laps.items()},
            **{f"{name}_samples_ms": [round(ms, 2) for ms in lap.ms] for name, lap in laps.items()},
        }
    return made | {"load_after": round(os.getloadavg()[0], 2)}
