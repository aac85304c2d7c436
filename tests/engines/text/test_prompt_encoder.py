from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engines.config.networks import TextEncoderConfig
from engines.device.host_copy import HostCopier
from engines.device.side_stream import EQUAL, SideStream, record_event
from engines.errors import ConfigError, DeviceOutOfMemory, PromptError
from engines.text.prompt_encoder import PromptEncoder
from engines.text.tokenizer import ByteTokenizer
from engines.text.umt5 import UMT5Encoder
from tests.support.fake_cuda import install

TINY = TextEncoderConfig(vocab=259, dim=16, layers=2, heads=2, head_dim=8, ffn_dim=32, text_len=40)


@pytest.fixture
def encoder() -> UMT5Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return UMT5Encoder(TINY).eval()


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer(TINY.text_len)


@torch.inference_mode()
def test_rows_are_those_of_the_text_padded_to_its_full_length(
    encoder: UMT5Encoder, tokenizer: ByteTokenizer
) -> None:
    ids = torch.tensor([tokenizer.encode("a red ball")])
    padding = (0, TINY.text_len - ids.shape[1])
    padded = encoder(F.pad(ids, padding), F.pad(torch.ones_like(ids), padding))[0, : ids.shape[1]]
    rows = PromptEncoder(tokenizer, encoder, capacity=1).encode("a red ball").rows
    torch.testing.assert_close(rows, padded, atol=2e-5, rtol=0.0)


def test_a_prompt_carries_the_cleaned_text(encoder: UMT5Encoder, tokenizer: ByteTokenizer) -> None:
    prompt = PromptEncoder(tokenizer, encoder, capacity=1).encode(" a  red\nball &amp; cube ")
    assert prompt.text == "a red ball & cube"
    assert prompt.rows.shape == (len(prompt.text) + 1, TINY.dim)


def test_rows_have_the_dtype_of_the_encoder_and_no_gradient(
    encoder: UMT5Encoder, tokenizer: ByteTokenizer
) -> None:
    rows = PromptEncoder(tokenizer, encoder.bfloat16(), capacity=1).encode("a red ball").rows
    assert rows.dtype == torch.bfloat16
    assert not rows.requires_grad


def test_a_long_text_fills_the_text_length(encoder: UMT5Encoder, tokenizer: ByteTokenizer) -> None:
    assert PromptEncoder(tokenizer, encoder, capacity=1).encode("x" * 99).rows.shape[0] == TINY.text_len


@pytest.mark.parametrize("text", ["", " \n\t", "&nbsp;", "\x00"], ids=["empty", "spaces", "entity", "control"])
def test_a_text_with_nothing_in_it_is_refused(encoder: UMT5Encoder, tokenizer: ByteTokenizer, text: str) -> None:
    with pytest.raises(PromptError, match="at least one visible character"):
        PromptEncoder(tokenizer, encoder, capacity=1).encode(text)


def test_a_text_that_cleans_to_the_same_is_not_encoded_again(
    encoder: UMT5Encoder, tokenizer: ByteTokenizer
) -> None:
    prompts = PromptEncoder(tokenizer, encoder, capacity=1)
    assert prompts.encode("a red ball") is prompts.encode("  a red&nbsp;ball")


def test_the_prompt_that_was_used_longest_ago_is_forgotten(encoder: UMT5Encoder, tokenizer: ByteTokenizer) -> None:
    prompts = PromptEncoder(tokenizer, encoder, capacity=2)
    first, second = prompts.encode("first"), prompts.encode("second")
    prompts.encode("first")
    prompts.encode("third")
    assert prompts.encode("first") is first
    assert prompts.encode("second") is not second


def test_a_prompt_waits_for_no_block_and_no_block_for_a_prompt(
    encoder: UMT5Encoder, tokenizer: ByteTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, device = install(monkeypatch), torch.device("cuda:0")
    prompts = PromptEncoder(tokenizer, encoder, capacity=1)
    monkeypatch.setattr(prompts, "_side", SideStream(device, EQUAL))
    monkeypatch.setattr(prompts, "_copier", HostCopier(device))
    monkeypatch.setattr(prompts, "_loaded", record_event(device))
    passes = cuda.main.launch()
    assert len(prompts.encode("a red ball").rows) == 11
    assert cuda.main.given == [passes]
    assert [stream.priority for stream in cuda.streams[1:]] == [0, 0]


def test_the_time_of_each_text_that_is_encoded_is_told(encoder: UMT5Encoder, tokenizer: ByteTokenizer) -> None:
    told: list[float] = []
    prompts = PromptEncoder(tokenizer, encoder, capacity=2, observe=told.append)
    for text in ("first", "second", "first"):
        prompts.encode(text)
    assert len(told) == 2
    assert all(0 < seconds < 10 for seconds in told)


def test_a_text_for_which_there_is_no_memory_is_refused(
    encoder: UMT5Encoder, tokenizer: ByteTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*tensors: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    prompts = PromptEncoder(tokenizer, encoder, capacity=1)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "forward", fail)
        with pytest.raises(DeviceOutOfMemory, match="a prompt of 11 tokens"):
            prompts.encode("a red ball")
    assert len(prompts.encode("a red ball").rows) == 11


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tokenizer: ByteTokenizer) -> None:
    small = UMT5Encoder(TextEncoderConfig(vocab=258, dim=16, layers=1, heads=2, head_dim=8, ffn_dim=32))
    with pytest.raises(ConfigError, match="259 ids but the text encoder embeds 258"):
        PromptEncoder(tokenizer, small, capacity=1)


def test_a_memory_for_no_prompt_is_refused(encoder: UMT5Encoder, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(ConfigError, match="capacity is 0"):
        PromptEncoder(tokenizer, encoder, capacity=0)
