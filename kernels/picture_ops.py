"""The choices of `PictureOps`."""

from __future__ import annotations

from kernels.conv_state import join_past, join_past_reference
from kernels.epilogue import epilogue, epilogue_reference
from kernels.frame_pairs import frame_pairs, frame_pairs_reference
from kernels.pictures import PictureOps
from kernels.upsample import upsample, upsample_reference

TRITON = PictureOps(join_past, frame_pairs, epilogue, upsample)

REFERENCE = PictureOps(join_past_reference, frame_pairs_reference, epilogue_reference, upsample_reference)
"""In torch's own operators, on any device: what the Triton ones are held against."""
