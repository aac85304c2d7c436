from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engines.errors import ConfigError
from engines.pocket.model_files import WEIGHTS
from engines.text.cleaning import clean_prompt
from engines.text.tokenizer import ByteTokenizer, PromptTokenizer, Tokenizer

SENTENCES = ["a red ball rolls over the hill", "a blue cube rests under the tree", "the ball hits the cube"]
TEXTS = ["a red ball", "the cube rolls under the hill", "a zebra", "a < b > c", " ".join(SENTENCES)]
TEXT_LEN = 12


@pytest.fixture
def vocabulary() -> tokenizers.Tokenizer:
    """A unigram vocabulary as umt5's, trained on three sentences, that does not append `</s>`."""
    vocabulary = tokenizers.Tokenizer(models.Unigram())
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    vocabulary.train_from_iterator(SENTENCES, trainer)
    return vocabulary


def save(vocabulary: tokenizers.Tokenizer, folder: Path) -> Path:
    vocabulary.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tred \n\n ball ", "a red ball"),
        ("a caf\u00c3\u00a9", "a caf\u00e9"),
        ("salt &amp;amp; pepper &lt;", "salt & pepper <"),
        ("< &amp;amp;gt;", "< &gt;"),
        ("a&nbsp;&nbsp;ball", "a ball"),
        ("a \ud800 ball", "a \ufffd ball"),
        ("\x00", ""),
    ],
    ids=["spaces", "mojibake", "entities", "two levels", "hard spaces", "surrogate", "control"],
)
def test_a_prompt_is_cleaned(raw: str, clean: str) -> None:
    assert clean_prompt(raw) == clean


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_transformers_does(vocabulary: tokenizers.Tokenizer, tmp_path: Path, text: str) -> None:
    vocabulary.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = save(vocabulary, tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder, pad_token="<pad>")
    padded = theirs(text, padding="max_length", truncation=True, max_length=TEXT_LEN)
    real = [i for i, kept in zip(padded["input_ids"], padded["attention_mask"], strict=True) if kept]
    assert Tokenizer.from_folder(folder, TEXT_LEN).encode(text) == real


def test_ends_a_text_although_the_file_does_not_say_so(vocabulary: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ids = Tokenizer.from_folder(save(vocabulary, tmp_path), TEXT_LEN).encode("a red ball")
    assert ids == [*vocabulary.encode("a red ball").ids, vocabulary.token_to_id("</s>")]


@pytest.mark.parametrize("text", ["a red </s> ball", "</s>", "<pad><pad>", "the<unk>", "a </S>\uff1c/s>", "x</s"])
@pytest.mark.parametrize("kind", ["unigram", "pocket"])
def test_a_special_token_in_a_prompt_is_text(vocabulary: tokenizers.Tokenizer, kind: str, text: str) -> None:
    if kind == "pocket":
        vocabulary = tokenizers.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    else:
        vocabulary.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    *read, end = Tokenizer(vocabulary, 40).encode(text)
    specials = [vocabulary.token_to_id(name) for name in ("</s>", "<pad>")]
    assert (end, {*read} & {*specials}, len(read) >= 3) == (specials[0], set(), True)


@pytest.mark.parametrize("text", [*TEXTS, "a <b> & </p> ...", "1 < 2 > 0", "<s", "Zwölf Boxkämpfer 雪"])
def test_all_other_texts_of_the_pocket_model_are_read_as_the_file_says(text: str) -> None:
    plain = tokenizers.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    assert Tokenizer.from_folder(WEIGHTS, 512).encode(text) == plain.encode(text).ids


def test_ignores_the_truncation_and_padding_saved_in_the_file(
    vocabulary: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    plain = vocabulary.encode("the ball hits the cube").ids
    vocabulary.enable_truncation(2)
    vocabulary.enable_padding(length=40)
    ids = Tokenizer.from_folder(save(vocabulary, tmp_path), 40).encode("the ball hits the cube")
    assert ids[:-1] == plain


def test_counts_added_tokens_in_its_vocabulary(vocabulary: tokenizers.Tokenizer, tmp_path: Path) -> None:
    before = vocabulary.get_vocab_size()
    vocabulary.add_tokens(["<extra_id_0>"])
    tokenizer = Tokenizer.from_folder(save(vocabulary, tmp_path), TEXT_LEN)
    assert tokenizer.vocab == before + 1
    assert tokenizer.encode("<extra_id_0>")[0] == tokenizer.vocab - 1


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_folder(tmp_path, TEXT_LEN)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path, TEXT_LEN)


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    endless = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ConfigError, match="no </s>"):
        Tokenizer.from_folder(save(endless, tmp_path), TEXT_LEN)


def test_a_text_length_without_room_for_a_token_is_refused(vocabulary: tokenizers.Tokenizer) -> None:
    with pytest.raises(ConfigError, match="text_len is 1"):
        Tokenizer(vocabulary, 1)
    with pytest.raises(ConfigError, match="text_len is 1"):
        ByteTokenizer(1)


def test_bytes_follow_three_special_ids() -> None:
    assert ByteTokenizer(16).encode("h\u00e9") == [3 + 0x68, 3 + 0xC3, 3 + 0xA9, 1]


@given(st.text())
@settings(max_examples=40, deadline=None)
def test_any_cleaned_text_can_be_read_back_from_its_bytes(text: str) -> None:
    clean = clean_prompt(text)
    tokenizer: PromptTokenizer = ByteTokenizer(10_000)
    ids = tokenizer.encode(clean)
    assert bytes(i - 3 for i in ids[:-1]).decode() == clean
    assert max(ids) < tokenizer.vocab


@pytest.mark.parametrize(("text", "kept"), [("abc", "abc"), ("abcd", "abc"), ("abcdefgh", "abc")])
def test_bytes_that_do_not_fit_are_cut_before_the_end(text: str, kept: str) -> None:
    assert ByteTokenizer(4).encode(text) == [*(3 + ord(c) for c in kept), 1]


def test_what_does_not_fit_is_counted(vocabulary: tokenizers.Tokenizer, tmp_path: Path) -> None:
    trained = Tokenizer.from_folder(save(vocabulary, tmp_path), TEXT_LEN)
    whole = Tokenizer.from_folder(tmp_path, 512)
    text = " ".join(SENTENCES)
    assert trained.cut(text) == len(whole.encode(text)) - TEXT_LEN
    assert (whole.cut(text), ByteTokenizer(8).cut("seven b"), ByteTokenizer(8).cut("Grüße!!")) == (0, 0, 2)
