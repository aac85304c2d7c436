"""What a benchmark of stages found out: as a table to read, and as JSON to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from typing_extensions import override

from benchmarks.measure.counts import Work
from benchmarks.measure.delivery import Delivery
from benchmarks.measure.machine import Machine, Rates
from benchmarks.measure.timing import Samples
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.model import ModelConfig


class Stage(NamedTuple):
    """A measured stage. The memory's peak is of this stage on CUDA, and of the process until its end elsewhere.

    `peak_bytes` leave out what graphs work on when they are replayed; `reserved_bytes`, all that the allocator
    took from the GPU, have it. They are None without one.
    """

    name: str
    work: Work
    times: Samples
    peak_bytes: int
    reserved_bytes: int | None


class BlockStages(NamedTuple):
    """A whole block with a full window, as a stream's viewer gets it, and its parts."""

    generate: Stage
    decode: Stage
    clean: Stage
    whole: Stage


@dataclass(frozen=True)
class Report:
    """All that one run found out.

    `wrong` tells what was computed and must not be; `skipped` of stages that were left out why.
    """

    model: ModelConfig
    dtype: torch.dtype
    machine: Machine
    rates: Rates
    stages: Sequence[Stage]
    block: BlockStages
    delivery: Delivery
    kernels: str
    wrong: Sequence[str]
    skipped: Mapping[str, str]

    @property
    def all_stages(self) -> list[Stage]:
        """In the order in which they ran."""
        return [*self.stages, *self.block]

    @property
    def frames_per_second(self) -> dict[str, float]:
        """Pixel frames per second: delivered one block after the other, and by the parts alone."""
        denoising_ms = self.block.generate.times.median_ms + self.block.clean.times.median_ms
        pictures = TEMPORAL_FACTOR * self.model.stream.block_frames
        return {
            "delivered": pictures / self.block.whole.times.median_ms * 1e3,
            "denoising_alone": pictures / denoising_ms * 1e3,
            "decoding_alone": pictures / self.block.decode.times.median_ms * 1e3,
        }

    @override
    def __str__(self) -> str:
        stream, rates, frames = self.model.stream, self.rates, self.frames_per_second
        warning = "".join(f"WRONG, so that no time here means anything: {what}\n" for what in self.wrong)
        return (
            f"{warning}{self.model.name}, {stream.height}x{stream.width}, {_name(self.dtype)}, random weights\n"
            f"kernels: {self.kernels}\n"
            f"{self.machine}\n"
            f"{rates.flops_per_s / 1e9:.1f} GFLOP/s in a matmul, {rates.bytes_per_s / 1e9:.1f} GB/s in a copy\n\n"
            f"{self._table()}\n\n"
            f"{frames['delivered']:.2f} pixel frames per second one after the other "
            f"({frames['denoising_alone']:.2f} without decoding, {frames['decoding_alone']:.2f} decoding alone)\n"
            f"{self.delivery}"
        )

    def as_json(self) -> str:
        """Everything, with every sample."""
        result = {
            "machine": asdict(self.machine),
            "rates": asdict(self.rates),
            "model": asdict(self.model),
            "dtype": _name(self.dtype),
            "kernels": self.kernels,
            "frames_per_second": self.frames_per_second,
            "delivery": self.delivery.as_json(),
            "wrong": self.wrong,
            "skipped": self.skipped,
            "stages": [self._stage_json(stage) for stage in self.all_stages],
        }
        return json.dumps(result, indent=1) + "\n"

    def _table(self) -> str:
        rows = [
            "| stage | GFLOP | MB | median ms | p90 ms | floor ms | bound by | median / floor | peak MB "
            "| reserved MB |",
            "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
        ]
        for stage in self.all_stages:
            floor, times = self.rates.floor(stage.work), stage.times
            rows.append(
                f"| {stage.name} | {stage.work.flops / 1e9:.3g} | {stage.work.nbytes / 1e6:.3g} "
                f"| {times.median_ms:.2f} | {times.quantile_ms(0.9):.2f} | {floor.ms:.3g} | {floor.bound_by} "
                f"| {times.median_ms / floor.ms:.1f} | {stage.peak_bytes / 1e6:.0f} "
                f"| {'' if stage.reserved_bytes is None else f'{stage.reserved_bytes / 1e6:.0f}'} |"
            )
        return "\n".join(rows + [f"| {name} | skipped: {why} |" for name, why in self.skipped.items()])

    def _stage_json(self, stage: Stage) -> dict[str, object]:
        floor, times = self.rates.floor(stage.work), stage.times
        return {
            "name": stage.name,
            **asdict(stage.work),
            "median_ms": times.median_ms,
            "p10_ms": times.quantile_ms(0.1),
            "p90_ms": times.quantile_ms(0.9),
            "floor_ms": floor.ms,
            "bound_by": floor.bound_by,
            "median_by_floor": times.median_ms / floor.ms,
            "peak_bytes": stage.peak_bytes,
            "reserved_bytes": stage.reserved_bytes,
            "samples_ms": [round(ms, 4) for ms in times.ms],
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
