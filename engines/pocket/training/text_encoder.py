"""Stage two: the text encoder, trained to say what a prompt says.

A UMT5 encoder of a few layers learns to tell every attribute of a scene from a caption, by any of its rows: so a
transformer that does not know yet where to look is told all the same. Afterwards the encoder is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.config.networks import TextEncoderConfig
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.scene import ATTRIBUTES, Scene
from engines.text.cleaning import clean_prompt
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import SelfAttention, UMT5Encoder

CHANGES = 0.35
"""Share of the captions that are worded as a change of another scene."""


@dataclass(frozen=True)
class TextTraining:
    """Settings of the stage. `dropped` is the share of the tokens that the encoder does not get to see."""

    budget: Budget
    batch: int = 64
    dropped: float = 0.03
    seed: int = 2


class TextReader(nn.Module):
    """The encoder, and a linear reading of each attribute; only the encoder is kept."""

    def __init__(self, encoder: UMT5Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        config = encoder.config
        self.readings = nn.ModuleDict(
            {name: nn.Linear(config.dim, len(kind)) for name, kind in ATTRIBUTES.items()}
        )

    @override
    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Logits [B, L, values] of each attribute, for ids and mask [B, L]."""
        rows = self.encoder(ids, mask)
        return {name: reading(rows) for name, reading in self.readings.items()}


def new_text_encoder(config: TextEncoderConfig, seed: int) -> UMT5Encoder:
    """An encoder that has learned nothing yet."""
    torch.manual_seed(seed)
    encoder = UMT5Encoder(config)
    # T5's attention has no 1/sqrt(head_dim): its projections start small instead.
    for layer in encoder.modules():
        if isinstance(layer, SelfAttention):
            nn.init.normal_(layer.q.weight, std=(config.dim * config.head_dim) ** -0.5)
    return encoder


def train_text_encoder(
    network: TextReader, tokenizer: Tokenizer, settings: TextTraining, workshop: Workshop
) -> TextReader:
    """Train or go on training from `network`'s weights; returns the averaged network."""
    run = Run("text", network, settings.budget, asdict(settings), workshop)
    generator = np.random.default_rng([settings.seed, run.progress.step, workshop.team.rank])
    device = workshop.device

    def losses(_: int) -> Losses:
        scenes = [Scene.random(generator) for _ in range(settings.batch)]
        ids, mask = tokens([worded(scene, generator) for scene in scenes], tokenizer)
        logits = network(with_holes(ids, mask, settings.dropped, generator).to(device), mask.to(device))
        return reading_losses(logits, mask.to(device), scenes)

    average = run.train(losses)
    assert isinstance(average, TextReader)
    return average


def worded(scene: Scene, generator: np.random.Generator) -> str:
    """A caption of `scene`, some of them as after a change."""
    if generator.random() < CHANGES:
        return change_caption(Scene.random(generator), scene, generator)
    return caption(scene, generator)


def tokens(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts, [B, longest] int64 each, padded with zeros."""
    encoded = [torch.tensor(tokenizer.encode(clean_prompt(text))) for text in texts]
    ids = nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in encoded], batch_first=True)
    return ids, mask


def with_holes(ids: Tensor, mask: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    """`ids` [B, L] with a share of the tokens unreadable, though never the end."""
    hole = torch.from_numpy(generator.random(ids.shape) < share)
    hole[torch.arange(len(ids)), mask.sum(1) - 1] = False
    return ids.masked_fill(hole, 0)


def reading_losses(logits: dict[str, Tensor], mask: Tensor, scenes: Sequence[Scene]) -> Losses:
    """Cross entropy of each attribute over all rows, and the share of the readings that are right."""
    losses, right = {}, []
    for name, kind in ATTRIBUTES.items():
        values = list(kind)
        truth = torch.tensor([values.index(getattr(scene, name)) for scene in scenes], device=mask.device)
        read, truths = logits[name][mask == 1], truth.unsqueeze(1).expand(mask.shape)[mask == 1]
        losses[name] = F.cross_entropy(read, truths)
        right.append((read.argmax(1) == truths).float().mean())
    return {"total": torch.stack(list(losses.values())).sum(), **losses, "right": torch.stack(right).mean()}


@torch.no_grad()
def embed(texts: Sequence[str], tokenizer: Tokenizer, encoder: UMT5Encoder, length: int) -> Tensor:
    """Rows [B, length, dim] of texts, zeros behind the end, as the transformer is given them when it serves."""
    ids, mask = (x.to(encoder.device) for x in tokens(texts, tokenizer))
    rows = encoder(ids, mask) * mask.unsqueeze(-1)
    return F.pad(rows, (0, 0, 0, length - rows.shape[1]))
