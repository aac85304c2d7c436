"""What rounding costs, in numbers: errors of latents against fp32, and PSNR of the pictures of the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quantization.rollout import LedRunner, RecordingRunner, Take
from benchmarks.quantization.variants import Variant, rounded
from engines.loading.model import Model
from engines.quantization.inputs import InputStatistics
from engines.quantization.picture_loss import LEVELS, psnr
from engines.runner.eager import EagerRunner
from engines.runner.selection import select_runner
from engines.vae.protocol import StreamingDecoder

Report = Callable[[str], None]


@dataclass(frozen=True)
class Laboratory:
    """A model in fp32, what its inputs are like, and what is rolled out on it and on its variants."""

    model: Model
    statistics: InputStatistics
    take: Take
    report: Report

    def whole(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """Errors and PSNR of each variant, by its name."""
        exact = self._exact()
        pictures = self._decoded(exact)
        made = {}
        for variant in variants:
            latents = self._rolled_out(variant)
            made[variant.name] = _errors(latents, exact) | decibels(self._decoded(latents), pictures)
        return made

    def parts(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """Errors of each variant, by its name."""
        exact = self._exact()
        return {variant.name: _errors(self._rolled_out(variant), exact) for variant in variants}

    def steps(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """Median errors of what a step takes for clean, by timestep, by variant.

        Every step of every block begins where that in fp32 did, with keys and values that the variant made.
        """
        self.report("fp32")
        exact = RecordingRunner(self.model.transformer)
        self.take.roll_out(exact, self.model.transformer)
        made = {}
        for variant in variants:
            self.report(variant.name)
            transformer = rounded(self.model.transformer, variant, self.statistics)
            runner = LedRunner(transformer, exact.steps)
            self.take.roll_out(runner, transformer)
            made[variant.name] = {
                f"{timestep:.0f}": _significant(np.median(errors)) for timestep, errors in runner.errors.items()
            }
        return made

    def _exact(self) -> list[Tensor]:
        self.report("fp32")
        return self.take.roll_out(EagerRunner(self.model.transformer), self.model.transformer)

    def _decoded(self, latents: Sequence[Tensor]) -> list[list[Tensor]]:
        return decoded(self.model.vae, latents, self.model.transformer.device)

    def _rolled_out(self, variant: Variant) -> list[Tensor]:
        self.report(variant.name)
        transformer = rounded(self.model.transformer, variant, self.statistics)
        return self.take.roll_out(select_runner(transformer, variant.backends, graphs=False), transformer)


@torch.inference_mode()
def decoded(codec: StreamingDecoder, latents: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
    """Pictures of every stream's blocks as viewers get them, uint8 on the CPU; of latents as `Take` makes them."""
    films: list[list[Tensor]] = []
    for stream in range(len(latents[0])):
        cache = codec.start_decoding()
        films.append([])
        for block in latents:
            frames, cache = codec.decode(block[stream : stream + 1].to(device), cache)
            films[-1].append((frames.clamp(0, 1) * LEVELS).round().to("cpu", torch.uint8))
    return films


def _errors(latents: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, Any]:
    """|latents - exact| / |exact| of each stream's blocks."""
    errors = [
        ((made - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).tolist()
        for made, wanted in zip(latents, exact, strict=True)
    ]
    return {
        "median_error": _significant(np.median(errors)),
        "last_block_error": _significant(np.median(errors[-1])),
        "worst_error": _significant(np.max(errors)),
        "error_by_block": [_significant(np.median(block)) for block in errors],
    }


def decibels(films: Sequence[Sequence[Tensor]], exact: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    """PSNR of each stream's blocks."""
    found = [
        [psnr(block, wanted) for block, wanted in zip(film, wanted_film, strict=True)]
        for film, wanted_film in zip(films, exact, strict=True)
    ]
    return {
        "median_psnr_db": round(float(np.median(found)), 2),
        "worst_psnr_db": round(float(np.min(found)), 2),
        "psnr_db_by_block": [round(float(value), 2) for value in np.median(found, axis=0)],
    }


def _significant(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
