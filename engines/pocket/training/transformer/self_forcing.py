"""Stage four: the transformer on its own samples, far past the window.

A stream is rolled out as it is served: few steps, fresh noise between them, keys and values from clean passes,
or in noisy context from last steps. Each block is drawn twice, and the samples of one random step are held against
the true block by the energy score, so that they become as varied as the world is. Most begin with noise alone;
these know nothing of the truth, and the block that later ones see is the true one, a little disturbed. The others
begin at a later step, from the true block brought to its noise level, and hand on what was made of it: a rollout
follows its clip however long it grows. What a block hands on carries no gradient. (Self-Forcing, Huang et al.,
2025, in its rollouts; Resampling Forcing, Guo et al., 2025, in taking the target from the clip.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.pocket.training.optimizers import for_transformer
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.training.transformer.channel_energy import channel_energy
from engines.pocket.training.transformer.dataset import Curriculum, Reuse, Sample, Stretches, Teachers
from engines.pocket.training.transformer.energy_score import EnergyScore
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.restyling import Restyling, RestylingTeacher
from engines.pocket.training.transformer.teacher_forcing import RolloutMemory, Window
from engines.sampling.flow_schedule import CLEAN, FlowSchedule, Level, add_noise
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class SelfForcingTraining:
    """Settings of the stage. A step makes `batch` rollouts of `blocks`; `variety` is the world's."""

    budget: Budget
    batch: int
    blocks: int = 12
    first_blocks: float = 0.3
    """Share of the steps that draw as many first blocks alone, with which variety begins."""
    from_noise: float = 0.6
    """Share of the blocks that begin with noise alone, as all do when serving."""
    past_noise: float = 0.1
    """The most that true blocks are disturbed which later ones see."""
    variety: float = 1.0
    reuse: Reuse = field(default_factory=lambda: Reuse(kept=256))
    channel_power: float = 0.5
    standout: float = 2.0
    """As in `FlowTraining`, where pairs are restyled."""
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
    curriculum = Curriculum(
        settings.first_blocks, 1 - settings.first_blocks, 0, 0, settings.blocks, settings.variety
    )  # fmt: skip
    blocks = settings.batch * (2 * settings.blocks - 1)  # All clean but the last, all noisy.
    samples = iter(Stretches(teachers, stream, curriculum, blocks, seed, device, settings.reuse))
    energy = channel_energy(teachers.codec, stream, device)
    rollouts = Rollouts(transformer, stream, settings, EnergyScore(energy, settings.channel_power))

    def losses(_: int) -> Losses:
        sample = next(samples)
        with torch.autocast(device.type, torch.bfloat16):
            return rollouts.losses(sample)

    steps: Callable[[int], Losses] = losses
    if settings.restyling is not None:
        loss = FlowLoss(energy, settings.channel_power, settings.standout)
        teacher = RestylingTeacher(teachers, model, settings.restyling, settings.variety, seed, device, loss)
        steps = teacher.beside(losses, transformer)
    average = run.train(steps)
    assert isinstance(average, CausalTransformer)
    return average


class Rollouts:
    """Rolls a transformer out beside clips, and says how good its samples are."""

    def __init__(
        self,
        transformer: CausalTransformer,
        stream: StreamConfig,
        settings: SelfForcingTraining,
        score: EnergyScore,
    ) -> None:
        self._transformer, self._stream, self._settings, self._score = transformer, stream, settings, score
        if stream.context == "steps":
            raise ConfigError("a rollout has one window; a context of 'steps' has one for each")
        self._window = Window(stream, transformer.config.head_dim, transformer.device)

    def losses(self, sample: Sample) -> Losses:
        """Over all blocks of a rollout: the score of two samples of each, and what it is made of."""
        memory = RolloutMemory(self._transformer, sample.rows, self._window)
        scores = []
        for truth in sample.latents.split(self._stream.block_frames, dim=1):
            levels = FlowSchedule.of(self._stream, memory.number).levels
            first = self._first(len(levels))
            graded = int(torch.randint(first, len(levels), ()))
            (one, made), (other, _) = (self._draw(truth, memory, levels, first, graded) for _ in range(2))
            scores.append(self._score(one, other, truth))
            self._hand_on(made if first else self._disturbed(truth), levels[-1], memory)
            memory.advance()
        total, error, spread = (torch.stack(part).mean() for part in zip(*scores, strict=True))
        return {"total": total, "error": error, "spread": spread}

    def _first(self, steps: int) -> int:
        """The step that a block begins with."""
        if steps == 1 or torch.rand(()) < self._settings.from_noise:
            return 0
        return int(torch.randint(1, steps, ()))

    def _draw(
        self, truth: Tensor, memory: RolloutMemory, levels: Sequence[Level], first: int, graded: int
    ) -> tuple[Tensor, Tensor]:
        """A block as the step `graded` leaves it, with gradient, and as the last one does."""
        noisy, graded_block = add_noise(truth, torch.randn_like(truth), levels[first].sigma), truth
        for step, level in enumerate(levels[first:], first):
            with torch.set_grad_enabled(step == graded):
                flow = self._transformer(noisy, self._timesteps(truth, level), memory).float()
                made = noisy - level.sigma * flow
            if step == graded:
                graded_block, made = made, made.detach()
            if step + 1 < len(levels):
                noisy = add_noise(made, torch.randn_like(made), level.next_sigma)
        return graded_block, made

    def _disturbed(self, truth: Tensor) -> Tensor:
        return add_noise(truth, torch.randn_like(truth), self._settings.past_noise * float(torch.rand(())))

    @torch.no_grad()
    def _hand_on(self, block: Tensor, last: Level, memory: RolloutMemory) -> None:
        """Have later blocks see this one, as its clean pass leaves it, or its last step in noisy context."""
        if self._stream.context == "clean" or memory.number == 0:
            modulations = self._transformer.modulations(self._timesteps(block, CLEAN))
            self._transformer.write_kv(block, modulations, memory)
        else:
            noisy = add_noise(block, torch.randn_like(block), last.sigma)
            self._transformer(noisy, self._timesteps(block, last), memory)

    def _timesteps(self, latents: Tensor, level: Level) -> Tensor:
        return torch.full(latents.shape[:2], level.timestep, device=latents.device)
