"""Stage three: the causal transformer, by flow matching on clean pasts.

Each noisy block has a noise level of its own, one of those that the sampler has, and sees the clean blocks of its
window; half of the pasts are a little disturbed, because when the model serves, its past is what it made itself.
Sums are in bf16, weights in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig
from engines.pocket.training.dataset import Curriculum, Sample, Stretches, Teachers
from engines.pocket.training.teacher_forcing import SequenceMemory, Window
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.sampling.flow_schedule import TRAINING_STEPS, FlowSchedule
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class FlowTraining:
    """Settings of the stage. A share of `from_noise` of the blocks is noise alone, as when a block begins.

    What stands out of its row of the picture, as subjects do, counts `standout` times as much again as the
    average place: a subject is small, and without it the landscape is learned long before. Each batch is used
    `repeats` times, with other noise: on a CPU it takes as long to make as to learn from.
    """

    budget: Budget
    curriculum: Curriculum
    batch: int
    repeats: int = 1
    standout: float = 1.0
    from_noise: float = 0.4
    past_noise: float = 0.15
    seed: int = 3


def train_flow(
    transformer: CausalTransformer, teachers: Teachers, stream: StreamConfig, stage: str, settings: FlowTraining,
    workshop: Workshop,
) -> CausalTransformer:  # fmt: skip
    """Train or go on training from `transformer`'s weights; returns the averaged network."""
    torch.manual_seed(settings.seed)
    run = Run(stage, transformer, settings.budget, asdict(settings), workshop)
    seed = settings.seed + 1_000_003 * run.progress.step
    stretches = Stretches(teachers, stream, settings.curriculum, settings.batch, seed, workshop.device)
    samples = (sample for sample in stretches.loader() for _ in range(settings.repeats))
    window = Window(stream, transformer.config.head_dim, workshop.device)

    def losses(_: int) -> Losses:
        with torch.autocast(workshop.device.type, torch.bfloat16):
            return flow_losses(transformer, next(samples), window, stream, settings)

    average = run.train(losses)
    assert isinstance(average, CausalTransformer)
    return average


def flow_losses(
    transformer: CausalTransformer, sample: Sample, window: Window, stream: StreamConfig, settings: FlowTraining
) -> Losses:
    """Squared error of the flow of a stretch's noisy blocks."""
    stretch, size = sample.stretch, stream.block_frames
    blocks = sample.latents.unflatten(1, (-1, size))
    target = blocks[:, [stretch.numbers.index(number) for number in stretch.noisy]]
    noise = torch.randn_like(target)
    sigmas = [level.sigma for level in FlowSchedule(stream.steps, stream.shift).levels]
    sigma = _levels(target.shape[:2], sigmas, settings.from_noise, target.device)
    wide = sigma[..., None, None, None, None]
    noisy = torch.lerp(target, noise, wide)
    past = _disturbed(blocks[:, : len(stretch.clean)], settings.past_noise)
    levels = torch.cat([sigma.new_zeros(past.shape[:2]), sigma], dim=1).repeat_interleave(size, dim=1)
    memory = SequenceMemory(transformer, sample.rows, stretch, window)
    flow = transformer(torch.cat([past, noisy], 1).flatten(1, 2), levels * TRAINING_STEPS, memory)
    error = F.mse_loss(flow[:, past.shape[1] * size :], (noise - target).flatten(1, 2), reduction="none")
    weighted = error.view_as(target) * _weights(target, settings.standout)
    per_block = weighted.mean(dim=(2, 3, 4, 5))
    return {
        "total": per_block.mean(),
        "first": _mean_where(per_block, sigma >= sigmas[0]),
        "last": _mean_where(per_block, sigma <= sigmas[-1]),
    }


def initialize(transformer: CausalTransformer) -> None:
    """Start as a network that predicts no flow, each layer of which changes little."""
    for layer in transformer.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for last in (transformer.head.head, transformer.time_projection[-1]):
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)


def new_transformer(config: TransformerConfig, seed: int, device: torch.device) -> CausalTransformer:
    """A transformer that has learned nothing yet."""
    torch.manual_seed(seed)
    transformer = CausalTransformer(config)
    initialize(transformer)
    return transformer.to(device)


def _levels(shape: torch.Size, sigmas: Sequence[float], from_noise: float, device: torch.device) -> Tensor:
    """One of `sigmas` each: the first with the chance `from_noise`, the others alike."""
    later = (1 - from_noise) / (len(sigmas) - 1)
    chances = torch.tensor([from_noise, *[later] * (len(sigmas) - 1)], device=device)
    drawn = torch.multinomial(chances, shape.numel(), replacement=True).view(shape)
    return torch.tensor(list(sigmas), device=device)[drawn]


def _weights(target: Tensor, standout: float) -> Tensor:
    """How much each place of blocks [B, blocks, frames, channels, h, w] counts: one on average."""
    contrast = (target - target.mean(-1, keepdim=True)).square().mean(3, keepdim=True)
    weights = 1 + standout * contrast / contrast.mean(dim=(2, 4, 5), keepdim=True).clamp(min=1e-6)
    return weights / (1 + standout)


def _disturbed(past: Tensor, most: float) -> Tensor:
    """Half of the streams' pasts with noise of up to `most`."""
    if past.shape[1] == 0:
        return past
    much = torch.rand(len(past), device=past.device) * most * (torch.rand(len(past), device=past.device) < 0.5)
    return torch.lerp(past, torch.randn_like(past), much[:, None, None, None, None, None])


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """NaN where there is none."""
    return values.detach()[mask].mean()
