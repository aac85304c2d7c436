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
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from engines.errors import ConfigError, EngineError
from engines.pocket.training.optimizers import Muon, adamw
from engines.pocket.training.team import Team

logger = logging.getLogger(__name__)

Losses = Mapping[str, Tensor]
"""Scalars by name; the one called `total` is minimised."""

SAVE_EVERY_S = 120.0

LOWEST = 0.02
"""Share of the highest rate that is left when a budget ends."""

LOG_EVERY = 20
"""Steps averaged in one line of the curves."""


@dataclass(frozen=True)
class Budget:
    """How long a stage runs, whichever ends first, and how fast it learns.

    The learning rate climbs to `rate` in `warm_up` steps, stays there for a share `hold` of the budget and falls
    along a cosine, which ends with the budget.
    """

    steps: int
    minutes: float
    rate: float
    warm_up: int = 100
    average: float = 0.999
    """Decay of the moving average of the weights, a step."""
    hold: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.minutes <= 0:
            raise ConfigError(f"a budget of {self.steps} steps and {self.minutes} minutes; both must be positive")
        if not 0 < self.average < 1:
            raise ConfigError(f"average is {self.average}; it must lie between 0 and 1")
        if not 0 <= self.hold < 1:
            raise ConfigError(f"hold is {self.hold}; it must be at least 0 and below 1")

    def rate_at(self, since_start: int, spent: float) -> float:
        """The learning rate `since_start` steps after a start, with a share `spent` of the budget gone."""
        climb = min(1.0, (since_start + 1) / self.warm_up)
        falling = max(0.0, min(1.0, spent) - self.hold) / (1 - self.hold)
        return self.rate * climb * (LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * falling)))


class OutOfTime(EngineError):
    """The program has to end before the stage's budget is spent; what was learned is saved."""


@dataclass(frozen=True)
class Workshop:
    """Where a training runs and who helps, and when it has to end on the clock of `time.monotonic`."""

    folder: Path
    device: torch.device
    deadline: float = math.inf
    team: Team = field(default_factory=Team)


@dataclass
class Progress:
    """Of a stage, over all its runs."""

    step: int = 0
    seconds: float = 0.0


class Run:
    """Trains `network` for one stage; goes on where an earlier run of the stage in the same folder ended.

    `settings` are written down beside the weights. AdamW moves all parameters unless there are other `optimizers`.
    """

    def __init__(
        self,
        stage: str,
        network: nn.Module,
        budget: Budget,
        settings: Mapping[str, object],
        workshop: Workshop,
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        workshop.folder.mkdir(parents=True, exist_ok=True)
        self._stage, self._workshop, self._budget = stage, workshop, budget
        self._settings = settings
        self.network = network
        self.average = deepcopy(network).requires_grad_(False)
        self._optimizers = optimizers or [adamw(network.named_parameters())]
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
        started, saved, before = time.monotonic(), time.monotonic(), self.progress.seconds
        first, team = self.progress.step, self._workshop.team
        while self.spent < 1:
            rate = self._budget.rate_at(self.progress.step - first, self.spent)
            self._step(rate, losses(self.progress.step))
            self.progress.step += 1
            now = time.monotonic()
            self.progress.seconds, late = team.leaders([before + now - started, now > self._workshop.deadline])
            if self.progress.step % LOG_EVERY == 0 or self.spent >= 1:
                self._log(rate)
            if now - saved > SAVE_EVERY_S:
                self._save()
                saved = now
            if late and self.spent < 1:
                self._save()
                raise OutOfTime(f"{self._stage} has used {self.spent:.0%} of its budget; start it again to go on")
        self._save()
        return self.average

    def _step(self, rate: float, losses: Losses) -> None:
        self.network.zero_grad(set_to_none=True)
        losses["total"].backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self._workshop.team.average_(gradients)
        if not nn.utils.get_total_norm(gradients).isfinite():
            logger.warning("%s leaves out step %d: its gradient is not finite", self._stage, self.progress.step)
            return
        for optimizer in self._optimizers:
            _move(optimizer, rate)
        # A young average would otherwise remember the random start.
        decay = min(self._budget.average, (self.progress.step + 1) / (self.progress.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        for name, value in losses.items():
            self._losses[name].append(value.detach())

    def _log(self, rate: float) -> None:
        means = {name: torch.stack(values).nanmean().item() for name, values in self._losses.items()}
        self._losses.clear()
        if not self._workshop.team.leads:
            return
        line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), "rate": rate, **means}
        with self._file(".losses.jsonl").open("a") as curves:
            curves.write(json.dumps(line) + "\n")
        logger.info("%s %s", self._stage, " ".join(f"{name} {value:.4g}" for name, value in line.items()))

    def _save(self) -> None:
        if not self._workshop.team.leads:
            return
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


def _move(optimizer: Optimizer, rate: float) -> None:
    """One step at each group's share of `rate`; AdamW's gradients are cut to a norm of one, Muon has none."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    if not isinstance(optimizer, Muon):
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
