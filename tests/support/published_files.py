"""Making files like those that the models' authors publish, with tiny shapes."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor, nn

from engines.wan.transformer import CausalTransformer

RANK = 4
State = dict[str, Tensor]


def random_lora(transformer: CausalTransformer) -> State:
    """Factors for every linear layer in the blocks, by the names that PEFT gives them."""
    factors: State = {}
    generator = torch.Generator().manual_seed(3)
    for name, layer in transformer.blocks.named_modules(prefix="base_model.model.blocks"):
        if isinstance(layer, nn.Linear):
            factors[f"{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features, generator=generator) / 9
            factors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK, generator=generator) / 9
    return factors


def train_tokenizer(folder: Path) -> None:
    vocabulary = tokenizers.Tokenizer(models.Unigram())
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    vocabulary.train_from_iterator(["a red ball rolls", "a blue cube rests", "the ball hits the cube"], trainer)
    folder.mkdir(parents=True)
    vocabulary.save(str(folder / "tokenizer.json"))
