"""Stage four: the transformer on its own rollouts, far past the window.

A stream is rolled out as it is served: few steps, fresh noise between them, keys and values from its own clean
passes, or in noisy context from its last steps. Each block begins at one of the sampler's steps, from the true
block brought to that step's noise level, so that a rollout follows its clip however long it grows, and what it has
made itself can be held against the truth: the loss of one random step of every block is the flow towards the true
block. What a block hands on to the next carries no gradient. (Self-Forcing, Huang et al. 2025, in its rollouts;
Resampling Forcing, Guo et al. 2025, in taking the target from the clip rather than from a teacher.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.pocket.training.optimizers import for_transformer
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.training.transformer.channel_energy import channel_energy
from engines.pocket.training.transformer.dataset import Curriculum, Reuse, Sample, Stretches, Teachers
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.restyling import Restyling, RestylingTeacher
from engines.pocket.training.transformer.teacher_forcing import RolloutMemory, Window
from engines.sampling.flow_schedule import CLEAN, FlowSchedule, add_noise, predict_clean
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class SelfForcingTraining:
    """Settings of the stage. A step makes `batch` rollouts of `blocks`; `variety` is the world's."""

    budget: Budget
    batch: int
    blocks: int = 12
    from_noise: float = 0.5
    """Share of the blocks that begin with noise alone, as all do when serving."""
    variety: float = 1.0
    reuse: Reuse = field(default_factory=lambda: Reuse(kept=256))
    standout: float = 2.0
    channel_power: float = 0.5
    restyling: Restyling | None = None
    seed: int = 4


def train_on_rollouts(
    transformer: CausalTransformer, teachers: Teachers, model: ModelConfig, stage: str,
    settings: SelfForcingTraining, workshop: Workshop,
) -> CausalTransformer:  # fmt: skip
    """Train or go on training from `transformer`'s weights; returns the averaged network."""
    team, device, stream = workshop.team, workshop.device, model.stream
    run = Run(stage, transformer, settings.budget, asdict(settings), workshop, for_transformer(transformer, team))
    seed = (settings.seed, run.progress.step, team.rank)
    torch.manual_seed(hash(seed))
    whole = Curriculum(first=0, start=1, rolled=0, switched=0, length=settings.blocks, variety=settings.variety)
    blocks = settings.batch * (2 * settings.blocks - 1)  # All clean but the last, all noisy.
    samples = iter(Stretches(teachers, stream, whole, blocks, seed, device, settings.reuse))
    energy = channel_energy(teachers.codec, stream, device)
    loss = FlowLoss(energy, settings.channel_power, settings.standout)
    rollouts = Rollouts(transformer, stream, settings.from_noise, loss)

    def losses(_: int) -> Losses:
        sample = next(samples)
        with torch.autocast(device.type, torch.bfloat16):
            return rollouts.losses(sample)

    steps: Callable[[int], Losses] = losses
    if settings.restyling is not None:
        teacher = RestylingTeacher(teachers, model, settings.restyling, settings.variety, seed, device, loss)
        steps = teacher.beside(losses, transformer)
    average = run.train(steps)
    assert isinstance(average, CausalTransformer)
    return average


class Rollouts:
    """Rolls a transformer out beside clips, and says how far from them it leads."""

    def __init__(
        self, transformer: CausalTransformer, stream: StreamConfig, from_noise: float, loss: FlowLoss
    ) -> None:
        self._transformer, self._stream, self._from_noise, self._loss = transformer, stream, from_noise, loss
        if stream.context == "steps":
            raise ConfigError("a rollout has one window; a context of 'steps' has one for each")
        self._window = Window(stream, transformer.config.head_dim, transformer.device)

    def losses(self, sample: Sample) -> Losses:
        """Over all blocks of a rollout: the flow's error, and how far the blocks made are from the true ones."""
        memory = RolloutMemory(self._transformer, sample.rows, self._window)
        errors, distances = [], []
        for truth in sample.latents.split(self._stream.block_frames, dim=1):
            made, error = self._block(truth, memory)
            if self._stream.context == "clean" or memory.number == 0:
                self._clean(made, memory)
            memory.advance()
            errors.append(error)
            distances.append(F.mse_loss(made, truth))
        return {"total": torch.stack(errors).mean(), "distance": torch.stack(distances).mean()}

    def _block(self, truth: Tensor, memory: RolloutMemory) -> tuple[Tensor, Tensor]:
        """The rollout's own block, without gradient, and the loss of one of its steps."""
        levels = FlowSchedule.of(self._stream, memory.number).levels
        steps = len(levels)
        first = 0 if torch.rand(()) < self._from_noise else int(torch.randint(steps, ()))
        graded = int(torch.randint(first, steps, ()))
        noisy = add_noise(truth, torch.randn_like(truth), levels[first].sigma)
        for step, level in enumerate(levels[first:], first):
            with torch.set_grad_enabled(step == graded):
                flow = self._transformer(noisy, self._timesteps(truth, level.timestep), memory)
            if step == graded:
                error = self._loss(flow.float(), (noisy - truth) / level.sigma, truth).mean()
            made = predict_clean(noisy, flow.detach(), level.sigma)
            if step + 1 < steps:
                noisy = add_noise(made, torch.randn_like(made), level.next_sigma)
        return made, error

    @torch.no_grad()
    def _clean(self, made: Tensor, memory: RolloutMemory) -> None:
        """The clean pass: later blocks see what was made, not what was meant."""
        modulations = self._transformer.modulations(self._timesteps(made, CLEAN.timestep))
        self._transformer.write_kv(made, modulations, memory)

    def _timesteps(self, latents: Tensor, timestep: float) -> Tensor:
        return torch.full(latents.shape[:2], timestep, device=latents.device)
