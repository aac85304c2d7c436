from __future__ import annotations

import pytest

from serving.hosts import host_of_target, in_address, is_loopback

HERE = (
    "localhost:9000", "localhost", "127.0.0.1:9000", "127.3.2.1", "[::1]:9000", "::1", "dns:///localhost:9000",
    "dns:localhost:9000", "ipv4:127.0.0.1:9000", "ipv6:[::1]:9000", "unix:/tmp/socket", "LOCALHOST:9000",
)  # fmt: skip
ELSEWHERE = (
    "video.example:9000", "10.0.0.7:9000", "0.0.0.0:9000", "[fe80::1]:9000", "localhost.video.example:9000",
    "127.0.0.1.video.example", "dns://127.0.0.1/video.example:9000", "ipv4:10.0.0.7:9000", "ipv6:[::ffff]:9000",
    "video.example#.localhost", "localhost@video.example:9000", "any.localhost:9000",
    "ipv4:127.0.0.1:1,10.0.0.7:1", "[::1", "",
)  # fmt: skip


def test_only_addresses_with_colons_are_put_in_brackets() -> None:
    assert [in_address(host) for host in ("::1", "127.0.0.1", "localhost")] == ["[::1]", "127.0.0.1", "localhost"]


@pytest.mark.parametrize("target", HERE)
def test_what_is_called_here_does_not_leave_this_machine(target: str) -> None:
    assert is_loopback(host_of_target(target))


@pytest.mark.parametrize("target", ELSEWHERE)
def test_whatever_else_is_called_may_leave_it(target: str) -> None:
    assert not is_loopback(host_of_target(target))
