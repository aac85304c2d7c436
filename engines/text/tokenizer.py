"""From the text of a prompt to token ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol, Self

import tokenizers
from tokenizers import pre_tokenizers

from engines.errors import ConfigError


def _require_room(text_len: int) -> None:
    if text_len < 2:
        raise ConfigError(f"text_len is {text_len}; a token and the end of the text need at least 2")


class PromptTokenizer(Protocol):
    """Anything that turns a cleaned text into ids of one vocabulary."""

    @property
    def vocab(self) -> int:
        """Ids are below this number."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and, last, of its end; no padding. Text that does not fit is cut."""

    def cut(self, text: str) -> int:
        """How many tokens of `text` do not fit."""


class Tokenizer:
    """A trained vocabulary of the T5 family, such as google/umt5-xxl.

    An encoded text is its tokens followed by `</s>`, whether or not the file has a post-processor that says
    so. A `</s>` or `<pad>` in the text is four or five characters of it.
    """

    END = "</s>"

    def __init__(self, vocabulary: tokenizers.Tokenizer, text_len: int) -> None:
        _require_room(text_len)
        end = vocabulary.token_to_id(self.END)
        if end is None:
            raise ConfigError(f"the vocabulary has no {self.END}; it is not one of the T5 family")
        self._vocabulary = vocabulary
        # A file may carry the truncation and padding of whoever saved it.
        self._vocabulary.no_truncation()
        self._vocabulary.no_padding()
        _read_specials_as_text(self._vocabulary)
        self._end = end
        self._text_len = text_len
        self._vocab = max(vocabulary.get_vocab().values()) + 1

    @classmethod
    def from_folder(cls, path: Path, text_len: int) -> Self:
        """Read `tokenizer.json` in the folder `path`.

        Raises ConfigError if there is none, if it cannot be read, or if its vocabulary has no `</s>`.
        """
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"{file} does not exist; a tokenizer folder holds a tokenizer.json")
        try:
            vocabulary = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises nothing narrower.
            raise ConfigError(f"{file} is not a tokenizer: {error}") from error
        return cls(vocabulary, text_len)

    @property
    def vocab(self) -> int:
        """One more than the highest id, added tokens included."""
        return self._vocab

    def encode(self, text: str) -> list[int]:
        """The first `text_len` - 1 tokens of `text`, then `</s>`."""
        return [*self._ids(text)[: self._text_len - 1], self._end]

    def cut(self, text: str) -> int:
        """Tokens behind the first `text_len` - 1."""
        return max(0, len(self._ids(text)) - self._text_len + 1)

    def _ids(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, add_special_tokens=False).ids


def _read_specials_as_text(vocabulary: tokenizers.Tokenizer) -> None:
    """Have tokens such as `</s>` come from nowhere but the tokenizer, whatever a text says.

    A unigram model has them among its pieces: it gets them in two parts.
    """
    vocabulary.encode_special_tokens = True
    added = vocabulary.get_added_tokens_decoder().values()
    specials = [token.content for token in added if token.special and len(token.content) > 1]
    if not specials:
        return
    heads = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in specials)
    apart = pre_tokenizers.Split(tokenizers.Regex(heads), "merged_with_previous")
    before = [] if vocabulary.pre_tokenizer is None else [vocabulary.pre_tokenizer]
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence([*before, apart])


class ByteTokenizer:
    """UTF-8 bytes as tokens, for tiny models without a vocabulary of their own.

    Ids are ByT5's (Xue et al. 2022): 0 padding, 1 end of text, 2 unknown, then the 256 bytes.
    """

    END = 1
    FIRST_BYTE = 3

    def __init__(self, text_len: int) -> None:
        _require_room(text_len)
        self._text_len = text_len

    @property
    def vocab(self) -> int:
        """Three special ids and 256 bytes."""
        return self.FIRST_BYTE + 256

    def encode(self, text: str) -> list[int]:
        """The first `text_len` - 1 bytes of `text`, which may cut a character, then the end."""
        kept = text.encode()[: self._text_len - 1]
        return [*(self.FIRST_BYTE + byte for byte in kept), self.END]

    def cut(self, text: str) -> int:
        """Bytes behind the first `text_len` - 1."""
        return max(0, len(text.encode()) - self._text_len + 1)
