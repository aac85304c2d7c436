"""The choices of `VAEOps`."""

from __future__ import annotations

from kernels.vae.causal_pad import causal_pad, causal_pad_reference
from kernels.vae.conv_epilogue import conv_epilogue, conv_epilogue_reference
from kernels.vae.frame_pairs import frame_pairs, frame_pairs_reference
from kernels.vae.ops import VAEOps

FUSED = VAEOps(causal_pad, frame_pairs, conv_epilogue)

REFERENCE = VAEOps(causal_pad_reference, frame_pairs_reference, conv_epilogue_reference)
"""In torch's own operators, on any device: what the Triton ones are held against."""
