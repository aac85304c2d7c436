"""Copies to the host: what they wait for, and what waits for them."""

from __future__ import annotations

import pytest
import torch

from engines.device.host_copy import HostCopier, HostTensor, to_device
from engines.device.side_stream import record_event
from tests.support.fake_cuda import DeviceTensor, FakeCuda, Stuck, install, on_device

CUDA = torch.device("cuda:0")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install(monkeypatch)


def test_a_copy_does_not_wait_for_what_was_begun_after_its_tensor(cuda: FakeCuda) -> None:
    block = cuda.main.launch()
    ready = record_event(CUDA)
    cuda.main.launch()
    copy = HostCopier(CUDA).begin([on_device(torch.arange(3))], ready)
    with pytest.raises(Stuck):
        copy.result()
    block.finish()
    assert copy.result()[0].tolist() == [0, 1, 2]


def test_a_copy_that_waits_for_the_next_block_leaves_the_others_be(cuda: FakeCuda) -> None:
    copier = HostCopier(CUDA)
    first = cuda.main.launch()
    first_ready = record_event(CUDA)
    cuda.main.launch()
    later = copier.begin([on_device(torch.ones(1))], record_event(CUDA))
    earlier = copier.begin([on_device(torch.ones(2))], first_ready)
    first.finish()
    assert len(earlier.result()[0]) == 2
    with pytest.raises(Stuck):
        later.result()


def test_streams_of_finished_copies_are_used_again(cuda: FakeCuda) -> None:
    copier, before = HostCopier(CUDA), len(cuda.streams)
    for _ in range(5):
        block = cuda.main.launch()
        pending = [copier.begin([on_device(torch.ones(1))]) for _ in range(2)]
        block.finish()
        for copy in pending:
            copy.result()
    assert len(cuda.streams) - before == 2


def test_many_copies_under_way_share_streams_among_themselves_and_with_no_decoder(cuda: FakeCuda) -> None:
    copier, before = HostCopier(CUDA), len(cuda.streams)
    block = cuda.main.launch()
    pending = [copier.begin([on_device(torch.full((1,), float(number)))]) for number in range(40)]
    made = cuda.streams[before:]
    assert len(made) == 16
    assert {stream.priority for stream in made} == {0}
    block.finish()
    assert [copy.result()[0].item() for copy in pending] == list(range(40))


def test_the_stream_that_was_given_something_longest_ago_is_shared_first(cuda: FakeCuda) -> None:
    copier = HostCopier(CUDA)
    first = cuda.main.launch()
    copier.begin([on_device(torch.ones(1))])
    cuda.main.launch()
    for _ in range(15):
        copier.begin([on_device(torch.ones(1))])
    first.finish()
    streams = cuda.streams[1:]
    copier.begin([on_device(torch.ones(1))])
    copier.begin([on_device(torch.ones(1))])
    assert [len(made.given) for made in streams] == [2, 2, *[1] * 14]


def test_memory_that_is_being_copied_is_not_given_to_others(cuda: FakeCuda) -> None:
    tensor = on_device(torch.ones(1))
    HostCopier(CUDA).begin([tensor])
    assert isinstance(tensor, DeviceTensor)
    assert tensor.__dict__["read_by"] == [cuda.streams[-1]]


def test_what_is_on_the_host_already_is_left_there(cuda: FakeCuda) -> None:
    here = torch.ones(2)
    assert HostCopier(CUDA).begin([here]).result()[0] is here
    assert HostCopier(torch.device("cpu")).begin([here]).result()[0] is here
    assert to_device(here, torch.device("cpu")) is here


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_travels_as_bytes(dtype: torch.dtype) -> None:
    sent = torch.randn(3, 4).to(dtype).T
    assert torch.equal(HostTensor.of(sent).tensor(), sent)
