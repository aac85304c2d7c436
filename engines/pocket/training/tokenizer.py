"""Train the pocket model's tokenizer on captions.

    python -m engines.pocket.training.tokenizer

Byte pairs (Sennrich et al. 2016) within words, as many as it takes to make every word of a caption one piece.
Capitals and hyphens do not matter; a word that no caption has becomes letters and parts of known words, and a
character that no piece has becomes its UTF-8 bytes.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from engines.pocket.model_files import WEIGHTS
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.scene import Scene
from engines.text.tokenizer import Tokenizer

SPECIALS = ("<pad>", Tokenizer.END, "<unk>")
METASPACE = "\u2581"
"""Stands for the space before a word."""
LARGEST = 2048
"""Pieces at most; the words of captions need about 1,200."""


def train_vocabulary(seed: int = 0, scenes: int = 20_000) -> tokenizers.Tokenizer:
    """A vocabulary of the T5 family for the words of captions: the same for the same arguments."""
    vocabulary = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[2], byte_fallback=True))
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("-", " ")]
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    vocabulary.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST,
        special_tokens=list(SPECIALS),
        initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation + METASPACE),
        show_progress=False,
    )
    vocabulary.train_from_iterator(_captions(seed, scenes), trainer)
    vocabulary = _with_bytes(vocabulary)
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"$A {Tokenizer.END}", special_tokens=[(Tokenizer.END, SPECIALS.index(Tokenizer.END))]
    )
    return vocabulary


def _with_bytes(vocabulary: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same with a piece for every byte, last: the trainer cannot, and as special tokens they would be text."""
    state = json.loads(vocabulary.to_str())
    pieces = state["model"]["vocab"]
    for byte in range(256):
        pieces[f"<0x{byte:02X}>"] = len(pieces)
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def _captions(seed: int, count: int) -> Iterator[str]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        before, scene = Scene.random(generator), Scene.random(generator)
        yield caption(before, generator, "all")
        yield change_caption(before, scene, generator, "all")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save as `tokenizer.json`."""
    parser = argparse.ArgumentParser(prog="python -m engines.pocket.training.tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=20_000, help="how many scenes to word")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="a folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = train_vocabulary(options.seed, options.scenes)
    file = options.out / "tokenizer.json"
    vocabulary.save(str(file), pretty=False)
    print(f"{file}: {vocabulary.get_vocab_size()} pieces, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
