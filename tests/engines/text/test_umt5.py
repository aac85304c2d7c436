from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from engines.config.networks import TextEncoderConfig
from engines.text.umt5 import UMT5Encoder, relative_buckets
from tests.reference.recording import Recording

RECORDING = Path(__file__).parents[2] / "assets" / "recordings" / "vae_text_encoder.safetensors"
TINY = TextEncoderConfig(vocab=97, dim=24, layers=2, heads=4, head_dim=8, ffn_dim=48)
LENGTH = TINY.max_distance + 9

# Wan's names and transformers' names of the same weights.
OUTSIDE_BLOCKS = {"token_embedding": "encoder.embed_tokens", "norm": "encoder.final_layer_norm"}
INSIDE_BLOCKS = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


class Batch(NamedTuple):
    ids: Tensor
    mask: Tensor


def random_encoder() -> UMT5Encoder:
    generator = torch.Generator().manual_seed(5)
    encoder = UMT5Encoder(TINY)
    for parameter in encoder.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator).add_(1.0 if parameter.dim() == 1 else 0.0)
    return encoder.eval()


def transformers_encoder(encoder: UMT5Encoder) -> UMT5EncoderModel:
    """The same weights in transformers' UMT5."""
    sizes = encoder.config
    model = UMT5EncoderModel(
        UMT5Config(
            vocab_size=sizes.vocab, d_model=sizes.dim, d_kv=sizes.head_dim, d_ff=sizes.ffn_dim,
            num_layers=sizes.layers, num_heads=sizes.heads, feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=sizes.buckets, relative_attention_max_distance=sizes.max_distance,
            layer_norm_epsilon=sizes.eps, dropout_rate=0.0,
        )
    )  # fmt: skip
    names = dict(OUTSIDE_BLOCKS)
    for layer in range(sizes.layers):
        names |= {f"blocks.{layer}.{a}": f"encoder.block.{layer}.{b}" for a, b in INSIDE_BLOCKS.items()}
    weights = {f"{names[key.removesuffix('.weight')]}.weight": w for key, w in encoder.state_dict().items()}
    model.load_state_dict({**weights, "shared.weight": weights["encoder.embed_tokens.weight"]})
    return model


@pytest.fixture
def batch() -> Batch:
    """Two sequences; the first fills its row, the second is padded."""
    ids = torch.randint(1, TINY.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(6))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    return Batch(ids * mask, mask)


@torch.inference_mode()
def test_reproduces_the_recorded_encoder() -> None:
    recorded = Recording(RECORDING)
    encoder = UMT5Encoder(recorded.text_encoder())
    encoder.load_state_dict(recorded.weights("t5.model."))
    out = encoder(recorded["t5.ids"], recorded["t5.mask"])
    torch.testing.assert_close(out, recorded["t5.out"], atol=2e-5, rtol=0.0)


@torch.inference_mode()
def test_agrees_with_transformers_on_the_same_weights(batch: Batch) -> None:
    encoder = random_encoder()
    theirs = transformers_encoder(encoder)(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    torch.testing.assert_close(encoder(batch.ids, batch.mask), theirs, atol=2e-5, rtol=0.0)


@torch.inference_mode()
def test_loses_at_most_twice_what_transformers_loses_in_bfloat16(batch: Batch) -> None:
    encoder = random_encoder()
    exact = encoder(batch.ids, batch.mask)
    theirs = transformers_encoder(encoder).bfloat16()(input_ids=batch.ids, attention_mask=batch.mask)
    ours = encoder.bfloat16()(batch.ids, batch.mask)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 2 * (theirs.last_hidden_state - exact).abs().max()


@torch.inference_mode()
def test_no_token_sees_the_ids_at_padding_positions(batch: Batch) -> None:
    encoder = random_encoder()
    other = torch.where(batch.mask == 1, batch.ids, 42)
    real = batch.mask.bool()
    assert torch.equal(encoder(batch.ids, batch.mask)[real], encoder(other, batch.mask)[real])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32], ids=str)
@torch.inference_mode()
def test_a_mask_may_have_any_dtype(batch: Batch, dtype: torch.dtype) -> None:
    encoder = random_encoder()
    assert torch.equal(encoder(batch.ids, batch.mask.to(dtype)), encoder(batch.ids, batch.mask))


@pytest.mark.parametrize(
    ("offset", "bucket"),
    [
        (0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-15, 9), (-16, 10), (-127, 15), (-128, 15),
        (-140, 15), (1, 17), (7, 23), (8, 24), (16, 26), (127, 31), (140, 31),
    ],
)  # fmt: skip
def test_a_distance_falls_into_its_bucket(offset: int, bucket: int) -> None:
    buckets = relative_buckets(150, TextEncoderConfig(), torch.device("cpu"))
    assert set(buckets.diagonal(offset).tolist()) == {bucket}


def test_the_defaults_are_umt5_xxl() -> None:
    with torch.device("meta"):
        encoder = UMT5Encoder(TextEncoderConfig())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 5_680_910_336
