from __future__ import annotations

import pytest
import torch

from kernels.vae.frame_pairs import frame_pairs, frame_pairs_reference
from tests.kernels.vae.frames import pictures, unwritten


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 3, 3, 7), (1, 64, 1, 2, 9)], ids=str)
def test_each_frame_is_beside_the_one_before_it(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    piece = pictures(*shape, seed=1, device=device, dtype=dtype)
    past = pictures(*shape[:2], 1, *shape[3:], seed=2, device=device, dtype=dtype)
    kept, wanted_kept = unwritten(piece, 1), unwritten(piece, 1)
    wanted = frame_pairs_reference(piece, past, wanted_kept)
    assert torch.equal(frame_pairs(piece, past, kept), wanted)
    assert torch.equal(kept, wanted_kept)


def test_the_last_frame_is_kept_and_the_old_past_stays(device: torch.device) -> None:
    piece, past = pictures(2, 6, 3, 2, 3, seed=1, device=device), pictures(2, 6, 1, 2, 3, seed=2, device=device)
    kept, before = unwritten(piece, 1), past.clone()
    frame_pairs(piece, past, kept)
    assert torch.equal(kept, piece[:, :, 2:])
    assert torch.equal(past, before)


def test_the_first_frame_of_a_stream_is_beside_zeros(device: torch.device) -> None:
    piece = pictures(2, 6, 2, 2, 3, seed=1, device=device)
    pairs = frame_pairs(piece, None, unwritten(piece, 1))
    assert torch.equal(pairs[:, 6:, 0], torch.zeros_like(piece[:, :, 0]))
    assert torch.equal(pairs[:, 6:, 1], piece[:, :, 0])


def test_more_than_one_frame_of_past_is_refused(device: torch.device) -> None:
    piece = pictures(1, 6, 2, 2, 3, seed=1, device=device)
    with pytest.raises(ValueError, match=r"kept is \[1, 6, 2, 2, 3\] .*; expected \[1, 6, 1, 2, 3\]"):
        frame_pairs(piece, None, unwritten(piece, 2))


def test_the_past_itself_cannot_be_written(device: torch.device) -> None:
    piece, past = (pictures(1, 6, 1, 2, 3, seed=seed, device=device) for seed in (1, 2))
    with pytest.raises(ValueError, match="kept is past itself"):
        frame_pairs(piece, past, past)
