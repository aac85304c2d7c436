"""A recorded VAE's pixels and latents, made again."""

from __future__ import annotations

from engines.config.geometry import TEMPORAL_FACTOR
from engines.vae.wan_vae import WanVAE
from tests.reference.findings import CODEC_BOUND, Differences, Finding
from tests.reference.recording import Recording


def check_vae(recording: Recording) -> list[Finding]:
    vae = WanVAE(recording.vae()).to(recording["vae.z"].dtype)
    vae.load_state_dict(recording.weights("vae.model."))
    differences = Differences()
    latents = recording["vae.z"].transpose(1, 2)
    cache, first = vae.start_decoding(), 0
    for number, shape in enumerate(recording.facts["vae"]["stream_shapes"]):
        frames = (shape[2] + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR
        raw, cache = vae.decode_raw(latents[:, first : first + frames], cache)
        differences.note("pixels, streamed", raw, recording[f"vae.stream.{number}"])
        first += frames
    whole, _ = vae.decode_raw(latents, vae.start_decoding())
    differences.note("pixels, whole clip", whole, recording["vae.whole"])
    pictures = recording["vae.pixels"].transpose(1, 2) * 0.5 + 0.5
    encoded, _ = vae.encode(pictures, vae.start_encoding())
    differences.note("latents, encoded", encoded.transpose(1, 2), recording["vae.encoded"])
    return differences.findings(CODEC_BOUND)
