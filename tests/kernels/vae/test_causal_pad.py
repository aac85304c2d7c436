from __future__ import annotations

import pytest
import torch

from engines.vae.wan_vae import NormSiLU
from kernels.vae.causal_pad import causal_pad, causal_pad_reference, norm_silu_reference
from tests.kernels.compiled import compiled
from tests.kernels.vae.frames import pictures, unwritten, values
from tests.tolerances import assert_within

SHAPES = [(1, 1, 1, 1, 1), (2, 5, 3, 3, 7), (1, 96, 2, 5, 9), (2, 12, 4, 1, 3)]


@pytest.mark.parametrize("past_frames", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_piece_follows_its_past_to_the_bit(
    shape: tuple[int, ...], past_frames: int, device: torch.device
) -> None:
    piece = pictures(*shape, seed=1, device=device)
    past = pictures(*shape[:2], past_frames, *shape[3:], seed=2, device=device)
    kept, wanted_kept = unwritten(piece, past_frames), unwritten(piece, past_frames)
    wanted = causal_pad_reference(piece, past, wanted_kept, None, None)
    assert torch.equal(causal_pad(piece, past, kept, None, None), wanted)
    assert torch.equal(kept, wanted_kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_piece_is_normed_and_activated_and_its_past_is_not(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    piece = pictures(*shape, seed=1, device=device, dtype=dtype)
    past = pictures(*shape[:2], 2, *shape[3:], seed=2, device=device, dtype=dtype)
    gamma, bias = (values(shape[1], seed=seed, like=piece) for seed in (3, 4))
    kept, wanted_kept = unwritten(piece, 2), unwritten(piece.float(), 2)
    wanted = causal_pad_reference(piece.float(), past.float(), wanted_kept, gamma.float(), bias.float())
    assert_within("causal_pad", causal_pad(piece, past, kept, gamma, bias), wanted)
    assert_within("causal_pad", kept, wanted_kept)


def test_a_stream_begins_after_zeros(device: torch.device) -> None:
    piece = pictures(2, 6, 1, 2, 3, seed=1, device=device)
    kept = unwritten(piece, 2)
    joined = causal_pad(piece, None, kept, None, None)
    assert torch.equal(joined, torch.cat((torch.zeros_like(kept), piece), dim=2))
    assert torch.equal(kept, joined[:, :, 1:])


def test_a_vector_of_zeros_stays_zero(device: torch.device) -> None:
    piece = torch.zeros_like(pictures(1, 6, 1, 2, 2, seed=1, device=device))
    gamma = values(6, seed=3, like=piece)
    assert torch.equal(causal_pad(piece, None, unwritten(piece, 1), gamma, None)[:, :, 1:], piece)


def test_every_other_frame_of_a_longer_tensor_is_a_piece(device: torch.device) -> None:
    longer = pictures(2, 6, 4, 2, 3, seed=1, device=device)
    past = pictures(2, 6, 2, 2, 3, seed=2, device=device)
    joined = causal_pad(longer[:, :, 1::2], past, unwritten(longer, 2), None, None)
    assert torch.equal(joined, torch.cat((past, longer[:, :, 1::2]), dim=2))


def test_the_old_past_stays_as_it_was(device: torch.device) -> None:
    piece, past = (pictures(1, 6, 2, 2, 3, seed=seed, device=device) for seed in (1, 2))
    before = past.clone()
    causal_pad(piece, past, unwritten(piece, 2), None, None)
    assert torch.equal(past, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_reference_is_the_autoencoders_norm_to_the_bit(dtype: torch.dtype) -> None:
    x = pictures(2, 12, 3, 2, 5, seed=1, device=torch.device("cpu"), dtype=dtype)
    norm = NormSiLU(12).to(dtype).requires_grad_(False)
    norm.gamma.copy_(values(12, seed=3, like=x).view_as(norm.gamma))
    assert torch.equal(norm_silu_reference(x, norm.gamma), norm(x))


def test_the_past_itself_cannot_be_written(device: torch.device) -> None:
    piece, past = (pictures(1, 6, 2, 2, 3, seed=seed, device=device) for seed in (1, 2))
    with pytest.raises(ValueError, match="kept is past itself"):
        causal_pad(piece, past, past, None, None)


def test_pictures_in_another_layout_are_refused(device: torch.device) -> None:
    piece = pictures(1, 6, 2, 2, 3, seed=1, device=device)
    with pytest.raises(ValueError, match=r"causal_pad: piece .* must be channels-last: use \.contiguous"):
        causal_pad(piece.contiguous(), None, unwritten(piece, 2), None, None)


def test_a_past_of_another_size_is_refused(device: torch.device) -> None:
    piece, past = pictures(1, 6, 2, 2, 3, seed=1, device=device), pictures(1, 6, 2, 2, 4, seed=2, device=device)
    with pytest.raises(ValueError, match=r"past is \[1, 6, 2, 2, 4\] .*; expected \[1, 6, 2, 2, 3\]"):
        causal_pad(piece, past, unwritten(piece, 2), None, None)


def test_a_scale_for_other_channels_is_refused(device: torch.device) -> None:
    piece = pictures(1, 6, 2, 2, 3, seed=1, device=device)
    with pytest.raises(ValueError, match=r"gamma is \[5\] .*; expected 6 values"):
        causal_pad(piece, None, unwritten(piece, 2), values(5, seed=3, like=piece), None)


def test_what_is_traced_has_the_shape_and_layout_of_what_runs() -> None:
    piece = torch.empty(1, 6, 3, 2, 5, device="meta").contiguous(memory_format=torch.channels_last_3d)
    joined = causal_pad(piece, None, piece[:, :, :2].contiguous(memory_format=torch.channels_last_3d), None, None)
    assert joined.shape == (1, 6, 5, 2, 5)
    assert joined.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_widest_norm_compiles_without_a_spill() -> None:
    name = "causal_pad_norm_384_sm120"
    assert compiled([name])[name].spills == 0
