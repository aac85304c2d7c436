"""What every stage of the training shares: a budget, a resumable run that saves and logs, an average of weights.

A run's folder holds, for each stage, `<stage>.safetensors` (the weights to go on from),
`<stage>-average.safetensors` (their moving average, which is what the stage is for), `<stage>.json` (settings and
progress) and `<stage>.losses.jsonl` (the curves). The optimizer's state is not kept: a resumed run warms up again.
Without the first of them, which a finished stage no longer needs, a run goes on from the average.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

Losses = Mapping[str, Tensor]
"""Scalars by name; the one called `total` is minimised."""

SAVE_EVERY_S = 120.0
UNSCALED_INPUTS = 64
"""Weights of sums of so many inputs learn at the full rate."""

LOG_EVERY = 20
"""Steps averaged in one line of the curves."""


@dataclass(frozen=True)
class Budget:
    """How long a stage runs, whichever ends first, and how fast it learns.

    The learning rate climbs to `rate` in `warm_up` steps and falls to a twentieth of it along a cosine, which ends
    with the budget.
    """

    steps: int
    minutes: float
    rate: float
    warm_up: int = 100
    average: float = 0.999
    """Decay of the moving average of the weights, a step."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.minutes <= 0:
            raise ConfigError(f"a budget of {self.steps} steps and {self.minutes} minutes; both must be positive")
        if not 0 < self.average < 1:
            raise ConfigError(f"average is {self.average}; it must lie between 0 and 1")

    def rate_at(self, since_start: int, spent: float) -> float:
        """The learning rate `since_start` steps after a start, with a share `spent` of the budget gone."""
        climb = min(1.0, (since_start + 1) / self.warm_up)
        return self.rate * climb * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, spent))))


class OutOfTime(EngineError):
    """The program has to end before the stage's budget is spent; what was learned is saved."""


@dataclass(frozen=True)
class Workshop:
    """Where a training runs: its folder, its device, and when it has to end on the clock of `time.monotonic`."""

    folder: Path
    device: torch.device
    deadline: float = math.inf


@dataclass
class Progress:
    """Of a stage, over all its runs."""

    step: int = 0
    seconds: float = 0.0


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate: the more inputs a sum has, the smaller its steps.

    Adam moves all of them at once by the same amount (Yang et al. 2022, "Tensor Programs V").
    """
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for parameter in network.parameters():
        is_matrix = parameter.ndim > 1 and len(parameter) > 1
        inputs = parameter[0].numel() if is_matrix else 1
        groups[min(1.0, UNSCALED_INPUTS / inputs)].append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in groups.items()]


class Run:
    """Trains `network` for one stage; goes on where an earlier run of the stage in the same folder ended.

    `settings` are written down beside the weights.
    """

    def __init__(
        self, stage: str, network: nn.Module, budget: Budget, settings: Mapping[str, object], workshop: Workshop
    ) -> None:
        workshop.folder.mkdir(parents=True, exist_ok=True)
        self._stage, self._workshop, self._budget = stage, workshop, budget
        self._settings = settings
        self.network = network
        self.average = deepcopy(network).requires_grad_(False)
        self.progress = Progress()
        self._resume()
        self._losses: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def spent(self) -> float:
        """The share of the budget that is gone."""
        return max(self.progress.step / self._budget.steps, self.progress.seconds / 60 / self._budget.minutes)

    def train(self, losses: Callable[[int], Losses]) -> nn.Module:
        """Minimise what `losses` returns for a step number until the budget is spent; returns the average.

        Raises OutOfTime at the workshop's deadline.
        """
        optimizer = torch.optim.AdamW(parameter_groups(self.network), betas=(0.9, 0.98), weight_decay=0.01)
        started, saved, before = time.monotonic(), time.monotonic(), self.progress.seconds
        first = self.progress.step
        while self.spent < 1:
            rate = self._budget.rate_at(self.progress.step - first, self.spent)
            self._step(optimizer, rate, losses(self.progress.step))
            self.progress.step += 1
            self.progress.seconds = before + time.monotonic() - started
            if self.progress.step % LOG_EVERY == 0 or self.spent >= 1:
                self._log(rate)
            if time.monotonic() - saved > SAVE_EVERY_S:
                self._save()
                saved = time.monotonic()
            if time.monotonic() > self._workshop.deadline and self.spent < 1:
                self._save()
                raise OutOfTime(f"{self._stage} has used {self.spent:.0%} of its budget; start it again to go on")
        self._save()
        return self.average

    def _step(self, optimizer: torch.optim.Optimizer, rate: float, losses: Losses) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        optimizer.step()
        # A young average would otherwise remember the random start.
        decay = min(self._budget.average, (self.progress.step + 1) / (self.progress.step + 10))
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
        for name, value in losses.items():
            self._losses[name].append(value.detach())

    def _log(self, rate: float) -> None:
        means = {name: torch.stack(values).nanmean().item() for name, values in self._losses.items()}
        self._losses.clear()
        line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), "rate": rate, **means}
        with self._file(".losses.jsonl").open("a") as curves:
            curves.write(json.dumps(line) + "\n")
        logger.info("%s %s", self._stage, " ".join(f"{name} {value:.4g}" for name, value in line.items()))

    def _save(self) -> None:
        for network, ending in ((self.network, ".safetensors"), (self.average, "-average.safetensors")):
            tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            save_file(tensors, self._file(ending))
        state = {"settings": self._settings, "progress": asdict(self.progress), "torch": torch.__version__}
        self._file(".json").write_text(json.dumps(state, indent=1) + "\n")

    def _resume(self) -> None:
        if not self._file(".json").exists():
            return
        average = load_file(self._file("-average.safetensors"))
        self.average.load_state_dict(average)
        latest = self._file(".safetensors")
        self.network.load_state_dict(load_file(latest) if latest.exists() else average)
        self.progress = Progress(**json.loads(self._file(".json").read_text())["progress"])
        logger.info("%s goes on after step %d", self._stage, self.progress.step)

    def _file(self, ending: str) -> Path:
        return self._workshop.folder / f"{self._stage}{ending}"
