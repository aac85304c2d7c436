"""Streams decoded by graphs, on either runtime, beside PyTorch."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from engines.bindings.decoder import GraphDecoder
from engines.errors import StreamError
from engines.vae.conv_cache import ConvCache
from tests.engines.bindings.runtimes import LATENTS, RUNTIMES, Decoding, after_first
from tests.engines.vae.pieces import EXACT, decode
from tests.support.exported import Exported

SPLITS = ((3, 3, 3), (1, 1, 1, 3, 3), (2, 1, 1, 2, 3), (1, 2, 2, 1, 1, 1, 1))


@pytest.fixture(scope="module", params=RUNTIMES)
def decoding(exported: Exported, request: pytest.FixtureRequest) -> Decoding:
    return Decoding(exported, request.param)


@pytest.fixture
def decoder(decoding: Decoding) -> GraphDecoder:
    return decoding.decoder


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_any_split_of_a_stream_gives_the_pictures_of_pytorch(
    decoder: GraphDecoder, exported: Exported, split: tuple[int, ...]
) -> None:
    pictures = decode(decoder, LATENTS.split(list(split), dim=1))
    assert_same(pictures, decode(exported.codec, (LATENTS,)))


def test_a_stream_may_change_from_pytorch_to_graphs(decoder: GraphDecoder, exported: Exported) -> None:
    begun = after_first(exported.codec)
    made, expected = (codec.decode(LATENTS[:, 3:6], begun) for codec in (decoder, exported.codec))
    assert_same(made.frames, expected.frames)
    for kept, wanted in zip(made.cache.frames, expected.cache.frames, strict=True):
        assert kept is not None
        assert wanted is not None
        assert_same(kept, wanted)


def test_streams_that_take_turns_do_not_touch(decoder: GraphDecoder, exported: Exported) -> None:
    streams = [LATENTS, LATENTS.flip(1)]
    caches = [decoder.start_decoding() for _ in streams]
    for begin in (0, 3, 6):
        for number, latents in enumerate(streams):
            pictures, caches[number] = decoder.decode(latents[:, begin : begin + 3], caches[number])
            if begin == 6:
                assert_same(pictures, decode(exported.codec, (latents,))[:, -12:])


def test_a_call_that_fails_leaves_the_stream_where_it_was(decoding: Decoding) -> None:
    decoder, watched = decoding.decoder, decoding.watched["decoder-steady-3"]
    begun = after_first(decoder)
    expected = decoder.decode(LATENTS[:, 3:6], begun).frames
    watched.fails = True
    with pytest.raises(RuntimeError, match="fallen off"):
        decoder.decode(LATENTS[:, 3:6], begun)
    watched.fails = False
    assert torch.equal(decoder.decode(LATENTS[:, 3:6], begun).frames, expected)


def test_a_call_reads_one_set_of_state_and_writes_the_other(decoding: Decoding) -> None:
    begun = after_first(decoding.decoder)
    after = decoding.decoder.decode(LATENTS[:, 3:6], begun).cache
    addresses = decoding.watched["decoder-steady-3"].addresses
    for slot, (past, kept) in enumerate(zip(begun.frames, after.frames, strict=True)):
        assert kept is not None
        assert addresses[f"kept_{slot}"] == kept.data_ptr()
        assert past is None or addresses[f"past_{slot}"] == past.data_ptr()
    assert len(set(addresses.values())) == len(addresses)


def test_the_set_that_a_stream_has_left_is_free_for_the_next(decoder: GraphDecoder) -> None:
    cache = after_first(decoder)
    left = weakref.ref(cache.frames[0])
    cache = decoder.decode(LATENTS[:, 3:6], cache).cache
    assert left() is None
    assert cache.frames_seen == 6


def test_a_call_without_a_graph_of_its_own_is_made_in_pieces(decoder: GraphDecoder, exported: Exported) -> None:
    pieces = (LATENTS[:, :5], LATENTS[:, 5:])
    assert_same(decode(decoder, pieces), decode(exported.codec, pieces))


def test_what_no_graph_is_for_is_refused_by_those_there_are(decoder: GraphDecoder) -> None:
    with pytest.raises(StreamError, match="no graph begins 1 of decoder-first-3 of 16x48; there is"):
        decoder.decode(LATENTS[:, :3, :, :2], decoder.start_decoding())
    with pytest.raises(StreamError, match="no graph begins 2 of decoder-first-3"):
        decoder.decode(torch.cat([LATENTS[:, :3]] * 2), decoder.start_decoding())
    with pytest.raises(ValueError, match="are not"):
        decoder.decode(LATENTS[:, :3, :2], decoder.start_decoding())


def test_the_cache_of_another_network_is_refused(decoder: GraphDecoder) -> None:
    with pytest.raises(StreamError, match="a cache of 1 layers"):
        decoder.decode(LATENTS[:, :3], ConvCache(3, (torch.zeros(1),)))
    begun = after_first(decoder)
    wrong = ConvCache(3, (torch.zeros(2), *begun.frames[1:]))
    with pytest.raises(StreamError, match=r"decoder-steady-3 takes past_0 .* it is given \[2\] torch.float32"):
        decoder.decode(LATENTS[:, 3:6], wrong)
