"""A recorded text encoder's embeddings, made again."""

from __future__ import annotations

from engines.text.umt5 import UMT5Encoder
from tests.reference.findings import CODEC_BOUND, Differences, Finding
from tests.reference.recording import Recording


def check_text_encoder(recording: Recording) -> list[Finding]:
    encoder = UMT5Encoder(recording.text_encoder()).to(recording["t5.out"].dtype)
    encoder.load_state_dict(recording.weights("t5.model."))
    differences = Differences()
    differences.note("text encoder", encoder(recording["t5.ids"], recording["t5.mask"]), recording["t5.out"])
    return differences.findings(CODEC_BOUND)
