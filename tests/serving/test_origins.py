from __future__ import annotations

import pytest

from engines.errors import ConfigError
from serving.errors import InvalidRequest, OriginNotAllowed
from serving.origins import Origins

FRIEND = Origins(("https://friend.example",))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("https://video.example", "video.example"),
        ("https://video.example", "video.example:443"),
        ("http://Video.example", "video.example"),
        ("https://friend.example", "video.example"),
        ("https://friend.example:443", "video.example"),
    ],
)
def test_a_program_the_own_page_and_a_named_one_may_call(origin: str | None, host: str) -> None:
    FRIEND.require(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://elsewhere.example", "127.0.0.1:8000"),
        ("http://127.0.0.1:3000", "127.0.0.1:8000"),
        ("http://localhost:8000", "127.0.0.1:8000"),
        ("http://friend.example", "video.example"),
        ("https://friend.example.elsewhere.example", "video.example"),
        ("https://video.example:8443", "video.example"),
        ("null", "127.0.0.1:8000"),
        ("", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000@elsewhere.example", "127.0.0.1:8000"),
        ("file://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:99999", "127.0.0.1:8000"),
    ],
)
def test_any_other_page_may_not_and_is_named(origin: str, host: str) -> None:
    with pytest.raises(OriginNotAllowed, match="--allowed-origins"):
        FRIEND.require(origin, host)


@pytest.mark.parametrize(
    "origin", ["*", "https://*.example", "null", "example.org", "https://example.org/page", ""]
)
def test_what_is_no_origin_cannot_be_let_in(origin: str) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        Origins((origin,))


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5:8000", "friend.example"]
)
def test_a_server_of_this_machine_answers_to_its_own_names(host: str) -> None:
    Origins(("https://friend.example",), local_names_only=True).require_host(host)


@pytest.mark.parametrize(
    "host", ["elsewhere.example:8000", "localhost.elsewhere.example", "127.0.0.1.elsewhere.example", ""]
)
def test_a_name_that_somebody_else_has_pointed_here_is_refused(host: str) -> None:
    with pytest.raises(OriginNotAllowed, match="is no name of this server"):
        Origins(local_names_only=True).require_host(host)


@pytest.mark.parametrize("host", ["[", "[::1:80", "name:port", "name:99999"])
def test_what_is_no_host_is_refused_in_words(host: str) -> None:
    with pytest.raises(InvalidRequest, match="must be NAME or NAME:PORT"):
        FRIEND.require_host(host)
