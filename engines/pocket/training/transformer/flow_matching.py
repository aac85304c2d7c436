"""Stage three: the causal transformer, by flow matching on clean pasts.

Each noisy block has a noise level of its own, any of those that the sampler has, and sees the clean blocks of its
window; half of the pasts are a little disturbed, because when the model serves, its past is what it made itself.
Channels of the latents count by what an error in them costs in pictures. Sums are in bf16, weights in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from engines.config.geometry import PATCH
from engines.config.model import ModelConfig
from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig
from engines.pocket.training.optimizers import for_transformer
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.training.transformer.channel_energy import channel_energy
from engines.pocket.training.transformer.dataset import Curriculum, Reuse, Sample, Stretches, Teachers
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.teacher_forcing import SequenceMemory, Window
from engines.sampling.flow_schedule import TRAINING_STEPS, FlowSchedule
from engines.wan.transformer import CausalTransformer

EMBEDDING_SCALE = 3.0
"""Of patches beside what a layer adds to them at the start."""


@dataclass(frozen=True)
class FlowTraining:
    """Settings of a stage. A pass has `batch` blocks, clean and noisy.

    Channels are weighed by their energy to the power of `channel_power`. What stands
    out of its row of the picture, as subjects do, counts `standout` times as much again as the average place: a
    subject is small, and without it the landscape is learned long before.
    """

    budget: Budget
    curriculum: Curriculum
    batch: int
    reuse: Reuse = field(default_factory=Reuse)
    standout: float = 2.0
    channel_power: float = 0.5
    past_noise: float = 0.15
    seed: int = 3


def train_flow(
    transformer: CausalTransformer, teachers: Teachers, model: ModelConfig, stage: str, settings: FlowTraining,
    workshop: Workshop,
) -> CausalTransformer:  # fmt: skip
    """Train or go on training from `transformer`'s weights; returns the averaged network."""
    team, device, stream = workshop.team, workshop.device, model.stream
    run = Run(stage, transformer, settings.budget, asdict(settings), workshop, for_transformer(transformer, team))
    seed = (settings.seed, run.progress.step, team.rank)
    torch.manual_seed(hash(seed))
    stretches = Stretches(
        teachers, stream, settings.curriculum, settings.batch, seed, device, settings.reuse
    )  # fmt: skip
    samples, window = iter(stretches), Window(stream, transformer.config.head_dim, device)
    loss = FlowLoss(
        channel_energy(teachers.codec, stream, device), settings.channel_power, settings.standout
    )  # fmt: skip

    def losses(_: int) -> Losses:
        sample = next(samples)
        with torch.autocast(device.type, torch.bfloat16):
            return flow_losses(transformer, sample, window, stream, loss, settings.past_noise)

    average = run.train(losses)
    assert isinstance(average, CausalTransformer)
    return average


def flow_losses(
    transformer: CausalTransformer, sample: Sample, window: Window, stream: StreamConfig, loss: FlowLoss,
    past_noise: float,
) -> Losses:  # fmt: skip
    """Weighed squared error of the flow of a stretch's noisy blocks."""
    stretch, size = sample.stretch, stream.block_frames
    blocks = sample.latents.unflatten(1, (-1, size))
    target = blocks[:, [stretch.numbers.index(number) for number in stretch.noisy]]
    noise = torch.randn_like(target)
    sigmas = [level.sigma for level in FlowSchedule(stream.steps, stream.shift).levels]
    sigma = _levels(target.shape[:2], sigmas, target.device)
    noisy = torch.lerp(target, noise, sigma[..., None, None, None, None])
    past = _disturbed(blocks[:, : len(stretch.clean)], past_noise)
    levels = torch.cat([sigma.new_zeros(past.shape[:2]), sigma], dim=1).repeat_interleave(size, dim=1)
    memory = SequenceMemory(transformer, sample.rows, stretch, window)
    flow = transformer(torch.cat([past, noisy], 1).flatten(1, 2), levels * TRAINING_STEPS, memory)
    flow = flow[:, past.shape[1] * size :].unflatten(1, (-1, size)).float()
    per_block = loss(flow, noise - target, target).mean(dim=(2, 3, 4, 5))
    return {
        "total": per_block.mean(),
        "first": _mean_where(per_block, sigma >= sigmas[0]),
        "last": _mean_where(per_block, sigma <= sigmas[-1]),
    }


@torch.no_grad()
def initialize(transformer: CausalTransformer) -> None:
    """Start as a network that returns what comes in, each layer of which changes little.

    Patches pass through orthonormal columns of the embedding and back: noise is most of the flow to be learned.
    """
    for layer in transformer.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    last = transformer.time_projection[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    _pass_through(transformer)


def _pass_through(transformer: CausalTransformer) -> None:
    embedding, head, dim = transformer.patch_embedding, transformer.head, transformer.config.dim
    inputs = embedding.weight[0].numel()
    columns = nn.init.orthogonal_(torch.empty(dim, inputs))
    columns = columns - columns.mean(0, keepdim=True)  # Or the last norm would take the mean of them away.
    embedding.weight.copy_(EMBEDDING_SCALE * columns.view_as(embedding.weight))
    assert embedding.bias is not None
    nn.init.zeros_(embedding.bias)
    patches = (columns * (inputs / dim) ** 0.5).T.unflatten(0, (-1, PATCH, PATCH))
    head.head.weight.copy_(patches.permute(1, 2, 0, 3).flatten(0, 2))
    head.modulation.mul_(0.1)


def new_transformer(config: TransformerConfig, seed: int, device: torch.device) -> CausalTransformer:
    """A transformer that has learned nothing yet."""
    torch.manual_seed(seed)
    transformer = CausalTransformer(config)
    initialize(transformer)
    return transformer.to(device)


def _levels(shape: torch.Size, sigmas: Sequence[float], device: torch.device) -> Tensor:
    """One of `sigmas` each, all alike."""
    return torch.tensor(list(sigmas), device=device)[torch.randint(len(sigmas), shape, device=device)]


def _disturbed(past: Tensor, most: float) -> Tensor:
    """Half of the streams' pasts with noise of up to `most`."""
    if past.shape[1] == 0:
        return past
    much = torch.rand(len(past), device=past.device) * most * (torch.rand(len(past), device=past.device) < 0.5)
    return torch.lerp(past, torch.randn_like(past), much[:, None, None, None, None, None])


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """NaN where there is none."""
    return values.detach()[mask].mean()
