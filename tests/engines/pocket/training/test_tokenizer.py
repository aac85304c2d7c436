from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import engines.pocket
from engines.pocket.training.tokenizer import LARGEST, main, train_vocabulary
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.scene import Scene
from engines.text.cleaning import clean_prompt
from engines.text.tokenizer import Tokenizer

WEIGHTS = Path(engines.pocket.__file__).parent / "weights"
TEXT_LEN = 64


@pytest.fixture(scope="module")
def vocabulary() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(WEIGHTS, TEXT_LEN)


def captions(count: int) -> list[str]:
    """Of scenes and changes, in every wording."""
    generator = np.random.default_rng(11)
    scenes = [Scene.random(generator) for _ in range(count + 1)]
    told = [caption(scene, generator, "all") for scene in scenes]
    return told + [change_caption(a, b, generator, "all") for a, b in itertools.pairwise(scenes)]


def pieces(vocabulary: tokenizers.Tokenizer, text: str) -> list[str]:
    return vocabulary.encode(text, add_special_tokens=False).tokens


def test_the_vocabulary_is_small(vocabulary: tokenizers.Tokenizer) -> None:
    assert 1000 < vocabulary.get_vocab_size() < LARGEST
    assert (WEIGHTS / "tokenizer.json").stat().st_size < 150_000


def test_every_caption_fits_with_its_end(tokenizer: Tokenizer) -> None:
    for text in captions(4000):
        assert tokenizer.cut(text) == 0, text


def test_every_word_of_a_caption_is_one_piece(vocabulary: tokenizers.Tokenizer) -> None:
    for text in captions(1000):
        for piece in pieces(vocabulary, text):
            assert piece.startswith("▁") or piece in ",.;:/", (piece, text)


def test_a_caption_is_read_back_in_small_letters(vocabulary: tokenizers.Tokenizer) -> None:
    ids = vocabulary.encode("A hot-air balloon; night has fallen.").ids
    assert vocabulary.decode(ids) == "a hot air balloon; night has fallen."


def test_capitals_and_hyphens_do_not_matter(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("A RED Hot-Air Balloon") == tokenizer.encode("a red hot air balloon")


def test_an_unknown_adjective_leaves_the_known_words_whole(vocabulary: tokenizers.Tokenizer) -> None:
    found = pieces(vocabulary, "a zigzagged red balloon, majestic over the xylophonic sea")
    for known in ("▁a", "▁red", "▁balloon", ",", "▁over", "▁the", "▁sea"):
        assert known in found
    assert "<unk>" not in found


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_encoded_without_an_unknown_piece(text: str) -> None:
    vocabulary = tokenizers.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    assert "<unk>" not in pieces(vocabulary, clean_prompt(text).replace("<unk>", ""))


def test_characters_that_no_caption_has_are_kept_as_bytes(vocabulary: tokenizers.Tokenizer) -> None:
    assert pieces(vocabulary, "café")[-2:] == ["<0xC3>", "<0xA9>"]
    assert vocabulary.decode(vocabulary.encode("日本 café!").ids) == "日本 café!"


def test_training_again_gives_the_same_vocabulary() -> None:
    first, again, other = (train_vocabulary(seed, scenes=300) for seed in (3, 3, 4))
    assert first.to_str() == again.to_str() != other.to_str()


def test_the_program_writes_a_tokenizer_that_loads(tmp_path: Path) -> None:
    main(["--scenes", "200", "--out", str(tmp_path / "new")])
    text = "a red balloon"
    vocabulary = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    assert pieces(vocabulary, text) == ["▁a", "▁red", "▁balloon"]
    assert Tokenizer.from_folder(tmp_path / "new", TEXT_LEN).encode(text)[-1] == vocabulary.token_to_id("</s>")
